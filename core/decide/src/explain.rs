//! Why a connection succeeds or fails: name -> service -> backend -> egress policy -> route -> ingress policy, each step with
//! what decides it. The judging itself lives in `reach`; here it is told.

mod advice;
mod balance;
mod names;
mod near;
mod question;
mod tell;

use serde::Serialize;
use weft_model::{Addr, PodKey, PolicyKey, Port, Protocol, Snapshot};
use weft_plan::RuleCause;

pub use names::{NameEnd, NameStory, why_name};
pub use question::{Destination, Question, QuestionError};

use crate::reach::{Cluster, Reach};

/// The story of one question.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Explanation {
    pub source: PodKey,
    pub destination: String,
    pub protocol: Protocol,
    pub reach: Reach,
    /// Steps that all ways share: the name, the service.
    pub steps: Vec<Step>,
    /// One for each address or backend that may be chosen.
    pub paths: Vec<Path>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Path {
    pub address: Addr,
    pub port: Port,
    pub pod: Option<PodKey>,
    pub reach: Reach,
    pub steps: Vec<Step>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Step {
    pub stage: Stage,
    pub passed: bool,
    /// What decides it, in words.
    pub text: String,
    /// The rule or the default deny behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<RuleCause>,
    /// The rule as it stands in its object, in YAML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Policies that isolate the pod, for a default deny.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub isolating: Vec<PolicyKey>,
    /// The smallest policy that would let exactly this pass, in YAML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_with: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    Resolver,
    Name,
    Service,
    Backend,
    EgressPolicy,
    Route,
    IngressPolicy,
    Listener,
}

impl Step {
    pub(crate) fn passed(stage: Stage, text: impl Into<String>) -> Self {
        Self {
            stage,
            passed: true,
            text: text.into(),
            cause: None,
            rule: None,
            isolating: vec![],
            allow_with: None,
        }
    }

    pub(crate) fn failed(stage: Stage, text: impl Into<String>) -> Self {
        Self { passed: false, ..Self::passed(stage, text) }
    }
}

/// Answers a question from the API's objects alone.
pub fn why(snapshot: &Snapshot, question: &Question) -> Result<Explanation, QuestionError> {
    let cluster = Cluster::new(snapshot);
    tell::Story::new(&cluster, question)?.tell()
}
