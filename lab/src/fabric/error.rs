//! What can go wrong between `up` and `down`, worded for the operator.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::preflight::MachineError;
use super::spec::SpecError;

/// A list of reasons, one per line.
#[derive(Debug)]
pub struct Reasons<T>(pub Vec<T>);

impl<T: fmt::Display> fmt::Display for Reasons<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, reason) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{reason}")?;
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Spec(Reasons<SpecError>),
    #[error("{0}")]
    Machine(Reasons<MachineError>),
    #[error(
        "name: a fabric named {name:?} is {state} already; choose another --name or run `weft down --name {name}` first"
    )]
    Exists { name: String, state: &'static str },
    #[error("fabric {name}: cannot {what}: {source}")]
    Weave { name: String, what: String, source: io::Error },
    #[error("fabric {name}: {source}")]
    Credentials { name: String, source: weft_pki::Error },
    #[error("fabric {name}: the {process} does not {what}; the end of {log}:\n{tail}", log = log.display())]
    Process { name: String, process: String, what: String, log: PathBuf, tail: String },
    #[error("fabric {name}: cannot create {object}: {source}")]
    Bootstrap { name: String, object: String, source: Box<kube::Error> },
    #[error("fabric {name}: {what}: {why}")]
    Manifest { name: String, what: &'static str, why: String },
    #[error("fabric {name}: interrupted")]
    Interrupted { name: String },
    #[error("fabric {name}: left behind:\n{leftovers}")]
    Leftovers { name: String, leftovers: Reasons<String> },
    #[error("cannot read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
}
