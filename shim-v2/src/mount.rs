//! Mounts on the host: containerd's snapshot mounts, and private copies of trees
//! for the share.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MoveMountFlags, move_mount};
use thiserror::Error;

use crate::overlay::{MAX_DATA_LEN, Overlay};
use crate::sys;

/// A mount that failed.
#[derive(Debug, Error)]
pub enum MountError {
    /// The kernel refused it.
    #[error("mounting {what} at {target} failed")]
    Mount {
        /// Type and source.
        what: String,
        /// Where.
        target: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An option no kernel mount understands.
    #[error("mounting {what}: option `{option}` is not supported")]
    Option {
        /// Type and source.
        what: String,
        /// The option.
        option: String,
    },
    /// Too many layers for one mount call.
    #[error(
        "mounting {what}: {len} bytes of options are more than the {MAX_DATA_LEN} the kernel takes: use an image with fewer layers"
    )]
    TooLong {
        /// Type and source.
        what: String,
        /// Their length in bytes.
        len: usize,
    },
}

/// What of a tree nobody may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOnly {
    /// Nothing but what is read-only already.
    Nothing,
    /// The mount at its top (`ro`).
    Top,
    /// The mounts below it too (`rro`).
    All,
}

/// What a private copy of a tree may be used for.
#[derive(Clone, Copy, Debug)]
pub struct CloneOptions {
    /// What nobody may write through the copy.
    pub readonly: ReadOnly,
    /// Take the mounts below along.
    pub recursive: bool,
    /// Mounts made later below the source appear in the copy (never the other way).
    pub follows_host: bool,
}

/// Carries out one of containerd's mounts.
///
/// # Errors
/// See [`MountError`].
pub fn mount_snapshot(
    kind: &str,
    source: &str,
    options: &[String],
    target: &Path,
) -> Result<(), MountError> {
    let what = format!("{kind} {source}");
    let (flags, data) = split_options(options);
    if let Some(option) = data.iter().find(|o| matches!(o.as_str(), "loop")) {
        let option = option.clone();
        return Err(MountError::Option { what, option });
    }
    let len = data.iter().map(|option| option.len() + 1).sum::<usize>();
    if len > MAX_DATA_LEN + 1 {
        let too_long = Err(io::ErrorKind::ArgumentListTooLong.into());
        let overlay = Overlay {
            source,
            flags,
            data: &data,
        };
        let mounted = match kind {
            "overlay" => overlay.mount(target),
            _ => too_long,
        };
        return mounted.map_err(|source| match source.kind() {
            io::ErrorKind::ArgumentListTooLong => MountError::TooLong { what, len },
            _ => MountError::Mount {
                what,
                target: target.to_owned(),
                source,
            },
        });
    }
    let data = data.join(",");
    let failed = |errno: Errno| MountError::Mount {
        what: what.clone(),
        target: target.to_owned(),
        source: errno.into(),
    };
    mount(Some(source), target, Some(kind), flags, Some(data.as_str())).map_err(failed)?;
    // A bind mount ignores all other flags until it is remounted.
    if flags.contains(MsFlags::MS_BIND) && !(flags - MsFlags::MS_BIND - MsFlags::MS_REC).is_empty()
    {
        let again = flags | MsFlags::MS_REMOUNT;
        let none = None::<&str>;
        mount(none, target, none, again, none).map_err(|errno| {
            drop(unmount(target));
            failed(errno)
        })?;
    }
    Ok(())
}

/// Splits options into flags of mount(2) and data for the file system.
fn split_options(options: &[String]) -> (MsFlags, Vec<String>) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "defaults" | "async" => {}
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rw" => flags -= MsFlags::MS_RDONLY,
            "bind" => flags |= MsFlags::MS_BIND,
            "rbind" => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "dev" => flags -= MsFlags::MS_NODEV,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "suid" => flags -= MsFlags::MS_NOSUID,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "exec" => flags -= MsFlags::MS_NOEXEC,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "dirsync" => flags |= MsFlags::MS_DIRSYNC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "atime" => flags -= MsFlags::MS_NOATIME,
            "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "strictatime" => flags |= MsFlags::MS_STRICTATIME,
            _ => data.push(option.clone()),
        }
    }
    (flags, data)
}

/// Attaches a copy of `source` at `target`: without devices and set-user-id
/// programs (what the guest makes of them inside is its own affair), and with no
/// way for an unmount of the copy to reach the source.
///
/// # Errors
/// [`MountError::Mount`].
pub fn clone_tree(source: &Path, target: &Path, options: CloneOptions) -> Result<(), MountError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let place = rustix::fs::open(target, flags, Mode::empty());
    let place = place.map_err(|errno| MountError::Mount {
        what: format!("a copy of {}", source.display()),
        target: target.to_owned(),
        source: errno.into(),
    })?;
    clone_tree_at(source, place.as_fd(), target, options)
}

/// As [`clone_tree`], at the open `place`, which is named `target`.
///
/// # Errors
/// [`MountError::Mount`].
pub fn clone_tree_at(
    source: &Path,
    place: BorrowedFd<'_>,
    target: &Path,
    options: CloneOptions,
) -> Result<(), MountError> {
    let everywhere = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID;
    let propagation = if options.follows_host {
        libc::MS_SLAVE
    } else {
        libc::MS_PRIVATE
    };
    let attach = || {
        let tree = sys::clone_mount(source, options.recursive)?;
        sys::set_mount_attributes(tree.as_fd(), everywhere, propagation, true)?;
        if options.readonly != ReadOnly::Nothing {
            let all = options.readonly == ReadOnly::All;
            sys::set_mount_attributes(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, 0, all)?;
        }
        let open =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok::<_, io::Error>(move_mount(tree, "", place, "", open)?)
    };
    attach().map_err(|error| MountError::Mount {
        what: format!("a copy of {}", source.display()),
        target: target.to_owned(),
        source: error,
    })
}

/// Makes `dir` a mount point of its own whose later mounts reach namespaces cloned
/// from this one, whatever the propagation of the mount it lies on.
///
/// # Errors
/// [`MountError::Mount`].
pub fn make_shared_root(dir: &Path) -> Result<(), MountError> {
    clone_tree(
        dir,
        dir,
        CloneOptions {
            readonly: ReadOnly::Nothing,
            recursive: false,
            follows_host: false,
        },
    )?;
    let none = None::<&str>;
    mount(none, dir, none, MsFlags::MS_SHARED, none).map_err(|errno| MountError::Mount {
        what: "shared propagation".to_owned(),
        target: dir.to_owned(),
        source: errno.into(),
    })
}

/// Unmounts what was mounted last at `target`, at once even if it is busy. Nothing
/// mounted there is success: clean-up may run twice.
pub fn unmount(target: &Path) -> io::Result<()> {
    match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// All mount points at or below `dir`, outermost first.
pub fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(parse_mountinfo(&table, dir))
}

/// Mount points are the fifth field of a line, see proc_pid_mountinfo(5); blanks
/// and backslashes in them are written as octal escapes.
fn parse_mountinfo(table: &str, dir: &Path) -> Vec<PathBuf> {
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .map(unescape)
        .filter(|point| point.starts_with(dir))
        .collect()
}

fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = octal
            .filter(|_| *first == b'\\')
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_or_data_and_later_ones_win() {
        let options = ["ro", "nosuid", "lowerdir=/a:/b", "rw", "index=off"].map(str::to_owned);
        let (flags, data) = split_options(&options);
        assert_eq!(flags, MsFlags::MS_NOSUID);
        assert_eq!(data, ["lowerdir=/a:/b", "index=off"]);
    }

    #[test]
    fn an_option_string_past_a_page_is_refused_before_the_kernel_cuts_it() {
        let options = ["x".repeat(5000)];
        let error = mount_snapshot("ext4", "/dev/x", &options, Path::new("/nowhere"));
        assert!(matches!(error, Err(MountError::TooLong { len: 5001, .. })));
    }

    #[test]
    fn mount_points_are_found_by_directory_not_by_prefix_of_the_name() {
        let table = "\
1 0 8:1 / / rw - ext4 /dev/vda rw
2 1 0:5 / /run/husk/a rw shared:1 - tmpfs tmpfs rw
3 2 0:5 / /run/husk/a/b\\040c rw - tmpfs tmpfs rw
4 1 0:5 / /run/husk/ab rw - tmpfs tmpfs rw
";
        let found = parse_mountinfo(table, Path::new("/run/husk/a"));
        assert_eq!(
            found,
            [Path::new("/run/husk/a"), Path::new("/run/husk/a/b c")]
        );
    }
}
