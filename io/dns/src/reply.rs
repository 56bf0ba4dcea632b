//! Wire bytes to one question, and an answer to wire bytes. No sockets, no choice of answers.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};

const HEADER: usize = 12;
/// What fits into a UDP response when the client says nothing (RFC 1035 2.3.4).
pub const PLAIN_UDP: u16 = 512;
/// The largest UDP response that no usual path fragments (DNS flag day 2020).
pub const LARGEST_UDP: u16 = 1232;
/// A question carries an OPT record and perhaps a signature; more is nonsense.
const MOST_ADDITIONALS: u16 = 4;
/// RFC 8914 3: the option that says in words what went wrong.
const EXTENDED_ERROR: u16 = 15;

/// How a question came in: it bounds the size of its response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    Udp,
    Tcp,
}

/// One understood question.
#[derive(Clone, Debug)]
pub struct Request {
    pub id: u16,
    pub query: Query,
    pub recursion_desired: bool,
    pub checking_disabled: bool,
    pub edns: Option<ClientEdns>,
}

#[derive(Clone, Copy, Debug)]
pub struct ClientEdns {
    pub payload: u16,
    pub dnssec_ok: bool,
}

#[derive(Debug)]
pub enum Parsed {
    Question(Box<Request>),
    /// Answered at once with a code, without looking at names.
    Refused(Box<Request>, ResponseCode),
    /// Not even a question that could be repeated in the response: header only.
    Broken(Vec<u8>, ResponseCode),
    /// No response: not a request, or too short to have an id.
    Ignored,
}

/// What goes back, before it meets the size limit.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub code: ResponseCode,
    pub authoritative: bool,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
    pub explanation: Option<Explanation>,
}

/// An extended error (RFC 8914).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub code: u16,
    pub text: String,
}

impl Explanation {
    pub const OTHER: u16 = 0;
    pub const STALE: u16 = 3;
    pub const NOT_READY: u16 = 14;
    pub const STALE_NXDOMAIN: u16 = 19;
    pub const NOT_AUTHORITATIVE: u16 = 20;
    pub const NOT_SUPPORTED: u16 = 21;
    pub const NO_REACHABLE_AUTHORITY: u16 = 22;
    pub const NETWORK_ERROR: u16 = 23;
}

impl Answer {
    pub fn failure(code: ResponseCode, explanation: u16, text: impl Into<String>) -> Self {
        let explanation = Some(Explanation { code: explanation, text: text.into() });
        Self { code, explanation, ..Self::default() }
    }
}

pub fn parse(bytes: &[u8]) -> Parsed {
    if bytes.len() < HEADER || bytes[2] & 0x80 != 0 {
        return Parsed::Ignored;
    }
    let opcode = bytes[2] >> 3 & 0x0f;
    if opcode != u8::from(OpCode::Query) {
        return Parsed::Broken(header_only(bytes, ResponseCode::NotImp), ResponseCode::NotImp);
    }
    let broken = || Parsed::Broken(header_only(bytes, ResponseCode::FormErr), ResponseCode::FormErr);
    let count = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    // Counted before decoding: the numbers are the sender's and decide how much is allocated.
    if count(4) != 1 || count(6) != 0 || count(8) != 0 || count(10) > MOST_ADDITIONALS {
        return broken();
    }
    let Ok(message) = Message::from_vec(bytes) else { return broken() };
    let Some(query) = message.queries.first().cloned() else { return broken() };
    let request = Box::new(Request {
        id: message.metadata.id,
        query,
        recursion_desired: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        edns: message
            .edns
            .as_ref()
            .map(|edns| ClientEdns { payload: edns.max_payload(), dnssec_ok: edns.flags().dnssec_ok }),
    });
    if message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Parsed::Refused(request, ResponseCode::BADVERS);
    }
    match request.query.query_type() {
        RecordType::OPT | RecordType::TSIG | RecordType::ZERO => {
            Parsed::Refused(request, ResponseCode::FormErr)
        }
        RecordType::AXFR | RecordType::IXFR => Parsed::Refused(request, ResponseCode::Refused),
        _ if request.query.query_class() != DNSClass::IN => Parsed::Refused(request, ResponseCode::Refused),
        _ => Parsed::Question(request),
    }
}

fn header_only(request: &[u8], code: ResponseCode) -> Vec<u8> {
    let mut header = vec![0; HEADER];
    header[..2].copy_from_slice(&request[..2]);
    // Response, the opcode and "recursion desired" as they came.
    header[2] = 0x80 | request[2] & 0x79;
    header[3] = code.low();
    header
}

impl Request {
    /// The most bytes a response may have.
    pub fn limit(&self, transport: Transport) -> u16 {
        match (transport, self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, Some(edns)) => edns.payload.clamp(PLAIN_UDP, LARGEST_UDP),
            (Transport::Udp, None) => PLAIN_UDP,
        }
    }

    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }
}

/// Whether everything fitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fit {
    Whole,
    /// Only additional records are left out.
    Shortened,
    Truncated,
}

/// Writes the response into `out`, which is emptied first. What does not fit is left out: additionals silently,
/// answers with the truncation bit, as many kept as fit for clients that cannot ask over TCP.
pub fn encode(request: &Request, answer: Answer, transport: Transport, out: &mut Vec<u8>) -> Fit {
    let limit = usize::from(request.limit(transport));
    let mut message = message(request, answer);
    if emit(&message, out) && out.len() <= limit {
        return Fit::Whole;
    }
    message.additionals.clear();
    if emit(&message, out) && out.len() <= limit {
        return Fit::Shortened;
    }
    message.metadata.truncation = true;
    message.authorities.clear();
    let answers = std::mem::take(&mut message.answers);
    let (mut fits, mut too_many) = (0, answers.len() + 1);
    while too_many - fits > 1 {
        let middle = fits.midpoint(too_many);
        message.answers = answers[..middle].to_vec();
        if emit(&message, out) && out.len() <= limit { fits = middle } else { too_many = middle }
    }
    message.answers = answers[..fits].to_vec();
    if !(emit(&message, out) && out.len() <= limit) {
        // Only an explanation can still be too long.
        message.edns = request.edns.map(|_| server_edns(request, None));
        emit(&message, out);
    }
    Fit::Truncated
}

fn message(request: &Request, answer: Answer) -> Message {
    let mut message = Message::response(request.id, OpCode::Query);
    message.metadata.authoritative = answer.authoritative;
    message.metadata.recursion_desired = request.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.checking_disabled = request.checking_disabled;
    message.metadata.response_code = answer.code;
    message.queries = vec![request.query.clone()];
    message.answers = answer.answers;
    message.authorities = answer.authorities;
    message.additionals = answer.additionals;
    message.edns = request.edns.map(|_| server_edns(request, answer.explanation.as_ref()));
    message
}

fn server_edns(request: &Request, explanation: Option<&Explanation>) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(LARGEST_UDP).set_version(0).set_dnssec_ok(request.dnssec_ok());
    if let Some(explanation) = explanation {
        let mut data = explanation.code.to_be_bytes().to_vec();
        data.extend_from_slice(explanation.text.as_bytes());
        edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, data));
    }
    edns
}

fn emit(message: &Message, out: &mut Vec<u8>) -> bool {
    use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
    out.clear();
    message.emit(&mut BinEncoder::new(out)).is_ok()
}

/// A query to an upstream server, with a random id.
pub fn upstream_query(name: Name, kind: RecordType, dnssec_ok: bool, checking_disabled: bool) -> Message {
    let mut message = Message::query();
    message.metadata.message_type = MessageType::Query;
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = checking_disabled;
    message.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(LARGEST_UDP).set_version(0).set_dnssec_ok(dnssec_ok);
    message.set_edns(edns);
    message
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::RData;
    use hickory_proto::rr::rdata::A;
    use proptest::prelude::*;

    use super::*;

    fn question(name: &str, payload: Option<u16>) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = 0x1234;
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }

    fn understood(bytes: &[u8]) -> Request {
        match parse(bytes) {
            Parsed::Question(request) => *request,
            other => panic!("{other:?}"),
        }
    }

    fn records(name: &str, count: u8) -> Vec<Record> {
        let name = Name::from_ascii(name).unwrap();
        let data = |last| RData::A(A(Ipv4Addr::new(10, 0, 0, last)));
        (0..count).map(|last| Record::from_rdata(name.clone(), 5, data(last))).collect()
    }

    /// Proves RFC 4343: The question comes back in the case it was asked in, and so do the names of its answer.
    #[test]
    fn case_is_kept_in_question_and_answer() {
        let bytes = question("wEb.ShOp.svc.cluster.local.", None);
        let request = understood(&bytes);
        let answer = Answer { answers: records("wEb.ShOp.svc.cluster.local.", 1), ..Answer::default() };
        let mut out = Vec::new();
        assert_eq!(encode(&request, answer, Transport::Udp, &mut out), Fit::Whole);
        let written = bytes.len();
        assert_eq!(out[HEADER..written], bytes[HEADER..], "the question comes back byte by byte");
        assert_eq!(out[written..written + 2], [0xc0, 12], "the owner is a pointer to the question's name");
    }

    /// Proves RFC 1035 §4.2.1, RFC 6891: What a client can take bounds a UDP answer: 512 bytes without EDNS, its payload size up to
    /// 1232 with it; what does not fit is left out and said.
    #[test]
    fn long_answers_are_cut_to_the_clients_size_with_as_many_records_as_fit() {
        for (payload, size) in [(None, 512), (Some(700), 700), (Some(4096), 1232), (Some(10), 512)] {
            let request = understood(&question("many.shop.svc.cluster.local.", payload));
            let answer =
                Answer { answers: records("many.shop.svc.cluster.local.", 200), ..Answer::default() };
            let mut out = Vec::new();
            assert_eq!(encode(&request, answer.clone(), Transport::Udp, &mut out), Fit::Truncated);
            assert!(out.len() <= size && out.len() > size - 32, "{} of {size}", out.len());
            let reply = Message::from_vec(&out).unwrap();
            assert!(reply.metadata.truncation && !reply.answers.is_empty());
            assert_eq!(encode(&request, answer, Transport::Tcp, &mut out), Fit::Whole);
            assert_eq!(Message::from_vec(&out).unwrap().answers.len(), 200);
        }
    }

    /// Proves RFC 1035 §4.1.1, RFC 9619: FORMERR for no question, several, or one cut off; NOTIMP for other opcodes; REFUSED for
    /// other classes; BADVERS for a later EDNS; nothing for responses.
    #[test]
    fn what_is_no_single_question_is_refused_with_the_right_code() {
        let good = question("a.example.", Some(1232));
        let with = |edit: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            edit(&mut bytes);
            parse(&bytes)
        };
        let code = |parsed| match parsed {
            Parsed::Broken(bytes, code) => {
                assert_eq!((bytes.len(), &bytes[..2], bytes[3]), (12, &[0x12, 0x34][..], code.low()));
                code
            }
            Parsed::Refused(_, code) => code,
            other => panic!("{other:?}"),
        };
        assert_eq!(code(with(&|bytes| bytes[5] = 2)), ResponseCode::FormErr, "several questions");
        assert_eq!(code(with(&|bytes| bytes[5] = 0)), ResponseCode::FormErr, "no question");
        assert_eq!(code(with(&|bytes| bytes.truncate(15))), ResponseCode::FormErr, "cut off");
        assert_eq!(code(with(&|bytes| bytes[2] = 0x28)), ResponseCode::NotImp, "dynamic update");
        let class = question("a.example.", None).len() - 1;
        assert_eq!(
            code(parse(&{
                let mut bytes = question("a.example.", None);
                bytes[class] = 3;
                bytes
            })),
            ResponseCode::Refused,
            "class CHAOS"
        );
        let version = good.len() - 5;
        assert_eq!(code(with(&|bytes| bytes[version] = 1)), ResponseCode::BADVERS);
        assert!(matches!(with(&|bytes| bytes[2] |= 0x80), Parsed::Ignored), "a response");
        assert!(matches!(parse(&good[..11]), Parsed::Ignored));
    }

    /// Proves RFC 8914: What went wrong is said in words to clients that speak EDNS.
    #[test]
    fn an_extended_error_reaches_clients_that_speak_edns() {
        let request = understood(&question("a.example.", Some(1232)));
        let answer = Answer::failure(ResponseCode::ServFail, Explanation::NOT_READY, "not yet");
        let mut out = Vec::new();
        encode(&request, answer, Transport::Udp, &mut out);
        assert!(out.windows(9).any(|window| window == b"\x00\x0enot yet"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn no_bytes_make_it_panic_and_every_response_is_one(
            noise in proptest::collection::vec(any::<u8>(), 0..300),
            edits in proptest::collection::vec((0usize..60, any::<u8>()), 0..6),
        ) {
            parse(&noise);
            let mut bytes = question("web.shop.svc.cluster.local.", Some(1232));
            for (at, value) in edits {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            match parse(&bytes) {
                Parsed::Question(request) | Parsed::Refused(request, _) => {
                    let mut out = Vec::new();
                    encode(&request, Answer::default(), Transport::Udp, &mut out);
                    prop_assert!(out.len() <= usize::from(request.limit(Transport::Udp)));
                    prop_assert_eq!(&out[..2], &bytes[..2]);
                }
                Parsed::Broken(out, _) => prop_assert_eq!(out.len(), HEADER),
                Parsed::Ignored => {}
            }
        }
    }
}
