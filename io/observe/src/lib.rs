//! Kernel and proxy events to flows, aggregates and metrics.
