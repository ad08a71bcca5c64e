//! `linux.seccomp`: which system calls a container may make.

use serde::Deserialize;

use super::null_is_default;

/// A profile.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seccomp {
    /// `SCMP_ACT_…` for calls no rule matches.
    #[serde(default, deserialize_with = "null_is_default")]
    pub default_action: String,
    /// The error of the default action, if it is one that returns an error.
    pub default_errno_ret: Option<u32>,
    /// `SCMP_ARCH_…`; the machine's own is always among them.
    #[serde(default, deserialize_with = "null_is_default")]
    pub architectures: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_…`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub flags: Vec<String>,
    /// The rules.
    #[serde(default, deserialize_with = "null_is_default")]
    pub syscalls: Vec<SyscallRule>,
}

/// One of `linux.seccomp.syscalls`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SyscallRule {
    /// The calls it is about.
    #[serde(default, deserialize_with = "null_is_default")]
    pub names: Vec<String>,
    /// `SCMP_ACT_…`.
    pub action: String,
    /// The error, if the action is one that returns an error.
    pub errno_ret: Option<u32>,
    /// Conditions on the call's arguments.
    #[serde(default, deserialize_with = "null_is_default")]
    pub args: Vec<ArgCondition>,
}

/// One of `linux.seccomp.syscalls[].args`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArgCondition {
    /// Which argument, 0 to 5.
    pub index: u32,
    /// What it is compared with; the mask for `SCMP_CMP_MASKED_EQ`.
    pub value: u64,
    /// What the masked argument is compared with.
    #[serde(default, deserialize_with = "null_is_default")]
    pub value_two: u64,
    /// `SCMP_CMP_…`.
    pub op: String,
}
