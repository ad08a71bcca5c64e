//! Stop 12 of twelve: a process ends and its exit status starts its way back up.
//!
//! The only place that waits for children. PID 1 gets every orphan of the guest
//! besides the processes it started itself: all are collected, and those that
//! somebody [watches](Reaper::watch) have their end recorded.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::unistd::Pid;
use tokio::signal::unix::Signal;
use tokio::sync::watch;

use crate::sync::lock;
use crate::sys;

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + the number of the signal that ended it.
    pub status: u32,
    /// Nanoseconds since the Unix epoch, by the guest's clock.
    pub at_ns: u64,
}

/// Holds `None` until the process has ended.
pub type ExitWatch = watch::Receiver<Option<Exit>>;

/// Collects ended children.
#[derive(Debug, Default)]
pub struct Reaper {
    watched: Mutex<HashMap<Pid, watch::Sender<Option<Exit>>>>,
}

impl Reaper {
    /// Watches a child. To be called before the next await after the child was
    /// made: with one thread, [`Reaper::run`] cannot have collected it until then.
    pub fn watch(&self, pid: Pid) -> ExitWatch {
        let (sender, receiver) = watch::channel(None);
        lock(&self.watched).insert(pid, sender);
        receiver
    }

    /// Collects children for ever. `sigchld` must have been registered before the
    /// first child was made.
    pub async fn run(&self, mut sigchld: Signal) {
        loop {
            // One signal may stand for many children.
            while let Some((pid, status)) = sys::wait_any() {
                self.record(pid, status);
            }
            if sigchld.recv().await.is_none() {
                return;
            }
        }
    }

    fn record(&self, pid: Pid, status: i32) {
        if let Some(sender) = lock(&self.watched).remove(&pid) {
            sender.send_replace(Some(Exit {
                status: exit_status(status),
                at_ns: realtime_ns(),
            }));
        }
    }
}

/// Waits until the watched process has ended.
pub async fn ended(mut watch: ExitWatch) -> Option<Exit> {
    // The sender is dropped only after it has recorded the end.
    *watch.wait_for(Option::is_some).await.ok()?
}

/// The guest's wall clock in nanoseconds since the Unix epoch.
pub fn realtime_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_nanos() as u64)
}

/// The shell's view of a raw wait status.
fn exit_status(status: i32) -> u32 {
    if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status) as u32
    } else {
        libc::WEXITSTATUS(status) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_kept_and_signals_are_offset() {
        assert_eq!(exit_status(0), 0);
        assert_eq!(exit_status(42 << 8), 42);
        assert_eq!(exit_status(255 << 8), 255);
        assert_eq!(exit_status(libc::SIGKILL), 137);
        // With a core dump (bit 7), and a real-time signal.
        assert_eq!(exit_status(libc::SIGSEGV | 0x80), 139);
        assert_eq!(exit_status(40), 168);
    }

    #[tokio::test]
    async fn a_watch_holds_the_exit_also_for_those_who_ask_late() {
        let reaper = Reaper::default();
        let watch = reaper.watch(Pid::from_raw(7));
        reaper.record(Pid::from_raw(8), 0);
        assert_eq!(*watch.borrow(), None);
        reaper.record(Pid::from_raw(7), 3 << 8);
        assert_eq!(ended(watch.clone()).await.unwrap().status, 3);
        assert_eq!(ended(watch).await.unwrap().status, 3);
    }
}
