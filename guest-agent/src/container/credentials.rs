//! Who the program runs as: ids, capabilities, limits.

use std::os::fd::AsFd;

use capctl::caps::{Cap, CapSet, CapState, ambient, bounding};
use capctl::prctl;
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, SFlag, fstat, umask};
use nix::unistd::{Gid, Uid, fchown, setgid, setgroups, setuid};

use super::seccomp::Filter;
use super::setup_error::{Context, SetupError};
use crate::oci::{self, SpecError};

/// Creation mask when the spec gives none; runc's default.
const DEFAULT_UMASK: u32 = 0o022;

/// Device number of `/dev/null`, which is never given away.
const NULL_DEVICE: u64 = nix::sys::stat::makedev(1, 3);

/// The five sets of capabilities(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapabilitySets {
    bounding: CapSet,
    effective: CapSet,
    inheritable: CapSet,
    permitted: CapSet,
    ambient: CapSet,
}

/// Checked credentials of one process.
#[derive(Clone, Debug)]
pub struct Credentials {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    umask: Mode,
    capabilities: CapabilitySets,
    rlimits: Vec<(Resource, u64, u64)>,
    no_new_privileges: bool,
}

impl Credentials {
    /// Checks the parts of `process` that say who it is.
    pub fn plan(process: &oci::Process) -> Result<Self, SpecError> {
        let user = &process.user;
        // No capabilities object means no capabilities, as in runc.
        let capabilities = process.capabilities.clone().unwrap_or_default();
        Ok(Self {
            uid: Uid::from_raw(user.uid),
            gid: Gid::from_raw(user.gid),
            groups: user
                .additional_gids
                .iter()
                .copied()
                .map(Gid::from_raw)
                .collect(),
            umask: Mode::from_bits_truncate(user.umask.unwrap_or(DEFAULT_UMASK)),
            capabilities: CapabilitySets::plan(&capabilities),
            rlimits: once_each(&process.rlimits)?
                .iter()
                .map(rlimit)
                .collect::<Result<_, _>>()?,
            no_new_privileges: process.no_new_privileges,
        })
    }

    /// The user id.
    pub fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    /// Gives standard I/O to the user, so that `/dev/stdout` can be opened by its
    /// name; the group stays (that of a terminal is set by its file system).
    pub fn own_stdio(&self) -> Result<(), SetupError> {
        own(std::io::stdin(), self.uid)?;
        own(std::io::stdout(), self.uid)?;
        own(std::io::stderr(), self.uid)
    }

    /// Becomes the user. Capabilities are still all there, see [`Credentials::drop_capabilities`].
    pub fn become_user(&self) -> Result<(), SetupError> {
        for (resource, soft, hard) in &self.rlimits {
            setrlimit(*resource, *soft, *hard)
                .or_request(|| format!("setting {resource:?} to {soft}:{hard}"))?;
        }
        if self.no_new_privileges {
            prctl::set_no_new_privs().or_guest(|| "setting no_new_privs")?;
        }
        // Needs CAP_SETPCAP, hence while still root.
        for cap in Cap::iter().filter(|cap| !self.capabilities.bounding.has(*cap)) {
            bounding::ensure_dropped(cap)
                .or_guest(|| format!("dropping {cap} from the bounding set"))?;
        }
        prctl::set_keepcaps(true).or_guest(|| "keeping capabilities")?;
        setgroups(&self.groups).or_request(|| "setting additionalGids")?;
        setgid(self.gid).or_request(|| format!("setgid {}", self.gid))?;
        setuid(self.uid).or_request(|| format!("setuid {}", self.uid))?;
        umask(self.umask);
        Ok(())
    }

    /// Leaves the process only the capabilities asked for, but that it may still take
    /// on those that loading `filter` needs: see [`Credentials::filter`].
    pub fn drop_capabilities(&self, filter: Option<&Filter>) -> Result<(), SetupError> {
        prctl::set_keepcaps(false).or_guest(|| "not keeping capabilities")?;
        let mut state = self.capabilities.state();
        state.permitted |= self.needed_for(filter);
        state.set_current().or_request(|| "setting capabilities")?;
        ambient::clear().or_guest(|| "clearing ambient capabilities")?;
        for cap in self.capabilities.ambient {
            ambient::raise(cap).or_request(|| format!("raising ambient {cap}"))?;
        }
        Ok(())
    }

    /// Puts `filter` in force, as the last step before the exec: each call made after
    /// it is one more that every profile has to allow.
    pub fn filter(&self, filter: Option<&Filter>) -> Result<(), SetupError> {
        let Some(loaded) = filter else {
            return Ok(());
        };
        let needed = self.needed_for(filter);
        if needed.is_empty() {
            return loaded.load();
        }
        let what = || "setting capabilities";
        let last = self.capabilities.state();
        let mut state = last;
        state.permitted |= needed;
        state.effective |= needed;
        state.set_current().or_guest(what)?;
        loaded.load()?;
        last.set_current().or_request(what)
    }

    /// What loading a filter takes (seccomp(2)).
    fn needed_for(&self, filter: Option<&Filter>) -> CapSet {
        let mut needed = CapSet::empty();
        if filter.is_some() && !self.no_new_privileges {
            needed.add(Cap::SYS_ADMIN);
        }
        needed
    }
}

impl CapabilitySets {
    fn plan(capabilities: &oci::Capabilities) -> Self {
        Self {
            bounding: set(&capabilities.bounding),
            effective: set(&capabilities.effective),
            inheritable: set(&capabilities.inheritable),
            permitted: set(&capabilities.permitted),
            ambient: set(&capabilities.ambient),
        }
    }

    /// The three sets that capset(2) sets.
    fn state(&self) -> CapState {
        CapState {
            effective: self.effective,
            permitted: self.permitted,
            inheritable: self.inheritable,
        }
    }
}

/// Names the guest's kernel does not know are left out, as in runc: nothing could
/// ask for them either.
fn set(names: &[String]) -> CapSet {
    names
        .iter()
        .filter_map(|name| name.parse::<Cap>().ok())
        .collect()
}

fn own(stdio: impl AsFd, uid: Uid) -> Result<(), SetupError> {
    let what = || "giving standard I/O to the user";
    let found = fstat(&stdio).or_guest(what)?;
    let is_null = found.st_rdev == NULL_DEVICE
        && SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
    if is_null || found.st_uid == uid.as_raw() {
        return Ok(());
    }
    match fchown(&stdio, Some(uid), None) {
        Err(Errno::EINVAL | Errno::EPERM | Errno::EROFS) => Ok(()),
        other => other.or_guest(what),
    }
}

/// Of two limits of one kind nobody could tell which is meant.
fn once_each(limits: &[oci::Rlimit]) -> Result<&[oci::Rlimit], SpecError> {
    for (index, limit) in limits.iter().enumerate() {
        if limits[..index].iter().any(|other| other.kind == limit.kind) {
            return Err(SpecError::Value {
                field: format!("process.rlimits[{index}].type"),
                value: limit.kind.clone(),
                must: "named once",
            });
        }
    }
    Ok(limits)
}

fn rlimit(limit: &oci::Rlimit) -> Result<(Resource, u64, u64), SpecError> {
    let resource = match limit.kind.as_str() {
        "RLIMIT_AS" => Resource::RLIMIT_AS,
        "RLIMIT_CORE" => Resource::RLIMIT_CORE,
        "RLIMIT_CPU" => Resource::RLIMIT_CPU,
        "RLIMIT_DATA" => Resource::RLIMIT_DATA,
        "RLIMIT_FSIZE" => Resource::RLIMIT_FSIZE,
        "RLIMIT_LOCKS" => Resource::RLIMIT_LOCKS,
        "RLIMIT_MEMLOCK" => Resource::RLIMIT_MEMLOCK,
        "RLIMIT_MSGQUEUE" => Resource::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => Resource::RLIMIT_NICE,
        "RLIMIT_NOFILE" => Resource::RLIMIT_NOFILE,
        "RLIMIT_NPROC" => Resource::RLIMIT_NPROC,
        "RLIMIT_RSS" => Resource::RLIMIT_RSS,
        "RLIMIT_RTPRIO" => Resource::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => Resource::RLIMIT_RTTIME,
        "RLIMIT_SIGPENDING" => Resource::RLIMIT_SIGPENDING,
        "RLIMIT_STACK" => Resource::RLIMIT_STACK,
        other => {
            return Err(SpecError::Value {
                field: "process.rlimits.type".into(),
                value: other.into(),
                must: "a limit of getrlimit(2), such as RLIMIT_NOFILE",
            });
        }
    };
    Ok((resource, limit.soft, limit.hard))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(json: serde_json::Value) -> oci::Process {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn capability_names_map_and_unknown_ones_are_left_out() {
        let names = [
            "CAP_CHOWN",
            "CAP_SYS_ADMIN",
            "CAP_CHECKPOINT_RESTORE",
            "CAP_WONDER",
        ]
        .map(String::from);
        let set = set(&names);
        assert_eq!(set.size(), 3);
        assert!(set.has(Cap::CHOWN) && set.has(Cap::SYS_ADMIN) && set.has(Cap::CHECKPOINT_RESTORE));
    }

    #[test]
    fn every_capability_of_linux_6_has_a_name() {
        assert_eq!(
            set(&[
                "CAP_BPF".into(),
                "CAP_PERFMON".into(),
                "CAP_AUDIT_READ".into()
            ])
            .size(),
            3
        );
        assert_eq!(Cap::iter().count(), 41);
    }

    #[test]
    fn no_capabilities_object_means_none() {
        let credentials = Credentials::plan(&process(serde_json::json!({}))).unwrap();
        assert!(credentials.capabilities.bounding.is_empty());
        assert_eq!(credentials.umask.bits(), 0o022);
    }

    #[test]
    fn a_limit_that_is_named_twice_is_refused() {
        let limit = |n: u64| serde_json::json!({ "type": "RLIMIT_CORE", "soft": n, "hard": n });
        let json = serde_json::json!({ "rlimits": [limit(1), limit(2)] });
        let error = Credentials::plan(&process(json)).unwrap_err().to_string();
        assert!(error.contains("process.rlimits[1].type"), "{error}");
    }

    #[test]
    fn an_unknown_limit_is_named() {
        let json = serde_json::json!({ "rlimits": [{ "type": "RLIMIT_X", "soft": 1, "hard": 1 }] });
        let error = Credentials::plan(&process(json)).unwrap_err().to_string();
        assert!(error.contains("RLIMIT_X"), "{error}");
    }
}
