//! Answers of upstream servers, kept as long as their records allow. Time is an argument; asking lives in `forward`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::reply::{Answer, Explanation};

const LONGEST_POSITIVE: u32 = 3600;
/// RFC 2308 5: negative answers are kept no longer than a few hours; in a cluster new names are wanted sooner.
const LONGEST_NEGATIVE: u32 = 300;
const MOST_BYTES: usize = 16 << 20;
/// What an entry takes besides its records.
const ENTRY_OVERHEAD: usize = 256;

/// What makes two questions the same to an upstream server. Names compare without case.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    pub name: Name,
    pub kind: RecordType,
    pub dnssec_ok: bool,
    pub checking_disabled: bool,
}

/// An upstream server's answer, reduced to what answers the question.
#[derive(Clone, Debug)]
pub struct Stored {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub explanation: Option<Explanation>,
    pub at: Instant,
}

impl Stored {
    /// How long it may be given out: not at all when it is a failure.
    fn lifetime(&self) -> Option<Duration> {
        let seconds = match self.code {
            ResponseCode::NoError if !self.answers.is_empty() => {
                let shortest = self.answers.iter().map(|record| record.ttl).min()?;
                shortest.min(LONGEST_POSITIVE)
            }
            // Without a SOA record a negative answer is not kept (RFC 2308 5).
            ResponseCode::NoError | ResponseCode::NXDomain => {
                self.authorities.iter().find_map(negative_ttl)?.min(LONGEST_NEGATIVE)
            }
            _ => return None,
        };
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }

    /// The answer as of `now`: remaining lifetimes, the client's own spelling of the name.
    pub fn answer(&self, asked: &Name, now: Instant) -> Answer {
        let age = u32::try_from(now.saturating_duration_since(self.at).as_secs()).unwrap_or(u32::MAX);
        let aged = |records: &[Record]| {
            let mut records = records.to_vec();
            for record in &mut records {
                record.ttl = record.ttl.min(LONGEST_POSITIVE).saturating_sub(age);
                if record.name == *asked {
                    record.name = asked.clone();
                }
            }
            records
        };
        Answer {
            code: self.code,
            answers: aged(&self.answers),
            authorities: aged(&self.authorities),
            explanation: self.explanation.clone(),
            ..Answer::default()
        }
    }

    fn size(&self) -> usize {
        let records = self.answers.len() + self.authorities.len();
        let data: usize = self.answers.iter().map(|record| data_size(&record.data)).sum();
        ENTRY_OVERHEAD + records * size_of::<Record>() + data
    }
}

fn negative_ttl(record: &Record) -> Option<u32> {
    match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    }
}

/// What a record holds outside its own struct.
fn data_size(data: &RData) -> usize {
    match data {
        RData::TXT(txt) => txt.txt_data.iter().map(|text| text.len() + 16).sum(),
        RData::A(_) | RData::AAAA(_) => 0,
        _ => 256,
    }
}

#[derive(Default)]
pub struct Cache {
    entries: HashMap<Key, Entry>,
    /// In the order of insertion; the oldest makes room. Numbers tell a key's present entry from earlier ones.
    order: VecDeque<(u64, Key)>,
    bytes: usize,
    next: u64,
}

struct Entry {
    number: u64,
    stored: Arc<Stored>,
    until: Instant,
    size: usize,
}

impl Cache {
    pub fn get(&self, key: &Key, now: Instant) -> Option<Arc<Stored>> {
        self.entries.get(key).filter(|entry| now < entry.until).map(|entry| entry.stored.clone())
    }

    pub fn put(&mut self, key: Key, stored: Arc<Stored>) {
        let Some(lifetime) = stored.lifetime() else { return };
        let size = stored.size();
        let until = stored.at + lifetime;
        self.next += 1;
        let entry = Entry { number: self.next, stored, until, size };
        self.order.push_back((self.next, key.clone()));
        self.bytes += size;
        if let Some(earlier) = self.entries.insert(key, entry) {
            self.bytes -= earlier.size;
        }
        self.make_room();
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    fn make_room(&mut self) {
        // Also the order itself is bounded: replaced entries leave a place in it behind.
        while self.bytes > MOST_BYTES || self.order.len() > 2 * self.entries.len() + 16 {
            let Some((number, key)) = self.order.pop_front() else { return };
            let current = self.entries.get(&key).is_some_and(|entry| entry.number == number);
            if !current {
                continue;
            }
            if self.bytes > MOST_BYTES {
                self.bytes -= self.entries.remove(&key).map_or(0, |entry| entry.size);
            } else {
                self.order.push_back((number, key));
                return self.forget_replaced();
            }
        }
    }

    fn forget_replaced(&mut self) {
        let entries = &self.entries;
        self.order.retain(|(number, key)| entries.get(key).is_some_and(|entry| entry.number == *number));
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::{A, SOA};

    use super::*;

    fn key(name: &str) -> Key {
        let name = Name::from_ascii(name).unwrap();
        Key { name, kind: RecordType::A, dnssec_ok: false, checking_disabled: false }
    }

    fn positive(name: &str, ttl: u32, at: Instant) -> Arc<Stored> {
        let record = Record::from_rdata(
            Name::from_ascii(name).unwrap(),
            ttl,
            RData::A(A(Ipv4Addr::new(192, 0, 2, 1))),
        );
        let answers = vec![record];
        Arc::new(Stored { code: ResponseCode::NoError, answers, authorities: vec![], explanation: None, at })
    }

    fn negative(ttl: u32, minimum: u32, at: Instant) -> Arc<Stored> {
        let zone = Name::from_ascii("example.").unwrap();
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 1, 1, 1, minimum);
        let authorities = vec![Record::from_rdata(zone, ttl, RData::SOA(soa))];
        let code = ResponseCode::NXDomain;
        Arc::new(Stored { code, answers: vec![], authorities, explanation: None, at })
    }

    #[test]
    fn entries_live_as_long_as_their_records_and_age() {
        let start = Instant::now();
        let mut cache = Cache::default();
        cache.put(key("a.example."), positive("a.example.", 60, start));
        let later = start + Duration::from_secs(59);
        let stored = cache.get(&key("A.Example."), later).unwrap();
        let asked = Name::from_ascii("A.eXample.").unwrap();
        let answer = stored.answer(&asked, later);
        assert_eq!((answer.answers[0].ttl, answer.answers[0].name.to_ascii()), (1, "A.eXample.".to_owned()));
        assert!(cache.get(&key("a.example."), start + Duration::from_secs(60)).is_none());
    }

    #[test]
    fn negative_answers_are_kept_by_the_soa_and_failures_are_not() {
        let start = Instant::now();
        let mut cache = Cache::default();
        cache.put(key("no.example."), negative(900, 30, start));
        assert!(cache.get(&key("no.example."), start + Duration::from_secs(29)).is_some());
        assert!(cache.get(&key("no.example."), start + Duration::from_secs(30)).is_none());
        cache.put(key("long.example."), negative(90_000, 90_000, start));
        assert!(cache.get(&key("long.example."), start + Duration::from_secs(301)).is_none());
        let failed = Stored { code: ResponseCode::ServFail, ..(*positive("f.example.", 60, start)).clone() };
        cache.put(key("f.example."), Arc::new(failed));
        assert!(cache.get(&key("f.example."), start).is_none());
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes_first() {
        let start = Instant::now();
        let mut cache = Cache::default();
        for number in 0..100_000 {
            cache.put(key(&format!("n{number}.example.")), positive("n.example.", 60, start));
        }
        assert!(cache.bytes <= MOST_BYTES && cache.len() < 100_000);
        assert!(cache.get(&key("n0.example."), start).is_none());
        assert!(cache.get(&key("n99999.example."), start).is_some());
        for _ in 0..100_000 {
            cache.put(key("same.example."), positive("n.example.", 60, start));
        }
        assert!(cache.order.len() <= 2 * cache.len() + 17);
    }
}
