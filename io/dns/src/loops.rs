//! Questions that come back: names nobody else can know, sent to an upstream server, and recognised when this name
//! server is asked for them. Sending them lives in `forward`.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hickory_proto::rr::Name;

use crate::upstreams::Upstream;

const LABEL: &str = "weft-loop-";

#[derive(Default)]
pub struct Loops {
    under_way: Mutex<HashMap<Vec<u8>, Probe>>,
    /// Looked at for every question, so without the lock.
    count: AtomicUsize,
}

struct Probe {
    upstream: Weak<Upstream>,
    caught: bool,
}

impl Loops {
    /// A name below `zone` to ask `upstream` for; `None` when the zone's name leaves no room.
    pub fn start(&self, upstream: &Arc<Upstream>, zone: &Name) -> Option<Name> {
        let label = format!("{LABEL}{:016x}{:016x}", random(), random());
        let name = zone.prepend_label(label.as_bytes()).ok()?;
        let probe = Probe { upstream: Arc::downgrade(upstream), caught: false };
        let mut under_way = self.under_way();
        under_way.insert(label.into_bytes(), probe);
        self.count.store(under_way.len(), Ordering::Release);
        Some(name)
    }

    /// The question has been answered or given up. True when it came back.
    pub fn end(&self, name: &Name) -> bool {
        let mut under_way = self.under_way();
        let caught =
            first_label(name).and_then(|label| under_way.remove(&label)).is_some_and(|probe| probe.caught);
        self.count.store(under_way.len(), Ordering::Release);
        caught
    }

    /// Whether a question is one of ours, and which server it was sent to.
    pub fn catch(&self, name: &Name) -> Option<Arc<Upstream>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let label = first_label(name).filter(|label| label.starts_with(LABEL.as_bytes()))?;
        let mut under_way = self.under_way();
        let probe = under_way.get_mut(&label)?;
        probe.caught = true;
        probe.upstream.upgrade()
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Probe>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn first_label(name: &Name) -> Option<Vec<u8>> {
    name.iter().next().map(<[u8]>::to_ascii_lowercase)
}

/// A number nobody can guess: the hash of nothing under a fresh random key.
pub fn random() -> u64 {
    RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::tests::name;
    use crate::settings::Server;

    #[test]
    fn only_a_name_under_way_is_recognised_in_any_spelling() {
        let loops = Loops::default();
        let upstream =
            Arc::new(Upstream::new(Server::plain(([192, 0, 2, 1], 53).into()), Default::default()));
        let sent = loops.start(&upstream, &name("corp.example.")).unwrap();
        let other = loops.start(&upstream, &Name::root()).unwrap();
        assert!(name("corp.example.").zone_of(&sent) && sent != other);
        assert!(loops.catch(&name("weft-loop-0123.corp.example.")).is_none());
        let shouted = name(&sent.to_ascii().to_ascii_uppercase());
        assert!(Arc::ptr_eq(&loops.catch(&shouted).unwrap(), &upstream));
        assert!(loops.end(&sent) && !loops.end(&other));
        assert!(loops.catch(&sent).is_none());
        assert!(loops.start(&upstream, &name(&["a".repeat(62).as_str(); 4].join("."))).is_none());
    }
}
