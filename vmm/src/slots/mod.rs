//! The slots of the virtio-mmio bus: where a device's registers are, which line it
//! interrupts by, which writes are its doorbells.
//!
//! The slots for network devices come first, so that slot `n` is the guest's platform device
//! `virtio-mmio.<n>`. They are announced to the guest at its boot, filled or not: Linux looks
//! into an empty one, finds the device id 0 and leaves it alone until it is told to look
//! again. Everything about a slot but its device is there from the start, and stays.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::{IoEventAddress, VmFd};
use thiserror::Error;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;

use crate::arch::layout;
use crate::bus::{Bus, BusOverlap};
use crate::config::MacAddress;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::mmio::{Empty, MmioTransport};
use crate::devices::virtio::net::Net;
use crate::devices::virtio::net::tap::{Link, Tap, TapError};
use crate::event_loop::LoopHandle;
use crate::irq::{IrqError, Lines};
use crate::memory::GuestMemory;

/// Why a device does not get into a slot, or out of it.
#[derive(Debug, Error)]
pub enum SlotError {
    /// An ioctl failed.
    #[error("KVM refused a doorbell (ioeventfd) of slot {slot}")]
    Doorbell {
        /// Which slot.
        slot: u32,
        /// What the ioctl said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// An eventfd could not be made.
    #[error("the host refused a descriptor (eventfd) for slot {slot}")]
    Descriptor {
        /// Which slot.
        slot: u32,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// See [`IrqError`].
    #[error("cannot set up interrupts")]
    Irq(#[from] IrqError),
    /// Two devices at one address: an error in `layout`.
    #[error("cannot place a device")]
    Bus(#[from] BusOverlap),
    /// A slot that was not reserved.
    #[error("there is no slot {slot} for a network device: this VM has {count}, from 0 on")]
    NoSlot {
        /// What was given.
        slot: u32,
        /// How many there are.
        count: usize,
    },
    /// A slot that is not empty.
    #[error("slot {0} has a network device already")]
    Taken(u32),
    /// See [`TapError`].
    #[error("cannot build network device {slot}")]
    Tap {
        /// Where it was to be.
        slot: u32,
        /// What is wrong with its tap.
        #[source]
        source: TapError,
    },
}

/// A place for a device.
struct Slot {
    number: u32,
    transport: Arc<Mutex<MmioTransport>>,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, MmioTransport> {
        self.transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn doorbell(&self) -> IoEventAddress {
        IoEventAddress::Mmio(base(self.number) + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY))
    }

    /// Has KVM ring for each queue without an exit to the VMM.
    fn connect(&self, vm: &VmFd, transport: &MmioTransport) -> Result<(), SlotError> {
        let slot = self.number;
        for (queue, kick) in (0u32..).zip(transport.kicks()) {
            vm.register_ioevent(kick, &self.doorbell(), queue)
                .map_err(|source| SlotError::Doorbell { slot, source })?;
        }
        Ok(())
    }

    /// Those of them that there are.
    fn disconnect(&self, vm: &VmFd, transport: &MmioTransport) {
        for (queue, kick) in (0u32..).zip(transport.kicks()) {
            if let Err(error) = vm.unregister_ioevent(kick, &self.doorbell(), queue) {
                log::debug!("a doorbell stays: {error}");
            }
        }
    }
}

/// Where the registers of slot `number` are.
fn base(number: u32) -> u64 {
    layout::VIRTIO_MMIO_BASE + u64::from(number) * layout::VIRTIO_MMIO_SIZE
}

fn no_descriptor(slot: u32) -> impl FnOnce(io::Error) -> SlotError {
    move |source| SlotError::Descriptor { slot, source }
}

/// The virtio-mmio bus of a machine that is being built.
pub struct VirtioBus<'a> {
    vm: &'a Arc<VmFd>,
    mmio: &'a mut Bus,
    memory: &'a GuestMemory,
    lines: Lines,
    announced: Vec<(u64, u32)>,
}

impl<'a> VirtioBus<'a> {
    /// A bus without slots.
    pub fn new(vm: &'a Arc<VmFd>, mmio: &'a mut Bus, memory: &'a GuestMemory) -> Self {
        Self {
            vm,
            mmio,
            memory,
            lines: Lines::default(),
            announced: Vec::new(),
        }
    }

    /// Puts a device into slot `number`.
    pub fn add(&mut self, number: u32, device: Box<dyn VirtioDevice>) -> Result<(), SlotError> {
        self.place(number, device).map(drop)
    }

    /// Makes the slots 0 to `count` - 1, for network devices. The last to be made: its lines
    /// may be shared.
    pub fn add_nic_slots(
        &mut self,
        count: u32,
        event_loop: LoopHandle,
    ) -> Result<NicSlots, SlotError> {
        let slots = (0..count).map(|number| self.place(number, Box::new(Empty)));
        Ok(NicSlots {
            slots: slots.collect::<Result<_, _>>()?,
            vm: self.vm.clone(),
            event_loop,
        })
    }

    /// Addresses and lines of all slots, for the guest's command line.
    pub fn announced(mut self) -> Vec<(u64, u32)> {
        self.announced.sort_unstable();
        self.announced
    }

    fn place(&mut self, number: u32, device: Box<dyn VirtioDevice>) -> Result<Slot, SlotError> {
        let base = base(number);
        let (gsi, line) = self.lines.next(self.vm)?;
        let transport = MmioTransport::new(device, self.memory.clone(), Interrupt::new(line));
        let transport = Arc::new(Mutex::new(transport.map_err(no_descriptor(number))?));
        self.mmio
            .insert(base, layout::VIRTIO_MMIO_SIZE, transport.clone())?;
        self.announced.push((base, gsi));
        let slot = Slot { number, transport };
        slot.connect(self.vm, &slot.lock())?;
        Ok(slot)
    }
}

/// The slots for network devices, of a machine that may run.
pub struct NicSlots {
    slots: Vec<Slot>,
    vm: Arc<VmFd>,
    event_loop: LoopHandle,
}

impl NicSlots {
    /// Puts a device into an empty slot. The guest sees it when it looks for it.
    ///
    /// # Errors
    /// See [`SlotError`]; the slot is as before, and the tap closed.
    pub fn plug(
        &self,
        slot: u32,
        tap: OwnedFd,
        mac: MacAddress,
        mtu: u16,
    ) -> Result<(), SlotError> {
        let tap = Tap::new(tap).map_err(|source| SlotError::Tap { slot, source })?;
        self.insert(slot, Arc::new(tap), mac, mtu)
    }

    fn insert(
        &self,
        number: u32,
        link: Arc<dyn Link>,
        mac: MacAddress,
        mtu: u16,
    ) -> Result<(), SlotError> {
        let slot = self.find(number)?;
        let mut transport = slot.lock();
        if !transport.is_empty() {
            return Err(SlotError::Taken(number));
        }
        let device = Net::new(link, mac, mtu, self.event_loop.clone());
        let replaced = transport.replace(Box::new(device));
        replaced.map_err(no_descriptor(number))?;
        let connected = slot.connect(&self.vm, &transport);
        if connected.is_err() {
            slot.disconnect(&self.vm, &transport);
            transport.clear();
        }
        connected
    }

    /// Takes the device out of a slot, if there is one, whatever the guest does with it: when
    /// this returns nothing uses its queues, and its tap is closed.
    ///
    /// Waits for the event loop, so it must not be called from there while the machine runs.
    ///
    /// # Errors
    /// [`SlotError::NoSlot`].
    pub fn unplug(&self, slot: u32) -> Result<(), SlotError> {
        let slot = self.find(slot)?;
        let mut transport = slot.lock();
        slot.disconnect(&self.vm, &transport);
        transport.clear();
        Ok(())
    }

    fn find(&self, slot: u32) -> Result<&Slot, SlotError> {
        let found = usize::try_from(slot).ok().and_then(|at| self.slots.get(at));
        let count = self.slots.len();
        found.ok_or(SlotError::NoSlot { slot, count })
    }
}

#[cfg(test)]
mod tests;
