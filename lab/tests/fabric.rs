//! A fabric's life on this machine's kernel: woven, killed, taken down, and never a trace left.
//! The processes here are stand-ins; the real ones are tested with the whole program.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_lab::fabric::{self, Error, Fabric, Program, Progress, Report, Spec, State};

#[path = "../../tests/skip.rs"]
mod skip;

const NETNS: &str = "/run/netns";

/// Names unique to this test process, so that suites may run side by side.
fn name(tag: &str) -> String {
    format!("t{}-{tag}", std::process::id())
}

struct Place(PathBuf);

impl Place {
    fn new(tag: &str) -> Self {
        Self(PathBuf::from(format!("/run/weft-test-{}", name(tag))))
    }

    fn spec(&self, tag: &str, nodes: u16) -> Spec {
        Spec { name: name(tag), nodes, state_root: self.0.clone(), ..Spec::default() }
    }

    fn left(&self, tag: &str) -> Vec<String> {
        fabric::leftovers(&name(tag), &self.0, Path::new(NETNS))
    }

    fn down(&self, tag: &str) -> Result<(), Error> {
        fabric::down(&name(tag), &self.0, Path::new(NETNS))
    }
}

/// Whatever a failed assertion leaves is taken down too.
impl Drop for Place {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let _ = fabric::down(&entry.file_name().to_string_lossy(), &self.0, Path::new(NETNS));
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip::skip(test, "needs root");
    }
    root
}

fn quiet() -> Arc<Report> {
    Arc::new(|_| {})
}

fn netns(tag: &str, node: &str) -> String {
    format!("weft-{}-{node}", name(tag))
}

/// Runs a piece of work inside a node's namespace, or the underlay's.
fn inside<T: Send>(tag: &str, node: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = std::fs::File::open(format!("{NETNS}/{}", netns(tag, node))).unwrap();
    let enter_and_work = || {
        nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        work()
    };
    std::thread::scope(|scope| scope.spawn(enter_and_work).join().unwrap())
}

/// A connection from one namespace to an address in another, and what the far end sees as its origin.
fn connect(tag: &str, from: &str, to: &str, address: &str) -> std::io::Result<IpAddr> {
    let address: IpAddr = address.parse().unwrap();
    let listener = inside(tag, to, || TcpListener::bind((address, 0)))?;
    let target = listener.local_addr()?;
    let _client = inside(tag, from, || TcpStream::connect_timeout(&target, Duration::from_secs(5)))?;
    Ok(listener.accept()?.1.ip())
}

/// A long-lived process in a node, in place of an agent.
fn sleeper(fabric: &Fabric, node: &str) -> Program {
    let mut program = fabric.program("agent", &[], Some(node));
    program.exe = "/bin/sh".into();
    program.args = vec!["-c".into(), "echo up; exec sleep 600".into()];
    program
}

/// The pid on record of a process that runs `sleep`, once there is one other than `not`.
async fn recorded_pid(root: &Path, process: &str, not: Option<i32>) -> i32 {
    let started = Instant::now();
    loop {
        let text = std::fs::read_to_string(root.join("processes").join(process)).unwrap_or_default();
        let pid: Option<i32> = text.split(' ').next().and_then(|pid| pid.parse().ok());
        let command = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        match pid {
            Some(pid) if Some(pid) != not && command(pid).trim() == "sleep" => return pid,
            _ => assert!(started.elapsed() < Duration::from_secs(20), "{process} does not run"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn nodes_reach_each_other_and_the_world_in_both_families_and_down_leaves_nothing() {
    if !root("fabric") {
        return;
    }
    let place = Place::new("life");
    let fabric = Fabric::weave(place.spec("life", 2), quiet()).await.unwrap();
    for (to, address, origin) in [
        ("node2", "172.30.0.12", "172.30.0.11"),
        ("underlay", "172.30.0.1", "172.30.0.11"),
        ("node2", "fd00:172:30::c", "fd00:172:30::b"),
        ("underlay", "fd00:172:30::1", "fd00:172:30::b"),
    ] {
        let seen = connect("life", "node1", to, address).unwrap_or_else(|e| panic!("{address}: {e}"));
        assert_eq!(seen.to_string(), origin);
    }
    // Both families' default routes lead to the bridge, which knows nothing beyond.
    let routes = inside("life", "node1", || {
        ["route", "ipv6_route"]
            .map(|file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap())
    });
    assert!(routes[0].contains("eth0\t00000000\t01001EAC"), "{}", routes[0]);
    assert!(
        routes[1].lines().any(|r| r.starts_with(&format!("{:0>32} 00 ", 0)) && r.contains("fd0001720030")),
        "{}",
        routes[1]
    );
    let beyond: SocketAddr = "192.0.2.1:9".parse().unwrap();
    let error =
        inside("life", "node1", || TcpStream::connect_timeout(&beyond, Duration::from_secs(5))).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable);
    let forwarding =
        inside("life", "node1", || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap());
    assert_eq!(forwarding.trim(), "1");
    let root = fabric.paths().root();
    assert!(root.join("nodes/node2/kubeconfig.agent").exists() && root.join("pki/sa.key").exists());
    assert!(place.left("life").iter().any(|line| line.contains("(bpf)")), "{:?}", place.left("life"));
    fabric.down().await.unwrap();
    assert_eq!(place.left("life"), Vec::<String>::new());
    assert!(!place.0.exists(), "the state directory goes with its last fabric");
}

#[tokio::test]
async fn outside_machines_reach_what_is_on_their_network_and_nothing_else() {
    if !root("outside") {
        return;
    }
    let place = Place::new("outside");
    let spec = Spec { outside: 2, ..place.spec("outside", 1) };
    let fabric = Fabric::weave(spec, quiet()).await.unwrap();
    for (to, address, origin) in [
        ("node1", "172.30.0.11", "172.30.0.2"),
        ("node1", "fd00:172:30::b", "fd00:172:30::2"),
        ("outside2", "172.30.0.3", "172.30.0.2"),
    ] {
        let seen = connect("outside", "outside1", to, address).unwrap_or_else(|e| panic!("{address}: {e}"));
        assert_eq!(seen.to_string(), origin);
    }
    for beyond in ["10.96.0.1:443", "[fd00:10:96::1]:443"] {
        let beyond: SocketAddr = beyond.parse().unwrap();
        let tried =
            inside("outside", "outside1", || TcpStream::connect_timeout(&beyond, Duration::from_secs(5)));
        assert_eq!(tried.unwrap_err().kind(), std::io::ErrorKind::NetworkUnreachable);
    }
    let text = std::fs::read_to_string(fabric.paths().record()).unwrap();
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(record["outside"][1]["name"], "outside2");
    assert_eq!(record["outside"][1]["addresses"][0], "172.30.0.3/24");
    fabric.down().await.unwrap();
    assert_eq!(place.left("outside"), Vec::<String>::new());
}

#[tokio::test]
async fn a_killed_process_is_started_again_in_its_namespace_and_group() {
    if !root("supervision") {
        return;
    }
    let place = Place::new("heal");
    let reports: Arc<std::sync::Mutex<Vec<Progress>>> = Arc::default();
    let sink = reports.clone();
    let report: Arc<Report> = Arc::new(move |progress| sink.lock().unwrap().push(progress));
    let mut fabric = Fabric::weave(place.spec("heal", 1), report).await.unwrap();
    let root = fabric.paths().root();
    fabric.keep(sleeper(&fabric, "node1"));
    let first = recorded_pid(&root, "agent.node1", None).await;
    let inode =
        |path: String| std::fs::metadata(path).map(|m| std::os::unix::fs::MetadataExt::ino(&m)).unwrap();
    assert_eq!(inode(format!("/proc/{first}/ns/net")), inode(format!("{NETNS}/{}", netns("heal", "node1"))));
    let groups = std::fs::read_to_string(format!("/proc/{first}/cgroup")).unwrap();
    assert!(groups.contains(&format!("/weft/{}/node1/agent", name("heal"))), "{groups}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::SIGKILL).unwrap();
    let second = recorded_pid(&root, "agent.node1", Some(first)).await;
    assert!(place.left("heal").contains(&format!("process {second} (agent.node1)")));
    let restarted = |p: &Progress| matches!(p, Progress::Restarting { process, why } if process == "agent.node1" && why.contains("9"));
    assert!(reports.lock().unwrap().iter().any(restarted), "{:?}", reports.lock().unwrap());
    assert_eq!(std::fs::read_to_string(root.join("logs/agent.node1.log")).unwrap(), "up\nup\n");
    fabric.down().await.unwrap();
    assert_eq!(place.left("heal"), Vec::<String>::new());
}

#[tokio::test]
async fn two_fabrics_live_side_by_side_and_one_name_is_taken_once() {
    if !root("two fabrics") {
        return;
    }
    let place = Place::new("two");
    let first = Fabric::weave(place.spec("a", 1), quiet()).await.unwrap();
    let second = Fabric::weave(place.spec("a-b", 1), quiet()).await.unwrap();
    let refused = Fabric::weave(place.spec("a", 1), quiet()).await.err().unwrap().to_string();
    assert!(refused.contains("running already") && refused.contains("weft down"), "{refused}");
    let names: BTreeSet<String> =
        fabric::list(&place.0, Path::new(NETNS)).unwrap().into_iter().map(|fabric| fabric.name).collect();
    assert_eq!(names, BTreeSet::from([name("a"), name("a-b")]));
    first.down().await.unwrap();
    assert_eq!(place.left("a"), Vec::<String>::new());
    connect("a-b", "node1", "underlay", "172.30.0.1").expect("the other fabric keeps working");
    second.down().await.unwrap();
    assert_eq!(place.left("a-b"), Vec::<String>::new());
}

/// Run by the tests below in a process of its own, to be killed.
#[tokio::test]
#[ignore = "a helper process of the tests"]
async fn helper_weaves_and_waits() {
    let (Ok(name), Ok(place)) = (std::env::var("WEFT_TEST_NAME"), std::env::var("WEFT_TEST_PLACE")) else {
        return;
    };
    let spec = Spec { name, nodes: 2, state_root: place.into(), ..Spec::default() };
    let mut fabric = Fabric::weave(spec, quiet()).await.unwrap();
    for node in ["node1", "node2"] {
        fabric.keep(sleeper(&fabric, node));
    }
    fabric.interrupted().await;
    fabric.down().await.unwrap();
}

async fn start_helper(place: &Place, tag: &str) -> std::process::Child {
    let helper = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "helper_weaves_and_waits"])
        .env("WEFT_TEST_NAME", name(tag))
        .env("WEFT_TEST_PLACE", &place.0)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let root = place.0.join(name(tag));
    for node in ["agent.node1", "agent.node2"] {
        recorded_pid(&root, node, None).await;
    }
    helper
}

#[tokio::test]
async fn a_killed_supervisor_leaves_all_running_and_down_finds_everything() {
    if !root("killed supervisor") {
        return;
    }
    let place = Place::new("kill");
    let mut helper = start_helper(&place, "kill").await;
    helper.kill().unwrap();
    helper.wait().unwrap();
    let left = place.left("kill");
    assert!(left.iter().any(|line| line.contains("(agent.node2)")), "agents live on: {left:?}");
    let summaries = fabric::list(&place.0, Path::new(NETNS)).unwrap();
    assert_eq!((summaries.len(), summaries[0].state), (1, State::Remains), "no API server runs in this test");
    // A process nobody recorded, in a namespace of the fabric, and a pod's namespace bound twice.
    let mut stray = Command::new("nsenter")
        .args([&format!("--net={NETNS}/{}", netns("kill", "node1")), "sleep", "600"])
        .spawn()
        .unwrap();
    let pod = place.0.join(name("kill")).join("netns/pod");
    std::fs::write(&pod, "").unwrap();
    let node = format!("{NETNS}/{}", netns("kill", "node2"));
    for _ in 0..2 {
        assert!(
            Command::new("mount")
                .args(["--bind", &node, &pod.display().to_string()])
                .status()
                .unwrap()
                .success()
        );
    }
    place.down("kill").unwrap();
    assert_eq!(place.left("kill"), Vec::<String>::new());
    assert!(!stray.wait().unwrap().success(), "the stray process was killed");
    place.down("kill").unwrap();
}

#[tokio::test]
async fn down_lets_a_living_supervisor_clean_up_and_so_does_sigterm() {
    if !root("living supervisor") {
        return;
    }
    let place = Place::new("term");
    let mut helper = start_helper(&place, "term").await;
    // Reaped at once, as a shell would: a zombie would count as gone only then.
    let waiter = std::thread::spawn(move || helper.wait().unwrap());
    place.down("term").unwrap();
    assert_eq!(place.left("term"), Vec::<String>::new());
    assert!(waiter.join().unwrap().success(), "it ended by itself");
}

#[tokio::test]
async fn a_fabric_that_cannot_be_made_whole_leaves_nothing() {
    if !root("half-made fabric") {
        return;
    }
    let place = Place::new("half");
    // The name of a node's namespace is taken by a file of somebody else's.
    std::fs::create_dir_all(NETNS).unwrap();
    let thorn = Path::new(NETNS).join(netns("half", "node2"));
    std::fs::write(&thorn, "").unwrap();
    let error = Fabric::weave(place.spec("half", 2), quiet()).await.err().unwrap().to_string();
    assert!(error.contains("left behind half-made"), "{error}");
    place.down("half").unwrap();
    assert_eq!(place.left("half"), Vec::<String>::new());
    assert!(!thorn.exists());
    // And one that fails in the middle: the directory of namespaces is a file.
    let blocked = place.0.with_extension("netns");
    std::fs::write(&blocked, "").unwrap();
    let spec = Spec { netns_root: blocked.clone(), ..place.spec("half", 1) };
    let error = Fabric::weave(spec, quiet()).await.err().unwrap().to_string();
    std::fs::remove_file(&blocked).unwrap();
    assert!(error.contains("weave the underlay"), "{error}");
    assert_eq!(place.left("half"), Vec::<String>::new());
    assert!(!place.0.exists());
}

#[tokio::test]
async fn a_program_that_cannot_start_is_reported_and_does_not_hinder_the_end() {
    if !root("missing program") {
        return;
    }
    let place = Place::new("exe");
    let reports: Arc<std::sync::Mutex<Vec<Progress>>> = Arc::default();
    let sink = reports.clone();
    let report: Arc<Report> = Arc::new(move |progress| sink.lock().unwrap().push(progress));
    let spec = Spec { exe: Some("/nonexistent/weft".into()), ..place.spec("exe", 1) };
    let mut fabric = Fabric::weave(spec, report).await.unwrap();
    fabric.keep(fabric.program("agent", &["agent"], Some("node1")));
    let named =
        |p: &Progress| matches!(p, Progress::Restarting { why, .. } if why.contains("/nonexistent/weft"));
    while !reports.lock().unwrap().iter().any(named) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fabric.down().await.unwrap();
    assert_eq!(place.left("exe"), Vec::<String>::new());
}
