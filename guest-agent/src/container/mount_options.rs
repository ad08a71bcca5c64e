//! Option strings of OCI mounts, understood as runc understands them: known words
//! become mount flags, the rest is data for the file system.

use nix::mount::MsFlags;

use crate::oci::SpecError;

/// `MS_NOSYMFOLLOW` of linux/mount.h, which `nix` does not name.
const MS_NOSYMFOLLOW: MsFlags = MsFlags::from_bits_retain(256);

/// The options of one mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Flags for mount(2), without propagation.
    pub flags: MsFlags,
    /// Attributes to clear on a bind mount: what was given as `rw`, `exec`, ….
    pub cleared: MsFlags,
    /// Changes of propagation, each one a mount(2) call of its own.
    pub propagation: Vec<MsFlags>,
    /// `MOUNT_ATTR_*` to set on this mount and all below it.
    pub recursive_set: u64,
    /// `MOUNT_ATTR_*` to clear on this mount and all below it.
    pub recursive_clear: u64,
    /// Whether a tmpfs begins with what it covers.
    pub copy_up: bool,
    /// What the file system itself gets.
    pub data: Vec<String>,
}

enum Meaning {
    Set(MsFlags),
    Clear(MsFlags),
    Propagation(MsFlags),
}

/// Parses the options of the mount at `index` of `mounts`.
///
/// # Errors
/// Options that need what the guest does not have (id-mapped mounts).
pub fn parse(options: &[String], index: usize) -> Result<MountOptions, SpecError> {
    let mut parsed = MountOptions {
        flags: MsFlags::empty(),
        cleared: MsFlags::empty(),
        propagation: Vec::new(),
        recursive_set: 0,
        recursive_clear: 0,
        copy_up: false,
        data: Vec::new(),
    };
    for option in options {
        if let Some(meaning) = meaning(option) {
            match meaning {
                Meaning::Set(flags) => {
                    parsed.flags |= flags;
                    parsed.cleared &= !flags;
                }
                Meaning::Clear(flags) => {
                    parsed.flags &= !flags;
                    parsed.cleared |= flags;
                }
                Meaning::Propagation(flags) => parsed.propagation.push(flags),
            }
        } else if let Some(meaning) = option.strip_prefix('r').and_then(attribute) {
            match meaning {
                Meaning::Set(flags) => {
                    parsed.recursive_set |= attributes(flags);
                    parsed.recursive_clear |= clear_for(flags, MsFlags::empty());
                }
                Meaning::Clear(flags) => {
                    parsed.recursive_clear |= clear_for(MsFlags::empty(), flags);
                }
                Meaning::Propagation(_) => {}
            }
        } else if option == "tmpcopyup" {
            parsed.copy_up = true;
        } else if let Some(why) = refusal(option) {
            return Err(SpecError::Refused {
                field: format!("mounts[{index}].options, {option:?}"),
                why,
            });
        } else {
            parsed.data.push(option.clone());
        }
    }
    Ok(parsed)
}

impl MountOptions {
    /// Whether a bind mount was asked for.
    pub fn is_bind(&self) -> bool {
        self.flags.contains(MsFlags::MS_BIND)
    }

    /// The `MOUNT_ATTR_*` to set on a bind mount itself.
    pub fn bind_set(&self) -> u64 {
        attributes(self.flags)
    }

    /// The `MOUNT_ATTR_*` to clear on a bind mount itself.
    pub fn bind_clear(&self) -> u64 {
        clear_for(self.flags, self.cleared)
    }
}

/// The `MOUNT_ATTR_*` to clear so that `set` and `cleared` take effect. Access time
/// is one field of several bits: the kernel takes a new mode only if the whole field
/// is cleared, and refuses to clear a part of it.
fn clear_for(set: MsFlags, cleared: MsFlags) -> u64 {
    let modes = MsFlags::MS_RELATIME | MsFlags::MS_NOATIME | MsFlags::MS_STRICTATIME;
    let clear = attributes(cleared) & !libc::MOUNT_ATTR__ATIME;
    if set.intersects(modes) {
        clear | libc::MOUNT_ATTR__ATIME
    } else {
        clear
    }
}

fn refusal(option: &str) -> Option<&'static str> {
    matches!(option, "idmap" | "ridmap").then_some("id-mapped mounts are not supported")
}

fn meaning(option: &str) -> Option<Meaning> {
    use Meaning::{Clear, Propagation, Set};
    let recursive = MsFlags::MS_REC;
    Some(match option {
        "defaults" => Set(MsFlags::empty()),
        "async" => Clear(MsFlags::MS_SYNCHRONOUS),
        "sync" => Set(MsFlags::MS_SYNCHRONOUS),
        "dirsync" => Set(MsFlags::MS_DIRSYNC),
        "bind" => Set(MsFlags::MS_BIND),
        "rbind" => Set(MsFlags::MS_BIND | recursive),
        "remount" => Set(MsFlags::MS_REMOUNT),
        "mand" => Set(MsFlags::MS_MANDLOCK),
        "nomand" => Clear(MsFlags::MS_MANDLOCK),
        "silent" => Set(MsFlags::MS_SILENT),
        "loud" => Clear(MsFlags::MS_SILENT),
        "acl" => Set(MsFlags::MS_POSIXACL),
        "noacl" => Clear(MsFlags::MS_POSIXACL),
        "iversion" => Set(MsFlags::MS_I_VERSION),
        "noiversion" => Clear(MsFlags::MS_I_VERSION),
        "lazytime" => Set(MsFlags::MS_LAZYTIME),
        "nolazytime" => Clear(MsFlags::MS_LAZYTIME),
        "private" => Propagation(MsFlags::MS_PRIVATE),
        "rprivate" => Propagation(MsFlags::MS_PRIVATE | recursive),
        "shared" => Propagation(MsFlags::MS_SHARED),
        "rshared" => Propagation(MsFlags::MS_SHARED | recursive),
        "slave" => Propagation(MsFlags::MS_SLAVE),
        "rslave" => Propagation(MsFlags::MS_SLAVE | recursive),
        "unbindable" => Propagation(MsFlags::MS_UNBINDABLE),
        "runbindable" => Propagation(MsFlags::MS_UNBINDABLE | recursive),
        other => return attribute(other),
    })
}

/// The options that exist per mount, and with an `r` in front for a whole tree.
fn attribute(option: &str) -> Option<Meaning> {
    use Meaning::{Clear, Set};
    Some(match option {
        "ro" => Set(MsFlags::MS_RDONLY),
        "rw" => Clear(MsFlags::MS_RDONLY),
        "nosuid" => Set(MsFlags::MS_NOSUID),
        "suid" => Clear(MsFlags::MS_NOSUID),
        "nodev" => Set(MsFlags::MS_NODEV),
        "dev" => Clear(MsFlags::MS_NODEV),
        "noexec" => Set(MsFlags::MS_NOEXEC),
        "exec" => Clear(MsFlags::MS_NOEXEC),
        "noatime" => Set(MsFlags::MS_NOATIME),
        "atime" => Clear(MsFlags::MS_NOATIME),
        "nodiratime" => Set(MsFlags::MS_NODIRATIME),
        "diratime" => Clear(MsFlags::MS_NODIRATIME),
        "relatime" => Set(MsFlags::MS_RELATIME),
        "norelatime" => Clear(MsFlags::MS_RELATIME),
        "strictatime" => Set(MsFlags::MS_STRICTATIME),
        "nostrictatime" => Clear(MsFlags::MS_STRICTATIME),
        "nosymfollow" => Set(MS_NOSYMFOLLOW),
        "symfollow" => Clear(MS_NOSYMFOLLOW),
        _ => return None,
    })
}

/// The propagation `linux.rootfsPropagation` names.
pub fn root_propagation(name: &str) -> Result<Option<MsFlags>, SpecError> {
    if name.is_empty() {
        return Ok(None);
    }
    match meaning(name) {
        Some(Meaning::Propagation(flags)) => Ok(Some(flags)),
        _ => Err(SpecError::Value {
            field: "linux.rootfsPropagation".into(),
            value: name.into(),
            must: "private, slave, shared or unbindable, with or without an r in front",
        }),
    }
}

/// The `MOUNT_ATTR_*` of mount_setattr(2) for mount(2) flags.
fn attributes(flags: MsFlags) -> u64 {
    [
        (MsFlags::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
        (MsFlags::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
        (MsFlags::MS_NODEV, libc::MOUNT_ATTR_NODEV),
        (MsFlags::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
        (MsFlags::MS_NOATIME, libc::MOUNT_ATTR_NOATIME),
        (MsFlags::MS_STRICTATIME, libc::MOUNT_ATTR_STRICTATIME),
        (MsFlags::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
        (MS_NOSYMFOLLOW, libc::MOUNT_ATTR_NOSYMFOLLOW),
    ]
    .into_iter()
    .filter(|(flag, _)| flags.contains(*flag))
    .fold(0, |bits, (_, attribute)| bits | attribute)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &[&str]) -> MountOptions {
        let options: Vec<String> = options.iter().map(|option| option.to_string()).collect();
        parse(&options, 0).unwrap()
    }

    #[test]
    fn flags_and_data_are_told_apart() {
        let options = parsed(&["nosuid", "strictatime", "mode=755", "size=65536k"]);
        assert_eq!(options.flags, MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME);
        assert_eq!(options.data, ["mode=755", "size=65536k"]);
        assert!(!options.is_bind());
    }

    #[test]
    fn a_read_only_recursive_bind_with_propagation() {
        let options = parsed(&["rbind", "rprivate", "ro"]);
        assert!(options.is_bind());
        assert!(options.flags.contains(MsFlags::MS_REC));
        assert_eq!(options.propagation, [MsFlags::MS_PRIVATE | MsFlags::MS_REC]);
        assert_eq!(options.bind_set(), libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.bind_clear(), 0);
        assert!(options.data.is_empty());
    }

    #[test]
    fn the_last_word_on_a_flag_wins() {
        assert_eq!(parsed(&["ro", "rw"]).flags, MsFlags::empty());
        assert_eq!(parsed(&["ro", "rw"]).bind_clear(), libc::MOUNT_ATTR_RDONLY);
        let options = parsed(&["rw", "ro"]);
        assert_eq!(options.bind_set(), libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.bind_clear(), 0);
    }

    #[test]
    fn an_access_time_mode_replaces_the_whole_field() {
        let options = parsed(&["bind", "noatime"]);
        assert_eq!(options.bind_set(), libc::MOUNT_ATTR_NOATIME);
        assert_eq!(options.bind_clear(), libc::MOUNT_ATTR__ATIME);
        // relatime is the kernel's zero value of the field.
        let options = parsed(&["bind", "relatime"]);
        assert_eq!(
            (options.bind_set(), options.bind_clear()),
            (0, libc::MOUNT_ATTR__ATIME)
        );
        // "atime" clears one mode only, which the kernel would refuse on its own.
        assert_eq!(parsed(&["bind", "atime"]).bind_clear(), 0);
    }

    #[test]
    fn recursive_attributes() {
        let options = parsed(&["rbind", "rro", "rnosuid", "rexec"]);
        assert_eq!(
            options.recursive_set,
            libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID
        );
        assert_eq!(options.recursive_clear, libc::MOUNT_ATTR_NOEXEC);
        assert_eq!(options.bind_set(), 0);
    }

    #[test]
    fn words_that_only_look_like_recursive_ones_are_data() {
        assert_eq!(parsed(&["rsize=1024"]).data, ["rsize=1024"]);
        assert_eq!(
            parsed(&["gid=5", "newinstance"]).data,
            ["gid=5", "newinstance"]
        );
    }

    #[test]
    fn copy_up_is_no_data() {
        let options = parsed(&["tmpcopyup", "size=1m"]);
        assert!(options.copy_up);
        assert_eq!(options.data, ["size=1m"]);
    }

    #[test]
    fn id_maps_are_refused_by_name() {
        for option in ["idmap", "ridmap"] {
            let error = parse(&[option.to_string()], 3).unwrap_err().to_string();
            assert!(
                error.contains("mounts[3]") && error.contains(option),
                "{error}"
            );
        }
    }

    #[test]
    fn root_propagation_names() {
        assert_eq!(root_propagation("").unwrap(), None);
        assert_eq!(
            root_propagation("rslave").unwrap(),
            Some(MsFlags::MS_SLAVE | MsFlags::MS_REC)
        );
        assert!(root_propagation("ro").is_err());
    }
}
