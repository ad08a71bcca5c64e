//! Files and directories of the jail, which is the VMM's whole world: whoever has taken
//! over the VMM may put a symbolic link anywhere in it. Nothing here follows one, nor
//! leaves the directory it starts from, see openat2(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};

/// Directories below each other that are removed: the shim makes no more.
const MAX_DEPTH: usize = 8;

/// Opens `path`, which lies below `root`, to name it: as with `O_PATH`, whatever it is.
///
/// # Errors
/// Whatever openat2(2) gives; `ELOOP` or `EXDEV` when a link was put in the way.
pub fn open(root: &Path, path: &Path) -> io::Result<OwnedFd> {
    resolve(root, path, OFlags::PATH)
}

fn resolve(root: &Path, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let below = path.strip_prefix(root).map_err(|_| {
        let text = format!("{} is not below {}", path.display(), root.display());
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })?;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, directory, Mode::empty())?;
    if below.as_os_str().is_empty() {
        return Ok(rustix::fs::openat(root, ".", flags, Mode::empty())?);
    }
    inside(root.as_fd(), below, flags)
}

/// As [`open`], from an open directory.
///
/// # Errors
/// As [`open`].
pub fn open_at(root: BorrowedFd<'_>, below: &Path) -> io::Result<OwnedFd> {
    inside(root, below, OFlags::PATH | OFlags::CLOEXEC)
}

fn inside(root: BorrowedFd<'_>, below: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let stay = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let opened = rustix::fs::openat2(root, below, flags, Mode::empty(), stay);
    Ok(opened?)
}

/// A path to what is open, for calls that take nothing else; valid as long as `fd`.
pub fn handle(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// Makes the directory `path` and those above it up to `root`; one may be there.
///
/// # Errors
/// Which of them cannot be made, and why.
pub fn make_dirs(root: &Path, path: &Path, mode: u32) -> io::Result<()> {
    let below: Vec<&Path> = path.ancestors().take_while(|dir| *dir != root).collect();
    for dir in below.into_iter().rev() {
        let (parent, name) = parent_and_name(root, dir)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Makes an empty file; one may be there.
///
/// # Errors
/// Why not.
pub fn make_file(root: &Path, path: &Path) -> io::Result<()> {
    let (parent, name) = parent_and_name(root, path)?;
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mode = Mode::from_raw_mode(0o644);
    rustix::fs::openat(parent, name, flags | OFlags::CLOEXEC, mode)?;
    Ok(())
}

fn parent_and_name<'a>(root: &Path, path: &'a Path) -> io::Result<(OwnedFd, &'a Path)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((open(root, parent)?, Path::new(name))),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Unmounts what was mounted last at `path`, at once even if it is busy. Nothing
/// mounted there is success: clean-up may run twice.
///
/// # Errors
/// A link in the way, or what the kernel refused.
pub fn unmount(root: &Path, path: &Path) -> io::Result<()> {
    let place = match open(root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    match umount2(&handle(&place), MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes the directory `path` with all that the shim makes in one: directories,
/// sockets, empty files, state files.
///
/// # Errors
/// `NotFound`; and what is of another kind, which is left alone with what is above it.
pub fn remove_dir(root: &Path, path: &Path) -> io::Result<()> {
    let dir = resolve(root, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    empty(dir.as_fd(), path, MAX_DEPTH)?;
    let (parent, name) = match path == root {
        true => return std::fs::remove_dir(path),
        false => parent_and_name(root, path)?,
    };
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

fn empty(dir: BorrowedFd<'_>, path: &Path, depth: usize) -> io::Result<()> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let shown = path.join(name.to_string_lossy().as_ref());
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_state = name.to_bytes().starts_with(b"state.json");
        if kind == FileType::Directory && depth > 0 {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let child = rustix::fs::openat(dir, name, flags, Mode::empty())?;
            empty(child.as_fd(), &shown, depth - 1)?;
            rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?;
        } else if kind == FileType::Socket
            || (kind == FileType::RegularFile && (is_state || stat.st_size == 0))
        {
            rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
        } else {
            let text = format!("{} is not of the shim's making", shown.display());
            return Err(io::Error::other(text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn temp_dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("husk-beneath-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("jail/share")).unwrap();
        fs::create_dir_all(dir.join("host/c")).unwrap();
        dir
    }

    #[test]
    fn no_link_in_the_way_is_followed() {
        let dir = temp_dir("links");
        let jail = dir.join("jail");
        symlink(dir.join("host"), jail.join("share/abroad")).unwrap();
        symlink("../../host", jail.join("share/relative")).unwrap();
        for link in ["abroad", "relative"] {
            let link = jail.join("share").join(link);
            assert!(open(&jail, &link.join("c")).is_err());
            assert!(make_dirs(&jail, &link.join("new"), 0o700).is_err());
            assert!(make_file(&jail, &link.join("file")).is_err());
            assert!(unmount(&jail, &link.join("c")).is_err());
            assert!(remove_dir(&jail, &link).is_err());
            assert!(remove_dir(&jail, &link.join("c")).is_err());
        }
        assert!(make_file(&jail, &jail.join("share/abroad")).is_err());
        assert!(open(&jail, &jail.join("../host")).is_err());
        assert!(open(&jail, &dir.join("host")).is_err());
        let host: Vec<_> = fs::read_dir(dir.join("host")).unwrap().collect();
        assert_eq!(host.len(), 1, "{host:?}");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_is_made_can_be_opened_and_removed_again() {
        let dir = temp_dir("made");
        let jail = dir.join("jail");
        let deep = jail.join("share/c/mounts/0");
        for _ in 0..2 {
            make_dirs(&jail, &deep, 0o711).unwrap();
            make_file(&jail, &deep.join("hosts")).unwrap();
        }
        assert!(handle(&open(&jail, &deep).unwrap()).join("hosts").exists());
        unmount(&jail, &deep).unwrap();
        remove_dir(&jail, &jail.join("share/c")).unwrap();
        assert!(!jail.join("share/c").exists());
        let mut abyss = jail.join("share");
        abyss.extend(std::iter::repeat_n("d", MAX_DEPTH + 2));
        fs::create_dir_all(&abyss).unwrap();
        assert!(remove_dir(&dir, &jail).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
