//! The fixture of every test on the node.

use std::fs::OpenOptions;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use crate::containerd::LogMark;
use crate::ctr::sweep;
use crate::ledger::Ledger;
use crate::process::DEADLINE;

/// What the VMM logs of a guest that ended without a word.
const TRIPLE_FAULT: &str = "the guest's CPU triple-faulted";
/// Where the node's init looks for the names of tests to run once more.
const LOST: &str = "/run/results/lost";

/// A test's stay on the node. When dropped, everything the test made must be gone.
pub struct Node {
    before: Ledger,
    log: LogMark,
    start: Instant,
}

impl Node {
    /// Takes the ledger.
    ///
    /// # Panics
    /// If this is not the node.
    #[track_caller]
    pub fn enter() -> Self {
        assert!(
            std::path::Path::new("/usr/local/lib/node/init").exists(),
            "this test needs the node; run it with `make e2e T=<name>`"
        );
        Self {
            before: Ledger::take(),
            log: LogMark::now(),
            start: Instant::now(),
        }
    }

    /// The log once `text` is in it: containerd copies what others log in the background.
    ///
    /// # Panics
    /// If it is not by the deadline.
    #[track_caller]
    pub fn log_with(&self, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let log = self.log();
            if log.contains(text) {
                return log;
            }
            assert!(Instant::now() < deadline, "no {text:?} in the log:\n{log}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What containerd, the shims and the VMMs have logged since the test began.
    pub fn log(&self) -> String {
        self.log.since()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let leaks = self.before.leaks();
        // Not captured, so that the runner's line gets the time: `test x ... 2.1 s ok`.
        let mut stdout = std::io::stdout();
        drop(write!(
            stdout,
            "{:.1} s ",
            self.start.elapsed().as_secs_f64()
        ));
        drop(stdout.flush());
        if thread::panicking() || !leaks.is_empty() {
            let log = self.log();
            eprintln!("--- log of containerd, shim and VMM since the test began\n{log}");
            eprintln!("--- left behind\n{}", leaks.join("\n"));
            note_lost_guest(&log);
            sweep();
        }
        if !thread::panicking() {
            assert!(leaks.is_empty(), "left behind:\n{}", leaks.join("\n"));
        }
    }
}

/// Tells the node by name which failed tests lost their guest: those are run once more
/// (README.md, "What the emulator loses").
fn note_lost_guest(log: &str) {
    let test = thread::current();
    if let Some(test) = test.name().filter(|_| log.contains(TRIPLE_FAULT)) {
        let list = OpenOptions::new().create(true).append(true).open(LOST);
        // Where it cannot be told the test is not run again.
        drop(list.map(|mut list| writeln!(list, "{test}")));
    }
}
