//! Puts kernel, initramfs, command line and zero page into guest RAM
//! (Documentation/arch/x86/boot.rst and zero-page.rst of Linux).

use std::fs::File;
use std::io::{Seek, SeekFrom};

use linux_loader::cmdline::Cmdline;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{Elf, KernelLoader, load_cmdline};
use thiserror::Error;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory as _, GuestMemoryError};

use super::layout;
use crate::memory::GuestMemory;

const PAGE_SIZE: u64 = 4096;
/// Magic numbers of the setup header.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const LOADER_UNDEFINED: u8 = 0xff;
/// Any value but 0; the kernel is not relocated.
const KERNEL_ALIGNMENT: u32 = 0x100_0000;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Why the guest cannot be booted.
#[derive(Debug, Error)]
pub enum BootError {
    /// Not an ELF kernel, or it does not fit.
    #[error(
        "cannot load the kernel: is it an uncompressed x86-64 `vmlinux`, and does it fit into guest RAM?"
    )]
    Kernel(#[source] linux_loader::loader::Error),
    /// The initramfs cannot be read.
    #[error("cannot read the initramfs")]
    InitramfsFile(#[source] std::io::Error),
    /// Not enough RAM.
    #[error(
        "an initramfs of {len} bytes does not fit into guest RAM beside the kernel; give the VM more memory"
    )]
    InitramfsSize {
        /// Its length in bytes.
        len: u64,
    },
    /// Copying failed.
    #[error("cannot copy the initramfs into guest RAM")]
    InitramfsCopy(#[source] GuestMemoryError),
    /// Command line too long for the guest.
    #[error("the kernel command line with its device list is longer than 2047 bytes or not ASCII")]
    Cmdline(#[source] linux_loader::cmdline::Error),
    /// Copying failed.
    #[error("cannot write the kernel command line to guest RAM")]
    CmdlineCopy(#[source] linux_loader::loader::Error),
    /// Copying failed.
    #[error("cannot write the zero page to guest RAM")]
    ZeroPage(#[source] linux_loader::configurator::Error),
}

/// What the guest is booted from.
pub struct BootSource<'a> {
    /// Uncompressed `vmlinux`.
    pub kernel: &'a mut File,
    /// cpio archive.
    pub initramfs: Option<&'a mut File>,
    /// Command line, device list included.
    pub cmdline: &'a Cmdline,
}

/// Loads everything; returns the kernel's entry point.
pub fn load(memory: &GuestMemory, source: BootSource) -> Result<u64, BootError> {
    let start = GuestAddress(layout::HIGH_RAM_START);
    let kernel =
        Elf::load(&**memory, None, source.kernel, Some(start)).map_err(BootError::Kernel)?;
    let entry = kernel.kernel_load.raw_value();
    let initramfs = match source.initramfs {
        Some(file) => load_initramfs(memory, file, kernel.kernel_end)?,
        None => Initramfs::default(),
    };
    load_cmdline(&**memory, GuestAddress(layout::CMDLINE), source.cmdline)
        .map_err(BootError::CmdlineCopy)?;
    write_zero_page(memory, &initramfs, source.cmdline)?;
    Ok(entry)
}

/// The command line given, with the number of CPUs to boot with, if it is not all of them,
/// and the devices appended, each as `virtio_mmio.device=4K@<address>:<GSI>`.
///
/// Arguments for init (behind `--`) stay at the end.
pub fn cmdline(
    given: &str,
    boot_cpus: Option<u32>,
    devices: &[(u64, u32)],
) -> Result<Cmdline, BootError> {
    let mut cmdline = Cmdline::try_from(given, layout::CMDLINE_SIZE).map_err(BootError::Cmdline)?;
    if let Some(cpus) = boot_cpus {
        cmdline
            .insert("maxcpus", &cpus.to_string())
            .map_err(BootError::Cmdline)?;
    }
    for (address, gsi) in devices {
        let address = GuestAddress(*address);
        cmdline
            .add_virtio_mmio_device(layout::VIRTIO_MMIO_SIZE, address, *gsi, None)
            .map_err(BootError::Cmdline)?;
    }
    Ok(cmdline)
}

/// Where the initramfs lies; length 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Initramfs {
    address: u64,
    len: u64,
}

fn load_initramfs(
    memory: &GuestMemory,
    file: &mut File,
    kernel_end: u64,
) -> Result<Initramfs, BootError> {
    let len = file
        .seek(SeekFrom::End(0))
        .map_err(BootError::InitramfsFile)?;
    file.rewind().map_err(BootError::InitramfsFile)?;
    let address = place_initramfs(low_ram_end(memory), kernel_end, len)
        .ok_or(BootError::InitramfsSize { len })?;
    let size = usize::try_from(len).map_err(|_| BootError::InitramfsSize { len })?;
    memory
        .read_exact_volatile_from(GuestAddress(address), file, size)
        .map_err(BootError::InitramfsCopy)?;
    Ok(Initramfs { address, len })
}

/// The highest page-aligned place in low RAM that leaves the kernel alone.
fn place_initramfs(low_ram_end: u64, kernel_end: u64, len: u64) -> Option<u64> {
    let address = low_ram_end.checked_sub(len)? & !(PAGE_SIZE - 1);
    (address >= kernel_end.max(layout::HIGH_RAM_START)).then_some(address)
}

/// End of the RAM below the MMIO hole.
fn low_ram_end(memory: &GuestMemory) -> u64 {
    let last = memory.last_addr().raw_value();
    last.saturating_add(1).min(layout::MMIO_HOLE_START)
}

/// The memory map handed to the guest: address, length, type.
fn e820(memory: &GuestMemory) -> Vec<(u64, u64, u32)> {
    let low_end = low_ram_end(memory);
    let mut map = vec![
        (0, layout::LOW_RAM_END, E820_RAM),
        (
            layout::LOW_RAM_END,
            layout::HIGH_RAM_START - layout::LOW_RAM_END,
            E820_RESERVED,
        ),
        (
            layout::HIGH_RAM_START,
            low_end.saturating_sub(layout::HIGH_RAM_START),
            E820_RAM,
        ),
    ];
    let last = memory.last_addr().raw_value();
    if let Some(more) = last.checked_sub(layout::MMIO_HOLE_END) {
        map.push((layout::MMIO_HOLE_END, more + 1, E820_RAM));
    }
    map
}

fn write_zero_page(
    memory: &GuestMemory,
    initramfs: &Initramfs,
    cmdline: &Cmdline,
) -> Result<(), BootError> {
    let mut params = boot_params::default();
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = cmdline
        .as_cstring()
        .map_err(BootError::Cmdline)?
        .count_bytes() as u32;
    // Below the MMIO hole, so below 4 GiB.
    params.hdr.ramdisk_image = initramfs.address as u32;
    params.hdr.ramdisk_size = initramfs.len as u32;
    let map = e820(memory);
    params.e820_entries = map.len() as u8;
    for (entry, (addr, size, type_)) in params.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr, size, type_ };
    }
    let params = BootParams::new(&params, GuestAddress(layout::ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, &**memory).map_err(BootError::ZeroPage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn the_memory_map_covers_all_ram_but_the_firmware_area() {
        let map = e820(&memory::allocate(64).unwrap());
        let expected = [
            (0, 0x9_fc00, E820_RAM),
            (0x9_fc00, 0x6_0400, E820_RESERVED),
            (MIB, 63 * MIB, E820_RAM),
        ];
        assert_eq!(map, expected);
    }

    #[test]
    fn the_memory_map_leaves_the_hole_out() {
        for (mib, low, high) in [
            (3071, 3071 * MIB, None),
            (3072, 3 * GIB, None),
            (3073, 3 * GIB, Some(MIB)),
            (8192, 3 * GIB, Some(5 * GIB)),
        ] {
            let map = e820(&memory::allocate(mib).unwrap());
            assert_eq!(map[2], (MIB, low - MIB, E820_RAM), "{mib} MiB");
            let above = map.get(3).map(|(address, size, _)| {
                assert_eq!(*address, 4 * GIB);
                *size
            });
            assert_eq!(above, high, "{mib} MiB");
        }
    }

    #[test]
    fn the_initramfs_goes_as_high_as_it_can_and_no_higher() {
        let place = place_initramfs;
        assert_eq!(place(64 * MIB, 20 * MIB, 4096), Some(64 * MIB - 4096));
        assert_eq!(place(64 * MIB, 20 * MIB, 1), Some(64 * MIB - 4096));
        assert_eq!(place(64 * MIB, 20 * MIB, 44 * MIB), Some(20 * MIB));
        assert_eq!(place(64 * MIB, 20 * MIB, 44 * MIB + 1), None);
        assert_eq!(place(64 * MIB, 20 * MIB, u64::MAX), None);
    }

    #[test]
    fn devices_are_appended_to_the_command_line() {
        let devices = [(0xd000_0000, 5), (0xd000_1000, 6)];
        let text = |given: &str| {
            let cmdline = cmdline(given, Some(2), &devices).unwrap();
            cmdline.as_cstring().unwrap().into_string().unwrap()
        };
        assert_eq!(
            text("console=ttyS0 quiet"),
            "console=ttyS0 quiet maxcpus=2 virtio_mmio.device=4K@0xd0000000:5 \
             virtio_mmio.device=4K@0xd0001000:6"
        );
        assert_eq!(
            text("quiet -- for init"),
            "quiet maxcpus=2 virtio_mmio.device=4K@0xd0000000:5 \
             virtio_mmio.device=4K@0xd0001000:6 -- for init"
        );
        assert!(cmdline(&"x".repeat(2000), None, &devices).is_err());
    }

    #[test]
    fn the_zero_page_names_everything() {
        let memory = memory::allocate(64).unwrap();
        let initramfs = Initramfs {
            address: 0x300_0000,
            len: 77,
        };
        write_zero_page(&memory, &initramfs, &cmdline("quiet", None, &[]).unwrap()).unwrap();
        let read = |offset| {
            memory
                .read_obj::<u32>(GuestAddress(layout::ZERO_PAGE + offset))
                .unwrap()
        };
        assert_eq!(read(0x202), HEADER_MAGIC);
        assert_eq!(read(0x218), 0x300_0000, "ramdisk_image");
        assert_eq!(read(0x21c), 77, "ramdisk_size");
        assert_eq!(read(0x228), 0x2_0000, "cmd_line_ptr");
        assert_eq!(read(0x1e8) & 0xff, 3, "e820_entries");
    }
}
