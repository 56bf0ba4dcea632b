//! Whatever bytes come in: no panic, no answer that is not one, no memory that stays. `WEFT_FUZZ_CASES` sets how many messages
//! (1,000,000 if absent).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Name, RecordType};
use weft_model::{PodKey, Searching};
use weft_plan::{Absence, NameClient, NamePlan, NameRecords, SrvRecord};

use crate::forward::Forwarder;
use crate::metrics::Metrics;
use crate::plan::PlanHolder;
use crate::plan::tests::whole;
use crate::quick::{Look, Quick};
use crate::reply::{LARGEST_UDP, Transport};
use crate::serve::{Server, Step};

const CLIENT: &str = "10.244.0.9";
const NAMES: [&str; 20] = [
    ".",
    "cluster.local.",
    "svc.cluster.local.",
    "shop.svc.cluster.local.",
    "web.shop.svc.cluster.local.",
    "_http._tcp.web.shop.svc.cluster.local.",
    "many.shop.svc.cluster.local.",
    "out.shop.svc.cluster.local.",
    "loop.shop.svc.cluster.local.",
    "db.shop.svc.cluster.local.",
    "10-1-2-3.shop.pod.cluster.local.",
    "fd00--7.shop.pod.cluster.local.",
    "api.example.com.shop.svc.cluster.local.",
    "web.shop.svc.shop.svc.cluster.local.",
    "5.0.96.10.in-addr.arpa.",
    "0.96.10.in-addr.arpa.",
    "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa.",
    "web.shop.svc.clusterset.local.",
    "*.shop.svc.cluster.local.",
    "www.example.com.",
];
const KINDS: [u16; 12] = [1, 28, 33, 12, 6, 2, 5, 16, 255, 65, 252, 65400];

fn plan() -> NamePlan {
    let mut plan = NamePlan {
        domain: "cluster.local".to_owned(),
        set_domain: "clusterset.local".to_owned(),
        reverse: ["10.96.0.0/16", "fd00:10:96::/112"].map(|cidr| cidr.parse().unwrap()).into(),
        ..NamePlan::default()
    };
    for name in ["", "svc.", "shop.svc.", "_tcp.web.shop.svc."] {
        plan.names.insert(format!("{name}cluster.local"), NameRecords::default());
    }
    let web = "web.shop.svc.cluster.local".to_owned();
    plan.names.get_or_default(web.clone()).a.insert([10, 96, 0, 5].into());
    let srv = SrvRecord { priority: 0, weight: 100, port: 80, target: web.clone() };
    plan.names.get_or_default(format!("_http._tcp.{web}")).srv.insert(srv);
    let many = plan.names.get_or_default("many.shop.svc.cluster.local".to_owned());
    many.a.extend((0..200).map(|last| std::net::Ipv4Addr::new(10, 244, 0, last)));
    let alias = |plan: &mut NamePlan, name: &str, to: &str| {
        plan.names.get_or_default(format!("{name}.shop.svc.cluster.local")).cname = Some(to.to_owned());
    };
    alias(&mut plan, "out", "www.example.com");
    alias(&mut plan, "loop", "loop.shop.svc.cluster.local");
    let service = weft_model::ServiceKey::new("shop", "db");
    let absence = Absence::NoReadyEndpoints { service, not_ready: 1 };
    plan.absent.insert("db.shop.svc.cluster.local".to_owned(), absence);
    plan.pointers.get_or_default("10.96.0.5".parse().unwrap()).insert(web.clone());
    plan.pointers.get_or_default("fd00:10:96::5".parse().unwrap()).insert(web);
    let domains = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"];
    let searching = Searching { domains: domains.map(str::to_owned).to_vec(), ndots: 5 };
    let client = NameClient { pod: PodKey::new("shop", "client"), searching: Some(searching) };
    plan.clients.insert(CLIENT.parse().unwrap(), client);
    plan
}

/// Small and without a seed of its own: a failure is found again.
struct Draws(u64);

impl Draws {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % most.max(1)
    }
}

/// Good questions of all kinds, to be spoilt.
fn corpus() -> Vec<Vec<u8>> {
    let mut corpus = Vec::new();
    for (index, name) in NAMES.iter().enumerate() {
        for (place, kind) in KINDS.iter().enumerate() {
            let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
            message.metadata.recursion_desired = index % 3 > 0;
            message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::from(*kind)));
            if (index + place) % 2 == 0 {
                let mut edns = Edns::new();
                edns.set_max_payload([512, 1232, 4096, 0][place % 4]);
                if place % 3 == 0 {
                    edns.options_mut().insert(EdnsOption::Unknown(10, vec![7; 8]));
                }
                message.set_edns(edns);
            }
            corpus.push(message.to_vec().unwrap());
        }
    }
    corpus
}

fn spoil(message: &mut Vec<u8>, other: &[u8], draws: &mut Draws) {
    for _ in 0..=draws.below(4) {
        let at = draws.below(message.len());
        match draws.below(9) {
            0 => message.truncate(at),
            1 => message.insert(at, draws.below(256) as u8),
            2 if !message.is_empty() => _ = message.remove(at),
            3 => message.extend_from_slice(&other[draws.below(other.len())..]),
            // A compression pointer to anywhere.
            4 if at + 1 < message.len() => {
                message[at] = 0xc0 | draws.below(4) as u8;
                message[at + 1] = draws.below(256) as u8;
            }
            // Counts and flags.
            5 if message.len() >= 12 => {
                message[2 + draws.below(10)] = [0, 1, 2, 4, 0x80, 0xff][draws.below(6)]
            }
            6 if at < message.len() => message[at] ^= 1 << draws.below(8),
            7 if at < message.len() => message[at] = [0, 1, 12, 63, 64, 0x80, 0xc0, 0xff][draws.below(8)],
            _ if at < message.len() => message[at] = draws.below(256) as u8,
            _ => {}
        }
    }
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn cases() -> usize {
    let given = std::env::var("WEFT_FUZZ_CASES").ok();
    given.map_or(1_000_000, |text| text.parse().expect("WEFT_FUZZ_CASES is a number"))
}

/// Proves client.fuzz: A million spoilt questions: no panic, every answer decodes, fits and answers its question, and memory
/// stays.
#[tokio::test]
async fn no_message_breaks_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let plans = Arc::new(PlanHolder::new("cluster.local", directory.path().join("names")));
    plans.receive(&whole(&plan(), 1)[..]).unwrap();
    let server = Server::new(plans, Forwarder::asking(vec![], Arc::new(Metrics::default())));
    let mut quick = Quick::new(256 << 10, Instant::now());
    let client: IpAddr = CLIENT.parse().unwrap();
    let (corpus, mut draws) = (corpus(), Draws(41));
    let (mut out, mut room) = (Vec::new(), vec![0; 65_535]);
    let (mut answered, mut waiting, mut quickly) = (0usize, 0usize, 0usize);
    let cases = cases();
    let mut settled = 0;
    for case in 0..cases {
        if case == cases / 4 {
            settled = resident_kib();
        }
        let mut message = corpus[draws.below(corpus.len())].clone();
        spoil(&mut message, &corpus[draws.below(corpus.len())], &mut draws);
        let transport = [Transport::Udp, Transport::Tcp][draws.below(2)];
        if let Look::Written(written) =
            quick.look(&server, &message, (client, transport), Instant::now(), &mut room)
        {
            quickly += 1;
            check(&message, &room[..written.length], transport, case);
        }
        match server.step(&message, (client, transport), &mut out) {
            Step::Made(made) => {
                answered += 1;
                check(&message, &out, transport, case);
                quick.remember(&server, &message, client, &made, &out);
            }
            Step::Waits(_) => waiting += 1,
            Step::Ignored => {}
        }
    }
    let grown = resident_kib().saturating_sub(settled);
    assert!(grown < 32 << 10, "{grown} KiB more after {cases} messages");
    assert!(
        answered > cases / 2 && waiting > cases / 100 && quickly > cases / 500,
        "{answered} {waiting} {quickly}"
    );
}

fn check(message: &[u8], answer: &[u8], transport: Transport, case: usize) {
    assert!(
        answer.len() >= 12 && answer[..2] == message[..2] && answer[2] & 0x80 != 0,
        "case {case}: {message:?}"
    );
    let most = match transport {
        Transport::Udp => usize::from(LARGEST_UDP),
        Transport::Tcp => usize::from(u16::MAX),
    };
    assert!(answer.len() <= most, "case {case}: {} bytes for {message:?}", answer.len());
    // Decoding costs more than making: a part of them is enough to find a wrong form.
    if case.is_multiple_of(8) {
        Message::from_vec(answer).unwrap_or_else(|error| panic!("case {case}: {error}: {message:?}"));
    }
}
