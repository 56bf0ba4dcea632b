//! The node's user-space data plane as a process: the name server and what services need listeners for, with settings in
//! the terms of `weft-dns` and `weft-proxy`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use weft_dns::{Config, Upstreams};
use weft_lab::fabric::config::ProxyConfig;

/// Where node-local name servers answer by custom, besides the service's address.
const LINK_LOCAL: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0x20, 0x10)),
];

/// Beside the name server's socket and plan.
pub const SOCKET: &str = "proxy-plan.sock";
const PLAN_FILE: &str = "proxy-plan.json";

pub async fn run(config: &Path) -> Result<()> {
    let config: ProxyConfig = crate::fabrics::read_json(config)?;
    let listen = config.dns_ips.iter().chain(&LINK_LOCAL).copied().collect();
    let listeners = weft_proxy::Config {
        netns: Some(config.netns.clone()),
        plan_file: config.state_file.with_file_name(PLAN_FILE),
        socket: config.socket.with_file_name(SOCKET),
    };
    let mut names = Config::new(config.node, listen, config.state_file, config.socket);
    names.netns = Some(config.netns);
    names.domain = config.cluster_domain;
    names.upstreams = upstreams(&config.upstreams)?;
    tokio::select! {
        names = weft_dns::run(names) => Ok(names?),
        listeners = weft_proxy::run(listeners) => Ok(listeners?),
    }
}

fn upstreams(given: &[String]) -> Result<Upstreams> {
    if given.is_empty() {
        return Ok(Upstreams::ResolvConf(PathBuf::from("/etc/resolv.conf")));
    }
    let parse = |text: &String| {
        let address =
            text.parse::<SocketAddr>().or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)));
        address.with_context(|| format!("upstreams: {text:?} is not an address or address:port"))
    };
    Ok(Upstreams::Servers(given.iter().map(parse).collect::<Result<_>>()?))
}
