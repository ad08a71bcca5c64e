//! One I/O port by which the guest's PID 1 tells how far it is.

use crate::bus::BusDevice;
use crate::exit_latch::ExitLatch;

/// The port.
pub const BASE: u64 = 0xf4;
/// Number of ports.
pub const SIZE: u64 = 1;

/// PID 1 runs.
pub const INIT_RUNNING: u8 = 0x01;
/// The next reset is a clean end.
pub const CLEAN_END: u8 = 0x02;

/// The port's device.
#[derive(Debug)]
pub struct DebugPort {
    latch: ExitLatch,
    init_seen: bool,
}

impl DebugPort {
    /// A port that reports to `latch`.
    pub fn new(latch: ExitLatch) -> Self {
        Self {
            latch,
            init_seen: false,
        }
    }
}

impl BusDevice for DebugPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        match data {
            // Once: any root process in the guest can write here.
            [INIT_RUNNING] if !self.init_seen => {
                self.init_seen = true;
                crate::log::timeline("init_running");
            }
            [CLEAN_END] => self.latch.announce_clean_end(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_clean_end_is_announced_by_its_code_alone() {
        for (code, expected) in [
            (INIT_RUNNING, Exit::Reset),
            (3, Exit::Reset),
            (CLEAN_END, Exit::Clean),
        ] {
            let latch = ExitLatch::new().unwrap();
            DebugPort::new(latch.clone()).write(0, &[code]);
            latch.reset();
            assert_eq!(latch.exit(), Some(expected), "{code}");
        }
    }
}
