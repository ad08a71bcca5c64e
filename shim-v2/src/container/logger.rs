//! Stop 11 of twelve: the program of a `binary://` URI, which logs what a process prints.
//!
//! It finds the process's output on descriptor 3, its errors on 4, and says on 5 that it is
//! ready, by a byte or by closing it. That the output has ended it learns from both pipes'
//! ends, and has some time then to put in order what it logs. It never outlives the shim by
//! more than that: a shim that ends kills it.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::output::{Output, Program};
use crate::sandbox::oom_score;
use crate::sys;

/// How long a logger may take to say that it is ready.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// How long after the end of the output a logger may go on before it is sent SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How long after SIGTERM before it is killed.
const TERM_LIMIT: Duration = Duration::from_secs(2);

/// A running logger. What it logs ends with the two outputs.
pub struct Logger {
    /// Where the process's output goes.
    pub stdout: Output,
    /// Where its errors go.
    pub stderr: Output,
    /// Closed when the logger has ended.
    pub ended: Ended,
}

/// Tells when a logger has ended: its sender is gone then.
pub type Ended = watch::Receiver<()>;

impl Logger {
    /// Starts `program` for the process `id` of containerd's `namespace`, and waits until it
    /// is ready.
    ///
    /// # Errors
    /// Why it was not started, or did not get ready in time; nothing is left of it then.
    pub async fn start(program: &Program, id: &str, namespace: &str) -> io::Result<Self> {
        let (stdout, from_stdout) = pipe::pipe()?;
        let (stderr, from_stderr) = pipe::pipe()?;
        let (ready, mut wait) = pipe::pipe()?;
        let descriptors = vec![
            from_stdout.into_blocking_fd()?,
            from_stderr.into_blocking_fd()?,
            ready.into_blocking_fd()?,
        ];
        let mut child = spawn(program, id, namespace, descriptors)?;
        let answer = timeout(READY_LIMIT, wait.read(&mut [0])).await;
        let answer = answer.unwrap_or_else(|_| {
            let problem =
                format!("descriptor 5 did not tell within {READY_LIMIT:?} that it is ready");
            Err(io::Error::new(io::ErrorKind::TimedOut, problem))
        });
        if let Err(error) = answer {
            child.kill().await.ok();
            return Err(error);
        }
        let (open, closed) = mpsc::channel(1);
        let (running, ended) = watch::channel(());
        let name = program.path.display().to_string();
        tokio::spawn(async move {
            match follow(child, closed, &name).await {
                Ok(status) if status.success() => {}
                Ok(status) => log::warn!("logger {name} ended with {status}"),
                Err(error) => log::warn!("logger {name} cannot be waited for: {error}"),
            }
            drop(running);
        });
        let output = |pipe| Output::Logger {
            pipe,
            _open: open.clone(),
        };
        Ok(Self {
            stdout: output(stdout),
            stderr: output(stderr),
            ended,
        })
    }
}

fn spawn(
    program: &Program,
    id: &str,
    namespace: &str,
    descriptors: Vec<OwnedFd>,
) -> io::Result<Child> {
    let mut command = Command::new(&program.path);
    command
        .args(&program.args)
        .env_clear()
        .env("CONTAINER_ID", id)
        .env("CONTAINER_NAMESPACE", namespace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    sys::pass_descriptors(&mut command, descriptors)?;
    let child = command.spawn()?;
    if let Some(pid) = child.id() {
        oom_score::unprotect(pid);
    }
    Ok(child)
}

/// Reaps a logger, which ends by itself, or is ended some time after both its outputs were.
async fn follow(
    mut child: Child,
    mut closed: mpsc::Receiver<()>,
    name: &str,
) -> io::Result<ExitStatus> {
    tokio::select! {
        status = child.wait() => return status,
        _ = closed.recv() => {}
    }
    if let Ok(status) = timeout(END_LIMIT, child.wait()).await {
        return status;
    }
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        log::warn!("logger {name} goes on after its output's end: it is sent SIGTERM");
        // It is not reaped yet: the pid is still its own.
        kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    }
    if let Ok(status) = timeout(TERM_LIMIT, child.wait()).await {
        return status;
    }
    child.kill().await?;
    child.wait().await
}

#[cfg(test)]
#[path = "logger_test.rs"]
mod tests;
