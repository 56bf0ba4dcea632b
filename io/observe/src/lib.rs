//! Kernel events to named flows, their filters, the recent ones, and metrics. Reading events lives in io/datapath,
//! serving them in bin/weft.

mod filter;
mod flows;
mod metrics;
mod namer;
mod ring;

pub use filter::{Filter, FilterError};
pub use flows::{Flow, FlowKind, Party, ServiceRef, Who};
pub use metrics::FlowMetrics;
pub use namer::Namer;
pub use ring::{FlowRing, FlowStream, Item};
