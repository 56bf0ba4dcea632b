//! Names on their way to a name server: row by row, all of them or what has changed. What they mean lives in `names`.

use std::collections::BTreeSet;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use weft_model::{Addr, Cidr};

use crate::{Absence, NameClient, NamePlan, NameRecords};

/// One plan among those of its maker: what was made anew starts another count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameVersion {
    pub maker: u64,
    pub sequence: u64,
}

/// Begins a message of rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameHead {
    /// The plan that the rows change; `None`: they are a plan by themselves.
    pub from: Option<NameVersion>,
    pub to: NameVersion,
    pub domain: String,
    pub set_domain: String,
    pub reverse: BTreeSet<Cidr>,
}

/// One entry of a plan, or that it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NameRow {
    Name(String, Option<NameRecords>),
    Pointer(Addr, Option<BTreeSet<String>>),
    Absent(String, Option<Absence>),
    Client(Addr, Option<NameClient>),
}

/// A message is lines of JSON: a head, rows, and an end that tells a whole message from a torn one.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Head(NameHead),
    Row(NameRow),
    End { rows: u64, checksum: u64 },
}

/// Writes one message; it is never held as a whole.
pub fn write_names(
    out: &mut impl Write,
    head: NameHead,
    rows: impl Iterator<Item = NameRow>,
) -> io::Result<()> {
    let mut sum = Sum::default();
    let mut line = Vec::new();
    let mut write = |content: &Line, sum: &mut Sum| -> io::Result<()> {
        line.clear();
        serde_json::to_writer(&mut line, content)?;
        line.push(b'\n');
        sum.add(&line);
        out.write_all(&line)
    };
    write(&Line::Head(head), &mut sum)?;
    let mut count = 0;
    for row in rows {
        write(&Line::Row(row), &mut sum)?;
        count += 1;
    }
    write(&Line::End { rows: count, checksum: sum.0 }, &mut Sum::default())
}

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub enum NameEvent {
    Head(NameHead),
    Row(NameRow),
    /// The message has come whole.
    End,
}

#[derive(Debug, thiserror::Error)]
pub enum NameMessageError {
    #[error("not a line of names: {0}")]
    Line(#[from] serde_json::Error),
    #[error("domain is empty")]
    NoDomain,
    #[error("a {found} where {wanted} should be")]
    Order { found: &'static str, wanted: &'static str },
    #[error("it is torn: {had} rows of {rows}, or others than were sent")]
    Torn { rows: u64, had: u64 },
}

/// Reads messages line by line.
#[derive(Default)]
pub struct NameMessages {
    open: Option<(u64, Sum)>,
}

impl NameMessages {
    /// Between messages, not within one.
    pub fn is_closed(&self) -> bool {
        self.open.is_none()
    }

    /// `line` ends as it was written, with a line feed.
    pub fn read(&mut self, line: &[u8]) -> Result<NameEvent, NameMessageError> {
        match (serde_json::from_slice(line)?, &mut self.open) {
            (Line::Head(head), None) if head.domain.is_empty() => Err(NameMessageError::NoDomain),
            (Line::Head(head), open @ None) => {
                let mut sum = Sum::default();
                sum.add(line);
                *open = Some((0, sum));
                Ok(NameEvent::Head(head))
            }
            (Line::Row(row), Some((count, sum))) => {
                *count += 1;
                sum.add(line);
                Ok(NameEvent::Row(row))
            }
            (Line::End { rows, checksum }, Some((count, sum))) => {
                if (rows, checksum) != (*count, sum.0) {
                    return Err(NameMessageError::Torn { rows, had: *count });
                }
                self.open = None;
                Ok(NameEvent::End)
            }
            (Line::Head(_), Some(_)) => {
                Err(NameMessageError::Order { found: "head", wanted: "a row or an end" })
            }
            (Line::Row(_), None) => Err(NameMessageError::Order { found: "row", wanted: "a head" }),
            (Line::End { .. }, None) => Err(NameMessageError::Order { found: "end", wanted: "a head" }),
        }
    }
}

/// FNV-1a: it finds torn files, not forged ones.
struct Sum(u64);

impl Default for Sum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

impl NamePlan {
    pub fn head(&self, from: Option<NameVersion>, to: NameVersion) -> NameHead {
        NameHead {
            from,
            to,
            domain: self.domain.clone(),
            set_domain: self.set_domain.clone(),
            reverse: self.reverse.clone(),
        }
    }

    /// All entries; for a plan without them, this is the way there.
    pub fn rows(&self) -> impl Iterator<Item = NameRow> {
        let names =
            self.names.iter().map(|(name, records)| NameRow::Name(name.clone(), Some(records.clone())));
        let pointers = self.pointers.iter().map(|(addr, to)| NameRow::Pointer(*addr, Some(to.clone())));
        let absent = self.absent.iter().map(|(name, why)| NameRow::Absent(name.clone(), Some(why.clone())));
        let clients = self.clients.iter().map(|(addr, client)| NameRow::Client(*addr, Some(client.clone())));
        names.chain(pointers).chain(absent).chain(clients)
    }

    /// What leads here from `before`; `None` when the zones themselves differ, which rows do not say.
    pub fn rows_since<'a>(&'a self, before: &'a Self) -> Option<impl Iterator<Item = NameRow> + 'a> {
        let same_zones = self.domain == before.domain
            && self.set_domain == before.set_domain
            && self.reverse == before.reverse;
        let names = self.names.changes(&before.names);
        let pointers = self.pointers.changes(&before.pointers);
        let absent = self.absent.changes(&before.absent);
        let clients = self.clients.changes(&before.clients);
        same_zones.then(|| {
            names
                .map(|change| NameRow::Name(change.key.clone(), change.after.cloned()))
                .chain(pointers.map(|change| NameRow::Pointer(*change.key, change.after.cloned())))
                .chain(absent.map(|change| NameRow::Absent(change.key.clone(), change.after.cloned())))
                .chain(clients.map(|change| NameRow::Client(*change.key, change.after.cloned())))
        })
    }

    pub fn put(&mut self, row: NameRow) {
        match row {
            NameRow::Name(name, Some(records)) => _ = self.names.insert(name, records),
            NameRow::Name(name, None) => _ = self.names.remove(&name),
            NameRow::Pointer(addr, Some(names)) => _ = self.pointers.insert(addr, names),
            NameRow::Pointer(addr, None) => _ = self.pointers.remove(&addr),
            NameRow::Absent(name, Some(why)) => _ = self.absent.insert(name, why),
            NameRow::Absent(name, None) => _ = self.absent.remove(&name),
            NameRow::Client(addr, Some(client)) => _ = self.clients.insert(addr, client),
            NameRow::Client(addr, None) => _ = self.clients.remove(&addr),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(names: &[(&str, &str)]) -> NamePlan {
        let mut plan = NamePlan { domain: "cluster.local".to_owned(), ..NamePlan::default() };
        for (name, addr) in names {
            plan.names.get_or_default((*name).to_owned()).a.insert(addr.parse().unwrap());
            let addr: Addr = addr.parse().unwrap();
            plan.pointers.get_or_default(addr).insert((*name).to_owned());
        }
        plan
    }

    #[test]
    fn messages_are_whole_or_refused() {
        let plan = plan(&[("a.cluster.local", "10.0.0.1"), ("b.cluster.local", "10.0.0.2")]);
        let mut bytes = Vec::new();
        let version = NameVersion { maker: 1, sequence: 2 };
        write_names(&mut bytes, plan.head(None, version), plan.rows()).unwrap();
        let read = |bytes: &[u8]| {
            let mut messages = NameMessages::default();
            let mut read = NamePlan { domain: "cluster.local".to_owned(), ..NamePlan::default() };
            for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                match messages.read(line).ok()? {
                    NameEvent::Row(row) => read.put(row),
                    NameEvent::Head(head) => assert_eq!(head.to, version),
                    NameEvent::End => {}
                }
            }
            messages.is_closed().then_some(read)
        };
        assert_eq!(read(&bytes), Some(plan));
        let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
        assert_eq!(lines.len(), 6);
        for missing in 0..lines.len() {
            let mut torn = lines.clone();
            torn.remove(missing);
            assert_eq!(read(&torn.concat()), None, "without line {missing}");
        }
        let changed = String::from_utf8(bytes).unwrap().replace("10.0.0.2", "10.0.0.3");
        assert_eq!(read(changed.as_bytes()), None);
    }

    #[test]
    fn rows_lead_from_one_plan_to_the_other() {
        let before = plan(&[("a.cluster.local", "10.0.0.1"), ("b.cluster.local", "10.0.0.2")]);
        let after = plan(&[("b.cluster.local", "10.0.0.3"), ("c.cluster.local", "10.0.0.1")]);
        let mut followed = before.clone();
        let rows: Vec<NameRow> = after.rows_since(&before).unwrap().collect();
        for row in rows {
            let text = serde_json::to_string(&row).unwrap();
            followed.put(serde_json::from_str(&text).unwrap());
        }
        assert_eq!(followed, after);
        let mut whole = plan(&[]);
        after.rows().for_each(|row| whole.put(row));
        assert_eq!(whole, after);
        let elsewhere = NamePlan { domain: "example.org".to_owned(), ..after.clone() };
        assert!(elsewhere.rows_since(&after).is_none());
    }
}
