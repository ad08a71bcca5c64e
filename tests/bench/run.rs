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
        start.elapsed().as_secs_f64() * 1000.0
    };
    // Once each unmeasured: files are read from the disk.
    for runtime in Runtime::BOTH {
        time_ms(runtime);
    }
    let (mut husk, mut runc) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        runc.push(time_ms(Runtime::Runc));
        husk.push(time_ms(Runtime::Husk));
    }
    let (husk, runc) = (crate::median(husk), crate::median(runc));
    report.ratio("run_ratio_runc", ("husk", husk), ("runc", runc));
}
