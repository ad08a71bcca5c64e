//! Guest RAM: private anonymous memory, and the KVM slots that show it to the guest.
//!
//! RAM is `MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE`: nothing outside this process
//! shares it, pages come into being when the guest first touches them, and a saved
//! image could one day be mapped copy-on-write in its place.
//!
//! All access goes through `vm-memory`, which checks every address and length against
//! the regions; no Rust reference to guest memory is ever formed.
//!
//! Above the RAM there may be room for memory that is plugged later ([`Hotplug`]). It is
//! mapped from the start, which costs address space only. The guest gets at no more of it than
//! has been opened, and no access of a device's begins beyond that. Where one ends is checked
//! where it matters, by `check_range`: `vm-memory` itself looks a region up by its first byte.
//! What a driver can still have run over the end, by rewriting a buffer that has been checked,
//! is one answer of a device's (1 MiB of a file at most), to memory of the VMM's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::mmap::FromRangesError;
use vm_memory::{
    Address, GuestAddress, GuestMemory as _, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, VolatileSlice,
};

use crate::arch::layout;

/// The guest's RAM, shared by everything that reads or writes it.
pub type GuestMemory = Arc<Ram>;

/// Size of a page, the guest's and the host's, in bytes.
const PAGE_SIZE: u64 = 4096;

/// All regions, up to an end that moves when memory is plugged, and never back.
#[derive(Debug)]
pub struct Ram {
    regions: GuestMemoryMmap,
    end: AtomicU64,
}

impl From<GuestMemoryMmap> for Ram {
    fn from(regions: GuestMemoryMmap) -> Self {
        Self {
            regions,
            end: AtomicU64::new(u64::MAX),
        }
    }
}

impl vm_memory::GuestMemory for Ram {
    type R = GuestRegionMmap;

    fn find_region(&self, address: GuestAddress) -> Option<&GuestRegionMmap> {
        let opened = address.0 < self.end.load(Ordering::Acquire);
        self.regions.find_region(address).filter(|_| opened)
    }

    fn iter(&self) -> impl Iterator<Item = &GuestRegionMmap> {
        self.regions.iter()
    }

    fn check_range(&self, base: GuestAddress, len: usize) -> bool {
        let end = base.checked_add(len as u64);
        end.is_some_and(|end| end.0 <= self.end.load(Ordering::Acquire))
            && self.regions.check_range(base, len)
    }
}

/// Below this size of a machine transparent huge pages are refused, in MiB: one 2 MiB fault
/// in each of the kernel's scattered working areas would by itself fill a small one.
const HUGE_PAGES_FROM_MIB: u32 = 512;

/// Why guest RAM could not be set up.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host refused the mapping.
    #[error("cannot map {mib} MiB of guest RAM; is the host out of address space or memory?")]
    Map {
        /// Size asked for, in MiB.
        mib: u32,
        /// What `mmap` said.
        #[source]
        source: FromRangesError,
    },
    /// The host refused room for more.
    #[error("cannot reserve addresses for {size:#x} bytes of memory to be plugged later")]
    Reserve {
        /// Bytes asked for.
        size: u64,
        /// What `mmap` said.
        #[source]
        source: FromRangesError,
    },
    /// It is not RAM, or more than one mapping: an error of ours.
    #[error("there is no piece of guest RAM at {base:#x}, {size:#x} bytes long")]
    Piece {
        /// Guest physical address.
        base: u64,
        /// Length in bytes.
        size: u64,
        /// What the lookup said.
        #[source]
        source: GuestMemoryError,
    },
    /// KVM refused a memory slot.
    #[error("KVM refused guest RAM at {base:#x}, {size:#x} bytes")]
    Slot {
        /// Guest physical address.
        base: u64,
        /// Length in bytes.
        size: u64,
        /// What the ioctl said.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// Address and length of each RAM range of a machine with `mib` MiB, split around the
/// MMIO hole below 4 GiB.
pub fn ram_ranges(mib: u32) -> Vec<(GuestAddress, usize)> {
    let size = u64::from(mib) << 20;
    let low = size.min(layout::MMIO_HOLE_START);
    let high = size - low;
    let mut ranges = vec![(GuestAddress(0), low as usize)];
    if high > 0 {
        ranges.push((GuestAddress(layout::MMIO_HOLE_END), high as usize));
    }
    ranges
}

/// Maps `mib` MiB of guest RAM.
pub fn allocate(mib: u32) -> Result<GuestMemory, MemoryError> {
    let memory = GuestMemoryMmap::from_ranges(&ram_ranges(mib))
        .map_err(|source| MemoryError::Map { mib, source })?;
    if mib < HUGE_PAGES_FROM_MIB {
        refuse_huge_pages(&memory);
    }
    Ok(Arc::new(memory.into()))
}

/// Gives every RAM range to KVM, one slot each.
pub fn register(vm: &VmFd, memory: &GuestMemory) -> Result<(), MemoryError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let start = region.start_addr();
        set_slot(vm, slot, start, &slice(memory, start, region.len())?)?;
    }
    Ok(())
}

/// Gives the guest `memory` at `base`. The caller (`Vm`) keeps the mapping until the last
/// vCPU has stopped.
#[expect(
    unsafe_code,
    reason = "KVM_SET_USER_MEMORY_REGION takes a host address"
)]
fn set_slot(
    vm: &VmFd,
    slot: u32,
    base: GuestAddress,
    memory: &VolatileSlice,
) -> Result<(), MemoryError> {
    let size = memory.len() as u64;
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: base.0,
        memory_size: size,
        userspace_addr: memory.ptr_guard_mut().as_ptr() as u64,
    };
    // SAFETY: address and length are those of a part of a live mapping, which outlives the
    // vCPUs (see above).
    unsafe { vm.set_user_memory_region(region) }.map_err(|source| MemoryError::Slot {
        base: base.0,
        size,
        source,
    })
}

/// The one piece of host memory behind `len` bytes at `base`.
fn slice(memory: &Ram, base: GuestAddress, size: u64) -> Result<VolatileSlice<'_>, MemoryError> {
    let slice = memory.regions.get_slice(base, size as usize);
    let base = base.0;
    slice.map_err(|source| MemoryError::Piece { base, size, source })
}

/// Gives the host back what holds the whole pages within `len` bytes at `base`; the guest
/// reads zeroes there. `false` if that is not all RAM.
pub fn discard(memory: &Ram, base: GuestAddress, len: u64) -> bool {
    let Some(end) = base.checked_add(len) else {
        return false;
    };
    let first = base.0.next_multiple_of(PAGE_SIZE);
    let last = end.0 & !(PAGE_SIZE - 1);
    let pages = last.saturating_sub(first) as usize;
    if !memory.check_range(GuestAddress(first), pages) {
        return false;
    }
    for slice in memory.get_slices(GuestAddress(first), pages).flatten() {
        advise(&slice, libc::MADV_DONTNEED);
    }
    true
}

/// madvise(2) on guest RAM.
#[expect(unsafe_code, reason = "madvise takes a host address")]
fn advise(memory: &VolatileSlice, advice: libc::c_int) {
    let start = memory.ptr_guard_mut();
    // SAFETY: the range is part of a live mapping of ours, private and anonymous. The
    // advices used leave it mapped as it is, at most with zeroes for contents, and no Rust
    // reference to it exists.
    let status = unsafe { libc::madvise(start.as_ptr().cast(), memory.len(), advice) };
    if status != 0 {
        // MADV_NOHUGEPAGE: EINVAL on a host kernel without huge pages, which is what was
        // asked for. MADV_DONTNEED: the memory stays, and that is all.
        log::debug!("madvise({advice}) on guest RAM failed; going on");
    }
}

fn refuse_huge_pages(memory: &GuestMemoryMmap) {
    for region in memory.iter() {
        let slices = memory.get_slices(region.start_addr(), region.size());
        slices
            .flatten()
            .for_each(|slice| advise(&slice, libc::MADV_NOHUGEPAGE));
    }
}

/// The part of the address space above RAM where memory is plugged, opened from its start
/// as far as it was ever needed.
pub struct Hotplug {
    vm: Arc<VmFd>,
    memory: GuestMemory,
    base: u64,
    size: u64,
    /// Bytes of RAM besides.
    boot: u64,
    opened: u64,
    slots: u32,
}

impl Hotplug {
    /// Adds room for `size` bytes, a multiple of `align`, to the guest's `ram`.
    pub fn reserve(
        vm: Arc<VmFd>,
        ram: &GuestMemory,
        size: u64,
        align: u64,
    ) -> Result<Self, MemoryError> {
        let refused = |source| MemoryError::Reserve { size, source };
        let after = ram.last_addr().0.max(layout::MMIO_HOLE_END - 1) + 1;
        let base = after.next_multiple_of(align);
        let region = GuestRegionMmap::from_range(GuestAddress(base), size as usize, None);
        let region = Arc::new(region.map_err(refused)?);
        let regions = ram.regions.insert_region(region);
        let regions = regions.map_err(|error| refused(error.into()))?;
        Ok(Self {
            vm,
            slots: ram.num_regions() as u32,
            memory: Arc::new(Ram {
                regions,
                end: AtomicU64::new(base),
            }),
            base,
            size,
            boot: ram.iter().map(GuestMemoryRegion::len).sum(),
            opened: 0,
        })
    }

    /// The RAM and what is opened of this, for devices.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// First guest physical address.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Opens the first `bytes`, if they are not open yet, by one more slot of KVM's: a slot
    /// in use cannot grow.
    pub fn open(&mut self, bytes: u64) -> Result<(), MemoryError> {
        let bytes = bytes.min(self.size);
        let Some(more) = bytes.checked_sub(self.opened).filter(|more| *more > 0) else {
            return Ok(());
        };
        let start = GuestAddress(self.base + self.opened);
        let part = slice(&self.memory, start, more)?;
        if self.boot + bytes < u64::from(HUGE_PAGES_FROM_MIB) << 20 {
            advise(&part, libc::MADV_NOHUGEPAGE);
        }
        set_slot(&self.vm, self.slots, start, &part)?;
        self.slots += 1;
        self.opened = bytes;
        self.memory.end.store(self.base + bytes, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
impl Ram {
    /// 1 MiB of RAM, and room for 4 MiB from 4 GiB on, of which `opened` bytes are open.
    pub(crate) fn with_room(opened: u64) -> Self {
        let regions = [(GuestAddress(0), 1 << 20), (GuestAddress(1 << 32), 4 << 20)];
        Self {
            regions: GuestMemoryMmap::from_ranges(&regions).unwrap(),
            end: AtomicU64::new((1 << 32) + opened),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_one_range_up_to_the_hole() {
        assert_eq!(ram_ranges(64), [(GuestAddress(0), 64 << 20)]);
        assert_eq!(ram_ranges(3072), [(GuestAddress(0), 3072 << 20)]);
    }

    #[test]
    fn ram_above_3_gib_continues_at_4_gib() {
        let ranges = ram_ranges(3073);
        assert_eq!(
            ranges,
            [(GuestAddress(0), 3 << 30), (GuestAddress(1 << 32), 1 << 20)]
        );
        let total: usize = ram_ranges(5000).iter().map(|(_, size)| size).sum();
        assert_eq!(total, 5000 << 20);
    }

    #[test]
    fn nothing_reaches_into_the_hole() {
        use vm_memory::Bytes;
        let memory = allocate(4096).unwrap();
        assert!(memory.write_obj(1u8, GuestAddress((3 << 30) - 1)).is_ok());
        assert!(memory.write_obj(1u16, GuestAddress((3 << 30) - 1)).is_err());
        assert!(memory.write_obj(1u8, GuestAddress(0xd000_0000)).is_err());
        assert!(memory.write_obj(1u8, GuestAddress(1 << 32)).is_ok());
    }

    #[test]
    fn room_that_the_host_refuses_is_an_error_that_says_why() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            return println!("skipped: no KVM");
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        let refused = Hotplug::reserve(vm, &allocate(64).unwrap(), 1 << 60, 128 << 20);
        let error = crate::log::chain(&refused.err().unwrap());
        assert!(error.contains("Cannot allocate memory"), "{error}");
    }

    #[test]
    fn discarded_pages_are_zero_and_nothing_beyond_ram_is_touched() {
        use vm_memory::Bytes;
        let memory = allocate(64).unwrap();
        for page in 0..3 {
            memory.write_obj(7u8, GuestAddress(page * 4096)).unwrap();
        }
        assert!(discard(&memory, GuestAddress(100), 2 * 4096));
        let read = |page: u64| memory.read_obj::<u8>(GuestAddress(page * 4096)).unwrap();
        assert_eq!([read(0), read(1), read(2)], [7, 0, 7]);
        assert!(discard(&memory, GuestAddress(0), 0));
        assert!(!discard(&memory, GuestAddress(63 << 20), 2 << 20));
        assert!(!discard(&memory, GuestAddress(u64::MAX - 4095), 4096));
        assert!(!discard(&memory, GuestAddress(0), u64::MAX));
    }

    #[test]
    fn only_what_is_opened_of_the_room_above_ram_can_be_reached() {
        use vm_memory::Bytes;
        let ram = Ram::with_room(2 << 20);
        let high = |offset: u64| GuestAddress((1 << 32) + offset);
        assert!(ram.check_range(high(0), 2 << 20));
        assert!(!ram.check_range(high(0), (2 << 20) + 1));
        assert!(ram.write_obj(1u8, high((2 << 20) - 1)).is_ok());
        assert!(ram.write_obj(1u8, high(2 << 20)).is_err());
        ram.end.store((1 << 32) + (4 << 20), Ordering::Release);
        assert!(ram.write_obj(1u8, high(2 << 20)).is_ok());
    }
}
