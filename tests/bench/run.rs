//! (a) A whole `ctr run`, ours against runc's.

use std::time::Instant;

use husk_tests::{Container, Runtime};

use crate::Report;

/// Runs of each runtime, taken in turns.
pub const RUNS: usize = 5;

/// Times `ctr run --rm … true`.
pub fn measure(report: &mut Report) {
    let time_ms = |runtime| {
        let container = Container::new(runtime, &["true"]);
        let start = Instant::now();
        container.run().succeeded();
        crate::milliseconds(start)
    };
    let (ours, theirs) = (("husk", Runtime::Husk), ("runc", Runtime::Runc));
    report.in_turns("run_ratio_runc", RUNS, ours, theirs, |runtime| {
        time_ms(*runtime)
    });
}
