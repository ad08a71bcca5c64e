//! `startContainer` hooks: programs of the container's image that run in the container,
//! with its credentials, between the start and its own program.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use serde::Serialize;

use super::setup_error::{Context, SetupError};
use crate::oci::{Spec, SpecError, require};
use crate::sys;

/// How long all hooks of a container may take together.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The version of the OCI runtime spec that the state follows; the shim's hooks are told the same.
const OCI_VERSION: &str = "1.2.0";

/// Most of a failed hook's output that is told, in bytes of each stream.
const TOLD: u64 = 1024;

/// Checked hooks.
#[derive(Debug)]
pub struct Hooks {
    hooks: Vec<Hook>,
    state: State,
}

#[derive(Debug)]
struct Hook {
    path: PathBuf,
    args: Vec<String>,
    env: Option<Vec<String>>,
    timeout: Option<Duration>,
}

/// What a hook reads from its standard input (OCI runtime spec, "State").
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct State {
    oci_version: &'static str,
    id: String,
    status: &'static str,
    pid: u32,
    bundle: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// Hooks with their files opened, so that running them asks little of a seccomp filter.
#[derive(Debug)]
pub struct ReadyHooks<'a> {
    hooks: Vec<(&'a Hook, Files)>,
}

#[derive(Debug)]
struct Files {
    stdin: File,
    stdout: File,
    stderr: File,
}

impl Hooks {
    /// Checks `hooks.startContainer` of container `id`, whose bundle on the host is `bundle`.
    pub fn plan(spec: &Spec, id: &str, bundle: &str) -> Result<Self, SpecError> {
        let hooks = spec.hooks.start_container.iter().enumerate();
        let hooks = hooks.map(|(index, hook)| {
            let place = |field: &str| format!("hooks.startContainer[{index}].{field}");
            require(hook.path.is_absolute(), || SpecError::Value {
                field: place("path"),
                value: hook.path.display().to_string(),
                must: "an absolute path",
            })?;
            let seconds = hook.timeout.map(|seconds| {
                u64::try_from(seconds).map_err(|_| SpecError::Value {
                    field: place("timeout"),
                    value: seconds.to_string(),
                    must: "0 or above",
                })
            });
            Ok(Hook {
                path: hook.path.clone(),
                args: hook.args.clone(),
                env: hook.env.clone(),
                timeout: seconds.transpose()?.map(Duration::from_secs),
            })
        });
        Ok(Self {
            hooks: hooks.collect::<Result<_, SpecError>>()?,
            state: State {
                oci_version: OCI_VERSION,
                id: id.into(),
                status: "created",
                pid: 0,
                bundle: bundle.into(),
                annotations: spec.annotations.clone(),
            },
        })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.hooks.is_empty()
    }

    /// Opens what they need. To be called by the process that will run them.
    pub fn prepare(&self) -> Result<ReadyHooks<'_>, SetupError> {
        let state = State {
            pid: std::process::id(),
            ..self.state.clone()
        };
        let json = serde_json::to_vec(&state)
            .map_err(|error| SetupError::request(format!("state for the hooks: {error}")))?;
        let what = || "preparing the hooks";
        let file = || memfd_create(c"hook", MFdFlags::MFD_CLOEXEC).map(File::from);
        let files = || {
            let mut stdin = file().or_guest(what)?;
            stdin.write_all(&json).or_guest(what)?;
            stdin.rewind().or_guest(what)?;
            Ok(Files {
                stdin,
                stdout: file().or_guest(what)?,
                stderr: file().or_guest(what)?,
            })
        };
        let hooks = self.hooks.iter().map(|hook| Ok((hook, files()?)));
        Ok(ReadyHooks {
            hooks: hooks.collect::<Result<_, SetupError>>()?,
        })
    }
}

impl ReadyHooks<'_> {
    /// Runs them one after the other; `env` is that of the container's process.
    pub fn run(self, env: &[String]) -> Result<(), SetupError> {
        let end = Instant::now() + DEADLINE;
        for (index, (hook, files)) in self.hooks.into_iter().enumerate() {
            hook.run(files, env, end).map_err(|error| {
                SetupError::request(format!("error running hook #{index}: {}", error.text))
            })?;
        }
        Ok(())
    }
}

impl Hook {
    fn run(&self, mut files: Files, env: &[String], end: Instant) -> Result<(), SetupError> {
        let what = || "error running hook";
        let mut command = Command::new(&self.path);
        if let Some((name, args)) = self.args.split_first() {
            command.arg0(name).args(args);
        }
        let env = self.env.as_deref().unwrap_or(env);
        let stdout = files.stdout.try_clone().or_guest(what)?;
        let stderr = files.stderr.try_clone().or_guest(what)?;
        command
            .env_clear()
            .envs(env.iter().filter_map(|entry| entry.split_once('=')))
            .stdin(files.stdin)
            .stdout(stdout)
            .stderr(stderr);
        let mut child = command
            .spawn()
            .or_request(|| format!("fork/exec {}", self.path.display()))?;
        let left = end.saturating_duration_since(Instant::now());
        let limit = self.timeout.unwrap_or(left).min(left);
        let Some(status) = wait(&mut child, limit).or_guest(what)? else {
            let seconds = limit.as_secs_f32();
            let whose = if self.timeout == Some(limit) {
                "specified timeout"
            } else {
                "limit for all startContainer hooks, 30 s: the last one was stopped after a timeout"
            };
            return Err(SetupError::request(format!(
                "hook ran past {whose} of {seconds:.1}s"
            )));
        };
        if status.success() {
            return Ok(());
        }
        Err(SetupError::request(format!(
            "error running hook: {}, stdout: {}, stderr: {}",
            exit_text(status),
            told(&mut files.stdout),
            told(&mut files.stderr),
        )))
    }
}

/// The child's end, or none if it took longer than `limit` and was killed.
fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let pidfd = sys::open_pidfd(child.id())?;
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(
            &mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) {
            Ok(0) => {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            Ok(_) => return child.wait().map(Some),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn exit_text(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("signal: {}", signal.as_str()),
            Err(_) => format!("signal: {signal}"),
        },
        (None, None) => "did not exit".to_owned(),
    }
}

/// The beginning of what a hook wrote.
fn told(output: &mut File) -> String {
    let mut bytes = Vec::new();
    // Without it the error has less to say.
    if output.rewind().is_ok() {
        output.take(TOLD).read_to_end(&mut bytes).ok();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn hooks(list: Value) -> Result<Hooks, SpecError> {
        let spec = json!({ "ociVersion": "1.1.0", "annotations": { "a": "b" },
            "hooks": { "prestart": [{ "path": "ignored" }], "startContainer": list } });
        let spec = Spec::from_json(spec.to_string().as_bytes()).unwrap();
        Hooks::plan(&spec, "c1", "/run/bundle")
    }

    fn run(list: Value) -> Result<(), String> {
        let hooks = hooks(list).unwrap();
        let env = ["WHO=container".to_owned()];
        let result = hooks.prepare().unwrap().run(&env);
        result.map_err(|error| error.text)
    }

    fn shell(script: &str) -> Value {
        json!({ "path": "/bin/sh", "args": ["sh", "-c", script] })
    }

    #[test]
    fn a_hook_reads_the_state() {
        let expected = json!({ "ociVersion": OCI_VERSION, "id": "c1", "status": "created",
            "pid": std::process::id(), "bundle": "/run/bundle", "annotations": { "a": "b" } });
        let hooks = hooks(json!([shell("cat; exit 3")])).unwrap();
        let text = hooks.prepare().unwrap().run(&[]).unwrap_err().text;
        let state = text.split("stdout: ").nth(1).unwrap();
        let state = state.split(", stderr: ").next().unwrap();
        let found: Value = serde_json::from_str(state).unwrap();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_failure_tells_which_hook_how_it_ended_and_what_it_wrote() {
        assert_eq!(
            run(json!([
                shell("true"),
                shell("echo out; echo err >&2; exit 7")
            ])),
            Err(
                "error running hook #1: error running hook: exit status 7, stdout: out\n, stderr: err\n"
                    .to_owned()
            )
        );
        let killed = run(json!([shell("kill -9 $$")])).unwrap_err();
        assert!(killed.contains("signal: SIGKILL"), "{killed}");
        assert_eq!(
            run(json!([{ "path": "/no/such" }])),
            Err("error running hook #0: fork/exec /no/such: no such file or directory".to_owned())
        );
    }

    #[test]
    fn the_environment_is_its_own_or_the_containers() {
        let script = "test \"$WHO\" = container";
        run(json!([shell(script)])).unwrap();
        let mut own = shell(script);
        own["env"] = json!([]);
        assert!(run(json!([own.clone()])).is_err());
        own["env"] = json!(["WHO=container"]);
        run(json!([own])).unwrap();
    }

    #[test]
    fn a_hook_may_not_take_longer_than_it_says() {
        let mut slow = shell("exec sleep 60");
        slow["timeout"] = json!(1);
        assert_eq!(
            run(json!([slow])),
            Err("error running hook #0: hook ran past specified timeout of 1.0s".to_owned())
        );
    }

    #[test]
    fn wrong_hooks_are_named() {
        for (hook, field) in [
            (json!({ "path": "bin/x" }), "hooks.startContainer[0].path"),
            (
                json!({ "path": "/x", "timeout": -1 }),
                "hooks.startContainer[0].timeout",
            ),
        ] {
            let error = hooks(json!([hook])).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
