//! Making use of CPUs and memory that the VMM has added to the running machine, and doing
//! without CPUs again.

use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

use agent_protocol::agent::{ResizeRequest, ResizeResponse};
use nix::errno::Errno;
use tokio::time::{Instant, sleep};

use crate::console;
use crate::error::Error;

/// How long memory that was plugged may take to be online. The driver adds it block by
/// block, and the last one was plugged before this was asked.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often it is looked for: the kernel tells nobody who does not listen for uevents.
const PERIOD: Duration = Duration::from_millis(5);

/// Memory for each thread that the kernel allows by itself, in KiB: eight times its stack
/// (`set_max_threads` of its kernel/fork.c).
const KIB_PER_THREAD: u64 = 8 * 16;
/// Memory for each open file, likewise (`files_maxfiles_init` of its fs/file_table.c).
const KIB_PER_FILE: u64 = 10;

/// Brings CPUs online or takes them offline, none if 0 are asked for, and waits for memory;
/// tells what there is then.
pub async fn resize(request: ResizeRequest) -> Result<ResizeResponse, Error> {
    let mut online = numbers(&read("/sys/devices/system/cpu/online")?);
    if request.cpus > 0 {
        bring_online(&mut online, request.cpus);
        take_offline(&mut online, request.cpus);
    }
    let cpus = online.len() as u32;
    let end = Instant::now() + DEADLINE;
    let mut memory_kib = memory()?;
    while memory_kib < request.memory_kib && Instant::now() < end {
        sleep(PERIOD).await;
        memory_kib = memory()?;
    }
    if request.memory_kib > 0 {
        raise_limits(memory_kib);
    }
    Ok(ResizeResponse {
        cpus,
        memory_kib,
        ..Default::default()
    })
}

/// Brings CPUs online until `wanted` are, as far as there are that many.
fn bring_online(online: &mut Vec<u32>, wanted: u32) {
    let mut next = 1;
    while online.len() < wanted as usize {
        if !online.contains(&next) {
            match fs::write(switch(next), "1") {
                Ok(()) => online.push(next),
                // The last one there is.
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => console::warn(format_args!("CPU {next}: {error}")),
            }
        }
        next += 1;
    }
}

/// Takes CPUs offline until `wanted` are left, the last first; the first stays.
fn take_offline(online: &mut Vec<u32>, wanted: u32) {
    online.sort_unstable();
    for at in (1..online.len()).rev() {
        if online.len() <= wanted as usize {
            break;
        }
        match fs::write(switch(online[at]), "0") {
            Ok(()) => drop(online.remove(at)),
            Err(error) => console::warn(format_args!("CPU {}: {error}", online[at])),
        }
    }
}

fn switch(cpu: u32) -> PathBuf {
    PathBuf::from(format!("/sys/devices/system/cpu/cpu{cpu}/online"))
}

/// The numbers a list such as `0-2,5` names.
fn numbers(list: &str) -> Vec<u32> {
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        Some(first..=last)
    });
    ranges.flatten().collect()
}

/// MemTotal in KiB.
fn memory() -> Result<u64, Error> {
    let text = read("/proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let number = total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok());
    number.ok_or(Error::System {
        what: "reading MemTotal",
        errno: Errno::EIO,
    })
}

/// What the kernel derived from the memory it booted with.
fn raise_limits(memory_kib: u64) {
    for (file, limit) in [
        ("/proc/sys/kernel/threads-max", memory_kib / KIB_PER_THREAD),
        ("/proc/sys/fs/file-max", memory_kib / KIB_PER_FILE),
    ] {
        let now = fs::read_to_string(file).ok();
        let now: u64 = now.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        if limit > now
            && let Err(error) = fs::write(file, limit.to_string())
        {
            console::warn(format_args!("{file}: {error}"));
        }
    }
}

fn read(path: &'static str) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|error| Error::System {
        what: path,
        errno: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read() {
        for (list, expected) in [
            ("0\n", &[0][..]),
            ("0-3\n", &[0, 1, 2, 3]),
            ("0-1,4,6-7", &[0, 1, 4, 6, 7]),
            ("", &[]),
            ("3-1", &[]),
        ] {
            assert_eq!(numbers(list), expected, "{list:?}");
        }
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(memory().unwrap() > 1024);
    }
}
