//! Stop 12 of twelve: one process of a container, its init or an exec. Its states and
//! the one exit everybody learns of; no I/O.
//!
//! ```text
//!            begin_start           started
//!  Created --------------> Starting ------> Running
//!     |  ^------------------- | -------------- |
//!     |     start_failed      |                |
//!     +----------- exited (once, final) -------+---> Stopped
//! ```
//!
//! An exit is published only when the process is not `Starting`: the start event,
//! queued before `started`, can then never come second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use thiserror::Error;
use tokio::sync::watch;

use super::stdio::{Paths, Streams};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// As a shell reports it: the exit code, or 128 + signal.
    pub status: u32,
    /// When the host learned of it.
    pub at: SystemTime,
}

impl Exit {
    /// An exit that was noticed just now.
    pub fn now(status: u32) -> Self {
        Self {
            status,
            at: SystemTime::now(),
        }
    }
}

/// Exit status of a process whose machine is gone: killed.
pub const KILLED: u32 = 137;

/// Where a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Set up, its program not running yet.
    Created,
    /// A start is under way.
    Starting,
    /// Its program runs.
    Running,
    /// It is over.
    Stopped(Exit),
}

/// A verb that does not fit the state.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum StateError {
    /// Start of something that was started before.
    #[error("the process was started before")]
    NotCreated,
    /// Delete of a running process.
    #[error("the process is running: kill it first")]
    Running,
    /// A signal, or an exec, for something that does not run.
    #[error("the process is not running")]
    NotRunning,
    /// A signal for something that is over.
    #[error("process already finished")]
    Finished,
}

/// A process of a container.
pub struct Process {
    /// Empty for the container's init.
    pub exec_id: String,
    /// Its stdio as containerd gave it.
    pub stdio: Paths,
    /// The OCI `process` object of an exec.
    pub spec: Vec<u8>,
    state: watch::Sender<State>,
    streams: Mutex<Option<Arc<Streams>>>,
    stdin_closed: AtomicBool,
    size: Mutex<Option<(u32, u32)>>,
}

impl Process {
    /// A process in state `Created`.
    pub fn new(exec_id: String, stdio: Paths, spec: Vec<u8>) -> Self {
        Self {
            exec_id,
            stdio,
            spec,
            state: watch::Sender::new(State::Created),
            streams: Mutex::new(None),
            stdin_closed: AtomicBool::new(false),
            size: Mutex::new(None),
        }
    }

    /// Its state now.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// How it ended, if it did.
    pub fn exit(&self) -> Option<Exit> {
        match self.state() {
            State::Stopped(exit) => Some(exit),
            _ => None,
        }
    }

    /// Reserves the one start.
    ///
    /// # Errors
    /// [`StateError::NotCreated`] from every other state.
    pub fn begin_start(&self) -> Result<(), StateError> {
        self.change(
            |state| matches!(state, State::Created),
            State::Starting,
            StateError::NotCreated,
        )
    }

    /// The program runs, and its start event is queued.
    pub fn started(&self) {
        drop(self.leave_starting(State::Running));
    }

    /// The program does not run; deleting the process is what remains.
    pub fn start_failed(&self) {
        drop(self.leave_starting(State::Created));
    }

    fn leave_starting(&self, next: State) -> Result<(), StateError> {
        self.change(
            |state| matches!(state, State::Starting),
            next,
            StateError::NotRunning,
        )
    }

    /// Records the end. `false` if it was recorded before: the caller then must not
    /// publish it again.
    pub fn exited(&self, exit: Exit) -> bool {
        let may = |state: &State| !matches!(state, State::Stopped(_));
        self.change(may, State::Stopped(exit), StateError::Finished)
            .is_ok()
    }

    fn change(
        &self,
        may: impl FnOnce(&State) -> bool,
        next: State,
        error: StateError,
    ) -> Result<(), StateError> {
        let changed = self.state.send_if_modified(|state| {
            let may = may(state);
            if may {
                *state = next;
            }
            may
        });
        if changed { Ok(()) } else { Err(error) }
    }

    /// Waits for the end; any number of callers may.
    pub async fn wait(&self) -> Exit {
        let mut changes = self.state.subscribe();
        loop {
            let state = *changes.borrow_and_update();
            if let State::Stopped(exit) = state {
                return exit;
            }
            if changes.changed().await.is_err() {
                // Cannot be: the sender lives in `self`.
                return Exit::now(KILLED);
            }
        }
    }

    /// Waits until no start is under way.
    pub async fn settled(&self) {
        let mut changes = self.state.subscribe();
        drop(
            changes
                .wait_for(|state| !matches!(state, State::Starting))
                .await,
        );
    }

    /// Its open streams; `None` before they exist and after they were taken.
    pub fn streams(&self) -> Option<Arc<Streams>> {
        self.streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Puts its streams in place.
    pub fn set_streams(&self, streams: Streams) {
        if self.stdin_closed.load(Ordering::Relaxed) {
            streams.close_stdin();
        }
        *self.streams.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(streams));
    }

    /// Lets standard input end, now or, if the streams do not exist yet, then.
    pub fn close_stdin(&self) {
        self.stdin_closed.store(true, Ordering::Relaxed);
        if let Some(streams) = self.streams() {
            streams.close_stdin();
        }
    }

    /// Lets go of its streams, which closes them.
    pub fn drop_streams(&self) {
        self.streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    /// Remembers the terminal's size until there is a terminal.
    pub fn set_size(&self, width: u32, height: u32) {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner) = Some((width, height));
    }

    /// The remembered size, columns then rows.
    pub fn size(&self) -> Option<(u32, u32)> {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        Process::new(String::new(), Paths::default(), Vec::new())
    }

    #[test]
    fn the_state_table() {
        let in_state = |state: State| {
            let process = process();
            process.state.send_replace(state);
            process
        };
        let over = Exit::now(7);
        let (created, starting) = (State::Created, State::Starting);
        let (running, stopped) = (State::Running, State::Stopped(over));
        // State before, then after begin_start, started, start_failed, exited(9).
        let nine = Exit { status: 9, ..over };
        let table = [
            (created, starting, created, created, State::Stopped(nine)),
            (starting, starting, running, created, State::Stopped(nine)),
            (running, running, running, running, State::Stopped(nine)),
            (stopped, stopped, stopped, stopped, stopped),
        ];
        for (before, begun, started, failed, exited) in table {
            let process = in_state(before);
            assert_eq!(process.begin_start().is_ok(), before == created);
            assert_eq!(process.state(), begun);
            let process = in_state(before);
            process.started();
            assert_eq!(process.state(), started);
            let process = in_state(before);
            process.start_failed();
            assert_eq!(process.state(), failed);
            let process = in_state(before);
            assert_eq!(process.exited(nine), before != stopped);
            assert_eq!(process.state(), exited);
        }
    }

    #[tokio::test]
    async fn all_waiters_see_the_one_exit_also_afterwards() {
        let process = Arc::new(process());
        let early = tokio::spawn({
            let process = process.clone();
            async move { process.wait().await }
        });
        tokio::task::yield_now().await;
        assert!(process.exited(Exit::now(3)));
        assert!(!process.exited(Exit::now(4)));
        assert_eq!(early.await.unwrap().status, 3);
        assert_eq!(process.wait().await.status, 3);
    }
}
