//! The serial console: a 16550 UART at COM1.
//!
//! What the guest prints is kept, the last 64 KiB of it, for the log of a machine that
//! died. By hand it also goes to standard output, and standard input is the guest's.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Read, Stdin, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::exit::Exit;
use crate::exit_latch::ExitLatch;

/// First port.
pub const BASE: u64 = 0x3f8;
/// Number of ports.
pub const SIZE: u64 = 8;

/// How much of the output is kept, in bytes.
const RING_SIZE: usize = 64 * 1024;
/// Typed on a terminal, Ctrl-A and then x stops the machine.
const ESCAPE: u8 = 0x01;
const ESCAPE_STOP: u8 = b'x';

/// The last 64 KiB of output; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ConsoleRing {
    bytes: Arc<Mutex<VecDeque<u8>>>,
}

impl ConsoleRing {
    fn push(&self, bytes: &[u8]) {
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

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the UART's output goes.
struct Output {
    ring: ConsoleRing,
    to_stdout: bool,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.ring.push(bytes);
        if self.to_stdout {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes)?;
            stdout.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the input side when the guest has read everything.
struct InputDrained(EventFd);

impl SerialEvents for InputDrained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // EAGAIN: readable already.
        let _: io::Result<()> = self.0.write(1);
    }
}

/// The UART.
pub struct SerialConsole {
    uart: Serial<Irq, InputDrained, Output>,
}

impl SerialConsole {
    /// A UART that keeps its output in `ring` and prints it, too, if `to_stdout`.
    pub fn new(ring: ConsoleRing, to_stdout: bool) -> io::Result<Self> {
        let irq = Irq(EventFd::new(EFD_NONBLOCK)?);
        let drained = InputDrained(EventFd::new(EFD_NONBLOCK)?);
        Ok(Self {
            uart: Serial::with_events(irq, drained, Output { ring, to_stdout }),
        })
    }

    /// The interrupt line, for an irqfd.
    pub fn irqfd(&self) -> &EventFd {
        &self.uart.interrupt_evt().0
    }
}

impl BusDevice for SerialConsole {
    /// The registers are one byte wide.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (u8::try_from(offset), data) {
            (Ok(offset), [byte]) => *byte = self.uart.read(offset),
            (_, data) => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data)
            && let Err(error) = self.uart.write(offset, *byte)
        {
            log::debug!(target: "guest", "the console lost output: {error}");
        }
    }
}

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
        let read = if room == 0 { 0 } else { self.stdin.read(&mut bytes).unwrap_or(0) };
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

    fn take_escapes(&mut self, bytes: &mut Vec<u8>) {
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
        let done = if on { ops.add(stdin) } else { ops.remove(stdin) };
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
            // EAGAIN: emptied already.
            let _: io::Result<u64> = self.drained.read();
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

#[cfg(test)]
mod tests;
