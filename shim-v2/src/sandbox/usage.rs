//! What a sandbox uses of the host, as the files of a cgroup of version 2.
//!
//! Its leaf below the pod's cgroup holds shim and VMM and has it all. Without one (no pod's
//! cgroup, or a host of version 1, whose files are others) the kernel's figures of the two
//! processes stand in.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::pod_cgroup::Leaf;
use super::size::kib;

/// Files of a cgroup that say what is used (the kernel's `admin-guide/cgroup-v2`).
const FILES: [&str; 9] = [
    "cpu.stat",
    "io.stat",
    "memory.current",
    "memory.events",
    "memory.max",
    "memory.peak",
    "memory.stat",
    "pids.current",
    "pids.max",
];
/// Times in /proc/pid/stat are hundredths of a second on every x86-64 kernel (`USER_HZ`).
const USEC_PER_TICK: u64 = 10_000;

/// The texts by their names.
pub fn files(leaves: &[Leaf], vmm: u32) -> HashMap<String, String> {
    let read = |leaf: &Leaf| -> HashMap<String, String> {
        let text = |file: &str| fs::read_to_string(leaf.path.join(file)).ok();
        let found = FILES.iter().filter_map(|file| Some((*file, text(file)?)));
        found.map(|(file, text)| (file.to_owned(), text)).collect()
    };
    let counted = leaves.iter().map(read);
    let counted = counted
        .into_iter()
        .find(|files| files.contains_key("memory.current"));
    counted.unwrap_or_else(|| of_processes(&[vmm, std::process::id()]))
}

fn of_processes(pids: &[u32]) -> HashMap<String, String> {
    let (mut user, mut system, mut memory) = (0, 0, 0);
    for pid in pids {
        let dir = Path::new("/proc").join(pid.to_string());
        let (u, s) = cpu_time(&fs::read_to_string(dir.join("stat")).unwrap_or_default());
        user += u;
        system += s;
        memory += resident(&fs::read_to_string(dir.join("status")).unwrap_or_default());
    }
    let usage = user + system;
    HashMap::from(
        [
            (
                "cpu.stat",
                format!("usage_usec {usage}\nuser_usec {user}\nsystem_usec {system}\n"),
            ),
            ("memory.current", memory.to_string()),
            ("memory.max", "max".to_owned()),
            ("pids.current", pids.len().to_string()),
            ("pids.max", "max".to_owned()),
        ]
        .map(|(file, text)| (file.to_owned(), text)),
    )
}

/// Microseconds in user and kernel mode: fields 14 and 15 of proc_pid_stat(5).
fn cpu_time(stat: &str) -> (u64, u64) {
    // The program's name in parentheses may itself hold blanks and parentheses.
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let mut ticks = after_name
        .split(' ')
        .skip(11)
        .map_while(|field| field.parse::<u64>().ok());
    let mut next = || ticks.next().unwrap_or(0).saturating_mul(USEC_PER_TICK);
    (next(), next())
}

/// Bytes of memory in use: `VmRSS` of proc_pid_status(5).
fn resident(status: &str) -> u64 {
    kib(status, "VmRSS:").unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_read_and_without_one_the_processes_are() {
        let dir = tempfile::tempdir().unwrap();
        let leaf = Leaf {
            path: dir.path().to_owned(),
            home: dir.path().to_owned(),
            root: dir.path().to_owned(),
        };
        let own = std::process::id();
        let without = files(std::slice::from_ref(&leaf), own);
        assert!(without["memory.current"].parse::<u64>().unwrap() > 0);
        assert!(without["cpu.stat"].starts_with("usage_usec "));
        fs::write(dir.path().join("memory.current"), "4096\n").unwrap();
        fs::write(dir.path().join("cpu.stat"), "usage_usec 7\n").unwrap();
        let with = files(&[leaf], own);
        assert_eq!(with["memory.current"], "4096\n");
        assert_eq!(with["cpu.stat"], "usage_usec 7\n");
        assert!(!with.contains_key("pids.current"));
    }

    #[test]
    fn the_kernels_lines_about_a_process_are_understood() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 12 34 0 0 20 0 1 0 99 0";
        assert_eq!(cpu_time(stat), (120_000, 340_000));
        assert_eq!(cpu_time(""), (0, 0));
        assert_eq!(resident("Name:\tx\nVmRSS:\t    2048 kB\n"), 2 << 20);
        assert_eq!(resident(""), 0);
    }
}
