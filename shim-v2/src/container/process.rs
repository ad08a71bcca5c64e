//! Stop 12 of twelve: one process of a container, its init or an exec. Its states and
//! the one exit everybody learns of; no I/O.
//!
//! ```text
//!            begin_start           started           begin_pause           paused
//!  Created --------------> Starting ------> Running -------------> Pausing ------> Paused
//!     |  ^------------------- |               | ^------------------ |               |
//!     |     start_failed      |               | |  pause_failed or resumed          |
//!     |                       |               | +------------------ Resuming <------+
//!     |                       |               |     begin_resume    |               |
//!     +-------------- exited (once, final) ---+---------------------+---------------+---> Stopped
//! ```
//!
//! An exit is published only when the process is not `Starting`: the start event,
//! queued before `started`, can then never come second.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;

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

/// How long a verb that is under way may take before it stands in another's way.
const STEADY: Duration = Duration::from_secs(10);

/// Where a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Set up, its program not running yet.
    Created,
    /// A start is under way.
    Starting,
    /// Its program runs.
    Running,
    /// The guest was asked to freeze it.
    Pausing,
    /// It stands still.
    Paused,
    /// The guest was asked to let it go on.
    Resuming,
    /// It is over.
    Stopped(Exit),
}

/// A verb that does not fit the state. The words are those of runc's shim, by which
/// scripts recognise them.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum StateError {
    /// The state is not the verb's.
    #[error("cannot {verb} a {state} process")]
    Wrong {
        /// What was asked for.
        verb: &'static str,
        /// Where the process stands.
        state: &'static str,
    },
    /// A signal for an exec that was never started.
    #[error("process not created")]
    NotCreated,
    /// A signal for something that is over.
    #[error("process already finished")]
    Finished,
}

impl State {
    /// The error of a verb that is not for a process in this state.
    pub fn refuses(self, verb: &'static str) -> StateError {
        let state = match self {
            Self::Created => "created",
            Self::Starting | Self::Running => "running",
            Self::Pausing | Self::Paused | Self::Resuming => "paused",
            Self::Stopped(_) => "stopped",
        };
        StateError::Wrong { verb, state }
    }

    /// Whether its program was started and has not ended.
    pub fn is_alive(self) -> bool {
        !matches!(self, Self::Created | Self::Stopped(_))
    }
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
    size: Mutex<Size>,
    guest_pid: AtomicU32,
}

/// Sizes of a terminal, columns then rows.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    /// What was asked for last.
    wanted: Option<(u32, u32)>,
    /// What the terminal was started with.
    given: Option<(u32, u32)>,
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
            size: Mutex::default(),
            guest_pid: AtomicU32::new(0),
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
    /// [`StateError::Wrong`] from every state but `Created`.
    pub fn begin_start(&self) -> Result<(), StateError> {
        self.change(State::Created, State::Starting, "start")
    }

    /// The program runs, and its start event is queued.
    pub fn started(&self) {
        self.leave(State::Starting, State::Running);
    }

    /// The program does not run; deleting the process is what remains.
    pub fn start_failed(&self) {
        self.leave(State::Starting, State::Created);
    }

    /// Reserves a pause: one at a time, and none while a resume is under way.
    ///
    /// # Errors
    /// [`StateError::Wrong`] from every state but `Running`.
    pub fn begin_pause(&self) -> Result<(), StateError> {
        self.change(State::Running, State::Pausing, "pause")
    }

    /// It stands still. `false` if it ended meanwhile.
    pub fn paused(&self) -> bool {
        self.leave(State::Pausing, State::Paused)
    }

    /// It goes on running.
    pub fn pause_failed(&self) {
        self.leave(State::Pausing, State::Running);
    }

    /// Reserves a resume.
    ///
    /// # Errors
    /// [`StateError::Wrong`] from every state but `Paused`.
    pub fn begin_resume(&self) -> Result<(), StateError> {
        self.change(State::Paused, State::Resuming, "resume")
    }

    /// It runs again. `false` if it ended meanwhile.
    pub fn resumed(&self) -> bool {
        self.leave(State::Resuming, State::Running)
    }

    /// It stands still as before.
    pub fn resume_failed(&self) {
        self.leave(State::Resuming, State::Paused);
    }

    /// Records the end. `false` if it was recorded before: the caller then must not
    /// publish it again.
    pub fn exited(&self, exit: Exit) -> bool {
        self.state.send_if_modified(|state| {
            let first = !matches!(state, State::Stopped(_));
            if first {
                *state = State::Stopped(exit);
            }
            first
        })
    }

    fn change(&self, from: State, to: State, verb: &'static str) -> Result<(), StateError> {
        let mut found = from;
        let changed = self.state.send_if_modified(|state| {
            found = *state;
            let changes = found == from;
            if changes {
                *state = to;
            }
            changes
        });
        if changed {
            Ok(())
        } else {
            Err(found.refuses(verb))
        }
    }

    /// Ends a transition, unless the process ended during it.
    fn leave(&self, from: State, to: State) -> bool {
        self.change(from, to, "change").is_ok()
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

    /// Its state once no verb is under way, or after [`STEADY`]: runc's verbs wait for each
    /// other, too.
    pub async fn steady(&self) -> State {
        let mut changes = self.state.subscribe();
        let under_way =
            |state: &State| matches!(state, State::Starting | State::Pausing | State::Resuming);
        drop(timeout(STEADY, changes.wait_for(|state| !under_way(state))).await);
        self.state()
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

    /// Its pid as the guest numbers it; `None` for an exec that never ran.
    pub fn guest_pid(&self) -> Option<u32> {
        Some(self.guest_pid.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    /// Notes its pid in the guest.
    pub fn set_guest_pid(&self, pid: u32) {
        self.guest_pid.store(pid, Ordering::Relaxed);
    }

    /// Remembers the terminal's size until there is a terminal.
    pub fn set_size(&self, width: u32, height: u32) {
        self.size().wanted = Some((width, height));
    }

    /// The remembered size, columns then rows, to start the terminal with.
    pub fn size_for_start(&self) -> Option<(u32, u32)> {
        let mut size = self.size();
        size.given = size.wanted;
        size.wanted
    }

    /// The size that was asked for after [`Process::size_for_start`], if it is another.
    pub fn late_size(&self) -> Option<(u32, u32)> {
        let size = *self.size();
        size.wanted.filter(|_| size.wanted != size.given)
    }

    fn size(&self) -> MutexGuard<'_, Size> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        Process::new(String::new(), Paths::default(), Vec::new())
    }

    fn changes(process: &Process, verb: fn(&Process)) -> bool {
        let before = process.state();
        verb(process);
        process.state() != before
    }

    /// What a verb makes of each state; `None` where it is refused or changes nothing.
    type Row = (&'static str, fn(&Process) -> bool, [Option<State>; 7]);

    #[test]
    fn the_state_table() {
        let over = Exit::now(7);
        let states = [
            State::Created,
            State::Starting,
            State::Running,
            State::Pausing,
            State::Paused,
            State::Resuming,
            State::Stopped(over),
        ];
        let only = |index: usize, next: State| {
            let mut row = [None; 7];
            row[index] = Some(next);
            row
        };
        let mut ends = [Some(State::Stopped(Exit::now(9))); 7];
        ends[6] = None;
        let table: [Row; 10] = [
            (
                "begin_start",
                |p| p.begin_start().is_ok(),
                only(0, State::Starting),
            ),
            (
                "started",
                |p| changes(p, Process::started),
                only(1, State::Running),
            ),
            (
                "start_failed",
                |p| changes(p, Process::start_failed),
                only(1, State::Created),
            ),
            (
                "begin_pause",
                |p| p.begin_pause().is_ok(),
                only(2, State::Pausing),
            ),
            ("paused", Process::paused, only(3, State::Paused)),
            (
                "pause_failed",
                |p| changes(p, Process::pause_failed),
                only(3, State::Running),
            ),
            (
                "begin_resume",
                |p| p.begin_resume().is_ok(),
                only(4, State::Resuming),
            ),
            ("resumed", Process::resumed, only(5, State::Running)),
            (
                "resume_failed",
                |p| changes(p, Process::resume_failed),
                only(5, State::Paused),
            ),
            ("exited", |p| p.exited(Exit::now(9)), ends),
        ];
        for (verb, call, after) in table {
            for (before, after) in states.into_iter().zip(after) {
                let process = process();
                process.state.send_replace(before);
                assert_eq!(call(&process), after.is_some(), "{verb} from {before:?}");
                match (after, process.state()) {
                    (Some(State::Stopped(_)), State::Stopped(exit)) => assert_eq!(exit.status, 9),
                    (after, state) => assert_eq!(state, after.unwrap_or(before), "{verb}"),
                }
            }
        }
    }

    #[test]
    fn a_refusal_names_verb_and_state() {
        let process = process();
        process.begin_start().unwrap();
        let error = process.begin_start().unwrap_err();
        assert_eq!(error.to_string(), "cannot start a running process");
        process.exited(Exit::now(0));
        let error = process.begin_pause().unwrap_err();
        assert_eq!(error.to_string(), "cannot pause a stopped process");
    }

    #[test]
    fn a_size_that_came_during_the_start_is_late() {
        let process = process();
        assert_eq!(process.late_size(), None);
        process.set_size(80, 24);
        assert_eq!(process.size_for_start(), Some((80, 24)));
        assert_eq!(process.late_size(), None);
        process.set_size(100, 50);
        assert_eq!(process.late_size(), Some((100, 50)));
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
