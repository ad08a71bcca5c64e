//! As much of the keyboard controller as a guest needs to reset the machine.
//!
//! Linux with `reboot=k` waits until the controller is ready for a command (status
//! bit 1 clear) and writes 0xfe, "pulse the reset line", to port 0x64.

use crate::bus::BusDevice;
use crate::exit_latch::ExitLatch;

/// First port.
pub const BASE: u64 = 0x60;
/// Number of ports.
pub const SIZE: u64 = 5;

const COMMAND: u64 = 4;
const COMMAND_RESET: u8 = 0xfe;

/// The controller.
#[derive(Debug)]
pub struct I8042 {
    latch: ExitLatch,
}

impl I8042 {
    /// A controller whose reset line trips `latch`.
    pub fn new(latch: ExitLatch) -> Self {
        Self { latch }
    }
}

impl BusDevice for I8042 {
    /// Nothing typed, ready for a command.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if (offset, data) == (COMMAND, &[COMMAND_RESET]) {
            self.latch.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn only_the_reset_command_resets() {
        let latch = ExitLatch::new().unwrap();
        let mut device = I8042::new(latch.clone());
        for (offset, data) in [(0, &[0xfe][..]), (4, &[0xff]), (4, &[0xfe, 0]), (4, &[])] {
            device.write(offset, data);
            assert_eq!(latch.exit(), None);
        }
        let mut status = [0xff];
        device.read(COMMAND, &mut status);
        assert_eq!(status, [0]);
        device.write(COMMAND, &[COMMAND_RESET]);
        assert_eq!(latch.exit(), Some(Exit::Reset));
    }
}
