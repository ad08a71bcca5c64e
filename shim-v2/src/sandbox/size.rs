//! How big the VM is: from the container's own limits, per dimension.

use crate::config::Config;
use crate::container::oci::Resources;

/// What the guest's kernel and agent need on top of the workload's limit, in MiB:
/// 30.4 were measured with 64 MiB of RAM, 32.3 with 232 MiB.
const GUEST_OVERHEAD_MIB: u64 = 32;
/// The part of RAM the guest's kernel needs to describe it: 64 bytes for each page of
/// 4 KiB (`struct page`).
const PAGES_SHARE: u64 = 64;
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
        let total = meminfo
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        Self {
            cpus,
            memory_mib: kib.map_or(u64::MAX, |kib| kib / 1024),
        }
    }
}

/// The size for a container with these limits. What is too small or too large is
/// corrected with a warning; a limit never keeps a container from starting.
pub fn size(resources: &Resources, config: &Config, host: Host) -> Size {
    let memory_mib = match resources.memory_limit() {
        Some(bytes) => with_overhead(bytes.div_ceil(BYTES_PER_MIB)),
        None => u64::from(config.default_memory_mib),
    };
    let vcpus = match resources.cpu_limit() {
        Some((quota, period)) => quota.div_ceil(period),
        None => u64::from(config.default_vcpus),
    };
    Size {
        vcpus: within("vCPUs", vcpus, 1, u64::from(host.cpus)),
        memory_mib: within("MiB of RAM", memory_mib, SMALLEST_MIB, host.memory_mib),
    }
}

/// The RAM in which a workload can have `limit_mib` for itself.
fn with_overhead(limit_mib: u64) -> u64 {
    limit_mib + limit_mib.div_ceil(PAGES_SHARE) + GUEST_OVERHEAD_MIB
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
    use serde_json::{Value, json};

    const HOST: Host = Host {
        cpus: 4,
        memory_mib: 8192,
    };

    fn sized(resources: Value) -> (u32, u32) {
        let resources: Resources = serde_json::from_value(resources).unwrap();
        let size = size(&resources, &Config::default(), HOST);
        (size.vcpus, size.memory_mib)
    }

    #[test]
    fn each_dimension_follows_its_own_limit() {
        let mib = |n: u64| n << 20;
        let cases = [
            (json!({}), (1, 64)),
            (json!({ "memory": { "limit": mib(128) } }), (1, 162)),
            (json!({ "memory": { "limit": mib(128) + 1 } }), (1, 164)),
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
    fn the_host_is_known() {
        let host = Host::read();
        assert!(host.cpus >= 1 && host.memory_mib > 0 && host.memory_mib < u64::MAX);
    }
}
