//! The MP table (Intel MultiProcessor Specification 1.4): which processors and interrupt
//! lines there are, for a guest without ACPI.
//!
//! Interrupts go one to one from ISA lines 0 to 23 to the pins of one IOAPIC, which is
//! also how KVM routes its GSIs after start-up. ISA lines are edge triggered and active
//! high, and so are our devices' interrupts.

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use crate::memory::GuestMemory;

const SPEC_REVISION: u8 = 4;
const APIC_VERSION: u8 = 0x14;
const FLOATING_POINTER_LEN: usize = 16;
const HEADER_LEN: usize = 44;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IOAPIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
const IOAPIC_ENABLED: u8 = 1;
const INTERRUPT_INT: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTINT: u8 = 3;
const ISA_BUS: u8 = 0;
const ALL_APICS: u8 = 0xff;

/// Why the table could not be put in place.
#[derive(Debug, Error)]
pub enum MpTableError {
    /// APIC ids are 8 bits wide and one is the IOAPIC's.
    #[error("an MP table cannot describe {0} vCPUs, at most 254")]
    TooManyVcpus(u32),
    /// There is no RAM where the table belongs.
    #[error("cannot write the MP table to guest RAM")]
    Write(#[from] GuestMemoryError),
}

/// Writes floating pointer and table for `vcpus` processors.
pub fn write(memory: &GuestMemory, vcpus: u32) -> Result<(), MpTableError> {
    let table = build(vcpus)?;
    memory.write_slice(&table, GuestAddress(layout::MPTABLE))?;
    Ok(())
}

/// Floating pointer, then the table it points to.
fn build(vcpus: u32) -> Result<Vec<u8>, MpTableError> {
    let ioapic_id = u8::try_from(vcpus)
        .ok()
        .filter(|id| (1..=254).contains(id))
        .ok_or(MpTableError::TooManyVcpus(vcpus))?;
    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut entry = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };

    for apic_id in 0..ioapic_id {
        let flags = CPU_ENABLED | if apic_id == 0 { CPU_BOOT } else { 0 };
        // Signature and features come from CPUID in any kernel of this century.
        let mut processor = [0; 20];
        processor[..4].copy_from_slice(&[ENTRY_PROCESSOR, apic_id, APIC_VERSION, flags]);
        entry(&processor);
    }
    entry(&[&[ENTRY_BUS, ISA_BUS], b"ISA   ".as_slice()].concat());
    let ioapic = [ENTRY_IOAPIC, ioapic_id, APIC_VERSION, IOAPIC_ENABLED];
    entry(&[ioapic, layout::IOAPIC.to_le_bytes()].concat());
    // Polarity and trigger (two bytes of 0) are those of the bus.
    for line in 0..=layout::LAST_GSI as u8 {
        entry(&[
            ENTRY_IO_INTERRUPT,
            INTERRUPT_INT,
            0,
            0,
            ISA_BUS,
            line,
            ioapic_id,
            line,
        ]);
    }
    for (kind, apic, pin) in [(INTERRUPT_EXTINT, 0, 0), (INTERRUPT_NMI, ALL_APICS, 1)] {
        entry(&[ENTRY_LOCAL_INTERRUPT, kind, 0, 0, ISA_BUS, 0, apic, pin]);
    }

    let mut table = header(HEADER_LEN + entries.len(), count);
    table.extend_from_slice(&entries);
    set_checksum(&mut table, 7);
    Ok([floating_pointer(), table].concat())
}

fn floating_pointer() -> Vec<u8> {
    let table = layout::MPTABLE as u32 + FLOATING_POINTER_LEN as u32;
    let mut pointer = b"_MP_".to_vec();
    pointer.extend_from_slice(&table.to_le_bytes());
    // Length in units of 16 bytes, revision, checksum, no default configuration.
    pointer.extend_from_slice(&[1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut pointer, 10);
    pointer
}

fn header(len: usize, entries: u16) -> Vec<u8> {
    let mut header = b"PCMP".to_vec();
    header.extend_from_slice(&(len as u16).to_le_bytes());
    header.extend_from_slice(&[SPEC_REVISION, 0]);
    header.extend_from_slice(b"HUSK    ");
    header.extend_from_slice(b"MICROVM     ");
    // No OEM table: pointer (4 bytes) and size (2 bytes).
    header.extend_from_slice(&[0; 6]);
    header.extend_from_slice(&entries.to_le_bytes());
    header.extend_from_slice(&layout::LAPIC.to_le_bytes());
    // No extended table: length, checksum, reserved.
    header.extend_from_slice(&[0; 4]);
    header
}

/// Makes all bytes sum up to 0.
fn set_checksum(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = bytes.get_mut(at) {
        *checksum = checksum.wrapping_sub(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// Walks the table as Linux does: by each entry's type.
    fn entries(table: &[u8]) -> Vec<&[u8]> {
        let mut rest = &table[HEADER_LEN..];
        let mut entries = Vec::new();
        while let Some(kind) = rest.first() {
            let (entry, tail) = rest.split_at(if *kind == ENTRY_PROCESSOR { 20 } else { 8 });
            entries.push(entry);
            rest = tail;
        }
        entries
    }

    #[test]
    fn pointer_and_table_are_well_formed_for_every_count() {
        for vcpus in 1..=254 {
            let bytes = build(vcpus).unwrap();
            let (pointer, table) = bytes.split_at(FLOATING_POINTER_LEN);
            assert_eq!(&pointer[..4], b"_MP_");
            assert_eq!(sum(pointer), 0);
            let address = u32::from_le_bytes(pointer[4..8].try_into().unwrap());
            assert_eq!(u64::from(address), layout::MPTABLE + 16);
            assert_eq!(&table[..4], b"PCMP");
            assert_eq!(sum(table), 0);
            let len = u16::from_le_bytes(table[4..6].try_into().unwrap());
            assert_eq!(usize::from(len), table.len());
            let count = u16::from_le_bytes(table[34..36].try_into().unwrap());
            assert_eq!(usize::from(count), entries(table).len());
            assert!(layout::MPTABLE + bytes.len() as u64 <= layout::HIGH_RAM_START);
        }
    }

    #[test]
    fn one_boot_processor_and_distinct_apic_ids() {
        let bytes = build(3).unwrap();
        let entries = entries(&bytes[FLOATING_POINTER_LEN..]);
        let cpus: Vec<_> = entries.iter().filter(|e| e[0] == ENTRY_PROCESSOR).collect();
        let ids: Vec<_> = cpus.iter().map(|e| (e[1], e[3])).collect();
        assert_eq!(ids, [(0, 3), (1, 1), (2, 1)]);
        let ioapic = entries.iter().find(|e| e[0] == ENTRY_IOAPIC).unwrap();
        assert_eq!(ioapic[1], 3, "the IOAPIC has an id of its own");
    }

    #[test]
    fn every_line_goes_to_the_pin_of_its_number() {
        let bytes = build(1).unwrap();
        let lines: Vec<_> = entries(&bytes[FLOATING_POINTER_LEN..])
            .into_iter()
            .filter(|e| e[0] == ENTRY_IO_INTERRUPT)
            .map(|e| (e[5], e[7]))
            .collect();
        let expected: Vec<_> = (0..24).map(|line| (line, line)).collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn too_many_vcpus_are_refused() {
        for vcpus in [0, 255, 256, u32::MAX] {
            assert!(build(vcpus).is_err());
        }
    }
}
