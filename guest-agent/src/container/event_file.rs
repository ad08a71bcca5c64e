//! Files of a cgroup that report when they change: `cgroup.events` and `memory.events`
//! (Documentation/admin-guide/cgroup-v2.rst).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::sys::uio::pread;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::cgroup::CgroupError;
use crate::sys;

/// Longer than any of these files, in bytes: a few short lines each.
const MAX_TEXT: usize = 1024;

/// One open file.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: AsyncFd<OwnedFd>,
}

impl EventFile {
    /// Opens the file and begins to watch it.
    pub fn open(path: PathBuf) -> Result<Self, CgroupError> {
        let opened = File::open(&path)
            // A change is reported as a priority event.
            .and_then(|file| sys::watch_fd(file.into(), Interest::PRIORITY));
        match opened {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(CgroupError::Io {
                action: "watching",
                path,
                source,
            }),
        }
    }

    /// Waits until `wanted` finds something in the text.
    pub async fn wait_for<T>(&self, wanted: impl Fn(&str) -> Option<T>) -> Result<T, CgroupError> {
        let wait = async {
            loop {
                // Looked at before each wait: what happened since the last look, or
                // before the first, is never missed.
                if let Some(found) = wanted(&self.text()?) {
                    return Ok(found);
                }
                self.file.ready(Interest::PRIORITY).await?.clear_ready();
            }
        };
        wait.await.map_err(|source: io::Error| CgroupError::Io {
            action: "watching",
            path: self.path.clone(),
            source,
        })
    }

    fn text(&self) -> io::Result<String> {
        let mut text = [0; MAX_TEXT];
        let length = pread(self.file.get_ref(), &mut text, 0)?;
        let text = text.get(..length).unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}

/// The number after `key` in a file of lines `KEY NUMBER`.
pub fn number(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(key)?.strip_prefix(' ')?;
        rest.trim().parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_matched_as_a_whole() {
        let text = "low 0\nmax 7\noom 1\noom_kill 3\noom_group_kill 0\n";
        assert_eq!(number(text, "oom_kill"), Some(3));
        assert_eq!(number(text, "oom"), Some(1));
        assert_eq!(number(text, "oo"), None);
        assert_eq!(number("", "oom"), None);
        assert_eq!(number("frozen x\n", "frozen"), None);
    }
}
