//! How full kernel tables are. What happens when one is full lives in `service_state` and `apply`.

use std::fmt;

use weft_model::ServiceKey;
use weft_plan::Frontend;

/// Entries that the agent has put into a table, and how many it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub used: usize,
    pub capacity: usize,
}

impl Usage {
    /// Operators should hear of it from here on.
    pub const HIGH_PERCENT: usize = 80;

    pub fn is_high(&self) -> bool {
        self.used * 100 >= self.capacity * Self::HIGH_PERCENT
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = (self.used * 100).checked_div(self.capacity).unwrap_or(100);
        write!(f, "{} of {} ({percent} %)", self.used, self.capacity)
    }
}

/// A frontend that is not in force as planned because a table is full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub frontend: Frontend,
    pub service: ServiceKey,
    pub port_name: String,
    pub table: &'static str,
    pub capacity: usize,
    pub kept: Kept,
}

/// What a refused frontend has instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Nothing,
    /// What it had before stays in force.
    Older,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { frontend, service, port_name, table, capacity, kept } = self;
        let port = if port_name.is_empty() { String::new() } else { format!(" port {port_name}") };
        let kept = match kept {
            Kept::Nothing => "it is not served",
            Kept::Older => "its older entries stay in force",
        };
        write!(
            f,
            "Service {service}{port} at {frontend}: kernel table {table} is full ({capacity} entries); {kept}"
        )
    }
}
