//! The device cgroup: which devices the processes of a container may open or make.
//!
//! cgroup v2 has no file for it: a BPF program attached to the cgroup decides each
//! access. The rules of `linux.resources.devices` mean what they mean to cgroup v1
//! (Documentation/admin-guide/cgroup-v1/devices.rst), as runc has it:
//!
//! * To begin with everything is denied. A rule of type `a` sets that default anew and
//!   forgets the rules before it.
//! * A rule with the other verdict than the default is an exception to it; one with the
//!   same verdict takes an earlier exception of the same device back.
//! * In the end come the devices every container may use.
//!
//! An exception cannot be taken back in part: a rule that would punch a hole into an
//! earlier wildcard is an error.

mod program;

use std::collections::BTreeMap;
use std::path::Path;

use self::program::Program;
use crate::oci::{Device, DeviceRule, SpecError};

/// The compiled rules of one container.
#[derive(Clone, Debug)]
pub struct DeviceFilter(Program);

/// Block or character device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Block,
    Char,
}

/// Which devices an exception is for; none means every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    kind: Kind,
    major: Option<u32>,
    minor: Option<u32>,
}

/// A set of accesses, of which one request may ask for several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Access(u32);

impl Access {
    // `BPF_DEVCG_ACC_*` of linux/bpf.h.
    const MKNOD: Self = Self(1);
    const READ: Self = Self(2);
    const WRITE: Self = Self(4);
    const ALL: Self = Self(7);

    fn parse(text: &str) -> Option<Self> {
        let mut bits = 0;
        for letter in text.chars() {
            bits |= match letter {
                'r' => Self::READ.0,
                'w' => Self::WRITE.0,
                'm' => Self::MKNOD.0,
                _ => return None,
            };
        }
        Some(Self(bits)).filter(|access| !access.is_empty())
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn overlaps(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// A rule, checked.
#[derive(Clone, Copy, Debug)]
struct Rule {
    allow: bool,
    /// None is type `a`.
    target: Option<Target>,
    access: Access,
}

/// What the rules so far amount to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Policy {
    allow_by_default: bool,
    exceptions: BTreeMap<Target, Access>,
}

/// What every container may use: the path, if it has one, the device and the accesses.
/// Where the spec has a device of its own with one of these paths, its rules alone count.
const ALWAYS: [(Option<&str>, Target, Access); 11] = [
    (None, target(Kind::Char, None, None), Access::MKNOD),
    (None, target(Kind::Block, None, None), Access::MKNOD),
    (Some("/dev/null"), char_device(1, 3), Access::ALL),
    (Some("/dev/random"), char_device(1, 8), Access::ALL),
    (Some("/dev/full"), char_device(1, 7), Access::ALL),
    (Some("/dev/tty"), char_device(5, 0), Access::ALL),
    (Some("/dev/zero"), char_device(1, 5), Access::ALL),
    (Some("/dev/urandom"), char_device(1, 9), Access::ALL),
    // Terminals below /dev/pts, and /dev/pts/ptmx that makes them.
    (None, target(Kind::Char, Some(136), None), Access::ALL),
    (None, char_device(5, 2), Access::ALL),
    // /dev/net/tun.
    (None, char_device(10, 200), Access::ALL),
];

const fn target(kind: Kind, major: Option<u32>, minor: Option<u32>) -> Target {
    Target { kind, major, minor }
}

const fn char_device(major: u32, minor: u32) -> Target {
    target(Kind::Char, Some(major), Some(minor))
}

impl DeviceFilter {
    /// Compiles `linux.resources.devices`; `devices` are those of `linux.devices`.
    pub fn plan(rules: &[DeviceRule], devices: &[Device]) -> Result<Self, SpecError> {
        let mut policy = Policy::default();
        for (index, rule) in rules.iter().enumerate() {
            let field = format!("linux.resources.devices[{index}]");
            policy
                .apply(Rule::new(rule, index)?)
                .map_err(|hole| punches_hole(&field, hole))?;
        }
        for (path, target, access) in ALWAYS {
            let is_own = |device: &Device| Some(device.path.as_path()) == path.map(Path::new);
            if devices.iter().any(is_own) {
                continue;
            }
            let rule = Rule {
                allow: true,
                target: Some(target),
                access,
            };
            let field = "linux.resources.devices, with what every container has";
            policy
                .apply(rule)
                .map_err(|hole| punches_hole(field, hole))?;
        }
        Ok(Self(Program::compile(&policy)))
    }

    /// The program, for bpf(2).
    pub fn instructions(&self) -> &[u64] {
        self.0.instructions()
    }
}

impl Rule {
    fn new(rule: &DeviceRule, index: usize) -> Result<Self, SpecError> {
        let wrong = |field: &str, value: String, must| SpecError::Value {
            field: format!("linux.resources.devices[{index}].{field}"),
            value,
            must,
        };
        let kind = match rule.kind.as_str() {
            "" | "a" => None,
            "b" => Some(Kind::Block),
            "c" => Some(Kind::Char),
            other => return Err(wrong("type", other.into(), "a, b or c")),
        };
        let access = Access::parse(&rule.access)
            .ok_or_else(|| wrong("access", rule.access.clone(), "one or more of r, w and m"))?;
        let number = |field, value: Option<i64>| match value {
            None | Some(..0) => Ok(None),
            Some(value) => u32::try_from(value)
                .map(Some)
                .map_err(|_| wrong(field, value.to_string(), "a device number")),
        };
        let (major, minor) = (number("major", rule.major)?, number("minor", rule.minor)?);
        Ok(Self {
            allow: rule.allow,
            target: kind.map(|kind| target(kind, major, minor)),
            access,
        })
    }
}

impl Policy {
    /// Takes one more rule into account. Fails with the exception that is in its way.
    fn apply(&mut self, rule: Rule) -> Result<(), Target> {
        let Some(exact) = rule.target else {
            *self = Self {
                allow_by_default: rule.allow,
                exceptions: BTreeMap::new(),
            };
            return Ok(());
        };
        if rule.allow != self.allow_by_default {
            self.exceptions
                .entry(exact)
                .and_modify(|access| access.0 |= rule.access.0)
                .or_insert(rule.access);
            return Ok(());
        }
        let Target { kind, major, minor } = exact;
        for (major, minor) in [(None, minor), (major, None), (None, None)] {
            let wider = target(kind, major, minor);
            let access = self.exceptions.get(&wider);
            if wider != exact && access.is_some_and(|access| access.overlaps(rule.access)) {
                return Err(wider);
            }
        }
        if let Some(access) = self.exceptions.get_mut(&exact) {
            access.0 &= !rule.access.0;
            if access.is_empty() {
                self.exceptions.remove(&exact);
            }
        }
        Ok(())
    }
}

fn punches_hole(field: &str, wider: Target) -> SpecError {
    let letter = match wider.kind {
        Kind::Block => 'b',
        Kind::Char => 'c',
    };
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
    let (major, minor) = (number(wider.major), number(wider.minor));
    SpecError::Value {
        field: field.into(),
        value: format!("an exception to the earlier rule {letter} {major}:{minor}"),
        must: "outside of all wildcards before it",
    }
}

#[cfg(test)]
mod tests;
