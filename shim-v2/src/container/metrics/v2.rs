//! The message for hosts of cgroup version 2: the kernel's own names.

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats,
    PidsStat,
};
use protobuf::MessageField;

use super::cgroup::{Cgroup, Limit, Pressure};
use super::network::Link;

/// The figures of a cgroup and its links.
pub fn metrics(cgroup: &Cgroup<'_>, links: &[Link]) -> Metrics {
    Metrics {
        pids: Some(PidsStat {
            current: cgroup.number("pids.current"),
            limit: unlimited(cgroup.limit("pids.max")),
            ..PidsStat::default()
        })
        .into(),
        cpu: Some(cpu(cgroup)).into(),
        memory: Some(memory(cgroup)).into(),
        io: Some(io(cgroup)).into(),
        hugetlb: huge_pages(cgroup),
        memory_events: memory_events(cgroup).into(),
        network: links.iter().map(Into::into).collect(),
        ..Metrics::default()
    }
}

/// containerd writes "no limit" as the largest number.
fn unlimited(limit: Limit) -> u64 {
    limit.or(u64::MAX)
}

fn cpu(cgroup: &Cgroup<'_>) -> CPUStat {
    let psi = pressure(cgroup, "cpu.pressure");
    let Some(stat) = cgroup.keyed("cpu.stat") else {
        return CPUStat {
            psi,
            ..CPUStat::default()
        };
    };
    CPUStat {
        usage_usec: stat.get("usage_usec"),
        user_usec: stat.get("user_usec"),
        system_usec: stat.get("system_usec"),
        nr_periods: stat.get("nr_periods"),
        nr_throttled: stat.get("nr_throttled"),
        throttled_usec: stat.get("throttled_usec"),
        nr_bursts: stat.get("nr_bursts"),
        burst_usec: stat.get("burst_usec"),
        psi,
        ..CPUStat::default()
    }
}

fn memory(cgroup: &Cgroup<'_>) -> MemoryStat {
    let mut memory = MemoryStat {
        usage: cgroup.number("memory.current"),
        usage_limit: unlimited(cgroup.limit("memory.max")),
        max_usage: cgroup.number("memory.peak"),
        swap_usage: cgroup.number("memory.swap.current"),
        swap_limit: unlimited(cgroup.limit("memory.swap.max")),
        swap_max_usage: cgroup.number("memory.swap.peak"),
        psi: pressure(cgroup, "memory.pressure"),
        ..MemoryStat::default()
    };
    let Some(stat) = cgroup.keyed("memory.stat") else {
        return memory;
    };
    memory.anon = stat.get("anon");
    memory.file = stat.get("file");
    memory.kernel_stack = stat.get("kernel_stack");
    memory.slab = stat.get("slab");
    memory.sock = stat.get("sock");
    memory.shmem = stat.get("shmem");
    memory.file_mapped = stat.get("file_mapped");
    memory.file_dirty = stat.get("file_dirty");
    memory.file_writeback = stat.get("file_writeback");
    memory.anon_thp = stat.get("anon_thp");
    memory.inactive_anon = stat.get("inactive_anon");
    memory.active_anon = stat.get("active_anon");
    memory.inactive_file = stat.get("inactive_file");
    memory.active_file = stat.get("active_file");
    memory.unevictable = stat.get("unevictable");
    memory.slab_reclaimable = stat.get("slab_reclaimable");
    memory.slab_unreclaimable = stat.get("slab_unreclaimable");
    memory.pgfault = stat.get("pgfault");
    memory.pgmajfault = stat.get("pgmajfault");
    // Linux 5.9 split two counters by the kind of page.
    let both = |key: &str| {
        stat.get(&format!("{key}_anon"))
            .saturating_add(stat.get(&format!("{key}_file")))
    };
    memory.workingset_refault = both("workingset_refault");
    memory.workingset_activate = both("workingset_activate");
    memory.workingset_nodereclaim = stat.get("workingset_nodereclaim");
    memory.pgrefill = stat.get("pgrefill");
    memory.pgscan = stat.get("pgscan");
    memory.pgsteal = stat.get("pgsteal");
    memory.pgactivate = stat.get("pgactivate");
    memory.pgdeactivate = stat.get("pgdeactivate");
    memory.pglazyfree = stat.get("pglazyfree");
    memory.pglazyfreed = stat.get("pglazyfreed");
    memory.thp_fault_alloc = stat.get("thp_fault_alloc");
    memory.thp_collapse_alloc = stat.get("thp_collapse_alloc");
    memory
}

fn memory_events(cgroup: &Cgroup<'_>) -> Option<MemoryEvents> {
    let events = cgroup.keyed("memory.events")?;
    Some(MemoryEvents {
        low: events.get("low"),
        high: events.get("high"),
        max: events.get("max"),
        oom: events.get("oom"),
        oom_kill: events.get("oom_kill"),
        oom_group_kill: events.get("oom_group_kill"),
        ..MemoryEvents::default()
    })
}

fn io(cgroup: &Cgroup<'_>) -> IOStat {
    let entry = |device: super::cgroup::Device| IOEntry {
        major: device.major,
        minor: device.minor,
        rbytes: device.rbytes,
        wbytes: device.wbytes,
        rios: device.rios,
        wios: device.wios,
        ..IOEntry::default()
    };
    IOStat {
        usage: cgroup.devices().into_iter().map(entry).collect(),
        psi: pressure(cgroup, "io.pressure"),
        ..IOStat::default()
    }
}

fn huge_pages(cgroup: &Cgroup<'_>) -> Vec<HugeTlbStat> {
    let stat = |pages: super::cgroup::HugePages| HugeTlbStat {
        current: pages.current,
        max: unlimited(pages.max),
        pagesize: pages.size,
        failcnt: pages.failures,
        ..HugeTlbStat::default()
    };
    cgroup.huge_pages().into_iter().map(stat).collect()
}

fn pressure(cgroup: &Cgroup<'_>, file: &str) -> MessageField<PSIStats> {
    let data = |pressure: Pressure| PSIData {
        avg10: pressure.avg10,
        avg60: pressure.avg60,
        avg300: pressure.avg300,
        total: pressure.total,
        ..PSIData::default()
    };
    let stats = cgroup.pressure(file).map(|(some, full)| PSIStats {
        some: Some(data(some)).into(),
        full: Some(data(full)).into(),
        ..PSIStats::default()
    });
    stats.into()
}

#[cfg(test)]
mod tests {
    use super::super::cgroup::tests::sample;
    use super::super::network::tests::{Told, sample as links};
    use super::*;

    #[test]
    fn every_figure_is_where_containerd_looks_for_it() {
        let files = sample();
        let metrics = metrics(&Cgroup::new(&files), &links());
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, u64::MAX));
        let cpu = &metrics.cpu;
        assert_eq!(
            (cpu.usage_usec, cpu.user_usec, cpu.system_usec),
            (1500, 1000, 500)
        );
        assert_eq!(
            (cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec),
            (10, 4, 70)
        );
        assert_eq!((cpu.nr_bursts, cpu.burst_usec), (2, 9));
        assert_eq!((cpu.psi.some.avg10, cpu.psi.some.total), (1.5, 42));
        assert_eq!(cpu.psi.full.total, 7);
        let memory = &metrics.memory;
        assert_eq!((memory.usage, memory.usage_limit), (16384, 1_048_576));
        assert_eq!(
            (memory.max_usage, memory.anon, memory.file),
            (32768, 4096, 8192)
        );
        assert_eq!((memory.swap_usage, memory.swap_limit), (100, u64::MAX));
        assert_eq!((memory.inactive_file, memory.active_file), (19, 20));
        assert_eq!((memory.pgfault, memory.pgmajfault), (26, 27));
        assert_eq!((memory.slab, memory.workingset_refault), (45, 49));
        assert!(memory.psi.is_none());
        let events = &metrics.memory_events;
        assert_eq!((events.max, events.oom, events.oom_kill), (5, 3, 2));
        assert_eq!(metrics.io.usage.len(), 2);
        assert_eq!(metrics.io.usage[0].wbytes, 2);
        assert_eq!(metrics.hugetlb[0].current, 2_097_152);
        assert_eq!(metrics.hugetlb[0].failcnt, 6);
        let numbers = [[1, 2, 3, 4], [5, 6, 7, 8]];
        assert_eq!(metrics.network[0].told(), ("eth0", numbers));
    }
}
