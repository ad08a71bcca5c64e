//! containerd on the node: its log, its events.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cri::{Cri, api};
use crate::ctr::ctr;
use crate::process::{self, Running};

/// containerd's log; the shims' and through them the VMMs' lines are in it.
const LOG: &str = "/run/results/containerd.log";
/// Where the node's PID 1 and this module keep containerd's process id.
const PID_FILE: &str = "/run/containerd.pid";
const CONFIG: &str = "/usr/local/lib/node/containerd.toml";

/// The containerd that was started here, once the first one, of PID 1, is gone.
static STARTED: Mutex<Option<Child>> = Mutex::new(None);

/// A place in the log.
#[derive(Clone, Copy, Debug)]
pub struct LogMark(u64);

impl LogMark {
    /// The log's present end.
    pub fn now() -> Self {
        Self(std::fs::metadata(LOG).map_or(0, |log| log.len()))
    }

    /// Everything logged since.
    pub fn since(self) -> String {
        let mut text = Vec::new();
        if let Ok(mut log) = File::open(LOG)
            && log.seek(SeekFrom::Start(self.0)).is_ok()
        {
            // What could be read is what there is to show.
            drop(log.read_to_end(&mut text));
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// containerd's process id, also while it is away.
pub fn pid() -> Option<u32> {
    fs::read_to_string(PID_FILE).ok()?.trim().parse().ok()
}

/// Its version, such as 2.1.9.
///
/// # Panics
/// If the CRI service does not tell.
#[track_caller]
pub fn version() -> String {
    let answer = Cri::connect().version(api::VersionRequest::default());
    let version = answer.expect("a version").runtime_version;
    // As Debian writes it: 1.7.24~ds1.
    version.trim_start_matches('v').to_owned()
}

/// Kills containerd with SIGKILL; it is back when the result is dropped.
///
/// # Panics
/// If there is none.
#[track_caller]
pub fn kill_9() -> Away {
    let pid = pid().expect("containerd has a process id");
    process::signal(pid, "KILL");
    let gone = process::wait_for_exit(pid, Instant::now() + process::DEADLINE);
    assert!(gone, "containerd ({pid}) survives SIGKILL");
    if let Some(mut child) = started().take() {
        child.wait().expect("our own child");
    }
    Away(())
}

/// The time without containerd.
pub struct Away(());

impl Away {
    /// Starts it and waits until it answers.
    pub fn end(self) {
        drop(self);
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        let log = File::options().append(true).open(LOG).expect("its log");
        let child = Command::new("containerd")
            .args(["--config", CONFIG])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the node has containerd");
        fs::write(PID_FILE, child.id().to_string()).expect("a place for its process id");
        *started() = Some(child);
        let deadline = Instant::now() + process::DEADLINE;
        // The client does not wait for the socket, only for an answer.
        while ctr(&["--connect-timeout", "60s", "version"]).code != 0 {
            assert!(Instant::now() < deadline, "containerd does not start again");
        }
    }
}

fn started() -> std::sync::MutexGuard<'static, Option<Child>> {
    STARTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A subscription to containerd's events.
pub struct Events {
    client: Running,
}

impl Events {
    /// Subscribes; every later event is seen.
    ///
    /// # Panics
    /// If `ctr events` does not report the events made here to find that out.
    #[track_caller]
    pub fn subscribe() -> Self {
        let mut command = Command::new("ctr");
        command.arg("events");
        let mut client = Running::start(command);
        // The subscription has no answer of its own: it is there once an event arrives.
        while !client.prints("/namespaces/", Duration::from_millis(500)) {
            ctr(&["namespaces", "label", "default", "subscribed=1"]).succeeded();
        }
        ctr(&["namespaces", "label", "default", "subscribed="]).succeeded();
        Self { client }
    }

    /// Waits until an event of that topic has come.
    ///
    /// # Panics
    /// If none does by the deadline.
    #[track_caller]
    pub fn wait_for(&mut self, topic: &str) {
        self.client.wait_for(topic);
    }

    /// All task events up to now as `(topic, JSON)`, oldest first.
    ///
    /// # Panics
    /// If the stream breaks off.
    #[track_caller]
    pub fn tasks(mut self) -> Vec<(String, serde_json::Value)> {
        ctr(&["namespaces", "label", "default", "end=1"]).succeeded();
        self.client.wait_for("\"end\"");
        ctr(&["namespaces", "label", "default", "end="]).succeeded();
        Self::parse(&self.client.printed())
    }

    /// The exit status of the one exit event, which may be on its way still.
    ///
    /// # Panics
    /// If there is another number of them.
    #[track_caller]
    pub fn one_exit(mut self) -> u64 {
        self.wait_for("/tasks/exit");
        let mut tasks = self.tasks();
        tasks.retain(|(topic, _)| topic == "/tasks/exit");
        assert_eq!(tasks.len(), 1, "{tasks:?}");
        tasks[0].1["exit_status"].as_u64().expect("an exit status")
    }

    /// All task events up to the death of containerd, which ends the subscription.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn tasks_until_its_death(self) -> Vec<(String, serde_json::Value)> {
        Self::parse(&self.client.finish().text())
    }

    fn parse(printed: &str) -> Vec<(String, serde_json::Value)> {
        printed
            .lines()
            .filter_map(|line| {
                // "<time with spaces> <namespace> <topic> <JSON>"
                let (head, json) = line.split_at(line.find('{')?);
                let topic = head.split_whitespace().last()?;
                let event = serde_json::from_str(json).ok()?;
                topic.starts_with("/tasks/").then(|| (topic.into(), event))
            })
            .collect()
    }

    /// The topics of all task events, oldest first, once one of the topic `last` has come: a shim
    /// tells its events in the background, and its callers may have their answers sooner.
    ///
    /// # Panics
    /// If none does by the deadline.
    #[track_caller]
    pub fn task_topics_with(mut self, last: &str) -> Vec<String> {
        self.wait_for(last);
        self.tasks().into_iter().map(|(topic, _)| topic).collect()
    }
}
