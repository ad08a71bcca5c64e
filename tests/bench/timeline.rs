//! (c) Where the time of one `ctr run` goes, by the programs' own timestamps.

use husk_tests::timeline::{STEPS, at};
use husk_tests::{Container, containerd};
use serde_json::{Map, json};

use crate::Report;

pub fn measure(report: &mut Report) {
    let mark = containerd::LogMark::now();
    Container::husk(&["echo", "hello"]).run().succeeded();
    let log = mark.since();
    let first = at(&log, STEPS[0]);
    let mut steps = Map::new();
    for step in STEPS {
        let since = at(&log, step).saturating_sub(first);
        println!("  {step:<34} {:>9.2} ms", crate::as_f64(since) / 1000.0);
        steps.insert(step.into(), json!(since));
    }
    report.add("timeline_us", steps.into());
}
