//! Counters of the name server, as JSON for `weft status` and as Prometheus text.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value};

use crate::tally::Serving;

/// A counter with one label; what it counts is said in `Metrics::all`.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn add_many(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
pub struct Metrics {
    pub serving: Serving,
    pub upstream_queries: Counter,
    pub upstream_shared: Counter,
    pub upstream_failures: Counter,
    pub prefetched: Counter,
    pub plans: Counter,
    pub plans_refused: Counter,
}

struct Family {
    name: &'static str,
    help: &'static str,
    label: &'static str,
    members: Vec<(&'static str, u64)>,
}

impl Metrics {
    fn all(&self) -> Vec<Family> {
        let family = |name, help, label, members: &[(&'static str, &Counter)]| Family {
            name,
            help,
            label,
            members: members.iter().map(|(value, counter)| (*value, counter.get())).collect(),
        };
        vec![
            family(
                "weft_dns_upstream_total",
                "Questions to upstream servers.",
                "event",
                &[
                    ("asked", &self.upstream_queries),
                    ("shared", &self.upstream_shared),
                    ("failed", &self.upstream_failures),
                    ("prefetched", &self.prefetched),
                ],
            ),
            family(
                "weft_dns_plans_total",
                "Plans received from the agent.",
                "result",
                &[("accepted", &self.plans), ("refused", &self.plans_refused)],
            ),
        ]
    }

    pub fn to_json(&self) -> Value {
        let mut json = Map::new();
        self.serving.add_json(&mut json);
        for family in self.all() {
            let short = family.name.trim_start_matches("weft_dns_").trim_end_matches("_total");
            for (value, count) in family.members {
                let key = if value.is_empty() { short.to_owned() } else { format!("{short}.{value}") };
                json.insert(key, count.into());
            }
        }
        Value::Object(json)
    }

    pub fn to_prometheus(&self, gauges: &[(&str, &str, u64)]) -> String {
        let mut text = String::new();
        self.serving.write_prometheus(&mut text);
        for family in self.all() {
            let _ = writeln!(text, "# HELP {} {}\n# TYPE {0} counter", family.name, family.help);
            for (value, count) in family.members {
                let _ = match value {
                    "" => writeln!(text, "{} {count}", family.name),
                    value => writeln!(text, "{}{{{}=\"{value}\"}} {count}", family.name, family.label),
                };
            }
        }
        for (name, help, value) in gauges {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        text
    }
}
