//! A pod and a node as two network namespaces, the name server in one and real clients in the other.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use weft_dns::{Config, Settings};
use weft_model::{Addr, PodKey, Searching};
use weft_plan::{NameClient, NamePlan};

use crate::support::{Behaviour, Running, UpstreamServer, plan};

pub const SERVER: &str = "10.96.0.10";
const POD: [&str; 2] = ["10.244.0.9", "fd00:10:244::9"];
const NODE: [&str; 2] = ["10.244.0.1", "fd00:10:244::1"];

pub struct World {
    pub server: Running,
    pub upstream: UpstreamServer,
    pod: Netns,
    _node: Netns,
    directory: tempfile::TempDir,
}

/// A named network namespace that goes with the test.
struct Netns(String);

impl Netns {
    fn create(what: &str, test: &str) -> Self {
        let name = format!("weft-names-{what}-{}-{test}", std::process::id());
        ip(&["netns", "add", &name]);
        let netns = Self(name);
        netns.ip("link set lo up");
        netns
    }

    fn ip(&self, words: &str) {
        ip(&["-n", &self.0].into_iter().chain(words.split(' ')).collect::<Vec<_>>());
    }

    fn path(&self) -> PathBuf {
        format!("/run/netns/{}", self.0).into()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // The test may be failing already.
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("ip (iproute2) is installed");
    assert!(status.success(), "ip {arguments:?}");
}

/// What a program said.
pub struct Said {
    pub out: String,
    pub all: String,
    pub success: bool,
}

impl World {
    /// `None` with the reason told: without root there are no namespaces.
    pub async fn start(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            crate::skip::skip(test, "making network namespaces needs root");
            return None;
        }
        let number = test.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let short = format!("{:x}", number & 0xffff);
        let (node, pod) = (Netns::create("node", &short), Netns::create("pod", &short));
        node.ip(&format!("link add eth0 type veth peer name eth0 netns {}", pod.0));
        for (netns, addresses) in [(&node, NODE), (&pod, POD)] {
            netns.ip(&format!("address add {}/24 dev eth0", addresses[0]));
            netns.ip(&format!("address add {}/64 dev eth0 nodad", addresses[1]));
            netns.ip("link set eth0 up");
        }
        node.ip(&format!("address add {SERVER}/32 dev lo"));
        pod.ip(&format!("route add {SERVER}/32 via {}", NODE[0]));
        // Who connects to what was found is told so at once.
        pod.ip("route add unreachable default");
        let directory = tempfile::tempdir().unwrap();
        let upstream = UpstreamServer::start(Behaviour::Answers).await;
        let mut config = Config::new(
            "node1",
            vec![SERVER.parse().unwrap()],
            directory.path().join("names.json"),
            directory.path().join("proxy.sock"),
        );
        config.netns = Some(node.path());
        config.settings = Settings::with_servers(vec![upstream.address]);
        let server = Running::start_with(config).await;
        assert_eq!(server.put_plan(&with_client(plan(40))).await, 204);
        let world = Self { server, upstream, pod, _node: node, directory };
        world.write(
            "resolv.conf",
            &format!("nameserver {SERVER}\nsearch {}\noptions ndots:5\n", SEARCH.join(" ")),
        );
        Some(world)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs a program as in the pod: its network, its /etc/resolv.conf.
    pub async fn run<S: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> Said {
        const ENTER: &str =
            r#"mount --bind "$1" /etc/resolv.conf && net=$2 && shift 2 && exec nsenter --net="$net" "$@""#;
        let mut command = tokio::process::Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"]);
        command.arg(self.path("resolv.conf")).arg(self.pod.path()).arg(program).args(arguments);
        command.env("LC_ALL", "C").env("HOME", self.directory.path()).kill_on_drop(true);
        let output = command.output().await.expect("unshare (util-linux) is installed");
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let all = format!("{out}{}", String::from_utf8_lossy(&output.stderr));
        Said { out, all, success: output.status.success() }
    }

    /// One answer of dig or kdig without its decoration.
    pub async fn dig(&self, program: &str, arguments: &str) -> Said {
        let server = format!("@{SERVER}");
        self.run(program, [server.as_str()].into_iter().chain(arguments.split(' '))).await
    }
}

pub const SEARCH: [&str; 3] = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"];

/// The pod's addresses with its search list.
fn with_client(mut plan: NamePlan) -> NamePlan {
    let domains = SEARCH.map(str::to_owned).to_vec();
    let searching = Some(Searching { domains, ndots: 5 });
    let client = NameClient { pod: PodKey::new("shop", "client"), searching };
    for address in POD {
        plan.clients.insert(address.parse::<Addr>().unwrap(), client.clone());
    }
    let dual = plan.names.get_or_default("dual.shop.svc.cluster.local".to_owned());
    dual.a.insert(Ipv4Addr::new(10, 96, 0, 7));
    dual.aaaa.insert("fd00:10:96::7".parse().unwrap());
    plan.set_domain = "clusterset.local".to_owned();
    plan.names.insert(plan.set_domain.clone(), Default::default());
    plan
}

/// Whether a program is there; if not, the test is skipped and that is told.
pub fn has(test: &str, program: &str, package: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).any(|path| path.join(program).is_file());
    if !found {
        crate::skip::skip(test, format!("{program} is not installed (Debian: {package})"));
    }
    found
}

/// The addresses in a text, sorted, each once.
pub fn addresses(text: &str) -> Vec<String> {
    let words = text.split(|letter: char| letter.is_whitespace() || "[]()/,;\"".contains(letter));
    let mut found: Vec<IpAddr> = words.filter_map(|word| word.trim_end_matches(':').parse().ok()).collect();
    found.sort();
    found.dedup();
    found.iter().map(IpAddr::to_string).collect()
}

pub fn compile(source: &Path, program: &Path) {
    let output =
        std::process::Command::new("musl-gcc").arg("-static").arg("-o").arg(program).arg(source).output();
    let output = output.expect("musl-gcc runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
