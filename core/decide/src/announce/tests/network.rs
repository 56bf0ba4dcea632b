//! Nodes, the links between them and an API server that can be cut, in steps of ten milliseconds: who answers for one
//! address when.

use super::*;

const STEP: Duration = Duration::from_millis(10);
/// A watch over a connection that was cut goes on this long after it could (retransmissions back off).
const STALLED: Duration = Duration::from_secs(5);

struct Machine {
    name: NodeName,
    agent: Announcer,
    runs: bool,
    on: bool,
    /// What the kernel answers for, whatever the agent does.
    answers: bool,
    api: bool,
    watch: Watch,
    beat: Instant,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Watch {
    Lists,
    Current,
    Stalls { until: Instant },
}

struct Network {
    at: Instant,
    server: bool,
    machines: Vec<Machine>,
    /// Pairs that do not hear each other.
    cut: BTreeSet<(usize, usize)>,
    lease: Option<Claim>,
    version: u64,
    hearts: BTreeMap<usize, u64>,
    /// How long two machines that hear each other both answered, and how long nobody did.
    both: Duration,
    dark: Duration,
}

fn addr_of(index: usize) -> Addr {
    Addr::from(std::net::Ipv4Addr::from(0xac1e_000b + index as u32))
}

fn mac_of(index: usize) -> LinkAddr {
    LinkAddr([2, 0, 0, 0, 1, index as u8])
}

impl Network {
    /// Three nodes that have settled; the first in line holds the address.
    fn settled() -> Self {
        let at = Instant::now();
        let names = ["a", "b", "c"];
        let machine = |(index, name): (usize, &&str)| {
            let mut agent = Announcer::new(node(name), BTreeSet::new(), Times::for_cluster(3), at);
            agent.set_peers((0..3).filter(|other| *other != index).map(addr_of));
            agent.want(want(&names), at);
            Machine {
                name: node(name),
                agent,
                runs: true,
                on: true,
                answers: false,
                api: true,
                watch: Watch::Lists,
                beat: at,
            }
        };
        let machines = names.iter().enumerate().map(machine).collect();
        let mut network = Self {
            at,
            server: true,
            machines,
            cut: BTreeSet::new(),
            lease: None,
            version: 0,
            hearts: BTreeMap::new(),
            both: Duration::ZERO,
            dark: Duration::ZERO,
        };
        network.pass(5);
        assert_eq!(network.answering(), [0]);
        network.forget();
        network
    }

    fn forget(&mut self) {
        (self.both, self.dark) = (Duration::ZERO, Duration::ZERO);
    }

    fn answering(&self) -> Vec<usize> {
        (0..3).filter(|index| self.machines[*index].on && self.machines[*index].answers).collect()
    }

    fn hear_each_other(&self, one: usize, other: usize) -> bool {
        let pair = (one.min(other), one.max(other));
        one != other && self.machines[one].on && self.machines[other].on && !self.cut.contains(&pair)
    }

    fn cut_link(&mut self, index: usize) {
        self.cut.extend((0..3).map(|other| (index.min(other), index.max(other))));
    }

    fn reaches_api(&self, index: usize) -> bool {
        self.server && self.machines[index].on && self.machines[index].api
    }

    fn pass(&mut self, seconds: u32) {
        self.pass_steps(seconds * 100);
    }

    fn pass_steps(&mut self, steps: u32) {
        for _ in 0..steps {
            self.at += STEP;
            for index in 0..3 {
                if self.machines[index].on && self.machines[index].runs {
                    self.follow(index);
                    self.act(index);
                }
            }
            let answering = self.answering();
            let pairs = answering.iter().flat_map(|one| answering.iter().map(move |other| (*one, *other)));
            if pairs.into_iter().any(|(one, other)| self.hear_each_other(one, other)) {
                self.both += STEP;
            }
            if answering.is_empty() {
                self.dark += STEP;
            }
        }
    }

    /// The heartbeat and the Leases, as far as the server answers.
    fn follow(&mut self, index: usize) {
        let reaches = self.reaches_api(index);
        let (at, lease) = (self.at, self.lease.clone());
        let machine = &mut self.machines[index];
        if machine.agent.take_relist() {
            machine.watch = Watch::Lists;
        }
        if !reaches {
            if machine.watch != Watch::Lists {
                machine.watch = Watch::Stalls { until: at + STALLED };
            }
            return;
        }
        if machine.agent.beats() && at >= machine.beat {
            *self.hearts.entry(index).or_default() += 1;
            machine.beat = at + millis(400);
            machine.agent.beaten(at, at);
        }
        if matches!(machine.watch, Watch::Stalls { until } if at < until) {
            return;
        }
        let listed = machine.watch == Watch::Lists;
        machine.watch = Watch::Current;
        if listed || machine.agent.phase(vip()).and_then(|(_, claim)| claim) != lease.as_ref() {
            machine.agent.claim_seen(vip(), lease, at);
        }
        for (other, beats) in &self.hearts {
            machine.agent.heartbeat_seen(&node(["a", "b", "c"][*other]), &beats.to_string(), at);
        }
        if listed {
            machine.agent.listed(at);
            machine.agent.api(Api::Reachable, at);
        }
    }

    fn act(&mut self, index: usize) {
        let mut effects = self.machines[index].agent.step(self.at);
        self.program(index);
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::Probe(addr) => {
                    for other in
                        (0..3).filter(|other| self.hear_each_other(index, *other)).collect::<Vec<_>>()
                    {
                        let has = addr == addr_of(other) || (addr == vip() && self.machines[other].answers);
                        if has {
                            let agent = &mut self.machines[index].agent;
                            effects.extend(agent.heard(addr, mac_of(other), self.at));
                        }
                    }
                }
                Effect::Announce(addr) => {
                    for other in
                        (0..3).filter(|other| self.hear_each_other(index, *other)).collect::<Vec<_>>()
                    {
                        self.machines[other].agent.heard(addr, mac_of(index), self.at);
                    }
                }
                Effect::Claim { addr, seen, after } => {
                    let outcome = self.claim(index, seen, after);
                    self.machines[index].agent.claimed(addr, outcome, self.at);
                }
                Effect::HandOver { .. } | Effect::Delete { .. } => panic!("all are candidates for all time"),
                Effect::Report { obstacle, .. } => self.report(index, obstacle),
            }
        }
        self.program(index);
    }

    fn program(&mut self, index: usize) {
        self.machines[index].answers = self.machines[index].agent.held().contains(&vip());
    }

    fn claim(&mut self, index: usize, seen: Option<Claim>, after: Option<NodeName>) -> Outcome {
        let version = |claim: &Option<Claim>| claim.as_ref().map(|claim| claim.version.clone());
        if !self.reaches_api(index) {
            return Outcome::Failed;
        }
        let lives = after.is_some_and(|after| {
            let of = self.machines.iter().position(|machine| machine.name == after).unwrap();
            // Its heartbeat is looked at once more before the write.
            self.machines[of].agent.beats() && self.reaches_api(of) && self.machines[of].runs
        });
        if lives || version(&seen) != version(&self.lease) {
            return Outcome::Refused;
        }
        self.write(Some(self.machines[index].name.clone()), None);
        Outcome::Taken
    }

    fn report(&mut self, index: usize, obstacle: Option<Obstacle>) {
        if self.reaches_api(index) {
            self.write(self.lease.clone().and_then(|claim| claim.holder), obstacle);
        }
    }

    fn write(&mut self, holder: Option<NodeName>, obstacle: Option<Obstacle>) {
        self.version += 1;
        self.lease = Some(Claim { holder, version: self.version.to_string(), transitions: 0, obstacle });
    }
}

#[test]
fn a_node_that_was_cut_off_does_not_answer_beside_its_successor() {
    let mut net = Network::settled();
    net.cut_link(0);
    net.machines[0].api = false;
    net.pass(10);
    assert_eq!(net.answering(), [1], "the next in line has it, and the first has stepped down");
    assert!(net.dark <= millis(900), "{:?}", net.dark);
    // The link heals before the way to the API server does.
    net.cut.clear();
    net.pass(60);
    assert_eq!((net.answering(), net.both), (vec![1], Duration::ZERO));
    net.machines[0].api = true;
    net.pass(20);
    assert_eq!((net.answering(), net.both), (vec![1], Duration::ZERO));
}

#[test]
fn a_partition_that_heals_at_any_moment_leaves_one_node_answering() {
    for cut_for in 1..60 {
        let mut net = Network::settled();
        net.cut_link(0);
        net.machines[0].api = false;
        net.pass_steps(cut_for * 10);
        (net.cut, net.machines[0].api) = (BTreeSet::new(), true);
        net.pass(20);
        assert_eq!(net.answering().len(), 1, "cut for {cut_for} tenths of a second");
        assert_eq!(net.both, Duration::ZERO, "cut for {cut_for} tenths of a second");
    }
}

#[test]
fn an_agent_that_hung_through_a_partition_gives_way_as_soon_as_it_runs() {
    let mut net = Network::settled();
    net.machines[0].runs = false;
    net.cut_link(0);
    net.pass(10);
    assert_eq!(net.answering(), [0, 1], "programs answer without the agent, and nobody hears the first");
    net.cut.clear();
    (net.machines[0].watch, net.machines[0].runs) = (Watch::Stalls { until: net.at + STALLED }, true);
    net.pass(20);
    assert_eq!(net.answering(), [1]);
    assert!(net.both <= millis(20), "{:?}", net.both);
}

#[test]
fn an_agent_that_hangs_keeps_its_machine_answering() {
    let mut net = Network::settled();
    net.machines[0].runs = false;
    net.pass(60);
    net.machines[0].runs = true;
    net.pass(20);
    assert_eq!((net.answering(), net.dark, net.both), (vec![0], Duration::ZERO, Duration::ZERO));
}

#[test]
fn without_an_api_server_nothing_goes_dark_also_when_another_node_dies() {
    let mut net = Network::settled();
    net.server = false;
    net.pass(300);
    net.machines[1].on = false;
    net.pass(300);
    net.machines[2].runs = false;
    net.pass(100);
    assert_eq!((net.answering(), net.dark), (vec![0], Duration::ZERO));
    (net.server, net.machines[2].runs) = (true, true);
    net.pass(20);
    assert_eq!((net.answering(), net.dark, net.both), (vec![0], Duration::ZERO, Duration::ZERO));
}

#[test]
fn a_node_that_others_hear_keeps_its_address_without_the_api() {
    let mut net = Network::settled();
    net.machines[0].api = false;
    net.pass(120);
    assert_eq!((net.answering(), net.dark, net.both), (vec![0], Duration::ZERO, Duration::ZERO));
    net.machines[0].api = true;
    net.pass(20);
    assert_eq!((net.answering(), net.dark, net.both), (vec![0], Duration::ZERO, Duration::ZERO));
}

#[test]
fn a_link_that_was_away_with_the_api_server_gone_comes_back_with_its_address() {
    let mut net = Network::settled();
    net.server = false;
    net.pass(10);
    net.cut_link(0);
    net.pass(10);
    assert!(net.answering().is_empty(), "nobody hears it");
    net.cut.clear();
    net.forget();
    net.pass(10);
    assert_eq!(net.answering(), [0]);
    assert!(net.dark <= millis(900), "{:?}", net.dark);
}

/// Each side of the link has its holder, as its clients need it; where they meet, the Lease's stays.
#[test]
fn two_halves_of_a_link_are_one_again_within_a_heartbeat() {
    let mut net = Network::settled();
    net.cut = [(0, 1), (1, 2)].into();
    (net.machines[0].api, net.machines[2].api) = (false, false);
    net.pass(30);
    assert_eq!(net.answering(), [0, 1]);
    assert_eq!(net.both, Duration::ZERO, "they do not hear each other");
    net.cut.clear();
    net.pass(20);
    assert_eq!(net.answering(), [1]);
    assert!(net.both <= millis(450), "{:?}", net.both);
}

/// Whatever is cut and healed in whatever order: in the end one answers, and it is whom the Lease names.
#[test]
fn every_history_of_cuts_ends_with_one_holder() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut dice = |sides: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % sides
    };
    for history in 0..200 {
        let mut net = Network::settled();
        for _ in 0..12 {
            let index = dice(3) as usize;
            match dice(6) {
                0 => net.cut_link(index),
                1 => net.cut.clear(),
                2 => net.server = !net.server,
                3 => net.machines[index].runs = !net.machines[index].runs,
                _ => net.machines[index].api = !net.machines[index].api,
            }
            net.pass_steps(dice(500) as u32);
        }
        (net.cut, net.server) = (BTreeSet::new(), true);
        net.machines.iter_mut().for_each(|machine| (machine.api, machine.runs) = (true, true));
        net.pass(30);
        let holder = net.lease.as_ref().and_then(|claim| claim.holder.clone());
        let answering: Vec<_> =
            net.answering().into_iter().map(|index| Some(net.machines[index].name.clone())).collect();
        assert_eq!(answering, [holder], "history {history}");
    }
}
