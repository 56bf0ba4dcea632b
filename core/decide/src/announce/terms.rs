//! What the announcer knows, decides and is told, as values. What follows from what is decided in `announce`.

use std::time::Duration;

use weft_model::{Addr, NodeName};

/// A link address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkAddr(pub [u8; 6]);

impl std::fmt::Display for LinkAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Times {
    /// Between two heartbeats of a node that holds an address.
    pub heartbeat: Duration,
    /// A node not heard of for this long is asked for on the network.
    pub expiry: Duration,
    /// RFC 5227 and RFC 4862 have longer waits; these fit into a failover of under two seconds.
    pub probes: u32,
    pub probe_gap: Duration,
    /// The next candidate in line waits this much longer.
    pub stagger: Duration,
    /// After a claim: when the address is announced, counted from the claim.
    pub announcements: [Duration; 4],
    /// An address that somebody answers for is probed again after this.
    pub recheck: Duration,
    /// RFC 5227, 2.4: who was contradicted twice within this time does not defend again.
    pub defence: Duration,
    /// What lasts is looked at ever more seldom, down to this.
    pub longest: Duration,
}

impl Times {
    /// `nodes`: in a large cluster nodes are heard of less often, so that the API server is not flooded.
    pub fn for_cluster(nodes: usize) -> Self {
        let millis = |count: u64| Duration::from_millis(count);
        let heartbeat = millis(400.max(4 * nodes as u64));
        Self {
            heartbeat,
            expiry: heartbeat * 3,
            probes: 3,
            probe_gap: millis(100),
            stagger: millis(400),
            announcements: [millis(0), millis(200), millis(1000), millis(3000)],
            recheck: Duration::from_secs(5),
            defence: Duration::from_secs(10),
            longest: Duration::from_secs(60),
        }
    }

    /// After this without a heartbeat a node asks the link who is there. Whether it is cut off is known before anybody
    /// may count it as silent.
    pub(super) fn doubt(&self) -> Duration {
        self.heartbeat * 2
    }
}

/// Who holds an address, as its Lease says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// `None`: given up.
    pub holder: Option<NodeName>,
    /// The Lease's version: a claim is made on the one that was seen.
    pub version: String,
    pub transitions: u32,
    /// What the Lease says about who keeps the address from its candidates.
    pub obstacle: Option<Obstacle>,
}

/// Why an address is not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Obstacle {
    /// No node holds it, and a machine answers for it.
    InUse(LinkAddr),
    /// Its holder's agent is silent, and a machine, most likely the holder, still answers: nothing is lost.
    HolderAnswers(LinkAddr),
    /// Its holder announces it, and so does another machine.
    Contested(LinkAddr),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Ask the network who has the address.
    Probe(Addr),
    /// Tell the network that this node has it.
    Announce(Addr),
    /// Take the Lease on the version that was seen; `after`: whose heartbeat must not have come meanwhile.
    Claim { addr: Addr, seen: Option<Claim>, after: Option<NodeName> },
    /// The address is withdrawn: let the next candidate have it.
    HandOver { addr: Addr, version: String },
    /// The address is withdrawn and nobody's: the Lease goes.
    Delete { addr: Addr, version: String },
    /// Say in the Lease what keeps the address from being taken or held; `None`: nothing any more.
    Report { addr: Addr, seen: Option<Claim>, obstacle: Option<Obstacle> },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Api {
    Reachable,
    Away,
}

/// How the write of a claim ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Taken,
    /// Somebody was faster, or its holder lives.
    Refused,
    /// Nobody knows: the server did not answer.
    Failed,
}
