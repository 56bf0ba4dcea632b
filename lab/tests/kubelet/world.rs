//! The world of the kubelet's test: namespaces that vanish with the process, an API server, a CNI plugin, and a
//! kubelet process that can be killed and started again.
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use weft_pki::{Ca, Kubeconfig, signing_key};

pub const NODE: &str = "node1";
const NODE_IP: &str = "172.30.0.11";
const LONGEST_WAIT: Duration = Duration::from_secs(40);

/// Attaches pods by a veth pair each; state and switches are files beside it.
const PLUGIN: &str = r#"#!/bin/sh
cat > /dev/null
cd "$(dirname "$0")" || exit 1
echo "$CNI_COMMAND" >> calls
refuse() { echo "{\"cniVersion\":\"1.1.0\",\"code\":$1,\"msg\":\"$2\"}"; exit 1; }
case $CNI_COMMAND in
STATUS) [ -e down ] && refuse 50 "the agent is down" ;;
ADD)
  [ -e busy ] && { rm busy; refuse 11 "not yet"; }
  n=$(flock lock sh -c 'n=$(($(cat count 2>/dev/null || echo 1) + 1)); echo $n > count; echo $n')
  echo "veth$n" > "link-$CNI_CONTAINERID"
  ip link add "veth$n" type veth peer name eth0 netns "$CNI_NETNS" || exit 1
  ip -batch - <<X || exit 1
link set veth$n up
addr add fd00:172:30::11/128 dev veth$n nodad
route add 10.244.1.$n/32 dev veth$n
route add fd00:10:244:1::$n/128 dev veth$n
X
  nsenter --net="$CNI_NETNS" ip -batch - <<X || exit 1
link set eth0 up
addr add 10.244.1.$n/32 dev eth0
addr add fd00:10:244:1::$n/128 dev eth0 nodad
route add default dev eth0
route add fd00:172:30::11/128 dev eth0
X
  echo "{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.244.1.$n/32\"},{\"address\":\"fd00:10:244:1::$n/128\"}]}" ;;
DEL)
  link="link-$CNI_CONTAINERID"
  [ -e "$link" ] && { ip link del "$(cat "$link")" 2>/dev/null; rm "$link"; } ;;
esac
exit 0
"#;

/// Puts this process, while it has one thread, in network and mount namespaces of its own.
pub fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    run("ip", &["link", "set", "lo", "up"])?;
    run("ip", &["addr", "add", &format!("{NODE_IP}/32"), "dev", "lo"])
}

pub fn run(program: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(program).args(args).status().with_context(|| format!("{program} {args:?}"))?;
    if status.success() { Ok(()) } else { bail!("{program} {args:?}: {status}") }
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub client: kube::Client,
    pub pods: Api<Pod>,
    cgroup: PathBuf,
    kubelet: Option<Child>,
    _server: weft_apiserver::Server,
}

impl World {
    pub async fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let server = start_api(dir.path()).await?;
        let kubeconfig = kube::config::Kubeconfig::read_from(dir.path().join("kubeconfig"))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
        let client = kube::Client::try_from(config)?;
        let cgroup = unified_cgroup()?.join(format!("weft-kubelet-test-{}", std::process::id()));
        std::fs::create_dir_all(cgroup.join("pods"))?;
        let cni = dir.path().join("cni");
        std::fs::create_dir(&cni)?;
        std::fs::write(cni.join("plugin"), PLUGIN)?;
        std::fs::set_permissions(cni.join("plugin"), std::fs::Permissions::from_mode(0o755))?;
        let conflist = json!({"cniVersion": "1.1.0", "name": "test", "plugins": [{"type": "weft"}]});
        std::fs::write(cni.join("conflist"), conflist.to_string())?;
        std::fs::write(dir.path().join("cgroup"), cgroup.join("pods").display().to_string())?;
        let pods = Api::default_namespaced(client.clone());
        Ok(Self { dir, client, pods, cgroup, kubelet: None, _server: server })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn start_kubelet(&mut self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.path("kubelet.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("kubelet").arg(self.dir.path()).stdin(Stdio::null()).stderr(log);
        self.kubelet = Some(command.spawn()?);
        Ok(())
    }

    /// As by the kernel when memory is short: at any instruction, with no last words.
    pub fn kill_kubelet(&mut self) -> Result<()> {
        if let Some(mut kubelet) = self.kubelet.take() {
            kubelet.kill()?;
            kubelet.wait()?;
        }
        Ok(())
    }

    pub async fn create(&self, name: &str, spec: Value) -> Result<Pod> {
        let mut spec = spec;
        spec["nodeName"] = json!(NODE);
        let pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": spec});
        Ok(self.pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?)
    }

    /// Waits until the pod is as `wanted` says.
    pub async fn pod_when(&self, name: &str, what: &str, wanted: impl Fn(&Pod) -> bool) -> Result<Pod> {
        wait_for(&self.pods, name, what, |pod| pod.is_some_and(&wanted)).await?.context("there was a pod")
    }

    pub async fn ready(&self, name: &str) -> Result<Pod> {
        self.pod_when(name, "ready", |pod| condition(pod, "Ready")).await
    }

    pub async fn delete(&self, name: &str) -> Result<()> {
        self.pods.delete(name, &DeleteParams::default()).await?;
        wait_for(&self.pods, name, "gone", |pod| pod.is_none()).await?;
        Ok(())
    }

    pub async fn log(&self, name: &str) -> Result<String> {
        Ok(self.pods.logs(name, &kube::api::LogParams::default()).await?)
    }

    /// What of pods is left on the node, by name.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for dir in [self.path("pods"), self.path("netns"), self.cgroup.join("pods")] {
            for entry in std::fs::read_dir(&dir)? {
                let entry = entry?;
                if dir != self.cgroup.join("pods") || entry.file_type()?.is_dir() {
                    left.push(entry.path().display().to_string());
                }
            }
        }
        let links = Command::new("ip").args(["-br", "link"]).output()?;
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        left.extend(links.lines().filter(|line| line.starts_with("veth")).map(str::to_owned));
        Ok(left)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.kill_kubelet();
        let _ = std::fs::write(self.cgroup.join("cgroup.kill"), "1");
        let deadline = Instant::now() + Duration::from_secs(5);
        while remove_tree(&self.cgroup).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn remove_tree(cgroup: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(cgroup)
}

fn unified_cgroup() -> Result<PathBuf> {
    let found = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .into_iter()
        .find(|path| Path::new(path).join("cgroup.controllers").exists());
    Ok(PathBuf::from(found.context("no cgroup v2 is mounted")?))
}

pub fn condition(pod: &Pod, kind: &str) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == kind && condition.status == "True")
}

pub fn pod_ip(pod: &Pod) -> Result<String> {
    pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("the pod has an address")
}

/// Looks at an object until it is as wanted; says what it was like if it never is.
pub async fn wait_for<K>(
    api: &Api<K>,
    name: &str,
    what: &str,
    wanted: impl Fn(Option<&K>) -> bool,
) -> Result<Option<K>>
where
    K: kube::Resource + Clone + Debug + serde::de::DeserializeOwned + serde::Serialize,
{
    let begun = Instant::now();
    loop {
        let found = api.get_opt(name).await?;
        if wanted(found.as_ref()) {
            return Ok(found);
        }
        if begun.elapsed() > LONGEST_WAIT {
            bail!("{name} is not {what}: {}", serde_json::to_string_pretty(&found)?);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn start_api(dir: &Path) -> Result<weft_apiserver::Server> {
    let ca = Ca::create()?;
    let address = format!("{NODE_IP}:6443").parse()?;
    let cert = ca.server_cert(&["kubernetes.default.svc"], &[NODE_IP.parse()?])?;
    let keys = signing_key()?;
    let server = weft_apiserver::start(weft_apiserver::Config {
        listen: address,
        namespace_listeners: Vec::new(),
        data_dir: dir.join("api"),
        tls_cert: cert.cert,
        tls_key: cert.key.as_str().to_owned(),
        client_ca: ca.cert_pem().to_owned(),
        service_account_key: keys.private.as_str().to_owned(),
        service_account_public: keys.public,
        service_ranges: vec!["10.96.0.0/16".parse()?, "fd00:10:96::/112".parse()?],
        node_ports: weft_apiserver::DEFAULT_NODE_PORTS,
        cluster_domain: "cluster.local".into(),
        kubelet_socket: dir.join("kubelet.sock").display().to_string(),
        kubernetes_endpoints: vec![address],
        bootstrap_manifests: Vec::new(),
        history: weft_apiserver::DEFAULT_HISTORY,
    })
    .await?;
    let client = ca.client_cert("kubernetes-admin", Some("system:masters"))?;
    let url = format!("https://{address}");
    Kubeconfig { cluster: "test", server: &url, ca_cert: ca.cert_pem(), user: "admin", client: &client }
        .write(&dir.join("kubeconfig"))?;
    Ok(server)
}

/// The kubelet of the world in `dir`, as a process of its own.
pub fn kubelet_process(dir: &Path) -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter("info,weft_lab=debug").init();
    let cgroup = std::fs::read_to_string(dir.join("cgroup")).expect("the world wrote it");
    let config = weft_lab::kubelet::Config {
        node: NODE.into(),
        kubeconfig: dir.join("kubeconfig"),
        socket: dir.join("kubelet.sock"),
        pods_dir: dir.join("pods"),
        netns_dir: dir.join("netns"),
        cgroup_pods_dir: cgroup.into(),
        cni_conf: dir.join("cni/conflist"),
        cni_plugin: vec![dir.join("cni/plugin").display().to_string()],
        weft_exe: std::env::current_exe().expect("this program"),
        cluster_dns: vec!["10.96.0.10".parse().expect("an address")],
        cluster_domain: "cluster.local".into(),
        node_ips: vec![NODE_IP.parse().expect("an address")],
        capacity: None,
        labels: BTreeMap::new(),
        lease_seconds: 40,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match runtime.block_on(weft_lab::kubelet::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
