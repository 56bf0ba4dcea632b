//! What the datapath costs: TCP stream, request/response and connect rates of each path as ratios to same-namespace
//! loopback. Both ends share one CPU and samples are interleaved, so that each ratio compares neighbours in time.
//!
//! `bench [--rounds N] [--seconds S] [--only PATH,..] [--kinds KIND,..] [--clock wall|cpu]`; needs root. Policy, tracking and events
//! are on. `--clock cpu` counts the processor time of both ends and of the kernel's work for them, where others use the machine too.

#[path = "shared/sockets.rs"]
mod sockets;
#[path = "../tests/support/mod.rs"]
mod support;

mod workload {
    //! One sample of one kind between two namespaces.

    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener};
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use crate::sockets::{connect, pin, use_cubic};
    use crate::support::Namespace;

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub enum Kind {
        /// Bytes in one direction.
        Stream,
        /// One byte there and one back, again and again.
        RequestResponse,
        /// The same on a connection of its own each time.
        ConnectRequestResponse,
    }

    impl Kind {
        pub const ALL: [Self; 3] = [Self::Stream, Self::RequestResponse, Self::ConnectRequestResponse];

        pub fn name(self) -> &'static str {
            match self {
                Self::Stream => "stream",
                Self::RequestResponse => "RR",
                Self::ConnectRequestResponse => "CRR",
            }
        }
    }

    /// What a second is of.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Clock {
        Wall,
        /// Of the processor time that the sample took: both threads' and that of the kernel's own for packets.
        Processor,
    }

    /// Who asks whom.
    pub struct Ends<'a> {
        pub client: &'a Namespace,
        pub server: &'a Namespace,
        pub to: SocketAddr,
    }

    /// What one thread did.
    struct Work {
        done: f64,
        elapsed: Duration,
        processor: Duration,
    }

    /// Bytes or transactions a second.
    pub fn sample(kind: Kind, ends: &Ends<'_>, time: Duration, cpu: usize, clock: Clock) -> f64 {
        let (to, port) = (ends.to, ends.to.port());
        let listener = ends.server.run(|| TcpListener::bind(("::", port)).expect("a free port"));
        use_cubic(listener.as_fd());
        let stop = AtomicBool::new(false);
        let kernel = kernel_thread_time(cpu);
        let (asked, served) = std::thread::scope(|scope| {
            let serving = scope.spawn(|| {
                pin(cpu);
                serve(kind, &listener, &stop)
            });
            let asking = scope.spawn(|| {
                ends.client.enter();
                pin(cpu);
                let work = ask(kind, to, time);
                stop.store(true, Ordering::Relaxed);
                // Wakes a server that waits for another connection.
                drop(connect(to));
                work
            });
            let asked = asking.join().expect("the client does not panic");
            (asked, serving.join().expect("the server does not panic"))
        });
        let result = if kind == Kind::Stream { &served } else { &asked };
        let seconds = match clock {
            Clock::Wall => result.elapsed,
            Clock::Processor => asked.processor + served.processor + (kernel_thread_time(cpu) - kernel),
        };
        result.done / seconds.as_secs_f64()
    }

    fn thread_time() -> Duration {
        let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
        nix::time::clock_gettime(clock).expect("every thread has a clock").into()
    }

    /// Of the thread that does what a processor's packets are due when it is interrupted too long.
    fn kernel_thread_time(cpu: usize) -> Duration {
        let name = format!("ksoftirqd/{cpu}\n");
        let processes = std::fs::read_dir("/proc").expect("proc is mounted").flatten();
        let thread = processes
            .map(|entry| entry.path())
            .find(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm == name));
        let text = thread.and_then(|path| std::fs::read_to_string(path.join("schedstat")).ok());
        let first = text.as_deref().and_then(|text| text.split(' ').next()?.parse().ok());
        Duration::from_nanos(first.unwrap_or_default())
    }

    fn serve(kind: Kind, listener: &TcpListener, stop: &AtomicBool) -> Work {
        let mut buffer = vec![0u8; 1 << 17];
        let mut work = Work { done: 0.0, elapsed: Duration::ZERO, processor: Duration::ZERO };
        let processor = thread_time();
        while let Ok((mut stream, _)) = listener.accept() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            stream.set_nodelay(true).expect("a TCP socket");
            let (start, mut bytes) = (Instant::now(), 0usize);
            while let Ok(read) = stream.read(&mut buffer) {
                if read == 0 || (kind != Kind::Stream && stream.write_all(&buffer[..read]).is_err()) {
                    break;
                }
                bytes += read;
            }
            (work.done, work.elapsed) = (bytes as f64, start.elapsed());
        }
        work.processor = thread_time() - processor;
        work
    }

    fn ask(kind: Kind, to: SocketAddr, time: Duration) -> Work {
        let (start, processor) = (Instant::now(), thread_time());
        let mut done = 0u64;
        let mut byte = [0u8];
        let connect = || connect(to).expect("the server listens and policy allows");
        match kind {
            Kind::Stream => {
                let mut stream = connect();
                let buffer = vec![0u8; 1 << 17];
                while start.elapsed() < time {
                    stream.write_all(&buffer).expect("the server reads");
                }
            }
            Kind::RequestResponse => {
                let mut stream = connect();
                while start.elapsed() < time {
                    stream.write_all(&byte).expect("the server reads");
                    stream.read_exact(&mut byte).expect("the server answers");
                    done += 1;
                }
            }
            Kind::ConnectRequestResponse => {
                while start.elapsed() < time {
                    let mut stream = connect();
                    stream.write_all(&byte).expect("the server reads");
                    stream.read_exact(&mut byte).expect("the server answers");
                    done += 1;
                }
            }
        }
        Work { done: done as f64, elapsed: start.elapsed(), processor: thread_time() - processor }
    }
}

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::{Fabric, Namespace, Pod, addr, cidr};
use weft_model::{Addr, Cidr, Direction, Port, Protocol, Routing, ServiceKey, Verdict};
use weft_plan::{
    Backend, ClassId, ClassMatch, Decision, Frontend, NodePlan, PolicyMatch, PolicySet, PolicySetId,
    PortPrefix, RuleId, ServiceId, ServicePlan,
};
use workload::{Clock, Ends, Kind, sample};

const PORT: u16 = 5201;
const SERVICE: &str = "10.96.7.7";
const CPU: usize = 1;

/// A way from a client to a server.
struct Way {
    name: &'static str,
    client: Namespace,
    server: Namespace,
    to: Addr,
    /// Where the client's sockets are made, so that the node's hooks see them.
    cgroup: Option<std::path::PathBuf>,
    kinds: &'static [Kind],
    /// Of the sample its ratio is to.
    against: &'static str,
}

struct Options {
    rounds: usize,
    time: Duration,
    only: Vec<String>,
    kinds: Vec<String>,
    clock: Clock,
}

/// What the project wants, as ratios to the sample that a path is compared with.
const AIMS: &[(&str, Kind, f64)] = &[
    ("same node", Kind::Stream, 0.85),
    ("same node", Kind::RequestResponse, 0.90),
    ("same node", Kind::ConnectRequestResponse, 0.90),
    ("direct", Kind::Stream, 0.80),
    ("direct", Kind::RequestResponse, 0.84),
    ("direct", Kind::ConnectRequestResponse, 0.84),
    ("vxlan", Kind::Stream, 0.53),
    ("vxlan", Kind::RequestResponse, 0.62),
    ("vxlan", Kind::ConnectRequestResponse, 0.60),
    ("service", Kind::ConnectRequestResponse, 0.95),
];

/// As it is printed, and whether it is met.
fn aim_of(path: &str, kind: Kind, ratio: f64) -> String {
    let Some((_, _, aim)) = AIMS.iter().find(|(name, of, _)| *name == path && *of == kind) else {
        return String::new();
    };
    let result = if (ratio * 1000.0).round() >= aim * 1000.0 { "hit" } else { "MISS" };
    format!("{aim:.2} {result}")
}

fn is_chosen(chosen: &[String], name: &str) -> bool {
    chosen.is_empty() || chosen.iter().any(|one| one == name)
}

fn options() -> Options {
    let mut options = Options {
        rounds: 9,
        time: Duration::from_millis(300),
        only: Vec::new(),
        kinds: Vec::new(),
        clock: Clock::Wall,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().unwrap_or_default();
        match word.as_str() {
            "--rounds" => options.rounds = value.parse().expect("--rounds takes a number"),
            "--seconds" => {
                options.time = Duration::from_secs_f64(value.parse().expect("--seconds takes a number"))
            }
            "--only" => options.only = value.split(',').map(str::to_owned).collect(),
            "--kinds" => options.kinds = value.split(',').map(str::to_owned).collect(),
            "--clock" if value == "wall" => options.clock = Clock::Wall,
            "--clock" if value == "cpu" => options.clock = Clock::Processor,
            other => {
                panic!(
                    "{other} {value}: unknown; use --rounds N, --seconds S, --only PATH,.., --kinds stream,RR,CRR, \
                     --clock wall|cpu"
                )
            }
        }
    }
    options
}

/// Every pod isolated both ways, with a few rules; pods of the cluster may reach the benchmark's port.
fn isolate(plan: &mut NodePlan, pods: &[Addr]) {
    let allow = Decision { verdict: Verdict::Forwarded, rule: RuleId(7) };
    for (id, direction) in [(PolicySetId(11), Direction::Ingress), (PolicySetId(12), Direction::Egress)] {
        let mut entries = BTreeMap::new();
        for number in 0..20u16 {
            let class = ClassMatch::Only(ClassId(100 + u32::from(number % 4)));
            let port = PortPrefix::exact(if number == 0 { PORT } else { 8000 + number });
            entries.insert(PolicyMatch { class, protocol: Some(Protocol::TCP), port }, allow);
        }
        let set = PolicySet { direction, policies: Vec::new(), entries, default_rule: RuleId(9) };
        plan.policy_sets.insert(id, set);
    }
    for endpoint in plan.endpoints.values_mut() {
        (endpoint.ingress, endpoint.egress) = (Some(PolicySetId(11)), Some(PolicySetId(12)));
    }
    for pod in pods {
        plan.classes.insert(Cidr::host(*pod), ClassId(100));
    }
    plan.classes.insert(cidr("10.0.0.0/8"), ClassId(103));
}

fn add_service(plan: &mut NodePlan, backend: Addr) {
    for number in 0..1000u32 {
        let addr: Addr = std::net::Ipv4Addr::from(0x0a60_1000 + number).into();
        let key = ServiceKey::new("bench", format!("other-{number}"));
        let service =
            ServicePlan::cluster_ip(ServiceId(1000 + number), key, vec![Backend::at(backend, Port(1))]);
        plan.services.insert(Frontend { addr, protocol: Protocol::TCP, port: Port(80) }, service);
    }
    let frontend = Frontend { addr: addr(SERVICE), protocol: Protocol::TCP, port: Port(PORT) };
    let key = ServiceKey::new("bench", "server");
    let service = ServicePlan::cluster_ip(ServiceId(7), key, vec![Backend::at(backend, Port(PORT))]);
    plan.services.insert(frontend, service);
}

fn fabric(count: u8, routing: Routing) -> (Fabric, Pod, Pod) {
    // As many as an agent makes by default: a full table would be another measurement.
    let size = weft_datapath::Config::DEFAULT_FLOW_ENTRIES;
    let mut fabric =
        if count == 2 { Fabric::wired_with(routing, size) } else { Fabric::with(count, routing, size) };
    let client = fabric.nodes[0].add_pod(2);
    let last = usize::from(count) - 1;
    let server = fabric.nodes[last].add_pod(3);
    let pods = [client.v4, client.v6, server.v4, server.v6];
    for node in &mut fabric.nodes {
        isolate(&mut node.plan, &pods);
        add_service(&mut node.plan, server.v4);
    }
    fabric.apply_all();
    (fabric, client, server)
}

/// Few TIME_WAIT sockets, so that ports do not run out; the same for every path.
fn tune(namespace: &Namespace) {
    namespace.run(|| {
        fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "256").expect("root may");
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65000").expect("root may");
    });
}

fn enter_cgroup(path: &Path) {
    fs::write(path.join("cgroup.procs"), std::process::id().to_string()).expect("a cgroup of one's own");
}

fn own_cgroup_root() -> &'static Path {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if unified.exists() { unified } else { Path::new("/sys/fs/cgroup") }
}

/// Debian's reference plugin: two namespaces on a bridge, as the plugin itself makes them.
fn reference_bridge() -> Option<(Namespace, Namespace, Namespace, Addr)> {
    let plugin =
        ["/usr/lib/cni/bridge", "/opt/cni/bin/bridge"].iter().map(Path::new).find(|path| path.exists());
    let Some(plugin) = plugin else {
        eprintln!("SKIP bridge plugin: not installed (Debian's package containernetworking-plugins)");
        return None;
    };
    let directory = plugin.parent().expect("a plugin is in a directory").to_owned();
    let (node, client, server) = (Namespace::new(), Namespace::new(), Namespace::new());
    let state = std::env::temp_dir().join(format!("weft-bench-{}", std::process::id()));
    let conf = format!(
        r#"{{"cniVersion":"1.0.0","name":"bench","type":"bridge","bridge":"cni0","isGateway":true,"ipam":{{"type":"host-local","subnet":"10.99.0.0/24","dataDir":"{}"}}}}"#,
        state.display()
    );
    let attach = |container: &str, namespace: &Namespace| {
        use std::io::Write;
        let path = namespace.path();
        let (conf, directory) = (conf.clone(), directory.clone());
        let container = container.to_owned();
        node.run(move || {
            let mut child = std::process::Command::new(directory.join("bridge"))
                .env_clear()
                .env("CNI_COMMAND", "ADD")
                .env("CNI_CONTAINERID", container)
                .env("CNI_NETNS", path)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", &directory)
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .expect("the plugin runs");
            child.stdin.take().expect("piped").write_all(conf.as_bytes()).expect("the plugin reads");
            let output = child.wait_with_output().expect("the plugin ends");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{text}");
            text
        })
    };
    attach("one", &client);
    let answer = attach("two", &server);
    fs::remove_dir_all(&state).ok();
    let start = answer.find("\"10.99.0.").expect("the plugin gives an address") + 1;
    let text: String = answer[start..].chars().take_while(|letter| *letter != '/').collect();
    client.ip("link set lo up");
    server.ip("link set lo up");
    Some((node, client, server, addr(&text)))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn run(way: &Way, kind: Kind, options: &Options) -> f64 {
    enter_cgroup(way.cgroup.as_deref().unwrap_or(own_cgroup_root()));
    let ends = Ends { client: &way.client, server: &way.server, to: SocketAddr::new(way.to.to_ip(), PORT) };
    let rate = sample(kind, &ends, options.time, CPU, options.clock);
    enter_cgroup(own_cgroup_root());
    rate
}

fn ways(keep: &mut Vec<Box<dyn std::any::Any>>, stop: &Arc<AtomicBool>) -> Vec<Way> {
    let alone = Namespace::new();
    alone.ip("link set lo up");
    let way = |name, client: &Namespace, server: &Namespace, to, against| Way {
        name,
        client: client.clone(),
        server: server.clone(),
        to,
        cgroup: None,
        kinds: &Kind::ALL,
        against,
    };
    let mut ways = vec![way("loopback", &alone, &alone, addr("127.0.0.1"), "loopback")];
    let modes = [
        ("same node", 1, Routing::Direct),
        ("direct", 2, Routing::Direct),
        ("vxlan", 2, Routing::Vxlan { vni: 7, port: 8472 }),
    ];
    for (name, count, routing) in modes {
        let (fabric, client, server) = fabric(count, routing);
        let cgroup = Some(fabric.nodes[0].config.cgroup_dir.clone());
        ways.push(Way {
            cgroup: cgroup.clone(),
            ..way(name, &client.namespace, &server.namespace, server.v4, "loopback")
        });
        if count == 1 {
            ways.push(Way {
                cgroup: cgroup.clone(),
                ..way("same node v6", &client.namespace, &server.namespace, server.v6, "loopback")
            });
            ways.push(Way {
                cgroup,
                kinds: &[Kind::ConnectRequestResponse],
                ..way("service", &client.namespace, &server.namespace, addr(SERVICE), "same node")
            });
        }
        for node in &fabric.nodes {
            read_events(node, stop);
        }
        keep.push(Box::new((fabric, client, server)));
    }
    if let Some((node, client, server, to)) = reference_bridge() {
        ways.push(way("bridge plugin", &client, &server, to, "loopback"));
        keep.push(Box::new(node));
    }
    for way in &ways {
        tune(&way.client);
        tune(&way.server);
    }
    ways
}

/// As the agent does, on another CPU.
fn read_events(node: &support::Node, stop: &Arc<AtomicBool>) {
    let reader = node.with(|datapath| datapath.events()).expect("events can be read");
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            if reader.poll(Duration::from_millis(50)).is_err() {
                return;
            }
        }
    });
}

fn main() {
    let options = options();
    let stop = Arc::new(AtomicBool::new(false));
    let mut keep = Vec::new();
    let ways = ways(&mut keep, &stop);
    let chosen: Vec<&Way> =
        ways.iter().filter(|way| way.name != "loopback" && is_chosen(&options.only, way.name)).collect();
    let named = |name: &str| ways.iter().find(|way| way.name == name).expect("every reference is a way");
    let mut ratios: BTreeMap<(usize, Kind), (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    for round in 0..options.rounds {
        for (at, way) in chosen.iter().enumerate() {
            for kind in way.kinds.iter().filter(|kind| is_chosen(&options.kinds, kind.name())) {
                let base = run(named(way.against), *kind, &options);
                let rate = run(way, *kind, &options);
                let again = run(named(way.against), *kind, &options);
                let (list, rates) = ratios.entry((at, *kind)).or_default();
                list.push(2.0 * rate / (base + again));
                rates.push(rate);
            }
        }
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    stop.store(true, Ordering::Relaxed);
    println!(
        "{:<14} {:<7} {:<10} {:>7} {:>7} {:>7} {:>14}  aim",
        "path", "kind", "against", "median", "min", "max", "median rate"
    );
    for ((at, kind), (mut list, mut rates)) in ratios {
        let way = chosen[at];
        let middle = median(&mut list);
        let (least, most) = (list[0], list[list.len() - 1]);
        let rate = median(&mut rates);
        let shown =
            if kind == Kind::Stream { format!("{:.1} Gb/s", rate * 8e-9) } else { format!("{rate:.0}/s") };
        println!(
            "{:<14} {:<7} {:<10} {middle:>7.3} {least:>7.3} {most:>7.3} {shown:>14}  {}",
            way.name,
            kind.name(),
            way.against,
            aim_of(way.name, kind, middle)
        );
    }
}
