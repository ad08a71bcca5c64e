//! What the node's KVM tells of all machines that live: how often they left their guests, and
//! how long they were in them.

use std::fs;
use std::path::Path;
use std::process::Command;

use husk_tests::process;

const DEBUGFS: &str = "/sys/kernel/debug";
const TRACEFS: &str = "/sys/kernel/tracing";

/// VM exits so far: on silicon each costs a microsecond or two that instructions do not show.
pub fn exits() -> u64 {
    mounted("debugfs", DEBUGFS, "kvm");
    let exits = fs::read_to_string(format!("{DEBUGFS}/kvm/exits")).expect("KVM's statistics");
    exits.trim().parse().expect("a number")
}

/// Milliseconds that the CPU was in a guest during `work`, by the times of KVM's tracepoints, and
/// what `work` gave. (A process's `guest_time` is counted in ticks of 4 ms.)
pub fn guest_ms<T>(work: impl FnOnce() -> T) -> (f64, T) {
    mounted("tracefs", TRACEFS, "events");
    let write = |file: &str, text: &str| {
        fs::write(format!("{TRACEFS}/{file}"), text)
            .unwrap_or_else(|error| panic!("{file}: {error}"));
    };
    let events = ["kvm_entry", "kvm_exit"].map(|event| format!("events/kvm/{event}/enable"));
    write("buffer_size_kb", "32768");
    write("trace", "");
    events.iter().for_each(|event| write(event, "1"));
    let result = work();
    events.iter().for_each(|event| write(event, "0"));
    let trace = fs::read_to_string(format!("{TRACEFS}/trace")).expect("a trace");
    (in_guest_ms(&trace), result)
}

/// The sum from each entry to the exit after it. On the node's one CPU they alternate, but for
/// the exits that KVM answers without a trace, between two entries.
fn in_guest_ms(trace: &str) -> f64 {
    // `husk-vmm-1234 [000] d.... 12.345678: kvm_exit: …`, in seconds.
    let time_ms = |line: &str, event: &str| -> Option<f64> {
        let (before, _) = line.split_once(event)?;
        let seconds: f64 = before.rsplit(' ').next()?.parse().ok()?;
        Some(seconds * 1000.0)
    };
    let header = trace
        .lines()
        .find_map(|line| line.strip_prefix("# entries-in-buffer/entries-written: "));
    let counts = header.and_then(|counts| counts.split_whitespace().next()?.split_once('/'));
    assert!(
        counts.is_some_and(|(kept, written)| kept == written),
        "the trace is not whole: {header:?}"
    );
    let (mut entered, mut sum) = (None, 0.0);
    for line in trace.lines() {
        if let Some(time) = time_ms(line, ": kvm_entry:") {
            entered = entered.or(Some(time));
        } else if let Some(time) = time_ms(line, ": kvm_exit:") {
            sum += entered.take().map_or(0.0, |entered| time - entered);
        }
    }
    assert!(sum > 0.0, "no machine runs");
    sum
}

/// Mounts a filesystem of the kernel's unless it is there, which `entry` shows.
fn mounted(filesystem: &str, at: &str, entry: &str) {
    if !Path::new(at).join(entry).exists() {
        let mut mount = Command::new("mount");
        mount.args(["-t", filesystem, filesystem, at]);
        process::run(mount).succeeded();
    }
}
