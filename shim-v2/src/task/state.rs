//! State: what the shim knows of a process. Needs no guest.

use containerd_shim_protos::api::{StateRequest, StateResponse, Status};

use crate::container::process::{Process, State};
use crate::error::Error;
use crate::shim::Shim;

/// Describes a process.
pub fn state(shim: &Shim, request: &StateRequest) -> Result<StateResponse, Error> {
    let container = shim.containers.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    let id = match process.exec_id.as_str() {
        "" => &container.id,
        exec_id => exec_id,
    };
    let exit = process.exit();
    Ok(StateResponse {
        id: id.to_owned(),
        bundle: container.bundle.to_string_lossy().into_owned(),
        pid: match shim.slot.get() {
            // The init is there before its program runs, an exec is not.
            Some(_) if process.exec_id.is_empty() || process.guest_pid().is_some() => container.pid,
            _ => 0,
        },
        status: status(&process, &container.init).into(),
        stdin: process.stdio.stdin.clone(),
        stdout: process.stdio.stdout.clone(),
        stderr: process.stdio.stderr.clone(),
        terminal: process.stdio.terminal,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map(|exit| exit.at.into()).into(),
        exec_id: request.exec_id.clone(),
        ..StateResponse::default()
    })
}

/// An exec stands still with its container.
fn status(process: &Process, init: &Process) -> Status {
    let state = match process.state() {
        State::Running => init.state(),
        own => own,
    };
    match state {
        State::Created | State::Starting => Status::CREATED,
        State::Running => Status::RUNNING,
        State::Pausing => Status::PAUSING,
        State::Paused | State::Resuming => Status::PAUSED,
        // An exec whose init has just ended: its own end is on the way.
        State::Stopped(_) if process.exit().is_none() => Status::RUNNING,
        State::Stopped(_) => Status::STOPPED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::process::Exit;
    use crate::container::stdio::Paths;

    fn process(exec_id: &str) -> Process {
        Process::new(exec_id.to_owned(), Paths::default(), Vec::new())
    }

    #[test]
    fn an_exec_is_paused_with_its_container_and_stopped_by_itself() {
        let (init, exec) = (process(""), process("e"));
        let both = |init: &Process, exec: &Process| (status(init, init), status(exec, init));
        assert_eq!(both(&init, &exec), (Status::CREATED, Status::CREATED));
        for process in [&init, &exec] {
            process.begin_start().unwrap();
            process.started();
        }
        assert_eq!(both(&init, &exec), (Status::RUNNING, Status::RUNNING));
        init.begin_pause().unwrap();
        assert_eq!(both(&init, &exec), (Status::PAUSING, Status::PAUSING));
        assert!(init.paused());
        assert_eq!(both(&init, &exec), (Status::PAUSED, Status::PAUSED));
        init.begin_resume().unwrap();
        assert!(init.resumed());
        init.exited(Exit::now(0));
        assert_eq!(both(&init, &exec), (Status::STOPPED, Status::RUNNING));
        exec.exited(Exit::now(0));
        assert_eq!(both(&init, &exec), (Status::STOPPED, Status::STOPPED));
    }
}
