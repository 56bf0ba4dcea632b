//! Any message to its response: the general path, which decodes whole messages. The quick one for what is asked again and again
//! is in `reader`.

use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record};
use weft_decide::names::{self, NameAnswer, NameData, NameRecord, QueryType};

use crate::entry::Key;
use crate::forward::Forwarder;
use crate::plan::{Dependency, Loaded, PlanHolder};
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
    pub fit: Fit,
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
    /// ExternalName aliases that led to the name asked upstream.
    chain: Vec<Record>,
    key: Key,
    transport: Transport,
}

impl Server {
    pub fn new(plans: Arc<PlanHolder>, forwarder: Arc<Forwarder>) -> Self {
        Self { plans, forwarder }
    }

    pub fn plans(&self) -> &PlanHolder {
        &self.plans
    }

    /// Everything that needs no waiting. The response, if there is one, is in `out`.
    pub fn step(&self, bytes: &[u8], transport: Transport, out: &mut Vec<u8>) -> Step {
        let request = match reply::parse(bytes) {
            Parsed::Question(request) => *request,
            Parsed::Refused(request, code) => {
                let fit = reply::encode(&request, Answer { code, ..Answer::default() }, transport, out);
                return Step::Made(Made { code, source: Source::Message, keep: Keep::No, fit });
            }
            Parsed::Broken(bytes, code) => {
                *out = bytes;
                return Step::Made(Made { code, source: Source::Message, keep: Keep::No, fit: Fit::Whole });
            }
            Parsed::Ignored => return Step::Ignored,
        };
        match self.decide(&request) {
            Decided::Answer { answer, source, keep } => {
                Step::Made(made(&request, *answer, source, keep, transport, out))
            }
            Decided::Upstream { chain, key, dependency } => match self.forwarder.cached(&key) {
                Some(stored) => {
                    let answer = join(chain, stored.answer(&key.name, Instant::now()));
                    let keep = match answer.code {
                        ResponseCode::NoError | ResponseCode::NXDomain => Keep::WithRecords(dependency),
                        _ => Keep::No,
                    };
                    Step::Made(made(&request, answer, Source::Cache, keep, transport, out))
                }
                None => Step::Waits(Box::new(Waiting { request, chain, key, transport })),
            },
        }
    }

    pub async fn finish(&self, waiting: Waiting, out: &mut Vec<u8>) -> Made {
        let Waiting { request, chain, key, transport } = waiting;
        let stored = self.forwarder.resolve(key.clone()).await;
        let answer = join(chain, stored.answer(&key.name, Instant::now()));
        made(&request, answer, Source::Upstream, Keep::No, transport, out)
    }

    /// The response to a question that is not worked on.
    pub fn shed(&self, bytes: &[u8], transport: Transport, out: &mut Vec<u8>) -> Option<Made> {
        let Parsed::Question(request) = reply::parse(bytes) else { return None };
        let text = "this address asks more than its share while others ask too";
        let answer = Answer::failure(ResponseCode::ServFail, Explanation::OTHER, text);
        Some(made(&request, answer, Source::Shed, Keep::No, transport, out))
    }

    fn decide(&self, request: &Request) -> Decided {
        let name = request.query.name().to_ascii();
        let state = self.plans.read();
        let Some(loaded) = &state.loaded else {
            return self.without_plan(request, &name, Dependency::everything(state.generation));
        };
        let query = QueryType::from_number(request.query.query_type().into());
        let decision = names::answer(&loaded.plan, &name, query);
        // Behind an alias stands another name, which may change as well.
        let dependency = match decision.chain.is_empty() {
            true => state.dependency(&name.trim_end_matches('.').to_ascii_lowercase()),
            false => Dependency::everything(state.generation),
        };
        let to_records = |records: &[NameRecord]| -> Vec<Record> {
            records.iter().filter_map(|record| to_record(record, request, loaded)).collect()
        };
        let chain = to_records(&decision.chain);
        let (code, answers) = match &decision.answer {
            NameAnswer::NotOurs(target) => return forwarded(request, chain, target, dependency),
            NameAnswer::Records(records) => (ResponseCode::NoError, to_records(records)),
            NameAnswer::NoData => (ResponseCode::NoError, Vec::new()),
            NameAnswer::NxDomain | NameAnswer::Walk(_) => (ResponseCode::NXDomain, Vec::new()),
        };
        let authorities = decision.zone.iter().filter_map(|zone| soa(loaded, zone)).collect();
        let mut all = chain;
        all.extend(answers);
        let additionals = to_records(&decision.additional);
        let answer =
            Answer { code, authoritative: true, answers: all, authorities, additionals, explanation: None };
        Decided::Answer { answer: Box::new(answer), source: Source::Plan, keep: Keep::WithPlan(dependency) }
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

enum Decided {
    Answer { answer: Box<Answer>, source: Source, keep: Keep },
    Upstream { chain: Vec<Record>, key: Key, dependency: Dependency },
}

impl Decided {
    fn failure(answer: Answer, source: Source) -> Self {
        Self::Answer { answer: Box::new(answer), source, keep: Keep::No }
    }
}

fn made(
    request: &Request,
    answer: Answer,
    source: Source,
    keep: Keep,
    transport: Transport,
    out: &mut Vec<u8>,
) -> Made {
    let code = answer.code;
    let fit = reply::encode(request, answer, transport, out);
    Made { code, source, keep, fit }
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
    let key = Key {
        name,
        kind: request.query.query_type(),
        dnssec_ok: request.dnssec_ok(),
        checking_disabled: request.checking_disabled,
    };
    Decided::Upstream { chain, key, dependency }
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
    let domain = &loaded.plan.domain;
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
