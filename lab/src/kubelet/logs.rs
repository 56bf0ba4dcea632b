//! Container logs in the container runtimes' line format: writing by the monitor, selecting for a reader.
//! Serving them over HTTP is in server.rs.
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// A log that grows past this is set aside as `log.1`, replacing the one before.
const LARGEST_LOG: u64 = 16 << 20;
/// A line longer than this is written in parts.
const LONGEST_LINE: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Writes `TIME STREAM F|P TEXT` lines.
pub struct LogWriter {
    path: PathBuf,
    file: File,
    size: u64,
    pending: [Vec<u8>; 2],
}

impl LogWriter {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, pending: [Vec::new(), Vec::new()] })
    }

    pub fn write(&mut self, stream: Stream, bytes: &[u8], now: Timestamp) -> io::Result<()> {
        let pending = &mut self.pending[stream as usize];
        pending.extend_from_slice(bytes);
        let mut out = Vec::with_capacity(bytes.len() + 64);
        let mut rest = pending.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            append_line(&mut out, stream, &rest[..end], 'F', now);
            rest = &rest[end + 1..];
        }
        while rest.len() >= LONGEST_LINE {
            append_line(&mut out, stream, &rest[..LONGEST_LINE], 'P', now);
            rest = &rest[LONGEST_LINE..];
        }
        *pending = rest.to_vec();
        self.append(&out)
    }

    /// Writes what was left without an end of line.
    pub fn finish(&mut self, now: Timestamp) -> io::Result<()> {
        let mut out = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = std::mem::take(&mut self.pending[stream as usize]);
            if !rest.is_empty() {
                append_line(&mut out, stream, &rest, 'P', now);
            }
        }
        self.append(&out)
    }

    fn append(&mut self, out: &[u8]) -> io::Result<()> {
        if self.size > LARGEST_LOG {
            let mut aside = self.path.as_os_str().to_owned();
            aside.push(".1");
            std::fs::rename(&self.path, aside)?;
            self.file = File::options().create(true).append(true).open(&self.path)?;
            self.size = 0;
        }
        self.file.write_all(out)?;
        self.size += out.len() as u64;
        Ok(())
    }
}

fn append_line(out: &mut Vec<u8>, stream: Stream, text: &[u8], tag: char, now: Timestamp) {
    out.extend_from_slice(format!("{now:.9} {} {tag} ", stream.name()).as_bytes());
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// What a reader of a log asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    pub since: Option<Timestamp>,
    pub tail: Option<usize>,
    pub limit_bytes: Option<usize>,
    pub timestamps: Timestamps,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timestamps {
    #[default]
    Hidden,
    Shown,
}

/// One stored line, split.
struct Line<'a> {
    time: &'a [u8],
    tag: u8,
    text: &'a [u8],
}

fn split(line: &[u8]) -> Option<Line<'_>> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let (time, _stream, tag, text) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    Some(Line { time, tag: *tag.first()?, text })
}

/// Turns stored lines into what the reader sees, cutting at whole lines; `limit_bytes` is counted down.
pub struct LogSelector {
    query: LogQuery,
    left: Option<usize>,
    /// Whether the next part continues a line that was already begun.
    inside_line: bool,
}

impl LogSelector {
    pub fn new(query: LogQuery) -> Self {
        Self { left: query.limit_bytes, query, inside_line: false }
    }

    /// The stored log as it is now, from the tail asked for.
    pub fn first(&mut self, stored: &[u8]) -> Vec<u8> {
        let from = self.query.tail.map_or(0, |lines| tail_offset(stored, lines));
        self.next(&stored[from..])
    }

    /// Whole stored lines that came later.
    pub fn next(&mut self, stored: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(stored.len());
        for line in stored.split_inclusive(|byte| *byte == b'\n') {
            let Some(line) = split(line.strip_suffix(b"\n").unwrap_or(line)) else { continue };
            if !self.is_wanted(line.time) {
                continue;
            }
            if self.query.timestamps == Timestamps::Shown && !self.inside_line {
                out.extend_from_slice(line.time);
                out.push(b' ');
            }
            out.extend_from_slice(line.text);
            self.inside_line = line.tag == b'P';
            if !self.inside_line {
                out.push(b'\n');
            }
        }
        self.limit(out)
    }

    pub fn is_exhausted(&self) -> bool {
        self.left == Some(0)
    }

    fn is_wanted(&self, time: &[u8]) -> bool {
        let Some(since) = self.query.since else { return true };
        std::str::from_utf8(time)
            .ok()
            .and_then(|text| text.parse::<Timestamp>().ok())
            .is_none_or(|at| at >= since)
    }

    fn limit(&mut self, mut out: Vec<u8>) -> Vec<u8> {
        if let Some(left) = &mut self.left {
            out.truncate(*left);
            *left -= out.len();
        }
        out
    }
}

/// Where the last `lines` lines begin, counting a line written in parts once.
fn tail_offset(stored: &[u8], lines: usize) -> usize {
    let mut starts = Vec::new();
    let mut offset = 0;
    let mut inside = false;
    for line in stored.split_inclusive(|byte| *byte == b'\n') {
        if !inside {
            starts.push(offset);
        }
        inside = split(line).is_some_and(|line| line.tag == b'P');
        offset += line.len();
    }
    match starts.len().checked_sub(lines) {
        _ if lines == 0 => stored.len(),
        Some(first) => starts.get(first).copied().unwrap_or(stored.len()),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORED: &[u8] = b"2026-01-01T00:00:01.000000000Z stdout F one\n\
        2026-01-01T00:00:02.000000000Z stderr P tw\n\
        2026-01-01T00:00:02.000000000Z stderr F o\n\
        2026-01-01T00:00:03.000000000Z stdout F three\n";

    fn select(query: LogQuery) -> String {
        String::from_utf8(LogSelector::new(query).first(STORED)).expect("text")
    }

    #[test]
    fn parts_are_joined_and_the_frame_is_hidden() {
        assert_eq!(select(LogQuery::default()), "one\ntwo\nthree\n");
    }

    #[test]
    fn the_tail_counts_a_line_in_parts_once() {
        for (tail, expected) in [(0, ""), (1, "three\n"), (2, "two\nthree\n"), (9, "one\ntwo\nthree\n")] {
            assert_eq!(select(LogQuery { tail: Some(tail), ..LogQuery::default() }), expected, "tail {tail}");
        }
    }

    #[test]
    fn since_timestamps_and_the_byte_limit_hold() {
        let since = Some("2026-01-01T00:00:03Z".parse().expect("a time"));
        let query = LogQuery { since, timestamps: Timestamps::Shown, ..LogQuery::default() };
        assert_eq!(select(query), "2026-01-01T00:00:03.000000000Z three\n");
        assert_eq!(select(LogQuery { limit_bytes: Some(5), ..LogQuery::default() }), "one\nt");
    }

    #[test]
    fn written_lines_are_whole_whatever_the_chunks() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let now = "2026-01-01T00:00:01Z".parse().expect("a time");
        let mut writer = LogWriter::open(&path).expect("opens");
        for chunk in [b"on".as_slice(), b"e\ntw", b"o\nrest"] {
            writer.write(Stream::Stdout, chunk, now).expect("writes");
        }
        writer.finish(now).expect("writes");
        let stored = std::fs::read(&path).expect("reads");
        assert_eq!(
            String::from_utf8_lossy(&LogSelector::new(LogQuery::default()).next(&stored)),
            "one\ntwo\nrest"
        );
        assert!(stored.starts_with(b"2026-01-01T00:00:01.000000000Z stdout F one\n"));
    }
}
