//! Keys, values and events shared with the BPF programs.
