//! Frontends of every kind for a plan that has cluster IPs, and frames aimed at them.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use weft_decide::Packet;
use weft_model::{
    Addr, Affinity, Balancing, Cidr, Family, Forwarding, Port, Protocol, ServiceKey, TrafficPolicy,
};
use weft_plan::{
    Backend, BackendList, EdgePlan, Exposure, Frontend, ListId, NodePlan, ServiceId, ServicePlan,
};

use super::bytes;

/// Each cluster IP gets a load balancer's address and a node port beside it; what they do differs from one to the next.
pub fn add(plan: &mut NodePlan) {
    let mut cluster_ips: Vec<(Frontend, ServicePlan)> =
        plan.services.iter().map(|(frontend, service)| (*frontend, service.clone())).collect();
    for (number, addr) in
        ["10.96.0.200", "fd00:10:96::c8", "10.96.0.201", "fd00:10:96::c9"].iter().enumerate()
    {
        let protocol = if number < 2 { Protocol::TCP } else { Protocol::UDP };
        for port in [80, 443] {
            let key = ServiceKey::new("made", format!("up-{number}-{port}"));
            let frontend = Frontend { addr: addr.parse().unwrap(), protocol, port: Port(port) };
            cluster_ips.push((frontend, ServicePlan::cluster_ip(ServiceId(0), key, Vec::new())));
        }
    }
    for (number, (frontend, service)) in cluster_ips.into_iter().enumerate() {
        let number = number as u32;
        let service = varied(plan, number, frontend, service);
        let external = match frontend.addr.family() {
            Family::V4 => Addr::from(Ipv4Addr::new(198, 51, 100, number as u8)),
            Family::V6 => Addr::from(Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, number as u16)),
        };
        let any = match frontend.addr.family() {
            Family::V4 => Addr::from(Ipv4Addr::UNSPECIFIED),
            Family::V6 => Addr::from(Ipv6Addr::UNSPECIFIED),
        };
        let node_port = Port(30_000 + number as u16);
        let others = [
            (frontend, Exposure::ClusterIp, 0),
            (Frontend { addr: external, ..frontend }, Exposure::LoadBalancer, 1),
            (Frontend { addr: any, port: node_port, ..frontend }, Exposure::NodePort, 2),
        ];
        for (frontend, exposure, kind) in others {
            let mut service = service.clone();
            service.id = ServiceId(1 + number * 4 + kind);
            service.exposure = exposure;
            if exposure == Exposure::ClusterIp {
                service.edge = None;
            }
            plan.services.insert(frontend, service);
        }
    }
}

fn varied(plan: &NodePlan, number: u32, frontend: Frontend, mut service: ServicePlan) -> ServicePlan {
    let family = frontend.addr.family();
    let mut backends = service.list.backends.clone();
    let other_nodes = plan.routes.values().map(|hop| hop.via);
    let outside = match family {
        Family::V4 => Addr::from(Ipv4Addr::new(203, 0, 113, 9)),
        Family::V6 => Addr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9)),
    };
    let beside: Vec<Addr> =
        plan.settings.node_addresses.iter().copied().chain(other_nodes).chain([outside]).collect();
    let beside: Vec<Addr> = beside.into_iter().filter(|addr| addr.family() == family).collect();
    if number % 3 == 1 {
        backends.push(Backend::at(beside[number as usize % beside.len()], Port(8080)));
    }
    let pods: Vec<Addr> = plan.endpoints.keys().copied().filter(|addr| addr.family() == family).collect();
    if number.is_multiple_of(2) && !pods.is_empty() {
        backends.push(Backend::at(pods[number as usize % pods.len()], Port(80)));
    }
    backends.sort();
    backends.dedup_by_key(|backend| (backend.addr, backend.port));
    let here: Vec<Backend> =
        backends.iter().filter(|backend| plan.endpoints.contains_key(&backend.addr)).cloned().collect();
    let policy = if number % 5 == 2 { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
    let forwarding = if number % 4 == 3 { Forwarding::Dsr } else { Forwarding::Snat };
    let list = list(10_000 + number * 2, backends.clone(), &backends);
    let edge_list = match policy {
        TrafficPolicy::Cluster => Arc::clone(&list),
        TrafficPolicy::Local => self::list(10_001 + number * 2, here, &backends),
    };
    service.list = list;
    service.balancing = Balancing::Maglev;
    if number % 3 == 2 {
        service.affinity = Affinity::ClientIp { seconds: 10_800 };
    }
    if number % 7 == 4 {
        let ranges = ["10.244.0.0/16", "203.0.113.0/24", "fd00:10:244::/56", "2001:db8::/32"];
        service.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect::<BTreeSet<Cidr>>();
    }
    service.edge = Some(EdgePlan { list: edge_list, policy, forwarding });
    service
}

fn list(id: u32, backends: Vec<Backend>, all: &[Backend]) -> Arc<BackendList> {
    let elsewhere = backends.is_empty() && !all.is_empty();
    Arc::new(BackendList { id: ListId(id), backends, elsewhere })
}

/// The frame as one to a frontend of its family and protocol, with right checksums.
pub fn aim(plan: &NodePlan, frame: &[u8], choice: &proptest::sample::Index) -> Vec<u8> {
    let mut out = frame.to_vec();
    let Ok(packet) = Packet::parse(frame) else { return out };
    let Ok(body) = packet.body else { return out };
    let family = packet.source.family();
    let fits = |frontend: &&Frontend| frontend.protocol == body.protocol && frontend.addr.family() == family;
    let fitting: Vec<&Frontend> = plan.services.keys().filter(fits).collect();
    let is_plain = body.fragment == weft_decide::Fragment::Whole;
    if fitting.is_empty() || !is_plain || ![Protocol::TCP, Protocol::UDP].contains(&body.protocol) {
        return out;
    }
    let frontend = choice.get(&fitting);
    let nodes: Vec<Addr> = plan
        .settings
        .node_addresses
        .iter()
        .copied()
        .chain(plan.routes.values().map(|hop| hop.via))
        .filter(|addr| addr.family() == family)
        .collect();
    let is_any = frontend.addr.octets()[12..] == [0; 4];
    let addr = if is_any { *choice.get(&nodes) } else { frontend.addr };
    let mut aimed = body;
    aimed.destination_port = frontend.port;
    let aimed = Packet { destination: addr, body: Ok(aimed), ..packet };
    out = bytes::translated(&out, &aimed);
    bytes::mend(&mut out);
    out
}
