//! Idle connections to a database.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A connection is used by one thread at a time, and getters run on many threads. So there are as many
/// connections as there were concurrent loads.
pub struct Idle<C>(Mutex<Vec<C>>);

impl<C> Idle<C> {
    pub fn new() -> Self {
        Idle(Mutex::default())
    }

    /// Returns an idle connection, or a new one if there is none. `connect` runs without the lock.
    pub fn take<E>(&self, connect: impl FnOnce() -> Result<C, E>) -> Result<C, E> {
        let idle = self.lock().pop();
        idle.map_or_else(connect, Ok)
    }

    pub fn put(&self, connection: C) {
        self.lock().push(connection);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<C>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
