//! Which servers answer for names outside the cluster. Asking them lives in `forward`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

const DNS_PORT: u16 = 53;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstreams {
    Servers(Vec<SocketAddr>),
    /// The `nameserver` lines of a resolv.conf(5), read at start.
    ResolvConf(PathBuf),
}

/// The servers to ask, without this one: asking itself would go on for ever.
pub fn resolve(upstreams: &Upstreams, own: &[IpAddr], own_port: u16) -> Vec<SocketAddr> {
    let mut servers = match upstreams {
        Upstreams::Servers(servers) => servers.clone(),
        Upstreams::ResolvConf(path) => match std::fs::read_to_string(path) {
            Ok(text) => parse_resolv_conf(&text),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "no upstream servers: the file cannot be read");
                Vec::new()
            }
        },
    };
    servers.retain(|server| {
        let ours = own.contains(&server.ip()) && server.port() == own_port;
        if ours {
            tracing::warn!(%server, "not asked: this name server has that address itself, which would be a loop");
        }
        !ours
    });
    if servers.is_empty() {
        tracing::warn!("no upstream servers: names outside the cluster get SERVFAIL");
    }
    servers
}

fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        match words.next().map(parse_server) {
            Some(Some(server)) if !servers.contains(&server) => servers.push(server),
            Some(Some(_)) => {}
            _ => tracing::warn!(line, "not an upstream server: no address in that line of resolv.conf"),
        }
    }
    servers
}

/// An address, for IPv6 with an optional zone (`fe80::1%eth0`).
fn parse_server(text: &str) -> Option<SocketAddr> {
    match text.split_once('%') {
        None => text.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, DNS_PORT)),
        Some((address, zone)) => {
            let index = zone.parse().ok().or_else(|| nix::net::if_::if_nametoindex(zone).ok())?;
            let address = address.parse().ok()?;
            Some(SocketAddr::V6(std::net::SocketAddrV6::new(address, DNS_PORT, 0, index)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_the_resolver_reads_it() {
        let text = "# comment\nsearch example.org\nnameserver 192.0.2.1\nnameserver\t2001:db8::1 \nnameserver 192.0.2.1\nnameserver nonsense\noptions ndots:5\n";
        let servers: Vec<_> = parse_resolv_conf(text).iter().map(SocketAddr::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[2001:db8::1]:53"]);
    }

    #[test]
    fn the_server_never_asks_itself() {
        let own: IpAddr = "127.0.0.1".parse().unwrap();
        let given =
            Upstreams::Servers(vec!["127.0.0.1:53".parse().unwrap(), "127.0.0.1:54".parse().unwrap()]);
        assert_eq!(resolve(&given, &[own], 53), ["127.0.0.1:54".parse().unwrap()]);
    }
}
