//! The program `husk-vmm` from the outside, with guests of a few bytes. They need
//! `/dev/kvm`, but not one that runs Linux.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod jail;
mod support;
mod tiny_guest;
