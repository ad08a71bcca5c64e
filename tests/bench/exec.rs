//! (e) A further process in a running container, ours against runc's.

use std::time::Instant;

use husk_tests::{Container, Runtime};

use crate::Report;

/// Execs under each runtime, taken in turns.
pub const RUNS: usize = 5;

/// Times `ctr task exec … true`.
pub fn measure(report: &mut Report) {
    let [runc, husk] =
        Runtime::BOTH.map(|runtime| Container::new(runtime, &["sleep", "infinity"]).detach());
    let time_ms = |task: &husk_tests::Task| {
        let start = Instant::now();
        task.exec(&["true"]).succeeded();
        start.elapsed().as_secs_f64() * 1000.0
    };
    // Once each unmeasured: files are read from the disk.
    time_ms(&runc);
    time_ms(&husk);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        theirs.push(time_ms(&runc));
        ours.push(time_ms(&husk));
    }
    let (ours, theirs) = (crate::median(ours), crate::median(theirs));
    report.ratio("exec_ratio_runc", ("husk", ours), ("runc", theirs));
    runc.destroy();
    husk.destroy();
}
