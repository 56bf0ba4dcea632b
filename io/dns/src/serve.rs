//! Any message to its response: the general path, which decodes whole messages. The quick one for what is asked again and again
//! is in `reader`.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record};
use weft_decide::names::{self, NameAnswer, NameData, NameDecision, NameRecord, Names, QueryType, Walk};

use crate::entry::Key;
use crate::forward::Forwarder;
use crate::index::ClientClass;
use crate::places::Dependency;
use crate::plan::{Loaded, PlanHolder};
use crate::ready::Source;
use crate::reply::{self, Answer, Explanation, Fit, Parsed, Request, Transport};
use crate::tally::Tally;
use crate::wire::Ages;

/// How long clients may keep what the cluster's own names say: changes must show soon.
const TTL: u32 = 5;
/// Which answer a cluster name gets is decided in core/decide.
pub struct Server {
    plans: Arc<PlanHolder>,
    forwarder: Arc<Forwarder>,
}

/// What became of one message.
pub enum Step {
    /// The response is written.
    Made(Made),
    Ignored,
    Waits(Box<Waiting>),
}

/// About a response.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    pub code: ResponseCode,
    pub source: Source,
    pub keep: Keep,
    pub audience: Audience,
    pub fit: Fit,
}

/// Who else would get the same response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Audience {
    All,
    /// Clients that search alike.
    Alike,
}

/// Whether the same question may get the same response again.
#[derive(Clone, Copy, Debug)]
pub enum Keep {
    No,
    /// As long as nothing it depends on changes.
    WithPlan(Dependency),
    /// And no longer than its records allow.
    WithRecords(Dependency),
}

impl Made {
    pub fn count(&self, tally: &mut Tally) {
        tally.answer(self.source, self.code.into());
        tally.truncated += u64::from(self.fit == Fit::Truncated);
    }

    pub fn is_whole(&self) -> bool {
        self.fit == Fit::Whole
    }
}

impl Keep {
    /// `None` when it is not kept.
    pub fn ages(&self) -> Option<(Ages, Dependency)> {
        match self {
            Self::No => None,
            Self::WithPlan(dependency) => Some((Ages::No, *dependency)),
            Self::WithRecords(dependency) => Some((Ages::Yes, *dependency)),
        }
    }
}

/// A question only an upstream server can answer.
pub struct Waiting {
    request: Request,
    decided: Decided,
    audience: Audience,
    transport: Transport,
}

/// Who asks, and over what.
pub type From = (IpAddr, Transport);

impl Server {
    pub fn new(plans: Arc<PlanHolder>, forwarder: Arc<Forwarder>) -> Self {
        Self { plans, forwarder }
    }

    pub fn plans(&self) -> &PlanHolder {
        &self.plans
    }

    /// Everything that needs no waiting. The response, if there is one, is in `out`.
    pub fn step(&self, bytes: &[u8], (client, transport): From, out: &mut Vec<u8>) -> Step {
        let refused = |code, fit| {
            Step::Made(Made { code, source: Source::Message, keep: Keep::No, audience: Audience::All, fit })
        };
        let request = match reply::parse(bytes) {
            Parsed::Question(request) => *request,
            Parsed::Refused(request, code) => {
                let fit = reply::encode(&request, Answer { code, ..Answer::default() }, transport, out);
                return refused(code, fit);
            }
            Parsed::Broken(bytes, code) => {
                *out = bytes;
                return refused(code, Fit::Whole);
            }
            Parsed::Ignored => return Step::Ignored,
        };
        let (mut decided, audience) = self.decide(&request, client);
        loop {
            let Some(key) = decided.next_question() else {
                return Step::Made(decided.made(&request, audience, transport, out));
            };
            let Some(hit) = self.forwarder.cached(key) else {
                return Step::Waits(Box::new(Waiting { request, decided, audience, transport }));
            };
            let answer = hit.answer(&key.name, Instant::now());
            decided = decided.go_on(&request, answer, Source::Cache);
        }
    }

    pub async fn finish(&self, waiting: Waiting, out: &mut Vec<u8>) -> Made {
        let Waiting { request, mut decided, audience, transport } = waiting;
        while let Some(key) = decided.next_question().cloned() {
            let hit = self.forwarder.resolve(key.clone()).await;
            let answer = hit.answer(&key.name, Instant::now());
            decided = decided.go_on(&request, answer, Source::Upstream);
        }
        decided.made(&request, audience, transport, out)
    }

    /// The response to a question that is not worked on.
    pub fn shed(&self, bytes: &[u8], transport: Transport, out: &mut Vec<u8>) -> Option<Made> {
        let Parsed::Question(request) = reply::parse(bytes) else { return None };
        let text = "this address asks more than its share while others ask too";
        let answer = Answer::failure(ResponseCode::ServFail, Explanation::OTHER, text);
        Some(Decided::failure(answer, Source::Shed).made(&request, Audience::All, transport, out))
    }

    fn decide(&self, request: &Request, client: IpAddr) -> (Decided, Audience) {
        let settings = self.forwarder.settings();
        let (decided, audience) = self.decide_with(request, client, settings.search_collapse);
        (decided.lasting(settings.ttl), audience)
    }

    fn decide_with(&self, request: &Request, client: IpAddr, collapse: bool) -> (Decided, Audience) {
        let name = request.query.name().to_ascii();
        let state = self.plans.read();
        let Some(loaded) = &state.loaded else {
            return (self.without_plan(request, &name, state.everything()), Audience::All);
        };
        let query = QueryType::from_number(request.query.query_type().into());
        let decision = names::answer(&loaded.index, &name, query);
        if !decision.chain.is_empty() {
            // Behind an alias stands another name, which may change as well.
            return (decided(&decision, request, loaded, state.everything()), Audience::All);
        }
        let dependency = state.dependency(&name.trim_end_matches('.').to_ascii_lowercase());
        if decision.answer != NameAnswer::NxDomain {
            return (decided(&decision, request, loaded, dependency), Audience::All);
        }
        let searches = loaded.index.class(client.into()) != ClientClass::default();
        if !searches || !collapse || !request.recursion_desired {
            return (decided(&decision, request, loaded, dependency), Audience::Alike);
        }
        // A walk is made of many names.
        let decision = names::answer_to(&loaded.index, Some(client.into()), &name, query);
        (decided(&decision, request, loaded, state.everything()), Audience::Alike)
    }

    /// Before the first plan nobody knows which cluster names exist, so nothing is said about them.
    fn without_plan(&self, request: &Request, name: &str, dependency: Dependency) -> Decided {
        let lower = name.trim_end_matches('.').to_ascii_lowercase();
        let inside = |zone: &str| {
            lower.strip_suffix(zone).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        if inside(self.plans.domain()) || inside("in-addr.arpa") || inside("ip6.arpa") {
            let text = "the node's agent has not sent the cluster's names yet";
            let answer = Answer::failure(ResponseCode::ServFail, Explanation::NOT_READY, text);
            return Decided::failure(answer, Source::NotReady);
        }
        forwarded(request, Vec::new(), &lower, dependency)
    }
}

/// An answer, or what must be asked upstream for one.
enum Decided {
    Answer {
        answer: Box<Answer>,
        source: Source,
        keep: Keep,
    },
    Upstream {
        chain: Vec<Record>,
        key: Key,
        dependency: Dependency,
    },
    /// Names to be asked one after the other, until one exists.
    Walk {
        keys: VecDeque<Key>,
        then: Box<Decided>,
        unsearched: Box<Decided>,
        dependency: Dependency,
    },
}

impl Decided {
    fn failure(answer: Answer, source: Source) -> Self {
        Self::Answer { answer: Box::new(answer), source, keep: Keep::No }
    }

    /// What the cluster itself says is kept by clients for so many seconds.
    fn lasting(mut self, seconds: u32) -> Self {
        let records: Vec<&mut Record> = match &mut self {
            Self::Answer { answer, .. } if answer.authoritative => {
                let Answer { answers, authorities, additionals, .. } = &mut **answer;
                answers.iter_mut().chain(authorities).chain(additionals).collect()
            }
            Self::Upstream { chain, .. } => chain.iter_mut().collect(),
            Self::Answer { .. } | Self::Walk { .. } => Vec::new(),
        };
        for record in records {
            record.ttl = seconds;
        }
        self
    }

    fn next_question(&self) -> Option<&Key> {
        match self {
            Self::Answer { .. } => None,
            Self::Upstream { key, .. } => Some(key),
            Self::Walk { keys, .. } => keys.front(),
        }
    }

    /// With the upstream servers' answer to the next question.
    fn go_on(self, request: &Request, answer: Answer, source: Source) -> Self {
        match self {
            Self::Answer { .. } => self,
            Self::Upstream { chain, dependency, .. } => found(chain, answer, source, dependency),
            Self::Walk { mut keys, then, unsearched, dependency } => match answer.code {
                ResponseCode::NoError => {
                    let alias = keys.pop_front().map(|key| {
                        let data = RData::CNAME(CNAME(key.name));
                        Record::from_rdata(request.query.name().clone(), TTL, data)
                    });
                    found(alias.into_iter().collect(), answer, source, dependency)
                }
                ResponseCode::NXDomain => {
                    keys.pop_front();
                    if keys.is_empty() {
                        then.after_a_walk()
                    } else {
                        Self::Walk { keys, then, unsearched, dependency }
                    }
                }
                _ => unsearched.unkept(),
            },
        }
    }

    /// It holds no longer than what upstream servers have said on the way.
    fn after_a_walk(self) -> Self {
        match self {
            Self::Answer { answer, source, keep: Keep::WithPlan(dependency) } => {
                Self::Answer { answer, source, keep: Keep::WithRecords(dependency) }
            }
            other => other,
        }
    }

    fn unkept(self) -> Self {
        match self {
            Self::Answer { answer, source, .. } => Self::Answer { answer, source, keep: Keep::No },
            other => other,
        }
    }

    fn made(self, request: &Request, audience: Audience, transport: Transport, out: &mut Vec<u8>) -> Made {
        let (answer, source, keep) = match self {
            Self::Answer { answer, source, keep } => (*answer, source, keep),
            Self::Upstream { .. } | Self::Walk { .. } => {
                let text = "the question was not asked upstream";
                let answer =
                    Answer::failure(ResponseCode::ServFail, Explanation::NO_REACHABLE_AUTHORITY, text);
                (answer, Source::Upstream, Keep::No)
            }
        };
        let code = answer.code;
        let fit = reply::encode(request, answer, transport, out);
        Made { code, source, keep, audience, fit }
    }
}

fn found(chain: Vec<Record>, answer: Answer, source: Source, dependency: Dependency) -> Decided {
    let keep = match answer.code {
        ResponseCode::NoError | ResponseCode::NXDomain => Keep::WithRecords(dependency),
        _ => Keep::No,
    };
    Decided::Answer { answer: Box::new(join(chain, answer)), source, keep }
}

fn decided(decision: &NameDecision, request: &Request, loaded: &Loaded, dependency: Dependency) -> Decided {
    let to_records = |records: &[NameRecord]| -> Vec<Record> {
        records.iter().filter_map(|record| to_record(record, request, loaded)).collect()
    };
    let chain = to_records(&decision.chain);
    let (code, answers) = match &decision.answer {
        NameAnswer::NotOurs(target) => return forwarded(request, chain, target, dependency),
        NameAnswer::Walk(walk) => return walked(walk, request, loaded, dependency),
        NameAnswer::Records(records) => (ResponseCode::NoError, to_records(records)),
        NameAnswer::NoData => (ResponseCode::NoError, Vec::new()),
        NameAnswer::NxDomain => (ResponseCode::NXDomain, Vec::new()),
    };
    let authorities = decision.zone.iter().filter_map(|zone| soa(loaded, zone)).collect();
    let additionals = to_records(&decision.additional);
    let answers = chain.into_iter().chain(answers).collect();
    let answer = Answer { code, authoritative: true, answers, authorities, additionals, explanation: None };
    Decided::Answer { answer: Box::new(answer), source: Source::Plan, keep: Keep::WithPlan(dependency) }
}

fn walked(walk: &Walk, request: &Request, loaded: &Loaded, dependency: Dependency) -> Decided {
    let unsearched = Box::new(decided(&walk.unsearched, request, loaded, dependency));
    let keys: Option<VecDeque<Key>> =
        walk.outside.iter().map(|name| to_name(name).map(|name| key(request, name))).collect();
    match keys {
        Some(keys) if !keys.is_empty() => {
            let then = Box::new(decided(&walk.then, request, loaded, dependency));
            Decided::Walk { keys, then, unsearched, dependency }
        }
        _ => *unsearched,
    }
}

fn forwarded(request: &Request, chain: Vec<Record>, target: &str, dependency: Dependency) -> Decided {
    if !request.recursion_desired {
        let text = "only names of the cluster are answered without recursion";
        let answer = Answer::failure(ResponseCode::Refused, Explanation::NOT_AUTHORITATIVE, text);
        return Decided::failure(answer, Source::Message);
    }
    let name = if chain.is_empty() { Some(request.query.name().clone()) } else { to_name(target) };
    let Some(name) = name else {
        let text = format!("{target} is not a DNS name: the service's externalName is wrong");
        let answer = Answer::failure(ResponseCode::ServFail, Explanation::NOT_SUPPORTED, text);
        return Decided::failure(Answer { answers: chain, ..answer }, Source::Plan);
    };
    Decided::Upstream { chain, key: key(request, name), dependency }
}

fn key(request: &Request, name: Name) -> Key {
    Key {
        name,
        kind: request.query.query_type(),
        dnssec_ok: request.dnssec_ok(),
        checking_disabled: request.checking_disabled,
    }
}

fn join(mut chain: Vec<Record>, mut answer: Answer) -> Answer {
    if !chain.is_empty() {
        chain.append(&mut answer.answers);
        answer.answers = chain;
    }
    answer
}

fn to_name(text: &str) -> Option<Name> {
    Name::from_ascii(format!("{}.", text.trim_end_matches('.'))).ok()
}

/// `None` for names that are too long for the wire: nobody can ask for them either.
fn to_record(record: &NameRecord, request: &Request, loaded: &Loaded) -> Option<Record> {
    let owner = to_name(&record.name)?;
    let asked = request.query.name();
    let owner = if owner == *asked { asked.clone() } else { owner };
    let data = match &record.data {
        NameData::A(addr) => RData::A(A(*addr)),
        NameData::Aaaa(addr) => RData::AAAA(AAAA(*addr)),
        NameData::Srv(srv) => RData::SRV(SRV::new(srv.priority, srv.weight, srv.port, to_name(&srv.target)?)),
        NameData::Ptr(target) => RData::PTR(PTR(to_name(target)?)),
        NameData::Txt(text) => RData::TXT(TXT::new(vec![text.clone()])),
        NameData::Cname(target) => RData::CNAME(CNAME(to_name(target)?)),
        NameData::Ns(target) => RData::NS(NS(to_name(target)?)),
        NameData::Soa => return soa(loaded, &record.name),
    };
    Some(Record::from_rdata(owner, TTL, data))
}

fn soa(loaded: &Loaded, zone: &str) -> Option<Record> {
    let domain = loaded.index.domain();
    let data = SOA::new(
        to_name(&format!("ns.dns.{domain}"))?,
        to_name(&format!("hostmaster.{domain}"))?,
        loaded.serial,
        7200,
        1800,
        86_400,
        TTL,
    );
    Some(Record::from_rdata(to_name(zone)?, TTL, RData::SOA(data)))
}
