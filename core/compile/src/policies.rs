//! Policies to sets of matches. Peers become classes in `peers`; the look-up itself is in core/decide.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use weft_model::{
    Cidr, Direction, NamespaceName, PodKey, Policy, Port, PortMatch, Protocol, Rule, RuleSet, Snapshot,
    Verdict,
};
use weft_plan::{
    ClassId, ClassMatch, Decision, PolicyMatch, PolicySet, PolicySetId, PortPrefix, RuleCause, RuleId,
};

use crate::endpoints::{Locals, Owners, SubjectSets};
use crate::ids::{Digest, Space, numbers};
use crate::peers::{Classes, Matchers, classes};
use crate::selectors::SelectorIndex;

pub(crate) struct Policies {
    pub subjects: BTreeMap<PodKey, SubjectSets>,
    pub classes: BTreeMap<Cidr, ClassId>,
    pub sets: BTreeMap<PolicySetId, PolicySet>,
    pub rules: BTreeMap<RuleId, RuleCause>,
}

pub(crate) fn policies<'a>(snapshot: &'a Snapshot, locals: &Locals<'a>, owners: &Owners<'a>) -> Policies {
    let (isolations, isolated) = isolations(snapshot, locals);
    let set_ids = numbers(isolations.keys().copied(), Space { first: 1, last: u32::MAX });
    let set_ids: BTreeMap<Digest, PolicySetId> =
        set_ids.into_iter().map(|(d, n)| (d, PolicySetId(n))).collect();
    let subject = |[ingress, egress]: [Option<Digest>; 2]| SubjectSets {
        ingress: ingress.map(|digest| set_ids[&digest]),
        egress: egress.map(|digest| set_ids[&digest]),
    };
    let subjects = isolated.into_iter().map(|(key, digests)| (key.clone(), subject(digests))).collect();
    // Nobody is isolated: no class is ever asked for.
    if isolations.is_empty() {
        let (classes, sets, rules) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        return Policies { subjects, classes, sets, rules };
    }
    let classes = classes(snapshot, owners, &matchers(isolations.values()));
    let causes: BTreeMap<Digest, RuleCause> = isolations.values().flat_map(Isolation::causes).collect();
    let rule_ids = numbers(causes.keys().copied(), Space { first: 1, last: u32::MAX });
    let rules = causes.into_iter().map(|(digest, cause)| (RuleId(rule_ids[&digest]), cause)).collect();
    let rule_id = |digest: &Digest| RuleId(rule_ids[digest]);
    let sets =
        isolations.iter().map(|(digest, isolation)| (set_ids[digest], isolation.set(&classes, &rule_id)));
    Policies { subjects, sets: sets.collect(), rules, classes: classes.by_prefix }
}

/// What isolates some pods in one direction; pods with the same policies and port names share it.
struct Isolation<'a> {
    direction: Direction,
    /// In the order of their keys: the first rule that allows is the one named as the cause.
    policies: Vec<&'a Policy>,
    /// What the port names of ingress rules mean on these pods.
    named: BTreeMap<(Protocol, &'a str), Port>,
}

/// The isolations in force, and for each isolated pod those of ingress and egress.
type Isolations<'a> = (BTreeMap<Digest, Isolation<'a>>, BTreeMap<&'a PodKey, [Option<Digest>; 2]>);

fn isolations<'a>(snapshot: &'a Snapshot, locals: &Locals<'a>) -> Isolations<'a> {
    let mut selectors: HashMap<&NamespaceName, SelectorIndex<'a, &'a Policy>> = HashMap::new();
    for policy in snapshot.policies.values() {
        selectors.entry(&policy.subject.namespace).or_default().insert(&policy.subject.pods, policy);
    }
    let mut digests: HashMap<*const Policy, Digest> = HashMap::new();
    let (mut isolations, mut isolated) = (BTreeMap::new(), BTreeMap::new());
    for local in locals.iter() {
        let Some(selectors) = selectors.get(&local.pod.key.namespace) else { continue };
        let mut selecting = selectors.matches(&local.pod.labels);
        selecting.sort_by(|a, b| a.key.cmp(&b.key));
        for (place, direction) in [Direction::Ingress, Direction::Egress].into_iter().enumerate() {
            let isolating = selecting.iter().copied().filter(|policy| rules(policy, direction).is_some());
            let isolation = Isolation::new(direction, isolating.collect(), &local.pod.named_ports);
            if isolation.policies.is_empty() {
                continue;
            }
            let digest = isolation.digest(&mut digests);
            isolations.entry(digest).or_insert(isolation);
            isolated.entry(&local.pod.key).or_insert([None, None])[place] = Some(digest);
        }
    }
    (isolations, isolated)
}

/// The rules of a direction the policy isolates.
fn rules(policy: &Policy, direction: Direction) -> Option<&[Rule]> {
    let rules = match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    };
    match rules {
        RuleSet::Absent => None,
        RuleSet::Isolates(rules) => Some(rules),
    }
}

fn matchers<'a, 'i>(isolations: impl Iterator<Item = &'i Isolation<'a>>) -> Matchers<'a>
where
    'a: 'i,
{
    let mut matchers = Matchers::default();
    for isolation in isolations {
        for (_, _, rule) in isolation.rules() {
            matchers.peers.extend(rule.peers.iter().flatten());
            if isolation.direction == Direction::Egress {
                matchers.names.extend(names(rule));
            }
        }
    }
    matchers
}

fn names(rule: &Rule) -> impl Iterator<Item = (Protocol, &str)> {
    rule.ports.iter().flatten().filter_map(|port| match port {
        PortMatch::Named { protocol, name } => Some((*protocol, name.as_str())),
        _ => None,
    })
}

impl<'a> Isolation<'a> {
    fn new(direction: Direction, policies: Vec<&'a Policy>, ports: &BTreeSet<weft_model::NamedPort>) -> Self {
        let mut isolation = Self { direction, policies, named: BTreeMap::new() };
        if direction == Direction::Ingress && !ports.is_empty() {
            let used: BTreeSet<_> = isolation.rules().flat_map(|(_, _, rule)| names(rule)).collect();
            let resolve = |(protocol, name): (Protocol, &'a str)| {
                let port = ports.iter().find(|port| port.protocol == protocol && port.name == name)?;
                Some(((protocol, name), port.port))
            };
            isolation.named = used.into_iter().filter_map(resolve).collect();
        }
        isolation
    }

    /// Every rule with its policy and its place there.
    fn rules(&self) -> impl Iterator<Item = (&'a Policy, usize, &'a Rule)> + use<'a> {
        let direction = self.direction;
        self.policies.clone().into_iter().flat_map(move |policy| {
            let rules = rules(policy, direction).unwrap_or_default();
            rules.iter().enumerate().map(move |(index, rule)| (policy, index, rule))
        })
    }

    fn digest(&self, cache: &mut HashMap<*const Policy, Digest>) -> Digest {
        let mut policy_digest = |policy: &'a Policy| {
            *cache.entry(policy as *const Policy).or_insert_with(|| {
                let text = serde_json::to_vec(policy).expect("a policy has only string keys");
                Digest::of("policy", [text])
            })
        };
        let direction = self.direction.to_string().into_bytes();
        let policies = self.policies.iter().map(|policy| policy_digest(policy).bytes().to_vec());
        let named = self.named.iter().map(|((protocol, name), port)| {
            [&[protocol.0][..], &port.0.to_be_bytes(), name.as_bytes()].concat()
        });
        Digest::of("set", std::iter::once(direction).chain(policies.collect::<Vec<_>>()).chain(named))
    }

    fn rule_digest(&self, policy: &Policy, index: usize) -> Digest {
        let parts =
            [policy.uid.to_string(), policy.key.to_string(), self.direction.to_string(), index.to_string()];
        Digest::of("rule", parts)
    }

    fn default_digest(&self) -> Digest {
        let policies =
            self.policies.iter().flat_map(|policy| [policy.uid.to_string(), policy.key.to_string()]);
        Digest::of("default", std::iter::once(self.direction.to_string()).chain(policies))
    }

    fn causes(&self) -> Vec<(Digest, RuleCause)> {
        let direction = self.direction;
        let rules = self.rules().map(|(policy, index, _)| {
            (
                self.rule_digest(policy, index),
                RuleCause::Rule { policy: policy.key.clone(), direction, index },
            )
        });
        let default = RuleCause::DefaultDeny { policies: self.keys(), direction };
        rules.chain([(self.default_digest(), default)]).collect()
    }

    fn keys(&self) -> Vec<weft_model::PolicyKey> {
        self.policies.iter().map(|policy| policy.key.clone()).collect()
    }

    fn set(&self, classes: &Classes<'a>, rule_id: &impl Fn(&Digest) -> RuleId) -> PolicySet {
        let mut table = Table::default();
        for (policy, index, rule) in self.rules() {
            let rule_id = rule_id(&self.rule_digest(policy, index));
            for (class, ports) in self.allowed(rule, classes) {
                table.allow(class, ports, rule_id);
            }
        }
        PolicySet {
            direction: self.direction,
            policies: self.keys(),
            entries: table.entries(),
            default_rule: rule_id(&self.default_digest()),
        }
    }

    /// The classes and ports that one rule allows.
    fn allowed(&self, rule: &'a Rule, classes: &Classes<'a>) -> Vec<(ClassMatch, PortMask)> {
        let peers: Option<BTreeSet<ClassId>> =
            rule.peers.as_ref().map(|peers| peers.iter().flat_map(|peer| classes.matching(peer)).collect());
        let for_peers = |mask: PortMask| -> Vec<(ClassMatch, PortMask)> {
            match &peers {
                None => vec![(ClassMatch::Any, mask)],
                Some(peers) => peers.iter().map(|class| (ClassMatch::Only(*class), mask)).collect(),
            }
        };
        let Some(ports) = &rule.ports else { return for_peers(PortMask::EVERYTHING) };
        let mut allowed = Vec::new();
        for port in ports {
            match port {
                PortMatch::All(protocol) => {
                    allowed.extend(for_peers(PortMask::of(*protocol, PortPrefix::ANY)))
                }
                PortMatch::Range { protocol, first, last } => {
                    let masks =
                        prefixes(*first, *last).into_iter().map(|prefix| PortMask::of(*protocol, prefix));
                    allowed.extend(masks.flat_map(for_peers));
                }
                PortMatch::Named { protocol, name } if self.direction == Direction::Ingress => {
                    let number = self.named.get(&(*protocol, name.as_str()));
                    let mask = number.map(|port| PortMask::of(*protocol, PortPrefix::exact(port.0)));
                    allowed.extend(mask.into_iter().flat_map(for_peers));
                }
                PortMatch::Named { protocol, name } => {
                    let resolving = classes.resolving(*protocol, name);
                    let wanted =
                        resolving.filter(|(class, _)| peers.as_ref().is_none_or(|p| p.contains(class)));
                    allowed.extend(wanted.map(|(class, port)| {
                        (ClassMatch::Only(class), PortMask::of(*protocol, PortPrefix::exact(port.0)))
                    }));
                }
            }
        }
        allowed
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct PortMask {
    protocol: Option<Protocol>,
    port: PortPrefix,
}

impl PortMask {
    const EVERYTHING: Self = Self { protocol: None, port: PortPrefix::ANY };

    fn of(protocol: Protocol, port: PortPrefix) -> Self {
        Self { protocol: Some(protocol), port }
    }

    /// The mask itself and every mask that holds it, longest first.
    fn outward(self) -> impl Iterator<Item = Self> {
        let shorter = (0..=self.port.bits).rev().map(move |bits| {
            let value = u32::from(self.port.value) & !(0xffff_u32 >> bits);
            Self { protocol: self.protocol, port: PortPrefix { value: value as u16, bits } }
        });
        shorter.chain(self.protocol.map(|_| Self::EVERYTHING))
    }
}

/// The fewest prefixes that make up `first..=last`.
fn prefixes(first: Port, last: Port) -> Vec<PortPrefix> {
    let (mut start, end) = (u32::from(first.0), u32::from(last.0));
    let mut prefixes = Vec::new();
    while start <= end {
        let aligned = if start == 0 { 16 } else { start.trailing_zeros().min(16) };
        let fitting = (end - start + 1).ilog2();
        let size = aligned.min(fitting);
        prefixes.push(PortPrefix { value: start as u16, bits: (16 - size) as u8 });
        start += 1 << size;
    }
    prefixes
}

/// What rules allow, in their order. Made so that the longest match always names the first rule that allows.
#[derive(Default)]
struct Table {
    masks: BTreeMap<ClassMatch, Masks>,
    next: usize,
}

/// Masks with the place and number of the first rule that gave them.
type Masks = BTreeMap<PortMask, (usize, RuleId)>;

impl Table {
    fn allow(&mut self, class: ClassMatch, mask: PortMask, rule: RuleId) {
        self.next += 1;
        self.masks.entry(class).or_default().entry(mask).or_insert((self.next, rule));
    }

    fn entries(self) -> BTreeMap<PolicyMatch, Decision> {
        let mut entries = BTreeMap::new();
        let any = self.masks.get(&ClassMatch::Any).cloned().unwrap_or_default();
        for (class, own) in &self.masks {
            let masks = match class {
                ClassMatch::Any => without_covered(own),
                ClassMatch::Only(_) => with_any(own, &any),
            };
            for (mask, (_, rule)) in masks {
                let key = PolicyMatch { class: *class, protocol: mask.protocol, port: mask.port };
                entries.insert(key, Decision { verdict: Verdict::Forwarded, rule });
            }
        }
        entries
    }
}

/// A mask inside one of an earlier rule never decides.
fn without_covered(masks: &Masks) -> Masks {
    let earlier = |mask: &PortMask, place: usize| {
        let mut outer = mask.outward().skip(1).filter_map(|outer| masks.get(&outer));
        outer.any(|(other, _)| *other < place)
    };
    let kept = masks.iter().filter(|(mask, (place, _))| !earlier(mask, *place));
    kept.map(|(mask, decision)| (*mask, *decision)).collect()
}

/// A class's own matches are looked up before those of any class, so a match of any class that comes earlier than a
/// broader one of the class is repeated for it.
fn with_any(own: &Masks, any: &Masks) -> Masks {
    let mut all = own.clone();
    for (mask, decision) in any {
        let entry = all.entry(*mask).or_insert(*decision);
        *entry = (*entry).min(*decision);
    }
    let kept = without_covered(&all);
    let is_own = |mask: &PortMask| own.get(mask).is_some_and(|decision| kept.get(mask) == Some(decision));
    let needed = |mask: &PortMask| is_own(mask) || mask.outward().skip(1).any(|outer| is_own(&outer));
    kept.iter().filter(|(mask, _)| needed(mask)).map(|(mask, decision)| (*mask, *decision)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_exact_and_minimal() {
        let text = |first, last| {
            let list = prefixes(Port(first), Port(last));
            list.iter()
                .map(|prefix| format!("{}/{}", prefix.value, prefix.bits))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(text(80, 80), "80/16");
        assert_eq!(text(1, 6), "1/16 2/15 4/15 6/16");
        assert_eq!(text(32000, 32768), "32000/8 32256/7 32768/16");
        assert_eq!(text(0, 65535), "0/0");
        assert_eq!(text(65535, 65535), "65535/16");
        for (first, last) in [(1, 65535), (1024, 65535), (7, 4099)] {
            let list = prefixes(Port(first), Port(last));
            for port in 0..=u16::MAX {
                let inside = list.iter().filter(|prefix| prefix.contains(port)).count();
                assert_eq!(inside, usize::from((first..=last).contains(&port)), "{port} in {first}-{last}");
            }
        }
    }
}
