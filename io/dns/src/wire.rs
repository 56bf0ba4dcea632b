//! The common question read without decoding it, and ready answers fitted to it. Bytes only: everything unusual is left to
//! `reply`, which decodes whole messages and says the same.

use crate::index::ClientClass;
use crate::reply::{LARGEST_UDP, PLAIN_UDP};

pub const HEADER: usize = 12;
const LONGEST_NAME: usize = 255;
/// Type and class after a question's name.
const QUESTION_TAIL: usize = 4;
/// An OPT record without options: root name, type, payload size, code, version, flags, length of nothing.
const OPT: usize = 11;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;
const TRUNCATED: u8 = 2;
const ANSWER_LIMIT: usize = 4096;

/// What tells one ready answer from another: the name in lower case, the type, and the flags that show in an answer.
pub struct Key {
    bytes: [u8; LONGEST_NAME + TAIL + CLASS],
    name: usize,
    length: usize,
}

/// Type and flags; and the class of clients, for answers that not all get.
const TAIL: usize = 3;
const CLASS: usize = 4;

impl Default for Key {
    fn default() -> Self {
        Self { bytes: [0; LONGEST_NAME + TAIL + CLASS], name: 0, length: 0 }
    }
}

impl Key {
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// In wire form.
    pub fn name(&self) -> &[u8] {
        &self.bytes[..self.name]
    }

    /// From now on it is the key of these clients alone.
    pub fn set_class(&mut self, class: ClientClass) {
        let end = self.name + TAIL;
        self.bytes[end..end + CLASS].copy_from_slice(&class.0.to_be_bytes());
        self.length = end + CLASS;
    }
}

/// A question as most clients ask it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Common {
    pub kind: u16,
    /// Of the name in wire form, with its last zero.
    name_length: usize,
    /// The most bytes a UDP response may have.
    pub udp_limit: usize,
    pub upper_case: bool,
}

const RECURSION_DESIRED: u8 = 1;
const CHECKING_DISABLED: u8 = 2;
const EDNS: u8 = 4;
const DNSSEC_OK: u8 = 8;

/// Reads a question of one name in class IN, with or without a plain OPT record, and fills in its key. `None` is no judgement:
/// the message is not common.
pub fn common(message: &[u8], key: &mut Key) -> Option<Common> {
    let header: &[u8; HEADER] = message.first_chunk()?;
    let [_, _, first, second, 0, 1, 0, 0, 0, 0, 0, additionals @ 0..=1] = *header else { return None };
    // Of the flags only "recursion desired", "authentic data" and "checking disabled" are common.
    if first & 0xfe != 0 || second & 0xcf != 0 {
        return None;
    }
    let (name_length, upper_case) = read_name(&message[HEADER..], key)?;
    let tail = message.get(HEADER + name_length..)?;
    let [kind_high, kind_low, class_high, class_low, rest @ ..] = tail else { return None };
    let kind = u16::from_be_bytes([*kind_high, *kind_low]);
    if u16::from_be_bytes([*class_high, *class_low]) != CLASS_IN {
        return None;
    }
    let mut flags = first & RECURSION_DESIRED;
    if second & 0x10 != 0 {
        flags |= CHECKING_DISABLED;
    }
    let udp_limit = match (additionals, rest) {
        (0, []) => PLAIN_UDP,
        (1, rest) => {
            let (payload, dnssec_ok) = read_opt(rest)?;
            flags |= EDNS | if dnssec_ok { DNSSEC_OK } else { 0 };
            payload.clamp(PLAIN_UDP, LARGEST_UDP)
        }
        _ => return None,
    };
    key.bytes[name_length..name_length + TAIL].copy_from_slice(&[*kind_high, *kind_low, flags]);
    (key.name, key.length) = (name_length, name_length + TAIL);
    Some(Common { kind, name_length, udp_limit: udp_limit.into(), upper_case })
}

/// The type asked for, as far as the message is a question at all.
pub fn kind(message: &[u8]) -> Option<u16> {
    let at = skip_name(message, HEADER)?;
    let kind = message.get(at..at + 2)?;
    Some(u16::from_be_bytes([kind[0], kind[1]]))
}

/// The name asked for, as it was spelled (RFC 1035 5.1).
pub fn name(message: &[u8]) -> Option<String> {
    let mut text = String::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        if length == 0 || length > 63 || text.len() > LONGEST_NAME {
            break;
        }
        for byte in message.get(at + 1..=at + length)? {
            match byte {
                b'.' | b'\\' => text.extend(['\\', char::from(*byte)]),
                b'!'..=b'~' => text.push(char::from(*byte)),
                _ => text.push_str(&format!("\\{byte:03}")),
            }
        }
        text.push('.');
        at += 1 + length;
    }
    Some(if text.is_empty() { ".".to_owned() } else { text })
}

/// The name in lower case goes into the key; its length, and whether that changed it.
fn read_name(bytes: &[u8], key: &mut Key) -> Option<(usize, bool)> {
    let mut at = 0;
    let mut upper_case = false;
    loop {
        let length = usize::from(*bytes.get(at)?);
        // Longer ones are pointers or reserved.
        if length > 63 || at + length + 2 > LONGEST_NAME && length > 0 {
            return None;
        }
        key.bytes[at] = length as u8;
        at += 1;
        if length == 0 {
            return Some((at, upper_case));
        }
        let label = bytes.get(at..at + length)?;
        for (byte, place) in label.iter().zip(&mut key.bytes[at..at + length]) {
            let lower = byte.to_ascii_lowercase();
            upper_case |= lower != *byte;
            *place = lower;
        }
        at += length;
    }
}

fn read_opt(bytes: &[u8]) -> Option<(u16, bool)> {
    let opt: &[u8; OPT] = bytes.try_into().ok()?;
    let [0, kind_high, kind_low, payload_high, payload_low, 0, 0, flags, 0, 0, 0] = *opt else { return None };
    if u16::from_be_bytes([kind_high, kind_low]) != TYPE_OPT || flags & 0x7f != 0 {
        return None;
    }
    Some((u16::from_be_bytes([payload_high, payload_low]), flags & 0x80 != 0))
}

/// The same question in lower case with id 0.
pub fn canonical(message: &[u8], key: &Key) -> Vec<u8> {
    let mut canonical = message.to_vec();
    canonical[..2].fill(0);
    let name = key.name();
    canonical[HEADER..HEADER + name.len()].copy_from_slice(name);
    canonical
}

/// A whole response to a question in lower case, with what in it depends on who asks and when.
#[derive(Debug)]
pub struct Ready {
    wire: Box<[u8]>,
    /// Where the times to live are.
    ttls: Box<[u16]>,
    rotation: Option<Rotation>,
    /// What stays when addresses must be left out: the OPT record at the end. `None`: there is more than addresses in it.
    cut: Option<usize>,
}

/// Addresses at the end of the answers, all of one size: each client gets them from another one on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rotation {
    start: usize,
    count: usize,
    size: usize,
}

impl Ready {
    /// `None` for what is no response of one question, or too long to be worth keeping. Without `ages` the times to live stay as
    /// they are, however long it is kept.
    pub fn new(wire: &[u8], ages: Ages) -> Option<Self> {
        if wire.len() > ANSWER_LIMIT {
            return None;
        }
        let records = Records::read(wire)?;
        let ttls = match ages {
            Ages::Yes => records.ttls.into(),
            Ages::No => Box::default(),
        };
        let cut = records.rotation.and_then(|_| (records.authorities == 0).then_some(records.opt));
        Some(Self { wire: wire.into(), ttls, rotation: records.rotation, cut })
    }

    pub fn len(&self) -> usize {
        self.wire.len()
    }

    pub fn code(&self) -> u8 {
        self.wire[3] & 0x0f
    }

    /// Memory outside the struct.
    pub fn heap_size(&self) -> usize {
        self.wire.len() + 2 * self.ttls.len()
    }

    /// The shortest time to live in seconds.
    pub fn shortest_ttl(&self) -> Option<u32> {
        self.ttls.iter().map(|at| self.ttl(usize::from(*at))).min()
    }

    fn ttl(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.wire[at], self.wire[at + 1], self.wire[at + 2], self.wire[at + 3]])
    }

    /// Writes as much of the response as fits into `limit` and returns its length and whether addresses are left out; `None`:
    /// not by leaving out addresses. `out` has room for the whole of it.
    pub fn write_cut(
        &self,
        question: &[u8],
        common: &Common,
        age: u32,
        turn: usize,
        out: &mut Vec<u8>,
    ) -> Option<(usize, bool)> {
        let (opt, Rotation { start, count, size }) = (self.cut?, self.rotation?);
        if out.len() < self.wire.len() {
            out.resize(self.wire.len(), 0);
        }
        self.write(question, common, age, turn, out);
        let room = common.udp_limit.checked_sub(start + opt)?;
        let fits = (room / size).min(count);
        let end = start + fits * size;
        out[end..end + opt].copy_from_slice(&self.wire[self.wire.len() - opt..]);
        let left_out = count - fits;
        let answers = u16::from_be_bytes([self.wire[6], self.wire[7]]).checked_sub(left_out as u16)?;
        out[6..8].copy_from_slice(&answers.to_be_bytes());
        out[10..12].copy_from_slice(&u16::from(opt > 0).to_be_bytes());
        if left_out > 0 {
            out[2] |= TRUNCATED;
        }
        Some((end + opt, left_out > 0))
    }

    /// Writes the response to `question` and returns its length; `out` has room for it.
    pub fn write(&self, question: &[u8], common: &Common, age: u32, turn: usize, out: &mut [u8]) -> usize {
        let length = self.wire.len();
        let out = &mut out[..length];
        out.copy_from_slice(&self.wire);
        out[..2].copy_from_slice(&question[..2]);
        let name = HEADER..HEADER + common.name_length;
        out[name.clone()].copy_from_slice(&question[name]);
        if let Some(Rotation { start, count, size }) = self.rotation {
            let first = turn % count * size;
            let records = &self.wire[start..start + count * size];
            out[start..start + count * size - first].copy_from_slice(&records[first..]);
            out[start + count * size - first..start + count * size].copy_from_slice(&records[..first]);
        }
        if age > 0 {
            for at in &self.ttls {
                let at = usize::from(*at);
                let ttl = self.ttl(at).saturating_sub(age);
                out[at..at + 4].copy_from_slice(&ttl.to_be_bytes());
            }
        }
        length
    }
}

/// Whether the times to live in an answer count down while it is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ages {
    Yes,
    No,
}

#[derive(Default)]
struct Records {
    ttls: Vec<u16>,
    rotation: Option<Rotation>,
    authorities: usize,
    /// The size of the OPT record, if the last one is one.
    opt: usize,
}

impl Records {
    fn read(wire: &[u8]) -> Option<Self> {
        let count = |at: usize| Some(usize::from(u16::from_be_bytes([*wire.get(at)?, *wire.get(at + 1)?])));
        if count(4)? != 1 {
            return None;
        }
        let (answers, authorities, others) = (count(6)?, count(8)?, count(8)? + count(10)?);
        let mut at = skip_name(wire, HEADER)? + QUESTION_TAIL;
        let mut found = Self { authorities, ..Self::default() };
        for number in 0..answers + others {
            let fixed = skip_name(wire, at)?;
            let kind = u16::from_be_bytes([*wire.get(fixed)?, *wire.get(fixed + 1)?]);
            let end = fixed + 10 + count(fixed + 8)?;
            if end > wire.len() {
                return None;
            }
            found.opt = if kind == TYPE_OPT { end - at } else { 0 };
            if kind != TYPE_OPT {
                found.ttls.push(u16::try_from(fixed + 4).ok()?);
            }
            if number < answers {
                found.rotate(wire, at, end, kind);
            }
            at = end;
        }
        found.rotation = found.rotation.filter(|rotation| rotation.count > 1);
        (at == wire.len()).then_some(found)
    }

    /// Address records of one owner that follow each other to the last answer. The owner is a pointer: nothing points into them.
    fn rotate(&mut self, wire: &[u8], at: usize, end: usize, kind: u16) {
        let size = end - at;
        let is_address = matches!((kind, size), (TYPE_A, 16) | (TYPE_AAAA, 28)) && wire[at] & 0xc0 == 0xc0;
        self.rotation = match self.rotation {
            _ if !is_address => None,
            Some(run) if run.size == size && wire[run.start..run.start + 2] == wire[at..at + 2] => {
                Some(Rotation { count: run.count + 1, ..run })
            }
            _ => Some(Rotation { start: at, count: 1, size }),
        };
    }
}

fn skip_name(wire: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match usize::from(*wire.get(at)?) {
            0 => return Some(at + 1),
            length @ 1..=63 => at += length + 1,
            0xc0..=0xff => return Some(at + 2),
            _ => return None,
        }
    }
}
