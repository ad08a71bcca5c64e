//! (c) Where the time of one `ctr run` goes, by the programs' own timestamps.

use husk_tests::{Container, containerd};
use serde_json::{Map, json};

use crate::Report;

/// Every step of the timeline, in the order it happens.
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

pub fn measure(report: &mut Report) {
    let mark = containerd::LogMark::now();
    Container::husk(&["echo", "hello"]).run().succeeded();
    let log = mark.since();
    let at = |step: &str| -> u64 {
        let name = format!("timeline {step}=");
        let start = log
            .find(&name)
            .unwrap_or_else(|| panic!("no `{name}` in the log"))
            + name.len();
        let digits: String = log[start..]
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        digits.parse().expect("microseconds")
    };
    let first = at(STEPS[0]);
    let mut steps = Map::new();
    for step in STEPS {
        let since = at(step).saturating_sub(first);
        println!("  {step:<34} {:>9.2} ms", crate::as_f64(since) / 1000.0);
        steps.insert(step.into(), json!(since));
    }
    report.add("timeline_us", steps.into());
}
