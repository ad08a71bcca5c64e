//! How the kernel runs a process: CPU and I/O scheduling, and the machine it claims to be.

use nix::sys::personality::{self, Persona};

use super::setup_error::{Context, SetupError};
use crate::oci::scheduling::{IoPriority, Personality, Scheduler};
use crate::oci::{self, SpecError, require};
use crate::sys;

/// `PER_LINUX32` of linux/personality.h: a 32-bit machine by its name.
const PER_LINUX32: Persona = Persona::from_bits_retain(8);

/// The policies of linux/sched.h by their numbers; 4 is reserved.
const POLICIES: [(&str, u32); 6] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];

/// The flags of linux/sched.h.
const FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

/// The classes of linux/ioprio.h.
const IO_CLASSES: [(&str, u32); 3] = [
    ("IOPRIO_CLASS_RT", 1),
    ("IOPRIO_CLASS_BE", 2),
    ("IOPRIO_CLASS_IDLE", 3),
];

/// Where the class begins in an I/O priority (linux/ioprio.h).
const IO_CLASS_SHIFT: u32 = 13;

/// Checked scheduling of one process.
#[derive(Clone, Debug, Default)]
pub struct Scheduling {
    scheduler: Option<sys::SchedulerAttributes>,
    io_priority: Option<u32>,
    personality: Option<Persona>,
}

impl Scheduling {
    /// Checks the parts of `process` that say how it is run. The personality is the container's.
    pub fn plan(process: &oci::Process, personality: Option<Persona>) -> Result<Self, SpecError> {
        Ok(Self {
            scheduler: process.scheduler.as_ref().map(scheduler).transpose()?,
            io_priority: process.io_priority.as_ref().map(io_priority).transpose()?,
            personality,
        })
    }

    /// Applies it to the calling process.
    pub fn apply(&self) -> Result<(), SetupError> {
        if let Some(attributes) = &self.scheduler {
            sys::set_scheduler(attributes).or_request(|| "error setting scheduler")?;
        }
        if let Some(priority) = self.io_priority {
            sys::set_io_priority(priority).or_request(|| "error setting io priority")?;
        }
        if let Some(personality) = self.personality {
            personality::set(personality).or_request(|| "set_personality")?;
        }
        Ok(())
    }
}

/// Checks `linux.personality`.
pub fn persona(personality: &Personality) -> Result<Persona, SpecError> {
    require(personality.flags.is_empty(), || SpecError::Refused {
        field: "linux.personality.flags".into(),
        why: "no flags are defined",
    })?;
    match personality.domain.as_str() {
        "LINUX" => Ok(Persona::empty()),
        "LINUX32" => Ok(PER_LINUX32),
        other => Err(SpecError::Value {
            field: "linux.personality.domain".into(),
            value: other.into(),
            must: "LINUX or LINUX32",
        }),
    }
}

fn scheduler(scheduler: &Scheduler) -> Result<sys::SchedulerAttributes, SpecError> {
    let mut flags = 0;
    for name in &scheduler.flags {
        let must = "one of the SCHED_FLAG_ names of the OCI spec";
        flags |= value_of(&FLAGS, name, "process.scheduler.flags", must)?;
    }
    let must = "one of the SCHED_ names of the OCI spec";
    Ok(sys::SchedulerAttributes {
        policy: value_of(
            &POLICIES,
            &scheduler.policy,
            "process.scheduler.policy",
            must,
        )?,
        flags,
        nice: scheduler.nice,
        // A negative one is one the kernel refuses.
        priority: scheduler.priority as u32,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    })
}

fn io_priority(priority: &IoPriority) -> Result<u32, SpecError> {
    let must = "one of the IOPRIO_CLASS_ names of the OCI spec";
    let class = value_of(
        &IO_CLASSES,
        &priority.class,
        "process.ioPriority.class",
        must,
    )?;
    require((0..=7).contains(&priority.priority), || SpecError::Value {
        field: "process.ioPriority.priority".into(),
        value: priority.priority.to_string(),
        must: "0 to 7",
    })?;
    Ok(class << IO_CLASS_SHIFT | priority.priority as u32)
}

fn value_of<T: Copy>(
    table: &[(&str, T)],
    name: &str,
    field: &str,
    must: &'static str,
) -> Result<T, SpecError> {
    let found = table.iter().find(|(known, _)| *known == name);
    found
        .map(|(_, value)| *value)
        .ok_or_else(|| SpecError::Value {
            field: field.into(),
            value: name.into(),
            must,
        })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn plan(process: Value) -> Result<Scheduling, SpecError> {
        Scheduling::plan(&serde_json::from_value(process).unwrap(), None)
    }

    #[test]
    fn names_become_the_kernels_numbers() {
        let plan = plan(json!({
            "scheduler": { "policy": "SCHED_BATCH", "nice": -5, "flags": ["SCHED_FLAG_RESET_ON_FORK"] },
            "ioPriority": { "class": "IOPRIO_CLASS_BE", "priority": 4 },
        }))
        .unwrap();
        let scheduler = plan.scheduler.unwrap();
        assert_eq!(
            (scheduler.policy, scheduler.nice, scheduler.flags),
            (3, -5, 1)
        );
        assert_eq!(plan.io_priority, Some(2 << 13 | 4));
    }

    #[test]
    fn wrong_names_are_refused_by_field() {
        for (process, field) in [
            (
                json!({ "scheduler": { "policy": "SCHED_X" } }),
                "process.scheduler.policy",
            ),
            (
                json!({ "scheduler": { "policy": "SCHED_RR", "flags": ["X"] } }),
                "process.scheduler.flags",
            ),
            (
                json!({ "ioPriority": { "class": "BE" } }),
                "process.ioPriority.class",
            ),
            (
                json!({ "ioPriority": { "class": "IOPRIO_CLASS_BE", "priority": 8 } }),
                "process.ioPriority.priority",
            ),
        ] {
            let error = plan(process).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn personalities() {
        let parse = |value: Value| persona(&serde_json::from_value(value).unwrap());
        assert_eq!(
            parse(json!({ "domain": "LINUX" })).unwrap(),
            Persona::empty()
        );
        assert_eq!(parse(json!({ "domain": "LINUX32" })).unwrap().bits(), 8);
        assert!(parse(json!({ "domain": "BSD" })).is_err());
        assert!(parse(json!({ "domain": "LINUX", "flags": ["x"] })).is_err());
    }
}
