//! A small fabric of namespaces for tests: nodes with their own mounts and cgroup, an outside network, pods with real
//! sockets. What is asserted about them lives in the tests. All of it goes with the process.
#![allow(dead_code)]

pub mod bytes;
pub mod frontends;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, libbpf_sys};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use weft_datapath::{Capacity, Config, Datapath, PodAttachment, PodLink, device_name};
use weft_model::{Addr, Cidr, NodeName, PodKey, Routing, Uid};
use weft_plan::{EndpointPlan, NextHop, NodePlan, NodeSettings};

pub const PATIENCE: Duration = Duration::from_secs(10);
/// Tests make many nodes, and few flows in each.
const FEW_FLOWS: u32 = 1 << 14;

/// A network namespace that lives as long as its descriptor.
#[derive(Clone)]
pub struct Namespace(Arc<File>);

impl Namespace {
    pub fn new() -> Self {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests run as root");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(Arc::new(file.join().unwrap()))
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        weft_datapath::in_namespace(&self.path(), work).unwrap()
    }

    pub fn enter(&self) {
        setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
    }

    pub fn ip(&self, arguments: &str) {
        self.command("ip", arguments);
    }

    pub fn command(&self, program: &str, arguments: &str) -> String {
        self.run(|| {
            let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{program} {arguments}: {errors}");
            String::from_utf8(output.stdout).unwrap()
        })
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread that stays in one network namespace and one mount namespace.
pub struct Worker {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// With a bpf file system of its own at `bpffs`.
    pub fn new(namespace: Namespace, bpffs: PathBuf) -> Self {
        let (jobs, queue) = channel::<Job>();
        let thread = std::thread::spawn(move || {
            namespace.enter();
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
            for job in queue {
                job();
            }
        });
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    /// Runs `work` there and waits for it. A panic in it is the caller's.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = channel();
        let job: Job = Box::new(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            answer.send(outcome).ok();
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        match result.recv().unwrap() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

const CGROUP: &str = "weft-test-";

/// A cgroup v2 directory, removed with the test.
pub struct Cgroup(pub PathBuf);

impl Cgroup {
    fn new(name: &str) -> Self {
        let root = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            "/sys/fs/cgroup"
        } else {
            "/sys/fs/cgroup/unified"
        };
        remove_abandoned(root);
        let path = PathBuf::from(format!("{root}/{CGROUP}{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

/// Whoever is killed drops nothing, and nothing but a later run looks after what it left.
fn remove_abandoned(root: &str) {
    for entry in fs::read_dir(root).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let owner = name.strip_prefix(CGROUP).and_then(|rest| rest.split_once('-'));
        if owner.is_some_and(|(pid, _)| !Path::new("/proc").join(pid).exists()) {
            // Another run may be quicker.
            fs::remove_dir(entry.path()).ok();
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).ok();
    }
}

pub struct Node {
    pub number: u8,
    pub namespace: Namespace,
    pub cgroup: Cgroup,
    pub config: Config,
    pub datapath: Arc<Mutex<Option<Arc<Datapath>>>>,
    pub plan: NodePlan,
    pub worker: Worker,
    pods: Vec<Namespace>,
    directory: tempfile::TempDir,
}

#[derive(Clone)]
pub struct Pod {
    pub namespace: Namespace,
    pub v4: Addr,
    pub v6: Addr,
    pub attachment: PodAttachment,
    pub link: PodLink,
}

/// Nodes on one link, which is a bridge in the outside namespace with 172.30.0.1 and fd00:172:30::1.
pub struct Fabric {
    pub outside: Namespace,
    pub nodes: Vec<Node>,
}

pub fn node_v4(number: u8) -> Addr {
    format!("172.30.0.{}", 10 + number).parse().unwrap()
}

pub fn node_v6(number: u8) -> Addr {
    format!("fd00:172:30::{}", 10 + number).parse().unwrap()
}

pub fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

pub fn addr(text: &str) -> Addr {
    text.parse().unwrap()
}

fn pod_cidrs(number: u8) -> BTreeSet<Cidr> {
    BTreeSet::from([cidr(&format!("10.244.{number}.0/24")), cidr(&format!("fd00:10:244:{number}::/64"))])
}

impl Fabric {
    pub fn new(count: u8, routing: Routing) -> Self {
        Self::with(count, routing, FEW_FLOWS)
    }

    /// Nodes with so large a flow table.
    pub fn with(count: u8, routing: Routing, flow_entries: u32) -> Self {
        let outside = Namespace::new();
        outside.ip("link add br0 type bridge");
        outside.ip("link set br0 addrgenmode none");
        outside.ip("addr add 172.30.0.1/24 dev br0");
        outside.ip("addr add fd00:172:30::1/64 dev br0 nodad");
        outside.ip("addr add 192.0.2.1/32 dev lo");
        outside.ip("addr add 2001:db8::1/128 dev lo");
        outside.ip("link set lo up");
        outside.ip("link set br0 up");
        let nodes = (1..=count)
            .map(|number| {
                let namespace = Namespace::new();
                let port = format!("port{number}");
                let path = namespace.path();
                outside.ip(&format!("link add {port} type veth peer name eth0 netns {}", path.display()));
                outside.ip(&format!("link set {port} master br0 up"));
                Node::new(number, count, namespace, routing, flow_entries)
            })
            .collect();
        Self { outside, nodes }
    }

    /// Two nodes on one wire, without anything between them or outside.
    pub fn wired_with(routing: Routing, flow_entries: u32) -> Self {
        let (one, other) = (Namespace::new(), Namespace::new());
        one.ip(&format!("link add eth0 type veth peer name eth0 netns {}", other.path().display()));
        other.ip("link set eth0 up");
        let nodes =
            vec![Node::new(1, 2, one, routing, flow_entries), Node::new(2, 2, other, routing, flow_entries)];
        Self { outside: Namespace::new(), nodes }
    }

    pub fn apply_all(&self) {
        for node in &self.nodes {
            node.apply();
        }
    }

    /// Hardware off-loads hide wrong checksums: without them every checksum is on the wire and verified.
    pub fn real_checksums(&self) {
        for node in &self.nodes {
            node.namespace.run(|| checksum_offload_off("eth0"));
            for pod in &node.pods {
                pod.run(|| checksum_offload_off("eth0"));
            }
        }
    }
}

impl Node {
    /// Its uplink `eth0` is in the namespace already.
    fn new(number: u8, count: u8, namespace: Namespace, routing: Routing, flow_entries: u32) -> Self {
        namespace.ip("link set lo up");
        namespace.ip(&format!("addr add {}/24 dev eth0", node_v4(number)));
        namespace.ip(&format!("addr add {}/64 dev eth0 nodad", node_v6(number)));
        namespace.ip("link set eth0 up");
        namespace.ip("route add default via 172.30.0.1");
        namespace.ip("route add default via fd00:172:30::1");
        let directory = tempfile::tempdir().unwrap();
        let cgroup =
            Cgroup::new(&format!("{:x}-{number}", directory.path().as_os_str().len() as u64 ^ unique()));
        let config = Config {
            bpffs_dir: directory.path().join(format!("node{number}")),
            cgroup_dir: cgroup.0.clone(),
            uplink: "eth0".to_owned(),
            routing,
            flow_entries,
            capacity: Capacity::default(),
        };
        let worker = Worker::new(namespace.clone(), directory.path().to_owned());
        let node = Self {
            number,
            namespace,
            cgroup,
            config,
            datapath: Arc::default(),
            plan: plan_of(number, count, routing),
            worker,
            pods: Vec::new(),
            directory,
        };
        node.open();
        node
    }

    /// As a restarted agent does. The one before is dropped only after.
    pub fn open(&self) {
        let (config, slot) = (self.config.clone(), Arc::clone(&self.datapath));
        self.worker.run(move || {
            let opened = Datapath::open(config).unwrap_or_else(|error| panic!("{error}"));
            *slot.lock().unwrap() = Some(Arc::new(opened));
        });
    }

    pub fn with<T: Send + 'static>(&self, work: impl FnOnce(&Datapath) -> T + Send + 'static) -> T {
        let datapath = self.datapath.lock().unwrap().clone().unwrap();
        self.worker.run(move || work(&datapath))
    }

    pub fn apply(&self) -> weft_datapath::Report {
        let plan = self.plan.clone();
        self.with(move |datapath| datapath.apply(&plan)).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Attaches a pod and puts it into the plan, without applying it.
    pub fn add_pod(&mut self, host: u8) -> Pod {
        let namespace = Namespace::new();
        let v4 = addr(&format!("10.244.{}.{host}", self.number));
        let v6 = addr(&format!("fd00:10:244:{}::{host:x}", self.number));
        let container = format!("container-{}-{host}", self.number);
        let attachment = PodAttachment {
            netns: namespace.path(),
            device: device_name(&container),
            container,
            interface: "eth0".to_owned(),
            addresses: BTreeSet::from([v4, v6]),
            mtu: self.plan.settings.pod_mtu,
        };
        let request = attachment.clone();
        let link = self
            .with(move |datapath| datapath.attach_pod(&request))
            .unwrap_or_else(|error| panic!("{error}"));
        for address in [v4, v6] {
            let endpoint = EndpointPlan {
                pod: PodKey::new("test", format!("pod-{}-{host}", self.number)),
                uid: Uid::new(format!("uid-{}-{host}", self.number)),
                device: attachment.device.clone(),
                ingress: None,
                egress: None,
            };
            self.plan.endpoints.insert(address, endpoint);
        }
        self.pods.push(namespace.clone());
        Pod { namespace, v4, v6, attachment, link }
    }
}

/// What an agent of another version would have left: another digest, and a table whose values have another size.
/// Connections' tables are the same.
pub fn age_layout(node: &Node) {
    let maps = node.config.bpffs_dir.join("maps");
    node.worker.run(move || {
        let layout = MapHandle::from_pinned_path(maps.join("layout")).unwrap();
        layout.update(&0u32.to_ne_bytes(), &1u64.to_ne_bytes(), MapFlags::ANY).unwrap();
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
            ..Default::default()
        };
        std::fs::remove_file(maps.join("endpoints")).unwrap();
        let mut other = MapHandle::create(MapType::Hash, Some("older"), 16, 24, 64, &options).unwrap();
        other.pin(maps.join("endpoints")).unwrap();
    });
}

fn unique() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) << 8
}

fn plan_of(number: u8, count: u8, routing: Routing) -> NodePlan {
    let mut routes = BTreeMap::new();
    for other in (1..=count).filter(|other| *other != number) {
        for prefix in pod_cidrs(other) {
            let v4_too =
                matches!(routing, Routing::Vxlan { .. }) || prefix.family() == weft_model::Family::V4;
            let via = if v4_too { node_v4(other) } else { node_v6(other) };
            routes.insert(prefix, NextHop { node: NodeName::new(format!("node{other}")), via });
        }
        for own in [node_v4(other), node_v6(other)] {
            let via = if matches!(routing, Routing::Vxlan { .. }) { node_v4(other) } else { own };
            routes.insert(Cidr::host(own), NextHop { node: NodeName::new(format!("node{other}")), via });
        }
    }
    let settings = NodeSettings {
        node: NodeName::new(format!("node{number}")),
        host_addresses: BTreeSet::from([
            node_v4(number),
            node_v6(number),
            addr("10.96.0.10"),
            addr("fd00:10:96::a"),
        ]),
        node_addresses: vec![node_v4(number), node_v6(number)],
        pod_cidrs: pod_cidrs(number),
        cluster_pod_cidrs: BTreeSet::from([cidr("10.244.0.0/16"), cidr("fd00:10:244::/56")]),
        service_cidrs: BTreeSet::from([cidr("10.96.0.0/16"), cidr("fd00:10:96::/112")]),
        cluster_cidrs: (1..=count)
            .flat_map(|node| [Cidr::host(node_v4(node)), Cidr::host(node_v6(node))])
            .chain([cidr("10.244.0.0/16"), cidr("fd00:10:244::/56")])
            .collect(),
        routing,
        pod_mtu: if matches!(routing, Routing::Direct) { 1500 } else { 1430 },
        localhost_node_ports: false,
    };
    NodePlan { routes: routes.into(), ..NodePlan::empty(settings) }
}

/// A server in a namespace: echoes what it gets and closes when its peer does. Stops with its threads at exit.
pub fn serve_tcp(namespace: &Namespace, port: u16) {
    let listener = namespace.run(move || TcpListener::bind(("::", port)).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(read) = stream.read(&mut buffer) {
                    if read == 0 || stream.write_all(&buffer[..read]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Answers each datagram with its own bytes.
pub fn serve_udp(namespace: &Namespace, port: u16) {
    serve_udp_at(namespace, &format!("[::]:{port}"));
}

pub fn serve_udp_at(namespace: &Namespace, local: &str) {
    let socket = namespace.run(|| UdpSocket::bind(local).unwrap());
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((read, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..read], from).ok();
        }
    });
}

pub fn connect(namespace: &Namespace, to: Addr, port: u16, patience: Duration) -> std::io::Result<TcpStream> {
    let target = SocketAddr::new(to.to_ip(), port);
    namespace.run(move || {
        let stream = TcpStream::connect_timeout(&target, patience)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

/// Sends `size` bytes and reads them back.
pub fn echo_tcp(namespace: &Namespace, to: Addr, port: u16, size: usize) {
    let stream =
        connect(namespace, to, port, PATIENCE).unwrap_or_else(|error| panic!("connect {to}: {error}"));
    let sent: Vec<u8> = (0..size).map(|at| ((at * 31) >> 3) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || writer.write_all(&copy));
    let mut got = vec![0; size];
    let mut reader = stream;
    reader.read_exact(&mut got).unwrap_or_else(|error| panic!("read from {to}: {error}"));
    writing.join().unwrap().unwrap();
    assert!(got == sent, "{size} bytes from {to} differ");
}

/// Whether a datagram comes back within `patience`.
pub fn echo_udp(namespace: &Namespace, to: Addr, port: u16, size: usize, patience: Duration) -> bool {
    let any: IpAddr = if to.to_ip().is_ipv4() { "0.0.0.0".parse().unwrap() } else { "::".parse().unwrap() };
    let socket = namespace.run(move || UdpSocket::bind((any, 0)).unwrap());
    socket.set_read_timeout(Some(patience)).unwrap();
    let sent = vec![0x5a; size];
    socket.send_to(&sent, SocketAddr::new(to.to_ip(), port)).unwrap();
    let mut got = vec![0; size + 1];
    matches!(socket.recv_from(&mut got), Ok((read, _)) if got[..read] == sent[..])
}

/// An ICMP echo, through the kernel's ping sockets.
pub fn ping(namespace: &Namespace, to: Addr) -> bool {
    try_ping(namespace, to, PATIENCE).0
}

/// Whether it was answered, and whether it was sent.
pub fn try_ping(namespace: &Namespace, to: Addr, patience: Duration) -> (bool, bool) {
    let (domain, protocol, request) = match to.to_ip() {
        IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP, 8),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6, 128),
    };
    let socket = namespace.run(move || {
        fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
        // SAFETY: a plain system call; the descriptor becomes the socket's own.
        unsafe { UdpSocket::from_raw_fd(libc::socket(domain, libc::SOCK_DGRAM, protocol)) }
    });
    socket.set_read_timeout(Some(patience)).unwrap();
    let sent = socket.send_to(&[request, 0, 0, 0, 0, 0, 0, 1, 42], SocketAddr::new(to.to_ip(), 0));
    let mut answer = [0; 64];
    (matches!(socket.recv_from(&mut answer), Ok((9, _)) if answer[8] == 42), sent.is_ok())
}

/// What a device does for the kernel, by the number of ethtool's command.
#[derive(Clone, Copy, Debug)]
pub enum Offload {
    /// Without it the kernel computes each checksum in software, and the receiver verifies it.
    Checksums = 0x17,
    ScatterGather = 0x19,
    /// Without these it makes the segments itself.
    TcpSegments = 0x1f,
    Segments = 0x24,
}

pub fn checksum_offload_off(device: &str) {
    offload_off(device, Offload::Checksums);
}

pub fn offload_off(device: &str, offload: Offload) {
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    let socket = UdpSocket::bind(("127.0.0.1", 0)).or_else(|_| UdpSocket::bind(("::", 0))).unwrap();
    let mut value = Value { command: offload as u32, data: 0 };
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request and the value it points to live through the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    assert_eq!(result, 0, "ethtool on {device}: {}", std::io::Error::last_os_error());
}
