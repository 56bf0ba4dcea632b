//! The server as its clients see it: over TLS, in-process or as a child, with kube's client, raw HTTP and kubectl.

mod deletion;
mod durability;
mod kubectl;
mod listeners;
mod objects;
mod pods;
mod pools;
mod security;
mod service_changes;
mod service_refusals;
mod services;
mod support;
mod watching;

#[path = "../../../../tests/skip.rs"]
mod skip;
