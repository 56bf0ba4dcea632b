//! The network of a Kubernetes cluster as one program.

fn main() {}
