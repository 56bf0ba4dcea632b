//! What of the names an answer is made of, and when that changed last. Answers themselves live in `ready`.

use std::sync::atomic::{AtomicU64, Ordering};

use weft_plan::NameRow;

/// Counts changes of the plan. What was made under one may be given out while nothing it is made of has changed since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u64);

/// What of the plan an answer is made of: one namespace's names, or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dependency {
    place: Option<u16>,
    generation: Generation,
}

impl Dependency {
    /// Of an answer about `name` (lower case, no trailing dot), unless it leads on to other names.
    pub fn of(name: &str, domain: &str, generation: Generation) -> Self {
        Self { place: place(name, domain), generation }
    }

    pub fn everything(generation: Generation) -> Self {
        Self { place: None, generation }
    }
}

/// Namespaces share places when there are more: an answer is then made anew once too often.
const PLACES: usize = 4096;
/// Of names that are not the cluster's, and of names of addresses.
const OUTSIDE: u16 = 0;
const POINTERS: u16 = 1;
const FIRST_NAMESPACE: u16 = 2;
/// When the names of each place changed last.
pub struct Changed {
    last: AtomicU64,
    places: Box<[AtomicU64]>,
}

/// `None`: names that others depend on.
fn place(name: &str, domain: &str) -> Option<u16> {
    let relative = match name.strip_suffix(domain) {
        Some("") => return None,
        Some(relative) => relative.strip_suffix('.'),
        None => None,
    };
    let Some(relative) = relative else {
        return Some(if name.ends_with(".arpa") { POINTERS } else { OUTSIDE });
    };
    let mut labels = relative.rsplit('.');
    match (labels.next(), labels.next()) {
        (Some("svc" | "pod"), Some(namespace)) => Some(hashed(namespace)),
        _ => None,
    }
}

/// FNV-1a.
fn hashed(text: &str) -> u16 {
    let mut hash = 0x811c_9dc5_u32;
    for byte in text.bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    FIRST_NAMESPACE + (hash % (PLACES as u32 - u32::from(FIRST_NAMESPACE))) as u16
}

impl Changed {
    pub fn new() -> Self {
        let places = (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        Self { last: AtomicU64::new(0), places }
    }

    /// Whether nothing has changed of what an answer is made of.
    pub fn holds(&self, dependency: Dependency) -> bool {
        let place = match dependency.place {
            Some(place) => &self.places[usize::from(place)],
            None => &self.last,
        };
        dependency.generation.0 >= place.load(Ordering::Acquire)
    }

    /// Nothing that was made before holds any longer.
    pub fn all(&self) -> Generation {
        let next = self.last.load(Ordering::Relaxed) + 1;
        for place in &self.places {
            place.store(next, Ordering::Release);
        }
        self.last.store(next, Ordering::Release);
        Generation(next)
    }

    /// Nothing that was made of these rows before holds any longer.
    pub fn mark<'a>(&self, rows: impl Iterator<Item = &'a NameRow>, domain: &str) -> Generation {
        let last = self.last.load(Ordering::Relaxed);
        let mut any = false;
        for row in rows {
            let place = match row {
                NameRow::Name(name, _) | NameRow::Absent(name, _) => place(name, domain),
                NameRow::Pointer(..) => Some(POINTERS),
                // Ready answers that depend on the client are found by what it searches.
                NameRow::Client(..) => continue,
            };
            any = true;
            match place {
                Some(place) if place != OUTSIDE => {
                    self.places[usize::from(place)].store(last + 1, Ordering::Release);
                }
                _ => return self.all(),
            }
        }
        if any {
            self.last.store(last + 1, Ordering::Release);
        }
        Generation(self.last.load(Ordering::Relaxed))
    }
}
