//! Model specific registers a 64-bit Linux expects to be set at its entry.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use thiserror::Error;

/// Names and numbers: Intel SDM volume 4, table 2-2; AMD APM volume 2, appendix A.
const IA32_TSC: u32 = 0x10;
const IA32_SYSENTER_CS: u32 = 0x174;
const IA32_SYSENTER_ESP: u32 = 0x175;
const IA32_SYSENTER_EIP: u32 = 0x176;
const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const FMASK: u32 = 0xc000_0084;
const KERNEL_GS_BASE: u32 = 0xc000_0102;

const MISC_ENABLE_FAST_STRING: u64 = 1;
/// MTRRs on, default type write-back: RAM is cacheable without any range being set.
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;

const BOOT_MSRS: [(u32, u64); 11] = [
    (IA32_SYSENTER_CS, 0),
    (IA32_SYSENTER_ESP, 0),
    (IA32_SYSENTER_EIP, 0),
    (STAR, 0),
    (LSTAR, 0),
    (CSTAR, 0),
    (FMASK, 0),
    (KERNEL_GS_BASE, 0),
    (IA32_TSC, 0),
    (IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
    (IA32_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
];

/// Why the registers could not be set.
#[derive(Debug, Error)]
pub enum MsrError {
    /// The list did not fit into the ioctl's structure.
    #[error("cannot build the list of model specific registers")]
    List(#[source] vmm_sys_util::fam::Error),
    /// The ioctl failed.
    #[error("KVM refused the model specific registers")]
    Set(#[source] kvm_ioctls::Error),
    /// KVM stopped at one of them.
    #[error("KVM does not take model specific register {0:#x}")]
    Refused(u32),
}

/// Sets the boot values; the vCPU's CPUID must be set already (KVM from 6.13 on checks).
pub fn set(vcpu: &VcpuFd) -> Result<(), MsrError> {
    let entries = BOOT_MSRS.map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs = Msrs::from_entries(&entries).map_err(MsrError::List)?;
    let set = vcpu.set_msrs(&msrs).map_err(MsrError::Set)?;
    match BOOT_MSRS.get(set) {
        Some((refused, _)) => Err(MsrError::Refused(*refused)),
        None => Ok(()),
    }
}
