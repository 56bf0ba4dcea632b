//! Leases that nobody else deletes: those of nodes that are gone, and of addresses that nobody wants and whose holder
//! cannot give them up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kube::Client;
use tokio::sync::watch;
use weft_compile::announce::announced;
use weft_kube::claims::{Held, delete_abandoned};
use weft_kube::{Link, View};
use weft_model::{Addr, NodeName, Snapshot};

/// How long a Lease may outlive what it was for.
const SWEEP: Duration = Duration::from_secs(10);
/// A node whose heartbeat has not changed for this long does not come back to tidy up; if it does come back, it finds
/// its Leases gone and withdraws.
const DEAD: Duration = Duration::from_secs(60);

pub async fn sweep(client: Client, views: watch::Receiver<View>) {
    let mut sweeper = Sweeper::default();
    loop {
        tokio::time::sleep(SWEEP).await;
        let view = views.borrow().clone();
        if !view.synced || view.link != Link::Connected {
            // What is not heard now says nothing about anybody.
            sweeper.hearts.clear();
            continue;
        }
        let snapshot = view.snapshot;
        let swept = delete_abandoned(&client, |leases| sweeper.abandoned(leases, &snapshot, Instant::now()));
        match swept.await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "abandoned leases deleted"),
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

#[derive(Default)]
struct Sweeper {
    /// What each node's heartbeat said last, and since when.
    hearts: BTreeMap<NodeName, (String, Instant)>,
}

impl Sweeper {
    fn abandoned(&mut self, leases: &[Held], snapshot: &Snapshot, now: Instant) -> Vec<bool> {
        let wanted: BTreeSet<Addr> = announced(snapshot).into_keys().collect();
        let dead = self.dead(leases, snapshot, now);
        let of_nobody =
            |holder: &Option<NodeName>| holder.as_ref().is_none_or(|holder| dead.contains(holder));
        let mut holders = BTreeSet::new();
        for lease in leases {
            if let Held::Address(lease) = lease
                && wanted.contains(&lease.addr)
            {
                holders.extend(lease.holder.clone());
            }
        }
        let abandoned = leases.iter().map(|lease| match lease {
            // A holder that lives deletes its own, after it has withdrawn the address.
            Held::Address(lease) => !wanted.contains(&lease.addr) && of_nobody(&lease.holder),
            Held::Heartbeat(node, _) => {
                dead.contains(node) && !(holders.contains(node) && snapshot.nodes.contains_key(node))
            }
        });
        abandoned.collect()
    }

    /// Nodes that are gone, and those that have been silent for long.
    fn dead(&mut self, leases: &[Held], snapshot: &Snapshot, now: Instant) -> BTreeSet<NodeName> {
        let mut said: BTreeMap<NodeName, String> = BTreeMap::new();
        for lease in leases {
            match lease {
                Held::Heartbeat(node, text) => drop(said.insert(node.clone(), text.clone())),
                Held::Address(lease) => {
                    if let Some(holder) = &lease.holder {
                        said.entry(holder.clone()).or_default();
                    }
                }
            }
        }
        self.hearts.retain(|node, (text, _)| said.get(node) == Some(text));
        for (node, text) in said {
            self.hearts.entry(node).or_insert((text, now));
        }
        let silent = |since: &Instant| now.saturating_duration_since(*since) >= DEAD;
        let dead = self
            .hearts
            .iter()
            .filter(|(node, (_, since))| silent(since) || !snapshot.nodes.contains_key(*node));
        dead.map(|(node, _)| node.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use weft_kube::claims::AddressLease;
    use weft_model::{
        AddressGiver, AddressPool, AddressRange, Announcement, Assignment, IpMode, LoadBalancerIp, Node,
        PoolName, Service, ServiceKey, ServiceKind,
    };

    use super::*;

    fn addr(last: u8) -> Addr {
        std::net::Ipv4Addr::new(192, 0, 2, last).into()
    }

    fn held(last: u8, holder: &str) -> Held {
        Held::Address(AddressLease {
            addr: addr(last),
            holder: (!holder.is_empty()).then(|| NodeName::new(holder)),
            version: "1".to_owned(),
            transitions: 0,
            since: None,
            obstacle: None,
        })
    }

    fn beat(node: &str, text: &str) -> Held {
        Held::Heartbeat(NodeName::new(node), text.to_owned())
    }

    /// Nodes a and b, and a service with the address 10.
    fn cluster() -> Snapshot {
        let mut snapshot = Snapshot::default();
        for name in ["a", "b"] {
            let node = Node {
                name: NodeName::new(name),
                labels: Default::default(),
                addresses: Vec::new(),
                pod_cidrs: BTreeSet::new(),
                ready: true,
                sctp: Default::default(),
            };
            snapshot.nodes.insert(node.name.clone(), node);
        }
        let pool = AddressPool {
            name: PoolName("edge".to_owned()),
            ranges: vec![AddressRange { first: addr(10), last: addr(19) }],
            assignment: Assignment::Automatic,
            services: None,
            namespaces: None,
            announcement: Announcement::Layer2 { interfaces: Vec::new(), nodes: None },
        };
        snapshot.pools.insert(pool.name.clone(), pool);
        let mut service = Service::new(ServiceKey::new("shop", "web"), ServiceKind::LoadBalancer);
        service.load_balancer_ips = vec![LoadBalancerIp { addr: addr(10), mode: IpMode::Vip }];
        service.request.giver = AddressGiver::Weft;
        snapshot.services.insert(service.key.clone(), service);
        snapshot
    }

    #[test]
    fn what_a_dead_node_left_goes_although_its_node_object_stays() {
        let (snapshot, start) = (cluster(), Instant::now());
        let mut sweeper = Sweeper::default();
        let leases = |beats: &str| {
            [held(10, "a"), held(11, "a"), held(12, "b"), held(13, ""), beat("a", "1"), beat("b", beats)]
        };
        assert_eq!(
            sweeper.abandoned(&leases("1"), &snapshot, start),
            [false, false, false, true, false, false]
        );
        let later = start + DEAD;
        // b lives and gives its own up; what a holds and somebody wants waits for its next holder.
        assert_eq!(
            sweeper.abandoned(&leases("2"), &snapshot, later),
            [false, true, false, true, false, false]
        );
        let after = [held(10, "b"), beat("a", "1"), beat("b", "3")];
        assert_eq!(
            sweeper.abandoned(&after, &snapshot, later),
            [false, true, false],
            "nobody names a any more"
        );
    }

    #[test]
    fn a_holder_without_a_heartbeat_is_given_time_and_one_without_a_node_none() {
        let (snapshot, start) = (cluster(), Instant::now());
        let mut sweeper = Sweeper::default();
        let leases = [held(11, "a"), held(12, "gone"), beat("gone", "1")];
        assert_eq!(sweeper.abandoned(&leases, &snapshot, start), [false, true, true]);
        assert_eq!(sweeper.abandoned(&leases[..1], &snapshot, start + DEAD), [true]);
    }
}
