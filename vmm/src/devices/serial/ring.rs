//! What the guest printed last, for the log of a machine that died.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much is kept, in bytes.
pub(super) const RING_SIZE: usize = 64 * 1024;

/// The last 64 KiB of output; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ConsoleRing {
    bytes: Arc<Mutex<VecDeque<u8>>>,
}

impl ConsoleRing {
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut ring = self.lock();
        for byte in bytes {
            if ring.len() == RING_SIZE {
                ring.pop_front();
            }
            ring.push_back(*byte);
        }
    }

    /// Whether the kernel said that it panicked.
    pub fn shows_panic(&self) -> bool {
        const PANIC: &[u8] = b"Kernel panic - not syncing";
        let mut ring = self.lock();
        let bytes = ring.make_contiguous();
        bytes.windows(PANIC.len()).any(|window| window == PANIC)
    }

    /// The last `count` lines that are not empty, oldest first.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let mut ring = self.lock();
        let mut lines: Vec<_> = ring
            .make_contiguous()
            .rsplit(|byte| *byte == b'\n')
            .map(|line| String::from_utf8_lossy(line).trim_end().to_owned())
            .filter(|line| !line.is_empty())
            .take(count)
            .collect();
        lines.reverse();
        lines
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
