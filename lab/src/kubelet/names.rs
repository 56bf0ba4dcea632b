//! The name-resolution files of a pod (resolv.conf, hosts, hostname) as text. Pure: nothing is read or written here.
use std::fmt::Write;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{HostAlias, PodDNSConfig, PodSpec};

/// Linux keeps host names to this many bytes.
const LONGEST_HOSTNAME: usize = 63;

/// The cluster's part in name resolution.
#[derive(Clone, Debug)]
pub struct ClusterDns {
    pub servers: Vec<IpAddr>,
    pub domain: String,
}

/// The pod's host name: its own choice, or its name, cut to what the kernel takes.
pub fn hostname(
    pod_name: &str,
    spec: &PodSpec,
    node_hostname: &str,
    domain: &str,
    namespace: &str,
) -> String {
    if spec.host_network == Some(true) {
        return node_hostname.to_owned();
    }
    let name = spec.hostname.as_deref().unwrap_or(pod_name);
    let short = name[..name.len().min(LONGEST_HOSTNAME)].trim_end_matches(['-', '.']);
    match fqdn_suffix(spec, domain, namespace) {
        Some(suffix) if spec.set_hostname_as_fqdn == Some(true) => format!("{short}.{suffix}"),
        _ => short.to_owned(),
    }
}

fn fqdn_suffix(spec: &PodSpec, domain: &str, namespace: &str) -> Option<String> {
    let subdomain = spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty())?;
    Some(format!("{subdomain}.{namespace}.svc.{domain}"))
}

/// /etc/hosts of a pod that has its own network.
pub fn hosts(ips: &[IpAddr], hostname: &str, spec: &PodSpec, domain: &str, namespace: &str) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    let short = hostname.split('.').next().unwrap_or(hostname);
    for ip in ips {
        let _ = match fqdn_suffix(spec, domain, namespace) {
            Some(suffix) => writeln!(text, "{ip}\t{short}.{suffix}\t{short}"),
            None => writeln!(text, "{ip}\t{hostname}"),
        };
    }
    text + &aliases(spec.host_aliases.as_deref().unwrap_or_default())
}

/// /etc/hosts of a pod in the node's network: the node's own, and the pod's aliases.
pub fn hosts_of_node(node_hosts: &str, spec: &PodSpec) -> String {
    let mut text = node_hosts.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text + &aliases(spec.host_aliases.as_deref().unwrap_or_default())
}

fn aliases(aliases: &[HostAlias]) -> String {
    let mut text = String::new();
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        let _ = writeln!(text, "{}\t{names}", alias.ip);
    }
    text
}

/// The parts of a resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Resolver {
    servers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

/// /etc/resolv.conf of a pod. `node` is the node's own file.
pub fn resolv_conf(spec: &PodSpec, namespace: &str, cluster: &ClusterDns, node: &str) -> String {
    let node = Resolver::parse(node);
    let on_host_network = spec.host_network == Some(true);
    let mut resolver = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => Resolver::default(),
        "Default" => node,
        "ClusterFirst" if on_host_network => node,
        _ => Resolver::of_cluster(namespace, cluster, &node),
    };
    if let Some(config) = &spec.dns_config {
        resolver.merge(config);
    }
    resolver.text()
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => resolver.servers.extend(words.next()),
                Some("search" | "domain") => resolver.search = words.collect(),
                Some("options") => resolver.options.extend(words),
                _ => {}
            }
        }
        resolver
    }

    fn of_cluster(namespace: &str, cluster: &ClusterDns, node: &Self) -> Self {
        let domain = &cluster.domain;
        let mut search = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
        search.extend(node.search.iter().cloned());
        Self {
            servers: cluster.servers.iter().map(ToString::to_string).collect(),
            search,
            options: vec!["ndots:5".to_owned()],
        }
    }

    fn merge(&mut self, config: &PodDNSConfig) {
        self.servers.extend(config.nameservers.iter().flatten().cloned());
        self.search.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            self.options.retain(|present| present.split(':').next() != Some(name));
            self.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }

    fn text(mut self) -> String {
        let mut seen = std::collections::HashSet::new();
        self.search.retain(|domain| seen.insert(domain.clone()));
        let mut text = String::new();
        for server in self.servers {
            let _ = writeln!(text, "nameserver {server}");
        }
        if !self.search.is_empty() {
            let _ = writeln!(text, "search {}", self.search.join(" "));
        }
        if !self.options.is_empty() {
            let _ = writeln!(text, "options {}", self.options.join(" "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodDNSConfigOption;

    const NODE: &str = "# a comment\nnameserver 192.0.2.1\nsearch example.org\noptions timeout:2\n";

    fn cluster() -> ClusterDns {
        ClusterDns {
            servers: vec!["10.96.0.10".parse().unwrap(), "fd00:10:96::a".parse().unwrap()],
            domain: "cluster.local".into(),
        }
    }

    fn conf(policy: Option<&str>, host_network: Option<bool>, config: Option<PodDNSConfig>) -> String {
        let spec = PodSpec {
            dns_policy: policy.map(str::to_owned),
            host_network,
            dns_config: config,
            ..PodSpec::default()
        };
        resolv_conf(&spec, "shop", &cluster(), NODE)
    }

    #[test]
    fn the_policy_chooses_the_servers() {
        let in_cluster = "nameserver 10.96.0.10\nnameserver fd00:10:96::a\n\
            search shop.svc.cluster.local svc.cluster.local cluster.local example.org\noptions ndots:5\n";
        let of_node = "nameserver 192.0.2.1\nsearch example.org\noptions timeout:2\n";
        assert_eq!(conf(None, None, None), in_cluster);
        assert_eq!(conf(Some("ClusterFirst"), Some(true), None), of_node);
        assert_eq!(conf(Some("ClusterFirstWithHostNet"), Some(true), None), in_cluster);
        assert_eq!(conf(Some("Default"), None, None), of_node);
        assert_eq!(conf(Some("None"), None, None), "");
    }

    #[test]
    fn the_pods_own_settings_come_last_and_replace_options() {
        let config = PodDNSConfig {
            nameservers: Some(vec!["192.0.2.9".into()]),
            searches: Some(vec!["cluster.local".into(), "own.example".into()]),
            options: Some(vec![
                PodDNSConfigOption { name: Some("ndots".into()), value: Some("2".into()) },
                PodDNSConfigOption { name: Some("edns0".into()), value: None },
            ]),
        };
        assert_eq!(
            conf(None, None, Some(config)),
            "nameserver 10.96.0.10\nnameserver fd00:10:96::a\nnameserver 192.0.2.9\n\
             search shop.svc.cluster.local svc.cluster.local cluster.local example.org own.example\n\
             options ndots:2 edns0\n"
        );
    }

    #[test]
    fn the_host_name_follows_the_pod() {
        let name = |pod: &str, spec: PodSpec| hostname(pod, &spec, "node1", "cluster.local", "shop");
        assert_eq!(name("web-0", PodSpec::default()), "web-0");
        assert_eq!(name("web-0", PodSpec { host_network: Some(true), ..PodSpec::default() }), "node1");
        let long = format!("{}-{}", "a".repeat(62), "b");
        assert_eq!(name(&long, PodSpec::default()), "a".repeat(62));
        let spec = PodSpec {
            hostname: Some("h".into()),
            subdomain: Some("sub".into()),
            set_hostname_as_fqdn: Some(true),
            ..PodSpec::default()
        };
        assert_eq!(name("web-0", spec), "h.sub.shop.svc.cluster.local");
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let spec = PodSpec {
            subdomain: Some("sub".into()),
            host_aliases: Some(vec![HostAlias {
                ip: "192.0.2.4".into(),
                hostnames: Some(vec!["a".into(), "b".into()]),
            }]),
            ..PodSpec::default()
        };
        let text = hosts(&["10.0.0.7".parse().unwrap()], "web", &spec, "cluster.local", "shop");
        assert!(text.contains("10.0.0.7\tweb.sub.shop.svc.cluster.local\tweb\n"), "{text}");
        assert!(text.ends_with("192.0.2.4\ta\tb\n"), "{text}");
        assert_eq!(hosts_of_node("127.0.0.1 localhost", &PodSpec::default()), "127.0.0.1 localhost\n");
    }
}
