//! The log: whole lines, `<level> <message>`, on one descriptor.
//!
//! The guest must not be able to fill the host's log. Messages it can provoke carry the
//! target `guest`; they and the warnings of libraries share one [`Budget`]. Our own
//! messages about the machine's life are not limited.

use std::fs::File;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Longest line, in bytes; a pipe takes up to 4096 bytes of one write unmixed
/// (`PIPE_BUF`, pipe(7)).
const MAX_LINE_LEN: usize = 1024;
/// Limited messages that may come at once.
const BURST: u32 = 20;
/// Time after which one more limited message may come.
const REFILL: Duration = Duration::from_secs(5);

/// Sends everything logged from now on to `file`.
///
/// Has no effect when called a second time.
pub fn start(file: File, level: LevelFilter) {
    let logger = Box::leak(Box::new(LineLog {
        file,
        budget: Mutex::new(Budget::new(Instant::now())),
    }));
    if log::set_logger(logger).is_ok() {
        log::set_max_level(level);
    }
}

/// `timeline <name>=<microseconds of CLOCK_MONOTONIC>`, to compare with other programs.
pub fn timeline(name: &str) {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    if let Ok(now) = now {
        let us = now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000;
        log::info!("timeline {name}={us}");
    }
}

/// An error and everything that caused it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries repeat their source in their own text.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

struct LineLog {
    file: File,
    budget: Mutex<Budget>,
}

impl Log for LineLog {
    /// What libraries say below a warning is of no use to a host's operator.
    fn enabled(&self, metadata: &Metadata) -> bool {
        is_ours(metadata.target()) || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if !is_ours(record.target()) {
            let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
            if !budget.spend(Instant::now()) {
                return;
            }
        }
        let line = line(record);
        // Nobody is left to tell when the log itself cannot be written.
        (&self.file).write_all(line.as_bytes()).ok();
    }

    fn flush(&self) {}
}

fn is_ours(target: &str) -> bool {
    target == "husk_vmm" || target.starts_with("husk_vmm::")
}

/// One line: control characters become `.`, what is too long is cut.
fn line(record: &Record) -> String {
    let level = record.level().as_str().to_ascii_lowercase();
    let mut line: String = format!("{level} {}", record.args())
        .chars()
        .map(|c| if c.is_control() { '.' } else { c })
        .collect();
    let mut end = line.len().min(MAX_LINE_LEN - 1);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line.push('\n');
    line
}

/// A token bucket.
struct Budget {
    left: u32,
    since: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
        }
    }

    fn spend(&mut self, now: Instant) -> bool {
        while self.left < BURST && now.duration_since(self.since) >= REFILL {
            self.left += 1;
            self.since += REFILL;
        }
        if self.left == BURST {
            self.since = now;
        }
        let granted = self.left > 0;
        self.left -= u32::from(granted);
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_it_holds() {
        let text = format!("a\nb\u{1b}[31m{}", "x".repeat(5000));
        let line = line(
            &Record::builder()
                .level(log::Level::Warn)
                .args(format_args!("{text}"))
                .build(),
        );
        assert!(line.starts_with("warn a.b.[31mxxx"));
        assert_eq!(line.find('\n'), Some(line.len() - 1));
        assert_eq!(line.len(), MAX_LINE_LEN);
    }

    #[test]
    fn guests_and_libraries_share_a_budget_that_refills() {
        assert!(!is_ours("guest") && !is_ours("fuse_backend_rs::api"));
        assert!(is_ours("husk_vmm::vm") && is_ours("husk_vmm"));
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let granted = (0..1000).filter(|_| budget.spend(start)).count();
        assert_eq!(granted, BURST as usize);
        let later = start + 3 * REFILL;
        assert_eq!((0..1000).filter(|_| budget.spend(later)).count(), 3);
    }

    #[test]
    fn an_error_prints_its_causes_once() {
        let inner = std::io::Error::from_raw_os_error(libc::EPERM);
        let error = crate::devices::virtio::ActivateError::Host(inner);
        assert_eq!(
            chain(&error),
            "the host refused a resource: Operation not permitted (os error 1)"
        );
    }
}
