//! The course of one `ctr run` by the programs' own timestamps, as they log it.

/// Every step, in the order it happens.
pub const STEPS: [&str; 8] = [
    "shim_start",
    "vm_created",
    "kernel_entered",
    "init_running",
    "agent_announced",
    "container_started",
    "first_byte_out",
    "gone",
];

/// When the log says that a step happened: microseconds of the host's monotonic clock.
///
/// # Panics
/// If it does not say.
#[track_caller]
pub fn at(log: &str, step: &str) -> u64 {
    let mark = format!("timeline {step}=");
    let (_, rest) = log
        .split_once(&mark)
        .unwrap_or_else(|| panic!("no `{mark}` in\n{log}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("microseconds")
}
