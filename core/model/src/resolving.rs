//! How pods ask for names: their resolv.conf, as kubelets write it. What an answer is lives in core/decide.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Addr, NamespaceName};

/// Kubelets keep to this much of what they are given.
const MOST_SERVERS: usize = 3;
const MOST_DOMAINS: usize = 32;
const LONGEST_SEARCH: usize = 2048;
/// What a pod of the cluster's names looks up through the search list first.
const CLUSTER_NDOTS: &str = "ndots:5";
/// resolv.conf(5): without an option, and the most it may say.
const NDOTS: u8 = 1;
const MOST_NDOTS: u8 = 15;

/// spec.dnsPolicy
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum DnsPolicy {
    #[default]
    ClusterFirst,
    ClusterFirstWithHostNet,
    /// The node's own servers and search list.
    Default,
    /// spec.dnsConfig alone.
    None,
}

/// spec.dnsPolicy and spec.dnsConfig.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PodDns {
    pub policy: DnsPolicy,
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    /// `name` or `name:value`.
    pub options: Vec<String>,
}

/// The cluster's part in name resolution.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ClusterDns {
    pub servers: Vec<Addr>,
    pub domain: String,
}

/// The settings of names that are the same for all of a node's pods.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NameSettings {
    /// The zone of services that clusters share.
    pub set_domain: String,
    pub collapse: Collapse,
    /// The search list of the node's own resolv.conf, which its pods' lists end with.
    pub node_search: Vec<String>,
}

/// Whether a question that begins a walk through a pod's search list is answered with the end of that walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Collapse {
    #[default]
    On,
    Off,
}

impl Default for NameSettings {
    fn default() -> Self {
        let set_domain = "clusterset.local".to_owned();
        Self { set_domain, collapse: Collapse::On, node_search: Vec::new() }
    }
}

/// How a resolver turns what an application writes into full names.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Searching {
    pub domains: Vec<String>,
    /// A name with fewer dots goes through the search list before it is asked as it is.
    pub ndots: u8,
}

impl Searching {
    /// The full names asked, in their order, without trailing dots, until one exists.
    pub fn walk(&self, written: &str) -> Vec<String> {
        if let Some(absolute) = written.strip_suffix('.') {
            return vec![absolute.to_owned()];
        }
        let searched =
            self.domains.iter().filter(|domain| *domain != ".").map(|domain| format!("{written}.{domain}"));
        let mut names = Vec::with_capacity(self.domains.len() + 1);
        if self.is_searched_first(written) {
            names.extend(searched);
            names.push(written.to_owned());
        } else {
            names.push(written.to_owned());
            names.extend(searched);
        }
        names
    }

    pub fn is_searched_first(&self, written: &str) -> bool {
        written.matches('.').count() < usize::from(self.ndots)
    }
}

/// The parts of a resolv.conf. It prints as the file.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ResolvConf {
    pub servers: Vec<String>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

impl ResolvConf {
    /// As kubelets read a node's file: the last line of a kind counts, servers add up.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => conf.servers.extend(words.next()),
                Some("search") => conf.search = words.map(|domain| without_last_dot(&domain)).collect(),
                Some("options") => conf.options = words.collect(),
                _ => {}
            }
        }
        conf
    }

    /// What a pod of `namespace` gets on a node whose own file is `node`.
    pub fn of_pod(
        dns: &PodDns,
        network: PodNetwork,
        namespace: &NamespaceName,
        cluster: &ClusterDns,
        node: &Self,
    ) -> Self {
        let mut conf = match (dns.policy, network) {
            (DnsPolicy::None, _) => Self::default(),
            (DnsPolicy::Default, _) | (DnsPolicy::ClusterFirst, PodNetwork::Node) => node.clone(),
            // Without a server of the cluster there is nothing to be first.
            _ if cluster.servers.is_empty() => node.clone(),
            _ => Self::of_cluster(namespace, cluster, node),
        };
        conf.servers.extend(dns.servers.iter().cloned());
        conf.search.extend(dns.searches.iter().map(|domain| without_last_dot(domain)));
        for option in &dns.options {
            conf.options.retain(|present| option_name(present) != option_name(option));
            conf.options.push(option.clone());
        }
        conf.fit();
        conf
    }

    fn of_cluster(namespace: &NamespaceName, cluster: &ClusterDns, node: &Self) -> Self {
        let domain = &cluster.domain;
        let mut search = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
        search.extend(node.search.iter().cloned());
        Self {
            servers: cluster.servers.iter().map(Addr::to_string).collect(),
            search,
            options: vec![CLUSTER_NDOTS.to_owned()],
        }
    }

    /// Leaves out what is there twice, and what is more than a kubelet writes.
    fn fit(&mut self) {
        for list in [&mut self.servers, &mut self.search] {
            let mut seen = BTreeSet::new();
            list.retain(|item| seen.insert(item.clone()));
        }
        self.servers.truncate(MOST_SERVERS);
        self.search.truncate(MOST_DOMAINS);
        while self.search.iter().map(|domain| domain.len() + 1).sum::<usize>() > LONGEST_SEARCH + 1 {
            self.search.pop();
        }
    }

    pub fn searching(&self) -> Searching {
        let ndots = self.options.iter().rev().find_map(|option| option.strip_prefix("ndots:")?.parse().ok());
        Searching { domains: self.search.clone(), ndots: ndots.unwrap_or(NDOTS).min(MOST_NDOTS) }
    }
}

/// Whose network a pod is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PodNetwork {
    Own,
    Node,
}

fn option_name(option: &str) -> &str {
    option.split(':').next().unwrap_or_default()
}

fn without_last_dot(domain: &str) -> String {
    // The root alone is its dot.
    domain.strip_suffix('.').filter(|rest| !rest.is_empty()).unwrap_or(domain).to_owned()
}

impl fmt::Display for ResolvConf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for server in &self.servers {
            writeln!(f, "nameserver {server}")?;
        }
        for (key, words) in [("search", &self.search), ("options", &self.options)] {
            if !words.is_empty() {
                writeln!(f, "{key} {}", words.join(" "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "# a comment\nnameserver 192.0.2.1\nsearch other.test\nsearch example.org.\n\
        options rotate\noptions timeout:2\n";

    fn conf(policy: DnsPolicy, network: PodNetwork, edit: impl Fn(&mut PodDns)) -> String {
        let mut dns = PodDns { policy, ..PodDns::default() };
        edit(&mut dns);
        let cluster = ClusterDns {
            servers: vec!["10.96.0.10".parse().unwrap(), "fd00:10:96::a".parse().unwrap()],
            domain: "cluster.local".to_owned(),
        };
        ResolvConf::of_pod(&dns, network, &"shop".into(), &cluster, &ResolvConf::parse(NODE)).to_string()
    }

    const IN_CLUSTER: &str = "nameserver 10.96.0.10\nnameserver fd00:10:96::a\n\
        search shop.svc.cluster.local svc.cluster.local cluster.local example.org\noptions ndots:5\n";
    const OF_NODE: &str = "nameserver 192.0.2.1\nsearch example.org\noptions timeout:2\n";

    /// Proves pods.dnsPolicy: ClusterFirst, ClusterFirstWithHostNet, Default and None choose servers, search list and options.
    #[test]
    fn the_policy_chooses_the_servers() {
        let plain = |policy, network| conf(policy, network, |_| {});
        assert_eq!(plain(DnsPolicy::ClusterFirst, PodNetwork::Own), IN_CLUSTER);
        assert_eq!(plain(DnsPolicy::ClusterFirst, PodNetwork::Node), OF_NODE);
        assert_eq!(plain(DnsPolicy::ClusterFirstWithHostNet, PodNetwork::Node), IN_CLUSTER);
        assert_eq!(plain(DnsPolicy::Default, PodNetwork::Own), OF_NODE);
        assert_eq!(plain(DnsPolicy::None, PodNetwork::Own), "");
    }

    /// Proves pods.dnsConfig: Servers and domains come after the policy's, options replace their namesakes, nothing twice.
    #[test]
    fn the_pods_own_settings_come_last_and_replace_options() {
        let own = conf(DnsPolicy::ClusterFirst, PodNetwork::Own, |dns| {
            dns.servers = vec!["192.0.2.9".into(), "10.96.0.10".into(), "192.0.2.10".into()];
            dns.searches = vec!["cluster.local".into(), "own.example.".into()];
            dns.options = vec!["ndots:2".into(), "edns0".into()];
        });
        assert_eq!(
            own,
            "nameserver 10.96.0.10\nnameserver fd00:10:96::a\nnameserver 192.0.2.9\n\
             search shop.svc.cluster.local svc.cluster.local cluster.local example.org own.example\n\
             options ndots:2 edns0\n"
        );
    }

    #[test]
    fn long_lists_are_cut_as_kubelets_cut_them() {
        let many = conf(DnsPolicy::None, PodNetwork::Own, |dns| {
            dns.searches = (0..40).map(|number| format!("d{number}.example")).collect();
        });
        assert_eq!(many.split_whitespace().count(), 1 + MOST_DOMAINS);
        let long = conf(DnsPolicy::None, PodNetwork::Own, |dns| {
            dns.searches = (0..12).map(|number| format!("{}{number}.example", "x".repeat(200))).collect();
        });
        assert!(
            long.len() <= "search \n".len() + LONGEST_SEARCH && long.len() + 220 > LONGEST_SEARCH,
            "{}",
            long.len()
        );
    }

    #[test]
    fn names_with_few_dots_are_searched_first() {
        let search = |ndots| Searching { domains: vec!["a.test".into(), "b.test".into()], ndots };
        assert_eq!(search(2).walk("x.y"), ["x.y.a.test", "x.y.b.test", "x.y"]);
        assert_eq!(search(1).walk("x.y"), ["x.y", "x.y.a.test", "x.y.b.test"]);
        assert_eq!(search(5).walk("x.y."), ["x.y"]);
        assert_eq!(ResolvConf::parse("options ndots:99").searching().ndots, 15);
        assert_eq!(ResolvConf::default().searching().ndots, 1);
    }
}
