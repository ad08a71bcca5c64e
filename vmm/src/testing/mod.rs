//! The driver's half of a virtqueue, for unit tests: real guest memory, real rings, a
//! driver that behaves or does not.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::pump::{QueueLayout, QueuePump, RingFeatures};
use crate::devices::virtio::{Activation, VirtioDevice};
use crate::event_loop::EventLoop;
use crate::memory::GuestMemory;

/// Size of [`ram`], in bytes.
pub const RAM_SIZE: u64 = 16 << 20;

/// 16 MiB of guest RAM from address 0.
pub fn ram() -> GuestMemory {
    let ranges = [(GuestAddress(0), RAM_SIZE as usize)];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap().into())
}

/// A buffer in guest memory, as a descriptor describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// The driver's side of one queue, with memory for its buffers.
///
/// Rings are laid out from `base`; buffers are taken from the 1 MiB after it and never
/// given back, so one queue per MiB.
pub struct GuestQueue {
    mem: GuestMemory,
    size: u16,
    base: u64,
    next_buffer: u64,
    next_descriptor: u16,
    avail_idx: u16,
    seen_used: u16,
    kick: Arc<EventFd>,
    interrupt: Interrupt,
}

/// Both ring features negotiated, as Linux does.
pub const RING_FEATURES: RingFeatures = RingFeatures {
    event_idx: true,
    indirect: true,
};

impl GuestQueue {
    /// A queue of `size` descriptors at `base`.
    pub fn new(mem: &GuestMemory, base: u64, size: u16) -> Self {
        Self {
            mem: mem.clone(),
            size,
            base,
            next_buffer: base + 0x8_0000,
            next_descriptor: 0,
            avail_idx: 0,
            seen_used: 0,
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            interrupt: Interrupt::unconnected(),
        }
    }

    /// What the driver writes to the transport's queue registers.
    pub fn layout(&self) -> QueueLayout {
        QueueLayout {
            size: self.size.into(),
            ready: true,
            desc: self.base,
            avail: self.base + 0x4_0000,
            used: self.base + 0x6_0000,
        }
    }

    /// The device's side, with both ring features.
    pub fn pump(&self) -> QueuePump {
        self.pump_with(RING_FEATURES)
    }

    /// The device's side.
    pub fn pump_with(&self, features: RingFeatures) -> QueuePump {
        let (mem, kick) = (self.mem.clone(), self.kick.clone());
        let interrupt = self.interrupt.clone();
        QueuePump::new(&self.layout(), self.size, features, mem, kick, interrupt).unwrap()
    }

    /// The kick descriptor.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// The interrupt of this queue's device.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Whether the device interrupted since the last call.
    pub fn interrupted(&self) -> bool {
        self.interrupt.irqfd().read().is_ok()
    }

    /// Room for `len` bytes the device will write.
    pub fn writable(&mut self, len: u32) -> Buffer {
        let address = self.next_buffer;
        // Aligned, and never adjacent: an overrun hits a gap.
        self.next_buffer += (u64::from(len) + 32) & !15;
        Buffer {
            address,
            len,
            writable: true,
        }
    }

    /// A buffer the device reads.
    pub fn readable(&mut self, bytes: &[u8]) -> Buffer {
        let buffer = self.writable(bytes.len() as u32);
        self.mem
            .write_slice(bytes, GuestAddress(buffer.address))
            .unwrap();
        Buffer {
            writable: false,
            ..buffer
        }
    }

    /// What a buffer holds now.
    pub fn bytes(&self, buffer: Buffer) -> Vec<u8> {
        let mut bytes = vec![0; buffer.len as usize];
        self.mem
            .read_slice(&mut bytes, GuestAddress(buffer.address))
            .unwrap();
        bytes
    }

    /// Publishes a chain and returns its head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (at, buffer) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let more = at + 1 < buffers.len();
            self.write_descriptor(
                self.base,
                index,
                *buffer,
                more.then_some(self.next_descriptor),
            );
        }
        self.publish(head);
        head
    }

    /// Publishes a chain in an indirect table and returns its head.
    pub fn add_indirect(&mut self, buffers: &[Buffer]) -> u16 {
        let table = self.writable(16 * buffers.len() as u32);
        for (index, buffer) in (0u16..).zip(buffers) {
            let more = usize::from(index) + 1 < buffers.len();
            self.write_descriptor(table.address, index, *buffer, more.then_some(index + 1));
        }
        let head = self.next_descriptor;
        self.next_descriptor = (head + 1) % self.size;
        self.write_raw(head, table.address, table.len, VRING_DESC_F_INDIRECT, 0);
        self.publish(head);
        head
    }

    /// Writes a descriptor of the main table, whatever it says.
    pub fn write_raw(&self, index: u16, address: u64, len: u32, flags: u32, next: u16) {
        write_descriptor(
            &self.mem,
            self.base,
            index,
            (address, len, flags as u16, next),
        );
    }

    /// Puts a head into the available ring and moves its index on.
    pub fn publish(&mut self, head: u16) {
        let slot = self.layout().avail + 4 + 2 * u64::from(self.avail_idx % self.size);
        self.mem.write_obj(head, GuestAddress(slot)).unwrap();
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    /// Sets the available ring's index, whatever it says.
    pub fn set_avail_idx(&mut self, idx: u16) {
        self.avail_idx = idx;
        fence(Ordering::SeqCst);
        let at = GuestAddress(self.layout().avail + 2);
        self.mem.write_obj(idx, at).unwrap();
    }

    /// Asks to be interrupted at the used index `idx` (EVENT_IDX).
    pub fn set_used_event(&self, idx: u16) {
        let at = self.layout().avail + 4 + 2 * u64::from(self.size);
        self.mem.write_obj(idx, GuestAddress(at)).unwrap();
    }

    /// At which available index the device asks to be kicked (EVENT_IDX).
    pub fn avail_event(&self) -> u16 {
        let at = self.layout().used + 4 + 8 * u64::from(self.size);
        self.mem.read_obj(GuestAddress(at)).unwrap()
    }

    /// The next chain given back: its head and how many bytes the device wrote.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        let used = self.layout().used;
        let idx: u16 = self.mem.read_obj(GuestAddress(used + 2)).unwrap();
        if idx == self.seen_used {
            return None;
        }
        let slot = used + 4 + 8 * u64::from(self.seen_used % self.size);
        self.seen_used = self.seen_used.wrapping_add(1);
        let head: u32 = self.mem.read_obj(GuestAddress(slot)).unwrap();
        let len = self.mem.read_obj(GuestAddress(slot + 4)).unwrap();
        Some((head as u16, len))
    }

    fn write_descriptor(&self, table: u64, index: u16, buffer: Buffer, next: Option<u16>) {
        let write = if buffer.writable {
            VRING_DESC_F_WRITE
        } else {
            0
        };
        let link = if next.is_some() { VRING_DESC_F_NEXT } else { 0 };
        let fields = (
            buffer.address,
            buffer.len,
            (write | link) as u16,
            next.unwrap_or(0),
        );
        write_descriptor(&self.mem, table, index, fields);
    }
}

fn write_descriptor(mem: &GuestMemory, table: u64, index: u16, fields: (u64, u32, u16, u16)) {
    let at = table + 16 * u64::from(index);
    let (address, len, flags, next) = fields;
    mem.write_obj(address, GuestAddress(at)).unwrap();
    mem.write_obj(len, GuestAddress(at + 8)).unwrap();
    mem.write_obj(flags, GuestAddress(at + 12)).unwrap();
    mem.write_obj(next, GuestAddress(at + 14)).unwrap();
}

/// Activates a device that lives on `event_loop`, as a vCPU thread would.
pub fn activated<D: VirtioDevice + 'static>(
    mut device: D,
    mem: &GuestMemory,
    queues: Vec<QueuePump>,
    event_loop: &mut EventLoop,
) -> D {
    let mem = mem.clone();
    let vcpu = std::thread::spawn(move || {
        let activation = Activation {
            mem,
            queues,
            features: 0,
        };
        device.activate(activation).unwrap();
        device
    });
    while !vcpu.is_finished() {
        event_loop.run_for(10);
    }
    vcpu.join().unwrap()
}

/// Runs `body` as the one test of a process of its own, since limits are a process's. `test` is
/// the calling test's path in the crate.
pub fn in_a_process_of_its_own(test: &str, body: impl FnOnce()) {
    const ALONE: &str = "HUSK_VMM_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("1 passed"), "{said}{why}");
}
