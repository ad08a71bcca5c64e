//! `tmpcopyup`: a tmpfs that begins with what the directory below it holds.

use std::fs;
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, fchown, lchown, symlink,
};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, mknod};

use crate::container::setup_error::{Context, SetupError};

/// Copies what is in the working directory to `to`: contents, owners and modes.
pub fn copy_tree(to: &Path) -> Result<(), SetupError> {
    // A list and not a recursion: the depth is that of an image's directories.
    let mut left = vec![PathBuf::from(".")];
    while let Some(dir) = left.pop() {
        let what = || format!("tmpcopyup: reading {:?}", to.join(&dir));
        for entry in fs::read_dir(&dir).or_request(what)? {
            let name = entry.or_request(what)?.file_name();
            let from = dir.join(name);
            let target = to.join(&from);
            copy(&from, &target, &mut left)
                .or_request(|| format!("tmpcopyup: copying {target:?}"))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, left: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let found = fs::symlink_metadata(from)?;
    let kind = found.file_type();
    let mode = found.mode() & 0o7777;
    let (owner, group) = (Some(found.uid()), Some(found.gid()));
    if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        return lchown(to, owner, group);
    }
    if kind.is_file() {
        let mut source = fs::File::open(from)?;
        let mut copy = fs::File::create_new(to)?;
        std::io::copy(&mut source, &mut copy)?;
        fchown(&copy, owner, group)?;
        // After the owner, whose change clears the set-user-id bits.
        return copy.set_permissions(fs::Permissions::from_mode(mode));
    }
    if kind.is_dir() {
        fs::DirBuilder::new().mode(0o700).create(to)?;
        left.push(from.to_owned());
    } else if kind.is_socket() {
        // Means nothing without the process that listens on it.
        return Ok(());
    } else {
        let kind = SFlag::from_bits_truncate(found.mode()) & SFlag::S_IFMT;
        mknod(to, kind, Mode::empty(), found.rdev())?;
    }
    lchown(to, owner, group)?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_arrives_with_contents_links_and_modes() {
        let base = std::env::temp_dir().join(format!("husk-agent-copy-up-{}", std::process::id()));
        let (from, to) = (base.join("from"), base.join("to"));
        fs::create_dir_all(from.join("deep/er")).unwrap();
        fs::create_dir_all(&to).unwrap();
        fs::write(from.join("deep/er/file"), "text").unwrap();
        fs::set_permissions(
            from.join("deep/er/file"),
            fs::Permissions::from_mode(0o4711),
        )
        .unwrap();
        fs::set_permissions(from.join("deep"), fs::Permissions::from_mode(0o1777)).unwrap();
        symlink("/nowhere", from.join("link")).unwrap();
        // The working directory belongs to the whole process: copy in one of its own.
        let status = {
            let (from, to) = (from.clone(), to.clone());
            std::thread::spawn(move || {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
                nix::unistd::chdir(&from).unwrap();
                copy_tree(&to)
            })
            .join()
            .unwrap()
        };
        status.unwrap();
        assert_eq!(fs::read_to_string(to.join("deep/er/file")).unwrap(), "text");
        let mode = |path: &str| fs::symlink_metadata(to.join(path)).unwrap().mode() & 0o7777;
        assert_eq!(mode("deep/er/file"), 0o4711);
        assert_eq!(mode("deep"), 0o1777);
        assert_eq!(
            fs::read_link(to.join("link")).unwrap(),
            Path::new("/nowhere")
        );
        fs::remove_dir_all(&base).unwrap();
    }
}
