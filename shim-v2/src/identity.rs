//! Which file a path leads to: two paths that lead to one namespace are one namespace.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Device and inode, which are a file's own as long as it exists.
pub fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// That of the file that a path leads to, if there is one.
pub fn identity_of(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().as_ref().map(identity)
}
