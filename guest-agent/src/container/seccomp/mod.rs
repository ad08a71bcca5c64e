//! Which system calls the container's processes may make (`linux.seccomp`).
//!
//! A profile is checked and compiled once, by the agent ([`Filter::plan`]), and loaded
//! by each process of the container just before its exec ([`Filter::load`]). The
//! meaning of a profile is that of runc with libseccomp, including these points:
//!
//! * Names unknown to the tables are skipped: profiles name calls of every
//!   architecture and of kernels newer than this one.
//! * A rule whose action is the default action is skipped.
//! * The conditions of a rule all have to hold; but if two of them are about the same
//!   argument, each counts as a rule of its own.
//! * A rule without conditions for a call overrides all that have some.
//! * Calls newer than every call the profile names fail with `ENOSYS`, not with the
//!   default action, so that programs fall back to older calls.
//! * Calls of an architecture that is not listed kill the thread.

mod assembler;
mod compile;
mod syscalls;

use super::setup_error::{Context, SetupError};
use crate::oci::seccomp::{ArgCondition, Seccomp, SyscallRule};
use crate::oci::{SpecError, require};
use crate::sys;

/// Most instructions the kernel takes (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;

/// What an action that returns an error returns when the profile does not say.
const DEFAULT_ERRNO: u32 = libc::EPERM as u32;

/// A compiled profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    program: Vec<Instruction>,
    flags: u64,
}

/// One instruction of a classic BPF program: `struct sock_filter` of linux/filter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation, operand kind and size.
    pub code: u16,
    /// Instructions to skip if the condition holds.
    pub jump_true: u8,
    /// Instructions to skip if it does not.
    pub jump_false: u8,
    /// The constant, offset or distance.
    pub k: u32,
}

/// A profile as the compiler takes it.
#[derive(Debug)]
struct Profile {
    /// What the filter returns for a call without a matching rule.
    default: u32,
    /// What it returns for calls newer than the profile; none means the default.
    unknown: Option<u32>,
    x86: bool,
    x32: bool,
    rules: Vec<Rule>,
    /// Names of all rules, also of those that were skipped: they say how new the profile is.
    named: Vec<String>,
}

/// A rule for one system call.
#[derive(Clone, Debug)]
struct Rule {
    name: String,
    action: u32,
    /// All have to hold.
    conditions: Vec<Condition>,
}

/// A condition on one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    index: u32,
    comparison: Comparison,
    value: u64,
}

/// How an argument is compared, as 64-bit unsigned numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    /// Equal in the bits of the mask.
    Masked(u64),
}

impl Filter {
    /// Checks and compiles a profile; none if it asks for nothing.
    pub fn plan(seccomp: &Seccomp) -> Result<Option<Self>, SpecError> {
        if seccomp.default_action.is_empty() && seccomp.syscalls.is_empty() {
            return Ok(None);
        }
        let flags = flags(&seccomp.flags)?;
        let program = compile::compile(&Profile::new(seccomp)?);
        require(program.len() <= MAX_INSTRUCTIONS, || SpecError::Value {
            field: "linux.seccomp.syscalls".into(),
            value: format!("{} instructions of a filter program", program.len()),
            must: "at most 4096, the kernel's limit",
        })?;
        Ok(Some(Self { program, flags }))
    }

    /// Puts it in force for the calling process and all it will become. Needs
    /// `CAP_SYS_ADMIN` or `no_new_privs`.
    pub fn load(&self) -> Result<(), SetupError> {
        sys::set_seccomp_filter(&self.program, self.flags)
            .or_request(|| "loading the filter of linux.seccomp")
    }
}

impl Profile {
    fn new(seccomp: &Seccomp) -> Result<Self, SpecError> {
        let field = || "linux.seccomp.defaultAction".to_owned();
        let default = action(&seccomp.default_action, seccomp.default_errno_ret, field)?;
        let enosys = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        let lets_pass = [
            libc::SECCOMP_RET_ALLOW,
            libc::SECCOMP_RET_LOG,
            libc::SECCOMP_RET_TRACE,
        ];
        let unknown = !lets_pass.contains(&(default & libc::SECCOMP_RET_ACTION_FULL));
        let mut profile = Self {
            default,
            unknown: unknown.then_some(enosys),
            x86: false,
            x32: false,
            rules: Vec::new(),
            named: Vec::new(),
        };
        for name in &seccomp.architectures {
            match name.as_str() {
                "SCMP_ARCH_X86" => profile.x86 = true,
                "SCMP_ARCH_X32" => profile.x32 = true,
                // Always there; and no process here can make a call of the others.
                name if syscalls::OTHER_ARCHITECTURES.contains(&name) => {}
                _ => {
                    return Err(SpecError::Value {
                        field: "linux.seccomp.architectures".into(),
                        value: name.clone(),
                        must: "one of the SCMP_ARCH_ names of the OCI spec",
                    });
                }
            }
        }
        for (index, rule) in seccomp.syscalls.iter().enumerate() {
            profile.add(rule, index)?;
        }
        Ok(profile)
    }

    fn add(&mut self, rule: &SyscallRule, index: usize) -> Result<(), SpecError> {
        let place = |field: &str| format!("linux.seccomp.syscalls[{index}].{field}");
        let action = action(&rule.action, rule.errno_ret, || place("action"))?;
        let conditions = rule
            .args
            .iter()
            .map(|arg| condition(arg, &place("args")))
            .collect::<Result<Vec<_>, _>>()?;
        let repeats = conditions.iter().enumerate().any(|(position, one)| {
            conditions[..position]
                .iter()
                .any(|other| other.index == one.index)
        });
        let alternatives: Vec<Vec<Condition>> = if repeats {
            conditions.into_iter().map(|one| vec![one]).collect()
        } else {
            vec![conditions]
        };
        for name in &rule.names {
            require(!name.is_empty(), || SpecError::Value {
                field: place("names"),
                value: String::new(),
                must: "without empty names",
            })?;
            self.named.push(name.clone());
            if action == self.default {
                continue;
            }
            self.rules
                .extend(alternatives.iter().map(|conditions| Rule {
                    name: name.clone(),
                    action,
                    conditions: conditions.clone(),
                }));
        }
        Ok(())
    }
}

/// The filter's return value for an action (seccomp(2)).
fn action(name: &str, errno: Option<u32>, field: impl Fn() -> String) -> Result<u32, SpecError> {
    // The kernel has 16 bits for it.
    let data = errno.unwrap_or(DEFAULT_ERRNO) & libc::SECCOMP_RET_DATA;
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => libc::SECCOMP_RET_KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => libc::SECCOMP_RET_KILL_PROCESS,
        "SCMP_ACT_TRAP" => libc::SECCOMP_RET_TRAP,
        "SCMP_ACT_ERRNO" => libc::SECCOMP_RET_ERRNO | data,
        "SCMP_ACT_TRACE" => libc::SECCOMP_RET_TRACE | data,
        "SCMP_ACT_LOG" => libc::SECCOMP_RET_LOG,
        "SCMP_ACT_ALLOW" => libc::SECCOMP_RET_ALLOW,
        "SCMP_ACT_NOTIFY" => {
            return Err(SpecError::Refused {
                field: format!("{}, SCMP_ACT_NOTIFY", field()),
                why: "the listener would be a process of the host, which the guest cannot reach",
            });
        }
        _ => {
            return Err(SpecError::Value {
                field: field(),
                value: name.into(),
                must: "one of the SCMP_ACT_ names of the OCI spec",
            });
        }
    })
}

fn condition(arg: &ArgCondition, field: &str) -> Result<Condition, SpecError> {
    require(arg.index < 6, || SpecError::Value {
        field: format!("{field}.index"),
        value: arg.index.to_string(),
        must: "0 to 5",
    })?;
    let (comparison, value) = match arg.op.as_str() {
        "SCMP_CMP_NE" => (Comparison::NotEqual, arg.value),
        "SCMP_CMP_LT" => (Comparison::Less, arg.value),
        "SCMP_CMP_LE" => (Comparison::LessOrEqual, arg.value),
        "SCMP_CMP_EQ" => (Comparison::Equal, arg.value),
        "SCMP_CMP_GE" => (Comparison::GreaterOrEqual, arg.value),
        "SCMP_CMP_GT" => (Comparison::Greater, arg.value),
        // Bits outside the mask do not count on either side.
        "SCMP_CMP_MASKED_EQ" => (Comparison::Masked(arg.value), arg.value_two & arg.value),
        other => {
            return Err(SpecError::Value {
                field: format!("{field}.op"),
                value: other.into(),
                must: "one of the SCMP_CMP_ names of the OCI spec",
            });
        }
    };
    Ok(Condition {
        index: arg.index,
        comparison,
        value,
    })
}

fn flags(names: &[String]) -> Result<u64, SpecError> {
    let mut flags = 0;
    for name in names {
        flags |= match name.as_str() {
            // The process that loads the filter has one thread.
            "SECCOMP_FILTER_FLAG_TSYNC" => 0,
            "SECCOMP_FILTER_FLAG_LOG" => libc::SECCOMP_FILTER_FLAG_LOG,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            other => {
                return Err(SpecError::Value {
                    field: "linux.seccomp.flags".into(),
                    value: other.into(),
                    must: "SECCOMP_FILTER_FLAG_TSYNC, _LOG or _SPEC_ALLOW",
                });
            }
        };
    }
    Ok(flags)
}

#[cfg(test)]
mod tests;
