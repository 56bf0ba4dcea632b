//! What is known of one upstream server, and in which order several are asked. Time and chance are arguments; asking
//! lives in `forward`, sockets in `exchange`.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::exchange::Line;
use crate::metrics::Counter;
use crate::settings::Server;

/// After this many failures in a row a server counts as down.
const FAILURES_TO_DOWN: u32 = 2;
const FIRST_PROBE: Duration = Duration::from_millis(500);
const LAST_PROBE: Duration = Duration::from_secs(30);
/// Of a new round-trip time, this part counts: 1/8, as TCP does it.
const SMOOTHING: u32 = 8;
/// A server that is passed over for a faster one looks a little faster each time, so that it is tried again.
const FORGIVENESS: (u32, u32) = (98, 100);
/// What a failure counts as, for a server that never answered.
const FAILED_RTT: Duration = Duration::from_secs(1);
const SLOWEST: Duration = Duration::from_secs(10);

/// In which order the servers of a zone are asked. Those that are down come last in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Policy {
    /// A random one first.
    #[default]
    Random,
    /// Each in its turn first.
    RoundRobin,
    /// Always as listed.
    Sequential,
    /// The one whose answers come soonest first.
    Fastest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    Up,
    Down,
    /// What it is asked comes back to this name server.
    Loop,
}

pub struct Upstream {
    pub server: Server,
    pub line: Line,
    pub queries: Counter,
    pub failures: Counter,
    pub tcp: Counter,
    pub mismatches: Counter,
    /// Sum of round-trip times in microseconds, over `answers`.
    rtt_sum: AtomicU64,
    answers: Counter,
    /// It repeats the question's name as it was spelled, so that a guess must hit the spelling too.
    keeps_case: AtomicBool,
    /// It understands EDNS.
    speaks_edns: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failures: u32,
    down: bool,
    looping: bool,
    smoothed: Option<Duration>,
    problem: Option<String>,
    since: Option<Instant>,
}

/// One upstream server as `weft status` shows it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamStatus {
    pub zone: String,
    pub address: String,
    pub health: Health,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    pub failures_in_a_row: u32,
    pub queries: u64,
    pub failures: u64,
    pub answers: u64,
    pub tcp: u64,
    pub mismatches: u64,
    /// Smoothed.
    pub rtt_microseconds: Option<u64>,
    pub rtt_sum_microseconds: u64,
}

impl Upstream {
    pub fn new(server: Server, line: Line) -> Self {
        Self {
            server,
            line,
            queries: Counter::default(),
            failures: Counter::default(),
            tcp: Counter::default(),
            mismatches: Counter::default(),
            rtt_sum: AtomicU64::new(0),
            answers: Counter::default(),
            keeps_case: AtomicBool::new(true),
            speaks_edns: AtomicBool::new(true),
            state: Mutex::default(),
        }
    }

    pub fn health(&self) -> Health {
        match &*self.state() {
            State { looping: true, .. } => Health::Loop,
            State { down: true, .. } => Health::Down,
            _ => Health::Up,
        }
    }

    /// It answered, whatever it said.
    pub fn succeeded(&self, took: Duration) {
        self.answers.add();
        self.rtt_sum.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let mut state = self.state();
        state.smoothed = Some(match state.smoothed {
            Some(before) => before - before / SMOOTHING + took / SMOOTHING,
            None => took,
        });
        state.failures = 0;
        if state.down {
            tracing::info!(server = %self.server, "the upstream name server answers again");
            (state.down, state.problem, state.since) = (false, None, None);
        }
    }

    /// It did not answer. True when it counts as down from now on.
    pub fn failed(&self, problem: &str, now: Instant) -> bool {
        self.failures.add();
        let mut state = self.state();
        state.smoothed = Some((state.smoothed.unwrap_or(FAILED_RTT) * 2).min(SLOWEST));
        state.failures = state.failures.saturating_add(1);
        state.problem = Some(problem.to_owned());
        if state.down || state.failures < FAILURES_TO_DOWN {
            return false;
        }
        tracing::warn!(server = %self.server, problem, "the upstream name server counts as down");
        (state.down, state.since) = (true, Some(now));
        true
    }

    /// What it was asked came back, or no longer does. True when that is news.
    pub fn set_looping(&self, looping: bool) -> bool {
        let mut state = self.state();
        let news = state.looping != looping;
        state.looping = looping;
        if news {
            state.problem = looping.then(|| LOOP.to_owned());
        }
        news
    }

    pub fn keeps_case(&self) -> bool {
        self.keeps_case.load(Ordering::Relaxed)
    }

    /// Said over a connection, where nobody else can say it.
    pub fn does_not_keep_case(&self) {
        if self.keeps_case.swap(false, Ordering::Relaxed) {
            tracing::info!(server = %self.server, "the upstream name server does not keep the spelling of names");
        }
    }

    pub fn speaks_edns(&self) -> bool {
        self.speaks_edns.load(Ordering::Relaxed)
    }

    pub fn does_not_speak_edns(&self) {
        if self.speaks_edns.swap(false, Ordering::Relaxed) {
            tracing::info!(server = %self.server, "the upstream name server does not understand EDNS");
        }
    }

    pub fn status(&self, zone: &str) -> UpstreamStatus {
        let health = self.health();
        let state = self.state();
        UpstreamStatus {
            zone: zone.to_owned(),
            address: self.server.to_string(),
            health,
            problem: state.problem.clone().filter(|_| health != Health::Up),
            failures_in_a_row: state.failures,
            queries: self.queries.get(),
            failures: self.failures.get(),
            answers: self.answers.get(),
            tcp: self.tcp.get(),
            mismatches: self.mismatches.get(),
            rtt_microseconds: state.smoothed.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            rtt_sum_microseconds: self.rtt_sum.load(Ordering::Relaxed),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One upstream server's counter or gauge.
type Family = (&'static str, &'static str, &'static str, fn(&UpstreamStatus) -> String);

const FAMILIES: [Family; 7] = [
    ("upstream_queries_total", "counter", "Questions to the server.", |s| s.queries.to_string()),
    ("upstream_failures_total", "counter", "Questions it did not answer.", |s| s.failures.to_string()),
    ("upstream_tcp_total", "counter", "Questions over a connection.", |s| s.tcp.to_string()),
    ("upstream_mismatches_total", "counter", "Messages that answered no question.", |s| {
        s.mismatches.to_string()
    }),
    ("upstream_up", "gauge", "Whether it counts as well.", |s| u8::from(s.health == Health::Up).to_string()),
    ("upstream_rtt_seconds_sum", "counter", "Time until its answers came.", |s| {
        seconds(s.rtt_sum_microseconds)
    }),
    ("upstream_rtt_seconds_count", "counter", "Its answers.", |s| s.answers.to_string()),
];

fn seconds(microseconds: u64) -> String {
    format!("{}.{:06}", microseconds / 1_000_000, microseconds % 1_000_000)
}

/// Counters of all servers as Prometheus text.
pub fn write_metrics(statuses: &[UpstreamStatus], out: &mut String) {
    for (name, kind, help, value) in FAMILIES {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# HELP weft_dns_{name} {help}\n# TYPE weft_dns_{name} {kind}");
        for status in statuses {
            let labels = format!("zone=\"{}\",server=\"{}\"", status.zone, status.address);
            let _ = writeln!(out, "weft_dns_{name}{{{labels}}} {}", value(status));
        }
    }
}

/// What the operator is told.
pub const LOOP: &str = "what it is asked comes back to this name server: it, or the resolv.conf it was taken from, \
                        leads here; give it another server";

/// How long to wait before a server that is down is probed for the `nth` time.
pub fn probe_wait(nth: u32) -> Duration {
    FIRST_PROBE.saturating_mul(1 << nth.min(16)).min(LAST_PROBE)
}

/// The servers of one zone.
pub struct Group {
    pub upstreams: Vec<Arc<Upstream>>,
    policy: Policy,
    turn: AtomicUsize,
}

impl Group {
    pub fn new(upstreams: Vec<Arc<Upstream>>, policy: Policy) -> Self {
        Self { upstreams, policy, turn: AtomicUsize::new(0) }
    }

    /// Whom to ask, first to last: those that are down as a last resort, those that would ask us not at all.
    /// `random` is any number.
    pub fn order(&self, random: u64) -> Vec<&Arc<Upstream>> {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for upstream in &self.upstreams {
            match upstream.health() {
                Health::Up => up.push(upstream),
                Health::Down => down.push(upstream),
                Health::Loop => {}
            }
        }
        self.arrange(&mut up, random);
        self.arrange(&mut down, random);
        up.append(&mut down);
        up
    }

    pub fn nobody_is_up(&self) -> bool {
        self.upstreams.iter().all(|upstream| upstream.health() != Health::Up)
    }

    pub fn all_loop(&self) -> bool {
        self.upstreams.iter().all(|upstream| upstream.health() == Health::Loop)
    }

    fn arrange(&self, upstreams: &mut [&Arc<Upstream>], mut random: u64) {
        let Some(count) = u64::try_from(upstreams.len()).ok().filter(|count| *count > 1) else { return };
        match self.policy {
            Policy::Sequential => {}
            Policy::Random => {
                for last in (1..upstreams.len()).rev() {
                    let choices = last as u64 + 1;
                    upstreams.swap(last, (random % choices) as usize);
                    random /= choices;
                }
            }
            Policy::RoundRobin => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) as u64;
                upstreams.rotate_left((turn % count) as usize);
            }
            Policy::Fastest => {
                upstreams.sort_by_key(|upstream| upstream.state().smoothed.unwrap_or_default());
                for passed_over in &upstreams[1..] {
                    let mut state = passed_over.state();
                    state.smoothed = state.smoothed.map(|rtt| rtt * FORGIVENESS.0 / FORGIVENESS.1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn group(policy: Policy, count: u8) -> Group {
        let upstream =
            |last| Arc::new(Upstream::new(Server::plain(([192, 0, 2, last], 53).into()), Line::default()));
        Group::new((1..=count).map(upstream).collect(), policy)
    }

    fn order(group: &Group, random: u64) -> String {
        let last = |upstream: &&Arc<Upstream>| match upstream.server.address.ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3].to_string(),
            std::net::IpAddr::V6(ip) => ip.to_string(),
        };
        group.order(random).iter().map(last).collect()
    }

    fn take_down(upstream: &Upstream) {
        let now = Instant::now();
        assert!(!upstream.failed("no answer", now));
        assert!(upstream.failed("no answer", now), "the second failure in a row takes it down");
        assert!(!upstream.failed("no answer", now), "once");
    }

    #[test]
    fn each_policy_asks_in_its_order_and_those_down_last() {
        let sequential = group(Policy::Sequential, 3);
        assert_eq!([order(&sequential, 1), order(&sequential, 2)], ["123", "123"]);
        take_down(&sequential.upstreams[0]);
        assert_eq!(order(&sequential, 1), "231");
        let robin = group(Policy::RoundRobin, 3);
        let turns: Vec<_> = (0..4).map(|_| order(&robin, 0)).collect();
        assert_eq!(turns, ["123", "231", "312", "123"]);
    }

    #[test]
    fn random_gives_every_order_the_same_chance() {
        let random = group(Policy::Random, 3);
        let mut seen = BTreeMap::<String, u32>::new();
        for number in 0..600 {
            *seen.entry(order(&random, number)).or_default() += 1;
        }
        assert_eq!(seen.len(), 6);
        assert!(seen.values().all(|count| *count == 100), "{seen:?}");
    }

    #[test]
    fn fastest_asks_the_unknown_then_the_quickest_and_gives_the_others_another_chance() {
        let fastest = group(Policy::Fastest, 2);
        let millis = Duration::from_millis;
        fastest.upstreams[0].succeeded(millis(10));
        assert_eq!(order(&fastest, 0), "21", "nothing is known of the second");
        fastest.upstreams[1].succeeded(millis(40));
        assert_eq!(order(&fastest, 0), "12");
        let asked_until_second = (0..200).take_while(|_| order(&fastest, 0) == "12").count();
        assert!((50..100).contains(&asked_until_second), "{asked_until_second}");
        fastest.upstreams[1].succeeded(millis(200));
        assert_eq!(order(&fastest, 0), "12");
        fastest.upstreams[0].failed("no answer", Instant::now());
        fastest.upstreams[0].failed("no answer", Instant::now());
        assert_eq!(order(&fastest, 0), "21");
    }

    #[test]
    fn a_server_is_up_again_with_its_first_answer() {
        let group = group(Policy::Sequential, 1);
        let upstream = &group.upstreams[0];
        take_down(upstream);
        assert_eq!(
            (upstream.health(), group.nobody_is_up(), order(&group, 0)),
            (Health::Down, true, "1".into())
        );
        assert_eq!(upstream.status(".").problem.as_deref(), Some("no answer"));
        upstream.succeeded(Duration::from_millis(1));
        assert_eq!((upstream.health(), upstream.status(".").problem), (Health::Up, None));
        assert!(!upstream.failed("no answer", Instant::now()), "counting begins anew");
    }

    #[test]
    fn a_server_that_leads_back_is_not_asked() {
        let group = group(Policy::Sequential, 2);
        assert!(group.upstreams[0].set_looping(true) && !group.upstreams[0].set_looping(true));
        assert_eq!((order(&group, 0), group.all_loop()), ("2".to_owned(), false));
        group.upstreams[1].set_looping(true);
        assert_eq!((order(&group, 0), group.all_loop()), (String::new(), true));
    }

    #[test]
    fn probes_back_off() {
        let waits: Vec<_> = (0..8).map(|nth| probe_wait(nth).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
    }
}
