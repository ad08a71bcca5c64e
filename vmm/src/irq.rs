//! Interrupt lines: KVM's interrupt controllers, and who gets which line.
//!
//! Local APICs, IOAPIC, the two PICs and the timer (PIT) are the kernel's. A line (GSI)
//! is pulsed by writing to an eventfd, without leaving the thread that has something to
//! say; KVM routes GSI n to pin n of the IOAPIC, which is what the MP table says too.

use std::sync::Arc;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::VmFd;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

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
    /// An eventfd could not be made.
    #[error("the host refused a descriptor")]
    Event(#[source] std::io::Error),
    /// More devices than lines can be shared by.
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

/// Hands out the lines of virtio devices: each once, in order, and when none is left the
/// last ones again, backwards.
///
/// Devices on one line pulse it by one eventfd. With one each, KVM could be asked to raise
/// the line by the second while it is up by the first, which is no edge and would be lost.
#[derive(Debug, Default)]
pub struct Lines {
    events: Vec<Arc<EventFd>>,
    given: u32,
}

impl Lines {
    /// The next line and what pulses it.
    pub fn next(&mut self, vm: &VmFd) -> Result<(u32, Arc<EventFd>), IrqError> {
        let gsi = gsi(self.given).ok_or(IrqError::Exhausted)?;
        let place = (gsi - layout::VIRTIO_FIRST_GSI) as usize;
        let event = if let Some(shared) = self.events.get(place) {
            shared.clone()
        } else {
            let event = Arc::new(EventFd::new(EFD_NONBLOCK).map_err(IrqError::Event)?);
            connect(vm, &event, gsi)?;
            self.events.push(event.clone());
            event
        };
        self.given += 1;
        Ok((gsi, event))
    }
}

/// The line of the device that gets one after `before` others did.
fn gsi(before: u32) -> Option<u32> {
    const LINES: u32 = layout::LAST_GSI + 1 - layout::VIRTIO_FIRST_GSI;
    match before.checked_sub(LINES) {
        None => Some(layout::VIRTIO_FIRST_GSI + before),
        Some(shared) if shared < LINES => Some(layout::LAST_GSI - shared),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_5_to_23_are_handed_out_once_each_and_then_backwards() {
        let all: Vec<_> = (0..).map_while(gsi).collect();
        assert_eq!(all, (5..=23).chain((5..=23).rev()).collect::<Vec<_>>());
    }
}
