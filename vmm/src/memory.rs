//! Guest RAM: private anonymous memory, and the KVM slots that show it to the guest.
//!
//! RAM is `MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE`: nothing outside this process
//! shares it, pages come into being when the guest first touches them, and a saved
//! image could one day be mapped copy-on-write in its place.
//!
//! All access goes through `vm-memory`, which checks every address and length against
//! the regions; no Rust reference to guest memory is ever formed.

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::{
    Address, GuestAddress, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion, GuestUsize,
};

use crate::arch::layout;

/// The guest's RAM, shared by everything that reads or writes it.
pub type GuestMemory = Arc<GuestMemoryMmap>;

/// Below this size transparent huge pages are refused, in MiB: one 2 MiB fault in each
/// of the kernel's scattered working areas would by itself fill a small machine.
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
        source: vm_memory::mmap::FromRangesError,
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
    Ok(Arc::new(memory))
}

/// Gives every RAM range to KVM, one slot each.
#[expect(
    unsafe_code,
    reason = "KVM_SET_USER_MEMORY_REGION takes a host address"
)]
pub fn register(vm: &VmFd, memory: &GuestMemory) -> Result<(), MemoryError> {
    for (slot, region) in (0u32..).zip(memory.iter()) {
        let base = region.start_addr().raw_value();
        let size: GuestUsize = region.len();
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: base,
            memory_size: size,
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: address and length are those of a live mapping owned by `memory`. The
        // caller (`Vm`) keeps `memory` until the last vCPU has stopped.
        unsafe { vm.set_user_memory_region(slot) }.map_err(|errno| MemoryError::Slot {
            base,
            size,
            source: errno,
        })?;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "madvise takes a host address")]
fn refuse_huge_pages(memory: &GuestMemoryMmap) {
    for region in memory.iter() {
        // SAFETY: the range is exactly one live mapping of ours; MADV_NOHUGEPAGE changes
        // neither its contents nor its protection.
        let status =
            unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_NOHUGEPAGE) };
        if status != 0 {
            // EINVAL: a host kernel without huge pages, which is what was asked for.
            log::debug!("madvise(MADV_NOHUGEPAGE) on guest RAM failed; going on");
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
}
