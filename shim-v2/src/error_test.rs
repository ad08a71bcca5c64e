//! One line per arm of the mapping.

use super::*;
use crate::sandbox::agent::BellError;
use crate::sandbox::cleanup::CleanupError;
use crate::sandbox::control::ControlError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

fn no_file() -> io::Error {
    io::ErrorKind::NotFound.into()
}

fn refused_spec() -> SpecError {
    SpecError::Refused {
        field: "f".into(),
        problem: "p".into(),
    }
}

fn status(code: Code) -> AgentError {
    AgentError::Status {
        code,
        text: "t".into(),
    }
}

fn missing_kernel() -> ConfigError {
    ConfigError::File {
        key: "kernel",
        file: "/k".into(),
        source: no_file(),
    }
}

fn mount(option: bool) -> MountError {
    let (what, target) = ("w".to_owned(), PathBuf::from("/t"));
    match option {
        true => MountError::Option {
            what,
            option: "o".into(),
        },
        false => MountError::Mount {
            what,
            target,
            source: no_file(),
        },
    }
}

fn check(cases: Vec<(Error, Code)>) {
    for (error, code) in cases {
        assert_eq!(error.code(), code, "{error}");
    }
}

#[test]
fn what_the_caller_got_wrong() {
    use Code::*;
    let scheme = StdioError::Scheme {
        which: "stdin",
        uri: "u".into(),
    };
    let id = crate::ids::check("").unwrap_err();
    let wrong = StateError::Wrong {
        verb: "v",
        state: "s",
    };
    let died = Error::Died {
        state: wrong,
        reason: "r".into(),
    };
    let unsupported = Error::Unsupported {
        verb: "v",
        why: "w",
    };
    check(vec![
        (id.into(), INVALID_ARGUMENT),
        (missing_kernel().into(), FAILED_PRECONDITION),
        (refused_spec().into(), INVALID_ARGUMENT),
        (scheme.into(), INVALID_ARGUMENT),
        (LookupError::NoContainer("c".into()).into(), NOT_FOUND),
        (
            LookupError::NoExec("c".into(), "e".into()).into(),
            NOT_FOUND,
        ),
        (LookupError::Exists("c".into()).into(), ALREADY_EXISTS),
        (
            LookupError::ExecExists("c".into(), "e".into()).into(),
            ALREADY_EXISTS,
        ),
        (wrong.into(), FAILED_PRECONDITION),
        (died, FAILED_PRECONDITION),
        (StateError::NotCreated.into(), FAILED_PRECONDITION),
        (StateError::Finished.into(), NOT_FOUND),
        (SlotError::Booting.into(), FAILED_PRECONDITION),
        (SlotError::Ended.into(), FAILED_PRECONDITION),
        (
            Error::Argument {
                what: "w",
                problem: "p".into(),
            },
            INVALID_ARGUMENT,
        ),
        (PodError::NotFound("p".into()).into(), NOT_FOUND),
        (PodError::Exists("p".into()).into(), ALREADY_EXISTS),
        (PodError::InUse("p".into()).into(), FAILED_PRECONDITION),
        (PodError::Started("p".into()).into(), FAILED_PRECONDITION),
        (PodError::NotRunning("p".into()).into(), FAILED_PRECONDITION),
        (
            Error::PodFile {
                path: "/p".into(),
                source: no_file(),
            },
            INTERNAL,
        ),
        (Error::Panicked("create"), INTERNAL),
        (unsupported, UNIMPLEMENTED),
    ]);
}

#[test]
fn what_went_wrong_while_booting() {
    use Code::*;
    let path = || PathBuf::from("/p");
    let leftover = CleanupError::Unmount {
        path: path(),
        source: no_file(),
    };
    let netns = BootError::Netns {
        path: path(),
        problem: "p".into(),
    };
    let step = BootError::Host {
        step: "s",
        source: no_file(),
    };
    check(vec![
        (
            BootError::Config(missing_kernel()).into(),
            FAILED_PRECONDITION,
        ),
        (BootError::Spec(refused_spec()).into(), INVALID_ARGUMENT),
        (BootError::Kvm(no_file()).into(), FAILED_PRECONDITION),
        (netns.into(), INVALID_ARGUMENT),
        (BootError::Mount(mount(false)).into(), INTERNAL),
        (step.into(), INTERNAL),
        (BootError::Ended("r".into()).into(), INTERNAL),
        (BootError::Deadline.into(), DEADLINE_EXCEEDED),
        (BootError::Bell(BellError::Nonce).into(), INTERNAL),
        (
            BootError::Bell(BellError::Version(9)).into(),
            FAILED_PRECONDITION,
        ),
        (BootError::Agent(gone()).into(), INTERNAL),
        (BootError::Leftover(leftover).into(), INTERNAL),
        (BootError::Cancelled.into(), CANCELLED),
    ]);
}

#[test]
fn what_went_wrong_with_files_and_in_the_guest() {
    use Code::*;
    let path = || PathBuf::from("/p");
    let deadline = AgentError::Deadline {
        call: "c",
        deadline: Duration::from_secs(1),
    };
    let broken = AgentError::Connection {
        call: "c",
        text: "t".into(),
    };
    let root = RootfsError::Root {
        path: path(),
        problem: "p".into(),
    };
    let make = RootfsError::Make {
        path: path(),
        source: no_file(),
    };
    let export = RootfsError::Export {
        path: path(),
        source: ControlError::Refused("no".into()),
    };
    check(vec![
        (root.into(), INVALID_ARGUMENT),
        (make.into(), INTERNAL),
        (export.into(), INTERNAL),
        (RootfsError::Mount(mount(true)).into(), INVALID_ARGUMENT),
        (RootfsError::Mount(mount(false)).into(), INTERNAL),
        (status(NOT_FOUND).into(), NOT_FOUND),
        (status(INVALID_ARGUMENT).into(), INVALID_ARGUMENT),
        (status(UNIMPLEMENTED).into(), INTERNAL),
        (deadline.into(), DEADLINE_EXCEEDED),
        (gone().into(), INTERNAL),
        (broken.into(), INTERNAL),
    ]);
}

fn gone() -> AgentError {
    AgentError::VmGone {
        call: "c",
        reason: "r".into(),
    }
}

#[test]
fn the_text_is_the_whole_chain_once() {
    let error = Error::from(BootError::Config(missing_kernel()));
    let text = chain(&error);
    assert!(
        text.starts_with("`kernel` is /k, which cannot be opened: set `kernel` in"),
        "{text}"
    );
    assert!(text.ends_with(": entity not found"), "{text}");
    let ttrpc::Error::RpcStatus(status) = error.into_status() else {
        panic!("not a status");
    };
    // As containerd's own errors of that code end.
    assert_eq!(status.message, format!("{text}: failed precondition"));
}
