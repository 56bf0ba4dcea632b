//! Services whose names may be meant by one that does not exist.

use weft_model::{NamespaceName, ServiceKey, Snapshot};

const MOST: usize = 3;

/// The nearest first, as a pod of `namespace` would write them.
pub(super) fn services(snapshot: &Snapshot, namespace: &NamespaceName, written: &str) -> Vec<String> {
    let domain = format!(".{}", snapshot.settings.cluster_domain.trim_end_matches('.'));
    let lower = written.trim_end_matches('.').to_ascii_lowercase();
    let relative = lower.strip_suffix(&domain).unwrap_or(&lower);
    let relative = relative.strip_suffix(".svc").unwrap_or(relative);
    // With `_port._proto` or a host before it, the service is further right.
    let labels: Vec<&str> = relative.split('.').collect();
    let readings = (0..labels.len()).map(|first| (labels[first], labels.get(first + 1).copied()));
    let readings: Vec<_> = readings.filter(|(service, _)| !service.starts_with('_')).collect();
    let distance = |key: &ServiceKey| {
        let of = |(service, given): &(&str, Option<&str>)| {
            let place = given.unwrap_or(namespace.as_str());
            let name = distance(service, &key.name).filter(|distance| *distance <= most(service))?;
            // The right name in the wrong place is nearer than a wrong name.
            let place = if place == key.namespace.as_str() { 0 } else { distance_of_places(place, key) };
            (name + place > 0 && (name == 0 || place == 0)).then_some(name * 2 + place)
        };
        readings.iter().filter_map(of).min()
    };
    let mut near: Vec<(usize, &ServiceKey)> =
        snapshot.services.keys().filter_map(|key| Some((distance(key)?, key))).collect();
    near.sort();
    near.truncate(MOST);
    near.into_iter().map(|(_, key)| shown(key, namespace)).collect()
}

fn shown(key: &ServiceKey, namespace: &NamespaceName) -> String {
    if key.namespace == *namespace { key.name.to_string() } else { format!("{}.{}", key.name, key.namespace) }
}

/// Any other namespace may be meant; one that is spelled alike is the likelier.
fn distance_of_places(place: &str, key: &ServiceKey) -> usize {
    distance(place, key.namespace.as_str()).filter(|distance| *distance <= most(place)).map_or(3, |_| 1)
}

/// Changes that still look like a slip of the hand.
fn most(text: &str) -> usize {
    if text.len() < 4 { 1 } else { 2 }
}

/// Letters put in, left out, changed, or swapped with their neighbour; `None` if that is clearly many.
fn distance(one: &str, other: &str) -> Option<usize> {
    if one.len().abs_diff(other.len()) > 2 {
        return None;
    }
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut rows: Vec<Vec<usize>> = vec![(0..=other.len()).collect()];
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let mut best = (rows[i][j] + usize::from(a != b)).min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == other[j - 1] && one[i - 1] == *b {
                best = best.min(rows[i - 1][j - 1] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[one.len()].last().copied()
}

#[cfg(test)]
mod tests {
    use weft_model::{Service, ServiceKind};

    use super::*;

    fn near(written: &str) -> Vec<String> {
        let mut snapshot = Snapshot::default();
        for (namespace, name) in [("shop", "web"), ("shop", "checkout"), ("ops", "metrics"), ("front", "web")]
        {
            let key = ServiceKey::new(namespace, name);
            snapshot.services.insert(key.clone(), Service::new(key, ServiceKind::ClusterIp));
        }
        services(&snapshot, &"shop".into(), written)
    }

    #[test]
    fn slips_and_wrong_namespaces_are_found() {
        assert_eq!(near("wbe"), ["web"]);
        assert_eq!(near("chekout.shop.svc.cluster.local"), ["checkout"]);
        assert_eq!(near("metrics"), ["metrics.ops"]);
        assert_eq!(near("metrics.opps"), ["metrics.ops"]);
        assert_eq!(near("_http._tcp.wep.shop"), ["web"]);
        assert_eq!(near("web.shpo"), ["web", "web.front"]);
        assert!(near("database").is_empty());
    }
}
