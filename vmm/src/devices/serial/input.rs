//! Standard input and the terminal, for use by hand.

use std::io::{self, IsTerminal, Stdin};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd;
use vmm_sys_util::eventfd::EventFd;

use super::SerialConsole;
use crate::eventfd;
use crate::exit::Exit;
use crate::exit_latch::ExitLatch;

/// Typed on a terminal, Ctrl-A and then x stops the machine.
const ESCAPE: u8 = 0x01;
const ESCAPE_STOP: u8 = b'x';

/// Standard input as the guest's keyboard; lives on the event loop.
pub struct ConsoleInput {
    console: Arc<Mutex<SerialConsole>>,
    drained: EventFd,
    stdin: Stdin,
    latch: ExitLatch,
    escape_pending: bool,
    waits_for_guest: bool,
}

impl ConsoleInput {
    /// Input for `console`; the escape sequence trips `latch`.
    pub fn new(console: Arc<Mutex<SerialConsole>>, latch: ExitLatch) -> io::Result<Self> {
        let drained = lock(&console).uart.events().0.try_clone()?;
        Ok(Self {
            console,
            drained,
            stdin: io::stdin(),
            latch,
            escape_pending: false,
            waits_for_guest: false,
        })
    }

    /// Reads as much as the UART's buffer takes. Stops listening when it is full, until
    /// the guest has read, and for good at the end of the input.
    fn read_stdin(&mut self, ops: &mut EventOps) {
        let room = lock(&self.console).uart.fifo_capacity();
        let mut bytes = vec![0; room];
        let read = if room == 0 {
            0
        } else {
            // Not through the library's buffer: what it keeps, epoll does not tell of.
            unistd::read(&self.stdin, &mut bytes).unwrap_or(0)
        };
        bytes.truncate(read);
        if read == 0 {
            self.waits_for_guest = room == 0;
            self.listen(ops, false);
            return;
        }
        if self.stdin.is_terminal() {
            self.take_escapes(&mut bytes);
        }
        if let Err(error) = lock(&self.console).uart.enqueue_raw_bytes(&bytes) {
            log::debug!("the console lost input: {error}");
        }
    }

    pub(super) fn take_escapes(&mut self, bytes: &mut Vec<u8>) {
        bytes.retain(|byte| {
            let escaped = std::mem::take(&mut self.escape_pending);
            if escaped && *byte == ESCAPE_STOP {
                self.latch.trip(Exit::Stopped);
                return false;
            }
            // Twice is once for the guest.
            self.escape_pending = !escaped && *byte == ESCAPE;
            !self.escape_pending
        });
    }

    fn listen(&self, ops: &mut EventOps, on: bool) {
        let stdin = Events::new(&self.stdin, EventSet::IN);
        let done = if on {
            ops.add(stdin)
        } else {
            ops.remove(stdin)
        };
        if let Err(error) = done {
            // A plain file cannot be waited for; nor can a guest read ahead in it.
            log::info!("standard input is not connected to the console: {error}");
        }
    }
}

impl MutEventSubscriber for ConsoleInput {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.drained, EventSet::IN)) {
            log::error!("the event loop refused the console: {error}");
            return;
        }
        self.listen(ops, true);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.stdin.as_raw_fd() {
            self.read_stdin(ops);
        } else {
            eventfd::lower(&self.drained);
            if std::mem::take(&mut self.waits_for_guest) {
                self.listen(ops, true);
            }
        }
    }
}

fn lock(console: &Mutex<SerialConsole>) -> MutexGuard<'_, SerialConsole> {
    console.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A terminal in raw mode, so that keys reach the guest one by one and unechoed; put
/// back when dropped.
#[derive(Debug)]
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Switches standard input to raw mode, if it is a terminal.
    pub fn enter() -> Option<Self> {
        let stdin = io::stdin();
        // An error means that it is none.
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        set(stdin.as_fd(), &raw);
        Some(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        set(io::stdin().as_fd(), &self.before);
    }
}

fn set(terminal: BorrowedFd, mode: &Termios) {
    if let Err(error) = tcsetattr(terminal, SetArg::TCSANOW, mode) {
        log::warn!("cannot change the terminal's mode: {error}");
    }
}
