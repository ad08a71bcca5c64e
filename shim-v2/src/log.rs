//! The shim's log: logfmt lines into the bundle's `log` fifo, which containerd
//! copies into its own log.
//!
//! The fifo is held open for reading and writing: a restarting containerd then
//! neither blocks nor breaks the shim. When nobody reads, lines are dropped.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use log::{LevelFilter, Log, Metadata, Record};

/// Longest line written, in bytes: below PIPE_BUF, so that lines never interleave.
const MAX_LINE: usize = 4000;

struct FifoLog {
    fifo: File,
    id: String,
}

/// Sends the program's log to `bundle/log`. Without that fifo (by hand) nothing is
/// logged: standard error is part of the answer to an old containerd.
pub fn init(bundle: &Path, id: &str, level: LevelFilter) {
    let Ok(fifo) = open(bundle) else { return };
    let logger = FifoLog {
        fifo,
        id: id.to_owned(),
    };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
    }
}

fn open(bundle: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .append(true)
        .custom_flags(libc::O_NONBLOCK);
    options.open(bundle.join("log"))
}

/// Points standard error at the fifo, so that a panic's text reaches containerd's log.
pub fn capture_stderr(bundle: &Path) -> std::io::Result<()> {
    let fifo = open(bundle)?;
    Ok(nix::unistd::dup2_stderr(&fifo)?)
}

/// Logs one point of the start's timeline: microseconds of the host's CLOCK_MONOTONIC.
pub fn timeline(name: &str) {
    use nix::time::{ClockId, clock_gettime};
    if let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) {
        let us = now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000;
        log::info!("timeline {name}={us}");
    }
}

impl Log for FifoLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // ttrpc logs every closed connection as an error of its own.
        metadata.level() <= log::max_level() && !metadata.target().starts_with("ttrpc")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            log::Level::Warn => "warning".to_owned(),
            level => level.as_str().to_lowercase(),
        };
        let mut line = format!(
            "time=\"{}\" level={level} msg={} id={} runtime=io.containerd.rust.v2",
            rfc3339(SystemTime::now()),
            quote(&record.args().to_string()),
            self.id,
        );
        line.push('\n');
        // A full or readerless fifo drops the line: logging never blocks a container.
        drop((&self.fifo).write(line.as_bytes()));
    }

    fn flush(&self) {}
}

/// Quotes a message as logfmt wants it: one line, bounded.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        if quoted.len() > MAX_LINE - 200 {
            quoted.push_str("...");
            break;
        }
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            c if c.is_control() => quoted.push('.'),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Formats a point in time as RFC 3339 in UTC with milliseconds.
fn rfc3339(time: SystemTime) -> String {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let secs = since_epoch.as_secs();
    let (hour, minute, second) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    let (year, month, day) = civil_date(secs / 86_400);
    let millis = since_epoch.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Year, month and day of a day counted from 1970-01-01 (Gregorian calendar,
/// reckoned in 400-year eras that begin on 1 March of year 0).
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn time_is_rfc3339() {
        let at = |secs: u64| rfc3339(UNIX_EPOCH + Duration::from_millis(secs * 1000 + 7));
        assert_eq!(at(0), "1970-01-01T00:00:00.007Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.007Z");
        assert_eq!(at(1_795_243_077), "2026-11-21T06:37:57.007Z");
    }

    #[test]
    fn a_message_stays_one_bounded_line() {
        assert_eq!(
            quote("say \"hi\"\nback\\slash\x1b"),
            r#""say \"hi\"\nback\\slash.""#
        );
        assert!(quote(&"x".repeat(10_000)).len() < MAX_LINE);
    }
}
