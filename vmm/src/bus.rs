//! Stop 6 of twelve: from addresses to devices, for memory-mapped and for port I/O. A
//! vCPU's exit names an address; the bus finds the device there and hands it the offset.
//!
//! Addresses and lengths are the guest's: what hits no device, or runs past a device's
//! end, reads as all ones and writes nowhere, like a bus with nobody on it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

/// A device on a bus.
///
/// Called on vCPU threads, under the device's own lock.
pub trait BusDevice: Send {
    /// Fills `data` from `offset`, which together lie within the device's range.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes `data` at `offset`, which together lie within the device's range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device as the bus holds it.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Two devices claim one address.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{size:#x} bytes at {base:#x} overlap another device or the end of the bus")]
pub struct BusOverlap {
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

struct Slot {
    size: u64,
    device: SharedDevice,
}

/// One address space.
#[derive(Default)]
pub struct Bus {
    slots: BTreeMap<u64, Slot>,
}

impl Bus {
    /// Puts a device at `size` bytes from `base`.
    pub fn insert(&mut self, base: u64, size: u64, device: SharedDevice) -> Result<(), BusOverlap> {
        let overlap = BusOverlap { base, size };
        let last = size
            .checked_sub(1)
            .and_then(|more| base.checked_add(more))
            .ok_or(overlap)?;
        if let Some((other, slot)) = self.slots.range(..=last).next_back()
            && other + (slot.size - 1) >= base
        {
            return Err(BusOverlap { base, size });
        }
        self.slots.insert(base, Slot { size, device });
        Ok(())
    }

    /// Reads `data.len()` bytes at `address`.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((offset, device)) => lock(device).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes `data` at `address`.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            lock(device).write(offset, data);
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, &SharedDevice)> {
        let (base, slot) = self.slots.range(..=address).next_back()?;
        let offset = address - base;
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        (end <= slot.size).then_some((offset, &slot.device))
    }
}

fn lock(device: &SharedDevice) -> std::sync::MutexGuard<'_, dyn BusDevice + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers reads with the offset, keeps what was written.
    #[derive(Default)]
    struct Probe(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    fn bus() -> (Bus, Arc<Mutex<Probe>>) {
        let mut bus = Bus::default();
        let probe = Arc::new(Mutex::new(Probe::default()));
        bus.insert(0x100, 0x10, probe.clone()).unwrap();
        (bus, probe)
    }

    #[test]
    fn accesses_reach_the_device_with_their_offset() {
        let (bus, probe) = bus();
        let mut data = [0; 2];
        bus.read(0x10e, &mut data);
        assert_eq!(data, [0xe, 0xe]);
        bus.write(0x103, &[7, 8]);
        assert_eq!(probe.lock().unwrap().0, [(3, vec![7, 8])]);
    }

    #[test]
    fn what_hits_nothing_or_runs_past_the_end_reads_all_ones() {
        let (bus, probe) = bus();
        for address in [0, 0xff, 0x10f, 0x110, u64::MAX] {
            let mut data = [0; 2];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff, 0xff], "{address:#x}");
            bus.write(address, &[1, 2]);
        }
        assert!(probe.lock().unwrap().0.is_empty());
    }

    #[test]
    fn overlaps_are_refused() {
        let (mut bus, probe) = bus();
        for (base, size) in [(0x100, 1), (0xf1, 0x10), (0x10f, 1), (0, 0x1000), (5, 0)] {
            assert!(bus.insert(base, size, probe.clone()).is_err(), "{base:#x}");
        }
        assert!(bus.insert(u64::MAX, 2, probe.clone()).is_err());
        assert!(bus.insert(u64::MAX, 1, probe.clone()).is_ok());
        assert!(bus.insert(0x110, 1, probe).is_ok());
    }
}
