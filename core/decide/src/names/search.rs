//! Where a walk through a pod's search list ends: what a resolver that walks it would find, found for it.
//!
//! A question cannot say whether it is one step of a walk or asked for itself, so a walk is only followed where the two cannot
//! be confused: from its first domain, the pod's own namespace, and for names that no service of that namespace could have.

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
    let Some(written) = written(names, &client.pod.namespace, searching, name, query) else {
        return unsearched;
    };
    let mut outside = Vec::new();
    let rest = searching.walk(written).into_iter().skip(1);
    for candidate in rest.filter(|candidate| candidate.len() <= LONGEST_NAME) {
        let decision = answer(names, &candidate, query);
        match &decision.answer {
            NameAnswer::NxDomain if decision.chain.is_empty() => {}
            NameAnswer::NotOurs(_) if decision.chain.is_empty() => outside.push(candidate),
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

/// What an application wrote whose resolver asks this question first.
fn written<'a>(
    names: &dyn Names,
    namespace: &NamespaceName,
    searching: &Searching,
    name: &'a str,
    query: QueryType,
) -> Option<&'a str> {
    if matches!(query, QueryType::Any | QueryType::Cname | QueryType::Soa | QueryType::Ns | QueryType::Ptr) {
        return None;
    }
    let own = format!("{namespace}.svc.{}", names.domain());
    let first = searching.domains.first()?;
    let written = below(name, first).filter(|written| *first == own && !written.is_empty())?;
    let is_free = match subject(below(name, names.domain())?) {
        // `github.com`, unless the pod's namespace has a service `com`.
        Subject::Endpoint(service, _) => !service_exists(names, &service),
        Subject::Other => true,
        Subject::Namespace(_) | Subject::Service(_) | Subject::Port(..) => false,
    };
    (is_free && searching.is_searched_first(written)).then_some(written)
}
