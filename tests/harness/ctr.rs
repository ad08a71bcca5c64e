//! `ctr`, containerd's own client, as the tests use it.

use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::process::{self, Output, Running};

/// The image every container of the tests runs: busybox and nothing else.
pub const IMAGE: &str = "localhost/busybox:latest";

/// Where containerd keeps the bundles of `ctr`'s default namespace.
pub const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/default";

/// Where `ctr` makes the fifos of a task's streams, a folder each.
const FIFOS: &str = "/run/containerd/fifo";

/// Who runs a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// Ours.
    Husk,
    /// Debian's runc: what users compare with.
    Runc,
}

impl Runtime {
    /// runc, the oracle, first.
    pub const BOTH: [Self; 2] = [Self::Runc, Self::Husk];

    /// What a promise that holds for both comes to, runc's answer first.
    ///
    /// runc is what we measure with and not what is measured, and containerd's shim for it has
    /// races of its own (the end of an output lost, an exit told late): where it breaks the
    /// promise it is asked twice more. Husk is asked once.
    ///
    /// # Panics
    /// As `promise` does.
    pub fn both<T>(mut promise: impl FnMut(Self) -> T) -> [T; 2] {
        Self::BOTH.map(|runtime| {
            let mut ask = || promise(runtime);
            let spare = if runtime == Self::Runc { 2 } else { 0 };
            for _ in 0..spare {
                match panic::catch_unwind(AssertUnwindSafe(&mut ask)) {
                    Ok(answer) => return answer,
                    Err(_) => eprintln!("runc broke the promise and is asked again"),
                }
            }
            ask()
        })
    }

    /// The name `ctr run --runtime` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Husk => "io.containerd.rust.v2",
            Self::Runc => "io.containerd.runc.v2",
        }
    }

    /// The name of its handler in the CRI service's configuration.
    pub fn handler(self) -> &'static str {
        match self {
            Self::Husk => "rust",
            Self::Runc => "runc",
        }
    }
}

/// Runs `ctr` to its end.
#[track_caller]
pub fn ctr(args: &[&str]) -> Output {
    let mut command = Command::new("ctr");
    command.args(args);
    process::run(command)
}

/// A container about to be run.
#[derive(Clone, Debug)]
pub struct Container {
    runtime: Runtime,
    id: String,
    flags: Vec<String>,
    image: Vec<String>,
    command: Vec<String>,
}

impl Container {
    /// A container of the test image that runs `command` under `runtime`.
    pub fn new(runtime: Runtime, command: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        Self {
            runtime,
            id: format!("c{}", NEXT.fetch_add(1, Ordering::Relaxed)),
            flags: Vec::new(),
            image: vec![IMAGE.into()],
            command: owned(command),
        }
    }

    /// Under our runtime.
    pub fn husk(command: &[&str]) -> Self {
        Self::new(Runtime::Husk, command)
    }

    /// A shell script under our runtime.
    pub fn script(script: &str) -> Self {
        Self::husk(&["sh", "-c", script])
    }

    /// Adds flags of `ctr run`.
    pub fn with(mut self, flags: &[&str]) -> Self {
        self.flags.extend(owned(flags));
        self
    }

    /// Takes the root file system from a directory instead of the image.
    pub fn on_rootfs(mut self, directory: &str) -> Self {
        self.flags.push("--rootfs".into());
        self.image = vec![directory.into()];
        self
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// `ctr run --rm`, to its end, with nothing on standard input.
    #[track_caller]
    pub fn run(&self) -> Output {
        process::run(self.command(&["--rm"]))
    }

    /// `ctr run --rm` in the foreground, standard input open.
    #[track_caller]
    pub fn start(&self) -> Running {
        Running::start(self.command(&["--rm"]))
    }

    /// `ctr run --detach`.
    #[track_caller]
    pub fn detach(self) -> Task {
        process::run(self.command(&["--detach"])).succeeded();
        Task { id: self.id }
    }

    /// `ctr run --detach` by somebody who leaves standard input open.
    #[track_caller]
    pub fn detach_with_input(self) -> Task {
        Running::start(self.command(&["--detach"]))
            .finish()
            .succeeded();
        Task { id: self.id }
    }

    /// The task of a container that was started otherwise: its `ctr` may be gone.
    pub fn task(&self) -> Task {
        Task::of(&self.id)
    }

    /// The whole `ctr run` command line.
    pub fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command
            .args(["run", "--runtime", self.runtime.name()])
            .args(flags)
            .args(&self.flags)
            .args(&self.image)
            .arg(&self.id)
            .args(&self.command);
        command
    }
}

/// A detached container. Killed and deleted when dropped, if the test did not.
#[derive(Debug)]
pub struct Task {
    id: String,
}

impl Task {
    /// The task of a container with that id.
    pub fn of(id: &str) -> Self {
        Self { id: id.into() }
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The fifo of one of its streams (`stdin`, `stdout`, `stderr`) that `ctr` made.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn fifo(&self, stream: &str) -> PathBuf {
        let name = format!("{}-{stream}", self.id);
        let folders = std::fs::read_dir(FIFOS).expect("the folder of ctr's fifos");
        folders
            .flatten()
            .map(|folder| folder.path().join(&name))
            .find(|fifo| fifo.exists())
            .unwrap_or_else(|| panic!("no fifo {name} in {FIFOS}"))
    }

    /// `ctr task attach` in the foreground, standard input open.
    #[track_caller]
    pub fn attach(&self) -> Running {
        let mut ctr = Command::new("ctr");
        ctr.args(["task", "attach", &self.id]);
        Running::start(ctr)
    }

    /// `ctr task exec`, to its end, with nothing on standard input.
    #[track_caller]
    pub fn exec(&self, command: &[&str]) -> Output {
        self.exec_with(&[], command)
    }

    /// `ctr task exec` with further flags.
    #[track_caller]
    pub fn exec_with(&self, flags: &[&str], command: &[&str]) -> Output {
        process::run(self.exec_command(flags, command))
    }

    /// `ctr task exec` in the foreground, standard input open.
    #[track_caller]
    pub fn start_exec(&self, command: &[&str]) -> Running {
        Running::start(self.exec_command(&[], command))
    }

    /// `ctr task exec` in the foreground under a known exec id.
    #[track_caller]
    pub fn start_exec_as(&self, exec_id: &str, command: &[&str]) -> Running {
        Running::start(self.exec_command_as(exec_id, &[], command))
    }

    fn exec_command(&self, flags: &[&str], command: &[&str]) -> Command {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let exec_id = format!("e{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.exec_command_as(&exec_id, flags, command)
    }

    fn exec_command_as(&self, exec_id: &str, flags: &[&str], command: &[&str]) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.args(["task", "exec", "--exec-id", exec_id])
            .args(flags)
            .arg(&self.id)
            .args(command);
        ctr
    }

    /// `ctr task kill` with a signal's name.
    #[track_caller]
    pub fn kill(&self, signal: &str) {
        ctr(&["task", "kill", "--signal", signal, &self.id]).succeeded();
    }

    /// Waits until containerd reports the task as stopped.
    ///
    /// # Panics
    /// If it does not by the deadline.
    #[track_caller]
    pub fn wait(&self) {
        // ctr has no verb for it that leaves the task alone; asking takes its time.
        let deadline = Instant::now() + process::DEADLINE;
        while self.status() != "STOPPED" {
            assert!(Instant::now() < deadline, "{} does not stop", self.id);
        }
    }

    /// The pid containerd reports.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        let list = ctr(&["task", "list"]).succeeded().text();
        list.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|words| words.first() == Some(&self.id.as_str()))
            .and_then(|words| words.get(1)?.parse().ok())
            .unwrap_or_else(|| panic!("no pid of {} in\n{list}", self.id))
    }

    /// The state containerd reports: `RUNNING`, `STOPPED`...
    #[track_caller]
    pub fn status(&self) -> String {
        let deadline = Instant::now() + process::DEADLINE;
        loop {
            let status = self.status_once();
            // What containerd says of a shim that does not answer within 2 s.
            if status != "UNKNOWN" || Instant::now() > deadline {
                return status;
            }
        }
    }

    #[track_caller]
    fn status_once(&self) -> String {
        let list = ctr(&["task", "list"]).succeeded().text();
        list.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|words| words.first() == Some(&self.id.as_str()))
            .and_then(|words| words.get(2).map(ToString::to_string))
            .unwrap_or_else(|| panic!("no state of {} in\n{list}", self.id))
    }

    /// Deletes the stopped task and its container and gives the exit code that containerd
    /// reports for it.
    ///
    /// # Panics
    /// If either cannot be deleted.
    #[track_caller]
    pub fn delete(&self) -> i32 {
        let output = ctr(&["task", "delete", &self.id]).succeeded();
        ctr(&["container", "delete", &self.id]).succeeded();
        // ctr says it in a warning, unless it is 0.
        let (_, rest) = output.stderr.split_once("exit code ").unwrap_or(("", "0"));
        let digits = rest.trim_end_matches(|c: char| !c.is_ascii_digit());
        digits
            .parse()
            .unwrap_or_else(|_| panic!("no exit code: {output}"))
    }

    /// Waits until containerd has given up the task of a shim that is gone, and deletes the
    /// container. containerd tells the exit before.
    ///
    /// # Panics
    /// If either does not happen.
    #[track_caller]
    pub fn forgotten(&self) {
        let deadline = Instant::now() + process::DEADLINE;
        let listed = || {
            let list = ctr(&["task", "list", "--quiet"]).succeeded().text();
            list.lines().any(|id| id == self.id)
        };
        while listed() {
            assert!(Instant::now() < deadline, "the task {} remains", self.id);
        }
        ctr(&["container", "delete", &self.id]).succeeded();
    }

    /// Kills, waits and deletes.
    #[track_caller]
    pub fn destroy(self) {
        self.kill("KILL");
        self.wait();
        self.delete();
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // After a test that deleted it, or failed: nothing here may hide that.
        if std::path::Path::new(BUNDLES).join(&self.id).exists() {
            ctr(&["task", "delete", "--force", &self.id]);
            ctr(&["container", "delete", &self.id]);
        }
    }
}

/// Kills and deletes every task and container: after a failed test, for the next one.
pub fn sweep() {
    for task in ctr(&["task", "list", "--quiet"]).text().lines() {
        ctr(&["task", "delete", "--force", task]);
    }
    for container in ctr(&["container", "list", "--quiet"]).text().lines() {
        ctr(&["container", "delete", container]);
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}
