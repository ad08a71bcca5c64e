//! (f) What a MiB of standard output costs from the container to `ctr`'s reader.

use std::time::Instant;

use husk_tests::{Container, Runtime, Task};

use crate::Report;

/// MiB of the long output; the short one is empty, so that the exec itself cancels out.
pub const MIB: u32 = 16;
/// Outputs of each length under each runtime.
const RUNS: usize = 3;

/// Times `dd if=/dev/zero bs=64k` through `ctr task exec`.
pub fn measure(report: &mut Report) {
    let [theirs, ours] = Runtime::both(|runtime| {
        let task = Container::new(runtime, &["sleep", "infinity"]).detach();
        let cost = ms_per_mib(runtime, &task);
        task.destroy();
        cost
    });
    report.ratio(
        "stdout_ratio_runc",
        ("husk, one MiB", ours),
        ("runc, one MiB", theirs),
    );
}

fn ms_per_mib(runtime: Runtime, task: &Task) -> f64 {
    let time_ms = |mib: u32| {
        let count = format!("count={}", mib * 16);
        let start = Instant::now();
        let output = task
            .exec(&["dd", "if=/dev/zero", "bs=64k", &count])
            .succeeded();
        let elapsed = crate::milliseconds(start);
        let wanted = mib as usize * (1 << 20);
        assert_eq!(
            output.stdout.len(),
            wanted,
            "{runtime:?}: {}",
            output.stderr
        );
        elapsed
    };
    time_ms(1);
    let of = |mib| crate::median((0..RUNS).map(|_| time_ms(mib)).collect());
    (of(MIB) - of(0)) / f64::from(MIB)
}
