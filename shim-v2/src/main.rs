//! `containerd-shim-rust-v2`.
fn main() {}
