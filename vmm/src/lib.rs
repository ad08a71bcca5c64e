//! A minimal virtual machine monitor for one pod: KVM, virtio-mmio, no PCI, no ACPI.

pub mod config;
pub mod control;
pub mod exit;
