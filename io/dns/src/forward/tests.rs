//! The forwarder against servers of paper, on a clock that stands still unless everybody waits.

use std::collections::HashMap;
use std::io;
use std::sync::{OnceLock, Weak};

use hickory_proto::op::{Message, OpCode, Query};
use tokio::time::{Instant as Clock, advance, sleep};

use super::*;
use crate::entry::tests::{address, key, soa};
use crate::exchange::{Asking, Problem};
use crate::upstreams::Health;

const FIRST: &str = "192.0.2.1:53";
const SECOND: &str = "192.0.2.2:53";

#[derive(Clone, Copy)]
enum Does {
    Answers {
        after_millis: u64,
        ttl: u32,
    },
    /// No such name.
    Denies,
    Fails(ResponseCode),
    Refuses,
    Silent,
    /// Asks the one who asked.
    LeadsBack,
}

const QUICK: Does = Does::Answers { after_millis: 20, ttl: 60 };

/// Upstream servers, and what they were asked.
#[derive(Default)]
struct Servers {
    does: Mutex<HashMap<String, Does>>,
    asked: Mutex<Vec<(String, String)>>,
    forwarder: OnceLock<Weak<Forwarder>>,
}

impl Servers {
    fn set(&self, server: &str, does: Does) {
        lock(&self.does).insert(server.to_owned(), does);
    }

    /// How often a server was asked for a name, probes left out.
    fn asked(&self, server: &str, name: &str) -> usize {
        lock(&self.asked).iter().filter(|asked| asked.0 == server && asked.1 == name).count()
    }

    async fn answer(&self, server: String, key: &Key) -> Result<Message, Problem> {
        lock(&self.asked).push((server.clone(), key.name.to_ascii()));
        let mut message = Message::response(1, OpCode::Query);
        message.add_query(Query::query(key.name.clone(), key.kind));
        message.metadata.authentic_data = true;
        let does = lock(&self.does).get(&server).copied().unwrap_or(Does::Silent);
        match does {
            Does::Answers { after_millis, ttl } => {
                sleep(Duration::from_millis(after_millis)).await;
                message.add_answer(address(&key.name.to_ascii(), ttl));
            }
            Does::Denies => {
                message.metadata.response_code = ResponseCode::NXDomain;
                message.authorities = vec![soa(".", 60, 60)];
            }
            Does::Fails(code) => message.metadata.response_code = code,
            Does::Refuses => return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into()),
            Does::Silent => std::future::pending().await,
            Does::LeadsBack => {
                let forwarder = self.forwarder.get().and_then(Weak::upgrade).unwrap();
                let hit = Box::pin(forwarder.resolve(key.clone())).await;
                message.metadata.response_code = hit.code();
            }
        }
        Ok(message)
    }
}

impl Exchange for Arc<Servers> {
    fn ask<'a>(&'a self, upstream: &'a Upstream, key: &'a Key) -> Asking<'a> {
        Box::pin(self.answer(upstream.server.address.to_string(), key))
    }
}

impl Forwarder {
    /// For tests elsewhere: with these servers, over real sockets.
    pub fn asking(servers: Vec<SocketAddr>, metrics: Arc<Metrics>) -> Arc<Self> {
        Self::new(Settings::with_servers(servers), vec![], Box::new(crate::exchange::Sockets), metrics)
            .unwrap()
    }
}

fn both(policy: &str) -> Settings {
    let text =
        "forward: [{zones: [.], servers: [{address: 192.0.2.1}, {address: 192.0.2.2}], policy: POLICY}]";
    Settings::parse(&text.replace("POLICY", policy)).unwrap()
}

fn start(settings: Settings) -> (Arc<Forwarder>, Arc<Servers>) {
    let servers = Arc::new(Servers::default());
    let metrics = Arc::new(Metrics::default());
    let forwarder = Forwarder::new(settings, vec![], Box::new(servers.clone()), metrics).unwrap();
    servers.forwarder.set(Arc::downgrade(&forwarder)).unwrap();
    (forwarder, servers)
}

async fn ask(forwarder: &Arc<Forwarder>, name: &str) -> Hit {
    match forwarder.cached(&key(name)) {
        Some(hit) => hit,
        None => forwarder.resolve(key(name)).await,
    }
}

fn said(hit: &Hit) -> String {
    hit.explanation().map(|explanation| explanation.text).unwrap_or_default()
}

async fn pass(seconds: u64) {
    advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn equal_questions_under_way_cost_one_upstream_question() {
    let (forwarder, servers) = start(both("sequential"));
    servers.set(FIRST, QUICK);
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..100 {
        let forwarder = forwarder.clone();
        let name = if number % 2 == 0 { "a.example." } else { "A.EXAMPLE." };
        asking.spawn(async move { ask(&forwarder, name).await.counts() });
    }
    assert!(asking.join_all().await.iter().all(|counts| *counts == (1, 0)));
    assert_eq!(servers.asked(FIRST, "a.example.") + servers.asked(FIRST, "A.EXAMPLE."), 1);
    assert_eq!((forwarder.metrics.upstream_queries.get(), forwarder.metrics.upstream_shared.get()), (1, 99));
    let other = Key { dnssec_ok: true, ..key("a.example.") };
    forwarder.resolve(other).await;
    assert_eq!(forwarder.metrics.upstream_queries.get(), 2, "answers with signatures are others");
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_passed_over_until_it_answers_a_probe() {
    let (forwarder, servers) = start(both("sequential"));
    servers.set(SECOND, QUICK);
    for name in ["a.example.", "b.example."] {
        assert_eq!(ask(&forwarder, name).await.counts(), (1, 0), "{name}");
    }
    let health = |forwarder: &Forwarder| forwarder.status()[0].health;
    assert_eq!(health(&forwarder), Health::Down);
    assert_eq!(forwarder.status()[0].problem.as_deref(), Some("no answer within 1500 ms"));
    ask(&forwarder, "c.example.").await;
    assert_eq!((servers.asked(FIRST, "c.example."), servers.asked(SECOND, "c.example.")), (0, 1));
    servers.set(FIRST, QUICK);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(health(&forwarder), Health::Up);
    let probes = servers.asked(FIRST, ".");
    assert!((1..6).contains(&probes), "{probes} probes");
    ask(&forwarder, "d.example.").await;
    assert_eq!(servers.asked(FIRST, "d.example."), 1);
}

#[tokio::test(start_paused = true)]
async fn when_nobody_answers_the_client_is_told_before_it_gives_up() {
    let (forwarder, servers) = start(both("sequential"));
    let started = Clock::now();
    let hit = ask(&forwarder, "a.example.").await;
    assert_eq!(hit.code(), ResponseCode::ServFail);
    assert_eq!(started.elapsed(), Duration::from_millis(4500));
    assert!(said(&hit).contains("192.0.2.1:53: no answer within 1500 ms"), "{}", said(&hit));
    assert_eq!((servers.asked(FIRST, "a.example."), servers.asked(SECOND, "a.example.")), (2, 1));
    // All are down: they are asked all the same, and the first to answer is up again.
    servers.set(SECOND, Does::Refuses);
    servers.set(FIRST, QUICK);
    assert_eq!(ask(&forwarder, "b.example.").await.counts(), (1, 0));
    assert_eq!(forwarder.status()[0].health, Health::Up);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_no_illness_and_the_others_are_asked_once_each() {
    let (forwarder, servers) = start(both("sequential"));
    servers.set(FIRST, Does::Fails(ResponseCode::ServFail));
    servers.set(SECOND, QUICK);
    assert_eq!(ask(&forwarder, "a.example.").await.counts(), (1, 0));
    servers.set(SECOND, Does::Fails(ResponseCode::Refused));
    let hit = ask(&forwarder, "b.example.").await;
    assert_eq!(hit.code(), ResponseCode::ServFail);
    assert!(said(&hit).contains("192.0.2.2:53: answered Query Refused"), "{}", said(&hit));
    assert_eq!((servers.asked(FIRST, "b.example."), servers.asked(SECOND, "b.example.")), (1, 1));
    assert!(forwarder.status().iter().all(|status| status.health == Health::Up && status.failures == 0));
    // A failure is remembered for a moment (RFC 9520), a denial for as long as it says.
    ask(&forwarder, "b.example.").await;
    assert_eq!(servers.asked(FIRST, "b.example."), 1);
    servers.set(FIRST, Does::Denies);
    pass(1).await;
    assert_eq!(ask(&forwarder, "b.example.").await.code(), ResponseCode::NXDomain);
    pass(59).await;
    assert_eq!(ask(&forwarder, "b.example.").await.counts(), (0, 1));
    assert_eq!(servers.asked(FIRST, "b.example."), 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_past_its_time_serves_while_nobody_answers() {
    let (forwarder, servers) = start(both("sequential"));
    servers.set(FIRST, QUICK);
    ask(&forwarder, "a.example.").await;
    servers.set(FIRST, Does::Silent);
    servers.set(SECOND, Does::Refuses);
    pass(60).await;
    let started = Clock::now();
    let hit = ask(&forwarder, "a.example.").await;
    assert_eq!((hit.freshness, started.elapsed()), (Freshness::Stale, CLIENT_WAIT));
    let answer = hit.answer(&key("a.example.").name, now());
    assert_eq!((answer.code, answer.answers[0].ttl), (ResponseCode::NoError, 30));
    assert_eq!(hit.explanation().unwrap().code, 3, "the extended error Stale Answer");
    sleep(Duration::from_secs(4)).await;
    // The question has failed meanwhile: it is answered at once and not asked again for a while.
    let asked = servers.asked(FIRST, "a.example.");
    assert_eq!(forwarder.cached(&key("a.example.")).unwrap().freshness, Freshness::Stale);
    assert_eq!(servers.asked(FIRST, "a.example."), asked);
    // Then it is, and nobody waits for servers that are known to be down.
    assert!(forwarder.table().zones().all(|zone| zone.group.nobody_is_up()));
    pass(10).await;
    let started = Clock::now();
    assert_eq!(ask(&forwarder, "a.example.").await.freshness, Freshness::Stale);
    assert_eq!(started.elapsed(), Duration::ZERO);
    // What was never known cannot be answered.
    assert_eq!(ask(&forwarder, "b.example.").await.code(), ResponseCode::ServFail);
    servers.set(FIRST, QUICK);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(ask(&forwarder, "a.example.").await.freshness, Freshness::Fresh);
}

#[tokio::test(start_paused = true)]
async fn a_popular_answer_is_fetched_before_its_time_is_over_and_nobody_waits() {
    let (forwarder, servers) = start(both("sequential"));
    servers.set(FIRST, QUICK);
    for name in ["popular.example.", "rare.example."] {
        ask(&forwarder, name).await;
    }
    pass(55).await;
    for _ in 0..20 {
        assert!(forwarder.cached(&key("popular.example.")).is_some());
    }
    forwarder.cached(&key("rare.example."));
    sleep(Duration::from_secs(1)).await;
    assert_eq!([servers.asked(FIRST, "popular.example."), servers.asked(FIRST, "rare.example.")], [2, 1]);
    assert_eq!(forwarder.metrics.prefetched.get(), 1);
    pass(10).await;
    assert!(forwarder.cached(&key("popular.example.")).is_some(), "though its first answer is over");
    assert!(forwarder.cached(&key("rare.example.")).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_does_not_take_away_a_good_answer() {
    let (forwarder, servers) = start(both("sequential"));
    servers.set(FIRST, QUICK);
    ask(&forwarder, "popular.example.").await;
    servers.set(FIRST, Does::Fails(ResponseCode::ServFail));
    servers.set(SECOND, Does::Fails(ResponseCode::ServFail));
    pass(55).await;
    for _ in 0..20 {
        ask(&forwarder, "popular.example.").await;
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(servers.asked(FIRST, "popular.example."), 2);
    assert_eq!(ask(&forwarder, "popular.example.").await.freshness, Freshness::Fresh);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_leads_back_is_found_named_and_not_asked() {
    let (forwarder, servers) = start(both("sequential"));
    servers.set(FIRST, Does::LeadsBack);
    servers.set(SECOND, QUICK);
    tokio::spawn(watch::look_for_loops(Arc::downgrade(&forwarder)));
    sleep(Duration::from_secs(5)).await;
    let health: Vec<_> = forwarder.status().iter().map(|status| status.health).collect();
    assert_eq!(health, [Health::Loop, Health::Up]);
    assert!(forwarder.status()[0].problem.as_ref().unwrap().contains("comes back to this name server"));
    ask(&forwarder, "a.example.").await;
    assert_eq!((servers.asked(FIRST, "a.example."), servers.asked(SECOND, "a.example.")), (0, 1));
    servers.set(SECOND, Does::LeadsBack);
    sleep(Duration::from_secs(300)).await;
    let hit = ask(&forwarder, "b.example.").await;
    assert_eq!((hit.code(), said(&hit)), (ResponseCode::ServFail, LOOP.to_owned()));
    servers.set(FIRST, QUICK);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(ask(&forwarder, "b.example.").await.counts(), (1, 0));
    assert_eq!(forwarder.status()[0].health, Health::Up);
}

const STUB: &str = "
forward:
- {zones: [.], servers: [{address: 192.0.2.1}]}
- {zones: [corp.example], servers: [{address: 192.0.2.2}]}
hosts: [{address: 192.0.2.9, names: [fixed.example]}]
";

#[tokio::test(start_paused = true)]
async fn other_settings_take_force_at_once_and_keep_what_they_do_not_change() {
    let (forwarder, servers) = start(Settings::parse(STUB).unwrap());
    servers.set(FIRST, QUICK);
    servers.set(SECOND, QUICK);
    servers.set("192.0.2.3:53", QUICK);
    for name in ["a.example.", "a.corp.example.", "fixed.example."] {
        assert_eq!(ask(&forwarder, name).await.counts(), (1, 0), "{name}");
    }
    assert_eq!((servers.asked(FIRST, "a.corp.example."), servers.asked(FIRST, "fixed.example.")), (0, 0));
    let wrong = Settings { ttl: 100_000, ..both("random") };
    assert!(forwarder.apply(wrong).is_err());
    assert_eq!(forwarder.status().len(), 2, "those before stay in force");
    let changed = STUB.replace("192.0.2.2", "192.0.2.3").replace("192.0.2.9", "192.0.2.10");
    forwarder.apply(Settings::parse(&changed).unwrap()).unwrap();
    assert!(forwarder.cached(&key("a.example.")).is_some());
    assert!(forwarder.cached(&key("a.corp.example.")).is_none());
    ask(&forwarder, "a.corp.example.").await;
    assert_eq!(servers.asked("192.0.2.3:53", "a.corp.example."), 1);
    let fixed = ask(&forwarder, "fixed.example.").await.answer(&key("fixed.example.").name, now());
    assert_eq!(fixed.answers[0].data.to_string(), "192.0.2.10");
    let first = forwarder.status().into_iter().find(|status| status.address == FIRST).unwrap();
    assert_eq!(first.queries, 1, "what is known of a server survives");
}

#[tokio::test(start_paused = true)]
async fn a_name_nobody_is_set_for_is_refused_and_the_checked_bit_of_udp_is_not_believed() {
    let (forwarder, servers) = start(
        Settings::parse("forward: [{zones: [corp.example], servers: [{address: 192.0.2.1}]}]").unwrap(),
    );
    servers.set(FIRST, QUICK);
    assert_eq!(ask(&forwarder, "a.example.").await.code(), ResponseCode::Refused);
    let hit = ask(&forwarder, "corp.example.").await;
    assert_eq!((hit.code(), hit.authenticated()), (ResponseCode::NoError, false));
}
