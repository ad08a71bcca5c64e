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
        let elapsed = start.elapsed().as_secs_f64() * 1000.0;
        // ctr's own exit code is the task's.
        ctr(&["container", "delete", task.id()]).succeeded();
        elapsed
    };
    for runtime in Runtime::BOTH {
        time_ms(runtime);
    }
    let (mut husk, mut runc) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        runc.push(time_ms(Runtime::Runc));
        husk.push(time_ms(Runtime::Husk));
    }
    let (husk, runc) = (crate::median(husk), crate::median(runc));
    report.ratio("create_delete_ratio_runc", ("husk", husk), ("runc", runc));
}
