//! The name-resolution files of a pod (resolv.conf, hosts, hostname) as text. Pure: nothing is read or written here.
use std::fmt::Write;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{HostAlias, Pod, PodSpec};
use weft_model::{ClusterDns, PodNetwork, ResolvConf};

/// Linux keeps host names to this many bytes.
const LONGEST_HOSTNAME: usize = 63;

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

/// /etc/resolv.conf of a pod. `node` is the node's own file.
pub fn resolv_conf(pod: &Pod, cluster: &ClusterDns, node: &str) -> String {
    let Some(parsed) = weft_model::parse::pod(pod).value else { return node.to_owned() };
    let network = if parsed.host_network { PodNetwork::Node } else { PodNetwork::Own };
    let node = ResolvConf::parse(node);
    ResolvConf::of_pod(&parsed.dns, network, &parsed.key.namespace, cluster, &node).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolver_file_follows_the_pods_object() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "shop", "name": "web"},
            "spec": {"containers": [], "dnsConfig": {
                "nameservers": ["192.0.2.9"], "searches": ["own.example"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}
        }))
        .unwrap();
        let cluster =
            ClusterDns { servers: vec!["10.96.0.10".parse().unwrap()], domain: "cluster.local".to_owned() };
        assert_eq!(
            resolv_conf(&pod, &cluster, "nameserver 192.0.2.1\nsearch example.org\n"),
            "nameserver 10.96.0.10\nnameserver 192.0.2.9\n\
             search shop.svc.cluster.local svc.cluster.local cluster.local example.org own.example\n\
             options ndots:2 edns0\n"
        );
    }

    /// Proves pods.hostname: A pod's host name is its own choice or its name, cut to 63 bytes; with setHostnameAsFQDN and a
    /// subdomain it is the full name.
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
