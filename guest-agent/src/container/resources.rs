//! `linux.resources` as what to write into which file of a cgroup v2.

use crate::oci::{Cpu, Memory, Resources, SpecError};

/// Length of a CPU period when only a quota is given, in microseconds (the kernel's default).
const DEFAULT_PERIOD_US: u64 = 100_000;

/// One file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Name within the cgroup's directory.
    pub file: String,
    /// What to write.
    pub value: String,
    /// Whether a kernel without this file already does what was asked.
    pub may_be_absent: bool,
}

impl Setting {
    fn new(file: &str, value: impl ToString) -> Self {
        Self {
            file: file.into(),
            value: value.to_string(),
            may_be_absent: false,
        }
    }

    fn optional(self) -> Self {
        Self {
            may_be_absent: true,
            ..self
        }
    }
}

/// Every setting `resources` asks for, in the order to be written.
pub fn settings(resources: &Resources) -> Result<Vec<Setting>, SpecError> {
    let mut settings = Vec::new();
    memory(&resources.memory, &mut settings)?;
    cpu(&resources.cpu, &mut settings);
    // 0 is Go's "not set".
    if let Some(limit) = resources.pids.limit.filter(|limit| *limit != 0) {
        settings.push(Setting::new("pids.max", or_max(limit)));
    }
    for page in &resources.hugepage_limits {
        plain_file_name("linux.resources.hugepageLimits", &page.page_size)?;
        let setting = Setting::new(&format!("hugetlb.{}.max", page.page_size), page.limit);
        // Callers limit every page size of the host to 0; the guest may not have it.
        settings.push(if page.limit == 0 {
            setting.optional()
        } else {
            setting
        });
    }
    for (file, value) in &resources.unified {
        plain_file_name("linux.resources.unified", file)?;
        settings.push(Setting::new(file, value));
    }
    Ok(settings)
}

fn memory(memory: &Memory, settings: &mut Vec<Setting>) -> Result<(), SpecError> {
    let limit = memory.limit.filter(|limit| *limit != 0);
    if let Some(limit) = limit {
        settings.push(Setting::new("memory.max", or_max(limit)));
    }
    if let Some(low) = memory.reservation.filter(|low| *low != 0) {
        settings.push(Setting::new("memory.low", or_max(low)));
    }
    // The spec counts memory and swap together, cgroup v2 swap alone. A guest
    // without swap has no such file and needs none.
    match (memory.swap.filter(|swap| *swap != 0), limit) {
        (None, _) => {}
        (Some(swap), _) if swap < 0 => {
            settings.push(Setting::new("memory.swap.max", "max").optional());
        }
        (Some(swap), Some(limit)) if limit > 0 && swap >= limit => {
            settings.push(Setting::new("memory.swap.max", swap - limit).optional());
        }
        (Some(swap), _) => {
            return Err(SpecError::Value {
                field: "linux.resources.memory.swap".into(),
                value: swap.to_string(),
                must: "-1, or at least linux.resources.memory.limit",
            });
        }
    }
    Ok(())
}

fn cpu(cpu: &Cpu, settings: &mut Vec<Setting>) {
    if let Some(idle) = cpu.idle {
        settings.push(Setting::new("cpu.idle", idle));
    }
    // A weight cannot be written to an idle group.
    if let Some(shares) = cpu
        .shares
        .filter(|shares| *shares != 0 && cpu.idle != Some(1))
    {
        settings.push(Setting::new("cpu.weight", weight(shares)));
    }
    let quota = cpu.quota.filter(|quota| *quota != 0);
    let period = cpu.period.filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let period = period.unwrap_or(DEFAULT_PERIOD_US);
        let quota = or_max(quota.unwrap_or(-1));
        settings.push(Setting::new("cpu.max", format!("{quota} {period}")));
    }
    if let Some(burst) = cpu.burst {
        settings.push(Setting::new("cpu.max.burst", burst));
    }
    if !cpu.cpus.is_empty() {
        settings.push(Setting::new("cpuset.cpus", &cpu.cpus));
    }
    if !cpu.mems.is_empty() {
        settings.push(Setting::new("cpuset.mems", &cpu.mems));
    }
}

/// cgroup v1 CPU shares (2 to 262144) on the scale of `cpu.weight` (1 to 10000): the
/// linear conversion of runc and of the Kubernetes enhancement proposal 2254.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9_999 / 262_142
}

fn or_max(value: i64) -> String {
    if value < 0 {
        "max".into()
    } else {
        value.to_string()
    }
}

fn plain_file_name(field: &str, name: &str) -> Result<(), SpecError> {
    let plain = !name.is_empty() && !name.contains('/') && !name.starts_with("cgroup.");
    if plain {
        return Ok(());
    }
    Err(SpecError::Value {
        field: field.into(),
        value: name.into(),
        must: "the name of a controller's file",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(json: serde_json::Value) -> Vec<(String, String)> {
        let resources = serde_json::from_value(json).unwrap();
        let settings = settings(&resources).unwrap();
        settings
            .into_iter()
            .map(|setting| (setting.file, setting.value))
            .collect()
    }

    fn one(json: serde_json::Value, file: &str) -> Option<String> {
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
        let json = serde_json::json!({
            "memory": { "limit": 0, "swap": 0 }, "cpu": { "shares": 0, "quota": 0 }, "pids": { "limit": 0 },
        });
        assert_eq!(written(json), []);
    }

    #[test]
    fn memory_and_swap() {
        let json =
            serde_json::json!({ "memory": { "limit": 100, "swap": 150, "reservation": 50 } });
        assert_eq!(one(json.clone(), "memory.max").as_deref(), Some("100"));
        assert_eq!(one(json.clone(), "memory.swap.max").as_deref(), Some("50"));
        assert_eq!(one(json, "memory.low").as_deref(), Some("50"));
        let json = serde_json::json!({ "memory": { "limit": -1, "swap": -1 } });
        assert_eq!(one(json.clone(), "memory.max").as_deref(), Some("max"));
        assert_eq!(one(json, "memory.swap.max").as_deref(), Some("max"));
        let json = serde_json::json!({ "memory": { "limit": 100, "swap": 50 } });
        assert!(settings(&serde_json::from_value(json).unwrap()).is_err());
    }

    #[test]
    fn quota_and_period_share_a_file() {
        let quota = |json| one(serde_json::json!({ "cpu": json }), "cpu.max");
        assert_eq!(
            quota(serde_json::json!({ "quota": 5000, "period": 10000 })).as_deref(),
            Some("5000 10000")
        );
        assert_eq!(
            quota(serde_json::json!({ "quota": 5000 })).as_deref(),
            Some("5000 100000")
        );
        assert_eq!(
            quota(serde_json::json!({ "quota": -1 })).as_deref(),
            Some("max 100000")
        );
        assert_eq!(
            quota(serde_json::json!({ "period": 20000 })).as_deref(),
            Some("max 20000")
        );
    }

    #[test]
    fn a_limit_of_no_huge_pages_needs_no_huge_pages() {
        let json = serde_json::json!({ "hugepageLimits": [
            { "pageSize": "2MB", "limit": 0 }, { "pageSize": "1GB", "limit": 1 << 30 },
        ] });
        let settings = settings(&serde_json::from_value(json).unwrap()).unwrap();
        assert_eq!(settings[0].file, "hugetlb.2MB.max");
        assert!(settings[0].may_be_absent && !settings[1].may_be_absent);
    }

    #[test]
    fn unified_files_cannot_leave_the_cgroup() {
        for file in ["../pids.max", "", "cgroup.procs", "a/b"] {
            let json = serde_json::json!({ "unified": { file: "1" } });
            assert!(
                settings(&serde_json::from_value(json).unwrap()).is_err(),
                "{file:?} was accepted"
            );
        }
        let json = serde_json::json!({ "unified": { "memory.high": "5" } });
        assert_eq!(written(json), [("memory.high".into(), "5".into())]);
    }
}
