//! CNI 1.1 verbs and address management.
