//! Finding the selectors that match some labels without trying them all.

use std::collections::HashMap;

use weft_model::{Labels, Operator, Selector};

/// Selectors with a value each, indexed by one label that must be there.
pub(crate) struct SelectorIndex<'a, T> {
    by_label: HashMap<(&'a str, &'a str), Vec<(&'a Selector, T)>>,
    /// Selectors that demand no certain value of any label.
    others: Vec<(&'a Selector, T)>,
}

impl<T> Default for SelectorIndex<'_, T> {
    fn default() -> Self {
        Self { by_label: HashMap::new(), others: Vec::new() }
    }
}

impl<'a, T: Copy> SelectorIndex<'a, T> {
    pub fn insert(&mut self, selector: &'a Selector, value: T) {
        match demanded_label(selector) {
            Some(label) => self.by_label.entry(label).or_default().push((selector, value)),
            None => self.others.push((selector, value)),
        }
    }

    /// In no certain order.
    pub fn matches(&self, labels: &Labels) -> Vec<T> {
        let indexed =
            labels.iter().filter_map(|(key, value)| self.by_label.get(&(key.as_str(), value.as_str())));
        let candidates = indexed.flatten().chain(&self.others);
        candidates.filter(|(selector, _)| selector.matches(labels)).map(|(_, value)| *value).collect()
    }
}

fn demanded_label(selector: &Selector) -> Option<(&str, &str)> {
    selector.requirements().find_map(|requirement| match &requirement.operator {
        Operator::In(values) if values.len() == 1 => {
            Some((requirement.key.as_str(), values.first()?.as_str()))
        }
        _ => None,
    })
}
