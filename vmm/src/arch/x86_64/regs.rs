//! Registers at the kernel's 64-bit entry, and the tables in memory they refer to.
//!
//! The Linux boot protocol (Documentation/arch/x86/boot.rst, "64-bit boot protocol")
//! wants long mode with paging, the first GiB mapped one to one, flat code and data
//! segments at 0x10 and 0x18, interrupts off, and the zero page's address in RSI.
//! Further vCPUs start from INIT/SIPI and get none of this.

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use crate::memory::GuestMemory;

const CR0_PROTECTED: u64 = 1;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = (1 << 8) | (1 << 10);
/// Bit 1 is always set.
const RFLAGS_RESERVED: u64 = 2;
const PAGE_PRESENT_WRITABLE: u64 = 3;
const PAGE_2_MIB: u64 = 1 << 7;

/// Segment types (Intel SDM volume 3, 3.4.5.1 and 3.5).
const CODE_EXEC_READ: u8 = 0xb;
const DATA_READ_WRITE: u8 = 3;
const TSS_BUSY: u8 = 0xb;

/// x87 control word and SSE control and status after a reset (Intel SDM volume 1).
const FPU_CONTROL_WORD: u16 = 0x37f;
const MXCSR_DEFAULT: u32 = 0x1f80;

/// Local vector table entries of the local APIC (Intel SDM volume 3, 10.5.1).
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const APIC_MODE_NMI: u32 = 4 << 8;
const APIC_MODE_EXTINT: u32 = 7 << 8;
const APIC_MODE_MASK: u32 = 7 << 8;

/// Why registers or tables could not be set.
#[derive(Debug, Error)]
pub enum RegsError {
    /// There is no RAM where a table belongs.
    #[error("cannot write the first page tables and descriptors to guest RAM")]
    Tables(#[from] GuestMemoryError),
    /// An ioctl failed.
    #[error("KVM refused the vCPU's {what}")]
    Kvm {
        /// Which registers.
        what: &'static str,
        /// What the ioctl said.
        #[source]
        source: kvm_ioctls::Error,
    },
}

fn kvm_error(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> RegsError {
    move |source| RegsError::Kvm { what, source }
}

/// Descriptors in the order of the table: null, unused, code at 0x10, data at 0x18,
/// task state at 0x20.
fn segments() -> [kvm_segment; 5] {
    let flat = |kind, selector| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let null = kvm_segment {
        unusable: 1,
        ..Default::default()
    };
    [
        null,
        null,
        kvm_segment {
            l: 1,
            ..flat(CODE_EXEC_READ, 0x10)
        },
        kvm_segment {
            db: 1,
            ..flat(DATA_READ_WRITE, 0x18)
        },
        kvm_segment {
            s: 0,
            ..flat(TSS_BUSY, 0x20)
        },
    ]
}

/// A segment as eight bytes of a descriptor table (Intel SDM volume 3, figure 3-8).
fn descriptor(segment: &kvm_segment) -> u64 {
    if segment.present == 0 {
        return 0;
    }
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let base = segment.base;
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.avl)
        | u64::from(segment.l) << 1
        | u64::from(segment.db) << 2
        | u64::from(segment.g) << 3;
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

/// Writes descriptor tables and the page tables of the first GiB.
pub fn write_tables(memory: &GuestMemory) -> Result<(), RegsError> {
    for (address, segment) in (layout::GDT..).step_by(8).zip(segments()) {
        memory.write_obj(descriptor(&segment), GuestAddress(address))?;
    }
    memory.write_obj(0u64, GuestAddress(layout::IDT))?;

    let (pml4, pdpt) = (GuestAddress(layout::PML4), GuestAddress(layout::PDPT));
    memory.write_obj(layout::PDPT | PAGE_PRESENT_WRITABLE, pml4)?;
    memory.write_obj(layout::PD | PAGE_PRESENT_WRITABLE, pdpt)?;
    for (entry, page) in (layout::PD..).step_by(8).zip(0..512u64) {
        let mapped = page << 21 | PAGE_PRESENT_WRITABLE | PAGE_2_MIB;
        memory.write_obj(mapped, GuestAddress(entry))?;
    }
    Ok(())
}

/// Sets the boot CPU to begin at `entry` in 64-bit mode.
pub fn set_boot_cpu(vcpu: &VcpuFd, entry: u64) -> Result<(), RegsError> {
    let mut sregs = vcpu.get_sregs().map_err(kvm_error("special registers"))?;
    let [_, _, code, data, task] = segments();
    sregs.cs = code;
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    sregs.tr = task;
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (segments().len() * 8 - 1) as u16;
    sregs.idt.base = layout::IDT;
    sregs.idt.limit = 7;
    sregs.cr0 |= CR0_PROTECTED | CR0_PAGING;
    sregs.cr3 = layout::PML4;
    sregs.cr4 |= CR4_PAE;
    sregs.efer |= EFER_LONG_MODE;
    vcpu.set_sregs(&sregs)
        .map_err(kvm_error("special registers"))?;

    let regs = kvm_regs {
        rflags: RFLAGS_RESERVED,
        rip: entry,
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        rsi: layout::ZERO_PAGE,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(kvm_error("registers"))
}

/// What every CPU starts with: floating point unit and local interrupt lines.
pub fn set_any_cpu(vcpu: &VcpuFd) -> Result<(), RegsError> {
    let fpu = kvm_fpu {
        fcw: FPU_CONTROL_WORD,
        mxcsr: MXCSR_DEFAULT,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu)
        .map_err(kvm_error("floating point unit"))?;

    let mut lapic = vcpu.get_lapic().map_err(kvm_error("local APIC"))?;
    set_lvt(&mut lapic.regs, APIC_LVT0, APIC_MODE_EXTINT);
    set_lvt(&mut lapic.regs, APIC_LVT1, APIC_MODE_NMI);
    vcpu.set_lapic(&lapic).map_err(kvm_error("local APIC"))
}

fn set_lvt(registers: &mut [std::ffi::c_char; 1024], at: usize, mode: u32) {
    let mut bytes = [0; 4];
    for (byte, register) in bytes.iter_mut().zip(&registers[at..]) {
        *byte = *register as u8;
    }
    let value = (u32::from_le_bytes(bytes) & !APIC_MODE_MASK) | mode;
    for (register, byte) in registers[at..].iter_mut().zip(value.to_le_bytes()) {
        *register = byte as std::ffi::c_char;
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemory as _;

    use super::*;
    use crate::testing::ram;

    #[test]
    fn descriptors_are_the_ones_linux_documents() {
        let table = segments().map(|segment| descriptor(&segment));
        assert_eq!(table[2], 0x00af_9b00_0000_ffff, "64-bit code");
        assert_eq!(table[3], 0x00cf_9300_0000_ffff, "flat data");
        assert_eq!(table[4], 0x008f_8b00_0000_ffff, "task state");
        assert_eq!(table[0], 0);
    }

    #[test]
    fn the_first_gib_is_mapped_one_to_one() {
        let memory = ram();
        write_tables(&memory).unwrap();
        let read = |address| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        // Walk the tables as the processor does.
        for virt in [0u64, 0x1000, 0x10_0000, 0x1234_5678, (1 << 30) - 1] {
            let pdpt = read(layout::PML4 + (virt >> 39 & 511) * 8) & !0xfff;
            let pd = read(pdpt + (virt >> 30 & 511) * 8) & !0xfff;
            let entry = read(pd + (virt >> 21 & 511) * 8);
            assert_eq!(entry & 0x83, 0x83, "present, writable, 2 MiB");
            assert_eq!((entry & !0x1f_ffff) | (virt & 0x1f_ffff), virt);
        }
        assert!(memory.check_range(GuestAddress(layout::PD), 4096));
    }

    #[test]
    fn local_interrupt_modes_are_set_in_place() {
        let mut registers = [0; 1024];
        registers[APIC_LVT0 + 2] = 1;
        set_lvt(&mut registers, APIC_LVT0, APIC_MODE_EXTINT);
        assert_eq!(registers[APIC_LVT0..APIC_LVT0 + 4], [0, 7, 1, 0]);
    }
}
