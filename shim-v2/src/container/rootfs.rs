//! Stop 9 of twelve: makes the container's rootfs and volumes visible to the guest.
//!
//! containerd's mounts go to the bundle's `rootfs`, as with every runtime. Copies
//! of that tree and of each volume then appear below the share, where the VMM's
//! namespace sees them too:
//!
//! ```text
//! jail/share/<container>/rootfs            the rootfs; only this guest writes it
//! jail/share/<container>/mounts/<n>        a volume: n counts the spec's mounts
//! jail/share/<container>/mounts/<n>/<name> a volume that is a file; the directory
//!                                          around it is read-only and empty
//! ```

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount as SnapshotMount;
use husk_vmm::config::CachePolicy;
use thiserror::Error;

use super::spec::{SourceKind, Volume, file_name, rootfs_export};
use crate::beneath;
use crate::mount::{self, CloneOptions, MountError, ReadOnly};
use crate::sandbox::cleanup::{self, CleanupError};
use crate::sandbox::control::{Control, ControlError};
use crate::sandbox::state_file::StateFile;

/// Why a container's files cannot be shown to the guest.
#[derive(Debug, Error)]
pub enum RootfsError {
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The rootfs is not a directory, or leads out of the bundle.
    #[error("root.path: {path} {problem}")]
    Root {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A mount point could not be made, or the record of it.
    #[error("{path} cannot be made")]
    Make {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The VMM does not export a tree.
    #[error("{path} cannot be shown to the guest")]
    Export {
        /// The export.
        path: PathBuf,
        /// Why.
        source: ControlError,
    },
}

/// What the container's files are made from.
pub struct Sources {
    /// The container.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its rootfs on the host.
    pub rootfs: PathBuf,
    /// containerd's mounts for the rootfs; none when it is there already.
    pub snapshot: Vec<SnapshotMount>,
    /// Its bind mounts.
    pub volumes: Vec<Volume>,
}

impl Sources {
    /// The rootfs must be a directory, and one in the bundle may not link out of it.
    ///
    /// # Errors
    /// [`RootfsError::Root`].
    pub fn check(&self) -> Result<(), RootfsError> {
        let path = &self.rootfs;
        let wrong = |problem: String| RootfsError::Root {
            path: path.clone(),
            problem,
        };
        let real = path
            .canonicalize()
            .map_err(|e| wrong(format!("cannot be used: {e}")))?;
        let bundle = self
            .bundle
            .canonicalize()
            .map_err(|e| wrong(format!("has no bundle: {e}")))?;
        if path.starts_with(&self.bundle) && !real.starts_with(&bundle) {
            return Err(wrong("leads out of the bundle".to_owned()));
        }
        if !real.is_dir() {
            return Err(wrong("is not a directory".to_owned()));
        }
        Ok(())
    }
}

/// What was made for a container, in the order of making.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    mounts: Vec<PathBuf>,
    exports: Vec<(PathBuf, CachePolicy)>,
}

impl Shared {
    /// Shows everything to the share. What was made before an error is in `self`.
    ///
    /// # Errors
    /// See [`RootfsError`].
    pub fn mount(&mut self, file: &StateFile, sources: &Sources) -> Result<(), RootfsError> {
        let share = file.jail().join("share");
        let export = rootfs_export(&sources.id);
        let target = share.join(&export);
        make_dir_in_jail(file, &target)?;
        let private = CloneOptions {
            readonly: ReadOnly::Nothing,
            recursive: true,
            follows_host: false,
        };
        self.clone_tree(file, &sources.rootfs, &target, private)?;
        self.exports.push((export, CachePolicy::Always));
        for volume in &sources.volumes {
            self.mount_volume(file, &share.join(&volume.export), volume)?;
            self.exports
                .push((volume.export.clone(), CachePolicy::Revalidate));
        }
        Ok(())
    }

    /// Mounts what containerd gave for the rootfs: hooks on the host find it there.
    /// What was made before an error is in `self`.
    ///
    /// # Errors
    /// See [`RootfsError`].
    pub fn mount_snapshot(
        &mut self,
        file: &StateFile,
        sources: &Sources,
    ) -> Result<(), RootfsError> {
        let target = sources.bundle.join("rootfs");
        if !sources.snapshot.is_empty() {
            make_dir(&target)?;
        }
        for part in &sources.snapshot {
            self.record(file, &target)?;
            mount::mount_snapshot(&part.type_, &part.source, &part.options, &target)?;
        }
        sources.check()
    }

    fn mount_volume(
        &mut self,
        file: &StateFile,
        target: &Path,
        volume: &Volume,
    ) -> Result<(), RootfsError> {
        make_dir_in_jail(file, target)?;
        let options = CloneOptions {
            readonly: volume.readonly,
            recursive: volume.recursive,
            follows_host: volume.follows_host,
        };
        if volume.kind != SourceKind::File {
            return self.clone_tree(file, &volume.source, target, options);
        }
        let place = target.join(file_name(&volume.source));
        beneath::make_file(&file.jail(), &place).map_err(|source| RootfsError::Make {
            path: place.clone(),
            source,
        })?;
        // The directory is ours, on the host's memory: the guest may not fill it.
        let empty = CloneOptions {
            readonly: ReadOnly::Top,
            recursive: false,
            follows_host: false,
        };
        self.clone_tree(file, target, target, empty)?;
        self.clone_tree(file, &volume.source, &place, options)
    }

    fn clone_tree(
        &mut self,
        file: &StateFile,
        source: &Path,
        target: &Path,
        options: CloneOptions,
    ) -> Result<(), RootfsError> {
        self.record(file, target)?;
        let place = beneath::open(&file.jail(), target);
        let place = place.map_err(|source| RootfsError::Make {
            path: target.to_owned(),
            source,
        })?;
        let own = beneath::handle(&place);
        let source = if source == target { &own } else { source };
        Ok(mount::clone_tree_at(
            source,
            place.as_fd(),
            target,
            options,
        )?)
    }

    /// Puts a mount point on record, here and in `state.json`, before it is mounted on.
    fn record(&mut self, file: &StateFile, target: &Path) -> Result<(), RootfsError> {
        self.mounts.push(target.to_owned());
        let recorded = file.record(|state| state.mounts.push(target.to_owned()));
        recorded.map_err(|source| RootfsError::Make {
            path: file.dir().join("state.json"),
            source,
        })
    }

    /// Shows everything mounted to the guest.
    ///
    /// # Errors
    /// [`RootfsError::Export`].
    pub async fn export(&self, control: &Control) -> Result<(), RootfsError> {
        for (path, cache) in &self.exports {
            let added = control.add_share(path, *cache).await;
            added.map_err(|source| RootfsError::Export {
                path: path.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Takes the exports back, as far as they were made.
    pub async fn take_back(&self, control: &Control) {
        for (path, _) in self.exports.iter().rev() {
            if let Err(error) = control.remove_share(path.clone()).await {
                log::debug!("{} is not taken back: {error}", path.display());
            }
        }
    }

    /// Undoes the mounts and removes the container's directory below the share.
    ///
    /// # Errors
    /// What could not be undone.
    pub fn unmount(&self, file: &StateFile, id: &str) -> Result<(), CleanupError> {
        cleanup::unmount_all(file, &self.mounts)?;
        let jail = file.jail();
        cleanup::remove_tree(&jail, &jail.join("share").join(id))
    }
}

/// What a bind mount's source is; symbolic links are followed as a mount would.
pub fn source_kind(path: &Path) -> io::Result<SourceKind> {
    use std::os::unix::fs::FileTypeExt;
    let kind = fs::metadata(path)?.file_type();
    if kind.is_dir() {
        // The table of mounts has real paths.
        let dir = path.canonicalize()?;
        let mounts = mount::mounts_below(&dir)?;
        let is_tree = mounts.iter().any(|point| *point != dir);
        return Ok(if is_tree {
            SourceKind::Tree
        } else {
            SourceKind::Directory
        });
    }
    if kind.is_socket() || kind.is_char_device() || kind.is_block_device() {
        log::warn!(
            "{} is a socket or a device of the host: the guest sees it but cannot use it",
            path.display()
        );
    }
    Ok(SourceKind::File)
}

fn make_dir_in_jail(file: &StateFile, path: &Path) -> Result<(), RootfsError> {
    let made = beneath::make_dirs(&file.jail(), path, 0o711);
    made.map_err(|source| RootfsError::Make {
        path: path.to_owned(),
        source,
    })
}

fn make_dir(path: &Path) -> Result<(), RootfsError> {
    let mut builder = fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o711).create(path);
    made.map_err(|source| RootfsError::Make {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rootfs_that_links_out_of_its_bundle_or_is_no_directory_is_refused() {
        let dir = std::env::temp_dir().join(format!("husk-rootfs-{}", std::process::id()));
        let bundle = dir.join("bundle");
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::write(bundle.join("file"), "").unwrap();
        std::os::unix::fs::symlink("/etc", bundle.join("link")).unwrap();
        let check = |rootfs: PathBuf| {
            let sources = Sources {
                id: "c".to_owned(),
                bundle: bundle.clone(),
                rootfs,
                snapshot: Vec::new(),
                volumes: Vec::new(),
            };
            sources.check().map_err(|error| error.to_string())
        };
        assert_eq!(check(bundle.join("rootfs")), Ok(()));
        assert_eq!(check("/etc".into()), Ok(()));
        assert!(
            check(bundle.join("link"))
                .unwrap_err()
                .ends_with("leads out of the bundle")
        );
        assert!(
            check(bundle.join("file"))
                .unwrap_err()
                .ends_with("is not a directory")
        );
        assert!(
            check(bundle.join("none"))
                .unwrap_err()
                .contains("cannot be used")
        );
        fs::remove_dir_all(dir).unwrap();
    }
}
