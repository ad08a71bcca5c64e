//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2): register file and
//! status state machine, once for all devices.
//!
//! ```text
//!            ACKNOWLEDGE      DRIVER        FEATURES_OK           DRIVER_OK
//!  reset ──────────────▶ ack ───────▶ driver ───────────▶ features ─────────▶ live
//!    ▲                                  │ features not      │ queues   │ queues bad, or
//!    │                                  │ ours: bit stays 0 │ set here │ a device error
//!    └────────── status = 0, from every state ──────────────┴──────────┴─▶ NEEDS_RESET
//! ```
//!
//! Every register is gated by that state, so that nothing that was validated can change
//! afterwards: features only between DRIVER and FEATURES_OK, queues only between
//! FEATURES_OK and DRIVER_OK. Writes at the wrong time, to unknown registers and of the
//! wrong width are ignored; reads of them give 0. Selectors are checked wherever used.
//!
//! A slot may also be empty, which [`Empty`] is, and be filled later. It shows the device id 0,
//! which tells a driver that nothing is there (virtio 1.2, 4.2.2); all else works as ever, so
//! a guest may write what it likes.
//!
//! Notifications do not come through here once KVM has an ioeventfd on the notify
//! register; the arm below serves the tests and a host without it.

use std::sync::Arc;

use log::warn;
use thiserror::Error;
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_mmio::*;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::interrupt::Interrupt;
use super::pump::{QueueError, QueueLayout, QueuePump, RingFeatures};
use super::{ActivateError, Activation, TRANSPORT_FEATURES, VIRTIO_ID_NONE, VirtioDevice};
use crate::bus::BusDevice;
use crate::eventfd;
use crate::memory::GuestMemory;

/// "virt" (virtio 1.2, 4.2.2).
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// Any value will do; Linux only shows it.
const VENDOR: u32 = 0x6b73_7568;
/// Offset of the device-specific configuration space.
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;
/// Length and base of a shared-memory region that does not exist (virtio 1.2, 4.2.2).
/// Linux' virtio-fs fails its probe on a length of 0.
const NO_SHM: u32 = u32::MAX;

/// What is in a slot that holds no device.
pub struct Empty;

impl VirtioDevice for Empty {
    fn id(&self) -> u32 {
        VIRTIO_ID_NONE
    }

    fn name(&self) -> &'static str {
        "empty slot"
    }

    fn queue_sizes(&self) -> &[u16] {
        &[]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, _activation: Activation) -> Result<(), ActivateError> {
        Ok(())
    }

    fn reset(&mut self) {}
}

/// Why a device did not go live.
#[derive(Debug, Error)]
enum GoLiveError {
    #[error("queue {index}")]
    Queue {
        index: usize,
        #[source]
        source: QueueError,
    },
    #[error("the device refused")]
    Device(#[from] ActivateError),
}

/// One device's registers. All state except the device and the descriptors is plain data.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    mem: GuestMemory,
    interrupt: Interrupt,
    kicks: Vec<Arc<EventFd>>,
    registers: Registers,
    active: bool,
}

/// What a reset puts back to zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Registers {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueLayout>,
}

impl Registers {
    fn new(queues: usize) -> Self {
        Self {
            queues: vec![QueueLayout::default(); queues],
            ..Self::default()
        }
    }

    fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    fn takes_features(&self) -> bool {
        self.has(VIRTIO_CONFIG_S_DRIVER)
            && !self.has(VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_FAILED)
    }

    fn takes_queues(&self) -> bool {
        self.has(VIRTIO_CONFIG_S_FEATURES_OK)
            && !self.has(VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FAILED)
    }

    fn selected(&self) -> Option<&QueueLayout> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    fn selected_mut(&mut self) -> Option<&mut QueueLayout> {
        self.queues.get_mut(usize::try_from(self.queue_sel).ok()?)
    }
}

impl MmioTransport {
    /// Puts `device` behind a register file.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        mem: GuestMemory,
        interrupt: Interrupt,
    ) -> std::io::Result<Self> {
        Ok(Self {
            kicks: kicks(&*device)?,
            interrupt,
            registers: Registers::new(device.queue_sizes().len()),
            active: false,
            device,
            mem,
        })
    }

    /// Puts another device behind the registers, which then are as after power-on. The one
    /// before is reset, whatever its driver was about, and gone when this returns.
    pub fn replace(&mut self, device: Box<dyn VirtioDevice>) -> std::io::Result<()> {
        let kicks = kicks(&*device)?;
        self.put(device, kicks);
        Ok(())
    }

    /// Leaves the slot empty: as [`replace`](Self::replace), but takes nothing of the host.
    pub fn clear(&mut self) {
        self.put(Box::new(Empty), Vec::new());
    }

    fn put(&mut self, device: Box<dyn VirtioDevice>, kicks: Vec<Arc<EventFd>>) {
        self.reset();
        self.kicks = kicks;
        self.registers = Registers::new(device.queue_sizes().len());
        self.device = device;
    }

    /// Whether no device is here.
    pub fn is_empty(&self) -> bool {
        self.device.id() == VIRTIO_ID_NONE
    }

    /// The device's name, for logs.
    pub fn name(&self) -> &'static str {
        self.device.name()
    }

    /// Kick descriptors in queue order, for ioeventfds on the notify register.
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        &self.kicks
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    fn read_register(&self, offset: u32) -> u32 {
        let registers = &self.registers;
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.id(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => {
                page(self.offered_features(), registers.device_features_sel)
            }
            VIRTIO_MMIO_QUEUE_NUM_MAX => usize::try_from(registers.queue_sel)
                .ok()
                .and_then(|index| self.device.queue_sizes().get(index))
                .map_or(0, |max| u32::from(*max)),
            VIRTIO_MMIO_QUEUE_READY => registers
                .selected()
                .map_or(0, |queue| u32::from(queue.ready)),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            VIRTIO_MMIO_STATUS => {
                let needs_reset = self.interrupt.needs_reset();
                registers.status
                    | if needs_reset {
                        VIRTIO_CONFIG_S_NEEDS_RESET
                    } else {
                        0
                    }
            }
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => NO_SHM,
            VIRTIO_MMIO_CONFIG_GENERATION => self.device.config_generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        let registers = &mut self.registers;
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES if registers.takes_features() => {
                let features = &mut registers.driver_features;
                match registers.driver_features_sel {
                    0 => set_low(features, value),
                    1 => set_high(features, value),
                    // Bits we do not know, so did not offer.
                    _ => {}
                }
            }
            VIRTIO_MMIO_QUEUE_SEL => registers.queue_sel = value,
            VIRTIO_MMIO_QUEUE_NOTIFY if self.active => {
                let index = usize::try_from(value).unwrap_or(usize::MAX);
                if let Some(kick) = self.kicks.get(index) {
                    eventfd::raise(kick);
                }
            }
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            VIRTIO_MMIO_QUEUE_NUM
            | VIRTIO_MMIO_QUEUE_READY
            | VIRTIO_MMIO_QUEUE_DESC_LOW
            | VIRTIO_MMIO_QUEUE_DESC_HIGH
            | VIRTIO_MMIO_QUEUE_AVAIL_LOW
            | VIRTIO_MMIO_QUEUE_AVAIL_HIGH
            | VIRTIO_MMIO_QUEUE_USED_LOW
            | VIRTIO_MMIO_QUEUE_USED_HIGH
                if registers.takes_queues() =>
            {
                if let Some(queue) = registers.selected_mut() {
                    write_queue(queue, offset, value);
                }
            }
            _ => {}
        }
    }

    /// The status state machine (virtio 1.2, 3.1.1 and 4.2.3.1).
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let old = self.registers.status;
        let added = value & !old;
        if old & !value & !VIRTIO_CONFIG_S_NEEDS_RESET != 0
            || self.registers.has(VIRTIO_CONFIG_S_FAILED)
        {
            warn!(target: "guest", "{}: status {old:#x} to {value:#x} refused: only a reset takes bits back", self.name());
            return;
        }
        if added & VIRTIO_CONFIG_S_FAILED != 0 {
            self.registers.status |= VIRTIO_CONFIG_S_FAILED;
            return;
        }
        // In order; each step needs the one before it.
        for (bit, needs) in [
            (VIRTIO_CONFIG_S_ACKNOWLEDGE, 0),
            (VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_ACKNOWLEDGE),
            (VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER),
            (VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK),
        ] {
            if added & bit == 0 {
                continue;
            }
            let in_order = self.registers.status & needs == needs;
            if !in_order || (bit == VIRTIO_CONFIG_S_FEATURES_OK && !self.features_are_ours()) {
                warn!(target: "guest", "{}: status bit {bit:#x} refused", self.name());
                return;
            }
            self.registers.status |= bit;
            if bit == VIRTIO_CONFIG_S_DRIVER_OK {
                self.go_live();
            }
        }
    }

    fn features_are_ours(&self) -> bool {
        let features = self.registers.driver_features;
        features & !self.offered_features() == 0 && features & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn go_live(&mut self) {
        match self.try_go_live() {
            Ok(()) => {
                self.active = true;
                // Kicks that came before anyone listened must not be lost.
                for kick in &self.kicks {
                    eventfd::raise(kick);
                }
            }
            Err(error) => {
                let error = crate::log::chain(&error);
                warn!(target: "guest", "{}: cannot go live: {error}", self.name());
                self.interrupt.fail();
            }
        }
    }

    fn try_go_live(&mut self) -> Result<(), GoLiveError> {
        let features = self.registers.driver_features;
        let ring = RingFeatures {
            event_idx: features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
            indirect: features & (1 << VIRTIO_RING_F_INDIRECT_DESC) != 0,
        };
        let sizes = self.device.queue_sizes();
        let layouts = &self.registers.queues;
        let queues = std::iter::zip(sizes, layouts)
            .zip(&self.kicks)
            .enumerate()
            .map(|(index, ((max, layout), kick))| {
                let (mem, kick) = (self.mem.clone(), kick.clone());
                QueuePump::new(layout, *max, ring, mem, kick, self.interrupt.clone())
                    .map_err(|source| GoLiveError::Queue { index, source })
            })
            .collect::<Result<_, _>>()?;
        let mem = self.mem.clone();
        Ok(self.device.activate(Activation {
            mem,
            queues,
            features,
        })?)
    }

    /// Back to the state after power-on, from every state.
    fn reset(&mut self) {
        if std::mem::take(&mut self.active) {
            self.device.reset();
        }
        self.registers = Registers::new(self.device.queue_sizes().len());
        self.interrupt.clear();
        for kick in &self.kicks {
            eventfd::lower(kick);
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(CONFIG) {
            self.device.read_config(at, data);
        } else if let (Ok(offset), 4) = (u32::try_from(offset), data.len()) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // None of the devices has a writable configuration field.
        if offset >= CONFIG {
            return;
        }
        if let (Ok(offset), Ok(value)) = (u32::try_from(offset), data.try_into()) {
            self.write_register(offset, u32::from_le_bytes(value));
        }
    }
}

/// One for each queue.
fn kicks(device: &dyn VirtioDevice) -> std::io::Result<Vec<Arc<EventFd>>> {
    let queues = device.queue_sizes().iter();
    queues
        .map(|_| Ok(Arc::new(EventFd::new(EFD_NONBLOCK)?)))
        .collect()
}

fn write_queue(queue: &mut QueueLayout, offset: u32, value: u32) {
    if offset == VIRTIO_MMIO_QUEUE_READY {
        queue.ready = value == 1;
        return;
    }
    // A ready queue is the device's: the driver must not move it (virtio 1.2, 4.2.2.2).
    if queue.ready {
        return;
    }
    match offset {
        VIRTIO_MMIO_QUEUE_NUM => queue.size = value,
        VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.desc, value),
        VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.desc, value),
        VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.avail, value),
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.avail, value),
        VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used, value),
        VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used, value),
        _ => {}
    }
}

fn set_low(field: &mut u64, value: u32) {
    *field = (*field & !0xffff_ffff) | u64::from(value);
}

fn set_high(field: &mut u64, value: u32) {
    *field = (*field & 0xffff_ffff) | (u64::from(value) << 32);
}

/// 32 of the 64 feature bits; further pages hold none.
fn page(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
