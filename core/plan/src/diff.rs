//! The difference of two desired states, table by table.

use std::collections::BTreeMap;

/// What turns one table into another. Putting comes before removing, so that nothing is missing in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes<K, V> {
    pub put: Vec<(K, V)>,
    pub remove: Vec<K>,
}

impl<K: Ord + Clone, V: PartialEq + Clone> Changes<K, V> {
    pub fn between(from: &BTreeMap<K, V>, to: &BTreeMap<K, V>) -> Self {
        let put = to.iter().filter(|(key, value)| from.get(key) != Some(value));
        let remove = from.keys().filter(|key| !to.contains_key(key));
        Self {
            put: put.map(|(key, value)| (key.clone(), value.clone())).collect(),
            remove: remove.cloned().collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.remove.is_empty()
    }

    pub fn len(&self) -> usize {
        self.put.len() + self.remove.len()
    }
}
