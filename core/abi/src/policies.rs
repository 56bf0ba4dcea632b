//! Policy entries as a longest-prefix table. Twin of bpf/abi/policies.h.

use weft_model::{Protocol, Verdict};
use weft_plan::{ClassMatch, Decision, PolicyMatch, PolicySetId, PortPrefix, RuleId};

use crate::layout::shared;

shared! {
    "weft_policy_key" PolicyMapKey {
        bits: u32,
        set: u32,
        peer_class: u32,
        protocol: u8,
        reserved: u8,
        /// Network order.
        port: u16,
    }
}

shared! {
    "weft_policy" PolicyValue {
        rule: u32,
        flags: u32,
    }
}

/// Bits of `enum weft_policy_flags`.
pub struct PolicyFlags;

impl PolicyFlags {
    pub const ALLOW: u32 = 1;
    pub const DEFAULT: u32 = 2;
}

/// How many leading bits of a key say how much.
pub struct PolicyKeyBits;

impl PolicyKeyBits {
    pub const CLASS: u32 = 64;
    pub const PROTOCOL: u32 = 80;
}

impl PolicyMapKey {
    pub fn new(set: PolicySetId, matched: &PolicyMatch) -> Self {
        let (protocol, bits) = match matched.protocol {
            None => (0, PolicyKeyBits::CLASS),
            Some(protocol) => (protocol.0, PolicyKeyBits::PROTOCOL + u32::from(matched.port.bits)),
        };
        let port = if matched.protocol.is_some() { matched.port.value.to_be() } else { 0 };
        Self { bits, set: set.0, peer_class: matched.class.number(), protocol, reserved: 0, port }
    }

    /// The entry reached when nothing else of the set matches.
    pub fn default_of(set: PolicySetId) -> Self {
        Self { bits: PolicyKeyBits::CLASS, set: set.0, ..Self::default() }
    }

    pub fn to_match(self) -> PolicyMatch {
        let class = match self.peer_class {
            0 => ClassMatch::Any,
            number => ClassMatch::Only(weft_plan::ClassId(number)),
        };
        if self.bits < PolicyKeyBits::PROTOCOL {
            return PolicyMatch { class, protocol: None, port: PortPrefix::ANY };
        }
        // A key has at most 96 bits, so what is left fits.
        let bits = (self.bits - PolicyKeyBits::PROTOCOL) as u8;
        let port = PortPrefix { value: u16::from_be(self.port), bits };
        PolicyMatch { class, protocol: Some(Protocol(self.protocol)), port }
    }
}

impl From<Decision> for PolicyValue {
    fn from(decision: Decision) -> Self {
        let flags = match decision.verdict {
            Verdict::Forwarded => PolicyFlags::ALLOW,
            Verdict::Denied => 0,
        };
        Self { rule: decision.rule.0, flags }
    }
}

impl PolicyValue {
    pub fn default_deny(rule: RuleId) -> Self {
        Self { rule: rule.0, flags: PolicyFlags::DEFAULT }
    }

    pub fn is_default(self) -> bool {
        self.flags & PolicyFlags::DEFAULT != 0
    }

    pub fn to_decision(self) -> Decision {
        let verdict = if self.flags & PolicyFlags::ALLOW != 0 { Verdict::Forwarded } else { Verdict::Denied };
        Decision { verdict, rule: RuleId(self.rule) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_round_trip_through_keys() {
        let matches = [
            PolicyMatch { class: ClassMatch::Any, protocol: None, port: PortPrefix::ANY },
            PolicyMatch { class: ClassMatch::Any, protocol: Some(Protocol::UDP), port: PortPrefix::ANY },
            PolicyMatch {
                class: ClassMatch::Only(weft_plan::ClassId(7)),
                protocol: Some(Protocol::TCP),
                port: PortPrefix { value: 0x1f80, bits: 12 },
            },
        ];
        for matched in matches {
            assert_eq!(PolicyMapKey::new(PolicySetId(9), &matched).to_match(), matched);
        }
    }
}
