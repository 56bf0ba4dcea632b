//! Why a packet, connection or query got what it got. One list for kernel, proxies, metrics and people.

use std::fmt;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Forwarded,
    Denied,
}

/// Seen from the pod the policy selects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    Ingress,
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $verdict:ident, $slug:literal, $text:literal;)*) => {
        /// The numbers are the kernel's (`enum weft_reason` in bpf/abi); they never change meaning.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name = $number,)* }

        impl Reason {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            pub fn verdict(self) -> Verdict {
                match self { $(Self::$name => Verdict::$verdict,)* }
            }

            /// The short form in metrics and filters.
            pub fn slug(self) -> &'static str {
                match self { $(Self::$name => $slug,)* }
            }

            /// One sentence for a person.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            pub fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    NotIsolated = 1, Forwarded, "not-isolated", "no policy selects the pod in this direction";
    AllowedByRule = 2, Forwarded, "allowed-by-rule", "a policy rule allows it";
    /// The peer opened the flow and that was allowed.
    Reply = 3, Forwarded, "reply", "reply of a flow that was allowed";
    FromOwnNode = 4, Forwarded, "from-own-node", "a pod's own node always reaches it (probes)";
    Related = 5, Forwarded, "related", "ICMP error about a flow that was allowed";
    /// No policy of this node is asked: the backend's node does that.
    Balanced = 6, Forwarded, "balanced", "from outside to a service, sent on to a backend elsewhere";
    DefaultDeny = 32, Denied, "default-deny", "policies isolate the pod and no rule allows it";
    DeniedByRule = 33, Denied, "denied-by-rule", "a policy rule denies it";
    IdentityUnknown = 34, Denied, "identity-unknown", "the peer is a pod whose identity is not yet known";
    SpoofedSource = 35, Denied, "spoofed-source", "the source address does not belong to the sender";
    NoSuchPod = 36, Denied, "no-such-pod", "no pod of this node has that address";
    NoReadyBackends = 37, Denied, "no-ready-backends", "the service has no ready endpoints";
    NotTranslated = 38, Denied, "service-address", "a service address that the service does not serve on that protocol and port";
    Malformed = 39, Denied, "malformed", "the packet's headers are broken or too short";
    NotIp = 40, Denied, "not-ip", "neither IPv4 nor IPv6";
    HopLimit = 41, Denied, "hop-limit", "hop limit or TTL reached zero";
    FragmentUnknown = 42, Denied, "fragment-unknown", "a later fragment whose first fragment was not seen";
    TableFull = 43, Denied, "table-full", "a kernel table is full, so the flow could not be tracked";
    RouteMissing = 44, Denied, "no-route", "no route to the destination";
    TunnelFailed = 45, Denied, "tunnel-failed", "the packet could not be encapsulated";
    EndpointNotReady = 46, Denied, "endpoint-not-ready", "the pod's interface is not set up yet";
    LinkLocal = 47, Denied, "link-local", "link-local and multicast traffic does not leave a pod";
    SourceRange = 48, Denied, "source-range", "the client is in none of the service's loadBalancerSourceRanges";
    NoLocalBackends = 49, Denied, "no-local-endpoints", "the service's traffic policy is Local and no ready endpoint is on this node";
    NoFreePort = 50, Denied, "no-free-port", "no port of the node is free to forward the connection from";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.slug())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_lists_every_reason() {
        let guide = include_str!("../../../docs/guide.md");
        let rows = Reason::ALL.iter().map(|reason| {
            let verdict = format!("{:?}", reason.verdict()).to_lowercase();
            format!("| `{}` | {verdict} | {} |\n", reason.slug(), reason.text())
        });
        let table = format!("| reason | verdict | meaning |\n|---|---|---|\n{}", rows.collect::<String>());
        assert!(guide.contains(&table), "docs/guide.md should hold this table:\n{table}");
    }

    #[test]
    fn numbers_and_slugs_are_unique_and_round_trip() {
        let slugs: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.slug()).collect();
        assert_eq!(slugs.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert_eq!(Reason::from_number(*reason as u8), Some(*reason));
        }
    }
}
