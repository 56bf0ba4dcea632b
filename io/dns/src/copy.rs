//! Names as they come over the socket and stand on disk: messages of lines, the first a whole plan, then changes. What is in
//! force lives in `plan`.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use weft_plan::{NameEvent, NameMessages, NameRow};

use crate::index::Index;
use crate::plan::{Loaded, Origin, Refused};

/// The whole plan at the start of a copy on disk, and the changes behind it that are whole too.
pub fn read_copy(mut copy: impl BufRead) -> io::Result<Loaded> {
    let mut messages = NameMessages::default();
    let mut line = Vec::new();
    let invalid = |error: Refused| io::Error::new(io::ErrorKind::InvalidData, error);
    let NameEvent::Head(head) = next(&mut copy, &mut messages, &mut line).map_err(invalid)? else {
        return Err(invalid(Refused::BrokenOff));
    };
    if head.from.is_some() {
        return Err(invalid(Refused::OtherPlan));
    }
    let mut index = Index::new(&head);
    loop {
        match next(&mut copy, &mut messages, &mut line).map_err(invalid)? {
            NameEvent::Row(row) => _ = index.put(row),
            NameEvent::End => break,
            NameEvent::Head(_) => {}
        }
    }
    let mut loaded = Loaded::new(index, head.to, Origin::Disk);
    while let Ok(NameEvent::Head(head)) = next(&mut copy, &mut messages, &mut line) {
        let Ok(rows) = read_rows(&mut copy, &mut messages, |_| {}) else { break };
        if head.from != Some(loaded.version) {
            break;
        }
        rows.into_iter().for_each(|row| _ = loaded.index.put(row));
        loaded.touch(head.to);
    }
    Ok(loaded)
}

/// The rows of the whole plan in a file that was checked.
pub fn rows_of(file: &mut File) -> impl Iterator<Item = io::Result<NameRow>> {
    let mut messages = NameMessages::default();
    let mut copy = BufReader::new(file);
    let mut line = Vec::new();
    std::iter::from_fn(move || {
        loop {
            match next(&mut copy, &mut messages, &mut line) {
                Ok(NameEvent::Row(row)) => return Some(Ok(row)),
                Ok(NameEvent::Head(_)) => {}
                Ok(NameEvent::End) => return None,
                Err(error) => return Some(Err(io::Error::new(io::ErrorKind::InvalidData, error))),
            }
        }
    })
}

pub fn next(
    message: &mut impl BufRead,
    messages: &mut NameMessages,
    line: &mut Vec<u8>,
) -> Result<NameEvent, Refused> {
    line.clear();
    match message.read_until(b'\n', line) {
        Ok(0) => Err(Refused::BrokenOff),
        Ok(_) => Ok(messages.read(line)?),
        Err(error) => Err(Refused::Receiving(error)),
    }
}

/// The rows up to the end; `seen` gets each line.
pub fn read_rows(
    message: &mut impl BufRead,
    messages: &mut NameMessages,
    seen: impl FnMut(&[u8]),
) -> Result<Vec<NameRow>, Refused> {
    let mut rows = Vec::new();
    each_row(message, messages, seen, |row| rows.push(row))?;
    Ok(rows)
}

pub fn check_rows(
    message: &mut impl BufRead,
    messages: &mut NameMessages,
    seen: impl FnMut(&[u8]),
) -> Result<(), Refused> {
    each_row(message, messages, seen, drop)
}

fn each_row(
    message: &mut impl BufRead,
    messages: &mut NameMessages,
    mut seen: impl FnMut(&[u8]),
    mut take: impl FnMut(NameRow),
) -> Result<(), Refused> {
    let mut line = Vec::new();
    loop {
        let event = next(message, messages, &mut line)?;
        seen(&line);
        match event {
            NameEvent::Row(row) => take(row),
            NameEvent::End => return Ok(()),
            NameEvent::Head(_) => {}
        }
    }
}

/// Where a copy is written before it takes the place of the one before.
pub fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    beside.into()
}
