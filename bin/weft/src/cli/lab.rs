//! The lab's own processes: settings read, then handed to `weft-lab`.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use weft_lab::fabric::config::KubeletConfig;
use weft_model::PodKey;

use super::probe;
use crate::fabrics::{Fabric, read_json};

#[derive(clap::Args)]
pub struct ExecArgs {
    #[command(flatten)]
    target: crate::Target,
    /// A pod (NAMESPACE/NAME), a node or an outside machine (its name)
    place: String,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub async fn exec(args: ExecArgs) -> Result<ExitCode> {
    let fabric = Fabric::find(&args.target.name)?;
    let Some((namespace, name)) = args.place.split_once('/') else {
        return exec_on_machine(&fabric, &args.place, &args.command);
    };
    let client = fabric.client().await?;
    let out = super::exec::exec(&client, &PodKey::new(namespace, name), &args.command, Vec::new()).await?;
    std::io::stdout().lock().write_all(&out)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a program on a node, where it is served as the node's own processes are, or on an outside machine.
fn exec_on_machine(fabric: &Fabric, machine: &str, command: &[String]) -> Result<ExitCode> {
    let (program, args) = command.split_first().context("no command")?;
    let Some((netns, cgroup)) = fabric.machine(machine)? else {
        bail!("{machine:?} is neither a pod (NAMESPACE/NAME) nor a node or outside machine of this cluster");
    };
    let mut command = std::process::Command::new(program);
    command.args(args);
    if let Some(cgroup) = &cgroup {
        std::fs::create_dir_all(cgroup).with_context(|| format!("cannot make {}", cgroup.display()))?;
    }
    weft_lab::fabric::enter(&mut command, Some(&netns), cgroup.as_deref())
        .with_context(|| format!("cannot enter {machine}"))?;
    let status = command.status().with_context(|| format!("cannot run {program} on {machine}"))?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
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
        labels: config.labels,
        lease_seconds: config.lease_seconds,
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
