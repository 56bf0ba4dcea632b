//! What services cost: connections through a cluster IP beside the pod's own address, programming 10,000 services, and
//! changing one of them; each beside nft and iptables in the layout that kube-proxy programs. Node ports are in a file of their own.
//!
//! `bench_services [--rounds N] [--seconds S] [--only crr,nodeport,program,change,event]`; needs root. Both ends of a connection
//! share a CPU.

#[path = "bench_services/node_port.rs"]
mod node_port;
#[path = "bench_services/requests.rs"]
mod requests;
#[path = "shared/sockets.rs"]
mod sockets;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use requests::{Asks, requests};
use support::{Fabric, Namespace, Node, addr, cidr, node_v4};
use weft_compile::Compiler;
use weft_datapath::Report;
use weft_model::{
    Addr, ClusterSettings, Endpoint, EndpointCondition, EndpointSlice, Family, Forwarding, Hints,
    Node as ModelNode, NodeName, Port, Protocol, Routing, Service, ServiceKey, ServiceKind, ServicePort,
    Snapshot, TargetPort, TrafficPolicy,
};
use weft_plan::{Backend, BackendList, EdgePlan, Frontend, ListId, ServiceId, ServicePlan};

const MANY: u32 = 10_000;
const PORT: u16 = 5201;
const BACKENDS_EACH: u32 = 2;

struct Options {
    rounds: usize,
    time: Duration,
    only: Vec<String>,
}

fn options() -> Options {
    let mut options = Options { rounds: 9, time: Duration::from_millis(300), only: Vec::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().unwrap_or_default();
        match word.as_str() {
            "--rounds" => options.rounds = value.parse().expect("--rounds takes a number"),
            "--seconds" => {
                options.time = Duration::from_secs_f64(value.parse().expect("--seconds takes a number"))
            }
            "--only" => options.only = value.split(',').map(str::to_owned).collect(),
            other => panic!(
                "{other}: unknown; use --rounds N, --seconds S, --only crr,nodeport,program,change,event"
            ),
        }
    }
    options
}

fn service_addr(number: u32) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from(0x0a60_8000 + number)
}

/// Of a service that nobody connects to.
fn other_backend(number: u32, copy: u32) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from(0x0af5_0000 + number * BACKENDS_EACH + copy)
}

fn frontend(number: u32) -> Frontend {
    Frontend { addr: service_addr(number).into(), protocol: Protocol::TCP, port: Port(PORT) }
}

fn service(number: u32, backends: Vec<Backend>) -> ServicePlan {
    ServicePlan::cluster_ip(ServiceId(number + 1), ServiceKey::new("bench", format!("s{number}")), backends)
}

fn others(number: u32) -> Vec<Backend> {
    (0..BACKENDS_EACH).map(|copy| Backend::at(other_backend(number, copy).into(), Port(PORT))).collect()
}

/// The last of them leads to `server`.
fn add_services(node: &mut Node, count: u32, server: Addr) {
    for number in 0..count - 1 {
        node.plan.services.insert(frontend(number), service(number, others(number)));
    }
    let last = service(count - 1, vec![Backend::at(server, Port(PORT))]);
    node.plan.services.insert(frontend(count - 1), last);
}

fn apply_timed(node: &Node) -> (Report, Duration) {
    let plan = node.plan.clone();
    node.with(move |datapath| {
        let start = Instant::now();
        let report = datapath.apply(&plan).unwrap_or_else(|error| panic!("{error}"));
        (report, start.elapsed())
    })
}

/// Few TIME_WAIT sockets, so that ports do not run out; the same for every way.
fn tune(namespace: &Namespace) {
    namespace.run(|| {
        std::fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "256").expect("root may");
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65000").expect("root may");
    });
}

fn enter_cgroup(path: &Path) {
    std::fs::write(path.join("cgroup.procs"), std::process::id().to_string()).expect("a cgroup of one's own");
}

fn own_cgroup() -> &'static Path {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if unified.exists() { unified } else { Path::new("/sys/fs/cgroup") }
}

/// Two ends with a service between them: through the service, and straight.
struct Way {
    name: String,
    client: Namespace,
    server: Namespace,
    service: Addr,
    straight: Addr,
    cgroup: Option<std::path::PathBuf>,
    _keep: Box<dyn std::any::Any>,
}

/// As the agent does.
fn read_events(node: &Node, stop: &Arc<AtomicBool>) {
    let reader = node.with(|datapath| datapath.events()).expect("events can be read");
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) && reader.poll(Duration::from_millis(50)).is_ok() {}
    });
}

fn weft(count: u32, stop: &Arc<AtomicBool>) -> Way {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[0].add_pod(3);
    let node = &mut fabric.nodes[0];
    add_services(node, count, server.v4);
    node.apply();
    read_events(node, stop);
    Way {
        name: format!("weft {count}"),
        client: client.namespace.clone(),
        server: server.namespace.clone(),
        service: service_addr(count - 1).into(),
        straight: server.v4,
        cgroup: Some(node.config.cgroup_dir.clone()),
        _keep: Box::new((fabric, client, server)),
    }
}

/// Who translates packets on a node without Weft.
#[derive(Clone, Copy)]
enum Rules {
    Nft,
    Iptables,
}

impl Rules {
    const ALL: [Self; 2] = [Self::Nft, Self::Iptables];

    fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Iptables => "iptables",
        }
    }

    fn text(self, count: u32, server: Addr) -> String {
        match self {
            Self::Nft => nft_rules(count, server),
            Self::Iptables => iptables_rules(count, server),
        }
    }

    fn load(self, namespace: &Namespace, text: &str) -> Duration {
        let (program, arguments): (_, &[&str]) = match self {
            Self::Nft => ("nft", &["-f", "-"]),
            Self::Iptables => ("iptables-restore", &["--noflush"]),
        };
        namespace.run(|| {
            let start = Instant::now();
            let mut child =
                Command::new(program).args(arguments).stdin(Stdio::piped()).spawn().expect("it is installed");
            child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads");
            assert!(child.wait().expect("it ends").success(), "{program}");
            start.elapsed()
        })
    }
}

fn backends_of(number: u32, count: u32, server: Addr) -> Vec<String> {
    match number + 1 == count {
        true => vec![server.to_string()],
        false => (0..BACKENDS_EACH).map(|copy| other_backend(number, copy).to_string()).collect(),
    }
}

/// A verdict map of services, a chain for each, and one for each endpoint.
fn nft_rules(count: u32, server: Addr) -> String {
    let mut text =
        String::from("table ip kube-proxy {\n chain mark-for-masquerade { meta mark set mark or 0x4000; }\n");
    let mut elements = String::new();
    for number in 0..count {
        let backends = backends_of(number, count, server);
        let mut choices = String::new();
        for (copy, backend) in backends.iter().enumerate() {
            writeln!(
                text,
                " chain endpoint-{number}-{copy} {{ ip saddr {backend} jump mark-for-masquerade\n meta l4proto tcp dnat to {backend}:{PORT}; }}"
            )
            .expect("a string");
            write!(choices, "{copy} : goto endpoint-{number}-{copy}, ").expect("a string");
        }
        writeln!(
            text,
            " chain service-{number} {{ numgen random mod {} vmap {{ {choices} }}; }}",
            backends.len()
        )
        .expect("a string");
        write!(elements, "{} . tcp . {PORT} : goto service-{number}, ", service_addr(number))
            .expect("a string");
    }
    write!(
        text,
        " map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {elements} }}; }}
 chain services {{ ip daddr . meta l4proto . th dport vmap @service-ips; }}
 chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
 chain nat-output {{ type nat hook output priority -100; jump services; }}
 chain nat-postrouting {{ type nat hook postrouting priority srcnat; mark and 0x4000 == 0x4000 masquerade; }}
}}\n"
    )
    .expect("a string");
    text
}

/// One rule for each service in one chain, a chain for each, and one for each endpoint.
fn iptables_rules(count: u32, server: Addr) -> String {
    let (mut chains, mut rules) = (String::new(), String::new());
    for number in 0..count {
        writeln!(chains, ":KUBE-SVC-{number} - [0:0]").expect("a string");
        let service = service_addr(number);
        writeln!(rules, "-A KUBE-SERVICES -d {service}/32 -p tcp -m tcp --dport {PORT} -j KUBE-SVC-{number}")
            .expect("a string");
        let backends = backends_of(number, count, server);
        for (copy, backend) in backends.iter().enumerate() {
            writeln!(chains, ":KUBE-SEP-{number}-{copy} - [0:0]").expect("a string");
            let left = backends.len() - copy;
            let chance = match left {
                1 => String::new(),
                left => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
            };
            writeln!(
                rules,
                "-A KUBE-SVC-{number} {chance}-j KUBE-SEP-{number}-{copy}\n-A KUBE-SEP-{number}-{copy} -s {backend}/32 -j KUBE-MARK-MASQ\n-A KUBE-SEP-{number}-{copy} -p tcp -m tcp -j DNAT --to-destination {backend}:{PORT}"
            )
            .expect("a string");
        }
    }
    format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n{chains}-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n{rules}COMMIT\n"
    )
}

/// A node that routes between two pods.
fn routed() -> (Namespace, Namespace, Namespace, Addr) {
    let (node, client, server) = (Namespace::new(), Namespace::new(), Namespace::new());
    for (pod, device, number) in [(&client, "client", 2), (&server, "server", 3)] {
        node.ip(&format!("link add {device} type veth peer name eth0 netns {}", pod.path().display()));
        node.ip(&format!("addr add 10.99.{number}.1/24 dev {device}"));
        node.ip(&format!("link set {device} up"));
        pod.ip("link set lo up");
        pod.ip(&format!("addr add 10.99.{number}.2/24 dev eth0"));
        pod.ip("link set eth0 up");
        pod.ip(&format!("route add default via 10.99.{number}.1"));
    }
    node.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("root may"));
    (node, client, server, addr("10.99.3.2"))
}

fn ruled(rules: Rules, count: u32) -> Way {
    let (node, client, server, straight) = routed();
    rules.load(&node, &rules.text(count, straight));
    Way {
        name: format!("{} {count}", rules.name()),
        client,
        server,
        service: service_addr(count - 1).into(),
        straight,
        cgroup: None,
        _keep: Box::new(node),
    }
}

fn rate(way: &Way, to: Addr, time: Duration) -> f64 {
    enter_cgroup(way.cgroup.as_deref().unwrap_or(own_cgroup()));
    let rate = requests(Asks::New, &way.client, &way.server, SocketAddr::new(to.to_ip(), PORT), time);
    enter_cgroup(own_cgroup());
    rate
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn spread(values: &[f64]) -> String {
    let (least, most) = values
        .iter()
        .fold((f64::MAX, f64::MIN), |(least, most), value| (least.min(*value), most.max(*value)));
    format!("{:.3} ({least:.3}-{most:.3})", median(values))
}

fn crr(options: &Options) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut ways: Vec<Way> = [1, 1_000, MANY].map(|count| weft(count, &stop)).into();
    ways.extend(Rules::ALL.into_iter().flat_map(|rules| [1, MANY].map(|count| ruled(rules, count))));
    for way in &ways {
        tune(&way.client);
        tune(&way.server);
    }
    let mut rates = vec![(Vec::new(), Vec::new(), Vec::new()); ways.len()];
    for round in 0..options.rounds {
        let base = rate(&ways[0], ways[0].service, options.time);
        for (way, (to_service, to_pod, to_base)) in ways.iter().zip(&mut rates) {
            let before = rate(way, way.straight, options.time);
            let through = rate(way, way.service, options.time);
            let after = rate(way, way.straight, options.time);
            to_pod.push(2.0 * through / (before + after));
            to_base.push(through / base);
            to_service.push(through);
        }
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    stop.store(true, Ordering::Relaxed);
    println!("{:<16} {:>10} {:>24} {:>24}", "connections", "a second", "of the pod's address", "of weft 1");
    for (way, (to_service, to_pod, to_base)) in ways.iter().zip(&rates) {
        let middle = median(to_service);
        println!("{:<16} {middle:>10.0} {:>24} {:>24}", way.name, spread(to_pod), spread(to_base));
    }
}

fn program(options: &Options) {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let node = &mut fabric.nodes[0];
    let mut times = Vec::new();
    for _ in 0..options.rounds {
        node.plan.services = Default::default();
        node.apply();
        add_services(node, MANY, addr("10.244.1.9"));
        times.push(apply_timed(node).1.as_secs_f64() * 1e3);
    }
    println!("{MANY} services with {BACKENDS_EACH} backends each, from a ready plan: {} ms", spread(&times));
    let mut times = Vec::new();
    for _ in 0..options.rounds {
        node.open();
        times.push(apply_timed(node).1.as_secs_f64() * 1e3);
    }
    println!("the same by an agent that finds them in the kernel: {} ms", spread(&times));
    for rules in Rules::ALL {
        let (node, _client, _server, straight) = routed();
        let took = rules.load(&node, &rules.text(MANY, straight));
        println!("{}: {:.0} ms", rules.name(), took.as_secs_f64() * 1e3);
    }
}

fn change(_: &Options) {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let node = &mut fabric.nodes[0];
    add_services(node, MANY, addr("10.244.1.9"));
    node.apply();
    for (what, hashed) in [("cluster IPs", false), ("load balancers (by hash)", true)] {
        let times: Vec<f64> = (0..500u32)
            .map(|turn| {
                let number = turn * 17 % (MANY - 1);
                let mut backends = others(number);
                backends.extend((0..turn % 3).map(|extra| {
                    Backend::at(std::net::Ipv4Addr::from(0x0af6_0000 + turn + extra).into(), Port(PORT))
                }));
                backends.sort_by_key(|backend| (backend.addr, backend.port));
                let mut plan = service(number, backends.clone());
                if hashed {
                    let list = BackendList { id: ListId(1_000_000 + number), backends, elsewhere: false };
                    let (policy, forwarding) = (TrafficPolicy::Cluster, Forwarding::Snat);
                    plan.edge = Some(EdgePlan { list: Arc::new(list), policy, forwarding });
                }
                node.plan.services.insert(frontend(number), plan);
                apply_timed(node).1.as_secs_f64() * 1e3
            })
            .collect();
        say_times(&format!("one plan's change of {what}"), times);
    }
}

/// What the API says of a node and of services with a slice each.
fn snapshot() -> Snapshot {
    let settings = ClusterSettings {
        pod_cidrs: vec![cidr("10.244.0.0/15")],
        service_cidrs: vec![cidr("10.96.0.0/16")],
        ..ClusterSettings::default()
    };
    let mut snapshot = Snapshot { settings, ..Snapshot::default() };
    let node = ModelNode {
        name: NodeName::new("node1"),
        labels: BTreeMap::new(),
        addresses: vec![node_v4(1)],
        pod_cidrs: BTreeSet::from([cidr("10.244.1.0/24")]),
        ready: true,
        sctp: Default::default(),
    };
    snapshot.nodes.insert(node.name.clone(), node);
    for number in 0..MANY {
        let key = ServiceKey::new("bench", format!("s{number}"));
        let port = ServicePort {
            name: "http".to_owned(),
            protocol: Protocol::TCP,
            port: Port(PORT),
            target: TargetPort::Number(Port(PORT)),
            node_port: None,
            app_protocol: None,
        };
        let service = Service {
            cluster_ips: vec![service_addr(number).into()],
            ports: vec![port],
            ..Service::new(key.clone(), ServiceKind::ClusterIp)
        };
        snapshot.services.insert(key.clone(), service);
        snapshot.slices.insert(key.clone(), slice(key, &others(number)));
    }
    snapshot
}

fn slice(service: ServiceKey, backends: &[Backend]) -> EndpointSlice {
    let endpoint = |backend: &Backend| Endpoint {
        addresses: BTreeSet::from([backend.addr]),
        condition: EndpointCondition::Ready,
        hostname: None,
        node: Some(NodeName::new("node2")),
        zone: None,
        target: None,
        hints: Hints::default(),
        weight: Default::default(),
    };
    EndpointSlice {
        name: format!("{}-1", service.name),
        service,
        family: Family::V4,
        ports: vec![("http".to_owned(), Protocol::TCP, Port(PORT))],
        endpoints: backends.iter().map(endpoint).collect(),
    }
}

/// From a slice as parsed to the kernel's tables.
fn event(_: &Options) {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let node = &mut fabric.nodes[0];
    let mut snapshot = snapshot();
    let mut compiler = Compiler::new(NodeName::new("node1"));
    node.plan = compiler.compile(&snapshot).plan;
    node.apply();
    let times = (0..500u32).map(|turn| {
        let number = turn * 17 % MANY;
        let key = ServiceKey::new("bench", format!("s{number}"));
        let left = &others(number)[..1];
        let start = Instant::now();
        snapshot.slices.insert(key.clone(), slice(key, left));
        node.plan = compiler.compile(&snapshot).plan;
        let (report, _) = apply_timed(node);
        assert!(!report.is_unchanged(), "one of two endpoints has gone");
        start.elapsed().as_secs_f64() * 1e3
    });
    say_times("one endpoint gone, compiled and applied", times.collect());
}

fn say_times(what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[(times.len() as f64 * share) as usize];
    println!(
        "{what}, among {MANY} services: median {:.2} ms, p99 {:.2} ms, most {:.2} ms",
        at(0.5),
        at(0.99),
        times[times.len() - 1]
    );
}

fn main() {
    let options = options();
    let chosen = |name: &str| options.only.is_empty() || options.only.iter().any(|one| one == name);
    if chosen("change") {
        change(&options);
    }
    if chosen("event") {
        event(&options);
    }
    if chosen("program") {
        program(&options);
    }
    if chosen("crr") {
        crr(&options);
    }
    if chosen("nodeport") {
        node_port::run(&options);
    }
}
