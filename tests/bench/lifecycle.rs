//! (g) A task made and removed, ours against runc's.

use std::time::Instant;

use husk_tests::{Container, Runtime, ctr};

use crate::Report;

/// Tasks of each runtime, taken in turns.
pub const RUNS: usize = 5;

/// Times `ctr run --detach … sleep` and `ctr task delete --force`.
pub fn measure(report: &mut Report) {
    let time_ms = |runtime| {
        let container = Container::new(runtime, &["sleep", "infinity"]).with(&["--null-io"]);
        let start = Instant::now();
        let task = container.detach();
        ctr(&["task", "delete", "--force", task.id()]);
        let elapsed = crate::milliseconds(start);
        // ctr's own exit code is the task's.
        ctr(&["container", "delete", task.id()]).succeeded();
        elapsed
    };
    let (ours, theirs) = (("husk", Runtime::Husk), ("runc", Runtime::Runc));
    report.in_turns("create_delete_ratio_runc", RUNS, ours, theirs, |runtime| {
        time_ms(*runtime)
    });
}
