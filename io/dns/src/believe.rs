//! What of an upstream server's message is believed. Messages are hostile: they come from servers that may be wrong
//! and from others who guess ids. Asking lives in `forward`, keeping in `cache`.

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::entry::{Accepted, Key};

const HEADER: usize = 12;
/// The smallest record: a root owner, type, class, lifetime and no data.
const SMALLEST_RECORD: usize = 11;
const LONGEST_CHAIN: usize = 16;
/// RFC 8914: the option that says in words what went wrong.
const EXTENDED_ERROR: u16 = 15;
const LONGEST_EXPLANATION: usize = 200;

/// How a message relates to a query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Match {
    Answers,
    /// Everything is right but the spelling of the name: a guess, or a server that does not keep it.
    OtherSpelling,
    No,
}

/// Bytes to a message. What the counts in the header promise must be there, so that they decide on no memory.
fn decode(bytes: &[u8]) -> Option<Message> {
    let count = |at: usize| Some(usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])));
    let records = count(6)? + count(8)? + count(10)?;
    if count(4)? != 1 || records * SMALLEST_RECORD > bytes.len().checked_sub(HEADER)? {
        return None;
    }
    Message::from_vec(bytes).ok()
}

/// How bytes relate to a query, and the message they are, without the spelling the query was given.
pub fn read(bytes: &mut [u8], query: &Message) -> (Match, Option<Message>) {
    match decode(bytes).map_or(Match::No, |reply| matches(&reply, query)) {
        Match::No => (Match::No, None),
        matches => (matches, decode_lower(bytes)),
    }
}

/// The same with the question's name, and all that points to it, in lower case: as it was before its spelling was
/// made random.
fn decode_lower(bytes: &mut [u8]) -> Option<Message> {
    let mut at = HEADER;
    while let Some(length) =
        bytes.get(at).map(|length| usize::from(*length)).filter(|length| (1..64).contains(length))
    {
        bytes.get_mut(at + 1..=at + length)?.make_ascii_lowercase();
        at += 1 + length;
    }
    decode(bytes)
}

/// Whether a message is the response to exactly this query (RFC 5452 9.1).
fn matches(reply: &Message, query: &Message) -> Match {
    let answers = reply.metadata.id == query.metadata.id
        && reply.metadata.message_type == MessageType::Response
        && reply.metadata.op_code == query.metadata.op_code
        && reply.queries.len() == 1
        && reply.queries == query.queries;
    let spelled = || reply.queries.iter().zip(&query.queries).all(|(a, b)| a.name().eq_case(b.name()));
    match answers {
        true if spelled() => Match::Answers,
        true => Match::OtherSpelling,
        false => Match::No,
    }
}

/// Why a response is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    #[error("answered {code}{}", said.as_ref().map(|said| format!(" ({said})")).unwrap_or_default())]
    Code { code: ResponseCode, said: Option<String> },
    #[error("refers to other name servers instead of answering: it does no recursion for this name")]
    Referral,
}

/// The records that lead from the question to its answer, and the denial of a negative one. Everything else could be
/// about somebody else's names. What is kept is kept for this question only, so an alias that leads out of the zone
/// of the server says nothing about the name it leads to.
pub fn accept(message: Message, key: &Key) -> Result<Accepted, NoAnswer> {
    let code = message.metadata.response_code;
    if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return Err(NoAnswer::Code { code, said: said(&message) });
    }
    let chain = Chain::of(&message.answers, key);
    let positive = message.answers.iter().any(|record| chain.is_final(record, key));
    let authorities = if positive { Vec::new() } else { denial(&message.authorities, chain.last(), key) };
    let refers = |record: &Record| record.record_type() == RecordType::NS;
    if code == ResponseCode::NoError && message.answers.is_empty() && authorities.is_empty() {
        let authoritative = message.metadata.authoritative || message.metadata.recursion_available;
        if !authoritative && message.authorities.iter().any(refers) {
            return Err(NoAnswer::Referral);
        }
    }
    let authenticated = message.metadata.authentic_data;
    let answers = chain.take(message.answers, key);
    Ok(Accepted { code, answers, authorities, explanation: None, authenticated })
}

/// The names from the one asked for along its aliases.
struct Chain {
    names: Vec<Name>,
}

impl Chain {
    fn of(answers: &[Record], key: &Key) -> Self {
        let mut chain = Self { names: vec![key.name.clone()] };
        if matches!(key.kind, RecordType::CNAME | RecordType::ANY) {
            return chain;
        }
        while chain.names.len() <= LONGEST_CHAIN {
            let next = answers.iter().find_map(|record| match &record.data {
                RData::CNAME(target) if is_internet(record) && record.name == *chain.last() => {
                    Some(&target.0)
                }
                _ => None,
            });
            match next {
                Some(next) if !chain.names.contains(next) => chain.names.push(next.clone()),
                _ => break,
            }
        }
        chain
    }

    fn last(&self) -> &Name {
        // The name asked for is there from the start.
        &self.names[self.names.len() - 1]
    }

    /// Whether a record is what was asked for.
    fn is_final(&self, record: &Record, key: &Key) -> bool {
        is_internet(record)
            && record.name == *self.last()
            && match key.kind {
                RecordType::ANY => true,
                kind => record.record_type() == kind,
            }
    }

    /// Its records in the order in which a client reads them: each alias before what it leads to.
    fn take(&self, answers: Vec<Record>, key: &Key) -> Vec<Record> {
        let mut places: Vec<(usize, Record)> = Vec::new();
        for record in answers {
            if let Some(place) = self.place(&record, key, &places) {
                places.push((place, record));
            }
        }
        places.sort_by_key(|(place, _)| *place);
        places.into_iter().map(|(_, record)| record).collect()
    }

    fn place(&self, record: &Record, key: &Key, taken: &[(usize, Record)]) -> Option<usize> {
        if !is_internet(record) {
            return None;
        }
        if self.is_final(record, key) {
            return Some(self.names.len());
        }
        let at = self.names.iter().position(|name| *name == record.name);
        match record.record_type() {
            RecordType::CNAME => {
                let at = at.filter(|at| at + 1 < self.names.len())?;
                let leads_on = matches!(&record.data, RData::CNAME(target) if target.0 == self.names[at + 1]);
                let repeated = taken
                    .iter()
                    .any(|(place, record)| *place == at && record.record_type() == RecordType::CNAME);
                (leads_on && !repeated).then_some(at)
            }
            RecordType::DNAME => {
                let above = |name: &Name| record.name != *name && record.name.zone_of(name);
                self.names[..self.names.len() - 1].iter().position(above)
            }
            RecordType::RRSIG if key.dnssec_ok => {
                let at = at.or_else(|| self.names.iter().position(|name| record.name.zone_of(name)))?;
                Some(if at + 1 == self.names.len() { at + 1 } else { at })
            }
            _ => None,
        }
    }
}

/// Records that prove or date a negative answer: the SOA of a zone the name is in, and for clients that check
/// signatures what that zone says of its names.
fn denial(authorities: &[Record], last: &Name, key: &Key) -> Vec<Record> {
    let is_soa = |record: &&Record| {
        is_internet(record) && matches!(record.data, RData::SOA(_)) && record.name.zone_of(last)
    };
    let Some(soa) = authorities.iter().find(is_soa) else { return Vec::new() };
    let proves = |record: &&Record| {
        let kind = matches!(record.record_type(), RecordType::NSEC | RecordType::NSEC3 | RecordType::RRSIG);
        key.dnssec_ok && kind && is_internet(record) && soa.name.zone_of(&record.name)
    };
    std::iter::once(soa).chain(authorities.iter().filter(proves)).cloned().collect()
}

fn is_internet(record: &Record) -> bool {
    record.dns_class == DNSClass::IN
}

/// The words of an extended error, for the operator.
fn said(message: &Message) -> Option<String> {
    let EdnsOption::Unknown(_, data) = message.edns.as_ref()?.option(EdnsCode::from(EXTENDED_ERROR))? else {
        return None;
    };
    let (number, text) = data.split_at_checked(2)?;
    let number = u16::from_be_bytes([number[0], number[1]]);
    let text: String = String::from_utf8_lossy(text)
        .chars()
        .filter(|letter| !letter.is_control())
        .take(LONGEST_EXPLANATION)
        .collect();
    Some(format!("extended error {number}{}{text}", if text.is_empty() { "" } else { ": " }))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::op::{Edns, OpCode, Query};
    use hickory_proto::rr::rdata::{A, NS};
    use proptest::prelude::*;

    use super::*;
    use crate::entry::tests::{LIMITS, address, alias, key, name, soa};
    use crate::entry::{Entry, Freshness, Hit};
    use crate::reply::upstream_query;

    fn response(answers: Vec<Record>, authorities: Vec<Record>) -> Message {
        let mut message = Message::response(1, OpCode::Query);
        message.answers = answers;
        message.authorities = authorities;
        message
    }

    fn owners(records: &[Record]) -> Vec<String> {
        records.iter().map(|record| format!("{} {}", record.name, record.record_type())).collect()
    }

    #[test]
    fn only_the_questions_own_records_are_believed_in_the_order_of_the_chain() {
        let mut message = response(
            vec![
                address("host.example.", 60),
                address("www.example.", 60),
                alias("host.example.", "other.example.", 60),
                alias("www.example.", "alias.example.", 60),
                alias("www.example.", "bank.test.", 60),
                alias("alias.example.", "host.example.", 60),
                address("bank.test.", 60),
            ],
            vec![address("ns.bank.test.", 60), soa("example.", 60, 60)],
        );
        message.additionals = vec![address("bank.test.", 60)];
        let mut chain = message.clone();
        chain.answers.remove(2);
        let accepted = accept(chain, &key("www.example.")).unwrap();
        let expected = ["www.example. CNAME", "alias.example. CNAME", "host.example. A"];
        assert_eq!(owners(&accepted.answers), expected);
        assert!(accepted.authorities.is_empty(), "a positive answer has no denial");
        // An alias beside an address leads on: what it leads to was not answered.
        let accepted = accept(message, &key("www.example.")).unwrap();
        assert!(owners(&accepted.answers).iter().all(|row| row.ends_with("CNAME")));
    }

    #[test]
    fn circles_and_endless_chains_of_aliases_end() {
        let circle = response(
            vec![alias("a.example.", "b.example.", 9), alias("b.example.", "a.example.", 9)],
            vec![],
        );
        assert_eq!(owners(&accept(circle, &key("a.example.")).unwrap().answers), ["a.example. CNAME"]);
        let link = |at: usize| alias(&format!("n{at}.example."), &format!("n{}.example.", at + 1), 9);
        let long = response((0..100).map(link).collect(), vec![]);
        assert_eq!(accept(long, &key("n0.example.")).unwrap().answers.len(), LONGEST_CHAIN);
    }

    #[test]
    fn a_denial_must_come_from_a_zone_that_holds_the_name() {
        let believed = |zone| {
            let message = response(vec![], vec![soa(zone, 60, 60)]);
            accept(message, &key("a.example.")).unwrap().authorities.len()
        };
        assert_eq!(
            [believed("example."), believed("."), believed("test."), believed("b.a.example.")],
            [1, 1, 0, 0]
        );
    }

    #[test]
    fn other_classes_codes_and_referrals_are_no_answers() {
        let mut chaos = address("a.example.", 60);
        chaos.dns_class = DNSClass::CH;
        assert!(accept(response(vec![chaos], vec![]), &key("a.example.")).unwrap().answers.is_empty());
        let mut refused = response(vec![address("a.example.", 60)], vec![]);
        refused.metadata.response_code = ResponseCode::Refused;
        let mut edns = Edns::new();
        edns.options_mut().insert(EdnsOption::Unknown(15, b"\x00\x12not\x1b for you".to_vec()));
        refused.set_edns(edns);
        let error = accept(refused, &key("a.example.")).unwrap_err().to_string();
        assert_eq!(error, "answered Query Refused (extended error 18: not for you)");
        let ns = Record::from_rdata(name("example."), 60, RData::NS(NS(name("ns.example."))));
        assert_eq!(accept(response(vec![], vec![ns]), &key("a.example.")), Err(NoAnswer::Referral));
    }

    #[test]
    fn a_response_must_match_the_query_in_everything() {
        let query = upstream_query(name("a.eXample."), RecordType::A, false, false);
        let mut good = Message::response(query.metadata.id, query.metadata.op_code);
        good.add_query(Query::query(name("a.eXample."), RecordType::A));
        assert_eq!(matches(&good, &query), Match::Answers);
        let mut spelled = good.clone();
        spelled.queries[0].set_name(name("A.EXAMPLE."));
        assert_eq!(matches(&spelled, &query), Match::OtherSpelling);
        let bad: [fn(&mut Message); 6] = [
            |reply| reply.metadata.id = reply.metadata.id.wrapping_add(1),
            |reply| _ = reply.queries[0].set_name(name("b.example.")),
            |reply| _ = reply.queries[0].set_query_type(RecordType::AAAA),
            |reply| _ = reply.queries[0].set_query_class(DNSClass::CH),
            |reply| reply.queries.clear(),
            |reply| reply.metadata.message_type = MessageType::Query,
        ];
        for spoil in bad {
            let mut reply = good.clone();
            spoil(&mut reply);
            assert_eq!(matches(&reply, &query), Match::No, "{reply}");
        }
    }

    #[test]
    fn counts_that_promise_more_than_there_is_are_not_read() {
        let mut bytes = upstream_query(name("a.example."), RecordType::A, false, false).to_vec().unwrap();
        assert!(decode(&bytes).is_some());
        bytes[6..8].copy_from_slice(&[0xff, 0xff]);
        assert!(decode(&bytes).is_none());
        assert!(decode(&bytes[..11]).is_none());
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let names =
            || prop::sample::select(vec!["a.example.", "b.example.", "c.example.", "bank.test.", "."]);
        let target = prop::option::of(names());
        (names(), target, any::<u32>()).prop_map(|(owner, target, ttl)| match target {
            Some(target) => alias(owner, target, ttl),
            None => Record::from_rdata(name(owner), ttl, RData::A(A(Ipv4Addr::new(192, 0, 2, 1)))),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// A right answer with bytes changed, cut off and put in: nothing panics, and what is kept comes back from the
        /// wire form as records the question leads to.
        #[test]
        fn changed_bytes_never_panic_nor_slip_in_other_names(
            edits in prop::collection::vec((0usize..400, any::<u8>()), 0..8),
            cut in 0usize..400,
            kind in prop::sample::select(vec![RecordType::A, RecordType::CNAME, RecordType::ANY, RecordType::RRSIG]),
            dnssec_ok in any::<bool>(),
        ) {
            let asked = Key { kind, dnssec_ok, ..key("www.a.example.") };
            let query = upstream_query(asked.name.clone(), kind, dnssec_ok, false);
            let mut reply = response(
                vec![alias("www.a.example.", "b.example.", 60), address("b.example.", 60), address("bank.test.", 60)],
                vec![soa("example.", 60, 60)],
            );
            reply.metadata.id = query.metadata.id;
            reply.queries = query.queries.clone();
            let mut bytes = reply.to_vec().unwrap();
            for (at, value) in edits {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            bytes.truncate(cut.max(bytes.len() / 2));
            let (matches, reply) = read(&mut bytes, &query);
            prop_assert_eq!(matches == Match::No, reply.is_none());
            let Some(Ok(accepted)) = reply.map(|reply| accept(reply, &asked)) else { return Ok(()) };
            let start = std::time::Instant::now();
            let entry = std::sync::Arc::new(Entry::new(&asked, accepted, start, &LIMITS));
            let hit = Hit { entry, freshness: Freshness::Fresh };
            let mut names = vec![asked.name.clone()];
            for record in hit.answer(&asked.name, start).answers {
                let above = matches!(record.record_type(), RecordType::DNAME | RecordType::RRSIG);
                let led_to = names.contains(&record.name) || above && names.iter().any(|name| record.name.zone_of(name));
                prop_assert!(led_to, "{record}");
                if let RData::CNAME(target) = &record.data {
                    names.push(target.0.clone());
                }
            }
        }

        /// Whatever a server sends, each record that is kept is reached from the question, alias by alias.
        #[test]
        fn nothing_is_kept_that_the_question_does_not_lead_to(
            answers in prop::collection::vec(any_record(), 0..12),
            authorities in prop::collection::vec(any_record(), 0..4),
        ) {
            let accepted = accept(response(answers, authorities), &key("a.example.")).unwrap();
            let mut expected = name("a.example.");
            for record in &accepted.answers {
                prop_assert_eq!(&record.name, &expected);
                if let RData::CNAME(target) = &record.data {
                    expected = target.0.clone();
                }
            }
            prop_assert!(accepted.authorities.is_empty());
        }
    }
}
