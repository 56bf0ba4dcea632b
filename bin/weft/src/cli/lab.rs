//! The lab's own processes: settings read, then handed to `weft-lab`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use weft_lab::fabric::config::KubeletConfig;
use weft_model::PodKey;

use super::probe;
use crate::fabrics::{Fabric, read_json};

#[derive(clap::Args)]
pub struct ExecArgs {
    #[command(flatten)]
    target: crate::Target,
    /// NAMESPACE/NAME
    pod: String,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub async fn exec(args: ExecArgs) -> Result<()> {
    let Some((namespace, name)) = args.pod.split_once('/') else {
        bail!("{:?} names no pod; give NAMESPACE/NAME", args.pod);
    };
    let client = Fabric::find(&args.target.name)?.client().await?;
    let out = super::exec::exec(&client, &PodKey::new(namespace, name), &args.command, Vec::new()).await?;
    Ok(std::io::stdout().lock().write_all(&out)?)
}

pub async fn kubelet(config: &Path) -> Result<()> {
    let config: KubeletConfig = read_json(config)?;
    let exe = config.exe.display().to_string();
    let kubelet = weft_lab::kubelet::Config {
        node: config.node,
        kubeconfig: config.kubeconfig,
        socket: config.socket,
        pods_dir: config.pods_dir,
        netns_dir: config.netns_dir,
        cgroup_pods_dir: config.cgroup_dir,
        cni_conf: config.cni_conf,
        cni_plugin: vec![exe, "cni".to_owned()],
        weft_exe: config.exe,
        cluster_dns: config.dns_ips,
        cluster_domain: config.cluster_domain,
        node_ips: config.node_ips,
        capacity: None,
        labels: BTreeMap::new(),
    };
    tokio::select! {
        result = weft_lab::kubelet::run(kubelet) => Ok(result?),
        () = crate::fabrics::terminated() => Ok(()),
    }
}

pub async fn controllers(config: &Path) -> Result<()> {
    let config = read_json(config)?;
    tokio::select! {
        result = weft_lab::controllers::run(config) => Ok(result?),
        () = crate::fabrics::terminated() => Ok(()),
    }
}

pub async fn probe() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read the targets from stdin")?;
    let targets = serde_json::from_str(&text).context("stdin is not a JSON list of targets")?;
    let outcomes = probe::probe_all(targets).await;
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &outcomes)?;
    out.flush()?;
    Ok(())
}
