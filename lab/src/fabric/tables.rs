//! How much room the kernel's tables have on each node: a setting of the agent.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// Entries; what is left out is as by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TableSizes {
    /// Addresses and ports that services have, and source ranges beside them.
    pub frontends: u32,
    /// Backends of all services' ports, each as often as its weight.
    pub backends: u32,
    pub flows: u32,
}

impl Default for TableSizes {
    fn default() -> Self {
        Self { frontends: 1 << 16, backends: 1 << 20, flows: 1 << 17 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: a table of {given} entries is not usable; give {least} to {most}", least = range.start(), most = range.end())]
pub struct TableSizeError {
    field: &'static str,
    given: u32,
    range: RangeInclusive<u32>,
}

impl TableSizes {
    /// Fewer would not hold what every cluster has; more is memory that no machine has to spare.
    pub fn check(&self) -> Result<(), TableSizeError> {
        let fields = [
            ("tables.frontends", self.frontends, 64..=1 << 22),
            ("tables.backends", self.backends, 256..=1 << 24),
            ("tables.flows", self.flows, 1024..=1 << 24),
        ];
        let bad = fields.into_iter().find(|(_, given, range)| !range.contains(given));
        bad.map_or(Ok(()), |(field, given, range)| Err(TableSizeError { field, given, range }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_the_default_and_what_cannot_be_is_named() {
        let read = |text: &str| serde_json::from_str::<TableSizes>(text);
        assert_eq!(read("{}").unwrap(), TableSizes::default());
        let small = read(r#"{"frontends": 100}"#).unwrap();
        assert_eq!((small.frontends, small.backends, small.check()), (100, 1 << 20, Ok(())));
        assert!(read(r#"{"frontend": 100}"#).unwrap_err().to_string().contains("unknown field `frontend`"));
        for (text, message) in [
            (
                r#"{"frontends": 0}"#,
                "tables.frontends: a table of 0 entries is not usable; give 64 to 4194304",
            ),
            (
                r#"{"backends": 255}"#,
                "tables.backends: a table of 255 entries is not usable; give 256 to 16777216",
            ),
            (
                r#"{"flows": 4294967295}"#,
                "tables.flows: a table of 4294967295 entries is not usable; give 1024 to 16777216",
            ),
        ] {
            assert_eq!(read(text).unwrap().check().unwrap_err().to_string(), message);
        }
    }
}
