//! Stop 1 of twelve: containerd executes `containerd-shim-rust-v2 ... start`.
//!
//! One program in three roles: `start` finds or makes the pod's resident server
//! and goes, the server answers containerd's task calls for the pod's life, and
//! `delete` cleans up after a server that died. The README of this crate has the
//! whole picture; the modules, in the order of a container's life:
#![deny(unsafe_code)]

mod beneath;
mod bootstrap;
mod caller;
mod config;
mod container;
mod delete;
mod error;
mod events;
mod flags;
mod handover;
mod hooks;
mod identity;
mod ids;
mod info;
mod log;
mod mount;
mod overlay;
mod publisher;
mod sandbox;
mod sandbox_api;
mod server;
mod shim;
mod shim_cgroup;
#[expect(unsafe_code, reason = "system calls no crate wraps, all in this file")]
mod sys;
mod task;

use std::io::{self, Write};
use std::process::ExitCode;

use protobuf::Message;

use flags::{Action, Flags};

fn main() -> ExitCode {
    if let Err(error) = sys::keep_descriptors_from_children() {
        return fail(&error);
    }
    let flags = match Flags::parse(std::env::args().skip(1)) {
        Ok(flags) => flags,
        Err(error) => return fail(&error),
    };
    let done = match flags.action {
        Action::Version => answer(info::version_text().as_bytes()),
        Action::Info => answer(&info::runtime_info().write_to_bytes().unwrap_or_default()),
        Action::Start => match bootstrap::start(&flags) {
            Ok(address) => answer(address.as_bytes()),
            Err(error) => return fail(&error),
        },
        Action::Delete => {
            let response = delete::delete(&flags);
            answer(&response.write_to_bytes().unwrap_or_default())
        }
        Action::Serve => server::run(&flags),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Standard output belongs to the answer alone.
fn answer(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// What containerd shows when the shim fails.
fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("containerd-shim-rust-v2: {}", error::chain(error));
    ExitCode::FAILURE
}
