//! One upstream answer as it is kept: its wire form after the question, and where its lifetimes stand in it. Where
//! entries live is in `cache`, what of an answer is believed in `believe`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::BinDecodable;

use crate::reply::{Answer, Explanation};

const HEADER: usize = 12;
/// RFC 1035 2.3.4.
const LONGEST_NAME: usize = 255;
/// After the name: two bytes of type, one of flags.
const KEY_TAIL: usize = 3;
const DNSSEC_OK: u8 = 1;
const CHECKING_DISABLED: u8 = 2;
/// RFC 8767 5.2: how long clients may keep an answer that is past its time.
const STALE_TTL: u32 = 30;
/// RFC 2181 8: a lifetime with the highest bit set counts as none.
const MOST_TTL: u32 = i32::MAX as u32;

/// What makes two questions the same to an upstream server. Names compare without case.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    pub name: Name,
    pub kind: RecordType,
    pub dnssec_ok: bool,
    pub checking_disabled: bool,
}

impl Key {
    pub fn wire(&self) -> WireKey {
        let flags = Flags { dnssec_ok: self.dnssec_ok, checking_disabled: self.checking_disabled };
        WireKey::new(&wire_name(&self.name), self.kind.into(), flags).unwrap_or_default()
    }
}

/// A name as it stands in a question: each label after its length, then the root's zero.
pub fn wire_name(name: &Name) -> Box<[u8]> {
    let mut wire = Vec::with_capacity(LONGEST_NAME);
    for label in name.iter() {
        // A name holds no label over 63 bytes.
        wire.push(label.len() as u8);
        wire.extend_from_slice(label);
    }
    wire.push(0);
    wire.into()
}

/// The bits of a question that an upstream server answers differently to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flags {
    pub dnssec_ok: bool,
    pub checking_disabled: bool,
}

/// A `Key` from the bytes of a question, on the stack.
#[derive(Clone)]
pub struct WireKey {
    bytes: [u8; LONGEST_NAME + KEY_TAIL],
    length: usize,
}

impl WireKey {
    /// `name` is uncompressed, as it stands in a question, with the root's zero at its end. `None` when it is too long.
    pub fn new(name: &[u8], kind: u16, flags: Flags) -> Option<Self> {
        if name.is_empty() || name.len() > LONGEST_NAME {
            return None;
        }
        let mut key = Self { bytes: [0; LONGEST_NAME + KEY_TAIL], length: name.len() + KEY_TAIL };
        let (start, tail) = key.bytes.split_at_mut(name.len());
        start.copy_from_slice(name);
        // Lengths of labels are below the letters, so they stay what they are.
        start.make_ascii_lowercase();
        tail[..2].copy_from_slice(&kind.to_be_bytes());
        tail[2] =
            u8::from(flags.dnssec_ok) * DNSSEC_OK + u8::from(flags.checking_disabled) * CHECKING_DISABLED;
        Some(key)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub fn key(&self) -> Option<Key> {
        let tail = self.as_bytes().last_chunk::<KEY_TAIL>()?;
        Some(Key {
            name: Name::from_bytes(self.name()).ok()?,
            kind: u16::from_be_bytes([tail[0], tail[1]]).into(),
            dnssec_ok: tail[2] & DNSSEC_OK != 0,
            checking_disabled: tail[2] & CHECKING_DISABLED != 0,
        })
    }

    /// The name in lower case, uncompressed.
    pub fn name(&self) -> &[u8] {
        name_of(self.as_bytes())
    }
}

/// The name in the bytes of a key.
pub fn name_of(key: &[u8]) -> &[u8] {
    &key[..key.len().saturating_sub(KEY_TAIL)]
}

impl Default for WireKey {
    /// The root's, of no type: nobody asks for it.
    fn default() -> Self {
        Self { bytes: [0; LONGEST_NAME + KEY_TAIL], length: 1 + KEY_TAIL }
    }
}

impl PartialEq for WireKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for WireKey {}

impl std::hash::Hash for WireKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for WireKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "WireKey({})", self.as_bytes().escape_ascii())
    }
}

/// What of an upstream server's answer is believed.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub explanation: Option<Explanation>,
    /// The server says that it checked signatures, and nobody could have changed that on the way.
    pub authenticated: bool,
}

impl Accepted {
    pub fn failure(explanation: u16, text: impl Into<String>) -> Self {
        let explanation = Some(Explanation { code: explanation, text: text.into() });
        Self {
            code: ResponseCode::ServFail,
            answers: Vec::new(),
            authorities: Vec::new(),
            explanation,
            authenticated: false,
        }
    }
}

/// How long answers are kept, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    pub longest: u32,
    pub shortest: u32,
    pub longest_negative: u32,
    pub failure: u32,
}

/// An answer in the form it leaves in, good for every spelling of the name asked for: records name it by a pointer to
/// the question.
pub struct Entry {
    code: ResponseCode,
    answers: u16,
    authorities: u16,
    authenticated: bool,
    body: Box<[u8]>,
    /// Offsets into `body`.
    lifetimes: Box<[u16]>,
    kind: RecordType,
    explanation: Option<Explanation>,
    at: Instant,
    lifetime: Option<Duration>,
    hits: AtomicU32,
    used: AtomicBool,
    refreshing: AtomicBool,
    /// Milliseconds after `at` until which it is given out although it is past its time.
    held: AtomicU64,
}

impl Entry {
    pub fn new(key: &Key, accepted: Accepted, at: Instant, limits: &Lifetimes) -> Self {
        match encode(key, &accepted, limits) {
            Some((body, lifetimes)) => Self::of(key, accepted, at, limits, body, lifetimes),
            None => {
                let text = "the upstream name server's answer cannot be written as one message";
                let failed = Accepted::failure(Explanation::NO_REACHABLE_AUTHORITY, text);
                Self::of(key, failed, at, limits, Box::default(), Box::default())
            }
        }
    }

    fn of(
        key: &Key,
        accepted: Accepted,
        at: Instant,
        limits: &Lifetimes,
        body: Box<[u8]>,
        lifetimes: Box<[u16]>,
    ) -> Self {
        Self {
            lifetime: lifetime(key, &accepted, limits).map(|seconds| Duration::from_secs(seconds.into())),
            code: accepted.code,
            // `encode` has written them, so they can be counted with 16 bits.
            answers: accepted.answers.len() as u16,
            authorities: accepted.authorities.len() as u16,
            authenticated: accepted.authenticated,
            body,
            lifetimes,
            kind: key.kind,
            explanation: accepted.explanation,
            at,
            hits: AtomicU32::new(0),
            used: AtomicBool::new(false),
            refreshing: AtomicBool::new(false),
            held: AtomicU64::new(0),
        }
    }

    /// Until when it may be given out; `None` when it may not be kept.
    pub fn until(&self) -> Option<Instant> {
        self.lifetime.map(|lifetime| self.at + lifetime)
    }

    pub fn is_failure(&self) -> bool {
        !matches!(self.code, ResponseCode::NoError | ResponseCode::NXDomain)
    }

    /// It is past its time, nothing newer is to be had, and asking again waits until then (RFC 8767 5).
    pub fn hold(&self, until: Instant) {
        let millis = until.saturating_duration_since(self.at).as_millis();
        self.held.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub fn is_held(&self, now: Instant) -> bool {
        let millis = now.saturating_duration_since(self.at).as_millis();
        millis < u128::from(self.held.load(Ordering::Relaxed))
    }

    /// Marks a use, and says how often it was used. Written seldom, so that popular entries do not travel between cores.
    pub fn touch(&self, most: u32) -> u32 {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        let hits = self.hits.load(Ordering::Relaxed);
        if hits < most { self.hits.fetch_add(1, Ordering::Relaxed) + 1 } else { hits }
    }

    /// Whether it was used since this was last asked.
    pub fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// True once: for the first who asks within the last `percent` of its life.
    pub fn wants_refresh(&self, now: Instant, percent: u8) -> bool {
        let Some(lifetime) = self.lifetime else { return false };
        let early = (lifetime * u32::from(percent) / 100).max(Duration::from_secs(1));
        lifetime > early
            && now.saturating_duration_since(self.at) >= lifetime - early
            && !self.refreshing.swap(true, Ordering::Relaxed)
    }

    pub fn refresh_failed(&self) {
        self.refreshing.store(false, Ordering::Relaxed);
    }

    /// What it takes in memory, without its key.
    pub fn size(&self) -> usize {
        let explanation = self.explanation.as_ref().map_or(0, |explanation| explanation.text.len());
        size_of::<Self>() + self.body.len() + 2 * self.lifetimes.len() + explanation
    }

    fn append(&self, now: Instant, freshness: Freshness, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.body);
        let age = u32::try_from(now.saturating_duration_since(self.at).as_secs()).unwrap_or(u32::MAX);
        for offset in &self.lifetimes {
            let at = start + usize::from(*offset);
            let Some(field) = out.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>()) else { return };
            let left = match freshness {
                Freshness::Fresh => u32::from_be_bytes(*field).saturating_sub(age),
                Freshness::Stale => STALE_TTL,
            };
            *field = left.to_be_bytes();
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Freshness {
    Fresh,
    /// Past its time, given out because no upstream server answers (RFC 8767).
    Stale,
}

/// An answer to give out.
#[derive(Clone)]
pub struct Hit {
    pub entry: Arc<Entry>,
    pub freshness: Freshness,
}

impl Hit {
    pub fn code(&self) -> ResponseCode {
        self.entry.code
    }

    /// Records in the answer section and the authority section of `append`.
    pub fn counts(&self) -> (u16, u16) {
        (self.entry.answers, self.entry.authorities)
    }

    /// How many bytes `append` writes.
    pub fn length(&self) -> usize {
        self.entry.body.len()
    }

    /// For clients that ask for it (RFC 6840 5.7).
    pub fn authenticated(&self) -> bool {
        self.entry.authenticated && self.freshness == Freshness::Fresh
    }

    /// Writes what comes after the question: the answer and authority sections, with what is left of their lifetimes.
    /// Right only behind a header and one question for the name it is kept under, in any spelling; `out` may hold
    /// other bytes before the header.
    pub fn append(&self, now: Instant, out: &mut Vec<u8>) {
        self.entry.append(now, self.freshness, out);
    }

    pub fn explanation(&self) -> Option<Explanation> {
        match (self.freshness, self.entry.code) {
            (Freshness::Fresh, _) => self.entry.explanation.clone(),
            (Freshness::Stale, ResponseCode::NXDomain) => Some(Explanation {
                code: Explanation::STALE_NXDOMAIN,
                text: "no upstream name server answers".to_owned(),
            }),
            (Freshness::Stale, _) => Some(Explanation {
                code: Explanation::STALE,
                text: "no upstream name server answers".to_owned(),
            }),
        }
    }

    /// The answer as records, as of `now`, with the client's own spelling of the name.
    pub fn answer(&self, asked: &Name, now: Instant) -> Answer {
        let code = self.entry.code;
        let mut answer = Answer { code, explanation: self.explanation(), ..Answer::default() };
        if self.entry.body.is_empty() {
            return answer;
        }
        match self.message(asked, now) {
            Some(message) => {
                answer.answers = message.answers;
                answer.authorities = message.authorities;
                answer
            }
            None => {
                let text = "an answer in the cache cannot be read";
                Answer::failure(ResponseCode::ServFail, Explanation::NO_REACHABLE_AUTHORITY, text)
            }
        }
    }

    fn message(&self, asked: &Name, now: Instant) -> Option<Message> {
        let mut bytes = question(asked, self.entry.kind)?;
        bytes[6..8].copy_from_slice(&self.entry.answers.to_be_bytes());
        bytes[8..10].copy_from_slice(&self.entry.authorities.to_be_bytes());
        self.append(now, &mut bytes);
        Message::from_vec(&bytes).ok()
    }
}

/// Header and question of a response.
fn question(name: &Name, kind: RecordType) -> Option<Vec<u8>> {
    let mut message = Message::new(0, MessageType::Response, OpCode::Query);
    message.add_query(Query::query(name.clone(), kind));
    message.to_vec().ok()
}

/// The bytes after the question, and where in them lifetimes stand.
type Encoded = (Box<[u8]>, Box<[u16]>);

fn encode(key: &Key, accepted: &Accepted, limits: &Lifetimes) -> Option<Encoded> {
    if accepted.answers.is_empty() && accepted.authorities.is_empty() {
        return Some(Default::default());
    }
    // One spelling for all clients: names that end like the question's are pointers to it, in the client's spelling.
    let asked = key.name.to_lowercase();
    let capped = |records: &[Record]| -> Vec<Record> {
        let mut records = records.to_vec();
        for record in &mut records {
            record.ttl = ttl(record).clamp(limits.shortest, limits.longest);
            if record.name == asked {
                record.name = asked.clone();
            }
        }
        records
    };
    let mut message = Message::new(0, MessageType::Response, OpCode::Query);
    message.add_query(Query::query(asked.clone(), key.kind));
    message.answers = capped(&accepted.answers);
    message.authorities = capped(&accepted.authorities);
    let bytes = message.to_vec().ok()?;
    let written = Message::from_vec(&bytes).ok()?;
    let whole = !written.metadata.truncation
        && written.answers.len() == message.answers.len()
        && written.authorities.len() == message.authorities.len();
    let body = bytes.get(question(&asked, key.kind)?.len()..)?;
    let lifetimes = places_of_lifetimes(body, message.answers.len() + message.authorities.len())?;
    whole.then(|| (body.into(), lifetimes))
}

fn places_of_lifetimes(body: &[u8], records: usize) -> Option<Box<[u16]>> {
    let mut places = Vec::with_capacity(records);
    let mut at = 0;
    for _ in 0..records {
        loop {
            match *body.get(at)? {
                0 => break at += 1,
                pointer if pointer >= 0xc0 => break at += 2,
                label => at += 1 + usize::from(label),
            }
        }
        // Type, class, lifetime, length of the data.
        places.push(u16::try_from(at + 4).ok()?);
        let length = body.get(at + 8..at + 10)?;
        at += 10 + usize::from(u16::from_be_bytes([length[0], length[1]]));
    }
    (at == body.len()).then(|| places.into())
}

fn ttl(record: &Record) -> u32 {
    if record.ttl > MOST_TTL { 0 } else { record.ttl }
}

/// How many seconds an answer is kept; `None` when it is not.
fn lifetime(key: &Key, accepted: &Accepted, limits: &Lifetimes) -> Option<u32> {
    let shortest = |records: &[Record]| records.iter().map(ttl).min();
    let positive = has_answer(key, accepted);
    let seconds = match accepted.code {
        ResponseCode::NoError if positive => {
            shortest(&accepted.answers)?.clamp(limits.shortest, limits.longest)
        }
        // Without a SOA record a negative answer is not kept (RFC 2308 5).
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let negative = accepted.authorities.iter().find_map(negative_ttl)?.max(limits.shortest);
            let aliases = shortest(&accepted.answers).unwrap_or(u32::MAX);
            negative.min(limits.longest_negative).min(aliases)
        }
        _ => limits.failure,
    };
    (seconds > 0).then_some(seconds)
}

/// Whether the chain of aliases ends in what was asked for.
fn has_answer(key: &Key, accepted: &Accepted) -> bool {
    accepted.answers.iter().any(|record| key.kind == RecordType::ANY || record.record_type() == key.kind)
}

fn negative_ttl(record: &Record) -> Option<u32> {
    match &record.data {
        RData::SOA(soa) => Some(ttl(record).min(soa.minimum)),
        _ => None,
    }
}

/// Header and question are before it in every message, and pointers count from there.
const _: () = assert!(HEADER + LONGEST_NAME + 4 < 0x4000);

#[cfg(test)]
pub mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::{A, CNAME, MX, SOA};

    use super::*;

    pub const LIMITS: Lifetimes = Lifetimes { longest: 3600, shortest: 0, longest_negative: 300, failure: 1 };

    pub fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    pub fn key(text: &str) -> Key {
        Key { name: name(text), kind: RecordType::A, dnssec_ok: false, checking_disabled: false }
    }

    pub fn address(owner: &str, ttl: u32) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A(Ipv4Addr::new(192, 0, 2, 1))))
    }

    pub fn alias(owner: &str, target: &str, ttl: u32) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
    }

    pub fn soa(zone: &str, ttl: u32, minimum: u32) -> Record {
        let data = SOA::new(name(zone), name(zone), 1, 1, 1, 1, minimum);
        Record::from_rdata(name(zone), ttl, RData::SOA(data))
    }

    pub fn accepted(code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Accepted {
        Accepted { code, answers, authorities, explanation: None, authenticated: false }
    }

    fn seconds(asked: &str, accepted: Accepted) -> Option<u64> {
        let start = Instant::now();
        let entry = Entry::new(&key(asked), accepted, start, &LIMITS);
        entry.until().map(|until| (until - start).as_secs())
    }

    #[test]
    fn entries_live_as_long_as_their_records_allow() {
        use ResponseCode::{NXDomain, NoError, ServFail};
        let a = || address("a.example.", 60);
        assert_eq!(seconds("a.example.", accepted(NoError, vec![a()], vec![])), Some(60));
        assert_eq!(
            seconds("a.example.", accepted(NoError, vec![address("a.example.", 90_000)], vec![])),
            Some(3600)
        );
        assert_eq!(seconds("a.example.", accepted(NoError, vec![address("a.example.", 0)], vec![])), None);
        assert_eq!(
            seconds("a.example.", accepted(NoError, vec![address("a.example.", 1 << 31)], vec![])),
            None
        );
        let chain = vec![alias("w.example.", "a.example.", 20), a()];
        assert_eq!(seconds("w.example.", accepted(NoError, chain, vec![])), Some(20));
        let negative = |code, ttl, minimum| accepted(code, vec![], vec![soa("example.", ttl, minimum)]);
        assert_eq!(seconds("a.example.", negative(NXDomain, 900, 30)), Some(30));
        assert_eq!(seconds("a.example.", negative(NoError, 40, 300)), Some(40));
        assert_eq!(seconds("a.example.", negative(NXDomain, 90_000, 90_000)), Some(300));
        assert_eq!(seconds("a.example.", accepted(NXDomain, vec![], vec![])), None, "no SOA");
        let dangling = vec![alias("w.example.", "a.example.", 20)];
        assert_eq!(
            seconds("w.example.", accepted(NoError, dangling.clone(), vec![])),
            None,
            "NODATA without SOA"
        );
        assert_eq!(
            seconds("w.example.", accepted(NXDomain, dangling, vec![soa("example.", 60, 60)])),
            Some(20)
        );
        assert_eq!(seconds("a.example.", accepted(ServFail, vec![], vec![])), Some(1));
    }

    #[test]
    fn an_entry_ages_and_comes_back_in_the_clients_spelling() {
        let start = Instant::now();
        let chain = vec![alias("wWw.example.", "host.example.", 90), address("host.example.", 60)];
        let entry =
            Entry::new(&key("www.EXAMPLE."), accepted(ResponseCode::NoError, chain, vec![]), start, &LIMITS);
        let hit = Hit { entry: Arc::new(entry), freshness: Freshness::Fresh };
        let answer = hit.answer(&name("WwW.exAmple."), start + Duration::from_secs(59));
        let rows: Vec<_> = answer
            .answers
            .iter()
            .map(|record| format!("{} {} {}", record.name.to_ascii(), record.ttl, record.data))
            .collect();
        assert_eq!(rows, ["WwW.exAmple. 31 host.exAmple.", "host.exAmple. 1 192.0.2.1"]);
        let stale = Hit { freshness: Freshness::Stale, ..hit };
        let answer = stale.answer(&name("www.example."), start + Duration::from_secs(6000));
        assert_eq!(answer.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [30, 30]);
        assert_eq!(answer.explanation.unwrap().code, 3);
    }

    #[test]
    fn the_wire_form_is_a_message_when_put_behind_a_question() {
        let start = Instant::now();
        let mut key = key("example.");
        key.kind = RecordType::MX;
        let mx = |preference, host| {
            Record::from_rdata(name("example."), 60, RData::MX(MX::new(preference, name(host))))
        };
        let records = vec![mx(10, "a.mail.example."), mx(20, "b.mail.example.")];
        let entry = Entry::new(&key, accepted(ResponseCode::NoError, records, vec![]), start, &LIMITS);
        let hit = Hit { entry: Arc::new(entry), freshness: Freshness::Fresh };
        let mut bytes = vec![0x12, 0x34, 0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 0];
        bytes.extend(b"\x07eXAMPle\x00\x00\x0f\x00\x01");
        hit.append(start + Duration::from_secs(10), &mut bytes);
        assert_eq!(hit.counts(), (2, 0));
        let message = Message::from_vec(&bytes).unwrap();
        let rows: Vec<_> =
            message.answers.iter().map(|r| format!("{} {} {}", r.name.to_ascii(), r.ttl, r.data)).collect();
        assert_eq!(rows, ["eXAMPle. 50 10 a.mail.eXAMPle.", "eXAMPle. 50 20 b.mail.eXAMPle."]);
    }

    #[test]
    fn keys_compare_without_case_and_with_their_bits() {
        let wire = key("A.eXample.").wire();
        let flags = Flags::default();
        assert_eq!(wire, WireKey::new(b"\x01a\x07EXAMPLE\x00", 1, flags).unwrap());
        assert_eq!(wire.name(), b"\x01a\x07example\x00");
        assert_eq!(wire.key(), Some(key("a.example.")));
        assert_ne!(wire, WireKey::new(b"\x01a\x07EXAMPLE\x00", 28, flags).unwrap());
        let signed = Flags { dnssec_ok: true, ..flags };
        assert_ne!(wire, WireKey::new(b"\x01a\x07EXAMPLE\x00", 1, signed).unwrap());
        assert!(WireKey::new(&[1; 256], 1, flags).is_none() && WireKey::new(&[], 1, flags).is_none());
        let longest = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".") + ".";
        assert_eq!(key(&longest).wire().name().len(), 255);
    }
}
