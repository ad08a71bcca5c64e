//! Interrupt lines: KVM's interrupt controllers, and who gets which line.
//!
//! Local APICs, IOAPIC, the two PICs and the timer (PIT) are the kernel's. A line (GSI)
//! is pulsed by writing to an eventfd, without leaving the thread that has something to
//! say; KVM routes GSI n to pin n of the IOAPIC, which is what the MP table says too.

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::VmFd;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::arch::layout;

/// Why interrupts could not be set up.
#[derive(Debug, Error)]
pub enum IrqError {
    /// An ioctl failed.
    #[error("KVM refused {what}")]
    Kvm {
        /// What was asked for.
        what: &'static str,
        /// What the ioctl said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// More devices than the IOAPIC has pins.
    #[error("no interrupt line is left for another device")]
    Exhausted,
}

fn kvm_error(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> IrqError {
    move |source| IrqError::Kvm { what, source }
}

/// Creates the interrupt controllers and the timer; before the first vCPU.
///
/// Linux with KVM's clock boots without the PIT, but a kernel without paravirtual clock
/// support calibrates its own against it.
pub fn create_controllers(vm: &VmFd) -> Result<(), IrqError> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(kvm_error("the address of its identity map"))?;
    vm.set_tss_address(layout::KVM_TSS as usize)
        .map_err(kvm_error("the address of its task state segment"))?;
    vm.create_irq_chip()
        .map_err(kvm_error("the interrupt controllers"))?;
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit).map_err(kvm_error("the timer (PIT)"))
}

/// Lets `event` pulse the line `gsi`.
pub fn connect(vm: &VmFd, event: &EventFd, gsi: u32) -> Result<(), IrqError> {
    vm.register_irqfd(event, gsi)
        .map_err(kvm_error("an interrupt line (irqfd)"))
}

/// Hands out the lines of virtio devices, in order.
#[derive(Debug)]
pub struct GsiAllocator {
    next: u32,
}

impl Default for GsiAllocator {
    fn default() -> Self {
        Self {
            next: layout::VIRTIO_FIRST_GSI,
        }
    }
}

impl GsiAllocator {
    /// The next free line.
    pub fn allocate(&mut self) -> Result<u32, IrqError> {
        if self.next > layout::LAST_GSI {
            return Err(IrqError::Exhausted);
        }
        self.next += 1;
        Ok(self.next - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_5_to_23_are_handed_out_once_each() {
        let mut lines = GsiAllocator::default();
        let all: Vec<_> = std::iter::from_fn(|| lines.allocate().ok()).collect();
        assert_eq!(all, (5..=23).collect::<Vec<_>>());
    }
}
