//! The threads that run loads, and the state of a thread.
//!
//! ```text
//!   loader_pool.rs   runs getters whose callers must be able to return early
//!   load_permits.rs  limits the getters that run at the same time
//!   nesting.rs       calls from user code: their permit, and how long they have waited
//!   recursion.rs     finds loads that wait for each other
//!   counters.rs      counts of each thread, without atomic additions
//! ```

pub(crate) mod counters;
pub(crate) mod load_permits;
pub(crate) mod loader_pool;
pub(crate) mod nesting;
pub(crate) mod recursion;
