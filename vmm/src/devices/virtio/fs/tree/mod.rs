//! The exported trees as one FUSE file system.
//!
//! [`Tree`] stands between the FUSE server and the crate's `Vfs`. It delegates every
//! operation, and adds what the crate does not do:
//!
//! * **Names** are checked once, for every operation that takes one: a single component,
//!   not `.` or `..`, 1 to 255 bytes. (The Vfs checks most of this too; two locks on
//!   the door to the host.)
//! * **Sizes** the guest asks for are bounded before anything is allocated for them.
//! * **ENOSYS never comes from a pseudo directory.** A FUSE client takes it for "not
//!   supported, anywhere, ever again": one `getxattr` on the top directory would switch
//!   extended attributes off in all exports.
//! * **Exports can change under a mounted guest.** Pseudo directories and roots of
//!   exports are never cached by name, and an export's inodes carry a generation, so
//!   that a node id reused by a later export is not taken for the earlier one's.
//! * **Names that do not exist** are cached where only the guest can make them exist;
//!   programs look for their libraries in many places.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, FsOptions, OpenOptions, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, GetxattrReply, ListxattrReply, SetattrValid,
    ZeroCopyReader, ZeroCopyWriter,
};
use fuse_backend_rs::api::{BackFileSystem, Vfs, VfsOptions};
use fuse_backend_rs::passthrough::{CachePolicy as FsCachePolicy, Config, PassthroughFs};
use thiserror::Error;

use crate::config::{CachePolicy, Export};

/// How long the guest may trust what only it can change.
const CACHE_LONG: Duration = Duration::from_secs(86_400);

/// The file system index in the top byte of a node id; 0 is the pseudo file system.
const INDEX_SHIFT: u32 = 56;
const PSEUDO: u64 = 0;

/// Most exports at a time: file system indices 1 to 255.
const MAX_EXPORTS: usize = 255;

/// Longest name of a directory entry (NAME_MAX), in bytes.
const MAX_NAME_LEN: usize = 255;

/// Most bytes of one extended attribute or of a list of them (XATTR_SIZE_MAX).
const MAX_XATTR_LEN: u32 = 65_536;

/// Most bytes of directory entries in one reply.
const MAX_DIRENTS_LEN: u32 = 1 << 20;

/// Why a tree could not be exported or taken back.
#[derive(Debug, Error)]
pub enum ShareError {
    /// The directory cannot be opened.
    #[error("cannot export {}: cannot open it", path.display())]
    Open {
        /// The directory on the host.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Only directories are exported; a single file can be mounted into one.
    #[error("cannot export {}: not a directory", path.display())]
    NotADirectory {
        /// The path on the host.
        path: PathBuf,
    },
    /// The tree, one above or one below it is exported already.
    #[error("cannot export {}: it overlaps the export {}", path.display(), other.display())]
    Overlap {
        /// The export asked for.
        path: PathBuf,
        /// The one that exists.
        other: PathBuf,
    },
    /// The path is not one of plain UTF-8 components.
    #[error("cannot export {}: not a relative path of plain UTF-8 components", path.display())]
    Path {
        /// The export asked for.
        path: PathBuf,
    },
    /// All file system indices are in use.
    #[error("cannot export {}: there are {MAX_EXPORTS} exports already", path.display())]
    TooMany {
        /// The export asked for.
        path: PathBuf,
    },
    /// The union refused the tree.
    #[error("cannot export {}: {reason}", path.display())]
    Vfs {
        /// The export asked for.
        path: PathBuf,
        /// The crate's words.
        reason: String,
    },
    /// No such export.
    #[error("{} is not exported", path.display())]
    NotExported {
        /// The path given.
        path: PathBuf,
    },
    /// The thread that serves the share did not answer in time, or is gone.
    #[error("the share did not answer within {seconds} s; a file system below it may be stuck")]
    Unanswered {
        /// The deadline.
        seconds: u64,
    },
}

/// The file system the guest mounts.
pub struct Tree {
    root: PathBuf,
    vfs: Vfs,
    exports: Mutex<BTreeMap<PathBuf, u8>>,
    /// Per file system index: 0 when free, else [`Slot`].
    slots: [AtomicU64; 256],
    next_generation: AtomicU64,
}

/// What the hot path needs to know of an export, in one word.
#[derive(Clone, Copy)]
struct Slot {
    generation: u64,
    cache_long: bool,
}

impl Slot {
    fn pack(self) -> u64 {
        self.generation << 1 | u64::from(self.cache_long)
    }

    fn unpack(word: u64) -> Option<Self> {
        (word != 0).then_some(Self {
            generation: word >> 1,
            cache_long: word & 1 != 0,
        })
    }
}

impl Tree {
    /// An empty tree; exports live below `root` on the host.
    pub fn new(root: PathBuf) -> Self {
        let mut options = VfsOptions {
            no_open: false,
            no_opendir: false,
            // The guest would keep sizes and times of files to itself, and not see
            // what the host does to a volume's files.
            no_writeback: true,
            killpriv_v2: true,
            ..VfsOptions::default()
        };
        options.out_opts.remove(FsOptions::PERFILE_DAX);
        // A listing without attributes tells the host's inode numbers, which are not the
        // guest's, and fails on those above 2^56, as overlayfs makes them: the guest is
        // to ask for attributes always.
        options.out_opts.remove(FsOptions::READDIRPLUS_AUTO);
        let mut vfs = Vfs::new(options);
        vfs.set_remove_pseudo_root();
        Self {
            root,
            vfs,
            exports: Mutex::default(),
            slots: [const { AtomicU64::new(0) }; 256],
            next_generation: AtomicU64::new(1),
        }
    }

    /// Exports one more tree. The guest sees it with its next lookup.
    pub fn add(&self, export: &Export) -> Result<(), ShareError> {
        let path = || export.path.clone();
        let Some(name) = export.path.to_str().filter(|_| export.validate().is_ok()) else {
            return Err(ShareError::Path { path: path() });
        };
        let mut exports = self.exports.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = exports.keys().find(|other| overlap(other, &export.path)) {
            let other = other.clone();
            return Err(ShareError::Overlap {
                path: path(),
                other,
            });
        }
        if exports.len() >= MAX_EXPORTS {
            return Err(ShareError::TooMany { path: path() });
        }
        let fs = open(&self.root.join(name), export.cache)?;
        let index = self
            .vfs
            .mount(Box::new(fs), &format!("/{name}"))
            .map_err(|error| ShareError::Vfs {
                path: path(),
                reason: error.to_string(),
            })?;
        let slot = Slot {
            generation: self.next_generation.fetch_add(1, Ordering::Relaxed),
            cache_long: export.cache == CachePolicy::Always,
        };
        self.slots[usize::from(index)].store(slot.pack(), Ordering::Release);
        exports.insert(path(), index);
        Ok(())
    }

    /// Takes a tree back and closes every descriptor below it. What the guest still
    /// holds of it answers ENOENT. Must not run beside a request.
    pub fn remove(&self, path: &Path) -> Result<(), ShareError> {
        let mut exports = self.exports.lock().unwrap_or_else(PoisonError::into_inner);
        let not_exported = || ShareError::NotExported { path: path.into() };
        let (path, index) = exports.remove_entry(path).ok_or_else(not_exported)?;
        self.slots[usize::from(index)].store(0, Ordering::Release);
        let name = path.to_str().ok_or_else(not_exported)?;
        self.vfs
            .umount(&format!("/{name}"))
            .map_err(|_| not_exported())?;
        // The Vfs has dropped the pseudo directory of the export itself; those above it
        // go when nothing else is below them.
        let pseudo = self.vfs.get_root_pseudofs();
        for above in path.ancestors().skip(1) {
            let in_use = exports.keys().any(|other| other.starts_with(above));
            let Some(name) = above.to_str().filter(|name| !name.is_empty() && !in_use) else {
                break;
            };
            if let Ok(Some(inode)) = pseudo.path_walk(&format!("/{name}")) {
                pseudo.evict_inode(inode);
            }
        }
        Ok(())
    }

    fn slot(&self, inode: u64) -> Option<Slot> {
        let index = inode >> INDEX_SHIFT;
        Slot::unpack(self.slots[index as usize].load(Ordering::Acquire))
    }

    /// The export an inode belongs to.
    fn backend(&self, inode: u64) -> io::Result<Arc<BackFileSystem>> {
        let index = inode >> INDEX_SHIFT;
        let exports = self.exports.lock().unwrap_or_else(PoisonError::into_inner);
        let (path, _) = exports
            .iter()
            .find(|(_, other)| u64::from(**other) == index)
            .ok_or_else(|| errno(libc::ENOENT))?;
        let mounted = self.vfs.get_rootfs(&format!("/{}", path.display()));
        match mounted {
            Ok(Some((fs, _))) => Ok(fs),
            _ => Err(errno(libc::ENOENT)),
        }
    }

    /// Completes an entry on its way to the guest.
    fn stamp(&self, mut entry: Entry) -> Entry {
        match self.slot(entry.inode) {
            Some(slot) => entry.generation = slot.generation,
            None => {
                entry.entry_timeout = Duration::ZERO;
                entry.attr_timeout = Duration::ZERO;
            }
        }
        entry
    }

    /// The name `entry` was found under is a pseudo directory's, so it may go or be
    /// another export's at any time. And the Vfs remembers the attributes of an export's
    /// root from when it was mounted.
    fn stamp_below_pseudo(&self, ctx: &Context, entry: Entry) -> io::Result<Entry> {
        let mut entry = self.stamp(entry);
        entry.entry_timeout = Duration::ZERO;
        if is_pseudo(entry.inode) {
            return Ok(entry);
        }
        (entry.attr, entry.attr_timeout) = self.vfs.getattr(ctx, entry.inode.into(), None)?;
        entry.attr.st_ino = entry.inode;
        Ok(entry)
    }
}

/// Opens a directory for passing through.
fn open(path: &Path, cache: CachePolicy) -> Result<PassthroughFs, ShareError> {
    let failed = |source| ShareError::Open {
        path: path.to_owned(),
        source,
    };
    if !path.symlink_metadata().map_err(failed)?.is_dir() {
        let path = path.to_owned();
        return Err(ShareError::NotADirectory { path });
    }
    let (timeout, cache_policy) = match cache {
        CachePolicy::Always => (CACHE_LONG, FsCachePolicy::Always),
        CachePolicy::Revalidate => (Duration::ZERO, FsCachePolicy::Auto),
    };
    let config = Config {
        root_dir: path.to_string_lossy().into_owned(),
        entry_timeout: timeout,
        attr_timeout: timeout,
        cache_policy,
        xattr: true,
        // Names are checked by the Vfs and by `Tree`.
        do_import: false,
        // Otherwise the crate remembers the number of every file ever seen.
        use_host_ino: true,
        ..Config::default()
    };
    let fs = PassthroughFs::new(config).map_err(failed)?;
    fs.import().map_err(failed)?;
    Ok(fs)
}

fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

fn is_pseudo(inode: u64) -> bool {
    inode >> INDEX_SHIFT == PSEUDO
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// One component of a path, and nothing that could mean another directory.
fn check_name(name: &CStr) -> io::Result<()> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(errno(libc::EINVAL)),
        bytes if bytes.contains(&b'/') => Err(errno(libc::EINVAL)),
        bytes if bytes.len() > MAX_NAME_LEN => Err(errno(libc::ENAMETOOLONG)),
        _ => Ok(()),
    }
}

/// Pseudo directories cannot be changed.
fn check_writable(inode: u64) -> io::Result<()> {
    if is_pseudo(inode) {
        return Err(errno(libc::EROFS));
    }
    Ok(())
}

mod dots;
mod operations;
