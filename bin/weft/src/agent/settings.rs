//! The agent's configuration in the terms of each shell.

use weft_datapath as datapath;
use weft_lab::fabric::config::AgentConfig;
use weft_lab::fabric::spec;
use weft_model::{Addr, Cidr, ClusterSettings, NameSettings, ResolvConf, Routing};

pub fn datapath(config: &AgentConfig) -> datapath::Config {
    datapath::Config {
        bpffs_dir: config.bpffs_dir.clone(),
        cgroup_dir: config.cgroup_dir.clone(),
        uplink: config.uplink.clone(),
        routing: routing(config),
        flow_entries: config.tables.flows,
        capacity: datapath::Capacity { frontends: config.tables.frontends, backends: config.tables.backends },
    }
}

pub fn cluster(config: &AgentConfig) -> ClusterSettings {
    ClusterSettings {
        pod_cidrs: cidrs(&config.cluster_cidrs.pods),
        service_cidrs: cidrs(&config.cluster_cidrs.services),
        node_cidrs: cidrs(&config.cluster_cidrs.nodes),
        routing: routing(config),
        dns_addresses: config.dns_ips.iter().copied().map(Addr::from).collect(),
        node_dns_addresses: node_dns_addresses(&config.dns_ips),
        cluster_domain: config.cluster_domain.clone(),
        names: names(),
        mtu: config.mtu,
        forwarding: config.forwarding,
        localhost_node_ports: config.localhost_node_ports,
    }
}

/// Pods' search lists end with the node's own: kubelets read this file too.
fn names() -> NameSettings {
    let file = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    NameSettings { node_search: ResolvConf::parse(&file).search, ..NameSettings::default() }
}

/// Where name servers of nodes answer by custom, besides the service's addresses and in their families.
fn node_dns_addresses(service: &[std::net::IpAddr]) -> Vec<Addr> {
    let own: [std::net::IpAddr; 2] = [[169, 254, 20, 10].into(), [0xfd00, 0, 0, 0, 0, 0, 0x20, 0x10].into()];
    let own = own.into_iter().filter(|own| service.iter().any(|other| other.is_ipv4() == own.is_ipv4()));
    own.map(Addr::from).collect()
}

fn routing(config: &AgentConfig) -> Routing {
    match config.routing {
        spec::Routing::Direct => Routing::Direct,
        spec::Routing::Vxlan => Routing::Vxlan { vni: datapath::VXLAN_VNI, port: datapath::VXLAN_PORT },
    }
}

fn cidrs(nets: &[ipnet::IpNet]) -> Vec<Cidr> {
    nets.iter().filter_map(|net| Cidr::around(net.addr().into(), net.prefix_len())).collect()
}

#[cfg(test)]
mod tests {
    use weft_lab::fabric::TableSizes;

    use super::*;

    #[test]
    fn tables_are_as_large_as_the_datapath_has_them_unless_set() {
        let sizes = TableSizes::default();
        let datapath::Capacity { frontends, backends } = datapath::Capacity::default();
        assert_eq!((sizes.frontends, sizes.backends), (frontends, backends));
        assert_eq!(sizes.flows, datapath::Config::DEFAULT_FLOW_ENTRIES);
    }
}
