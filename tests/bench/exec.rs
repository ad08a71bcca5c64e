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
        crate::milliseconds(start)
    };
    let (ours, theirs) = (("husk", &husk), ("runc", &runc));
    report.in_turns("exec_ratio_runc", RUNS, ours, theirs, |task| time_ms(task));
    runc.destroy();
    husk.destroy();
}
