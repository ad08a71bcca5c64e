//! The container's side of a terminal: made by the child in the container's own
//! `/dev/pts`, so that its name means something there.

use std::os::fd::AsFd;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::pty::{posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;

use super::channel::ChildLine;
use super::mounts::make_target;
use super::setup_error::{Context, SetupError};
use crate::oci::ConsoleSize;
use crate::{stdio, sys};

/// Makes a terminal the caller's standard I/O and controlling terminal, and hands
/// its master side to the agent. The caller leads a session.
///
/// With `as_console` it is also bound to `/dev/console`, for a container's init.
pub fn become_stdio(
    line: &ChildLine,
    size: Option<ConsoleSize>,
    as_console: bool,
) -> Result<(), SetupError> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags).or_request(|| "opening /dev/ptmx for the terminal")?;
    unlockpt(&master).or_guest(|| "unlocking the terminal")?;
    let name = ptsname_r(&master).or_guest(|| "asking for the terminal's name")?;
    let what = || format!("opening the terminal {name}");
    let slave = open(
        name.as_str(),
        OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .or_request(what)?;
    if let Some(size) = size {
        let (width, height) = stdio::window_size(size.width, size.height);
        sys::set_window_size(slave.as_fd(), width, height)
            .or_guest(|| "setting the terminal's size")?;
    }
    if as_console {
        let what = || format!("binding {name} to /dev/console");
        let target = make_target(Path::new("/dev/console"), false).or_request(what)?;
        mount(
            Some(name.as_str()),
            &target,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .or_request(what)?;
    }
    line.send_terminal(master.as_fd())
        .or_guest(|| "handing over the terminal")?;
    stdio::replace_standard(slave.as_fd(), slave.as_fd(), slave.as_fd())
        .or_guest(|| "setting up standard I/O")?;
    sys::set_controlling_terminal(std::io::stdin().as_fd())
        .or_guest(|| "taking the controlling terminal")
}
