//! What is asked of netfilter, as one nftables table replaced as a whole: pods' traffic to outside the cluster takes the
//! node's address, and the tunnel's own packets are not tracked.

use std::io::Write;
use std::process::{Command, Stdio};

use weft_model::{Cidr, Family, Routing};
use weft_plan::NodeSettings;

use crate::error::MasqueradeError;
use crate::pods::DEVICE_PREFIX;

const TABLE: &str = "table inet weft";

/// The table as `nft` reads it.
pub(crate) fn render(settings: &NodeSettings) -> String {
    let mut rules = String::new();
    for (family, word) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
        let pods = prefixes(settings.pod_cidrs.iter(), family);
        let cluster = prefixes(settings.cluster_cidrs.iter(), family);
        if pods.is_empty() {
            continue;
        }
        let elsewhere =
            if cluster.is_empty() { String::new() } else { format!("{word} daddr != {{ {cluster} }} ") };
        rules += &format!(
            "    {word} saddr {{ {pods} }} {elsewhere}oifname != \"{DEVICE_PREFIX}*\" oifname != \"lo\" masquerade\n"
        );
    }
    // Declared before it is deleted, so that deleting never fails; all of it is one transaction.
    let untracked = render_untracked(settings);
    format!(
        "{TABLE}\ndelete {TABLE}\n{TABLE} {{\n  chain postrouting {{\n    type nat hook postrouting priority srcnat; policy accept;\n{rules}  }}\n{untracked}}}\n"
    )
}

/// Masquerading turns connection tracking on for the whole namespace. A tunnel's packets have another source port for each
/// flow inside and no replies to it: an entry for each would be made for nothing, at the price of a sixth of a connection.
fn render_untracked(settings: &NodeSettings) -> String {
    let Routing::Vxlan { port, .. } = settings.routing else { return String::new() };
    let mut chains = String::new();
    for (hook, side) in [("prerouting", "daddr"), ("output", "saddr")] {
        chains += &format!("  chain {hook} {{\n    type filter hook {hook} priority raw; policy accept;\n");
        for (family, word) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
            // A rule for each, of which there is one: it is compared in place, where a set would be called.
            for own in settings.node_addresses.iter().filter(|addr| addr.family() == family) {
                chains += &format!("    udp dport {port} {word} {side} {own} notrack\n");
            }
        }
        chains += "  }\n";
    }
    chains
}

fn prefixes<'a>(cidrs: impl Iterator<Item = &'a Cidr>, family: Family) -> String {
    // A prefix inside another would be refused as a conflicting interval.
    let of_family: Vec<&Cidr> = cidrs.filter(|cidr| cidr.family() == family).collect();
    let outermost = of_family
        .iter()
        .filter(|cidr| !of_family.iter().any(|other| other != *cidr && other.covers(***cidr)));
    outermost.map(|cidr| cidr.to_string()).collect::<Vec<_>>().join(", ")
}

pub(crate) fn install(text: &str) -> Result<(), MasqueradeError> {
    run(text)
}

pub(crate) fn remove() -> Result<(), MasqueradeError> {
    run(&format!("{TABLE}\ndelete {TABLE}\n"))
}

fn run(script: &str) -> Result<(), MasqueradeError> {
    let spawned = Command::new("nft")
        .args(["-f", "-"])
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(MasqueradeError::NotInstalled);
        }
        Err(error) => return Err(MasqueradeError::Run(error)),
    };
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).map_err(MasqueradeError::Run)?;
    }
    let output = child.wait_with_output().map_err(MasqueradeError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    Err(MasqueradeError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use weft_model::NodeName;

    use super::*;

    fn settings(routing: Routing) -> NodeSettings {
        let own = |text: &str| text.parse().unwrap();
        NodeSettings {
            node: NodeName::new("node1"),
            host_addresses: BTreeSet::from([own("172.30.0.11"), own("fd00:172:30::11")]),
            node_addresses: vec![own("172.30.0.11"), own("fd00:172:30::11")],
            pod_cidrs: BTreeSet::from(["10.244.1.0/24".parse().unwrap()]),
            cluster_pod_cidrs: BTreeSet::new(),
            service_cidrs: BTreeSet::new(),
            cluster_cidrs: BTreeSet::new(),
            localhost_node_ports: false,
            routing,
            pod_mtu: 1430,
        }
    }

    #[test]
    fn only_the_tunnels_own_packets_are_untracked() {
        let table = render(&settings(Routing::Vxlan { vni: 7, port: 8472 }));
        let untracked: Vec<&str> =
            table.lines().map(str::trim).filter(|line| line.contains("notrack")).collect();
        let expected = [
            "udp dport 8472 ip daddr 172.30.0.11 notrack",
            "udp dport 8472 ip6 daddr fd00:172:30::11 notrack",
            "udp dport 8472 ip saddr 172.30.0.11 notrack",
            "udp dport 8472 ip6 saddr fd00:172:30::11 notrack",
        ];
        assert_eq!(untracked, expected);
        assert!(!render(&settings(Routing::Direct)).contains("notrack"));
    }
}
