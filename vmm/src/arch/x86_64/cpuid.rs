//! What the guest may see of the processor.
//!
//! The base is what KVM supports on this host. Changed are the leaves that describe the
//! topology (KVM passes the host's through, with the APIC id of whatever core the ioctl
//! ran on) and those that promise what a guest cannot have (performance counters, turbo).
//! The topology is one package with one core per vCPU and one thread per core.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

/// CPUID.1:ECX, "running under a hypervisor".
const ECX_HYPERVISOR: u32 = 1 << 31;
/// CPUID.1:ECX, the APIC timer's TSC-deadline mode: no calibration at boot.
const ECX_TSC_DEADLINE: u32 = 1 << 24;
/// CPUID.1:ECX, performance counter capabilities.
const ECX_PDCM: u32 = 1 << 15;
/// CPUID.1:ECX (Intel) and CPUID.8000_0001:ECX (AMD), virtualisation.
const ECX_VMX: u32 = 1 << 5;
const ECX_SVM: u32 = 1 << 2;
/// CPUID.1:EDX, the count of logical processors in EBX is valid.
const EDX_HTT: u32 = 1 << 28;
/// CPUID.6:EAX, turbo boost.
const EAX_TURBO: u32 = 1 << 1;
/// CPUID.6:ECX, energy/performance bias.
const ECX_EPB: u32 = 1 << 3;
/// CPUID.0xB:ECX, level types.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The leaves KVM supports, as the base of every vCPU's.
pub fn supported(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    // KVM leaves this bit out of the list and names a capability instead.
    if kvm.check_extension(Cap::TscDeadlineTimer) {
        for entry in cpuid.as_mut_slice() {
            if entry.function == 1 {
                entry.ecx |= ECX_TSC_DEADLINE;
            }
        }
    }
    Ok(cpuid)
}

/// Turns the supported leaves into those of vCPU `id` of `count`.
///
/// Both are at most 254: `VmConfig` and the MP table allow no more.
pub fn for_vcpu(cpuid: &mut CpuId, id: u32, count: u32) {
    for entry in cpuid.as_mut_slice() {
        adjust(entry, id, count);
    }
}

fn adjust(entry: &mut kvm_cpuid_entry2, id: u32, count: u32) {
    // Bits of an APIC id that tell the cores of a package apart.
    let core_bits = count.next_power_of_two().trailing_zeros();
    match entry.function {
        0x1 => {
            entry.ebx = (entry.ebx & 0xffff) | (count & 0xff) << 16 | (id & 0xff) << 24;
            // No machines in the machine: nested virtualisation is much to attack.
            entry.ecx = (entry.ecx | ECX_HYPERVISOR) & !(ECX_PDCM | ECX_VMX);
            if count > 1 {
                entry.edx |= EDX_HTT;
            } else {
                entry.edx &= !EDX_HTT;
            }
        }
        // Caches (Intel): level 3 is the package's, the others a core's.
        0x4 if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { (1 << core_bits) - 1 } else { 0 };
            let cores = ((1 << core_bits) - 1).min(0x3f);
            entry.eax = (entry.eax & 0x3fff) | sharing << 14 | cores << 26;
        }
        0x6 => {
            entry.eax &= !EAX_TURBO;
            entry.ecx &= !ECX_EPB;
        }
        // Performance monitoring: none.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0xb | 0x1f => {
            (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                0 => (0, 1, LEVEL_THREAD << 8),
                1 => (core_bits, count, LEVEL_CORE << 8 | 1),
                level => (0, 0, level & 0xff),
            };
            entry.edx = id;
        }
        0x8000_0001 => entry.ecx &= !ECX_SVM,
        // What SVM can do.
        0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // Sizes (AMD): number of cores less one, and bits of the id they take.
        0x8000_0008 => {
            entry.ecx = (entry.ecx & !0xf0ff) | core_bits << 12 | (count - 1).min(0xff);
        }
        // Caches (AMD), as leaf 4.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { count - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | sharing << 14;
        }
        // Topology (AMD): extended APIC id, core id with one thread, one node.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: 0xffff_ffff,
            ebx: 0xffff_ffff,
            ecx: 0xffff_ffff,
            edx: 0xffff_ffff,
            ..Default::default()
        }
    }

    fn adjusted(function: u32, index: u32, id: u32, count: u32) -> kvm_cpuid_entry2 {
        let mut cpuid = CpuId::from_entries(&[entry(function, index)]).unwrap();
        for_vcpu(&mut cpuid, id, count);
        cpuid.as_slice()[0]
    }

    #[test]
    fn every_place_that_names_the_apic_id_names_the_same() {
        for id in 0..254 {
            assert_eq!(adjusted(1, 0, id, 254).ebx >> 24, id);
            assert_eq!(adjusted(0xb, 0, id, 254).edx, id);
            assert_eq!(adjusted(0x1f, 1, id, 254).edx, id);
            assert_eq!(adjusted(0x8000_001e, 0, id, 254).eax, id);
        }
    }

    #[test]
    fn the_topology_is_one_package_of_single_threaded_cores() {
        for (count, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (254, 8)] {
            let core = adjusted(0xb, 1, 0, count);
            assert_eq!((core.eax, core.ebx), (bits, count));
            assert_eq!(adjusted(0xb, 0, 0, count).ebx, 1);
            assert_eq!(adjusted(0xb, 2, 0, count).ebx, 0, "no further level");
            assert_eq!(adjusted(1, 0, 0, count).ebx >> 16 & 0xff, count);
            assert_eq!(adjusted(1, 0, 0, count).edx & EDX_HTT != 0, count > 1);
        }
    }

    #[test]
    fn the_hypervisor_shows_and_counters_do_not() {
        let leaf = adjusted(1, 0, 0, 1);
        assert_ne!(leaf.ecx & ECX_HYPERVISOR, 0);
        assert_eq!(leaf.ecx & ECX_PDCM, 0);
        assert_eq!(adjusted(0xa, 0, 0, 1).eax, 0);
    }

    #[test]
    fn there_is_no_virtualisation_in_the_guest() {
        assert_eq!(adjusted(1, 0, 0, 1).ecx & ECX_VMX, 0);
        assert_eq!(adjusted(0x8000_0001, 0, 0, 1).ecx, !ECX_SVM);
        let leaf = adjusted(0x8000_000a, 0, 0, 1);
        assert_eq!((leaf.eax, leaf.ebx, leaf.ecx, leaf.edx), (0, 0, 0, 0));
    }

    #[test]
    fn other_leaves_stay() {
        let leaf = adjusted(7, 0, 3, 4);
        assert_eq!((leaf.eax, leaf.ebx), (0xffff_ffff, 0xffff_ffff));
    }
}
