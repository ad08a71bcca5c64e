//! Which file a container's `args[0]` means: the rules, and the error texts, of Go's
//! `exec.LookPath`, because callers of container runtimes read them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{SFlag, stat};
use nix::unistd::{AccessFlags, faccessat};

use super::setup_error::SetupError;
use crate::sys;

/// Finds the program `name` along `path`, the value of the container's `PATH`.
/// To be called with the credentials the program will have.
pub fn look_up(name: &str, path: Option<&str>) -> Result<PathBuf, SetupError> {
    let failed = |why: &str| SetupError::request(format!("exec: {name:?}: {why}"));
    if name.contains('/') {
        let file = PathBuf::from(name);
        return match check(&file) {
            Ok(()) => Ok(file),
            Err(Errno::ENOENT) => Err(failed(&format!(
                "stat {name}: {}",
                sys::errno_text(Errno::ENOENT)
            ))),
            Err(errno) => Err(failed(&sys::errno_text(errno))),
        };
    }
    // An unset PATH has no entries, an empty entry in one means the working directory.
    let path = path.unwrap_or_default();
    for dir in path.split(':').filter(|_| !path.is_empty()) {
        let dir = if dir.is_empty() { "." } else { dir };
        let file = Path::new(dir).join(name);
        if check(&file).is_ok() {
            if !file.is_absolute() {
                return Err(failed(
                    "cannot run executable found relative to current directory",
                ));
            }
            return Ok(file);
        }
    }
    Err(failed("executable file not found in $PATH"))
}

/// Whether `file` can be executed.
fn check(file: &Path) -> nix::Result<()> {
    let found = stat(file)?;
    if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
        return Err(Errno::EISDIR);
    }
    // Not eaccess(3): with glibc it asks as the real user, without its capabilities.
    faccessat(AT_FDCWD, file, AccessFlags::X_OK, AtFlags::AT_EACCESS)
}

/// The value of `key` in a list of `KEY=value`.
pub fn variable<'a>(env: &'a [String], key: &str) -> Option<&'a str> {
    env.iter()
        .filter_map(|entry| entry.split_once('='))
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value)
}

/// `env` with one entry per name, the last value counting, in the order of first appearance.
pub fn unique_env(env: &[String]) -> Vec<String> {
    let name = |entry: &str| {
        entry
            .split_once('=')
            .map_or(entry.to_owned(), |(name, _)| name.to_owned())
    };
    let mut unique: Vec<String> = Vec::with_capacity(env.len());
    let mut places = std::collections::HashMap::<String, usize>::new();
    for entry in env {
        match places.get(&name(entry)) {
            Some(place) => unique[*place].clone_from(entry),
            None => {
                places.insert(name(entry), unique.len());
                unique.push(entry.clone());
            }
        }
    }
    unique
}

/// The home directory `/etc/passwd` gives for `uid`; `/` if it does not say.
pub fn home_in_passwd(passwd: &[u8], uid: u32) -> PathBuf {
    for line in passwd.split(|byte| *byte == b'\n') {
        // name:password:uid:gid:gecos:home:shell
        let mut fields = line.split(|byte| *byte == b':');
        let found = fields
            .nth(2)
            .and_then(|field| std::str::from_utf8(field).ok()?.trim().parse().ok());
        if found == Some(uid) {
            let home = fields.nth(2).filter(|home| !home.is_empty());
            return home.map_or("/".into(), |home| OsStr::from_bytes(home).into());
        }
    }
    "/".into()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn text(result: Result<PathBuf, SetupError>) -> String {
        result.unwrap_err().text
    }

    #[test]
    fn texts_of_what_cannot_be_executed() {
        let missing = "exec: \"nosuch\": executable file not found in $PATH";
        assert_eq!(text(look_up("nosuch", Some("/bin:/usr/bin"))), missing);
        assert_eq!(text(look_up("nosuch", None)), missing);
        assert_eq!(
            text(look_up("sh", Some(""))),
            missing.replace("nosuch", "sh")
        );
        assert_eq!(
            text(look_up("", Some("/bin"))),
            missing.replace("nosuch", "")
        );
        assert_eq!(
            text(look_up("/nosuch", None)),
            "exec: \"/nosuch\": stat /nosuch: no such file or directory"
        );
        assert_eq!(
            text(look_up("/etc", None)),
            "exec: \"/etc\": is a directory"
        );
    }

    #[test]
    fn a_file_without_x_bits_is_passed_over() {
        let dir = std::env::temp_dir().join(format!("husk-agent-program-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("tool");
        fs::write(&file, "").unwrap();
        let path = dir.to_str().unwrap();
        let name = file.to_str().unwrap();
        assert_eq!(
            text(look_up(name, None)),
            format!("exec: {name:?}: permission denied")
        );
        assert!(look_up("tool", Some(path)).is_err());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(
            look_up("tool", Some(&format!("/nosuch:{path}"))).unwrap(),
            file
        );
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_working_directory_is_no_place_for_programs() {
        // Cargo runs tests in the package's directory.
        let found = text(look_up("image.sh", Some(":/bin")));
        assert!(
            found.ends_with("cannot run executable found relative to current directory"),
            "{found}"
        );
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let env = ["A=1", "B=2", "A=3", "EMPTY=", "BARE"].map(String::from);
        let unique = unique_env(&env);
        assert_eq!(unique, ["A=3", "B=2", "EMPTY=", "BARE"]);
        assert_eq!(variable(&unique, "A"), Some("3"));
        assert_eq!(variable(&unique, "EMPTY"), Some(""));
        assert_eq!(variable(&unique, "BARE"), None);
    }

    #[test]
    fn home_comes_from_the_first_line_with_the_uid() {
        let passwd = b"# comment\nroot:x:0:0:root:/root:/bin/sh\n\nweb:x:33:33::/var/www:/bin/false\nx:x:33:1::/no:\n";
        assert_eq!(home_in_passwd(passwd, 0), Path::new("/root"));
        assert_eq!(home_in_passwd(passwd, 33), Path::new("/var/www"));
        assert_eq!(home_in_passwd(passwd, 1000), Path::new("/"));
        assert_eq!(home_in_passwd(b"a:x:5", 5), Path::new("/"));
        assert_eq!(home_in_passwd(b"", 0), Path::new("/"));
    }
}
