//! HTTP around the API: listeners, TLS, requests and replies. What requests mean lives in `api`.

pub mod listen;
pub mod reply;
pub mod request;
