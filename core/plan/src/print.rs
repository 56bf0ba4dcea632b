//! The plan as text: one row per entry, the same in logs, golden scripts and the command line.
