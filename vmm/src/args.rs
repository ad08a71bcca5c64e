//! The command line.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use thiserror::Error;

/// What `--help` and a wrong command line show.
pub const USAGE: &str = "\
usage: husk-vmm --config FILE
       husk-vmm --jail DIR --config-fd N --control-fd N --log-fd N

  --config FILE     run the machine described in FILE (JSON) from this terminal;
                    Ctrl-A x ends it
  --jail DIR        make DIR the root and give up privileges before anything else
  --config-fd N     read the machine's description from this descriptor
  --control-fd N    serve requests on this SOCK_SEQPACKET socket; its hang-up ends
                    the machine
  --log-fd N        write the log to this descriptor";

/// How the process was started.
#[derive(Debug, PartialEq, Eq)]
pub enum Args {
    /// From a terminal.
    ByHand {
        /// The `VmConfig`.
        config: PathBuf,
    },
    /// By the shim.
    Jailed {
        /// The directory that becomes the root.
        jail: PathBuf,
        /// Read to its end for the `VmConfig`.
        config: RawFd,
        /// The control socket.
        control: RawFd,
        /// The log.
        log: RawFd,
    },
    /// `--help`.
    Help,
}

/// What is wrong with a command line.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ArgsError {
    /// Not one of ours.
    #[error("unknown argument {0:?}")]
    Unknown(OsString),
    /// Nothing follows the option.
    #[error("{0} needs a value")]
    NoValue(&'static str),
    /// Not a number.
    #[error("{option} needs the number of a descriptor, not {value:?}")]
    NotADescriptor {
        /// The option.
        option: &'static str,
        /// What follows it.
        value: OsString,
    },
    /// `--config`, or the four options of the jail, neither less nor both.
    #[error("either --config or all of --jail, --config-fd, --control-fd and --log-fd is needed")]
    Combination,
}

/// Parses the arguments after the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Args, ArgsError> {
    let mut args = args.into_iter();
    let (mut file, mut jail) = (None, None);
    let (mut config, mut control, mut log) = (None, None, None);
    while let Some(arg) = args.next() {
        let mut value = |option| args.next().ok_or(ArgsError::NoValue(option));
        match arg.to_str() {
            Some("--help" | "-h") => return Ok(Args::Help),
            Some("--config") => file = Some(value("--config")?),
            Some("--jail") => jail = Some(value("--jail")?),
            Some("--config-fd") => config = Some(fd("--config-fd", value("--config-fd")?)?),
            Some("--control-fd") => control = Some(fd("--control-fd", value("--control-fd")?)?),
            Some("--log-fd") => log = Some(fd("--log-fd", value("--log-fd")?)?),
            _ => return Err(ArgsError::Unknown(arg)),
        }
    }
    match (file, jail, config, control, log) {
        (Some(config), None, None, None, None) => Ok(Args::ByHand {
            config: config.into(),
        }),
        (None, Some(jail), Some(config), Some(control), Some(log)) => Ok(Args::Jailed {
            jail: jail.into(),
            config,
            control,
            log,
        }),
        _ => Err(ArgsError::Combination),
    }
}

fn fd(option: &'static str, value: OsString) -> Result<RawFd, ArgsError> {
    value
        .to_str()
        .and_then(|text| text.parse().ok())
        .filter(|fd| *fd >= 0)
        .ok_or(ArgsError::NotADescriptor { option, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        super::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn both_forms_are_understood() {
        let by_hand = Args::ByHand {
            config: "vm.json".into(),
        };
        assert_eq!(parse("--config vm.json"), Ok(by_hand));
        let jailed = Args::Jailed {
            jail: "/run/jail".into(),
            config: 3,
            control: 4,
            log: 5,
        };
        let line = "--log-fd 5 --jail /run/jail --config-fd 3 --control-fd 4";
        assert_eq!(parse(line), Ok(jailed));
    }

    #[test]
    fn anything_else_is_refused() {
        assert_eq!(parse(""), Err(ArgsError::Combination));
        assert_eq!(parse("--jail /x"), Err(ArgsError::Combination));
        assert_eq!(parse("--config a --jail b"), Err(ArgsError::Combination));
        assert_eq!(parse("--config"), Err(ArgsError::NoValue("--config")));
        assert!(matches!(
            parse("--log-fd -1"),
            Err(ArgsError::NotADescriptor { .. })
        ));
        assert!(matches!(parse("vm.json"), Err(ArgsError::Unknown(_))));
    }
}
