//! Plan and packet or query to verdict and reason.
