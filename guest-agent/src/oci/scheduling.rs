//! What the spec says about how the kernel runs a process.

use serde::Deserialize;

use super::null_is_default;

/// `process.scheduler`, for sched_setattr(2).
#[derive(Clone, Debug, Deserialize)]
pub struct Scheduler {
    /// `SCHED_…`.
    pub policy: String,
    /// Of the time-sharing policies.
    #[serde(default, deserialize_with = "null_is_default")]
    pub nice: i32,
    /// Of the real-time policies.
    #[serde(default, deserialize_with = "null_is_default")]
    pub priority: i32,
    /// `SCHED_FLAG_…`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub flags: Vec<String>,
    /// Nanoseconds, of the deadline policy.
    #[serde(default, deserialize_with = "null_is_default")]
    pub runtime: u64,
    /// Nanoseconds, of the deadline policy.
    #[serde(default, deserialize_with = "null_is_default")]
    pub deadline: u64,
    /// Nanoseconds, of the deadline policy.
    #[serde(default, deserialize_with = "null_is_default")]
    pub period: u64,
}

/// `process.ioPriority`, for ioprio_set(2).
#[derive(Clone, Debug, Deserialize)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_…`.
    pub class: String,
    /// 0 (first) to 7 within the class.
    #[serde(default, deserialize_with = "null_is_default")]
    pub priority: i32,
}

/// `linux.personality`, for personality(2).
#[derive(Clone, Debug, Deserialize)]
pub struct Personality {
    /// `LINUX` or `LINUX32`.
    pub domain: String,
    /// None are defined.
    #[serde(default, deserialize_with = "null_is_default")]
    pub flags: Vec<String>,
}
