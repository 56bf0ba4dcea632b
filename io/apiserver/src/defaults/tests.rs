//! Defaults and refusals, table by table.
