//! Overlay mounts with more layers than the option string of mount(2) holds: a page,
//! which about fifty of containerd's layers fill.
//!
//! From Linux 6.7 on the layers are handed over one by one, see `lowerdir+` in the
//! kernel's `filesystems/overlayfs.rst`. Before that, they are named relative to the
//! directory they have in common, in which a thread of its own calls mount(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

/// Longest option string mount(2) takes: one page with its NUL.
pub const MAX_DATA_LEN: usize = 4095;
/// Longest value fsconfig(2) takes, without its NUL.
const MAX_VALUE_LEN: usize = 255;

/// An overlay mount to be made.
pub struct Overlay<'a> {
    /// Its name in the mount table.
    pub source: &'a str,
    /// Flags of mount(2).
    pub flags: MsFlags,
    /// Options for the file system.
    pub data: &'a [String],
}

impl Overlay<'_> {
    /// Mounts it at `target`.
    ///
    /// # Errors
    /// What the kernel refused. `ArgumentListTooLong`: it takes the layers only as one
    /// option, and that is too long in its shortest form, too.
    pub fn mount(&self, target: &Path) -> io::Result<()> {
        match self.mount_by_layer(target) {
            // A kernel that does not know `lowerdir+`, or not fsopen(2) for this type.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                log::debug!("overlay layers are not taken one by one: {error}");
                self.mount_relative(target)
            }
            mounted => mounted,
        }
    }

    fn mount_by_layer(&self, target: &Path) -> io::Result<()> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let context = context.as_fd();
        fsconfig_set_string(context, "source", self.source)?;
        // Descriptors that stand for long paths, open until the file system exists.
        let mut long = Vec::new();
        for option in self.data {
            match option.split_once('=') {
                Some(("lowerdir", layers)) => {
                    for layer in split_layers(layers) {
                        let layer = short(&layer, &mut long)?;
                        fsconfig_set_string(context, "lowerdir+", layer)?;
                    }
                }
                Some((key, value)) => {
                    fsconfig_set_string(context, key, short(value, &mut long)?)?;
                }
                None => fsconfig_set_flag(context, option.as_str())?,
            }
        }
        for (flag, name) in [
            (MsFlags::MS_RDONLY, "ro"),
            (MsFlags::MS_SYNCHRONOUS, "sync"),
            (MsFlags::MS_DIRSYNC, "dirsync"),
        ] {
            if self.flags.contains(flag) {
                fsconfig_set_flag(context, name)?;
            }
        }
        fsconfig_create(context)?;
        let attributes = attributes(self.flags);
        let tree = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(move_mount(tree, "", CWD, target, empty)?)
    }

    fn mount_relative(&self, target: &Path) -> io::Result<()> {
        let lower = self.data.iter().find_map(|o| o.strip_prefix("lowerdir="));
        let layers = split_layers(lower.unwrap_or_default());
        let base = common_dir(&layers);
        let data = self.relative_data(&base);
        if data.len() > MAX_DATA_LEN {
            return Err(io::ErrorKind::ArgumentListTooLong.into());
        }
        let mount_there = || {
            // The working directory is the process's until the thread has its own.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
            std::env::set_current_dir(&base)?;
            let (source, kind) = (Some(self.source), Some("overlay"));
            Ok(mount(
                source,
                target,
                kind,
                self.flags,
                Some(data.as_str()),
            )?)
        };
        let done = std::thread::scope(|scope| scope.spawn(mount_there).join());
        done.unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
    }

    /// The option string with every layer named from `base`.
    fn relative_data(&self, base: &Path) -> String {
        let relative = |option: &String| match option.strip_prefix("lowerdir=") {
            Some(layers) => {
                let layers = split_layers(layers);
                let names = layers.iter().map(|layer| {
                    let name = Path::new(layer).strip_prefix(base);
                    let name = name.map_or(layer.as_str(), |name| name.to_str().unwrap_or(layer));
                    name.replace('\\', "\\\\").replace(':', "\\:")
                });
                format!("lowerdir={}", names.collect::<Vec<_>>().join(":"))
            }
            None => option.clone(),
        };
        self.data.iter().map(relative).collect::<Vec<_>>().join(",")
    }
}

/// Splits a `lowerdir` at its colons; a backslash takes the meaning from the next
/// character.
fn split_layers(list: &str) -> Vec<String> {
    let mut layers = vec![String::new()];
    let mut chars = list.chars();
    while let Some(c) = chars.next() {
        let literal = match c {
            ':' => {
                layers.push(String::new());
                continue;
            }
            '\\' => chars.next().unwrap_or('\\'),
            c => c,
        };
        if let Some(layer) = layers.last_mut() {
            layer.push(literal);
        }
    }
    layers
}

/// The deepest directory above all of them.
fn common_dir(layers: &[String]) -> PathBuf {
    let mut paths = layers.iter().map(Path::new);
    let first = paths.next().and_then(Path::parent);
    let mut common = first.unwrap_or(Path::new("/")).to_owned();
    for path in paths {
        while !path.starts_with(&common) && common.pop() {}
    }
    common
}

/// A value fsconfig(2) takes: a path that is too long becomes a descriptor's.
fn short(value: &str, long: &mut Vec<OwnedFd>) -> io::Result<String> {
    if value.len() <= MAX_VALUE_LEN {
        return Ok(value.to_owned());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(value, flags, Mode::empty())?;
    let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
    long.push(fd);
    Ok(name)
}

fn attributes(flags: MsFlags) -> MountAttrFlags {
    let pairs = [
        (MsFlags::MS_RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MsFlags::MS_NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MsFlags::MS_NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MsFlags::MS_NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MsFlags::MS_NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (
            MsFlags::MS_STRICTATIME,
            MountAttrFlags::MOUNT_ATTR_STRICTATIME,
        ),
        (
            MsFlags::MS_NODIRATIME,
            MountAttrFlags::MOUNT_ATTR_NODIRATIME,
        ),
    ];
    let set = pairs.into_iter().filter(|(flag, _)| flags.contains(*flag));
    set.fold(MountAttrFlags::empty(), |all, (_, attribute)| {
        all | attribute
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn layers_are_split_at_colons_that_mean_it() {
        assert_eq!(split_layers("/a:/b\\:c:/d\\\\e"), ["/a", "/b:c", "/d\\e"]);
        assert_eq!(split_layers("/a"), ["/a"]);
    }

    #[test]
    fn names_are_relative_to_what_the_layers_have_in_common() {
        let data = ["lowerdir=/s/12/fs:/s/1/f\\:s", "upperdir=/s/3/fs"].map(str::to_owned);
        let overlay = Overlay {
            source: "overlay",
            flags: MsFlags::empty(),
            data: &data,
        };
        let layers = split_layers("/s/12/fs:/s/1/f\\:s");
        let base = common_dir(&layers);
        assert_eq!(base, Path::new("/s"));
        assert_eq!(
            overlay.relative_data(&base),
            "lowerdir=12/fs:1/f\\:s,upperdir=/s/3/fs"
        );
        assert_eq!(common_dir(&["/a/b".into(), "/c/d".into()]), Path::new("/"));
    }

    /// 128 layers of one file each, the last of them covering one of the first, mounted
    /// in both ways; and one whose path is longer than fsconfig takes.
    #[test]
    fn a_hundred_and_twenty_eight_layers_are_mounted_whole() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: mounting needs root");
            return;
        }
        let dir = std::env::temp_dir().join(format!("husk-overlay-{}", std::process::id()));
        let scratch = dir.join("scratch");
        fs::create_dir_all(&scratch).unwrap();
        // An overlay cannot lie on one, as /tmp of a container does.
        mount(
            Some("t"),
            &scratch,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        let layer = |n: usize| {
            let name = if n == 7 {
                "x".repeat(250)
            } else {
                n.to_string()
            };
            scratch
                .join("snapshots-of-a-long-name")
                .join(name)
                .join("fs")
        };
        let mut lower = Vec::new();
        for n in 0..128 {
            fs::create_dir_all(layer(n)).unwrap();
            fs::write(layer(n).join(format!("file{n}")), "").unwrap();
            lower.push(layer(n).to_str().unwrap().to_owned());
        }
        fs::write(layer(0).join("file9"), "covered").unwrap();
        for part in ["upper", "work", "merged"] {
            fs::create_dir_all(scratch.join(part)).unwrap();
        }
        let part = |name: &str| format!("{name}dir={}", scratch.join(name).display());
        let data = [
            format!("lowerdir={}", lower.join(":")),
            part("upper"),
            part("work"),
        ];
        assert!(data[0].len() > MAX_DATA_LEN);
        let overlay = Overlay {
            source: "overlay",
            flags: MsFlags::MS_NOSUID,
            data: &data,
        };
        let merged = scratch.join("merged");
        let both: [fn(&Overlay<'_>, &Path) -> io::Result<()>; 2] =
            [|o, at| o.mount(at), |o, at| o.mount_relative(at)];
        for how in both {
            how(&overlay, &merged).unwrap();
            let names = fs::read_dir(&merged).unwrap().count();
            let covered = fs::read_to_string(merged.join("file9")).unwrap();
            fs::write(merged.join("new"), "").unwrap();
            crate::mount::unmount(&merged).unwrap();
            fs::remove_file(scratch.join("upper/new")).unwrap();
            assert_eq!((names, covered.as_str()), (128, "covered"));
        }
        crate::mount::unmount(&scratch).unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }
}
