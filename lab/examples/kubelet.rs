//! The lab's kubelet, its monitor and the stand-in as one program, for trying them without the rest of Weft:
//! `kubelet lab kubelet --node node1 --kubeconfig FILE --dir DIR --cgroup DIR --cni-conf FILE --cni-plugin FILE`.
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use weft_lab::kubelet::{self, Config};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["lab", "run", ..] => kubelet::monitor::main(&args[2..]),
        ["lab", "standin", ..] => weft_lab::standin::main(&args[2..]),
        ["lab", "kubelet", ..] => run_kubelet(&args[2..]),
        _ => {
            eprintln!("usage: kubelet lab kubelet|run|standin ...");
            ExitCode::from(2)
        }
    }
}

fn run_kubelet(args: &[String]) -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter("info,weft_lab=debug").init();
    let flags: BTreeMap<&str, &str> =
        args.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let flag = |name: &str| flags.get(name).copied().unwrap_or_default().to_owned();
    let dir = PathBuf::from(flag("--dir"));
    let list = |name: &str| flag(name).split(',').filter_map(|ip| ip.parse().ok()).collect::<Vec<_>>();
    let config = Config {
        node: flag("--node"),
        kubeconfig: flag("--kubeconfig").into(),
        socket: dir.join("kubelet.sock"),
        pods_dir: dir.join("pods"),
        netns_dir: dir.join("netns"),
        cgroup_pods_dir: flag("--cgroup").into(),
        cni_conf: flag("--cni-conf").into(),
        cni_plugin: vec![flag("--cni-plugin")],
        weft_exe: std::env::current_exe().unwrap_or_default(),
        cluster_dns: list("--dns"),
        cluster_domain: "cluster.local".to_owned(),
        node_ips: list("--node-ips"),
        capacity: None,
        labels: BTreeMap::new(),
        lease_seconds: 40,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(kubelet::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
