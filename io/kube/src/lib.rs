//! Watch a Kubernetes API server into the model; write status back.
