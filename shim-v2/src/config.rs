//! `/etc/husk/config.toml`: the few things an operator may set. Works with no file.

use std::io;
use std::path::{Path, PathBuf};

use husk_vmm::config::{MAX_CMDLINE_LEN, MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};
use serde::Deserialize;
use thiserror::Error;

/// Where the file is looked for.
pub const PATH: &str = "/etc/husk/config.toml";

/// All keys with their defaults.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The VMM's executable.
    pub vmm: PathBuf,
    /// The guest kernel, an uncompressed ELF `vmlinux`.
    pub kernel: PathBuf,
    /// The initramfs with the agent as `/init`.
    pub initramfs: PathBuf,
    /// vCPUs of a VM whose container sets no CPU limit.
    pub default_vcpus: u32,
    /// RAM in MiB, all in all, of a VM whose container sets no memory limit.
    pub default_memory_mib: u32,
    /// What is written to containerd's log.
    pub log_level: LogLevel,
    /// Appended to the guest's kernel command line.
    pub kernel_params: String,
    /// What becomes of AppArmor and SELinux labels in a spec.
    pub lsm_labels: LabelPolicy,
    /// What becomes of a container that asks for namespaces of the host.
    pub host_namespaces: HostNamespaces,
    /// What becomes of the packet filters of a pod's network namespace.
    pub netfilter: Netfilter,
    /// Whether a pod's annotations may say how large its VM is.
    pub size_annotations: bool,
}

/// No virtual machine is in namespaces of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostNamespaces {
    /// Create refuses the container by the name of the field.
    #[default]
    Refuse,
    /// Its pod is handed over to runc's shim, and has no machine.
    Runc,
}

/// The guest has neither AppArmor nor SELinux, and the host's act on the VMM only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelPolicy {
    /// They are dropped, with a warning: the VM confines the container.
    #[default]
    Ignore,
    /// Create and Exec refuse them by the name of the field.
    Refuse,
}

/// Whether the guest gets the packet filters of the pod's network namespace. There they do not see
/// what the pod sends and receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Netfilter {
    /// The guest has them, too.
    #[default]
    Carry,
    /// They are not looked at.
    Ignore,
}

/// Names of the log levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what failed.
    Error,
    /// Also what will surprise.
    Warn,
    /// Also the life of sandboxes and containers.
    Info,
    /// Also every call.
    Debug,
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let lib = Path::new("/usr/local/lib/husk");
        Self {
            vmm: lib.join("husk-vmm"),
            kernel: lib.join("vmlinux"),
            initramfs: lib.join("initramfs.cpio"),
            default_vcpus: 1,
            default_memory_mib: 64,
            log_level: LogLevel::Info,
            kernel_params: String::new(),
            lsm_labels: LabelPolicy::Ignore,
            host_namespaces: HostNamespaces::Refuse,
            netfilter: Netfilter::Carry,
            size_annotations: false,
        }
    }
}

/// Why the file is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It exists but cannot be read.
    #[error("{path}: cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not TOML, an unknown key or a wrong type; the text names the key.
    #[error("{path}, line {line}: {text}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong and with which key.
        text: String,
    },
    /// A value out of its range.
    #[error("{path}, line {line}: `{key}` is {value}, must be {must}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is accepted.
        must: String,
    },
    /// A key that names a file which is not there.
    #[error("`{key}` is {file}, which cannot be opened: set `{key}` in {PATH} or install the file")]
    File {
        /// The key.
        key: &'static str,
        /// Its value.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Config {
    /// Reads the file at `path`; a missing file means the defaults.
    ///
    /// # Errors
    /// Names file, line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            text: error.message().replace('\n', ", "),
        })?;
        let check = |ok: bool, key: &'static str, value: String, must: String| {
            if ok {
                return Ok(());
            }
            let line = line_of_key(text, key);
            let path = path.to_owned();
            Err(ConfigError::Value {
                path,
                line,
                key,
                value,
                must,
            })
        };
        let (vcpus, memory) = (config.default_vcpus, config.default_memory_mib);
        check(
            (1..=MAX_VCPUS).contains(&vcpus),
            "default_vcpus",
            vcpus.to_string(),
            format!("1 to {MAX_VCPUS}"),
        )?;
        check(
            (MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&memory),
            "default_memory_mib",
            memory.to_string(),
            format!("{MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}"),
        )?;
        let params = &config.kernel_params;
        check(
            params.len() <= MAX_CMDLINE_LEN / 2
                && params.bytes().all(|b| (0x20..0x7f).contains(&b)),
            "kernel_params",
            format!("{} bytes long", params.len()),
            format!("at most {} bytes of printable ASCII", MAX_CMDLINE_LEN / 2),
        )?;
        for (key, file) in config.files() {
            check(
                file.is_absolute(),
                key,
                format!("{file:?}"),
                "an absolute path".to_owned(),
            )?;
        }
        Ok(config)
    }

    /// The keys that name files, with their values.
    fn files(&self) -> [(&'static str, &Path); 3] {
        [
            ("vmm", &self.vmm),
            ("kernel", &self.kernel),
            ("initramfs", &self.initramfs),
        ]
    }
}

/// The line of a byte offset, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    before.iter().filter(|b| **b == b'\n').count() + 1
}

/// The line that sets a key; the file is flat, so its first word is the key.
fn line_of_key(text: &str, key: &str) -> usize {
    let sets = |line: &str| {
        let name = line.split('=').next().unwrap_or_default();
        name.trim().trim_matches('"') == key
    };
    text.lines().position(sets).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/c.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn no_file_and_an_empty_file_mean_the_defaults() {
        let missing = Config::load(Path::new("/nonexistent/husk.toml")).unwrap();
        assert_eq!(missing, Config::default());
        assert_eq!(parse("").unwrap(), Config::default());
        assert_eq!((missing.default_vcpus, missing.default_memory_mib), (1, 64));
    }

    #[test]
    fn every_key_can_be_set() {
        let config = parse(
            "vmm = \"/a\"\nkernel = \"/b\"\ninitramfs = \"/c\"\ndefault_vcpus = 2\n\
             default_memory_mib = 128\nlog_level = \"debug\"\nkernel_params = \"a=b\"\n\
             lsm_labels = \"refuse\"\nhost_namespaces = \"runc\"\n\
             netfilter = \"ignore\"\nsize_annotations = true\n",
        );
        let config = config.unwrap();
        assert_eq!(
            config.files().map(|(_, f)| f.to_str().unwrap()),
            ["/a", "/b", "/c"]
        );
        assert_eq!((config.default_vcpus, config.default_memory_mib), (2, 128));
        assert_eq!(config.log_level, LogLevel::Debug);
        assert_eq!(config.kernel_params, "a=b");
        assert_eq!(config.lsm_labels, LabelPolicy::Refuse);
        assert_eq!(config.host_namespaces, HostNamespaces::Runc);
        assert_eq!(config.netfilter, Netfilter::Ignore);
        assert!(config.size_annotations);
    }

    #[test]
    fn a_mistake_is_one_line_with_file_line_and_key() {
        let cases = [
            ("# x\nvcpus = 2\n", "/c.toml, line 2: unknown field `vcpus`"),
            ("default_vcpus = \"2\"\n", "/c.toml, line 1: invalid type"),
            (
                "log_level = \"loud\"\n",
                "/c.toml, line 1: unknown variant `loud`",
            ),
            ("vmm = [\n", "/c.toml, line"),
            (
                "\ndefault_vcpus = 0",
                "/c.toml, line 2: `default_vcpus` is 0, must be 1 to 254",
            ),
            (
                "default_memory_mib = 8",
                "/c.toml, line 1: `default_memory_mib` is 8, must be 32",
            ),
            (
                "kernel = \"vmlinux\"",
                "/c.toml, line 1: `kernel` is \"vmlinux\", must be an absolute",
            ),
        ];
        for (text, start) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(start), "{text:?} gave {error:?}");
            assert!(!error.contains('\n'), "{error:?}");
        }
    }
}
