//! Pinning: the vCPUs run on those CPUs of the host that the containers' `cpuset`s name
//! (`linux.resources.cpu.cpus`; Kubernetes' static CPU manager writes it).
//!
//! The guest numbers CPUs of its own and never sees the lists. A VM is one for all of its
//! containers, so what they name counts together, and nothing is pinned while one of them
//! may run anywhere.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Understands a list of CPUs such as `0-3,7` (cpuset(7), "List format"); `None` if it is
/// none, or names a CPU that no `cpu_set_t` has.
pub fn parse(list: &str) -> Option<CpuSet> {
    let mut cpus = CpuSet::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= CpuSet::count() {
            return None;
        }
        (first..=last).try_for_each(|cpu| cpus.set(cpu)).ok()?;
    }
    Some(cpus)
}

/// Both together.
pub fn union(one: &CpuSet, other: &CpuSet) -> CpuSet {
    let mut both = *one;
    for cpu in numbers(other) {
        // It is in range, as it is a number of a set.
        both.set(cpu).ok();
    }
    both
}

/// The numbers of its CPUs, ascending.
pub fn numbers(cpus: &CpuSet) -> Vec<usize> {
    let all = 0..CpuSet::count();
    all.filter(|cpu| cpus.is_set(*cpu).unwrap_or(false))
        .collect()
}

/// Has the vCPUs of the VMM with this pid run on `cpus`, each on one of its own if there are as
/// many, or anywhere its cgroup allows.
///
/// # Errors
/// What sched_setaffinity(2) gave: EINVAL if none of them is there, or the cgroup's.
pub fn pin(vmm: i32, cpus: Option<&CpuSet>) -> io::Result<()> {
    let threads = match vcpu_threads(vmm) {
        // The VM has ended.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        threads => threads?,
    };
    for (thread, cpus) in threads.iter().zip(shares(cpus, threads.len())) {
        match sched_setaffinity(Pid::from_raw(*thread), &cpus) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Each vCPU's CPUs.
fn shares(cpus: Option<&CpuSet>, vcpus: usize) -> Vec<CpuSet> {
    let numbers = cpus.map_or_else(|| (0..CpuSet::count()).collect(), numbers);
    let set = |numbers: &[usize]| {
        let mut cpus = CpuSet::new();
        for cpu in numbers {
            cpus.set(*cpu).ok();
        }
        cpus
    };
    if numbers.len() == vcpus {
        numbers.chunks(1).map(set).collect()
    } else {
        vec![set(&numbers); vcpus]
    }
}

/// The threads of a VMM that run its vCPUs, by the numbers in their names.
fn vcpu_threads(vmm: i32) -> io::Result<Vec<i32>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{vmm}/task"))? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let vcpu = name.trim().strip_prefix("vcpu").map(str::parse::<u32>);
        let thread = entry.file_name().to_string_lossy().parse();
        if let (Some(Ok(vcpu)), Ok(thread)) = (vcpu, thread) {
            threads.push((vcpu, thread));
        }
    }
    threads.sort_unstable();
    Ok(threads.into_iter().map(|(_, thread)| thread).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_numbers_and_ranges() {
        let parsed = |list| parse(list).as_ref().map(numbers);
        assert_eq!(parsed("3"), Some(vec![3]));
        assert_eq!(parsed("0-2,7,5-5\n"), Some(vec![0, 1, 2, 5, 7]));
        for list in [
            "",
            "x",
            "3-1",
            "-1",
            "1,",
            "0-",
            "0-1-2",
            "1024",
            "99999999999",
        ] {
            assert_eq!(parsed(list), None, "{list}");
        }
        let both = union(&parse("0-1").unwrap(), &parse("1,4").unwrap());
        assert_eq!(numbers(&both), [0, 1, 4]);
    }

    #[test]
    fn vcpus_have_one_cpu_each_if_there_are_as_many() {
        let cpus = parse("2,5").unwrap();
        let of = |vcpus| -> Vec<_> { shares(Some(&cpus), vcpus).iter().map(numbers).collect() };
        assert_eq!(of(1), [[2, 5]]);
        assert_eq!(of(2), [[2], [5]]);
        assert_eq!(of(3), [[2, 5], [2, 5], [2, 5]]);
        assert_eq!(of(0).len(), 0);
        let anywhere = shares(None, 2);
        assert_eq!(numbers(&anywhere[1]).len(), CpuSet::count());
    }

    #[test]
    fn a_vmm_that_is_gone_has_nothing_to_pin() {
        assert!(pin(i32::MAX, None).is_ok());
        assert!(vcpu_threads(i32::MAX).is_err());
    }
}
