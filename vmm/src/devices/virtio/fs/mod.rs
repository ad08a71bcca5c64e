//! The file system device (virtio 1.2, 5.11): host directories in the guest, over FUSE.
//!
//! The guest's FUSE client puts each request into one descriptor chain: a header and
//! arguments to read, and room for a reply. The server behind it is `fuse-backend-rs`:
//! its `Vfs` joins several host directories into one tree, its `PassthroughFs` serves
//! one of them by file descriptors, never by path.
//!
//! ```text
//!  guest: mount -t virtiofs <tag> /share          host: <root>
//!    /share                  pseudo directory
//!    /share/c1               pseudo directory
//!    /share/c1/rootfs  ----  export, cache long ------- <root>/c1/rootfs
//!    /share/c1/config  ----  export, revalidate ------- <root>/c1/config
//! ```
//!
//! * [`tree`] is the tree: exports come and go while the guest has it mounted, each
//!   with its own caching; what the crate leaves open towards a hostile or merely
//!   caching client is closed there.
//! * [`request`] serves one chain: bounds, dispatch, and a reply to what is malformed.
//! * [`worker`] is the thread that may block in file system calls, and the only one
//!   that touches the exported trees.
//! * [`device`] is the virtio side and [`ShareControl`], the handle for exports at
//!   run time.
//!
//! # Whose permissions
//!
//! The guest's kernel checks permissions (Linux mounts virtiofs with
//! `default_permissions`); the server acts as root with the capabilities the jail left
//! it, and takes the caller's user and group for what it creates, so that new files
//! belong to the right one. What a guest that does not check can reach is the exported
//! trees, nothing else.
//!
//! # What differs from a local file system
//!
//! Files cannot be opened with `O_TMPFILE` (EOPNOTSUPP; callers fall back), device nodes
//! cannot be made (EPERM; the VMM has no CAP_MKNOD), inotify does not see changes made
//! on the host, and locks are the guest's own.

mod device;
mod request;
mod tree;
mod worker;

pub use device::{Fs, FsError, ShareControl};
pub use tree::ShareError;

#[cfg(test)]
mod tests;
