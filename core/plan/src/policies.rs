//! Policies resolved for one node: sets of matches shared by endpoints, and the cause each match stands for.
//!
//! Look-up of (set, class, protocol, port): the longest match among the set's entries for exactly that class;
//! failing that, the longest among its entries for `ClassMatch::Any`; failing that, default deny with `PolicySet::default_rule`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use weft_model::{Direction, PolicyKey, Protocol, Verdict};

use crate::ClassId;

/// Derived from the policies that make the set and their content, never from history.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PolicySetId(pub u32);

/// Derived from the policy's uid, direction and rule index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct RuleId(pub u32);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySet {
    pub direction: Direction,
    /// The policies that isolate endpoints with this set.
    pub policies: Vec<PolicyKey>,
    pub entries: BTreeMap<PolicyMatch, Decision>,
    pub default_rule: RuleId,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PolicyMatch {
    pub class: ClassMatch,
    /// `None`: any protocol; then the port prefix has no bits.
    pub protocol: Option<Protocol>,
    pub port: PortPrefix,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum ClassMatch {
    Any,
    Only(ClassId),
}

impl ClassMatch {
    /// The number in the kernel's key.
    pub fn number(self) -> u32 {
        match self {
            Self::Any => ClassId::ANY.0,
            Self::Only(class) => class.0,
        }
    }
}

/// `bits` leading bits of `value`; a port range is a few of these.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PortPrefix {
    pub value: u16,
    pub bits: u8,
}

impl PortPrefix {
    pub const ANY: Self = Self { value: 0, bits: 0 };

    pub const fn exact(port: u16) -> Self {
        Self { value: port, bits: 16 }
    }

    pub fn contains(self, port: u16) -> bool {
        self.bits == 0 || (port ^ self.value) >> (16 - u32::from(self.bits)) == 0
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Decision {
    pub verdict: Verdict,
    pub rule: RuleId,
}

/// What a rule number stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RuleCause {
    /// `spec.ingress[index]` or `spec.egress[index]` of a policy.
    Rule { policy: PolicyKey, direction: Direction, index: usize },
    /// No rule of these policies matched.
    DefaultDeny { policies: Vec<PolicyKey>, direction: Direction },
}

impl fmt::Display for RuleCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { policy, direction, index } => write!(f, "{policy} spec.{direction}[{index}]"),
            Self::DefaultDeny { policies, direction } => {
                let names = policies.iter().map(|policy| policy.to_string()).collect::<Vec<_>>().join(", ");
                write!(f, "{direction} isolated by {names}; no rule allows it")
            }
        }
    }
}
