//! Where a walk through a pod's search list ends: what a resolver that walks it would find, found for it.
//!
//! A question cannot say whether it begins a walk, continues one, or is asked for itself. It is taken for a beginning where
//! nothing else makes sense: below the pod's own namespace, the first domain of its list, and for a name that nothing in that
//! namespace has. With two labels (`github.com`) it still could be the host of a service that is to come, so such a walk is only
//! followed out of the cluster, never to another of its names.

use weft_model::{NamespaceName, Searching};
use weft_plan::NameClient;

use super::{
    NameAnswer, NameCause, NameData, NameDecision, NameRecord, Names, QueryType, Subject, Walk, answer,
    below, service_exists, subject,
};

/// RFC 1035 2.3.4, in presentation form: resolvers leave longer names out of their walk.
const LONGEST_NAME: usize = 253;

/// `unsearched` is the answer to the question itself: its name does not exist.
pub(super) fn follow(
    names: &dyn Names,
    client: &NameClient,
    name: &str,
    query: QueryType,
    unsearched: NameDecision,
) -> NameDecision {
    let Some(searching) = &client.searching else { return unsearched };
    let Some(Written { written, ends }) = written(names, &client.pod.namespace, searching, name, query)
    else {
        return unsearched;
    };
    let mut outside = Vec::new();
    let rest = searching.walk(written).into_iter().skip(1);
    for candidate in rest.filter(|candidate| candidate.len() <= LONGEST_NAME) {
        let decision = answer(names, &candidate, query);
        match &decision.answer {
            NameAnswer::NxDomain if decision.chain.is_empty() => {}
            NameAnswer::NotOurs(_) if decision.chain.is_empty() => outside.push(candidate),
            _ if ends == Ends::Outside => return unsearched,
            _ => {
                let found = found(decision, name, written, candidate);
                return walk(outside, written, found, unsearched);
            }
        }
    }
    walk(outside, written, unsearched.clone(), unsearched)
}

fn walk(outside: Vec<String>, written: &str, then: NameDecision, unsearched: NameDecision) -> NameDecision {
    if outside.is_empty() {
        return then;
    }
    let walk = Walk { outside, then: Box::new(then), unsearched: Box::new(unsearched) };
    NameDecision {
        chain: Vec::new(),
        answer: NameAnswer::Walk(walk),
        additional: Vec::new(),
        zone: None,
        cause: NameCause::SearchedOutside { written: written.to_owned() },
    }
}

/// A name of the cluster, led to by an alias from the question's.
fn found(decision: NameDecision, name: &str, written: &str, candidate: String) -> NameDecision {
    let alias = NameRecord { name: name.to_owned(), data: NameData::Cname(candidate.clone()) };
    let chain = std::iter::once(alias).chain(decision.chain).collect();
    let cause = Box::new(decision.cause);
    let cause = NameCause::Searched { written: written.to_owned(), found: candidate, cause };
    NameDecision { chain, cause, ..decision }
}

struct Written<'a> {
    written: &'a str,
    ends: Ends,
}

/// Where a walk may be said to end.
#[derive(PartialEq, Eq)]
enum Ends {
    Anywhere,
    Outside,
}

/// What an application wrote whose resolver asks this question first.
fn written<'a>(
    names: &dyn Names,
    namespace: &NamespaceName,
    searching: &Searching,
    name: &'a str,
    query: QueryType,
) -> Option<Written<'a>> {
    if matches!(query, QueryType::Any | QueryType::Cname | QueryType::Soa | QueryType::Ns | QueryType::Ptr) {
        return None;
    }
    let own = format!("{namespace}.svc.{}", names.domain());
    let first = searching.domains.first().filter(|first| **first == own)?;
    let written = below(name, first).filter(|written| searching.is_searched_first(written))?;
    let ends = match subject(below(name, names.domain())?) {
        Subject::Endpoint(service, _) if !service_exists(names, &service) => Ends::Outside,
        Subject::Other => Ends::Anywhere,
        Subject::Endpoint(..) | Subject::Namespace(_) | Subject::Service(_) | Subject::Port(..) => {
            return None;
        }
    };
    Some(Written { written, ends })
}
