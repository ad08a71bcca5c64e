//! Stop 6 of twelve: the loop of a vCPU thread. The guest runs until it does something
//! KVM leaves to us, which becomes a call to the device at that address.

use kvm_ioctls::VcpuExit;

use super::kick::Kickable;
use super::{Buses, Stop};
use crate::exit::Exit;
use crate::exit_latch::ExitLatch;

/// KVM_EXIT_SYSTEM_EVENT types (KVM API, 5).
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;
const SYSTEM_EVENT_CRASH: u32 = 3;

/// Runs the vCPU until the machine ends or `stop` is set.
pub(super) fn run(mut vcpu: Kickable, buses: &Buses, latch: &ExitLatch, stop: &Stop) {
    while !stop.is_set() {
        match vcpu.vcpu().run() {
            Ok(exit) => {
                if let Some(end) = handle_exit(exit, buses) {
                    report(&mut vcpu, end);
                    latch.trip(end);
                    return;
                }
            }
            Err(error) => match error.errno() {
                // Kicked, or another signal.
                libc::EINTR => vcpu.acknowledge(),
                // A processor that was waiting to be started has been.
                libc::EAGAIN => {}
                _ => {
                    log::error!("KVM cannot run the guest: {error}");
                    latch.trip(Exit::KvmError);
                    return;
                }
            },
        }
    }
}

/// Carries out one exit; tells whether it ends the machine.
fn handle_exit(exit: VcpuExit, buses: &Buses) -> Option<Exit> {
    match exit {
        VcpuExit::IoIn(port, data) => buses.ports.read(port.into(), data),
        VcpuExit::IoOut(port, data) => buses.ports.write(port.into(), data),
        VcpuExit::MmioRead(address, data) => buses.mmio.read(address, data),
        VcpuExit::MmioWrite(address, data) => buses.mmio.write(address, data),
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => {}
        // The state a triple fault leaves a processor in.
        VcpuExit::Shutdown => return Some(Exit::TripleFault),
        VcpuExit::SystemEvent(SYSTEM_EVENT_RESET | SYSTEM_EVENT_SHUTDOWN, _) => {
            return Some(Exit::Reset);
        }
        VcpuExit::SystemEvent(SYSTEM_EVENT_CRASH, _) => return Some(Exit::Panic),
        VcpuExit::FailEntry(reason, cpu) => {
            log::error!("the processor refused to enter the guest: reason {reason:#x}, CPU {cpu}");
            return Some(Exit::KvmError);
        }
        other => {
            log::error!("KVM stopped the guest for a reason the VMM does not handle: {other:?}");
            return Some(Exit::KvmError);
        }
    }
    None
}

fn report(vcpu: &mut Kickable, end: Exit) {
    if matches!(end, Exit::KvmError | Exit::TripleFault)
        && let Ok(regs) = vcpu.vcpu().get_regs()
    {
        log::error!("{} at {:#x}", end.describe(), regs.rip);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::devices::debug_port::{self, DebugPort};
    use crate::devices::i8042::{self, I8042};

    fn buses(latch: &ExitLatch) -> Buses {
        let mut buses = Buses::default();
        let reset = Arc::new(Mutex::new(I8042::new(latch.clone())));
        buses.ports.insert(i8042::BASE, i8042::SIZE, reset).unwrap();
        let debug = Arc::new(Mutex::new(DebugPort::new(latch.clone())));
        buses
            .ports
            .insert(debug_port::BASE, debug_port::SIZE, debug)
            .unwrap();
        buses
    }

    #[test]
    fn every_end_has_its_own_exit() {
        let buses = buses(&ExitLatch::new().unwrap());
        let end = |exit| handle_exit(exit, &buses);
        assert_eq!(end(VcpuExit::Shutdown), Some(Exit::TripleFault));
        assert_eq!(end(VcpuExit::InternalError), Some(Exit::KvmError));
        assert_eq!(end(VcpuExit::FailEntry(1, 0)), Some(Exit::KvmError));
        assert_eq!(end(VcpuExit::SystemEvent(3, &[])), Some(Exit::Panic));
        assert_eq!(end(VcpuExit::SystemEvent(77, &[])), Some(Exit::KvmError));
        assert_eq!(end(VcpuExit::Hlt), Some(Exit::KvmError));
        assert_eq!(end(VcpuExit::Intr), None);
    }

    #[test]
    fn accesses_go_to_the_bus_and_missing_devices_read_all_ones() {
        let latch = ExitLatch::new().unwrap();
        let buses = buses(&latch);
        let mut data = [0; 4];
        assert_eq!(
            handle_exit(VcpuExit::MmioRead(0xd000_0000, &mut data), &buses),
            None
        );
        assert_eq!(data, [0xff; 4]);
        let mut status = [0xff];
        assert_eq!(handle_exit(VcpuExit::IoIn(0x64, &mut status), &buses), None);
        assert_eq!(status, [0]);
        handle_exit(VcpuExit::IoOut(0xf4, &[debug_port::CLEAN_END]), &buses);
        handle_exit(VcpuExit::IoOut(0x64, &[0xfe]), &buses);
        assert_eq!(latch.exit(), Some(Exit::Clean));
    }
}
