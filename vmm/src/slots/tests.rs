use std::os::fd::{AsRawFd, RawFd};

use kvm_ioctls::Kvm;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use virtio_bindings::bindings::virtio_mmio::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::config::MAX_NICS;
use crate::event_loop::EventLoop;
use crate::testing::{GuestQueue, ram};

const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 9]);
const DRIVER_OK: u32 = 15;

/// One end of a pair of sockets that keep frames apart, as a tap does.
struct Socket(OwnedFd);

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Link for Socket {
    fn offloads(&self) -> u32 {
        0
    }

    fn set_offload(&self, _offload: u32) -> io::Result<()> {
        Ok(())
    }
}

/// A machine with all slots for network devices, which are its only ones.
struct Machine {
    event_loop: EventLoop,
    mmio: Bus,
    memory: GuestMemory,
    nics: NicSlots,
}

impl Machine {
    /// `None` where there is no KVM.
    fn new() -> Option<Self> {
        let kvm = Kvm::new()
            .inspect_err(|error| println!("skipped: no KVM: {error}"))
            .ok()?;
        let vm = Arc::new(kvm.create_vm().unwrap());
        vm.create_irq_chip().unwrap();
        let event_loop = EventLoop::new().unwrap();
        let (memory, mut mmio) = (ram(), Bus::default());
        let mut bus = VirtioBus::new(&vm, &mut mmio, &memory);
        let nics = bus.add_nic_slots(MAX_NICS, event_loop.handle()).unwrap();
        assert_eq!(bus.announced().len(), MAX_NICS as usize);
        Some(Self {
            event_loop,
            mmio,
            memory,
            nics,
        })
    }

    /// Runs something on a thread of its own, as vCPUs and the control socket do.
    fn beside<T: Send>(&mut self, act: impl FnOnce(&NicSlots, &Bus) -> T + Send) -> T {
        let (nics, mmio) = (&self.nics, &self.mmio);
        std::thread::scope(|scope| {
            let other = scope.spawn(move || act(nics, mmio));
            while !other.is_finished() {
                self.event_loop.run_for(10);
            }
            other.join().unwrap()
        })
    }

    /// Plugs a device and returns the far end of its link.
    fn plug(&mut self, slot: u32) -> Result<OwnedFd, SlotError> {
        let (near, far) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_NONBLOCK,
        )
        .unwrap();
        self.beside(move |nics, _| nics.insert(slot, Arc::new(Socket(near)), MAC, 1500))?;
        Ok(far)
    }

    fn unplug(&mut self, slot: u32) -> Result<(), SlotError> {
        self.beside(move |nics, _| nics.unplug(slot))
    }

    fn id(&self, slot: u32) -> u32 {
        read(&self.mmio, slot, VIRTIO_MMIO_DEVICE_ID)
    }

    /// What a driver does to a device of two queues.
    fn drive(&mut self, slot: u32) -> [GuestQueue; 2] {
        let queues = [0x10_0000, 0x20_0000].map(|base| GuestQueue::new(&self.memory, base, 256));
        let layouts = [queues[0].layout(), queues[1].layout()];
        // The indexes of the driver before.
        for ring in layouts.iter().flat_map(|queue| [queue.avail, queue.used]) {
            self.memory.write_obj(0u32, GuestAddress(ring)).unwrap();
        }
        let status = self.beside(move |_, mmio| {
            let write = |register, value| write(mmio, slot, register, value);
            for status in [0, 1, 3] {
                write(VIRTIO_MMIO_STATUS, status);
            }
            write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
            write(VIRTIO_MMIO_DRIVER_FEATURES, 1);
            write(VIRTIO_MMIO_STATUS, 11);
            for (index, layout) in (0..).zip(layouts) {
                write(VIRTIO_MMIO_QUEUE_SEL, index);
                write(VIRTIO_MMIO_QUEUE_NUM, layout.size);
                write(VIRTIO_MMIO_QUEUE_DESC_LOW, layout.desc as u32);
                write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, layout.avail as u32);
                write(VIRTIO_MMIO_QUEUE_USED_LOW, layout.used as u32);
                write(VIRTIO_MMIO_QUEUE_READY, 1);
            }
            write(VIRTIO_MMIO_STATUS, DRIVER_OK);
            read(mmio, slot, VIRTIO_MMIO_STATUS)
        });
        assert_eq!(status, DRIVER_OK);
        queues
    }

    /// Has the guest notify the device of a queue.
    fn kick(&mut self, slot: u32, queue: u32) {
        self.beside(move |_, mmio| write(mmio, slot, VIRTIO_MMIO_QUEUE_NOTIFY, queue));
        while self.event_loop.run_for(0) > 0 {}
    }
}

fn address(slot: u32, register: u32) -> u64 {
    layout::VIRTIO_MMIO_BASE + u64::from(slot) * layout::VIRTIO_MMIO_SIZE + u64::from(register)
}

fn read(mmio: &Bus, slot: u32, register: u32) -> u32 {
    let mut data = [0xff; 4];
    mmio.read(address(slot, register), &mut data);
    u32::from_le_bytes(data)
}

fn write(mmio: &Bus, slot: u32, register: u32, value: u32) {
    mmio.write(address(slot, register), &value.to_le_bytes());
}

/// A frame of the far end; `Ok(0)` when the near end is closed.
fn receive(far: &OwnedFd, frame: &mut [u8]) -> nix::Result<usize> {
    recv(far.as_raw_fd(), frame, MsgFlags::empty())
}

#[test]
fn every_slot_is_filled_and_emptied_again_and_again() {
    let Some(mut machine) = Machine::new() else {
        return;
    };
    for _ in 0..3 {
        let mut far = Vec::new();
        for slot in 0..MAX_NICS {
            assert_eq!(machine.id(slot), 0);
            far.push(machine.plug(slot).unwrap());
            assert_eq!(machine.id(slot), VIRTIO_ID_NET);
            let mut mac = [0; 6];
            machine
                .mmio
                .read(address(slot, VIRTIO_MMIO_CONFIG), &mut mac);
            assert_eq!(mac, MAC.0);
        }
        for (slot, far) in (0..).zip(&far) {
            assert_eq!(receive(far, &mut [0]), Err(Errno::EAGAIN));
            machine.unplug(slot).unwrap();
            assert_eq!(receive(far, &mut [0]), Ok(0), "the link is closed");
            assert_eq!(machine.id(slot), 0);
        }
    }
}

#[test]
fn a_wrong_slot_is_named() {
    let Some(mut machine) = Machine::new() else {
        return;
    };
    let far = machine.plug(3).unwrap();
    let error = machine.plug(3).unwrap_err().to_string();
    assert_eq!(error, "slot 3 has a network device already");
    assert_eq!(
        receive(&far, &mut [0]),
        Err(Errno::EAGAIN),
        "the first stays"
    );
    for slot in [MAX_NICS, u32::MAX] {
        for error in [
            machine.plug(slot).unwrap_err(),
            machine.unplug(slot).unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(error.contains(&format!("no slot {slot} ")), "{error}");
        }
    }
    machine.unplug(5).unwrap();
    let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let error = machine.nics.plug(5, null, MAC, 1500).unwrap_err();
    assert!(matches!(error, SlotError::Tap { slot: 5, .. }), "{error}");
    assert_eq!(machine.id(5), 0);
}

#[test]
fn a_doorbell_that_is_refused_leaves_its_slot_empty() {
    let Some(mut machine) = Machine::new() else {
        return;
    };
    let taken = EventFd::new(EFD_NONBLOCK).unwrap();
    let doorbell = machine.nics.slots[4].doorbell();
    let vm = machine.nics.vm.clone();
    vm.register_ioevent(&taken, &doorbell, 1u32).unwrap();
    let error = machine.plug(4).unwrap_err().to_string();
    assert_eq!(error, "KVM refused a doorbell (ioeventfd) of slot 4");
    assert_eq!(machine.id(4), 0);
    vm.unregister_ioevent(&taken, &doorbell, 1u32).unwrap();
    machine.plug(4).unwrap();
    assert_eq!(machine.id(4), VIRTIO_ID_NET);
}

#[test]
fn a_device_is_taken_away_while_its_queues_run() {
    let Some(mut machine) = Machine::new() else {
        return;
    };
    for _ in 0..2 {
        let far = machine.plug(0).unwrap();
        let [mut rx, mut tx] = machine.drive(0);
        let buffer = tx.readable(&[7; 100]);
        tx.add(&[buffer]);
        machine.kick(0, 1);
        assert_eq!(receive(&far, &mut [0; 200]), Ok(100));
        // Buffers and frames wait on both sides, and more of them come.
        let buffer = rx.writable(1526);
        rx.add(&[buffer]);
        tx.add(&[buffer]);
        machine.unplug(0).unwrap();
        assert_eq!(receive(&far, &mut [0; 200]), Ok(0), "the link is closed");
        let late = send(far.as_raw_fd(), &[1; 60], MsgFlags::MSG_NOSIGNAL);
        assert_eq!(late, Err(Errno::EPIPE));
        for queue in [0, 1, 2, u32::MAX] {
            machine.kick(0, queue);
        }
        assert_eq!((rx.used(), tx.used().is_some()), (None, true));
        assert_eq!(tx.used(), None, "the second was never taken");
        assert_eq!(read(&machine.mmio, 0, VIRTIO_MMIO_STATUS), 0);
    }
}

#[test]
fn a_driver_that_never_let_go_finds_the_next_device_as_after_power_on() {
    let Some(mut machine) = Machine::new() else {
        return;
    };
    let _first = machine.plug(0).unwrap();
    let [_, mut tx] = machine.drive(0);
    machine.unplug(0).unwrap();
    let second = machine.plug(0).unwrap();
    let buffer = tx.readable(&[7; 100]);
    tx.add(&[buffer]);
    machine.kick(0, 1);
    assert_eq!(tx.used(), None);
    assert_eq!(receive(&second, &mut [0; 200]), Err(Errno::EAGAIN));
    assert_eq!(read(&machine.mmio, 0, VIRTIO_MMIO_STATUS), 0);
    let [_, mut tx] = machine.drive(0);
    let buffer = tx.readable(&[7; 100]);
    tx.add(&[buffer]);
    machine.kick(0, 1);
    assert_eq!(receive(&second, &mut [0; 200]), Ok(100));
}
