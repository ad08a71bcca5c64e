//! A minimal virtual machine monitor for one pod: KVM, virtio-mmio, no PCI, no ACPI.
//!
//! It knows nothing of containers. What it is given is a [`config::VmConfig`]; what it
//! tells at the end is an [`exit::Exit`]. The modules in the order in which a machine
//! comes to life:
//!
//! | module | holds |
//! |---|---|
//! | [`args`], [`config`], [`opener`], [`scm`] | what is asked for, and the open files it names |
//! | [`jail`] | giving up everything else |
//! | [`vm`] | the build recipe, running, the end |
//! | [`memory`], [`irq`], [`slots`], [`arch`] | RAM, interrupt lines, what the guest finds at its start |
//! | [`vcpu`], [`bus`], [`devices`] | processors, and what their accesses reach |
//! | [`event_loop`], [`control`], [`control_thread`], [`growth`] | what happens beside them |
//! | [`eventfd`], [`exit_latch`], [`exit`], [`log`] | how it ends, and what is told of it |

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("husk-vmm runs on x86-64 Linux only");

pub mod arch;
pub mod args;
pub mod bus;
pub mod config;
pub mod control;
pub mod control_thread;
pub mod devices;
pub mod event_loop;
pub mod eventfd;
pub mod exit;
pub mod exit_latch;
pub mod growth;
pub mod irq;
pub mod jail;
pub mod log;
pub mod memory;
pub mod opener;
pub mod scm;
pub mod slots;
pub mod stand_in;
pub mod vcpu;
pub mod vm;

#[cfg(test)]
mod testing;
