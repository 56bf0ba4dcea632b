//! Layer check, layout check and other chores of the workspace.

fn main() {}
