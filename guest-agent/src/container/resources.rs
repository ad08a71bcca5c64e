//! `linux.resources` as what to write into which file of a cgroup v2.

use super::device_filter::DeviceFilter;
use crate::oci::{BlockIo, Cpu, Linux, Memory, Resources, SpecError};

/// `cpu.max` of a new cgroup: quota and period.
const NEW_CPU_MAX: &str = "max 100000";

/// Everything that limits one container.
#[derive(Debug)]
pub struct Limits {
    /// In the order to be written.
    pub settings: Vec<Setting>,
    /// Which devices may be used.
    pub devices: DeviceFilter,
}

impl Limits {
    /// Checks the resources of a container to be made.
    pub fn plan(linux: &Linux) -> Result<Self, SpecError> {
        Ok(Self {
            settings: settings(&linux.resources, NEW_CPU_MAX)?,
            devices: DeviceFilter::plan(&linux.resources.devices, &linux.devices)?,
        })
    }
}

/// One file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Dotted path of the field that asks for it.
    pub field: String,
    /// Name within the cgroup's directory.
    pub file: String,
    /// What to write.
    pub value: String,
    /// Whether a kernel without this file already does what was asked.
    pub may_be_absent: bool,
}

impl Setting {
    /// `field` is below `linux.resources`.
    fn new(field: &str, file: &str, value: impl ToString) -> Self {
        Self {
            field: name(field),
            file: file.into(),
            value: value.to_string(),
            may_be_absent: false,
        }
    }

    fn optional_if(self, may_be_absent: bool) -> Self {
        Self {
            may_be_absent,
            ..self
        }
    }
}

/// Every setting `resources` asks for but its device rules, in the order to be written.
/// Where only one half of `cpu.max` is asked for the other stays as in `cpu_max`.
pub fn settings(resources: &Resources, cpu_max: &str) -> Result<Vec<Setting>, SpecError> {
    let mut settings = Vec::new();
    // 0 is Go's "not set".
    if let Some(limit) = resources.pids.limit.filter(|limit| *limit != 0) {
        settings.push(Setting::new("pids.limit", "pids.max", or_max(limit)));
    }
    memory(&resources.memory, &mut settings)?;
    block_io(&resources.block_io, &mut settings)?;
    cpu(&resources.cpu, cpu_max, &mut settings);
    for page in &resources.hugepage_limits {
        let (field, size) = ("hugepageLimits", &page.page_size);
        plain_file_name(field, size)?;
        // Callers limit every page size of the host to 0; the guest may not have it.
        let limit = Setting::new(field, &format!("hugetlb.{size}.max"), page.limit);
        settings.push(limit.optional_if(page.limit == 0));
        let reserved = Setting::new(field, &format!("hugetlb.{size}.rsvd.max"), page.limit);
        settings.push(reserved.optional_if(true));
    }
    for (file, value) in &resources.unified {
        plain_file_name("unified", file)?;
        settings.push(Setting::new("unified", file, value));
    }
    Ok(settings)
}

fn memory(memory: &Memory, settings: &mut Vec<Setting>) -> Result<(), SpecError> {
    let limit = memory.limit.filter(|limit| *limit != 0);
    if let Some(swap) = swap(memory, limit)? {
        // A guest without swap has no such file and needs none.
        settings.push(Setting::new("memory.swap", "memory.swap.max", swap).optional_if(true));
    }
    if let Some(limit) = limit {
        settings.push(Setting::new("memory.limit", "memory.max", or_max(limit)));
    }
    if let Some(low) = memory.reservation.filter(|low| *low != 0) {
        settings.push(Setting::new(
            "memory.reservation",
            "memory.low",
            or_max(low),
        ));
    }
    Ok(())
}

/// The spec counts memory and swap together, cgroup v2 swap alone.
fn swap(memory: &Memory, limit: Option<i64>) -> Result<Option<String>, SpecError> {
    match (memory.swap.filter(|swap| *swap != 0), limit) {
        // As runc: who lifts the limit of memory means that of swap too.
        (None, Some(-1)) => Ok(Some("max".into())),
        (None, _) => Ok(None),
        (Some(-1), _) => Ok(Some("max".into())),
        (Some(swap), Some(limit)) if limit > 0 && swap >= limit => {
            Ok(Some((swap - limit).to_string()))
        }
        (Some(swap), _) => Err(SpecError::Value {
            field: name("memory.swap"),
            value: swap.to_string(),
            must: "-1, or at least linux.resources.memory.limit",
        }),
    }
}

fn block_io(block_io: &BlockIo, settings: &mut Vec<Setting>) -> Result<(), SpecError> {
    if let Some(weight) = block_io.weight.filter(|weight| *weight != 0) {
        if !(10..=1000).contains(&weight) {
            return Err(SpecError::Value {
                field: name("blockIO.weight"),
                value: weight.to_string(),
                must: "10 to 1000",
            });
        }
        let weight = io_weight(weight);
        settings.push(Setting::new("blockIO.weight", "io.weight", weight));
    }
    // The kernel refuses a device the guest does not have, and the error names it.
    for (field, key, throttles) in [
        (
            "throttleReadBpsDevice",
            "rbps",
            &block_io.throttle_read_bps_device,
        ),
        (
            "throttleWriteBpsDevice",
            "wbps",
            &block_io.throttle_write_bps_device,
        ),
        (
            "throttleReadIOPSDevice",
            "riops",
            &block_io.throttle_read_iops_device,
        ),
        (
            "throttleWriteIOPSDevice",
            "wiops",
            &block_io.throttle_write_iops_device,
        ),
    ] {
        for throttle in throttles {
            let (major, minor, rate) = (throttle.major, throttle.minor, throttle.rate);
            let value = format!("{major}:{minor} {key}={rate}");
            settings.push(Setting::new(&format!("blockIO.{field}"), "io.max", value));
        }
    }
    Ok(())
}

fn cpu(cpu: &Cpu, cpu_max: &str, settings: &mut Vec<Setting>) {
    if let Some(idle) = cpu.idle {
        settings.push(Setting::new("cpu.idle", "cpu.idle", idle));
    }
    // A weight cannot be written to an idle group.
    if let Some(shares) = cpu
        .shares
        .filter(|shares| *shares != 0 && cpu.idle != Some(1))
    {
        settings.push(Setting::new("cpu.shares", "cpu.weight", weight(shares)));
    }
    // Any negative quota means none.
    let quota = cpu.quota.filter(|quota| *quota != 0);
    let quota = quota.map(|quota| or_max(quota.max(-1)));
    let period = cpu.period.filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        if cpu.burst.is_some() {
            // Until the new quota holds, neither burst may exceed it.
            settings.push(Setting::new("cpu.burst", "cpu.max.burst", 0));
        }
        let field = match quota {
            Some(_) => "cpu.quota",
            None => "cpu.period",
        };
        let (old_quota, old_period) = cpu_max.trim().split_once(' ').unwrap_or(("max", "100000"));
        let quota = quota.unwrap_or_else(|| old_quota.into());
        let period = period.map_or_else(|| old_period.into(), |period| period.to_string());
        settings.push(Setting::new(field, "cpu.max", format!("{quota} {period}")));
    }
    if let Some(burst) = cpu.burst {
        settings.push(Setting::new("cpu.burst", "cpu.max.burst", burst));
    }
    if !cpu.cpus.is_empty() {
        settings.push(Setting::new("cpu.cpus", "cpuset.cpus", &cpu.cpus));
    }
    if !cpu.mems.is_empty() {
        settings.push(Setting::new("cpu.mems", "cpuset.mems", &cpu.mems));
    }
}

/// cgroup v1 CPU shares (2 to 262144) on the scale of `cpu.weight` (1 to 10000): the
/// linear conversion of runc 1.1 and of the Kubernetes enhancement proposal 2254.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9_999 / 262_142
}

/// cgroup v1 block I/O weight (10 to 1000) on the scale of `io.weight` (1 to 10000).
fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.saturating_sub(10)) * 9_999 / 990
}

/// -1 means no limit; what is below is left to the kernel to refuse.
fn or_max(value: i64) -> String {
    if value == -1 {
        "max".into()
    } else {
        value.to_string()
    }
}

fn name(field: &str) -> String {
    format!("linux.resources.{field}")
}

/// Files that act on processes or on the hierarchy instead of limiting anything.
const ACTIONS: [&str; 6] = [
    "cgroup.freeze",
    "cgroup.kill",
    "cgroup.procs",
    "cgroup.subtree_control",
    "cgroup.threads",
    "cgroup.type",
];

fn plain_file_name(field: &str, file: &str) -> Result<(), SpecError> {
    let plain = !file.is_empty() && !file.contains(['/', '\0']) && !ACTIONS.contains(&file);
    if plain && file != "." && file != ".." {
        return Ok(());
    }
    Err(SpecError::Value {
        field: name(field),
        value: file.into(),
        must: "the name of a controller's file",
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn plan(json: &Value) -> Result<Vec<Setting>, SpecError> {
        settings(&serde_json::from_value(json.clone()).unwrap(), NEW_CPU_MAX)
    }

    fn written(json: Value) -> Vec<(String, String)> {
        let settings = plan(&json).unwrap();
        settings
            .into_iter()
            .map(|setting| (setting.file, setting.value))
            .collect()
    }

    fn one(json: Value, file: &str) -> Option<String> {
        let found = written(json).into_iter().find(|(name, _)| name == file);
        found.map(|(_, value)| value)
    }

    #[test]
    fn shares_become_weights_as_in_runc() {
        for (shares, expected) in [
            (2, 1),
            (1024, 39),
            (512, 20),
            (262_144, 10_000),
            (1, 1),
            (300_000, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    #[test]
    fn zero_and_absent_values_ask_for_nothing() {
        let json = json!({
            "memory": { "limit": 0, "swap": 0, "swappiness": 0, "disableOOMKiller": true, "kernel": 7 },
            "cpu": { "shares": 0, "quota": 0, "realtimeRuntime": 9 },
            "pids": { "limit": 0 }, "blockIO": { "weight": 0, "leafWeight": 10 },
        });
        assert_eq!(written(json), []);
    }

    #[test]
    fn memory_and_swap() {
        let json = json!({ "memory": { "limit": 100, "swap": 150, "reservation": 50 } });
        assert_eq!(one(json.clone(), "memory.max").as_deref(), Some("100"));
        assert_eq!(one(json.clone(), "memory.swap.max").as_deref(), Some("50"));
        assert_eq!(one(json, "memory.low").as_deref(), Some("50"));
        for (memory, max, swap) in [
            (json!({ "limit": -1, "swap": -1 }), Some("max"), Some("max")),
            (json!({ "limit": 100, "swap": 100 }), Some("100"), Some("0")),
            (
                json!({ "limit": 100, "swap": -1 }),
                Some("100"),
                Some("max"),
            ),
            (json!({ "limit": 100 }), Some("100"), None),
            (json!({ "limit": -1 }), Some("max"), Some("max")),
            (json!({ "swap": -1 }), None, Some("max")),
        ] {
            let json = json!({ "memory": memory });
            assert_eq!(one(json.clone(), "memory.max").as_deref(), max, "{json}");
            assert_eq!(
                one(json.clone(), "memory.swap.max").as_deref(),
                swap,
                "{json}"
            );
        }
        for memory in [
            json!({ "limit": 100, "swap": 50 }),
            json!({ "swap": 50 }),
            json!({ "limit": -1, "swap": 50 }),
            json!({ "limit": 100, "swap": -2 }),
        ] {
            let error = plan(&json!({ "memory": memory })).unwrap_err().to_string();
            assert!(error.contains("linux.resources.memory.swap"), "{error}");
        }
    }

    #[test]
    fn quota_and_period_share_a_file() {
        for (cpu, expected) in [
            (json!({ "quota": 5000, "period": 10000 }), "5000 10000"),
            (json!({ "quota": 5000 }), "5000 100000"),
            (json!({ "quota": -1 }), "max 100000"),
            (json!({ "quota": -7 }), "max 100000"),
            (json!({ "period": 20000 }), "max 20000"),
        ] {
            let max = one(json!({ "cpu": cpu }), "cpu.max");
            assert_eq!(max.as_deref(), Some(expected), "{cpu}");
        }
    }

    #[test]
    fn an_update_keeps_the_half_that_it_does_not_name() {
        for (cpu, expected) in [
            (json!({ "quota": 7000 }), "7000 20000"),
            (json!({ "period": 40000 }), "5000 40000"),
            (json!({ "quota": -1 }), "max 20000"),
        ] {
            let resources = serde_json::from_value(json!({ "cpu": cpu })).unwrap();
            let settings = settings(&resources, "5000 20000\n").unwrap();
            assert_eq!(settings[0].value, expected, "{cpu}");
        }
    }

    #[test]
    fn a_burst_never_exceeds_the_quota_in_force() {
        let json = json!({ "cpu": { "quota": 5000, "burst": 3000 } });
        let files = ["cpu.max.burst", "cpu.max", "cpu.max.burst"];
        let values = ["0", "5000 100000", "3000"];
        let expected = files.into_iter().zip(values);
        assert!(
            written(json)
                .iter()
                .map(|(file, value)| (file.as_str(), value.as_str()))
                .eq(expected)
        );
    }

    #[test]
    fn block_io() {
        for (weight, expected) in [(10, "1"), (500, "4950"), (1000, "10000")] {
            let json = json!({ "blockIO": { "weight": weight } });
            assert_eq!(one(json, "io.weight").as_deref(), Some(expected));
        }
        for weight in [9, 1001] {
            assert!(plan(&json!({ "blockIO": { "weight": weight } })).is_err());
        }
        let json = json!({ "blockIO": { "throttleWriteIOPSDevice": [
            { "major": 8, "minor": 16, "rate": 100 },
        ] } });
        let settings = plan(&json).unwrap();
        assert_eq!(settings[0].value, "8:16 wiops=100");
        assert_eq!(
            settings[0].field,
            "linux.resources.blockIO.throttleWriteIOPSDevice"
        );
    }

    #[test]
    fn a_limit_of_no_huge_pages_needs_no_huge_pages() {
        let settings = plan(&json!({ "hugepageLimits": [
            { "pageSize": "2MB", "limit": 0 }, { "pageSize": "1GB", "limit": 1 << 30 },
        ] }))
        .unwrap();
        let optional: Vec<_> = settings
            .iter()
            .map(|setting| (setting.file.as_str(), setting.may_be_absent))
            .collect();
        assert_eq!(
            optional,
            [
                ("hugetlb.2MB.max", true),
                ("hugetlb.2MB.rsvd.max", true),
                ("hugetlb.1GB.max", false),
                ("hugetlb.1GB.rsvd.max", true),
            ]
        );
    }

    #[test]
    fn unified_files_cannot_leave_the_cgroup_or_act_on_processes() {
        for file in [
            "../pids.max",
            "",
            ".",
            "cgroup.procs",
            "cgroup.kill",
            "a/b",
            "a\0",
        ] {
            assert!(
                plan(&json!({ "unified": { file: "1" } })).is_err(),
                "{file:?} was accepted"
            );
        }
        let json = json!({ "unified": { "memory.high": "5", "cgroup.max.depth": "1" } });
        let expected = [("cgroup.max.depth", "1"), ("memory.high", "5")];
        let expected = expected.map(|(file, value)| (file.to_owned(), value.to_owned()));
        assert_eq!(written(json), expected);
    }
}
