//! OCI hooks that run on the host, as the runtime spec's `config.md` and runc have
//! them: `prestart`, `createRuntime` and `createContainer` before the container is
//! made, `poststart` once its program runs, `poststop` after it is gone.
//!
//! A hook is told the container's state on standard input. The pid in it is the
//! VMM's, which lives in the pod's network namespace from its first moment: what a
//! hook does to `/proc/<pid>/ns/net` is there before the machine boots.
//!
//! Which containers a `poststop` is due for is on record in `state.json`, so that
//! each runs once whoever cleans up: this shim, or `delete` after it died.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use crate::container::oci::{Spec, SpecError, refused};
use crate::error::chain;
use crate::sandbox::oom_score;
use crate::sandbox::state_file::{HookedContainer, StateFile};

/// Version of the runtime spec the state complies with.
pub const OCI_VERSION: &str = "1.2.0";
/// How long a hook without a timeout of its own may take.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);
/// How long all `poststop` hooks of a dead shim's containers may take together:
/// containerd gives `delete` five seconds.
const CRASH_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the output of an ended hook is waited for: a process it left behind may
/// hold it open for ever.
const OUTPUT_END: Duration = Duration::from_secs(1);
/// Most bytes of each output quoted in an error.
const MAX_OUTPUT: u64 = 1024;

/// `hooks` of the OCI spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    prestart: Vec<Hook>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    create_runtime: Vec<Hook>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    create_container: Vec<Hook>,
    /// The guest's affair: its files are the container's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    start_container: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    poststart: Vec<Hook>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    poststop: Vec<Hook>,
}

/// An entry of one of the lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hook {
    path: PathBuf,
    /// The first is the program's name; empty means the path.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    /// Empty means the shim's own, as with runc.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<i64>,
}

/// The hook that failed.
#[derive(Debug, Error)]
#[error("hooks.{list}: error running hook #{index}")]
pub struct HookError {
    list: &'static str,
    index: usize,
    source: HookFailure,
}

/// How it failed, in the words of runc where it has any.
#[derive(Debug, Error)]
pub enum HookFailure {
    /// It was not executed.
    #[error("{path} cannot be executed")]
    Spawn {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its end cannot be waited for.
    #[error("the hook cannot be waited for")]
    Wait(#[source] io::Error),
    /// It ended otherwise than with status 0.
    #[error("error running hook: {}, stdout: {stdout}, stderr: {stderr}", words(*.status))]
    Status {
        /// How it ended.
        status: ExitStatus,
        /// The beginning of what it printed.
        stdout: String,
        /// The beginning of its complaints.
        stderr: String,
    },
    /// It was killed.
    #[error("hook ran past specified timeout of {:.1}s", .0.as_secs_f32())]
    Timeout(Duration),
}

/// An exit in the words of runc's errors.
fn words(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit status {code}"),
        None => status.to_string(),
    }
}

impl Hooks {
    /// What is left for the guest.
    pub fn for_guest(self) -> Self {
        Self {
            start_container: self.start_container,
            ..Self::default()
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn lists(&self) -> [(&'static str, &[Hook]); 5] {
        [
            ("prestart", &self.prestart),
            ("createRuntime", &self.create_runtime),
            ("createContainer", &self.create_container),
            ("poststart", &self.poststart),
            ("poststop", &self.poststop),
        ]
    }

    /// Refuses what could not be run.
    ///
    /// # Errors
    /// [`SpecError::Refused`] with the field.
    pub fn check(&self) -> Result<(), SpecError> {
        for (list, hooks) in self.lists() {
            for (index, hook) in hooks.iter().enumerate() {
                let field = |name| format!("hooks.{list}[{index}].{name}");
                if !hook.path.is_absolute() {
                    let problem = format!("{:?} is not an absolute path", hook.path);
                    return Err(refused(field("path"), problem));
                }
                if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                    return Err(refused(field("timeout"), "is not greater than zero"));
                }
            }
        }
        Ok(())
    }
}

impl Hook {
    fn limit(&self) -> Duration {
        let seconds = self.timeout.and_then(|seconds| u64::try_from(seconds).ok());
        seconds.map_or(DEFAULT_TIMEOUT, Duration::from_secs)
    }

    async fn run(&self, bundle: &Path, state: &[u8]) -> Result<(), HookFailure> {
        let mut command = Command::new(&self.path);
        if let Some((name, rest)) = self.args.split_first() {
            command.arg0(name).args(rest);
        }
        if !self.env.is_empty() {
            let pairs = self.env.iter().filter_map(|entry| entry.split_once('='));
            command.env_clear().envs(pairs);
        }
        command
            .current_dir(bundle)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let child = command.spawn().map_err(|source| HookFailure::Spawn {
            path: self.path.clone(),
            source,
        })?;
        if let Some(pid) = child.id() {
            oom_score::unprotect(pid);
        }
        follow(child, state, self.limit()).await
    }
}

/// Feeds a hook, reads what it says, and waits for its end.
async fn follow(mut child: Child, state: &[u8], limit: Duration) -> Result<(), HookFailure> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let talk = async {
        tokio::join!(
            feed(stdin, state),
            listen(stdout, &mut said),
            listen(stderr, &mut complained),
        );
    };
    let ended = end_of(&mut child, limit, talk).await;
    match ended {
        Some(Ok(status)) if status.success() => Ok(()),
        Some(Ok(status)) => Err(HookFailure::Status {
            status,
            stdout: text(&said),
            stderr: text(&complained),
        }),
        Some(Err(error)) => Err(HookFailure::Wait(error)),
        None => {
            child.kill().await.map_err(HookFailure::Wait)?;
            Err(HookFailure::Timeout(limit))
        }
    }
}

/// The end of `child`, `None` if it does not come in time. `talk` goes on meanwhile,
/// and for a moment afterwards.
async fn end_of(
    child: &mut Child,
    limit: Duration,
    talk: impl Future<Output = ()>,
) -> Option<io::Result<ExitStatus>> {
    let end = timeout(limit, child.wait());
    tokio::pin!(talk, end);
    tokio::select! {
        ended = &mut end => {
            if timeout(OUTPUT_END, talk).await.is_err() {
                log::debug!("a process that a hook left behind holds its output open");
            }
            ended.ok()
        }
        () = &mut talk => end.await.ok(),
    }
}

/// Writes the state; a hook need not read it.
async fn feed(stdin: Option<ChildStdin>, state: &[u8]) {
    if let Some(mut stdin) = stdin
        && let Err(error) = stdin.write_all(state).await
    {
        log::debug!("a hook did not read the state: {error}");
    }
}

/// Keeps the beginning and drains the rest.
async fn listen(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let read = (&mut stream).take(MAX_OUTPUT).read_to_end(kept).await;
    let drained = match read {
        Ok(_) => tokio::io::copy(&mut stream, &mut tokio::io::sink()).await,
        Err(error) => Err(error),
    };
    if let Err(error) = drained {
        log::debug!("the output of a hook breaks off: {error}");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// The hooks of one container and what they are told about it.
pub struct HostHooks {
    hooks: Hooks,
    id: String,
    bundle: PathBuf,
    annotations: HashMap<String, String>,
}

impl HostHooks {
    /// The host's hooks in `spec`, which is `id`'s in `bundle`.
    pub fn new(spec: &Spec, id: &str, bundle: &Path) -> Self {
        Self {
            hooks: spec.hooks().clone(),
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            annotations: spec.annotations().clone(),
        }
    }

    fn load(container: &HookedContainer) -> Result<Self, SpecError> {
        let spec = Spec::load(&container.bundle)?;
        Ok(Self::new(&spec, &container.id, &container.bundle))
    }

    /// Runs what has to run before the container is made. From the call on, its
    /// `poststop` is due.
    ///
    /// # Errors
    /// The first hook that failed; the ones after it do not run.
    pub async fn create(&self, file: &StateFile, pid: u32) -> Result<(), HookError> {
        let hooks = &self.hooks;
        if hooks.lists().iter().all(|(_, hooks)| hooks.is_empty()) {
            return Ok(());
        }
        let container = HookedContainer {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
        };
        if let Err(error) = file.record(|state| state.hooked.push(container)) {
            log::error!("container {}: hooks are not on record: {error}", self.id);
        }
        let state = self.state("creating", Some(pid));
        self.run("prestart", &hooks.prestart, &state).await?;
        self.run("createRuntime", &hooks.create_runtime, &state)
            .await?;
        self.run("createContainer", &hooks.create_container, &state)
            .await
    }

    /// The state as hooks read it.
    fn state(&self, status: &str, pid: Option<u32>) -> Vec<u8> {
        let mut state = Map::new();
        state.insert("ociVersion".to_owned(), OCI_VERSION.into());
        state.insert("id".to_owned(), self.id.as_str().into());
        state.insert("status".to_owned(), status.into());
        if let Some(pid) = pid {
            state.insert("pid".to_owned(), pid.into());
        }
        state.insert("bundle".to_owned(), self.bundle.to_string_lossy().into());
        if !self.annotations.is_empty() {
            let pairs = self.annotations.iter();
            let map: Map<_, Value> = pairs.map(|(k, v)| (k.clone(), v.as_str().into())).collect();
            state.insert("annotations".to_owned(), map.into());
        }
        Value::Object(state).to_string().into_bytes()
    }

    async fn run(&self, list: &'static str, hooks: &[Hook], state: &[u8]) -> Result<(), HookError> {
        for (index, hook) in hooks.iter().enumerate() {
            let ran = hook.run(&self.bundle, state).await;
            ran.map_err(|source| HookError {
                list,
                index,
                source,
            })?;
        }
        Ok(())
    }

    /// Runs every `poststop`; by the spec a failure is logged and changes nothing.
    async fn poststop(&self) {
        let state = self.state("stopped", None);
        for hook in &self.hooks.poststop {
            let ran = self.run("poststop", std::slice::from_ref(hook), &state);
            if let Err(error) = ran.await {
                log::warn!("container {}: {}", self.id, chain(&error));
            }
        }
    }
}

/// Whether container `id` has hooks that were run, or tried.
pub fn pending(file: &StateFile, id: &str) -> bool {
    file.state().hooked.iter().any(|hooked| hooked.id == id)
}

/// Runs the `poststart` hooks of a container whose program was just started.
///
/// # Errors
/// The first hook that failed; the ones after it do not run.
pub async fn poststart(file: &StateFile, id: &str, pid: u32) -> Result<(), HookError> {
    let hooked = file.state().hooked;
    let Some(container) = hooked.iter().find(|hooked| hooked.id == id) else {
        return Ok(());
    };
    match HostHooks::load(container) {
        Ok(host) => {
            let state = host.state("running", Some(pid));
            host.run("poststart", &host.hooks.poststart, &state).await
        }
        Err(error) => {
            log::error!("container {id}: no poststart hooks: {}", chain(&error));
            Ok(())
        }
    }
}

/// Runs the `poststop` hooks of a container that is gone, unless they ran before.
pub async fn poststop(file: &StateFile, id: &str) {
    let mut due = Vec::new();
    let taken = file.record(|state| {
        let all = std::mem::take(&mut state.hooked);
        (due, state.hooked) = all.into_iter().partition(|hooked| hooked.id == id);
    });
    if let Err(error) = taken {
        log::debug!("container {id}: state.json: {error}");
    }
    for container in due {
        match HostHooks::load(&container) {
            Ok(host) => host.poststop().await,
            Err(error) => log::error!("container {id}: no poststop hooks: {}", chain(&error)),
        }
    }
}

/// Runs the `poststop` hooks of every container left.
pub async fn poststop_all(file: &StateFile) {
    for container in file.state().hooked {
        poststop(file, &container.id).await;
    }
}

/// As [`poststop_all`], for `delete`, which is no async program and short of time.
pub fn poststop_after_crash(file: &StateFile) {
    if file.state().hooked.is_empty() {
        return;
    }
    let mut builder = tokio::runtime::Builder::new_current_thread();
    match builder.enable_all().build() {
        Ok(runtime) => {
            let ran = runtime.block_on(async { timeout(CRASH_TIMEOUT, poststop_all(file)).await });
            if ran.is_err() {
                log::error!("poststop hooks still ran after {CRASH_TIMEOUT:?} and were killed");
            }
        }
        Err(error) => log::error!("poststop hooks cannot be run: {error}"),
    }
}

#[cfg(test)]
#[path = "hooks_test.rs"]
mod tests;
