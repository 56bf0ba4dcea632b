//! The transition table, and small networks of nodes that follow it.

use std::time::Duration;

use super::*;

const MAC: LinkAddr = LinkAddr([2, 0, 0, 0, 0, 9]);

fn vip() -> Addr {
    "192.0.2.10".parse().unwrap()
}

fn node(name: &str) -> NodeName {
    NodeName::new(name)
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn claim(holder: &str) -> Option<Claim> {
    let holder = (!holder.is_empty()).then(|| node(holder));
    Some(Claim { holder, version: "1".to_owned(), transitions: 0, obstacle: None })
}

fn want(names: &[&str]) -> BTreeMap<Addr, Vec<NodeName>> {
    [(vip(), names.iter().map(|name| node(name)).collect())].into()
}

struct World {
    at: Instant,
    one: Announcer,
    /// Whether its heartbeats get through.
    api: Api,
}

impl World {
    /// Node `b`, second in line, that has seen everything there is.
    fn of(candidates: &[&str], lease: Option<Claim>) -> Self {
        let at = Instant::now();
        let mut one = Announcer::new(node("b"), BTreeSet::new(), Times::for_cluster(3), at);
        one.api(Api::Reachable, at);
        one.want(want(candidates), at);
        one.claim_seen(vip(), lease, at);
        one.listed(at);
        Self { at, one, api: Api::Reachable }
    }

    /// Everything it does in the next `duration`, at the times it asked to be woken.
    fn pass(&mut self, duration: Duration) -> Vec<Effect> {
        let end = self.at + duration;
        let mut beat = self.at;
        let mut effects = self.step(&mut beat, self.at);
        let mut woken = 0;
        while let Some(next) = self.one.next().filter(|next| *next <= end) {
            woken += 1;
            assert!(woken < 100_000, "it wakes and does nothing: {:?}", self.phase());
            effects.extend(self.step(&mut beat, next.max(self.at)));
        }
        effects.extend(self.step(&mut beat, end));
        effects
    }

    fn step(&mut self, beat: &mut Instant, at: Instant) -> Vec<Effect> {
        while self.api == Api::Reachable && *beat <= at {
            self.one.beaten(*beat, *beat);
            *beat += millis(400);
        }
        self.at = at;
        self.one.step(at)
    }

    fn away(&mut self) {
        self.api = Api::Away;
        self.one.api(Api::Away, self.at);
    }

    fn back(&mut self) {
        self.api = Api::Reachable;
        self.one.beaten(self.at, self.at);
        self.one.api(Api::Reachable, self.at);
    }

    fn phase(&self) -> &Phase {
        self.one.phases().next().map(|(_, phase, _)| phase).unwrap_or(&Phase::Idle)
    }

    fn holding(candidates: &[&str]) -> Self {
        let mut world = Self::of(candidates, None);
        world.pass(Duration::from_secs(2));
        world.one.claimed(vip(), Outcome::Taken, world.at);
        world.one.claim_seen(vip(), claim("b"), world.at);
        world.pass(Duration::from_secs(5));
        assert_eq!(world.one.held().len(), 1);
        world
    }
}

fn is_probe(effect: &Effect) -> bool {
    matches!(effect, Effect::Probe(_))
}

fn is_claim(effect: &Effect) -> bool {
    matches!(effect, Effect::Claim { .. })
}

#[test]
fn a_free_address_is_probed_three_times_and_then_claimed_by_the_first_in_line() {
    let mut world = World::of(&["b", "a"], None);
    let effects = world.pass(millis(300));
    let probe = Effect::Probe(vip());
    let claim = Effect::Claim { addr: vip(), seen: None, after: None };
    assert_eq!(effects, [probe.clone(), probe.clone(), probe, claim]);
    assert!(world.one.held().is_empty() && world.one.beats());
    world.one.claimed(vip(), Outcome::Taken, world.at);
    world.one.claim_seen(vip(), self::claim("b"), world.at);
    assert_eq!(*world.one.held(), [vip()].into());
    let effects = world.pass(Duration::from_secs(4));
    assert_eq!(effects, vec![Effect::Announce(vip()); 4]);
}

#[test]
fn the_second_in_line_lets_the_first_go_first() {
    let mut world = World::of(&["a", "b"], None);
    assert_eq!(world.pass(millis(399)), []);
    assert!(matches!(world.pass(millis(1))[..], [Effect::Probe(_)]));
    world.one.claim_seen(vip(), claim("a"), world.at);
    assert_eq!(world.pass(millis(1100)), [], "a took it, and has just been seen");
}

#[test]
fn nobody_but_a_candidate_moves() {
    let mut world = World::of(&["a", "c"], None);
    assert_eq!(world.pass(Duration::from_secs(60)), []);
}

#[test]
fn a_holder_that_is_heard_of_is_left_alone_and_a_silent_one_is_followed_within_two_seconds() {
    let mut world = World::of(&["a", "b"], claim("a"));
    for beat in 0..20 {
        world.one.heartbeat_seen(&node("a"), &beat.to_string(), world.at);
        assert_eq!(world.pass(millis(400)), [], "beat {beat}");
    }
    let effects = world.pass(millis(1100));
    let Some(Effect::Claim { after, .. }) = effects.last() else { panic!("{effects:?}") };
    assert_eq!(*after, Some(node("a")));
    assert_eq!(effects.len(), 4);
}

#[test]
fn a_silent_holder_whose_machine_answers_keeps_the_address_and_it_is_said() {
    let mut world = World::of(&["a", "b"], claim("a"));
    world.pass(millis(1250));
    assert!(matches!(world.phase(), Phase::Probing { .. }));
    let said = world.one.heard(vip(), MAC, world.at);
    let obstacle = Some(Obstacle::HolderAnswers(MAC));
    assert_eq!(said, [Effect::Report { addr: vip(), seen: claim("a"), obstacle: obstacle.clone() }]);
    assert_eq!(world.pass(millis(4900)), []);
    assert!(matches!(world.pass(millis(200))[..], [Effect::Probe(_), ..]), "asked again");
    // Its agent is back: the report is taken back.
    world.one.heard(vip(), MAC, world.at);
    let mut seen = claim("a");
    seen.as_mut().unwrap().obstacle = obstacle;
    world.one.claim_seen(vip(), seen.clone(), world.at);
    world.one.heartbeat_seen(&node("a"), "later", world.at);
    assert_eq!(world.pass(millis(0)), [Effect::Report { addr: vip(), seen, obstacle: None }]);
}

#[test]
fn an_address_of_a_stranger_is_not_claimed() {
    let mut world = World::of(&["b"], None);
    world.pass(millis(150));
    let said = world.one.heard(vip(), MAC, world.at);
    assert!(matches!(&said[..], [Effect::Report { obstacle: Some(Obstacle::InUse(MAC)), seen: None, .. }]));
    assert!(!world.pass(millis(4000)).iter().any(is_claim));
    // The stranger has gone.
    assert!(world.pass(millis(2000)).iter().any(is_claim));
}

#[test]
fn a_claim_that_was_refused_waits_and_one_that_failed_is_tried_again() {
    for outcome in [Outcome::Refused, Outcome::Failed] {
        let mut world = World::of(&["b"], None);
        world.pass(millis(300));
        world.one.claimed(vip(), outcome, world.at);
        assert_eq!(world.pass(millis(1100)), []);
        assert!(world.pass(millis(600)).iter().any(is_claim));
    }
}

#[test]
fn a_holder_gives_way_to_whom_the_lease_names() {
    let mut world = World::holding(&["b", "a"]);
    world.one.claim_seen(vip(), claim("a"), world.at);
    assert_eq!(world.pass(millis(10)), []);
    assert!(world.one.held().is_empty());
}

#[test]
fn a_holder_that_may_no_longer_hands_over_and_an_unwanted_address_leaves_nothing() {
    let mut world = World::holding(&["b", "a"]);
    world.one.want(want(&["a"]), world.at);
    assert_eq!(world.pass(millis(10)), [Effect::HandOver { addr: vip(), version: "1".to_owned() }]);
    assert!(world.one.held().is_empty());

    let mut world = World::holding(&["b", "a"]);
    world.one.want(BTreeMap::new(), world.at);
    assert_eq!(world.pass(millis(10)), [Effect::Delete { addr: vip(), version: "1".to_owned() }]);
    assert_eq!(world.one.phases().count(), 0);
}

#[test]
fn an_eligible_holder_keeps_the_address_when_a_better_candidate_comes() {
    let mut world = World::holding(&["b"]);
    world.one.want(want(&["a", "b"]), world.at);
    assert_eq!(world.pass(Duration::from_secs(60)), []);
    assert_eq!(*world.one.held(), [vip()].into());
}

#[test]
fn a_conflict_is_answered_once_and_then_reported() {
    let mut world = World::holding(&["b"]);
    assert_eq!(world.one.heard(vip(), MAC, world.at), [Effect::Announce(vip())]);
    world.pass(millis(500));
    let said = world.one.heard(vip(), MAC, world.at);
    let obstacle = Some(Obstacle::Contested(MAC));
    assert_eq!(said, [Effect::Report { addr: vip(), seen: claim("b"), obstacle: obstacle.clone() }]);
    assert_eq!(*world.one.held(), [vip()].into(), "the Lease is its");
    let mut seen = claim("b");
    seen.as_mut().unwrap().obstacle = obstacle;
    world.one.claim_seen(vip(), seen.clone(), world.at);
    // It was heard since: the next look is twice as far off. Nobody answers there.
    let effects = world.pass(Duration::from_secs(31));
    let over = Effect::Report { addr: vip(), seen, obstacle: None };
    assert_eq!(effects, [vec![Effect::Announce(vip())], vec![Effect::Probe(vip()); 3], vec![over]].concat());
}

/// A machine that has the address and answers whoever asks, for hours.
#[test]
fn a_conflict_that_lasts_is_said_once_and_looked_at_ever_more_seldom() {
    let mut world = World::holding(&["b"]);
    let (mut reports, mut looks) = (Vec::new(), Vec::new());
    let start = world.at;
    let mut answer = world.one.heard(vip(), MAC, world.at);
    while world.at < start + Duration::from_secs(3600) {
        answer.extend(world.pass(millis(50)));
        for effect in std::mem::take(&mut answer) {
            match effect {
                Effect::Probe(_) => answer.extend(world.one.heard(vip(), MAC, world.at)),
                Effect::Announce(_) => looks.push(world.at - start),
                Effect::Report { obstacle, .. } => {
                    let mut seen = claim("b");
                    seen.as_mut().unwrap().obstacle = obstacle.clone();
                    world.one.claim_seen(vip(), seen, world.at);
                    reports.push(obstacle);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(reports, [Some(Obstacle::Contested(MAC))]);
    assert!((55..70).contains(&looks.len()), "once in a minute at last: {}", looks.len());
    assert_eq!(*world.one.held(), [vip()].into());
    // It goes: that is found out, too.
    let effects = world.pass(Duration::from_secs(130));
    assert!(matches!(effects.last(), Some(Effect::Report { obstacle: None, .. })), "{effects:?}");
}

#[test]
fn a_conflict_of_before_a_restart_is_not_taken_back_unasked() {
    let mut seen = claim("b");
    seen.as_mut().unwrap().obstacle = Some(Obstacle::Contested(MAC));
    let mut world = World::of(&["b"], seen.clone());
    let effects = world.pass(millis(250));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Report { .. })), "{effects:?}");
    assert_eq!(world.one.heard(vip(), MAC, world.at), []);
    let effects = world.pass(Duration::from_secs(9));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Report { .. })), "{effects:?}");
}

#[test]
fn a_stranger_that_stays_is_asked_ever_more_seldom() {
    let mut world = World::of(&["b"], None);
    let (start, mut probes) = (world.at, 0);
    while world.at < start + Duration::from_secs(3600) {
        for effect in world.pass(millis(50)) {
            if is_probe(&effect) {
                probes += 1;
                world.one.heard(vip(), MAC, world.at);
            }
        }
    }
    assert!((58..70).contains(&probes), "{probes}");
}

/// What an event costs does not grow with the addresses there are.
#[test]
fn a_change_looks_at_what_it_is_about_and_a_heartbeat_at_nothing() {
    let addr = |number: u32| Addr::from(std::net::Ipv4Addr::from(0xc000_0200 + number));
    let at = Instant::now();
    let mut one = Announcer::new(node("b"), BTreeSet::new(), Times::for_cluster(3), at);
    one.api(Api::Reachable, at);
    one.want((0..1000).map(|number| (addr(number), vec![node("a"), node("b")])).collect(), at);
    (0..1000).for_each(|number| one.claim_seen(addr(number), claim("a"), at));
    one.listed(at);
    one.step(at);
    assert_eq!((one.looks(), one.take_touched().len()), (1000, 1000));
    for beat in 0..100 {
        one.heartbeat_seen(&node("a"), &beat.to_string(), at);
        one.step(at);
    }
    assert_eq!((one.looks(), one.take_touched().len()), (1000, 0));
    one.claim_seen(addr(7), claim("c"), at);
    one.step(at);
    assert_eq!((one.looks(), one.take_touched()), (1001, [addr(7)].into()));
    let wanted =
        (0..1000).map(|number| (addr(number), vec![node("a"), node(if number == 9 { "c" } else { "b" })]));
    one.want(wanted.collect(), at);
    one.step(at);
    assert_eq!(one.looks(), 1002);
}

#[test]
fn without_the_api_what_is_held_is_kept_until_somebody_else_shows() {
    let mut world = World::holding(&["b", "a"]);
    world.away();
    assert!(world.pass(Duration::from_secs(600)).iter().all(is_probe));
    assert_eq!(*world.one.held(), [vip()].into());
    assert_eq!(world.one.heard(vip(), MAC, world.at), []);
    assert!(world.one.held().is_empty(), "the other has the Lease, most likely");
    assert_eq!(world.pass(Duration::from_secs(600)), []);
    assert!(world.one.held().is_empty());
    world.back();
    world.one.claim_seen(vip(), claim("b"), world.at);
    world.pass(millis(10));
    assert_eq!(*world.one.held(), [vip()].into(), "it was a stranger: the Lease decides");
}

#[test]
fn nothing_is_taken_while_the_api_is_away_and_its_return_starts_the_clock_anew() {
    let mut world = World::of(&["a", "b"], claim("a"));
    world.one.api(Api::Away, world.at);
    assert_eq!(world.pass(Duration::from_secs(600)), []);
    world.one.api(Api::Reachable, world.at);
    assert_eq!(world.pass(millis(1100)), []);
    assert!(matches!(world.pass(millis(200))[..], [Effect::Probe(_), ..]));
}

#[test]
fn a_restarted_agent_goes_on_holding_and_decides_nothing_before_it_knows() {
    let at = Instant::now();
    let mut one = Announcer::new(node("b"), [vip()].into(), Times::for_cluster(3), at);
    one.api(Api::Reachable, at);
    assert_eq!((one.step(at), one.held().clone()), (vec![], [vip()].into()));
    one.claim_seen(vip(), claim("b"), at);
    one.listed(at);
    assert_eq!(
        (one.step(at), one.held().clone()),
        (vec![], [vip()].into()),
        "it is not known what is wanted"
    );
    one.want(want(&["a", "b"]), at);
    assert_eq!((one.step(at), one.held().clone()), (vec![], [vip()].into()));
}

#[test]
fn a_lease_that_was_taken_away_is_written_anew_without_a_gap() {
    let mut world = World::holding(&["b"]);
    world.one.claim_seen(vip(), None, world.at);
    assert_eq!(world.pass(millis(1)), [Effect::Claim { addr: vip(), seen: None, after: None }]);
    assert_eq!(*world.one.held(), [vip()].into());
    world.one.claimed(vip(), Outcome::Failed, world.at);
    assert_eq!(*world.one.held(), [vip()].into());
    world.pass(millis(1));
    world.one.claimed(vip(), Outcome::Refused, world.at);
    assert!(world.one.held().is_empty());
}

#[test]
fn large_clusters_beat_slower() {
    assert_eq!(Times::for_cluster(3).heartbeat, millis(400));
    assert_eq!(Times::for_cluster(1000).expiry, millis(12_000));
}

mod network;
