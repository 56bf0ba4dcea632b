//! What serving threads count: for themselves question by question, for all to see batch by batch.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::fair::Shed;
use crate::metrics::Counter;
use crate::quick::Written;
use crate::ready::Source;
use crate::reply::Transport;

const TRANSPORTS: [&str; 2] = ["udp", "tcp"];
/// What clients in a cluster ask for; all else is counted together.
const TYPES: [(u16, &str); 10] = [
    (1, "A"),
    (28, "AAAA"),
    (33, "SRV"),
    (12, "PTR"),
    (16, "TXT"),
    (5, "CNAME"),
    (6, "SOA"),
    (2, "NS"),
    (65, "HTTPS"),
    (255, "ANY"),
];
const KINDS: usize = TYPES.len() + 1;
const SOURCES: [(Source, &str); 6] = [
    (Source::Plan, "plan"),
    (Source::Cache, "cache"),
    (Source::Upstream, "upstream"),
    (Source::NotReady, "not-ready"),
    (Source::Message, "message"),
    (Source::Shed, "shed"),
];
/// Codes of a header; larger ones need EDNS and are rare.
const CODES: [&str; 6] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];
const SHED: [(Shed, &str); 4] = [
    (Shed::Waiting, "waiting"),
    (Shed::Rate, "rate"),
    (Shed::Queue, "queue"),
    (Shed::Connections, "connections"),
];
/// Upper bounds in microseconds.
const BOUNDS: [u64; 16] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_000_000,
    5_000_000,
];

/// One thread's counts since it last put them to the others.
#[derive(Default)]
pub struct Tally {
    queries: [[u64; KINDS]; 2],
    asked: [u64; 2],
    answers: [Latencies; SOURCES.len()],
    codes: [u64; CODES.len() + 1],
    pub truncated: u64,
    pub dropped: u64,
}

#[derive(Default)]
struct Latencies {
    counts: [u64; BOUNDS.len() + 1],
    micros: u64,
}

impl Tally {
    pub fn question(&mut self, transport: Transport, kind: Option<u16>) {
        let place = TYPES.iter().position(|(number, _)| Some(*number) == kind).unwrap_or(TYPES.len());
        self.queries[transport as usize][place] += 1;
        self.asked[transport as usize] += 1;
    }

    pub fn answer(&mut self, source: Source, code: u16) {
        let place = usize::from(code).min(CODES.len());
        self.codes[place] += 1;
        self.answers[source as usize].counts[BOUNDS.len()] += 1;
    }

    /// `count` answers of one source took so long.
    pub fn took(&mut self, source: Source, time: Duration, count: u64) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let Latencies { counts, micros: sum } = &mut self.answers[source as usize];
        *sum += micros * count;
        if let Some(place) = BOUNDS.iter().position(|bound| micros <= *bound) {
            counts[place] += count;
        }
    }
}

/// The counts of all threads.
#[derive(Default)]
pub struct Serving {
    queries: [[Counter; KINDS]; 2],
    answers: [Histogram; SOURCES.len()],
    codes: [Counter; CODES.len() + 1],
    pub truncated: Counter,
    pub dropped: Counter,
    pub tcp_connections: Counter,
    shed: [Counter; SHED.len()],
}

#[derive(Default)]
struct Histogram {
    /// The last counts all, also those beyond the last bound.
    counts: [Counter; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Serving {
    /// Takes over what a thread has counted.
    pub fn add(&self, tally: &mut Tally) {
        let add = |counter: &Counter, count: u64| {
            if count > 0 {
                counter.add_many(count);
            }
        };
        for ((counters, counts), asked) in self.queries.iter().zip(&tally.queries).zip(tally.asked) {
            if asked == 0 {
                continue;
            }
            counters.iter().zip(counts).for_each(|(counter, count)| add(counter, *count));
        }
        for (histogram, latencies) in self.answers.iter().zip(&tally.answers) {
            if latencies.counts[BOUNDS.len()] == 0 {
                continue;
            }
            histogram.counts.iter().zip(&latencies.counts).for_each(|(counter, count)| add(counter, *count));
            if latencies.micros > 0 {
                histogram.micros.fetch_add(latencies.micros, Ordering::Relaxed);
            }
        }
        self.codes.iter().zip(&tally.codes).for_each(|(counter, count)| add(counter, *count));
        add(&self.truncated, tally.truncated);
        add(&self.dropped, tally.dropped);
        *tally = Tally::default();
    }

    pub fn shed(&self, reason: Shed) {
        self.shed[reason as usize].add();
    }

    pub fn add_json(&self, json: &mut Map<String, Value>) {
        let sum = |counters: &[Counter]| counters.iter().map(Counter::get).sum::<u64>();
        for (transport, counters) in TRANSPORTS.iter().zip(&self.queries) {
            json.insert(format!("queries.{transport}"), sum(counters).into());
        }
        for ((_, source), histogram) in SOURCES.iter().zip(&self.answers) {
            json.insert(format!("answers.{source}"), histogram.counts[BOUNDS.len()].get().into());
        }
        for (code, counter) in codes().zip(&self.codes) {
            json.insert(format!("responses.{code}"), counter.get().into());
        }
        for ((_, reason), counter) in SHED.iter().zip(&self.shed) {
            json.insert(format!("shed.{reason}"), counter.get().into());
        }
        json.insert("problems.dropped".to_owned(), self.dropped.get().into());
        json.insert("problems.truncated".to_owned(), self.truncated.get().into());
        json.insert("tcp_connections".to_owned(), self.tcp_connections.get().into());
    }

    pub fn write_prometheus(&self, text: &mut String) {
        head(text, "weft_dns_queries_total", "counter", "Questions received.");
        let types = || TYPES.iter().map(|(_, name)| *name).chain(["other"]);
        for (transport, counters) in TRANSPORTS.iter().zip(&self.queries) {
            for (kind, counter) in types().zip(counters).filter(|(_, counter)| counter.get() > 0) {
                let labels = format!("transport=\"{transport}\",type=\"{kind}\"");
                row(text, "weft_dns_queries_total", &labels, counter.get());
            }
        }
        let family = |text: &mut String, name: &str, help: &str, label: &str, rows: &[(&str, u64)]| {
            head(text, name, "counter", help);
            for (value, count) in rows {
                row(text, name, &format!("{label}=\"{value}\""), *count);
            }
        };
        let responses: Vec<_> =
            codes().zip(&self.codes).map(|(code, counter)| (code, counter.get())).collect();
        family(text, "weft_dns_responses_total", "Responses by code.", "rcode", &responses);
        let shed: Vec<_> =
            SHED.iter().zip(&self.shed).map(|((_, reason), counter)| (*reason, counter.get())).collect();
        family(
            text,
            "weft_dns_shed_total",
            "Questions not worked on, for the sake of other clients.",
            "reason",
            &shed,
        );
        let problems = [("dropped", self.dropped.get()), ("truncated", self.truncated.get())];
        family(text, "weft_dns_problems_total", "What did not go as it should.", "kind", &problems);
        head(text, "weft_dns_tcp_connections_total", "counter", "TCP connections accepted.");
        row(text, "weft_dns_tcp_connections_total", "", self.tcp_connections.get());
        self.write_latencies(text);
    }

    fn write_latencies(&self, text: &mut String) {
        let name = "weft_dns_answer_seconds";
        head(
            text,
            name,
            "histogram",
            "From a question's arrival to its answer, by what the answer is made from.",
        );
        for ((_, source), histogram) in SOURCES.iter().zip(&self.answers) {
            let mut below = 0;
            for (bound, counter) in BOUNDS.iter().zip(&histogram.counts) {
                below += counter.get();
                let bound = *bound as f64 / 1e6;
                row(text, &format!("{name}_bucket"), &format!("source=\"{source}\",le=\"{bound}\""), below);
            }
            let all = histogram.counts[BOUNDS.len()].get();
            row(text, &format!("{name}_bucket"), &format!("source=\"{source}\",le=\"+Inf\""), all);
            let seconds = histogram.micros.load(Ordering::Relaxed) as f64 / 1e6;
            let _ = writeln!(text, "{name}_sum{{source=\"{source}\"}} {seconds}");
            row(text, &format!("{name}_count"), &format!("source=\"{source}\""), all);
        }
    }
}

pub fn transport(transport: Transport) -> &'static str {
    TRANSPORTS[transport as usize]
}

pub fn source(source: Source) -> &'static str {
    SOURCES[source as usize].1
}

fn codes() -> impl Iterator<Item = &'static str> {
    CODES.into_iter().chain(["other"])
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn row(text: &mut String, name: &str, labels: &str, count: u64) {
    let _ = match labels {
        "" => writeln!(text, "{name} {count}"),
        labels => writeln!(text, "{name}{{{labels}}} {count}"),
    };
}

/// How many answers of a batch came from where.
#[derive(Default)]
pub struct Sources {
    plan: u64,
    cache: u64,
}

impl Sources {
    pub fn count(&mut self, tally: &mut Tally, transport: Transport, written: &Written) {
        tally.question(transport, Some(written.kind));
        tally.answer(written.source, written.code.into());
        tally.truncated += u64::from(written.truncated);
        match written.source {
            Source::Plan => self.plan += 1,
            _ => self.cache += 1,
        }
    }

    pub fn took(&self, tally: &mut Tally, time: Duration) {
        for (source, count) in [(Source::Plan, self.plan), (Source::Cache, self.cache)] {
            if count > 0 {
                tally.took(source, time, count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_reach_their_rows() {
        let serving = Serving::default();
        let mut tally = Tally::default();
        tally.question(Transport::Udp, Some(28));
        tally.question(Transport::Tcp, Some(999));
        for source in [Source::Plan, Source::Cache] {
            tally.answer(source, 3);
        }
        tally.took(Source::Plan, Duration::from_micros(30), 1);
        tally.took(Source::Cache, Duration::from_secs(60), 1);
        serving.add(&mut tally);
        serving.add(&mut tally);
        serving.shed(Shed::Rate);
        let mut text = String::new();
        serving.write_prometheus(&mut text);
        for line in [
            "weft_dns_queries_total{transport=\"udp\",type=\"AAAA\"} 1",
            "weft_dns_queries_total{transport=\"tcp\",type=\"other\"} 1",
            "weft_dns_responses_total{rcode=\"NXDOMAIN\"} 2",
            "weft_dns_shed_total{reason=\"rate\"} 1",
            "weft_dns_answer_seconds_bucket{source=\"plan\",le=\"0.000025\"} 0",
            "weft_dns_answer_seconds_bucket{source=\"plan\",le=\"0.00005\"} 1",
            "weft_dns_answer_seconds_bucket{source=\"cache\",le=\"5\"} 0",
            "weft_dns_answer_seconds_bucket{source=\"cache\",le=\"+Inf\"} 1",
            "weft_dns_answer_seconds_sum{source=\"cache\"} 60",
        ] {
            assert!(text.lines().any(|row| row == line), "{line}\n{text}");
        }
        for (index, (source, _)) in SOURCES.iter().enumerate() {
            assert_eq!(*source as usize, index);
        }
        for (index, (shed, _)) in SHED.iter().enumerate() {
            assert_eq!(*shed as usize, index);
        }
    }
}
