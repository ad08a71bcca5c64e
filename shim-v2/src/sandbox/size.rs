//! How big the VM is: from the sandbox's limits, per dimension.
//!
//! A workload's limit comes from annotations or the spec; RAM is that and what the guest needs
//! for itself. A pod's cgroup limits everything together, guest and host side: RAM is what
//! that leaves, and never more, or the host would kill the machine before the guest runs out.

use husk_vmm::config::{MAX_MEMORY_MIB, MAX_VCPUS};

use crate::config::Config;
use crate::container::pod::Limits;

/// What the guest's kernel and agent need on top of the workload's limit, in MiB:
/// 30.4 were measured with 64 MiB of RAM, 32.3 with 232 MiB.
const GUEST_OVERHEAD_MIB: u64 = 32;
/// The part of RAM the guest's kernel needs to describe it: 64 bytes for each page of
/// 4 KiB (`struct page`).
const PAGES_SHARE: u64 = 64;
/// What the guest's kernel keeps for each CPU that it may ever have, in KiB: 278 to 304 were
/// measured.
const POSSIBLE_CPU_KIB: u64 = 300;
/// RAM at boot for each CPU that there may ever be, in MiB, so that those which never come
/// take no more than a 27th.
const MIB_PER_POSSIBLE_CPU: u64 = 8;
/// What shim and VMM need on the host besides the guest's RAM, in MiB: 5.4 were measured (PSS),
/// and each further thread, connection and export takes some.
const HOST_OVERHEAD_MIB: u64 = 12;
/// The part of RAM for which the host has page tables, its own and KVM's: 16 bytes for each
/// page of 4 KiB.
const HOST_TABLES_SHARE: u64 = 256;
/// The smallest guest that boots and runs a shell, in MiB.
const SMALLEST_MIB: u64 = 48;
const BYTES_PER_MIB: u64 = 1 << 20;

/// The size of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// RAM in MiB, kernel and agent included.
    pub memory_mib: u32,
}

/// The size a VM can grow to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceiling(pub Size);

impl Ceiling {
    /// For a VM booted with `boot`: all the host has, of CPUs what the guest has memory for.
    pub fn new(boot: Size, host: Host) -> Self {
        let memory = host.memory_mib.min(MAX_MEMORY_MIB.into());
        let memory = u32::try_from(memory).unwrap_or(MAX_MEMORY_MIB);
        let vcpus = possible_cpus(boot.memory_mib.into(), host);
        Self(Size {
            vcpus: u32::try_from(vcpus).unwrap_or(MAX_VCPUS).max(boot.vcpus),
            memory_mib: memory.max(boot.memory_mib),
        })
    }

    /// What of `wanted` can be had.
    pub fn clamp(self, wanted: Size) -> Size {
        Size {
            vcpus: wanted.vcpus.min(self.0.vcpus),
            memory_mib: wanted.memory_mib.min(self.0.memory_mib),
        }
    }
}

/// What the host has to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// CPUs online.
    pub cpus: u32,
    /// RAM in MiB.
    pub memory_mib: u64,
}

impl Host {
    /// Asks the kernel; what it does not tell counts as unlimited.
    pub fn read() -> Self {
        let cpus = std::thread::available_parallelism()
            .map_or(u32::MAX, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            cpus,
            memory_mib: kib(&meminfo, "MemTotal:").map_or(u64::MAX, |kib| kib / 1024),
        }
    }
}

/// The KiB that the line `name` of a file of proc(5) tells.
pub fn kib(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.trim().trim_end_matches(" kB").parse().ok()
}

/// The size for a sandbox with these limits of its workload, in a cgroup with those of `pod`.
/// What is too small or too large is corrected with a warning; a limit never keeps a container
/// from starting.
pub fn size(workload: Limits, pod: Limits, config: &Config, host: Host) -> Size {
    let mib = |bytes: u64| bytes.div_ceil(BYTES_PER_MIB);
    let wanted = workload.memory.map(mib);
    let wanted = wanted.map(|limit| with_overhead(limit, host));
    let fitting = pod.memory.map(mib).map(without_host_overhead);
    let memory_mib = match (wanted, fitting) {
        (Some(wanted), Some(fitting)) if wanted > fitting => {
            log::warn!(
                "VM size: {wanted} MiB of RAM do not fit into the pod's cgroup, {fitting} do: is its overhead declared in the RuntimeClass?"
            );
            fitting
        }
        (Some(mib), _) | (None, Some(mib)) => mib,
        (None, None) => u64::from(config.default_memory_mib),
    };
    let vcpus = match workload.cpu.or(pod.cpu) {
        Some((quota, period)) => quota.div_ceil(period),
        None => u64::from(config.default_vcpus),
    };
    Size {
        vcpus: within("vCPUs", vcpus, 1, host.cpus.min(MAX_VCPUS).into()),
        memory_mib: within(
            "MiB of RAM",
            memory_mib,
            SMALLEST_MIB,
            host.memory_mib.min(MAX_MEMORY_MIB.into()),
        ),
    }
}

/// The RAM of a VM that needs no more than `limit_mib` on the host, all in all.
fn without_host_overhead(limit_mib: u64) -> u64 {
    let rest = limit_mib.saturating_sub(HOST_OVERHEAD_MIB);
    rest - rest.div_ceil(HOST_TABLES_SHARE)
}

/// The RAM in which a workload can have `limit_mib` for itself.
fn with_overhead(limit_mib: u64, host: Host) -> u64 {
    let rest = limit_mib.saturating_add(limit_mib.div_ceil(PAGES_SHARE) + GUEST_OVERHEAD_MIB);
    let more_cpus = possible_cpus(rest, host).saturating_sub(1);
    rest.saturating_add((more_cpus * POSSIBLE_CPU_KIB).div_ceil(1024))
}

/// The CPUs that a guest booted with so much RAM may ever have.
fn possible_cpus(memory_mib: u64, host: Host) -> u64 {
    let most = u64::from(host.cpus.min(MAX_VCPUS));
    most.min(memory_mib / MIB_PER_POSSIBLE_CPU)
}

fn within(what: &str, wanted: u64, least: u64, most: u64) -> u32 {
    let given = wanted.min(most).max(least);
    if given != wanted {
        log::warn!("VM size: {wanted} {what} asked for, {given} given (limits: {least} to {most})");
    }
    u32::try_from(given).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::oci::Resources;
    use serde_json::{Value, json};

    const HOST: Host = Host {
        cpus: 4,
        memory_mib: 8192,
    };

    fn sized(resources: Value) -> (u32, u32) {
        let resources: Resources = serde_json::from_value(resources).unwrap();
        let limits = Limits {
            memory: resources.memory_limit(),
            cpu: resources.cpu_limit(),
        };
        let size = size(limits, Limits::default(), &Config::default(), HOST);
        (size.vcpus, size.memory_mib)
    }

    #[test]
    fn a_pods_cgroup_holds_everything_and_each_dimension_is_for_itself() {
        let memory = |mib: u64| Limits {
            memory: Some(mib << 20),
            cpu: None,
        };
        let cpu = |quota: u64| Limits {
            memory: None,
            cpu: Some((quota, 100_000)),
        };
        let both = |mib: u64, quota: u64| Limits {
            cpu: cpu(quota).cpu,
            ..memory(mib)
        };
        let none = Limits::default();
        let cases = [
            // Nothing but the pod's cgroup.
            (none, none, (1, 64)),
            (none, memory(128), (1, 115)),
            (none, memory(1024), (1, 1008)),
            (none, cpu(150_000), (2, 64)),
            (none, both(512, 400_000), (4, 498)),
            // The workload's limit goes first, as long as it fits.
            (memory(64), memory(128), (1, 98)),
            (memory(64), memory(64), (1, 51)),
            (cpu(100_000), cpu(300_000), (1, 64)),
            (cpu(300_000), memory(128), (3, 115)),
            (memory(128), cpu(200_000), (2, 163)),
            // Too small, too large.
            (none, memory(4), (1, 48)),
            (none, memory(7 << 20), (1, 8192)),
            (none, cpu(1), (1, 64)),
            (none, cpu(1_000_000_000), (4, 64)),
        ];
        for (workload, pod, expected) in cases {
            let size = size(workload, pod, &Config::default(), HOST);
            let got = (size.vcpus, size.memory_mib);
            assert_eq!(got, expected, "{workload:?} in {pod:?}");
        }
    }

    #[test]
    fn each_dimension_follows_its_own_limit() {
        let mib = |n: u64| n << 20;
        let cases = [
            (json!({}), (1, 64)),
            (json!({ "memory": { "limit": mib(128) } }), (1, 163)),
            (json!({ "memory": { "limit": mib(128) + 1 } }), (1, 165)),
            (
                json!({ "cpu": { "quota": 150_000, "period": 100_000 } }),
                (2, 64),
            ),
            (
                json!({ "cpu": { "quota": 10_000, "period": 100_000 } }),
                (1, 64),
            ),
            (
                json!({ "cpu": { "quota": -1 }, "memory": { "limit": 0 } }),
                (1, 64),
            ),
            // Too small is floored, too large is clamped to the host.
            (json!({ "memory": { "limit": 1 } }), (1, 48)),
            (json!({ "memory": { "limit": mib(1 << 20) } }), (1, 8192)),
            (json!({ "memory": { "limit": i64::MAX } }), (1, 8192)),
            (
                json!({ "cpu": { "quota": 6_400_000, "period": 100_000 } }),
                (4, 64),
            ),
        ];
        for (resources, expected) in cases {
            assert_eq!(sized(resources.clone()), expected, "{resources}");
        }
    }

    #[test]
    fn a_vm_can_grow_to_what_the_host_has_and_the_guest_can_describe() {
        let host = |cpus, memory_mib| Host { cpus, memory_mib };
        let boot = |vcpus, memory_mib| Size { vcpus, memory_mib };
        for (boot, host, expected) in [
            (boot(1, 64), HOST, (4, 8192)),
            (boot(1, 64), host(128, 1 << 30), (8, MAX_MEMORY_MIB)),
            (boot(12, 64), host(128, 8192), (12, 8192)),
            (boot(2, 1024), host(128, 8192), (128, 8192)),
            (boot(2, 8192), host(u32::MAX, 4096), (MAX_VCPUS, 8192)),
        ] {
            let Ceiling(most) = Ceiling::new(boot, host);
            assert_eq!(
                (most.vcpus, most.memory_mib),
                expected,
                "{boot:?} on {host:?}"
            );
            assert_eq!(Ceiling(most).clamp(boot), boot);
        }
        let wanted = boot(16, 10_000);
        let most = Ceiling(boot(8, 4096));
        assert_eq!(most.clamp(wanted), boot(8, 4096));
    }

    #[test]
    fn the_host_is_known() {
        let host = Host::read();
        assert!(host.cpus >= 1 && host.memory_mib > 0 && host.memory_mib < u64::MAX);
    }
}
