//! (d) What an idle sandbox costs: the shim, the VMM without its guest's RAM, the
//! RAM the guest has touched, and what the guest itself uses.

use std::fs;

use husk_tests::Container;

use crate::Report;

/// RAM of a sandbox without limits, in KiB.
const RAM_KIB: u64 = 64 * 1024;

pub fn measure(report: &mut Report) {
    let task = Container::husk(&["sleep", "1000"]).detach();
    let meminfo = task.exec(&["cat", "/proc/meminfo"]).succeeded().text();
    let [total, available] = ["MemTotal:", "MemAvailable:"]
        .map(|key| field(&meminfo, key).expect("a line of every kernel's meminfo"));

    let shim = process_of(&["containerd-shim-rust-v2", task.id()]);
    let shim_pss = sum(&rollup(shim), "Pss:");
    let mappings =
        fs::read_to_string(format!("/proc/{}/smaps", task.pid())).expect("the VMM's mappings");
    let (ram, rest) = split_off_ram(&mappings);
    report.mib("shim_pss_mib", shim_pss * 1024, "shim, idle (Pss)");
    let what = "VMM, idle, without guest RAM (Pss)";
    report.mib("vmm_pss_without_ram_mib", sum(&rest, "Pss:") * 1024, what);
    report.mib(
        "guest_ram_touched_mib",
        sum(&ram, "Rss:") * 1024,
        "guest RAM backed by the host",
    );
    let used = "guest, MemTotal - MemAvailable";
    report.mib("guest_used_mib", (total - available) * 1024, used);
    let reserved = "guest kernel's image and tables";
    report.mib("guest_reserved_mib", (RAM_KIB - total) * 1024, reserved);
    task.destroy();
}

/// The process whose command line has all the words.
fn process_of(words: &[&str]) -> u32 {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let pid = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has_all = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        words.iter().all(|word| line.contains(word))
    };
    pid.into_iter()
        .find(has_all)
        .unwrap_or_else(|| panic!("no process of {words:?}"))
}

fn rollup(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process lives")
}

/// The guest's RAM is the one anonymous mapping of its size.
fn split_off_ram(smaps: &str) -> (String, String) {
    let mut ram = String::new();
    let mut rest = String::new();
    for mapping in mappings(smaps) {
        let part = if field(&mapping, "Size:") == Some(RAM_KIB) {
            &mut ram
        } else {
            &mut rest
        };
        part.push_str(&mapping);
    }
    assert!(!ram.is_empty(), "no mapping of {RAM_KIB} KiB in\n{smaps}");
    (ram, rest)
}

/// smaps as one text per mapping; only a mapping's first line has no `Key:`.
fn mappings(smaps: &str) -> Vec<String> {
    let mut mappings: Vec<String> = Vec::new();
    for line in smaps.lines() {
        let head = line
            .split_whitespace()
            .next()
            .is_some_and(|word| !word.ends_with(':'));
        if head || mappings.is_empty() {
            mappings.push(String::new());
        }
        if let Some(mapping) = mappings.last_mut() {
            mapping.push_str(line);
            mapping.push('\n');
        }
    }
    mappings
}

fn sum(text: &str, key: &str) -> u64 {
    text.lines().filter_map(|line| field(line, key)).sum()
}

/// The number after `key` on the first line that begins with it, in KiB.
fn field(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}
