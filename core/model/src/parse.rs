//! Kubernetes objects to model nouns: parse once, keep only what is valid, say what was not.
