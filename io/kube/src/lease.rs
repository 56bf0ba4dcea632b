//! Who leads: a pure state machine over what the Lease object says. Time is an argument; the API calls live in `leadership`.
//!
//! Clocks of others are not trusted: a lease is over when its record has not changed for its duration, as measured
//! here since it was first seen (the way of Kubernetes' own leader election).

use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseTimes {
    /// How long others wait after the last renewal before they take over.
    pub duration: Duration,
    /// A leader that could not renew for this long stops leading; shorter than `duration`.
    pub renew_deadline: Duration,
    /// Between two looks at the lease.
    pub retry: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// What the Lease object says. `renewed` is its renewTime as text: only whether it changed matters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseRecord {
    /// Empty: released.
    pub holder: String,
    pub duration: Duration,
    pub renewed: String,
    pub transitions: i32,
}

/// What to do now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// There is no lease: make one.
    Create,
    /// It is ours: renew it.
    Renew,
    /// It is over or released: take it, counting a transition.
    Take,
    /// Somebody else holds it.
    Wait,
}

#[derive(Clone, Debug)]
pub struct Election {
    identity: String,
    times: LeaseTimes,
    observed: Option<(LeaseRecord, Instant)>,
    renewed: Option<Instant>,
}

impl Election {
    pub fn new(identity: impl Into<String>, times: LeaseTimes) -> Self {
        Self { identity: identity.into(), times, observed: None, renewed: None }
    }

    pub fn identity(&self) -> &str {
        &self.identity
    }

    pub fn times(&self) -> LeaseTimes {
        self.times
    }

    /// The lease was read: `record` is `None` when it does not exist.
    pub fn observe(&mut self, record: Option<LeaseRecord>, now: Instant) -> Action {
        match record {
            None => self.observed = None,
            Some(record) => {
                if self.observed.as_ref().is_none_or(|(known, _)| *known != record) {
                    self.observed = Some((record, now));
                }
            }
        }
        let Some((record, since)) = &self.observed else { return Action::Create };
        if record.holder == self.identity {
            return Action::Renew;
        }
        self.renewed = None;
        if record.holder.is_empty() || now.duration_since(*since) >= record.duration {
            return Action::Take;
        }
        Action::Wait
    }

    /// Our own record was accepted by the server. `sent` is when it was sent: the lease counts from there.
    pub fn written(&mut self, record: LeaseRecord, sent: Instant) {
        self.renewed = (record.holder == self.identity).then_some(sent);
        self.observed = Some((record, sent));
    }

    pub fn leads(&self, now: Instant) -> bool {
        self.renewed.is_some_and(|renewed| now.duration_since(renewed) < self.times.renew_deadline)
    }

    /// Until when it leads if nothing more is heard of the server.
    pub fn leads_until(&self) -> Option<Instant> {
        self.renewed.map(|renewed| renewed + self.times.renew_deadline)
    }

    pub fn holder(&self) -> Option<&str> {
        self.observed.as_ref().map(|(record, _)| record.holder.as_str()).filter(|holder| !holder.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holder: &str, renewed: u32) -> LeaseRecord {
        LeaseRecord {
            holder: holder.to_owned(),
            duration: Duration::from_secs(15),
            renewed: renewed.to_string(),
            transitions: 0,
        }
    }

    fn seconds(start: Instant, count: u64) -> Instant {
        start + Duration::from_secs(count)
    }

    #[test]
    fn the_first_creates_and_renews() {
        let start = Instant::now();
        let mut election = Election::new("a", LeaseTimes::default());
        assert_eq!(election.observe(None, start), Action::Create);
        assert!(!election.leads(start));
        election.written(record("a", 0), start);
        assert!(election.leads(seconds(start, 9)));
        assert_eq!(election.observe(Some(record("a", 0)), seconds(start, 2)), Action::Renew);
        election.written(record("a", 2), seconds(start, 2));
        assert!(election.leads(seconds(start, 11)) && !election.leads(seconds(start, 12)));
    }

    #[test]
    fn another_waits_as_long_as_the_record_changes_and_takes_over_when_it_stops() {
        let start = Instant::now();
        let mut election = Election::new("b", LeaseTimes::default());
        for second in 0..60 {
            let action = election.observe(Some(record("a", second)), seconds(start, second.into()));
            assert_eq!(action, Action::Wait, "second {second}");
        }
        assert_eq!(election.observe(Some(record("a", 59)), seconds(start, 73)), Action::Wait);
        assert_eq!(election.observe(Some(record("a", 59)), seconds(start, 74)), Action::Take);
        election.written(record("b", 74), seconds(start, 74));
        assert_eq!(election.holder(), Some("b"));
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        let start = Instant::now();
        let mut election = Election::new("b", LeaseTimes::default());
        assert_eq!(election.observe(Some(record("", 1)), start), Action::Take);
    }

    #[test]
    fn a_leader_steps_down_before_others_may_take_over() {
        let start = Instant::now();
        let mut old = Election::new("a", LeaseTimes::default());
        let mut new = Election::new("b", LeaseTimes::default());
        old.observe(None, start);
        old.written(record("a", 0), start);
        for tenth in 0..400 {
            let now = start + Duration::from_millis(100 * tenth);
            let takes = new.observe(Some(record("a", 0)), now) == Action::Take;
            assert!(!(takes && old.leads(now)), "two leaders after {tenth} tenths of a second");
        }
    }

    #[test]
    fn whoever_sees_another_holder_does_not_lead() {
        let start = Instant::now();
        let mut election = Election::new("a", LeaseTimes::default());
        election.observe(None, start);
        election.written(record("a", 0), start);
        assert_eq!(election.observe(Some(record("b", 1)), seconds(start, 1)), Action::Wait);
        assert!(!election.leads(seconds(start, 1)));
    }
}
