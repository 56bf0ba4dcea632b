//! TCP connections of one serving thread: bytes in, framed questions out, answers back as they come (RFC 7766). What questions
//! get is decided in `reader`.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::poll::Interest;

const IDLE: Duration = Duration::from_secs(10);
/// A response that the client does not take in this time ends its connection.
const TAKES: Duration = Duration::from_secs(5);
/// A client that has asked nothing for so long is not in the middle of something.
const QUIET: Duration = Duration::from_millis(500);
const MOST_WAITING: usize = 64;
const MOST_OUTPUT: usize = 256 << 10;
/// No question is longer.
const LONGEST: usize = 4096;
/// Buffers that grew beyond this are given back when they are empty.
const KEPT: usize = 16 << 10;

pub struct Connection {
    pub stream: TcpStream,
    pub client: IpAddr,
    pub serial: u64,
    pub interest: Interest,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    /// Questions without an answer yet.
    pub waiting: usize,
    used: Instant,
    /// The client will ask no more.
    ended: bool,
}

/// What is to become of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    Stays,
    Ends,
}

impl Connection {
    /// Reads once. Nothing is read while the client has enough under way.
    pub fn read(&mut self, scratch: &mut [u8], now: Instant) -> io::Result<usize> {
        if self.is_full() || self.ended {
            return Ok(0);
        }
        match self.stream.read(scratch) {
            Ok(0) => {
                self.ended = true;
                Ok(0)
            }
            Ok(length) => {
                self.used = now;
                self.input.extend_from_slice(&scratch[..length]);
                Ok(length)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Hands out the questions that have come whole, until the client has enough under way.
    pub fn take_input(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.input)
    }

    /// Puts back what was not worked on.
    pub fn put_back(&mut self, mut input: Vec<u8>, used: usize) {
        if used == input.len() {
            input.clear();
            if input.capacity() > KEPT {
                input = Vec::new();
            }
        } else {
            input.drain(..used);
        }
        self.input = input;
    }

    pub fn is_full(&self) -> bool {
        self.waiting >= MOST_WAITING || self.output.len() - self.sent >= MOST_OUTPUT
    }

    pub fn answer(&mut self, answer: &[u8]) {
        // Answers are never longer than a length of 16 bits can say.
        let length = u16::try_from(answer.len()).unwrap_or(u16::MAX);
        self.output.extend_from_slice(&length.to_be_bytes());
        self.output.extend_from_slice(&answer[..usize::from(length)]);
    }

    /// Writes what the client takes.
    pub fn flush(&mut self, now: Instant) -> Fate {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Fate::Ends,
                Ok(length) => {
                    self.sent += length;
                    self.used = now;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Fate::Ends,
            }
        }
        if self.sent == self.output.len() {
            self.sent = 0;
            self.output.clear();
            if self.output.capacity() > KEPT {
                self.output = Vec::new();
            }
        }
        let all_answered = self.is_idle() && !matches!(frame(&self.input), Frame::Whole(_));
        if self.ended && all_answered { Fate::Ends } else { Fate::Stays }
    }

    pub fn wanted(&self) -> Interest {
        Interest { read: !self.is_full() && !self.ended, write: self.sent < self.output.len() }
    }

    fn is_idle(&self) -> bool {
        self.waiting == 0 && self.output.is_empty()
    }

    fn is_over(&self, now: Instant) -> bool {
        let quiet = now.saturating_duration_since(self.used);
        if self.output.is_empty() { self.waiting == 0 && quiet >= IDLE } else { quiet >= TAKES }
    }
}

/// One framed question at the start of `bytes`.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    Whole(&'a [u8]),
    Part,
    TooLong,
}

pub fn frame(bytes: &[u8]) -> Frame<'_> {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return Frame::Part };
    let length = usize::from(u16::from_be_bytes(*length));
    if length > LONGEST {
        return Frame::TooLong;
    }
    rest.get(..length).map_or(Frame::Part, Frame::Whole)
}

/// All connections of a thread, by place.
pub struct Connections {
    slots: Vec<Option<Connection>>,
    free: Vec<usize>,
    clients: HashMap<IpAddr, usize>,
    most: usize,
    next: u64,
}

impl Connections {
    pub fn new(most: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), clients: HashMap::new(), most, next: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// `None`: the client has its share, or all are busy.
    pub fn add(&mut self, stream: TcpStream, client: IpAddr, now: Instant) -> Option<usize> {
        if self.clients.get(&client).copied().unwrap_or_default() >= (self.most / 4).max(1) {
            return None;
        }
        if self.len() >= self.most {
            // RFC 7766 6.2.3: a server may close what is idle; whoever asked longest ago goes.
            let idle =
                self.slots.iter().enumerate().filter_map(|(index, slot)| Some((index, slot.as_ref()?)));
            let oldest = idle
                .filter(|(_, connection)| connection.is_idle())
                .min_by_key(|(_, connection)| connection.used);
            let (index, _) = oldest?;
            let connection = self.take(index)?;
            self.end(index, &connection);
        }
        self.next += 1;
        let connection = Connection {
            stream,
            client,
            serial: self.next,
            interest: Interest::READ,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            waiting: 0,
            used: now,
            ended: false,
        };
        *self.clients.entry(client).or_default() += 1;
        let index = self.free.pop().unwrap_or(self.slots.len());
        if index == self.slots.len() {
            self.slots.push(Some(connection));
        } else {
            self.slots[index] = Some(connection);
        }
        Some(index)
    }

    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn get(&mut self, index: usize) -> Option<&mut Connection> {
        self.slots.get_mut(index)?.as_mut()
    }

    /// Out of its place for as long as it is worked on.
    pub fn take(&mut self, index: usize) -> Option<Connection> {
        self.slots.get_mut(index)?.take()
    }

    pub fn put(&mut self, index: usize, connection: Connection) {
        self.slots[index] = Some(connection);
    }

    /// A connection that was taken does not come back.
    pub fn end(&mut self, index: usize, connection: &Connection) {
        self.free.push(index);
        if let Some(count) = self.clients.get_mut(&connection.client) {
            *count -= 1;
            if *count == 0 {
                self.clients.remove(&connection.client);
            }
        }
    }

    /// Ends those that are idle or do not take their answers.
    pub fn sweep(&mut self, now: Instant) {
        self.end_all(|connection| connection.is_over(now));
    }

    /// Ends those whose client has asked nothing for a while: this process is ending.
    pub fn end_quiet(&mut self, now: Instant) {
        self.end_all(|connection| {
            connection.is_idle() && now.saturating_duration_since(connection.used) >= QUIET
        });
    }

    fn end_all(&mut self, is_over: impl Fn(&Connection) -> bool) {
        for index in 0..self.slots.len() {
            if self.slots[index].as_ref().is_some_and(&is_over)
                && let Some(connection) = self.take(index)
            {
                self.end(index, &connection);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_whole_in_part_or_too_long() {
        assert_eq!(frame(&[]), Frame::Part);
        assert_eq!(frame(&[0]), Frame::Part);
        assert_eq!(frame(&[0, 2, 7]), Frame::Part);
        assert_eq!(frame(&[0, 2, 7, 8, 9]), Frame::Whole(&[7, 8]));
        assert_eq!(frame(&[0, 0, 1]), Frame::Whole(&[]));
        assert_eq!(frame(&[0xff, 0xff]), Frame::TooLong);
    }
}
