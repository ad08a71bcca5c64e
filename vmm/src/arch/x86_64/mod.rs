//! x86-64: what the guest finds in its memory and registers at the first instruction.
//!
//! In memory, once per machine: [`boot`] puts kernel, initramfs, command line and zero
//! page in place, [`regs`] the first page tables and descriptor table, [`mptable`] the
//! list of processors and interrupt lines. In each vCPU: [`cpuid`] first, because KVM
//! checks later settings against it, then [`msrs`], then [`regs`]. Every address is in
//! [`layout`].

pub mod boot;
pub mod cpuid;
pub mod layout;
pub mod mptable;
pub mod msrs;
pub mod regs;
