//! The node's user-space data plane as a process: the name server and what services need listeners for, with settings in
//! the terms of `weft-dns` and `weft-proxy`.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use weft_dns::{Config, SettingsFile};
use weft_lab::fabric::config::ProxyConfig;

/// Beside the name server's socket and plan.
pub const SOCKET: &str = "proxy-plan.sock";
const PLAN_FILE: &str = "proxy-plan.json";
/// The last settings of names that could be used.
const NAMES_KEPT: &str = "names-settings.yaml";

pub async fn run(config: &Path) -> Result<()> {
    let config: ProxyConfig = crate::fabrics::read_json(config)?;
    let kept = config.state_file.with_file_name(NAMES_KEPT);
    let (settings_file, settings) = SettingsFile::open(config.names_file, kept);
    let listen = config.dns_ips.iter().chain(&settings.link_local_addresses).copied().collect();
    let listeners = weft_proxy::Config {
        netns: Some(config.netns.clone()),
        plan_file: config.state_file.with_file_name(PLAN_FILE),
        socket: config.socket.with_file_name(SOCKET),
    };
    let mut names = Config::new(config.node, listen, config.state_file, config.socket);
    names.netns = Some(config.netns);
    names.optional = settings.link_local_addresses.clone();
    names.domain = config.cluster_domain;
    names.settings = settings;
    names.settings_file = Arc::new(settings_file);
    tokio::select! {
        names = weft_dns::run(names) => Ok(names?),
        listeners = weft_proxy::run(listeners) => Ok(listeners?),
    }
}
