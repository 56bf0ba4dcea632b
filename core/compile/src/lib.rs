//! Model snapshot to plan.
