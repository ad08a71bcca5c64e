//! Every guest physical address the VMM chooses, in one table.
//!
//! | from | to | what |
//! |---|---|---|
//! | `0x500` | `0x528` | GDT, five entries |
//! | `0x528` | `0x530` | IDT, empty |
//! | `0x7000` | `0x8000` | zero page (`struct boot_params`) |
//! | `0x8ff0` | | boot stack, growing down |
//! | `0x9000` | `0xc000` | first page tables: PML4, PDPT, PD |
//! | `0x20000` | `0x20800` | kernel command line |
//! | `0x9fc00` | `0x100000` | reserved for firmware in the memory map |
//! | `0xf0000` | | MP floating pointer and table |
//! | `0x100000` | | kernel, where its ELF headers say |
//! | end of low RAM, downwards | | initramfs, page aligned |
//! | `0xc0000000` | `0x100000000` | MMIO hole: no RAM |
//! | `0xd0000000` | | virtio-mmio slots, 4 KiB each |
//! | `0xfec00000` | | IOAPIC |
//! | `0xfee00000` | | local APIC |
//! | `0xfffbc000` | `0xfffc0000` | KVM's own identity map and TSS |
//! | `0x100000000` | | RAM above 3 GiB |
//! | after RAM, 128 MiB aligned | | memory plugged at run time, from `0x100000000` on |

/// Global descriptor table.
pub const GDT: u64 = 0x500;
/// Interrupt descriptor table.
pub const IDT: u64 = 0x528;
/// Zero page: `struct boot_params` of the Linux boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// First stack pointer of the boot CPU.
pub const BOOT_STACK: u64 = 0x8ff0;
/// First page table (PML4); the two further levels follow it.
pub const PML4: u64 = 0x9000;
/// Page directory pointer table.
pub const PDPT: u64 = 0xa000;
/// Page directory: 512 entries of 2 MiB, the first GiB.
pub const PD: u64 = 0xb000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest kernel command line with its NUL, in bytes (x86 Linux, COMMAND_LINE_SIZE).
pub const CMDLINE_SIZE: usize = 2048;
/// End of the RAM below 1 MiB that the guest may use.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// MP floating pointer, followed by the MP table; Linux looks for it from 0xf0000 on.
pub const MPTABLE: u64 = 0xf_0000;
/// Start of RAM above the legacy area; the kernel lies at or above it.
pub const HIGH_RAM_START: u64 = 0x10_0000;
/// No RAM from here to [`MMIO_HOLE_END`].
pub const MMIO_HOLE_START: u64 = 0xc000_0000;
/// End of the hole: 4 GiB.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;
/// First virtio-mmio slot.
pub const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
/// Size of a virtio-mmio slot, in bytes.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// IOAPIC registers; where KVM's in-kernel IOAPIC answers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC registers, at their architectural place.
pub const LAPIC: u32 = 0xfee0_0000;
/// One page KVM uses to run real-mode code on old processors.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages for the same purpose.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// First interrupt line of the serial console.
pub const SERIAL_GSI: u32 = 4;
/// First interrupt line of virtio devices.
pub const VIRTIO_FIRST_GSI: u32 = 5;
/// Last input of the one IOAPIC.
pub const LAST_GSI: u32 = 23;
