//! How many pods each version of a deployment should have now: one safe step from here to there. Pure.

use k8s_openapi::api::apps::v1::ReplicaSet;

use super::{DESIRED, MAX, OldPods, View, available, replicas};
use crate::controllers::meta;

/// The size each replica set should have after this step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// `None` while there is no new set and none may be made.
    pub new: Option<i32>,
    /// In the order of `View::old`.
    pub old: Vec<i32>,
}

pub fn sizes(view: &View<'_>) -> Sizes {
    let current = Sizes {
        new: view.new.as_ref().map(|set| replicas(set)),
        old: view.old.iter().map(|set| replicas(set)).collect(),
    };
    if view.is_paused() || was_resized(view) {
        return resized(view, current);
    }
    if view.is_recreate() { recreate(view, current) } else { roll(view, current) }
}

/// Everything old goes before anything new comes.
fn recreate(view: &View<'_>, current: Sizes) -> Sizes {
    let old = vec![0; current.old.len()];
    let gone = view.old_pods == OldPods::Gone && current.old.iter().all(|size| *size == 0);
    let new = if gone { Some(view.wanted()) } else { current.new };
    Sizes { new, old }
}

fn roll(view: &View<'_>, current: Sizes) -> Sizes {
    let new_size = current.new.unwrap_or(0);
    let grown = grow_new(view, new_size, new_size + current.old.iter().sum::<i32>());
    if current.new.is_none() || grown != new_size {
        return Sizes { new: Some(grown), old: current.old };
    }
    Sizes { new: Some(new_size), old: shrink_old(view, new_size, current.old) }
}

fn grow_new(view: &View<'_>, size: i32, total: i32) -> i32 {
    let wanted = view.wanted();
    if size >= wanted {
        return wanted;
    }
    let room = wanted + view.max_surge() - total;
    size + room.clamp(0, wanted - size)
}

/// Old pods that serve nobody go first; then available ones, as far as enough stay available.
fn shrink_old(view: &View<'_>, new_size: i32, mut old: Vec<i32>) -> Vec<i32> {
    let least = view.wanted() - view.max_unavailable();
    let new_unavailable = new_size - view.new.as_ref().map_or(0, |set| available(set)).min(new_size);
    let mut budget = (new_size + old.iter().sum::<i32>() - least - new_unavailable).max(0);
    for (size, set) in old.iter_mut().zip(&view.old) {
        let unhealthy = (*size - available(set)).clamp(0, *size);
        let given_up = unhealthy.min(budget);
        *size -= given_up;
        budget -= given_up;
    }
    let available_now: i32 = view.all().map(|set| available(set)).sum();
    let mut spare = (available_now - least).max(0).min(budget);
    for size in &mut old {
        let given_up = spare.min(*size);
        *size -= given_up;
        spare -= given_up;
    }
    old
}

/// Whether the deployment's size changed since its sets were last sized.
fn was_resized(view: &View<'_>) -> bool {
    let active = view.all().filter(|set| replicas(set) > 0);
    active.into_iter().any(|set| noted(set, DESIRED).is_some_and(|desired| desired != view.wanted()))
}

fn noted(set: &ReplicaSet, key: &str) -> Option<i32> {
    meta::annotation(&set.metadata, key)?.parse().ok()
}

/// A new size in the middle of a roll-out, or while paused: every active set takes its share, larger sets first.
fn resized(view: &View<'_>, mut current: Sizes) -> Sizes {
    let mut active: Vec<Slot<'_>> = Vec::new();
    for (index, set) in view.old.iter().enumerate().filter(|(_, set)| replicas(set) > 0) {
        active.push(Slot { set, old: Some(index) });
    }
    if let Some(set) = view.new.as_ref().filter(|set| replicas(set) > 0) {
        active.push(Slot { set, old: None });
    }
    match active.as_slice() {
        [] => {
            if let Some(size) = &mut current.new {
                *size = view.wanted();
            }
        }
        [only] => current.set(only.old, view.wanted()),
        _ => share_out(view, &mut current, active),
    }
    current
}

struct Slot<'a> {
    set: &'a ReplicaSet,
    /// Its place among the old sets; `None` is the new one.
    old: Option<usize>,
}

impl Sizes {
    fn set(&mut self, old: Option<usize>, size: i32) {
        match old {
            Some(index) => self.old[index] = size,
            None => self.new = Some(size),
        }
    }
}

fn share_out(view: &View<'_>, current: &mut Sizes, mut active: Vec<Slot<'_>>) {
    let total: i32 = active.iter().map(|slot| replicas(slot.set)).sum();
    let allowed = if view.wanted() == 0 { 0 } else { view.wanted() + view.max_surge() };
    let mut left = allowed - total;
    // Growing favours the newest of equals, shrinking the oldest.
    active.sort_by_key(|slot| (std::cmp::Reverse(replicas(slot.set)), slot.old.map_or(0, |_| 1)));
    if left < 0 {
        active.sort_by_key(|slot| {
            (std::cmp::Reverse(replicas(slot.set)), slot.old.map_or(usize::MAX, |index| index))
        });
    }
    for slot in &active {
        let size = replicas(slot.set);
        let base = noted(slot.set, MAX).filter(|max| *max > 0).unwrap_or(total);
        let exact = f64::from(size) * f64::from(allowed) / f64::from(base);
        #[allow(clippy::cast_possible_truncation)]
        let share = (exact.round() as i32) - size;
        let change = if left > 0 { share.clamp(0, left) } else { share.clamp(left, 0) };
        current.set(slot.old, (size + change).max(0));
        left -= change;
    }
    if let Some(first) = active.first().filter(|_| left != 0) {
        let size = match first.old {
            Some(index) => current.old[index],
            None => current.new.unwrap_or(0),
        };
        current.set(first.old, (size + left).max(0));
    }
}
