//! What each plugin of a Corefile becomes. Options of tuning that clients cannot see are said to be needless; all that
//! clients could see and that is not carried over is said to be lost.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use super::syntax::{Block, Directive, Line};
use super::{Fate, Finding, Imported};
use crate::settings::{Forward, Host, Server, Settings, Transport, domain_name, server_address};
use crate::upstreams::Policy;

const DNS_PORT: &str = "53";

/// Plugins without counterpart or need of one, and why.
const NEEDLESS: &[(&str, &str)] = &[
    ("errors", "errors are always logged"),
    ("log", "questions are shown by `weft observe --dns`"),
    ("health", "the node's agent watches the name server; `weft status` shows it"),
    ("ready", "pods are ready when the node's name server is; `weft status` shows it"),
    ("prometheus", "metrics are always kept"),
    ("loop", "loops are always looked for"),
    ("reload", "changed settings are always taken up"),
    ("loadbalance", "the order of addresses always changes"),
    ("bufsize", "answers over UDP are never larger than 1232 bytes"),
    ("cancel", "questions are always given up in time"),
    ("minimal", "answers never carry what was not asked for"),
    ("debug", "there is nothing to set"),
    ("pprof", "there is nothing to set"),
    ("nsid", "there is nothing to set"),
    ("local", "names of the machine itself are not asked for by pods"),
];

/// Options that only tune how an upstream server is asked.
const FORWARD_TUNING: &[&str] = &[
    "expire",
    "max_fails",
    "max_idle_conns",
    "max_connect_attempts",
    "health_check",
    "max_concurrent",
    "prefer_udp",
    "failover",
    "failfast_all_unhealthy_upstreams",
];

pub fn carry_over(blocks: &[Block], cluster_domain: &str) -> Imported {
    let mut import = Import {
        settings: Settings { forward: Vec::new(), ..Settings::default() },
        findings: Vec::new(),
        cluster_domain: cluster_domain.trim_end_matches('.').to_ascii_lowercase(),
        zones: BTreeMap::new(),
        once: BTreeMap::new(),
        listens: false,
    };
    for block in blocks {
        import.block(block);
    }
    if import.settings.forward.is_empty()
        && let Some(block) = blocks.first()
    {
        import.lost(
            &block.line,
            "no servers are carried over: names outside the cluster go to those of /etc/resolv.conf",
        );
    }
    import.findings.sort_by(|a, b| (&a.file, a.line, a.fate).cmp(&(&b.file, b.line, b.fate)));
    // A snippet may be imported more than once.
    import.findings.dedup();
    Imported { settings: import.settings, findings: import.findings }
}

struct Import {
    settings: Settings,
    findings: Vec<Finding>,
    cluster_domain: String,
    /// Zones that have servers, and the line that gave them.
    zones: BTreeMap<String, usize>,
    /// Settings there is one of, and what was said of it first.
    once: BTreeMap<&'static str, u64>,
    listens: bool,
}

impl Import {
    fn note(&mut self, line: &Line, fate: Fate, reason: impl Into<String>) {
        self.findings.push(Finding {
            file: line.file.clone(),
            line: line.number,
            text: line.text(),
            fate,
            reason: reason.into(),
        });
    }

    fn lost(&mut self, line: &Line, reason: impl Into<String>) {
        self.note(line, Fate::Lost, reason);
    }

    fn needless(&mut self, line: &Line, reason: impl Into<String>) {
        self.note(line, Fate::Needless, reason);
    }

    fn block(&mut self, block: &Block) {
        let zones: Vec<String> =
            block.keys.iter().filter_map(|key| self.zone_of_key(&block.line, key)).collect();
        if zones.is_empty() {
            return;
        }
        for directive in &block.directives {
            self.directive(&zones, directive);
        }
    }

    /// `dns://corp.example:53` and its shorter forms.
    fn zone_of_key(&mut self, line: &Line, key: &str) -> Option<String> {
        let (scheme, rest) = key.split_once("://").unwrap_or(("dns", key));
        if scheme != "dns" {
            self.lost(line, format!("{key}: pods are answered over UDP and TCP only, not {scheme}"));
            return None;
        }
        let (name, port) = match rest.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (name, port),
            _ => (rest, DNS_PORT),
        };
        if port != DNS_PORT {
            self.lost(line, format!("{key}: the name server listens on port 53 only"));
            return None;
        }
        let zone = zone(name);
        if zone.is_none() {
            self.lost(line, format!("{key}: not a zone this can be read as"));
        }
        zone
    }

    fn directive(&mut self, zones: &[String], directive: &Directive) {
        let line = &directive.line;
        let plugin = line.words[0].as_str();
        if line
            .words
            .iter()
            .chain(directive.body.iter().flat_map(|line| &line.words))
            .any(|word| is_variable(word))
        {
            return self
                .lost(line, "variables of the environment are not known here: put in what they stand for");
        }
        match plugin {
            "kubernetes" => self.kubernetes(directive),
            "forward" | "proxy" => self.forward(zones, directive),
            "cache" => self.cache(directive),
            "hosts" => self.hosts(directive),
            "autopath" => self.settings.search_collapse = true,
            "bind" => self.bind(directive),
            "loadbalance" if line.words.get(1).is_some_and(|way| way != "round_robin") => {
                self.lost(line, "addresses have no weights");
            }
            _ => match NEEDLESS.iter().find(|(name, _)| *name == plugin) {
                Some((_, reason)) => self.needless(line, *reason),
                None => self.lost(line, format!("there is nothing like the plugin {plugin}")),
            },
        }
    }

    fn kubernetes(&mut self, directive: &Directive) {
        let line = &directive.line;
        for zone in &line.words[1..] {
            let bare = zone.trim_end_matches('.').to_ascii_lowercase();
            let reverse = bare.ends_with("in-addr.arpa") || bare.ends_with("ip6.arpa") || bare.contains('/');
            if !reverse && bare != self.cluster_domain {
                let domain = self.cluster_domain.clone();
                self.lost(
                    line,
                    format!("{zone}: the cluster's domain is {domain}, which is set for the whole fabric"),
                );
            }
        }
        for option in &directive.body {
            self.kubernetes_option(option);
        }
    }

    fn kubernetes_option(&mut self, option: &Line) {
        let words = &option.words;
        match words[0].as_str() {
            "ttl" => match words.get(1).and_then(|word| word.parse().ok()) {
                Some(ttl) if ttl <= 3600 => self.settings.ttl = ttl,
                _ => self.lost(option, "not a number of seconds from 0 to 3600"),
            },
            "pods" if words.get(1).is_some_and(|mode| mode == "insecure") => {
                self.needless(option, "names made of addresses are answered in every namespace there is");
            }
            "pods" => self
                .lost(option, "names made of addresses are answered in every namespace there is, unchecked"),
            "fallthrough" => {
                let outside = |zone: &String| zone.ends_with("arpa") || zone.ends_with("arpa.");
                if words.len() > 1 && words[1..].iter().all(outside) {
                    self.needless(
                        option,
                        "addresses that are not the cluster's are asked of the upstream servers",
                    );
                } else {
                    self.lost(option, "names of the cluster are never asked of others");
                }
            }
            "kubeconfig" | "endpoint" | "tls" | "startup_timeout" | "apiserver_qps" | "apiserver_burst" => {
                self.needless(option, "names come from the node's agent");
            }
            other => self.lost(option, format!("there is nothing like the option {other}")),
        }
    }

    fn bind(&mut self, directive: &Directive) {
        let line = &directive.line;
        let addresses: Vec<Option<IpAddr>> = line.words[1..].iter().map(|word| word.parse().ok()).collect();
        let mut link_local = Vec::new();
        for (address, word) in addresses.iter().zip(&line.words[1..]) {
            match address {
                Some(address) if is_link_local(*address) => link_local.push(*address),
                Some(_) => {
                    self.needless(line, format!("{word}: the cluster's DNS service address is the fabric's"))
                }
                None => self.lost(line, format!("{word}: only addresses can be listened on")),
            }
        }
        if link_local.is_empty() {
            return;
        }
        if !self.listens {
            self.settings.link_local_addresses.clear();
            self.listens = true;
        }
        link_local.retain(|address| !self.settings.link_local_addresses.contains(address));
        self.settings.link_local_addresses.append(&mut link_local);
    }

    fn forward(&mut self, zones: &[String], directive: &Directive) {
        let line = &directive.line;
        let [_, from, to @ ..] = line.words.as_slice() else {
            return self.lost(line, "forward names no zone and no server");
        };
        let zones = self.forwarded_zones(zones, line, from);
        let (mut servers, mut resolv_conf) = (Vec::new(), None);
        for word in to {
            match upstream(word) {
                Ok(To::Server(server)) => servers.push(server),
                Ok(To::File(path)) => resolv_conf = Some(path),
                Err(reason) => self.lost(line, format!("{word}: {reason}")),
            }
        }
        if zones.is_empty() || (servers.is_empty() && resolv_conf.is_none()) {
            return;
        }
        let mut forward = Forward { zones, servers, resolv_conf, ..Forward::default_for_all() };
        for option in &directive.body {
            self.forward_option(&mut forward, option);
        }
        self.settings.forward.push(forward);
        if self.settings.check().is_err() {
            self.settings.forward.pop();
            self.lost(line, "these servers cannot be asked");
        }
    }

    /// The block's zones, narrowed to the plugin's own, without those somebody else answers for.
    fn forwarded_zones(&mut self, zones: &[String], line: &Line, from: &str) -> Vec<String> {
        let Some(own) = zone(from) else {
            self.lost(line, format!("{from}: not a zone"));
            return Vec::new();
        };
        let within = |inner: &str, outer: &str| {
            outer == "."
                || inner == outer
                || inner.strip_suffix(outer).is_some_and(|rest| rest.ends_with('.'))
        };
        let mut forwarded = Vec::new();
        for block in zones {
            let zone = match (within(&own, block), within(block, &own)) {
                (true, _) => own.clone(),
                (false, true) => block.clone(),
                (false, false) => {
                    self.lost(line, format!("{from}: not within {block}, so nobody is asked"));
                    continue;
                }
            };
            if within(&zone, &self.cluster_domain.clone()) {
                self.needless(
                    line,
                    format!("{zone}: the name server answers for the cluster's names itself"),
                );
            } else if let Some(earlier) = self.zones.get(&zone) {
                self.lost(line, format!("{zone}: line {earlier} says who answers for it"));
            } else {
                self.zones.insert(zone.clone(), line.number);
                forwarded.push(zone);
            }
        }
        forwarded
    }

    fn forward_option(&mut self, forward: &mut Forward, option: &Line) {
        let words = &option.words;
        match words[0].as_str() {
            "except" => {
                let names = words[1..].iter().map(|word| zone(word)).collect::<Option<Vec<_>>>();
                match names {
                    Some(names) => forward.except.extend(names),
                    None => self.lost(option, "these are not all names"),
                }
            }
            "force_tcp" => {
                for server in forward.servers.iter_mut().filter(|server| server.transport == Transport::Udp) {
                    server.transport = Transport::Tcp;
                }
                if forward.resolv_conf.is_some() {
                    self.lost(option, "servers of a resolv.conf are asked over UDP first");
                }
            }
            "tls_servername" => {
                for server in forward.servers.iter_mut().filter(|server| server.transport == Transport::Tls) {
                    server.server_name = words.get(1).cloned();
                }
            }
            "tls" => match &words[1..] {
                [] => {}
                [ca] => {
                    for server in
                        forward.servers.iter_mut().filter(|server| server.transport == Transport::Tls)
                    {
                        server.ca_file = Some(PathBuf::from(ca));
                    }
                }
                _ => self.lost(option, "no certificate is shown to upstream servers"),
            },
            "policy" => match words.get(1).map(String::as_str) {
                Some("random") => forward.policy = Policy::Random,
                Some("round_robin") => forward.policy = Policy::RoundRobin,
                Some("sequential") => forward.policy = Policy::Sequential,
                _ => self.lost(option, "the policies are random, round_robin and sequential"),
            },
            other if FORWARD_TUNING.contains(&other) => {
                self.needless(
                    option,
                    "servers are probed, connections kept and questions bounded as a matter of course",
                );
            }
            other => self.lost(option, format!("there is nothing like the option {other}")),
        }
    }

    fn cache(&mut self, directive: &Directive) {
        let line = &directive.line;
        let zones = match line.words.get(1).map(|word| word.parse::<u32>()) {
            Some(Ok(ttl)) => {
                self.once(line, "maxSeconds", ttl);
                self.once(line, "maxNegativeSeconds", ttl.min(1800));
                &line.words[2..]
            }
            _ => &line.words[1..],
        };
        if !zones.is_empty() {
            self.lost(line, "one cache is for all zones");
        }
        for option in &directive.body {
            self.cache_option(option);
        }
    }

    fn cache_option(&mut self, option: &Line) {
        let words = &option.words;
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u32>().ok());
        match words[0].as_str() {
            kind @ ("success" | "denial") => {
                self.needless(option, "the cache is bounded by bytes (cache.maxBytes), not by answers");
                let longest = if kind == "success" { "maxSeconds" } else { "maxNegativeSeconds" };
                if let Some(seconds) = number(2) {
                    self.once(option, longest, seconds);
                }
                match (kind, number(3)) {
                    (_, None) => {}
                    ("success", Some(seconds)) => self.once(option, "minSeconds", seconds),
                    (_, Some(_)) => self.lost(option, "negative answers have no shortest time"),
                }
            }
            "prefetch" => self.prefetch(option),
            "serve_stale" => {
                let seconds = words.get(1).map_or(Some(3600), |word| seconds(word));
                match seconds {
                    Some(seconds) => self.once(option, "serveStaleSeconds", seconds),
                    None => self.lost(option, "not a duration"),
                }
                if words.len() > 2 {
                    self.needless(
                        option,
                        "servers are always asked before an answer past its time is given out",
                    );
                }
            }
            "servfail" => self.needless(option, "a failure is remembered for a second"),
            "keepttl" => self.lost(option, "answers from the cache always say what is left of their time"),
            other => self.lost(option, format!("there is nothing like the option {other}")),
        }
    }

    /// `prefetch AMOUNT [DURATION [PERCENTAGE%]]`
    fn prefetch(&mut self, option: &Line) {
        let words = &option.words;
        let Some(hits) = words.get(1).and_then(|word| word.parse().ok()) else {
            return self.lost(option, "not a number of uses");
        };
        self.once(option, "prefetchHits", hits);
        if words.len() > 2 {
            self.needless(option, "uses are counted over an answer's life, not over a duration");
        }
        if let Some(percent) = words.get(3) {
            match percent.trim_end_matches('%').parse::<u32>() {
                Ok(percent) if (1..=90).contains(&percent) => self.once(option, "prefetchPercent", percent),
                _ => self.lost(option, "not a percentage from 1 to 90"),
            }
        }
    }

    /// Settings there is one of for all blocks: the first says it.
    fn once(&mut self, line: &Line, field: &'static str, value: u32) {
        if let Some(earlier) = self.once.get(field) {
            if *earlier != u64::from(value) {
                self.lost(
                    line,
                    format!("one cache is for all zones, and cache.{field} is {earlier} already"),
                );
            }
            return;
        }
        let before = self.settings.cache.clone();
        let cache = &mut self.settings.cache;
        match field {
            "maxSeconds" => cache.max_seconds = value,
            "minSeconds" => cache.min_seconds = value,
            "maxNegativeSeconds" => cache.max_negative_seconds = value,
            "serveStaleSeconds" => cache.serve_stale_seconds = value,
            "prefetchHits" => cache.prefetch_hits = value,
            _ => cache.prefetch_percent = u8::try_from(value).unwrap_or(u8::MAX),
        }
        if let Err(error) = self.settings.check() {
            self.settings.cache = before;
            return self.lost(line, error.to_string());
        }
        self.once.insert(field, value.into());
    }

    fn hosts(&mut self, directive: &Directive) {
        let line = &directive.line;
        if line.words.get(1).is_some_and(|word| word.starts_with('/') || word.contains('.')) {
            self.lost(line, "files of hosts are not followed: put the lines into `hosts` of the settings");
        }
        let mut falls_through = false;
        for option in &directive.body {
            let words = &option.words;
            match (words[0].as_str(), words[0].parse::<IpAddr>()) {
                (_, Ok(address)) => self.host(option, address),
                ("fallthrough", _) if words.len() == 1 => falls_through = true,
                ("ttl", _) => self.needless(option, "their time is that of the cluster's names (ttl)"),
                ("reload", _) => self.needless(option, "changed settings are always taken up"),
                ("no_reverse", _) => self.lost(option, "the way back from address to name is answered too"),
                (other, _) => self.lost(option, format!("there is nothing like the option {other}")),
            }
        }
        if !falls_through {
            self.lost(line, "names that are not in it are asked of the upstream servers");
        }
    }

    fn host(&mut self, option: &Line, address: IpAddr) {
        let names: Vec<String> = option.words[1..].to_vec();
        if names.is_empty() || names.iter().any(|name| domain_name(name).is_none()) {
            return self.lost(option, "an address is followed by names");
        }
        self.settings.hosts.push(Host { address, names });
    }
}

enum To {
    Server(Server),
    File(PathBuf),
}

fn upstream(word: &str) -> Result<To, &'static str> {
    if word.starts_with('/') {
        return Ok(To::File(PathBuf::from(word)));
    }
    let (scheme, rest) = word.split_once("://").unwrap_or(("dns", word));
    let transport = match scheme {
        "dns" => Transport::Udp,
        "tls" => Transport::Tls,
        _ => return Err("upstream servers are asked over UDP, TCP and TLS only"),
    };
    let address = server_address(rest, transport.port()).ok_or("not the address of a server")?;
    Ok(To::Server(Server { transport, ..Server::plain(address) }))
}

/// A zone as the settings write it; ranges of addresses become the zone of their names.
fn zone(text: &str) -> Option<String> {
    if text.contains('/') {
        return reverse_zone(text);
    }
    let name = domain_name(text)?.to_ascii();
    Some(if name == "." { name } else { name.trim_end_matches('.').to_owned() })
}

fn reverse_zone(text: &str) -> Option<String> {
    let (address, length) = text.split_once('/')?;
    let (address, length): (IpAddr, usize) = (address.parse().ok()?, length.parse().ok()?);
    let (digits, bits, end): (Vec<String>, usize, &str) = match address {
        IpAddr::V4(address) => (address.octets().iter().map(u8::to_string).collect(), 8, "in-addr.arpa"),
        IpAddr::V6(address) => {
            let halves = address.octets().into_iter().flat_map(|byte| [byte >> 4, byte & 15]);
            (halves.map(|half| format!("{half:x}")).collect(), 4, "ip6.arpa")
        }
    };
    if length % bits != 0 || length / bits > digits.len() {
        return None;
    }
    let mut labels: Vec<_> = digits[..length / bits].to_vec();
    labels.reverse();
    labels.push(end.to_owned());
    Some(labels.join("."))
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_unique_local(),
    }
}

fn is_variable(word: &str) -> bool {
    word.contains("{$") || word.contains("{%")
}

/// `90`, `30s`, `5m`, `1h30m`.
fn seconds(text: &str) -> Option<u32> {
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let mut total = 0u32;
    let mut digits = String::new();
    for letter in text.chars() {
        let unit = match letter {
            digit if digit.is_ascii_digit() => {
                digits.push(digit);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            _ => return None,
        };
        total = total.checked_add(std::mem::take(&mut digits).parse::<u32>().ok()?.checked_mul(unit)?)?;
    }
    digits.is_empty().then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_ranges_are_read() {
        assert_eq!(
            [seconds("90"), seconds("30s"), seconds("1h30m"), seconds("5"), seconds("5x"), seconds("h")],
            [Some(90), Some(30), Some(5400), Some(5), None, None]
        );
        assert_eq!(zone("10.1.0.0/16").as_deref(), Some("1.10.in-addr.arpa"));
        assert_eq!(zone("fd00::/8").as_deref(), Some("d.f.ip6.arpa"));
        assert_eq!([zone("10.0.0.0/9"), zone("10.0.0.0/40"), zone("a..b")], [None, None, None]);
        assert_eq!(zone("Corp.Example.").as_deref(), Some("corp.example"));
    }
}
