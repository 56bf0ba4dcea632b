//! When a container's probe runs next and what its answers mean. Pure: time is an argument, asking is in prober.rs.
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Probe;

/// How often a stand-in is asked until it first answers: it has nothing to boot.
const EAGER_PERIOD: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    /// As events spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// Whether the delays of the spec are kept before the first success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    AsSpecified,
    /// For stand-ins: at once and often, while failures count no faster than specified.
    Eager,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    pub initial_delay: Duration,
    pub period: Duration,
    pub timeout: Duration,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

impl Timing {
    pub fn of(probe: &Probe) -> Self {
        let number = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
        };
        let seconds = |value, default| Duration::from_secs(number(value, default).into());
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            success_threshold: number(probe.success_threshold, 1),
            failure_threshold: number(probe.failure_threshold, 3),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Failure(String),
}

/// A threshold is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    Failed,
}

/// One probe of one running container.
#[derive(Clone, Debug)]
pub struct ProbeState {
    timing: Timing,
    pace: Pace,
    since: Timestamp,
    last: Option<Timestamp>,
    last_counted_failure: Option<Timestamp>,
    successes: u32,
    failures: u32,
    ever_succeeded: bool,
}

impl ProbeState {
    pub fn new(timing: Timing, pace: Pace, since: Timestamp) -> Self {
        Self {
            timing,
            pace,
            since,
            last: None,
            last_counted_failure: None,
            successes: 0,
            failures: 0,
            ever_succeeded: false,
        }
    }

    /// When to ask next.
    pub fn next_at(&self) -> Timestamp {
        let hopeful = self.failures < self.timing.failure_threshold;
        let eager = self.pace == Pace::Eager && !self.ever_succeeded && hopeful;
        match self.last {
            None if eager => self.since,
            None => self.since + self.timing.initial_delay,
            Some(last) if eager => last + EAGER_PERIOD.min(self.timing.period),
            Some(last) => last + self.timing.period,
        }
    }

    /// Takes an answer; says whether a threshold is reached by it.
    pub fn record(&mut self, outcome: &Outcome, now: Timestamp) -> Option<Verdict> {
        self.last = Some(now);
        match outcome {
            Outcome::Success => {
                self.ever_succeeded = true;
                self.failures = 0;
                self.successes += 1;
                (self.successes >= self.timing.success_threshold).then_some(Verdict::Passed)
            }
            Outcome::Failure(_) => {
                self.successes = 0;
                if self.failure_counts(now) {
                    self.failures += 1;
                    self.last_counted_failure = Some(now);
                }
                (self.failures >= self.timing.failure_threshold).then_some(Verdict::Failed)
            }
        }
    }

    /// How many of the newest answers are failures that count.
    pub fn counted_failures(&self) -> u32 {
        self.failures
    }

    fn failure_counts(&self, now: Timestamp) -> bool {
        if self.pace == Pace::AsSpecified || self.ever_succeeded {
            return true;
        }
        let due = match self.last_counted_failure {
            None => self.since + self.timing.initial_delay,
            Some(last) => last + self.timing.period,
        };
        now >= due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).expect("in range")
    }

    fn state(pace: Pace, success_threshold: u32) -> ProbeState {
        let timing = Timing {
            initial_delay: Duration::from_secs(30),
            period: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            success_threshold,
            failure_threshold: 3,
        };
        ProbeState::new(timing, pace, at(0))
    }

    fn no() -> Outcome {
        Outcome::Failure("no".into())
    }

    #[test]
    fn as_specified_waits_then_keeps_the_period() {
        let mut probe = state(Pace::AsSpecified, 1);
        assert_eq!(probe.next_at(), at(30));
        assert_eq!(probe.record(&no(), at(30)), None);
        assert_eq!(probe.next_at(), at(40));
        assert_eq!(probe.record(&Outcome::Success, at(40)), Some(Verdict::Passed));
        assert_eq!(probe.next_at(), at(50));
    }

    #[test]
    fn thresholds_count_what_is_consecutive() {
        let mut probe = state(Pace::AsSpecified, 2);
        let steps = [
            (Outcome::Success, None),
            (no(), None),
            (Outcome::Success, None),
            (Outcome::Success, Some(Verdict::Passed)),
            (no(), None),
            (no(), None),
            (no(), Some(Verdict::Failed)),
            (no(), Some(Verdict::Failed)),
            (Outcome::Success, None),
        ];
        for (step, (outcome, verdict)) in steps.into_iter().enumerate() {
            assert_eq!(probe.record(&outcome, at(30 + 10 * step as i64)), verdict, "step {step}");
        }
    }

    #[test]
    fn eager_asks_at_once_and_often_but_counts_failures_at_the_specified_pace() {
        let mut probe = state(Pace::Eager, 1);
        assert_eq!(probe.next_at(), at(0));
        for second in 0..30 {
            assert_eq!(probe.record(&no(), at(second)), None, "before the initial delay nothing counts");
            assert_eq!(probe.next_at(), at(second) + Duration::from_millis(200));
        }
        assert_eq!(probe.record(&no(), at(30)), None);
        assert_eq!(probe.record(&no(), at(35)), None);
        assert_eq!(probe.record(&no(), at(40)), None);
        assert_eq!(probe.record(&no(), at(50)), Some(Verdict::Failed));
        assert_eq!(probe.next_at(), at(60), "once it has failed for good there is no hurry");
    }

    #[test]
    fn eager_settles_into_the_period_after_the_first_success() {
        let mut probe = state(Pace::Eager, 1);
        assert_eq!(probe.record(&Outcome::Success, at(0)), Some(Verdict::Passed));
        assert_eq!(probe.next_at(), at(10));
        for (second, verdict) in [(10, None), (20, None), (30, Some(Verdict::Failed))] {
            assert_eq!(probe.record(&no(), at(second)), verdict);
        }
    }

    #[test]
    fn absent_numbers_take_the_documented_defaults() {
        let timing = Timing::of(&Probe { failure_threshold: Some(0), ..Probe::default() });
        assert_eq!(timing.initial_delay, Duration::ZERO);
        assert_eq!((timing.period, timing.timeout), (Duration::from_secs(10), Duration::from_secs(1)));
        assert_eq!((timing.success_threshold, timing.failure_threshold), (1, 3));
    }
}
