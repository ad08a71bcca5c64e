//! `husk-agent`.
fn main() {}
