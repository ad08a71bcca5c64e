//! `husk-vmm`.
fn main() {}
