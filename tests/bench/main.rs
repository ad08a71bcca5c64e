//! `make bench`: the figures that matter to users, each with its peer in the same run.
//!
//! Runs on the node in counted mode, where the clock advances by one nanosecond per
//! instruction: the figures count work, and ratios repeat whatever else the machine
//! outside is doing. They do not show what a VM exit costs on silicon.

mod boot;
mod exec;
mod idle;
mod kvm;
mod lifecycle;
mod network;
mod network_vmm;
mod pods;
mod run;
mod stdout;
mod timeline;

use std::time::Instant;

use serde_json::{Map, Value, json};

/// What is written to `bench.json`: one flat object.
#[derive(Default)]
pub struct Report(Map<String, Value>);

impl Report {
    fn add(&mut self, key: &str, value: Value) {
        self.0.insert(key.into(), value);
    }

    /// Adds and prints an amount in its unit.
    fn amount(&mut self, key: &str, value: f64, unit: &str, what: &str) {
        let value = rounded(value);
        println!("  {what:<34} {value:>9.2} {unit}");
        self.add(key, json!(value));
    }

    /// Adds and prints an amount of memory.
    fn mib(&mut self, key: &str, bytes: u64, what: &str) {
        self.amount(key, as_f64(bytes) / f64::from(1 << 20), "MiB", what);
    }

    /// Adds and prints a number of events.
    fn count(&mut self, key: &str, number: u64, what: &str) {
        println!("  {what:<34} {number:>9}");
        self.add(key, json!(number));
    }

    /// Adds the ratio of two times and prints all three.
    fn ratio(&mut self, key: &str, ours: (&str, f64), theirs: (&str, f64)) {
        for (name, time_ms) in [ours, theirs] {
            println!("  {name:<34} {time_ms:>9.2} ms");
        }
        let ratio = rounded(ours.1 / theirs.1);
        println!(
            "  {:<34} {ratio:>9.2}",
            format!("{} : {}", ours.0, theirs.0)
        );
        self.add(key, json!(ratio));
    }

    /// Adds the ratio of two medians, ours to theirs, of `runs` measurements each, taken
    /// in turns after one of each that only has files read from the disk. Gives both.
    fn in_turns<T>(
        &mut self,
        key: &str,
        runs: usize,
        ours: (&str, T),
        theirs: (&str, T),
        time_ms: impl Fn(&T) -> f64,
    ) -> [f64; 2] {
        let mut times = [const { Vec::new() }; 2];
        for run in 0..=runs {
            for (of_one, times) in [&theirs.1, &ours.1].into_iter().zip(&mut times) {
                let time = time_ms(of_one);
                times.extend((run > 0).then_some(time));
            }
        }
        let [their_time, our_time] = times.map(median);
        self.ratio(key, (ours.0, our_time), (theirs.0, their_time));
        [our_time, their_time]
    }
}

/// A part of the bench: its name, what is printed first, what it does.
type Part = (&'static str, String, fn(&mut Report));

/// Measures the parts that are named on the command line, or all of them.
fn main() {
    let runs = |what: &str, runs: usize| format!("{what}, median of {runs} runs");
    let parts: [Part; 9] = [
        (
            "run",
            runs("`ctr run --rm … true`", run::RUNS),
            run::measure,
        ),
        (
            "boot",
            runs(
                "start of the VMM to /init, same kernel and initramfs",
                boot::RUNS,
            ),
            boot::measure,
        ),
        (
            "timeline",
            "where one `ctr run --rm … echo hello` spends its time".into(),
            timeline::measure,
        ),
        (
            "exec",
            runs("`ctr task exec … true`", exec::RUNS),
            exec::measure,
        ),
        (
            "stdout",
            format!(
                "one MiB of standard output, from {} MiB at a time",
                stdout::MIB
            ),
            stdout::measure,
        ),
        (
            "lifecycle",
            runs(
                "`ctr run --detach` and `ctr task delete --force`",
                lifecycle::RUNS,
            ),
            lifecycle::measure,
        ),
        ("idle", "memory of an idle sandbox".into(), idle::measure),
        (
            "pods",
            runs(
                "RunPodSandbox, CreateContainer, StartContainer to the first byte",
                pods::RUNS,
            ),
            pods::measure,
        ),
        (
            "network",
            format!("the network, median of {} runs", network::RUNS),
            network::measure,
        ),
    ];
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    let mut report = Report::default();
    for (name, what, measure) in parts {
        if chosen.is_empty() || chosen.iter().any(|chosen| chosen == name) {
            println!("\n{what}");
            measure(&mut report);
        }
    }

    let text = serde_json::to_string_pretty(&report.0).expect("plain JSON");
    std::fs::write("/run/results/bench.json", text + "\n").expect("the results directory");
}

/// Since `start`.
fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Bytes and microseconds as they occur here are far below 2^52.
#[expect(clippy::cast_precision_loss, reason = "the numbers are small")]
fn as_f64(value: u64) -> f64 {
    value as f64
}

/// The middle of an odd number of measurements.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
