//! Forgets history that nobody may still ask for, as clusters do: what happened is kept for five to ten minutes.

use std::time::Duration;

use crate::store::{Revision, Store};

const ROUND: Duration = Duration::from_secs(5 * 60);

pub async fn run(store: Store) {
    let mut window = Window { begin: store.revision() };
    loop {
        tokio::time::sleep(ROUND).await;
        store.compact(window.slide(store.revision()));
    }
}

/// What happened since the last round is kept for another.
struct Window {
    begin: Revision,
}

impl Window {
    /// Up to where history may be forgotten, now that the newest revision is `now`.
    fn slide(&mut self, now: Revision) -> Revision {
        std::mem::replace(&mut self.begin, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_revision_is_kept_for_one_whole_round_at_least() {
        let mut window = Window { begin: Revision(3) };
        assert_eq!(window.slide(Revision(10)), Revision(3));
        assert_eq!(window.slide(Revision(10)), Revision(10));
        assert_eq!(window.slide(Revision(25)), Revision(10));
    }
}
