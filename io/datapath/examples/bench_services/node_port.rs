//! Requests from outside the cluster to a node port, beside nft in the layout that kube-proxy programs and beside loopback.
//! Both have two nodes and an outside machine on one bridge, and a pod on each node.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use weft_model::{Addr, Forwarding, Port, Protocol, Routing, ServiceKey, TrafficPolicy};
use weft_plan::{Backend, EdgePlan, Exposure, Frontend, ServiceId, ServicePlan};

use crate::support::{Fabric, Namespace, Node, addr, node_v4};
use crate::{Asks, Options, PORT, Rules, median, requests, spread, tune};

const NEAR: u16 = 30080;
const FAR: u16 = 30081;
const FAR_DIRECT_RETURN: u16 = 30082;

/// A client outside and a server that answers what it asks of `to`.
struct Ends {
    client: Namespace,
    server: Namespace,
    to: SocketAddr,
}

impl Ends {
    fn rate(&self, asks: Asks, time: Duration) -> f64 {
        requests(asks, &self.client, &self.server, self.to, time)
    }

    /// Who the server sees, which tells the ways apart.
    fn seen_by_server(&self) -> Addr {
        let listener = self.server.run(|| TcpListener::bind(("::", PORT)).expect("a free port"));
        let to = self.to;
        let stream = self.client.run(move || TcpStream::connect(to).expect("the server listens"));
        let (_, peer) = listener.accept().expect("the client connects");
        drop(stream);
        Addr::from(peer.ip())
    }
}

/// Two nodes of one kind, with a pod each; requests enter at the first.
struct Cluster {
    outside: Namespace,
    near: Namespace,
    far: Namespace,
    _keep: Box<dyn std::any::Any>,
}

impl Cluster {
    fn ends(&self, port: u16) -> Ends {
        let server = if port == NEAR { &self.near } else { &self.far };
        let to = SocketAddr::new(node_v4(1).to_ip(), port);
        Ends { client: self.outside.clone(), server: server.clone(), to }
    }
}

fn expose(node: &mut Node, port: u16, backend: Addr, forwarding: Forwarding) {
    let key = ServiceKey::new("bench", format!("port-{port}"));
    let backends = vec![Backend::at(backend, Port(PORT))];
    let mut plan = ServicePlan::cluster_ip(ServiceId(port.into()), key, backends);
    plan.exposure = Exposure::NodePort;
    let list = Arc::clone(&plan.list);
    plan.edge = Some(EdgePlan { list, policy: TrafficPolicy::Cluster, forwarding });
    let frontend = Frontend { addr: addr("0.0.0.0"), protocol: Protocol::TCP, port: Port(port) };
    node.plan.services.insert(frontend, plan);
}

fn weft(stop: &Arc<AtomicBool>) -> Cluster {
    let mut fabric = Fabric::new(2, Routing::Direct);
    let near = fabric.nodes[0].add_pod(2);
    let far = fabric.nodes[1].add_pod(2);
    for node in &mut fabric.nodes {
        expose(node, NEAR, near.v4, Forwarding::Snat);
        expose(node, FAR, far.v4, Forwarding::Snat);
        expose(node, FAR_DIRECT_RETURN, far.v4, Forwarding::Dsr);
    }
    fabric.apply_all();
    for node in &fabric.nodes {
        crate::read_events(node, stop);
    }
    Cluster {
        outside: fabric.outside.clone(),
        near: near.namespace.clone(),
        far: far.namespace.clone(),
        _keep: Box::new((fabric, near, far)),
    }
}

/// A verdict map of node ports, from which a chain marks for masquerading, one chooses an endpoint and one translates.
fn nft_rules(services: &[(u16, Addr)]) -> String {
    let (mut chains, mut elements) = (String::new(), String::new());
    for (port, backend) in services {
        chains.push_str(&format!(
            " chain endpoint-{port} {{ ip saddr {backend} jump mark-for-masquerade
  meta l4proto tcp dnat to {backend}:{PORT}; }}
 chain service-{port} {{ numgen random mod 1 vmap {{ 0 : goto endpoint-{port} }}; }}
 chain external-{port} {{ jump mark-for-masquerade; goto service-{port}; }}\n"
        ));
        elements.push_str(&format!("tcp . {port} : goto external-{port}, "));
    }
    format!(
        "table ip kube-proxy {{
 chain mark-for-masquerade {{ meta mark set mark or 0x4000; }}
{chains} set nodeport-ips {{ type ipv4_addr; elements = {{ {}, {} }}; }}
 map service-nodeports {{ type inet_proto . inet_service : verdict; elements = {{ {elements} }}; }}
 chain services {{ ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports; }}
 chain masquerading {{ mark and 0x4000 == 0 return; meta mark set mark xor 0x4000; masquerade fully-random; }}
 chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
 chain nat-output {{ type nat hook output priority -100; jump services; }}
 chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
}}\n",
        node_v4(1),
        node_v4(2)
    )
}

fn nft() -> Cluster {
    let outside = Namespace::new();
    outside.ip("link add br0 type bridge");
    outside.ip("addr add 172.30.0.1/24 dev br0");
    outside.ip("link set br0 up");
    let pod_addr = |number: u8| addr(&format!("10.99.{number}.2"));
    let rules = nft_rules(&[(NEAR, pod_addr(1)), (FAR, pod_addr(2))]);
    let [(node, near), (other_node, far)] = [1u8, 2].map(|number| {
        let (node, pod, other) = (Namespace::new(), Namespace::new(), 3 - number);
        outside
            .ip(&format!("link add port{number} type veth peer name eth0 netns {}", node.path().display()));
        outside.ip(&format!("link set port{number} master br0 up"));
        node.ip(&format!("addr add {}/24 dev eth0", node_v4(number)));
        node.ip("link set eth0 up");
        node.ip(&format!("link add pod type veth peer name eth0 netns {}", pod.path().display()));
        node.ip(&format!("addr add 10.99.{number}.1/24 dev pod"));
        node.ip("link set pod up");
        node.ip(&format!("route add 10.99.{other}.0/24 via {}", node_v4(other)));
        pod.ip(&format!("addr add {}/24 dev eth0", pod_addr(number)));
        pod.ip("link set eth0 up");
        pod.ip(&format!("route add default via 10.99.{number}.1"));
        node.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("root may"));
        Rules::Nft.load(&node, &rules);
        (node, pod)
    });
    Cluster { outside, near, far, _keep: Box::new((node, other_node)) }
}

fn loopback() -> Ends {
    let alone = Namespace::new();
    alone.ip("link set lo up");
    Ends { client: alone.clone(), server: alone, to: SocketAddr::new(addr("127.0.0.1").to_ip(), PORT) }
}

/// One way and what it is compared with, in one round after the other.
struct Comparison {
    name: &'static str,
    asks: Asks,
    weft: Ends,
    nft: Ends,
    rates: [Vec<f64>; 3],
    to_nft: Vec<f64>,
    to_loopback: Vec<f64>,
    nft_to_loopback: Vec<f64>,
}

impl Comparison {
    /// Each sample between two of what it is compared with.
    fn round(&mut self, loopback: &Ends, time: Duration) {
        let rate = |ends: &Ends| ends.rate(self.asks, time);
        let [base, nft, weft, nft_again, base_again] =
            [rate(loopback), rate(&self.nft), rate(&self.weft), rate(&self.nft), rate(loopback)];
        let (base, nft) = ((base + base_again) / 2.0, (nft + nft_again) / 2.0);
        self.to_nft.push(weft / nft);
        self.to_loopback.push(weft / base);
        self.nft_to_loopback.push(nft / base);
        for (list, rate) in self.rates.iter_mut().zip([weft, nft, base]) {
            list.push(rate);
        }
    }

    fn say(&self) {
        let asks = match self.asks {
            Asks::New => "new",
            Asks::Kept => "kept",
        };
        let [weft, nft, base] = self.rates.each_ref().map(|list| median(list));
        println!(
            "{:<16} {asks:<5} {weft:>8.0} {nft:>8.0} {base:>9.0} {:>22} {:>22} {:>22}",
            self.name,
            spread(&self.to_nft),
            spread(&self.to_loopback),
            spread(&self.nft_to_loopback)
        );
    }
}

/// The bridge stands for a switch, which has no netfilter.
fn be_a_switch(outside: &Namespace) {
    outside.run(|| {
        let path = std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
        if path.exists() {
            std::fs::write(path, "0").expect("root may");
        }
    });
}

pub fn run(options: &Options) {
    let stop = Arc::new(AtomicBool::new(false));
    let (weft, nft, loopback) = (weft(&stop), nft(), loopback());
    for cluster in [&weft, &nft] {
        be_a_switch(&cluster.outside);
        for namespace in [&cluster.outside, &cluster.near, &cluster.far] {
            tune(namespace);
        }
    }
    tune(&loopback.client);
    let ways = [
        ("same node", NEAR, NEAR),
        ("other node, SNAT", FAR, FAR),
        ("other node, DSR", FAR_DIRECT_RETURN, FAR),
    ];
    let mut comparisons = Vec::new();
    for (name, port, nft_port) in ways {
        let (weft_sees, nft_sees) = (weft.ends(port).seen_by_server(), nft.ends(nft_port).seen_by_server());
        println!("{name}: the server sees {weft_sees}, with nft {nft_sees}");
        comparisons.extend([Asks::New, Asks::Kept].map(|asks| Comparison {
            name,
            asks,
            weft: weft.ends(port),
            nft: nft.ends(nft_port),
            rates: Default::default(),
            to_nft: Vec::new(),
            to_loopback: Vec::new(),
            nft_to_loopback: Vec::new(),
        }));
    }
    for round in 0..options.rounds {
        for comparison in &mut comparisons {
            comparison.round(&loopback, options.time);
        }
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    stop.store(true, Ordering::Relaxed);
    println!(
        "{:<16} {:<5} {:>8} {:>8} {:>9} {:>22} {:>22} {:>22}",
        "node port", "", "weft/s", "nft/s", "loopback/s", "weft/nft", "weft/loopback", "nft/loopback"
    );
    for comparison in &comparisons {
        comparison.say();
    }
}
