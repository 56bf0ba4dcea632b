//! The configuration files of the fabric's processes: one JSON document each, read with `--config FILE`.
//! The kubelet's is `kubelet::Config`; the controllers' is `controllers::Config`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weft_model::Forwarding;

use super::network::UPLINK;
use super::paths::Paths;
use super::spec::{NodeAddresses, Routing, Spec};
use super::tables::TableSizes;

/// The port of the API server on every node, as on a real control plane.
pub const NODE_API_PORT: u16 = 6443;

/// `weft apiserver`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiserverConfig {
    pub store_dir: PathBuf,
    pub listen: Vec<Listen>,
    pub tls_cert: PathBuf,
    pub tls_key: PathBuf,
    pub client_ca: PathBuf,
    pub service_account_key: PathBuf,
    pub service_account_public_key: PathBuf,
    pub service_cidrs: Vec<IpNet>,
    /// Ports that services get on every node.
    pub node_ports: RangeInclusive<u16>,
    /// Backends of the service `default/kubernetes`: the nodes' own listeners.
    pub advertise: Vec<SocketAddr>,
    pub cluster_domain: String,
    /// Where a node's kubelet answers for logs, exec and port-forward, with `{node}` for its name.
    pub kubelet_socket: String,
}

/// One listening address, in the named network namespace or the process's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    pub netns: Option<PathBuf>,
    pub address: SocketAddr,
}

/// `weft agent`; started inside its node's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentConfig {
    pub node: String,
    pub kubeconfig: PathBuf,
    /// Where the agent answers the CNI plugin, the proxy and the command line.
    pub socket: PathBuf,
    pub state_dir: PathBuf,
    /// This node's directory for pins on the fabric's bpffs.
    pub bpffs_dir: PathBuf,
    /// The cgroup whose processes' sockets the agent serves: the whole node.
    pub cgroup_dir: PathBuf,
    pub uplink: String,
    pub routing: Routing,
    pub forwarding: Forwarding,
    pub localhost_node_ports: bool,
    #[serde(default)]
    pub tables: TableSizes,
    /// The MTU of the links between nodes; what pods get follows from it and the routing.
    pub mtu: u32,
    pub cluster_cidrs: ClusterCidrs,
    pub cluster_domain: String,
    pub dns_ips: Vec<IpAddr>,
    pub node_ips: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterCidrs {
    pub pods: Vec<IpNet>,
    pub services: Vec<IpNet>,
    pub nodes: Vec<IpNet>,
}

/// `weft proxy`; started outside, so that it reaches the machine's resolvers, and listening inside its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyConfig {
    pub node: String,
    pub kubeconfig: PathBuf,
    pub socket: PathBuf,
    /// The namespace to open listeners in.
    pub netns: PathBuf,
    pub agent_socket: PathBuf,
    /// The last good plan, read when the agent does not answer.
    pub state_file: PathBuf,
    pub cluster_domain: String,
    pub dns_ips: Vec<IpAddr>,
    pub node_ips: Vec<IpAddr>,
    /// The settings of names, the same for all nodes; changes to it are taken up.
    pub names_file: PathBuf,
}

/// `weft controller`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControllerConfig {
    pub kubeconfig: PathBuf,
    pub pod_cidrs: crate::controllers::podcidr::Pools,
    /// No address of these is ever a load balancer's.
    #[serde(default)]
    pub service_cidrs: Vec<IpNet>,
    /// The cluster's name server: nor one of these.
    #[serde(default)]
    pub dns_ips: Vec<IpAddr>,
}

/// `weft lab kubelet`; started inside its node's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeletConfig {
    pub node: String,
    pub kubeconfig: PathBuf,
    pub socket: PathBuf,
    pub pods_dir: PathBuf,
    pub netns_dir: PathBuf,
    pub cgroup_dir: PathBuf,
    pub cni_conf: PathBuf,
    pub exe: PathBuf,
    pub node_ips: Vec<IpAddr>,
    pub dns_ips: Vec<IpAddr>,
    pub cluster_domain: String,
    /// More labels for the node: its zone and region.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How long the node counts as alive after it was last heard of.
    pub lease_seconds: u32,
}

/// Everything the files are made from.
pub struct Inputs<'a> {
    pub spec: &'a Spec,
    pub paths: &'a Paths,
    pub nodes: &'a [NodeAddresses],
    pub api_port: u16,
    pub cgroup: &'a Path,
    pub exe: &'a Path,
}

impl Inputs<'_> {
    pub fn apiserver(&self) -> ApiserverConfig {
        let loopback = |netns: Option<PathBuf>, port: u16| Listen {
            netns,
            address: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
        };
        let mut listen = vec![loopback(None, self.api_port)];
        let mut advertise = Vec::new();
        for node in self.nodes {
            let netns = Some(self.paths.netns(&node.name));
            listen.push(loopback(netns.clone(), NODE_API_PORT));
            for address in ips(node).into_iter().map(|ip| SocketAddr::new(ip, NODE_API_PORT)) {
                listen.push(Listen { netns: netns.clone(), address });
                advertise.push(address);
            }
        }
        let pki = |file| self.paths.pki(file);
        ApiserverConfig {
            store_dir: self.paths.api_store(),
            listen,
            tls_cert: pki("apiserver.crt"),
            tls_key: pki("apiserver.key"),
            client_ca: pki("ca.crt"),
            service_account_key: pki("sa.key"),
            service_account_public_key: pki("sa.pub"),
            service_cidrs: self.spec.services.of(self.spec.families),
            node_ports: self.spec.node_ports.clone(),
            advertise,
            cluster_domain: self.spec.cluster_domain.clone(),
            kubelet_socket: self.paths.node_file("{node}", "kubelet.sock").display().to_string(),
        }
    }

    pub fn agent(&self, node: &NodeAddresses) -> AgentConfig {
        let spec = self.spec;
        let file = |name| self.paths.node_file(&node.name, name);
        AgentConfig {
            node: node.name.clone(),
            kubeconfig: file("kubeconfig.agent"),
            socket: file("agent.sock"),
            state_dir: file("agent"),
            bpffs_dir: self.paths.bpffs().join(&node.name),
            cgroup_dir: self.cgroup.join(&node.name),
            uplink: UPLINK.to_owned(),
            routing: spec.routing,
            forwarding: spec.forwarding,
            localhost_node_ports: spec.localhost_node_ports,
            tables: spec.tables,
            mtu: spec.mtu,
            cluster_cidrs: ClusterCidrs {
                pods: spec.pods.of(spec.families),
                services: spec.services.of(spec.families),
                nodes: spec.node_net.of(spec.families),
            },
            cluster_domain: spec.cluster_domain.clone(),
            dns_ips: spec.dns_addresses(),
            node_ips: ips(node),
        }
    }

    pub fn proxy(&self, node: &NodeAddresses) -> ProxyConfig {
        let file = |name| self.paths.node_file(&node.name, name);
        ProxyConfig {
            node: node.name.clone(),
            kubeconfig: file("kubeconfig.proxy"),
            socket: file("proxy.sock"),
            netns: self.paths.netns(&node.name),
            agent_socket: file("agent.sock"),
            state_file: file("proxy.json"),
            cluster_domain: self.spec.cluster_domain.clone(),
            dns_ips: self.spec.dns_addresses(),
            node_ips: ips(node),
            names_file: self.paths.names_settings(),
        }
    }

    pub fn kubelet(&self, node: &NodeAddresses) -> KubeletConfig {
        let file = |name| self.paths.node_file(&node.name, name);
        KubeletConfig {
            node: node.name.clone(),
            kubeconfig: file("kubeconfig.kubelet"),
            socket: file("kubelet.sock"),
            pods_dir: file("pods"),
            netns_dir: self.paths.pod_netns(),
            cgroup_dir: self.cgroup.join(&node.name).join("pods"),
            cni_conf: file("cni.conflist"),
            exe: self.exe.to_owned(),
            node_ips: ips(node),
            dns_ips: self.spec.dns_addresses(),
            cluster_domain: self.spec.cluster_domain.clone(),
            labels: node.labels.clone(),
            lease_seconds: self.spec.node_grace_seconds,
        }
    }

    pub fn controller(&self) -> ControllerConfig {
        let spec = self.spec;
        ControllerConfig {
            kubeconfig: self.paths.kubeconfig("controller"),
            pod_cidrs: crate::controllers::podcidr::Pools {
                ranges: spec.pods.of(spec.families),
                node_mask_v4: spec.node_mask.v4,
                node_mask_v6: spec.node_mask.v6,
            },
            service_cidrs: spec.services.of(spec.families),
            dns_ips: spec.dns_addresses(),
        }
    }

    pub fn controllers(&self) -> crate::controllers::Config {
        crate::controllers::Config {
            controllers_kubeconfig: self.paths.kubeconfig("controller-manager"),
            scheduler_kubeconfig: self.paths.kubeconfig("scheduler"),
        }
    }

    /// The network configuration the kubelet hands to the CNI plugin.
    pub fn cni_conflist(&self, node: &NodeAddresses) -> serde_json::Value {
        serde_json::json!({
            "cniVersion": "1.1.0",
            "name": "weft",
            "plugins": [{
                "type": "weft",
                "agentSocket": self.paths.node_file(&node.name, "agent.sock"),
                "capabilities": {"portMappings": true},
            }],
        })
    }
}

pub fn ips(node: &NodeAddresses) -> Vec<IpAddr> {
    node.addresses.iter().map(IpNet::addr).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_server_listens_outside_and_in_every_node() {
        let spec = Spec { nodes: 2, ..Spec::default() };
        let (paths, nodes) = (Paths::of(&spec), spec.node_addresses());
        let inputs = Inputs {
            spec: &spec,
            paths: &paths,
            nodes: &nodes,
            api_port: 16443,
            cgroup: Path::new("/cg/weft/weft"),
            exe: Path::new("/weft"),
        };
        let config = inputs.apiserver();
        let listen: Vec<String> = config
            .listen
            .iter()
            .map(|l| {
                format!("{} {}", l.netns.as_ref().map_or("-".into(), |n| n.display().to_string()), l.address)
            })
            .collect();
        assert_eq!(
            listen,
            [
                "- 127.0.0.1:16443",
                "/run/netns/weft-weft-node1 127.0.0.1:6443",
                "/run/netns/weft-weft-node1 172.30.0.11:6443",
                "/run/netns/weft-weft-node1 [fd00:172:30::b]:6443",
                "/run/netns/weft-weft-node2 127.0.0.1:6443",
                "/run/netns/weft-weft-node2 172.30.0.12:6443",
                "/run/netns/weft-weft-node2 [fd00:172:30::c]:6443",
            ]
        );
        let text = serde_json::to_string(&inputs.agent(&nodes[0])).unwrap();
        let agent: AgentConfig = serde_json::from_str(&text).unwrap();
        assert_eq!(agent, inputs.agent(&nodes[0]));
        assert_eq!(agent.cgroup_dir, Path::new("/cg/weft/weft/node1"));
    }
}
