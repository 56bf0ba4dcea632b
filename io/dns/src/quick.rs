//! The quick path: what was asked before is answered from ready bytes, without decoding a message or taking memory. Anything
//! else is `serve`'s, whose answers are kept here when they may be.

use std::net::IpAddr;
use std::time::Instant;

use crate::ready::{Answers, New, Seconds, Source};
use crate::reply::Transport;
use crate::serve::{Audience, Made, Server, Step};
use crate::wire::{self, Ages, Key, Ready};

/// Upstream answers are asked of the cache again after this, and after a part of their life: it counts uses, renews what is
/// popular before its end, and knows what is stale.
const LONGEST_COPY: u32 = 30;
const COPY_PART: u32 = 8;

/// Ready answers and what is needed to find them.
pub struct Quick {
    ready: Answers,
    key: Key,
    turn: u64,
    started: Instant,
    /// Room for an answer that is too long for its client.
    whole: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
pub struct Written {
    pub length: usize,
    pub kind: u16,
    pub code: u8,
    pub source: Source,
    pub truncated: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Look {
    Written(Written),
    Unknown,
}

impl Quick {
    pub fn new(ready_bytes: usize, started: Instant) -> Self {
        Self { ready: Answers::new(ready_bytes), key: Key::default(), turn: 1, started, whole: Vec::new() }
    }

    /// Writes the answer into `out`, which has room for every ready answer of that transport.
    pub fn look(
        &mut self,
        server: &Server,
        message: &[u8],
        (client, transport): (IpAddr, Transport),
        now: Instant,
        out: &mut [u8],
    ) -> Look {
        let Some(common) = wire::common(message, &mut self.key) else { return Look::Unknown };
        let place = self.ready.find(self.key.as_bytes()).or_else(|| {
            // Whether a name exists is the same for all; what else a question may mean is not.
            self.key.set_class(server.plans().class(client));
            self.ready.find(self.key.as_bytes())
        });
        let Some(entry) = place.and_then(|place| self.ready.at(place)) else { return Look::Unknown };
        let seconds = seconds(self.started, now);
        if entry.until <= seconds || !server.plans().holds(entry.dependency) {
            return Look::Unknown;
        }
        self.turn = next_turn(self.turn);
        let (age, turn) = (seconds.0 - entry.made.0, (self.turn >> 32) as usize);
        let (length, truncated) = if transport == Transport::Tcp || entry.answer.len() <= common.udp_limit {
            (entry.answer.write(message, &common, age, turn, out), false)
        } else {
            let cut = entry.answer.write_cut(message, &common, age, turn, &mut self.whole);
            let Some((length, truncated)) = cut else { return Look::Unknown };
            out[..length].copy_from_slice(&self.whole[..length]);
            (length, truncated)
        };
        let (kind, code, source) = (common.kind, entry.answer.code(), entry.source);
        Look::Written(Written { length, kind, code, source, truncated })
    }

    /// Keeps an answer for whoever asks the same.
    pub fn remember(&mut self, server: &Server, message: &[u8], client: IpAddr, made: &Made, answer: &[u8]) {
        let Some((ages, dependency)) = made.keep.ages() else { return };
        let Some(common) = wire::common(message, &mut self.key) else { return };
        let now = seconds(self.started, Instant::now());
        let ready = if common.upper_case || !made.is_whole() {
            let mut whole = Vec::new();
            let canonical = wire::canonical(message, &self.key);
            match server.step(&canonical, (client, Transport::Tcp), &mut whole) {
                Step::Made(again) if again.is_whole() && again.keep.ages() == Some((ages, dependency)) => {
                    Ready::new(&whole, ages)
                }
                _ => None,
            }
        } else {
            Ready::new(answer, ages)
        };
        let Some(answer) = ready else { return };
        let until = match ages {
            Ages::No => Seconds(u32::MAX),
            Ages::Yes => {
                let ttl = answer.shortest_ttl().unwrap_or_default();
                Seconds(now.0 + (ttl / COPY_PART).max(1).min(ttl).min(LONGEST_COPY))
            }
        };
        if until > now {
            if made.audience == Audience::Alike {
                self.key.set_class(server.plans().class(client));
            }
            let new = New { answer, made: now, until, dependency, source: made.source };
            self.ready.put(self.key.as_bytes(), new);
        }
    }
}

/// Xorshift: counting up, a client that asks two questions in turn would get the same start each time.
fn next_turn(turn: u64) -> u64 {
    let turn = turn ^ turn << 13;
    let turn = turn ^ turn >> 7;
    turn ^ turn << 17
}

fn seconds(started: Instant, now: Instant) -> Seconds {
    Seconds(u32::try_from(now.saturating_duration_since(started).as_secs()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
    use std::sync::Arc;

    use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use weft_model::{PodKey, Searching};
    use weft_plan::{NameClient, NamePlan, NameRecords, SrvRecord};

    use super::*;
    use crate::forward::Forwarder;
    use crate::metrics::Metrics;
    use crate::plan::PlanHolder;
    use crate::plan::tests::whole;

    /// A pod with a search list, and somebody else.
    const CLIENTS: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::new(10, 244, 0, 1)), IpAddr::V4(Ipv4Addr::new(10, 244, 0, 2))];
    const NAMES: [&str; 14] = [
        "many.example.test.shop.svc.cluster.local.",
        "web.shop.shop.svc.cluster.local.",
        "web.shop.svc.cluster.local.",
        "_http._tcp.web.shop.svc.cluster.local.",
        "many.shop.svc.cluster.local.",
        "few.shop.svc.cluster.local.",
        "shop.svc.cluster.local.",
        "near.shop.svc.cluster.local.",
        "nothing.shop.svc.cluster.local.",
        "cluster.local.",
        "5.0.96.10.in-addr.arpa.",
        "9.9.96.10.in-addr.arpa.",
        "10-244-0-7.shop.pod.cluster.local.",
        "many.example.test.",
    ];
    const KINDS: [u16; 8] = [1, 28, 33, 12, 6, 16, 255, 65];

    fn plan() -> NamePlan {
        let address = |last| Ipv4Addr::new(10, 96, 0, last);
        let web = "web.shop.svc.cluster.local".to_owned();
        let srv = SrvRecord { priority: 0, weight: 100, port: 80, target: web.clone() };
        let records = |names: &[(&str, NameRecords)]| -> Vec<(String, NameRecords)> {
            names.iter().map(|(name, records)| (format!("{name}cluster.local"), records.clone())).collect()
        };
        let addresses =
            |count| NameRecords { a: (0..count).map(address).collect(), ..NameRecords::default() };
        let near =
            NameRecords { cname: Some("few.shop.svc.cluster.local".to_owned()), ..NameRecords::default() };
        let port = NameRecords { srv: [srv].into(), ..NameRecords::default() };
        let searching = Searching {
            domains: ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"]
                .map(str::to_owned)
                .into(),
            ndots: 5,
        };
        let client = NameClient { pod: PodKey::new("shop", "a"), searching: Some(searching) };
        NamePlan {
            domain: "cluster.local".to_owned(),
            clients: [(CLIENTS[0].into(), client)].into(),
            reverse: BTreeSet::from(["10.96.0.0/16".parse().unwrap()]),
            names: records(&[
                ("", NameRecords::default()),
                ("svc.", NameRecords::default()),
                ("shop.svc.", NameRecords::default()),
                ("web.shop.svc.", addresses(1)),
                ("_tcp.web.shop.svc.", NameRecords::default()),
                ("_http._tcp.web.shop.svc.", port),
                ("many.shop.svc.", addresses(90)),
                ("few.shop.svc.", addresses(5)),
                ("near.shop.svc.", near),
            ])
            .into_iter()
            .collect(),
            ..NamePlan::default()
        }
    }

    /// Five addresses for every name.
    fn upstream() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, client)) = socket.recv_from(&mut buffer) {
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let asked = query.queries[0].clone();
                let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
                for last in 1..6 {
                    let data = RData::A(A(Ipv4Addr::new(192, 0, 2, last)));
                    if asked.query_type() == RecordType::A {
                        reply.add_answer(Record::from_rdata(asked.name().clone(), 600, data));
                    }
                }
                reply.add_query(asked);
                socket.send_to(&reply.to_vec().unwrap(), client).unwrap();
            }
        });
        address
    }

    struct Draws(u64);

    impl Draws {
        fn below(&mut self, most: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % most
        }

        fn question(&mut self) -> Vec<u8> {
            let mut message = Message::query();
            message.metadata.id = self.below(1 << 16) as u16;
            message.metadata.recursion_desired = self.below(4) > 0;
            message.metadata.checking_disabled = self.below(4) == 0;
            message.metadata.authentic_data = self.below(4) == 0;
            let name: String = NAMES[self.below(NAMES.len())].to_owned();
            let name: String = match self.below(3) {
                0 => name
                    .chars()
                    .map(|c| if self.below(2) == 0 { c.to_ascii_uppercase() } else { c })
                    .collect(),
                _ => name,
            };
            let kind = RecordType::from(KINDS[self.below(KINDS.len())]);
            message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
            if self.below(3) > 0 {
                let mut edns = Edns::new();
                edns.set_max_payload([512, 1232, 4096, 0][self.below(4)]).set_dnssec_ok(self.below(3) == 0);
                message.set_edns(edns);
            }
            message.to_vec().unwrap()
        }

        fn mutate(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
            for _ in 0..self.below(4) {
                let at = self.below(bytes.len());
                bytes[at] = self.below(256) as u8;
            }
            match self.below(8) {
                0 => bytes.truncate(self.below(bytes.len())),
                1 => bytes.push(self.below(256) as u8),
                _ => {}
            }
            bytes
        }
    }

    /// What must be the same: everything but the order of addresses, and a lifetime that is as old as a copy may be.
    fn compare(quick: &[u8], general: &[u8], question: &[u8]) {
        assert_eq!(quick[..2], question[..2]);
        let message = |bytes| Message::from_vec(bytes).unwrap();
        let (quick, general) = (message(quick), message(general));
        assert_eq!(quick.metadata, general.metadata);
        assert_eq!(quick.edns, general.edns);
        let spelled = |message: &Message| message.queries[0].name().to_ascii();
        assert_eq!(spelled(&quick), spelled(&general), "the spelling is the client's");
        assert_eq!(quick.queries, general.queries);
        if quick.metadata.truncation {
            // Which addresses are left out is chance, as their order is.
            return assert_eq!(quick.answers.len(), general.answers.len());
        }
        for (quick, general) in [
            (&quick.answers, &general.answers),
            (&quick.authorities, &general.authorities),
            (&quick.additionals, &general.additionals),
        ] {
            let rows = |records: &[Record]| -> Vec<String> {
                let mut rows: Vec<_> = records
                    .iter()
                    .map(|record| format!("{} {}", record.name, record.data).to_lowercase())
                    .collect();
                rows.sort();
                rows
            };
            assert_eq!(rows(quick), rows(general));
            let ttl = |records: &[Record]| records.iter().map(|record| record.ttl).min().unwrap_or_default();
            assert!(ttl(quick).abs_diff(ttl(general)) <= LONGEST_COPY, "{} {}", ttl(quick), ttl(general));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn quick_answers_are_what_the_general_path_says() {
        let dir = tempfile::tempdir().unwrap();
        let plans = Arc::new(PlanHolder::new("cluster.local", dir.path().join("names")));
        plans.receive(&whole(&plan(), 1)[..]).unwrap();
        let forwarder = Forwarder::asking(vec![upstream()], Arc::new(Metrics::default()));
        let server = Server::new(plans, forwarder);
        let mut quick = Quick::new(1 << 20, Instant::now());
        let mut draws = Draws(11);
        let (mut out, mut room) = (Vec::new(), vec![0; 65_535]);
        let (mut quickly, mut truncated, mut cut, mut wrong) = (0, 0, 0, 0);
        for number in 0..60_000 {
            let question = draws.question();
            let question = if number % 3 == 0 { draws.mutate(question) } else { question };
            let client = CLIENTS[draws.below(2)];
            let from = (client, [Transport::Udp, Transport::Tcp][draws.below(2)]);
            let look = quick.look(&server, &question, from, Instant::now(), &mut room);
            let step = server.step(&question, from, &mut out);
            match (look, step) {
                (Look::Written(written), Step::Made(made)) => {
                    compare(&room[..written.length], &out, &question);
                    cut += usize::from(written.truncated);
                    assert_eq!((u16::from(written.code), written.source), (made.code.into(), made.source));
                    quickly += 1;
                }
                (Look::Written(_), _) => panic!("the general path has no answer to {question:?}"),
                (Look::Unknown, Step::Made(made)) => {
                    truncated += usize::from(!made.is_whole());
                    wrong += usize::from(made.source == Source::Message);
                    quick.remember(&server, &question, client, &made, &out);
                }
                (Look::Unknown, Step::Waits(waiting)) => _ = server.finish(*waiting, &mut out).await,
                (Look::Unknown, Step::Ignored) => {}
            }
        }
        let counts = [quickly, truncated, cut, wrong];
        assert!(quickly > 25_000 && truncated > 10 && cut > 300 && wrong > 3000, "{counts:?}");
    }

    #[tokio::test]
    async fn a_new_plan_makes_ready_answers_anew_and_addresses_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let plans = Arc::new(PlanHolder::new("cluster.local", dir.path().join("names")));
        plans.receive(&whole(&plan(), 1)[..]).unwrap();
        let server = Server::new(plans.clone(), Forwarder::asking(vec![], Arc::new(Metrics::default())));
        let mut quick = Quick::new(1 << 20, Instant::now());
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(NAMES[5]).unwrap(), RecordType::A));
        let question = message.to_vec().unwrap();
        let (mut out, mut room) = (Vec::new(), vec![0; 4096]);
        let from = (CLIENTS[1], Transport::Udp);
        let Step::Made(made) = server.step(&question, from, &mut out) else { panic!() };
        quick.remember(&server, &question, from.0, &made, &out);
        let mut starts = BTreeSet::new();
        for _ in 0..200 {
            let look = quick.look(&server, &question, from, Instant::now(), &mut room);
            let Look::Written(written) = look else { panic!() };
            let reply = Message::from_vec(&room[..written.length]).unwrap();
            starts.insert(reply.answers[0].data.to_string());
        }
        assert_eq!(starts.len(), 5, "each address comes first at times");
        plans.receive(&whole(&NamePlan { names: Default::default(), ..plan() }, 2)[..]).unwrap();
        assert!(matches!(quick.look(&server, &question, from, Instant::now(), &mut room), Look::Unknown));
    }
}
