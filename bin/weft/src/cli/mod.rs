//! The verbs people use, one file each.

pub mod addresses;
pub mod apply;
pub mod check;
pub mod down;
pub mod exec;
pub mod lab;
pub mod load;
pub mod matrix;
pub mod names;
pub mod observe;
pub mod probe;
pub mod status;
pub mod summary;
pub mod up;
pub mod why;
