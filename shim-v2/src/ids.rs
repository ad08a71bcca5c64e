//! Ids that become file names: containers, execs and containerd namespaces.

use thiserror::Error;

/// Longest id accepted, in bytes; containerd's own limit is 76.
const MAX_LEN: usize = 128;

/// Why an id is refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "id {0:?} is not usable: 1 to {MAX_LEN} of a-z, A-Z, 0-9, `_`, `-` and `.`, starting with a letter or digit"
)]
pub struct InvalidId(String);

/// Checks that an id is a plain file name.
///
/// # Errors
/// [`InvalidId`] with the id.
pub fn check(id: &str) -> Result<(), InvalidId> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let first = id.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if first && id.len() <= MAX_LEN && id.chars().all(plain) {
        return Ok(());
    }
    Err(InvalidId(id.chars().take(MAX_LEN).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_file_names_pass() {
        for id in ["a", "k8s.io", "0a1b-2_c", "moby"] {
            assert_eq!(check(id), Ok(()), "{id}");
        }
        for id in [
            "",
            ".",
            "..",
            "a/b",
            "../a",
            "a b",
            "-x",
            "a\n",
            &"x".repeat(129),
        ] {
            assert!(check(id).is_err(), "{id:?}");
        }
    }
}
