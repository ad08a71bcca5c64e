//! Short locks over small state.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after a panic elsewhere: all guarded state of the agent is changed
/// in single steps, so it is never half done.
///
/// The agent has one thread: the lock is never contended and exists because the
/// service trait asks for `Sync`.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
