//! The serial console: a 16550 UART at COM1.
//!
//! What the guest prints is kept, the last 64 KiB of it, for the log of a machine that
//! died. By hand it also goes to standard output, and standard input is the guest's.

mod input;
mod ring;

use std::io::{self, Write};

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use input::{ConsoleInput, RawTerminal};
pub use ring::ConsoleRing;

use crate::bus::BusDevice;
use crate::eventfd;

/// First port.
pub const BASE: u64 = 0x3f8;
/// Number of ports.
pub const SIZE: u64 = 8;

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
        eventfd::raise(&self.0);
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

#[cfg(test)]
mod tests;
