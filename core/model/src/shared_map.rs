//! An ordered map whose copies share what they have in common: copying is free, and two copies know cheaply where they differ.

use std::borrow::Borrow;
use std::fmt;
use std::ops::{Index, RangeBounds};
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub struct SharedMap<K, V>(OrdMap<K, Arc<V>>);

impl<K: Ord + Clone, V> SharedMap<K, V> {
    pub fn new() -> Self {
        Self(OrdMap::new())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key).map(Arc::as_ref)
    }

    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.0.contains_key(key)
    }

    pub fn insert(&mut self, key: K, value: V) -> Option<Arc<V>> {
        self.0.insert(key, Arc::new(value))
    }

    /// The value to change, put there if it is missing.
    pub fn get_or_default(&mut self, key: K) -> &mut V
    where
        V: Default + Clone,
    {
        Arc::make_mut(self.0.entry(key).or_default())
    }

    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
    {
        self.0.remove(key)
    }

    pub fn clear(&mut self) {
        self.0 = OrdMap::new();
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> + Clone {
        self.0.iter().map(|(key, value)| (key, value.as_ref()))
    }

    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + Clone {
        self.0.iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + Clone {
        self.0.iter().map(|(_, value)| value.as_ref())
    }

    /// Entries whose keys lie in `range`, in order.
    pub fn range(&self, range: impl RangeBounds<K>) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.0.range(range).map(|(key, value)| (key, value.as_ref()))
    }

    /// The same map, found without looking into it. False says nothing.
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0)
    }
}

impl<K: Ord + Clone, V: PartialEq> SharedMap<K, V> {
    /// Keys whose value is another than in `before`, or in one of the two only. Parts that both share are not looked at.
    pub fn changes<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = Change<'a, K, V>> {
        before.0.diff(&self.0).filter_map(|item| {
            let (key, before, after): (&K, Option<&Arc<V>>, Option<&Arc<V>>) = match item {
                DiffItem::Add(key, after) => (key, None, Some(after)),
                DiffItem::Remove(key, before) => (key, Some(before), None),
                DiffItem::Update { old: (key, before), new: (_, after) } => (key, Some(before), Some(after)),
            };
            (before != after).then(|| Change {
                key,
                before: before.map(Arc::as_ref),
                after: after.map(Arc::as_ref),
            })
        })
    }
}

/// One entry in which two maps differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a, K, V> {
    pub key: &'a K,
    pub before: Option<&'a V>,
    pub after: Option<&'a V>,
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Ord + Clone, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord + Clone, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || (self.len() == other.len() && self.changes(other).next().is_none())
    }
}

impl<K: Ord + Clone, V: Eq> Eq for SharedMap<K, V> {}

impl<K: Ord + Clone + fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Clone, V> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        Self(entries.into_iter().map(|(key, value)| (key, Arc::new(value))).collect())
    }
}

impl<K: Ord + Clone, V, const N: usize> From<[(K, V); N]> for SharedMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K: Ord + Clone, V> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<'a, K: Ord + Clone, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Box<dyn Iterator<Item = (&'a K, &'a V)> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

impl<K: Ord + Clone + Borrow<Q>, V, Q: Ord + ?Sized> Index<&Q> for SharedMap<K, V> {
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("an index is a key of the map")
    }
}

impl<K: Ord + Clone + Serialize, V: Serialize> Serialize for SharedMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, K: Ord + Clone + Deserialize<'de>, V: Deserialize<'de>> Deserialize<'de> for SharedMap<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(std::collections::BTreeMap::<K, V>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(u32, &str)]) -> SharedMap<u32, String> {
        entries.iter().map(|(key, value)| (*key, (*value).to_owned())).collect()
    }

    #[test]
    fn copies_differ_where_one_was_changed() {
        let before = map(&[(1, "a"), (2, "b"), (3, "c")]);
        let mut after = before.clone();
        assert!(after.is_same(&before));
        after.insert(2, "B".to_owned());
        after.remove(&3);
        after.insert(4, "d".to_owned());
        // Put anew with the same value, it has not changed.
        after.insert(1, "a".to_owned());
        let changes: Vec<_> = after
            .changes(&before)
            .map(|change| (*change.key, change.before.map(String::as_str), change.after.map(String::as_str)))
            .collect();
        assert_eq!(changes, [(2, Some("b"), Some("B")), (3, Some("c"), None), (4, None, Some("d"))]);
        assert_eq!(before, map(&[(1, "a"), (2, "b"), (3, "c")]));
    }

    #[test]
    fn equal_maps_of_different_origin_are_equal() {
        assert_eq!(map(&[(1, "a"), (2, "b")]), map(&[(2, "b"), (1, "a")]));
        assert_ne!(map(&[(1, "a")]), map(&[(1, "b")]));
        assert_ne!(map(&[(1, "a")]), map(&[(1, "a"), (2, "b")]));
    }
}
