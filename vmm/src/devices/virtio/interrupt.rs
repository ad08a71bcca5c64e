//! A device's way to interrupt the guest.
//!
//! The interrupt line is edge triggered and shared by all queues of a device, so the
//! reason goes into the InterruptStatus register first and the line is pulsed after:
//! a handler that finds no bit set reports a spurious interrupt, and thousands of those
//! make Linux disable the line. Devices may share a line: its handlers are all called.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

use crate::eventfd;

#[derive(Debug)]
struct Line {
    status: AtomicU32,
    needs_reset: AtomicBool,
    irqfd: Arc<EventFd>,
}

/// Raises a device's interrupt; cheap to clone.
#[derive(Clone, Debug)]
pub struct Interrupt {
    line: Arc<Line>,
}

impl Interrupt {
    /// The interrupt of a device on the line that `irqfd` pulses by way of KVM.
    pub fn new(irqfd: Arc<EventFd>) -> Self {
        Self {
            line: Arc::new(Line {
                status: AtomicU32::new(0),
                needs_reset: AtomicBool::new(false),
                irqfd,
            }),
        }
    }

    /// The interrupt of a device on a line that leads nowhere.
    #[cfg(test)]
    pub fn unconnected() -> Self {
        use vmm_sys_util::eventfd::EFD_NONBLOCK;
        Self::new(Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()))
    }

    /// The descriptor to register with KVM.
    pub fn irqfd(&self) -> &EventFd {
        &self.line.irqfd
    }

    /// "A buffer was used" (virtio 1.2, 4.2.3.4).
    pub fn signal_queue(&self) {
        self.signal(VIRTIO_MMIO_INT_VRING);
    }

    /// "The configuration or the device status changed".
    pub fn signal_config(&self) {
        self.signal(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The device met an error it cannot recover from: DEVICE_NEEDS_RESET shows in the
    /// status register and the driver is told (virtio 1.2, 2.1.2).
    pub fn fail(&self) {
        self.line.needs_reset.store(true, Ordering::SeqCst);
        self.signal_config();
    }

    /// Whether [`fail`](Self::fail) was called since the last reset.
    pub fn needs_reset(&self) -> bool {
        self.line.needs_reset.load(Ordering::SeqCst)
    }

    pub(super) fn status(&self) -> u32 {
        self.line.status.load(Ordering::SeqCst)
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.line.status.fetch_and(!bits, Ordering::SeqCst);
    }

    pub(super) fn clear(&self) {
        self.line.needs_reset.store(false, Ordering::SeqCst);
        self.line.status.store(0, Ordering::SeqCst);
    }

    fn signal(&self, reason: u32) {
        self.line.status.fetch_or(reason, Ordering::SeqCst);
        eventfd::raise(&self.line.irqfd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_set_before_the_line_is_pulsed_and_survives_other_acks() {
        let interrupt = Interrupt::unconnected();
        interrupt.signal_queue();
        interrupt.signal_config();
        assert_eq!(interrupt.irqfd().read().unwrap(), 2);
        assert_eq!(interrupt.status(), 3);
        interrupt.acknowledge(VIRTIO_MMIO_INT_VRING);
        assert_eq!(interrupt.status(), VIRTIO_MMIO_INT_CONFIG);
    }

    #[test]
    fn those_on_one_line_keep_their_reasons_apart() {
        let first = Interrupt::unconnected();
        let second = Interrupt::new(first.line.irqfd.clone());
        second.signal_queue();
        assert_eq!(first.irqfd().read().unwrap(), 1);
        assert_eq!(
            (first.status(), second.status()),
            (0, VIRTIO_MMIO_INT_VRING)
        );
    }

    #[test]
    fn failing_raises_a_config_interrupt_and_is_undone_by_reset() {
        let interrupt = Interrupt::unconnected();
        interrupt.fail();
        assert!(interrupt.needs_reset());
        assert_eq!(interrupt.status(), VIRTIO_MMIO_INT_CONFIG);
        interrupt.clear();
        assert!(!interrupt.needs_reset());
        assert_eq!(interrupt.status(), 0);
    }
}
