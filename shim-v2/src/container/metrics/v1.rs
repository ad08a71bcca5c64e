//! The message for hosts of cgroup version 1: the guest's figures under the names of
//! that version. Figures are of the container as a whole, so each is its own total.
//!
//! Figures that version 2 does not count (sleeping tasks, queued requests) are left out.

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl,
    MemoryStat, Metrics, PidsStat, Throttle,
};

use super::cgroup::{Cgroup, Device, HugePages, Limit};
use super::network::Link;

/// "No limit" of version 1: the largest multiple of a page in a signed number.
const UNLIMITED: u64 = 0x7fff_ffff_ffff_f000;

/// The figures of a cgroup and its links.
pub fn metrics(cgroup: &Cgroup<'_>, links: &[Link]) -> Metrics {
    let events = cgroup.keyed("memory.events");
    let event = |key: &str| events.as_ref().map_or(0, |events| events.get(key));
    Metrics {
        hugetlb: cgroup.huge_pages().into_iter().map(huge_pages).collect(),
        pids: Some(PidsStat {
            current: cgroup.number("pids.current"),
            limit: cgroup.limit("pids.max").or(0),
            ..PidsStat::default()
        })
        .into(),
        cpu: Some(cpu(cgroup)).into(),
        memory: Some(memory(cgroup, event("max"))).into(),
        blkio: Some(blkio(&cgroup.devices())).into(),
        memory_oom_control: Some(MemoryOomControl {
            oom_kill: event("oom_kill"),
            ..MemoryOomControl::default()
        })
        .into(),
        network: links.iter().map(Into::into).collect(),
        ..Metrics::default()
    }
}

fn cpu(cgroup: &Cgroup<'_>) -> CPUStat {
    let Some(stat) = cgroup.keyed("cpu.stat") else {
        return CPUStat::default();
    };
    let nanoseconds = |key: &str| stat.get(key).saturating_mul(1000);
    CPUStat {
        usage: Some(CPUUsage {
            total: nanoseconds("usage_usec"),
            kernel: nanoseconds("system_usec"),
            user: nanoseconds("user_usec"),
            ..CPUUsage::default()
        })
        .into(),
        throttling: Some(Throttle {
            periods: stat.get("nr_periods"),
            throttled_periods: stat.get("nr_throttled"),
            throttled_time: nanoseconds("throttled_usec"),
            ..Throttle::default()
        })
        .into(),
        ..CPUStat::default()
    }
}

fn memory(cgroup: &Cgroup<'_>, failures: u64) -> MemoryStat {
    let mut memory = entries(cgroup, failures);
    let Some(stat) = cgroup.keyed("memory.stat") else {
        return memory;
    };
    let kernel = MemoryEntry {
        usage: stat.get("kernel"),
        limit: UNLIMITED,
        ..MemoryEntry::default()
    };
    let kernel_tcp = MemoryEntry {
        usage: stat.get("sock"),
        limit: UNLIMITED,
        ..MemoryEntry::default()
    };
    memory.kernel = Some(kernel).into();
    memory.kernel_tcp = Some(kernel_tcp).into();
    memory.cache = stat.get("file");
    memory.rss = stat.get("anon");
    memory.rss_huge = stat.get("anon_thp");
    memory.mapped_file = stat.get("file_mapped");
    memory.dirty = stat.get("file_dirty");
    memory.writeback = stat.get("file_writeback");
    memory.pg_fault = stat.get("pgfault");
    memory.pg_maj_fault = stat.get("pgmajfault");
    memory.inactive_anon = stat.get("inactive_anon");
    memory.active_anon = stat.get("active_anon");
    memory.inactive_file = stat.get("inactive_file");
    memory.active_file = stat.get("active_file");
    memory.unevictable = stat.get("unevictable");
    memory.total_cache = memory.cache;
    memory.total_rss = memory.rss;
    memory.total_rss_huge = memory.rss_huge;
    memory.total_mapped_file = memory.mapped_file;
    memory.total_dirty = memory.dirty;
    memory.total_writeback = memory.writeback;
    memory.total_pg_fault = memory.pg_fault;
    memory.total_pg_maj_fault = memory.pg_maj_fault;
    memory.total_inactive_anon = memory.inactive_anon;
    memory.total_active_anon = memory.active_anon;
    memory.total_inactive_file = memory.inactive_file;
    memory.total_active_file = memory.active_file;
    memory.total_unevictable = memory.unevictable;
    memory
}

/// What version 1 has files of its own for. Its `swap` is memory and swap together.
fn entries(cgroup: &Cgroup<'_>, failures: u64) -> MemoryStat {
    let (limit, swap_limit) = (cgroup.limit("memory.max"), cgroup.limit("memory.swap.max"));
    let usage = cgroup.number("memory.current");
    let peak = cgroup.number("memory.peak");
    let together = match (limit, swap_limit) {
        (Limit::To(memory), Limit::To(swap)) => memory.saturating_add(swap).min(UNLIMITED),
        _ => UNLIMITED,
    };
    let swap = MemoryEntry {
        limit: together,
        usage: usage.saturating_add(cgroup.number("memory.swap.current")),
        max: peak.saturating_add(cgroup.number("memory.swap.peak")),
        ..MemoryEntry::default()
    };
    let usage = MemoryEntry {
        limit: limit.or(UNLIMITED),
        usage,
        max: peak,
        failcnt: failures,
        ..MemoryEntry::default()
    };
    MemoryStat {
        hierarchical_memory_limit: usage.limit,
        hierarchical_swap_limit: swap.limit,
        usage: Some(usage).into(),
        swap: Some(swap).into(),
        ..MemoryStat::default()
    }
}

fn blkio(devices: &[Device]) -> BlkIOStat {
    let entries = |read: fn(&Device) -> u64, write: fn(&Device) -> u64| {
        let of = |device: &Device| {
            let entry = |op: &str, value| BlkIOEntry {
                op: op.to_owned(),
                major: device.major,
                minor: device.minor,
                value,
                ..BlkIOEntry::default()
            };
            let (read, write) = (read(device), write(device));
            [
                entry("Read", read),
                entry("Write", write),
                entry("Total", read.saturating_add(write)),
            ]
        };
        devices.iter().flat_map(of).collect()
    };
    BlkIOStat {
        io_service_bytes_recursive: entries(|d| d.rbytes, |d| d.wbytes),
        io_serviced_recursive: entries(|d| d.rios, |d| d.wios),
        ..BlkIOStat::default()
    }
}

fn huge_pages(pages: HugePages) -> HugetlbStat {
    HugetlbStat {
        usage: pages.current,
        failcnt: pages.failures,
        pagesize: pages.size,
        ..HugetlbStat::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::cgroup::tests::sample;
    use super::super::network::tests::{Told, sample as links};
    use super::*;

    #[test]
    fn every_figure_has_its_name_and_unit_of_version_1() {
        let files = sample();
        let metrics = metrics(&Cgroup::new(&files), &links());
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, 0));
        let usage = &metrics.cpu.usage;
        assert_eq!(
            (usage.total, usage.user, usage.kernel),
            (1_500_000, 1_000_000, 500_000)
        );
        let throttling = &metrics.cpu.throttling;
        assert_eq!((throttling.periods, throttling.throttled_periods), (10, 4));
        assert_eq!(throttling.throttled_time, 70_000);
        let memory = &metrics.memory;
        assert_eq!((memory.usage.usage, memory.usage.limit), (16384, 1_048_576));
        assert_eq!((memory.usage.max, memory.usage.failcnt), (32768, 5));
        assert_eq!((memory.swap.usage, memory.swap.limit), (16484, UNLIMITED));
        assert_eq!(
            (memory.rss, memory.total_rss, memory.cache),
            (4096, 4096, 8192)
        );
        assert_eq!((memory.inactive_file, memory.total_inactive_file), (19, 19));
        assert_eq!((memory.pg_fault, memory.total_pg_maj_fault), (26, 27));
        assert_eq!((memory.kernel.usage, memory.kernel_tcp.usage), (700, 11));
        assert_eq!(memory.hierarchical_memory_limit, 1_048_576);
        assert_eq!(metrics.memory_oom_control.oom_kill, 2);
        let bytes = &metrics.blkio.io_service_bytes_recursive;
        let sample: Vec<_> = bytes[..3]
            .iter()
            .map(|e| (e.op.as_str(), e.value))
            .collect();
        assert_eq!(sample, [("Read", 1), ("Write", 2), ("Total", 3)]);
        let numbers = [[1, 2, 3, 4], [5, 6, 7, 8]];
        assert_eq!(metrics.network[0].told(), ("eth0", numbers));
        assert_eq!(metrics.hugetlb[0].usage, 2_097_152);
    }
}
