use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::testing::{GuestQueue, ram};

const ACK: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = ACK | VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK: u32 = DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
const DRIVER_OK: u32 = FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;

/// What the transport did to the device.
#[derive(Default)]
struct Calls {
    activated: AtomicUsize,
    reset: AtomicUsize,
    queues: Mutex<Vec<QueuePump>>,
}

struct Probe {
    calls: Arc<Calls>,
    refuse: bool,
}

impl VirtioDevice for Probe {
    fn id(&self) -> u32 {
        42
    }

    fn name(&self) -> &'static str {
        "probe"
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8, 4]
    }

    fn features(&self) -> u64 {
        1 << 5
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::super::copy_config(&[1, 2, 3, 4, 5, 6, 7, 8], offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.refuse {
            return Err(ActivateError::WorkerGone);
        }
        *self.calls.queues.lock().unwrap() = activation.queues;
        self.calls.activated.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn reset(&mut self) {
        self.calls.queues.lock().unwrap().clear();
        self.calls.reset.fetch_add(1, Ordering::SeqCst);
    }
}

struct Guest {
    transport: MmioTransport,
    calls: Arc<Calls>,
    queues: [GuestQueue; 2],
}

impl Guest {
    fn new() -> Self {
        Self::with(false)
    }

    fn with(refuse: bool) -> Self {
        let mem = ram();
        let calls = Arc::new(Calls::default());
        let device = Probe {
            calls: calls.clone(),
            refuse,
        };
        Self {
            queues: [
                GuestQueue::new(&mem, 0x10_0000, 8),
                GuestQueue::new(&mem, 0x20_0000, 4),
            ],
            transport: MmioTransport::new(Box::new(device), mem, Interrupt::unconnected()).unwrap(),
            calls,
        }
    }

    fn read(&mut self, register: u32) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    fn status(&mut self) -> u32 {
        self.read(VIRTIO_MMIO_STATUS)
    }

    fn set_status(&mut self, value: u32) -> u32 {
        self.write(VIRTIO_MMIO_STATUS, value);
        self.status()
    }

    fn set_features(&mut self, features: u64) {
        for (page, value) in [(1, (features >> 32) as u32), (0, features as u32)] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, page);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, value);
        }
    }

    fn set_queue(&mut self, index: u32, layout: &QueueLayout) {
        self.write(VIRTIO_MMIO_QUEUE_SEL, index);
        self.write(VIRTIO_MMIO_QUEUE_NUM, layout.size);
        for (low, high, value) in [
            (
                VIRTIO_MMIO_QUEUE_DESC_LOW,
                VIRTIO_MMIO_QUEUE_DESC_HIGH,
                layout.desc,
            ),
            (
                VIRTIO_MMIO_QUEUE_AVAIL_LOW,
                VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
                layout.avail,
            ),
            (
                VIRTIO_MMIO_QUEUE_USED_LOW,
                VIRTIO_MMIO_QUEUE_USED_HIGH,
                layout.used,
            ),
        ] {
            self.write(low, value as u32);
            self.write(high, (value >> 32) as u32);
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, u32::from(layout.ready));
    }

    fn layouts(&self) -> [QueueLayout; 2] {
        [self.queues[0].layout(), self.queues[1].layout()]
    }

    /// Everything up to and including `status`, the way Linux does it.
    fn drive_to(&mut self, status: u32) {
        self.set_status(0);
        for step in [ACK, DRIVER, FEATURES_OK, DRIVER_OK] {
            if step > status {
                return;
            }
            if step == FEATURES_OK {
                self.set_features(TRANSPORT_FEATURES);
            }
            if step == DRIVER_OK {
                for (index, layout) in (0..).zip(self.layouts()) {
                    self.set_queue(index, &layout);
                }
            }
            assert_eq!(self.set_status(step), step);
        }
    }

    fn activated(&self) -> usize {
        self.calls.activated.load(Ordering::SeqCst)
    }

    fn resets(&self) -> usize {
        self.calls.reset.load(Ordering::SeqCst)
    }
}

#[test]
fn identifies_itself_as_version_2() {
    let mut guest = Guest::new();
    assert_eq!(
        guest.read(VIRTIO_MMIO_MAGIC_VALUE),
        u32::from_le_bytes(*b"virt")
    );
    assert_eq!(guest.read(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(guest.read(VIRTIO_MMIO_DEVICE_ID), 42);
}

#[test]
fn feature_pages_beyond_the_second_are_empty() {
    let mut guest = Guest::new();
    let mut page = |select| {
        guest.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
        guest.read(VIRTIO_MMIO_DEVICE_FEATURES)
    };
    assert_eq!(page(0), 1 << 5 | 1 << 28 | 1 << 29);
    assert_eq!(page(1), 1, "VERSION_1");
    assert_eq!(page(2), 0);
    assert_eq!(page(u32::MAX), 0);
}

#[test]
fn a_missing_shared_memory_region_has_length_all_ones() {
    let mut guest = Guest::new();
    guest.write(VIRTIO_MMIO_SHM_SEL, 0);
    assert_eq!(guest.read(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    assert_eq!(guest.read(VIRTIO_MMIO_SHM_LEN_HIGH), u32::MAX);
}

#[test]
fn registers_are_32_bits_wide_and_config_is_not() {
    let mut guest = Guest::new();
    for len in [1, 2, 8] {
        let mut data = vec![0xff; len];
        guest
            .transport
            .read(VIRTIO_MMIO_MAGIC_VALUE.into(), &mut data);
        assert_eq!(data, vec![0; len]);
        guest
            .transport
            .write(VIRTIO_MMIO_STATUS.into(), &vec![1; len]);
        assert_eq!(guest.status(), 0);
    }
    let mut byte = [0];
    guest.transport.read(CONFIG + 1, &mut byte);
    assert_eq!(byte, [2]);
    let mut wide = [0xff; 8];
    guest.transport.read(CONFIG + 4, &mut wide);
    assert_eq!(wide, [5, 6, 7, 8, 0, 0, 0, 0]);
    guest.transport.write(CONFIG, &[9; 4]);
    guest.transport.read(CONFIG, &mut byte);
    assert_eq!(byte, [1], "configuration is read-only");
}

#[test]
fn a_driver_brings_the_device_to_life_once() {
    let mut guest = Guest::new();
    guest.drive_to(DRIVER_OK);
    assert_eq!(guest.activated(), 1);
    assert_eq!(guest.calls.queues.lock().unwrap().len(), 2);
    guest.set_status(DRIVER_OK);
    assert_eq!(guest.activated(), 1);
    for kick in guest.transport.kicks() {
        assert!(kick.read().is_ok(), "early kicks are repeated");
    }
}

#[test]
fn features_not_offered_or_without_version_1_are_refused() {
    for features in [
        TRANSPORT_FEATURES | 1 << 6,
        TRANSPORT_FEATURES | 1 << 63,
        TRANSPORT_FEATURES & !(1 << VIRTIO_F_VERSION_1),
        0,
    ] {
        let mut guest = Guest::new();
        guest.drive_to(DRIVER);
        guest.set_features(features);
        assert_eq!(guest.set_status(FEATURES_OK), DRIVER, "{features:#x}");
        assert_eq!(guest.set_status(DRIVER_OK), DRIVER);
        assert_eq!(guest.activated(), 0);
    }
}

#[test]
fn steps_out_of_order_and_bits_taken_back_are_refused() {
    let mut guest = Guest::new();
    for status in [DRIVER & !ACK, FEATURES_OK & !ACK, VIRTIO_CONFIG_S_DRIVER_OK] {
        assert_eq!(guest.set_status(status), 0);
    }
    guest.drive_to(FEATURES_OK);
    assert_eq!(guest.set_status(ACK), FEATURES_OK);
    assert_eq!(
        guest.set_status(u32::MAX),
        FEATURES_OK | VIRTIO_CONFIG_S_FAILED
    );
    assert_eq!(
        guest.set_status(DRIVER_OK | VIRTIO_CONFIG_S_FAILED),
        FEATURES_OK | VIRTIO_CONFIG_S_FAILED
    );
    assert_eq!(guest.activated(), 0);
    assert_eq!(guest.set_status(0), 0);
}

#[test]
fn features_cannot_change_after_features_ok() {
    let mut guest = Guest::new();
    guest.set_features(1 << 6);
    assert_eq!(
        guest.transport.registers.driver_features, 0,
        "before DRIVER"
    );
    guest.drive_to(FEATURES_OK);
    guest.set_features(u64::MAX);
    assert_eq!(
        guest.transport.registers.driver_features,
        TRANSPORT_FEATURES
    );
}

#[test]
fn queues_can_only_be_set_between_features_ok_and_driver_ok() {
    for state in [0, ACK, DRIVER, DRIVER_OK] {
        let mut guest = Guest::new();
        guest.drive_to(state);
        let before = guest.transport.registers.clone();
        let moved = QueueLayout {
            size: 2,
            desc: 0x30_0000,
            avail: 0x31_0000,
            used: 0x32_0000,
            ready: false,
        };
        guest.set_queue(0, &moved);
        assert_eq!(
            guest.transport.registers.queues, before.queues,
            "in {state:#x}"
        );
    }
}

#[test]
fn a_ready_queue_does_not_move() {
    let mut guest = Guest::new();
    guest.drive_to(FEATURES_OK);
    let layout = guest.layouts()[0];
    guest.set_queue(0, &layout);
    assert_eq!(guest.read(VIRTIO_MMIO_QUEUE_READY), 1);
    guest.write(VIRTIO_MMIO_QUEUE_DESC_LOW, 0x30_0000);
    guest.write(VIRTIO_MMIO_QUEUE_NUM, 2);
    assert_eq!(guest.transport.registers.queues[0], layout);
}

#[test]
fn queues_that_do_not_exist_read_0_and_take_nothing() {
    let mut guest = Guest::new();
    guest.drive_to(FEATURES_OK);
    for index in [2, 3, u32::MAX] {
        guest.set_queue(
            index,
            &QueueLayout {
                ready: true,
                size: 8,
                ..QueueLayout::default()
            },
        );
        assert_eq!(guest.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        assert_eq!(guest.read(VIRTIO_MMIO_QUEUE_READY), 0);
    }
    guest.write(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(guest.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 4);
    guest.drive_to(DRIVER_OK);
    guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 2);
    guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, u32::MAX);
}

#[test]
fn bad_queues_need_a_reset_and_say_so() {
    let good = Guest::new().layouts()[1];
    let bad = [
        QueueLayout { size: 3, ..good },
        QueueLayout { size: 8, ..good },
        QueueLayout {
            ready: false,
            ..good
        },
        QueueLayout {
            desc: good.desc + 1,
            ..good
        },
        QueueLayout {
            used: 0xffff_f000,
            ..good
        },
        QueueLayout {
            avail: u64::MAX - 1,
            ..good
        },
    ];
    for layout in bad {
        let mut guest = Guest::new();
        guest.drive_to(FEATURES_OK);
        let first = guest.layouts()[0];
        guest.set_queue(0, &first);
        guest.set_queue(1, &layout);
        assert_eq!(
            guest.set_status(DRIVER_OK),
            DRIVER_OK | NEEDS_RESET,
            "{layout:?}"
        );
        assert_eq!(
            guest.read(VIRTIO_MMIO_INTERRUPT_STATUS),
            VIRTIO_MMIO_INT_CONFIG
        );
        assert!(guest.transport.interrupt.irqfd().read().is_ok());
        assert_eq!(guest.activated(), 0);
        // The way out is a reset, and it leads back to a working device.
        guest.drive_to(DRIVER_OK);
        assert_eq!(guest.activated(), 1);
        assert_eq!(guest.resets(), 0);
    }
}

#[test]
fn a_device_that_refuses_needs_a_reset() {
    let mut guest = Guest::with(true);
    guest.drive_to(FEATURES_OK);
    for (index, layout) in (0..).zip(guest.layouts()) {
        guest.set_queue(index, &layout);
    }
    assert_eq!(guest.set_status(DRIVER_OK), DRIVER_OK | NEEDS_RESET);
    guest.set_status(0);
    assert_eq!(guest.resets(), 0, "it was never active");
}

#[test]
fn reset_works_in_every_state_and_clears_everything() {
    for state in [0, ACK, DRIVER, FEATURES_OK, DRIVER_OK] {
        let mut guest = Guest::new();
        guest.drive_to(state);
        guest.write(VIRTIO_MMIO_QUEUE_SEL, 1);
        guest.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        guest.transport.interrupt.fail();
        guest.set_status(0);
        assert_eq!(guest.status(), 0);
        assert_eq!(
            guest.transport.registers,
            Registers::new(2),
            "after {state:#x}"
        );
        assert_eq!(guest.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        for index in 0..2 {
            guest.write(VIRTIO_MMIO_QUEUE_SEL, index);
            assert_eq!(guest.read(VIRTIO_MMIO_QUEUE_READY), 0);
        }
        for kick in guest.transport.kicks() {
            assert!(kick.read().is_err(), "a kick survived");
        }
        assert_eq!(guest.resets(), usize::from(state == DRIVER_OK));
        // And again from there.
        guest.drive_to(DRIVER_OK);
        assert_eq!(guest.activated(), usize::from(state == DRIVER_OK) + 1);
    }
}

#[test]
fn acknowledging_clears_only_the_bits_written() {
    let mut guest = Guest::new();
    guest.drive_to(DRIVER_OK);
    guest.transport.interrupt.signal_queue();
    guest.transport.interrupt.signal_config();
    guest.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    assert_eq!(
        guest.read(VIRTIO_MMIO_INTERRUPT_STATUS),
        VIRTIO_MMIO_INT_CONFIG
    );
    guest.write(VIRTIO_MMIO_INTERRUPT_ACK, u32::MAX);
    assert_eq!(guest.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_queue_the_driver_breaks_shows_in_the_status() {
    let mut guest = Guest::new();
    guest.drive_to(DRIVER_OK);
    guest.queues[0].publish(99);
    guest.calls.queues.lock().unwrap()[0].drain(|_| Some(0));
    assert_eq!(guest.status(), DRIVER_OK | NEEDS_RESET);
    assert_eq!(guest.set_status(0), 0);
}

#[test]
fn every_register_survives_every_value_in_every_state() {
    for state in [0, ACK, DRIVER, FEATURES_OK, DRIVER_OK] {
        for offset in (0..0x200).step_by(2) {
            for value in [0, 1, 2, 0x7fff_ffff, u32::MAX] {
                let mut guest = Guest::new();
                guest.drive_to(state);
                guest.write(offset, value);
                guest.read(offset);
                guest.set_status(0);
                assert_eq!(guest.status(), 0);
            }
        }
    }
}

#[test]
fn a_slot_is_emptied_and_filled_in_every_state() {
    for state in [0, ACK, DRIVER, FEATURES_OK, DRIVER_OK] {
        let mut guest = Guest::new();
        guest.drive_to(state);
        guest.transport.interrupt.signal_queue();
        guest.transport.replace(Box::new(Empty)).unwrap();
        let was_live = usize::from(state == DRIVER_OK);
        assert_eq!(guest.resets(), was_live);
        assert_eq!(Arc::strong_count(&guest.calls), 1, "the device is there");
        assert!(guest.transport.is_empty());
        for register in [
            VIRTIO_MMIO_DEVICE_ID,
            VIRTIO_MMIO_STATUS,
            VIRTIO_MMIO_INTERRUPT_STATUS,
            VIRTIO_MMIO_QUEUE_NUM_MAX,
        ] {
            assert_eq!(guest.read(register), 0, "register {register:#x}");
        }
        // A driver that takes it all the same finds nothing to talk to.
        guest.drive_to(DRIVER_OK);
        guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        for offset in (0..0x200).step_by(4) {
            guest.write(offset, u32::MAX);
            guest.read(offset);
        }
        let device = Probe {
            calls: guest.calls.clone(),
            refuse: false,
        };
        guest.transport.replace(Box::new(device)).unwrap();
        assert_eq!(guest.read(VIRTIO_MMIO_DEVICE_ID), 42);
        assert_eq!(guest.status(), 0);
        guest.drive_to(DRIVER_OK);
        assert_eq!(guest.activated(), was_live + 1);
    }
}
