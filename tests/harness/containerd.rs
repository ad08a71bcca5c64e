//! containerd on the node: its log, its events.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::process::Command;

use crate::ctr::ctr;
use crate::process::Running;

/// containerd's log; the shims' and through them the VMMs' lines are in it.
const LOG: &str = "/run/results/containerd.log";

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
        while !client.prints("/namespaces/", std::time::Duration::from_millis(500)) {
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
        self.client
            .printed()
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

    /// The topics of all task events up to now, oldest first.
    #[track_caller]
    pub fn task_topics(self) -> Vec<String> {
        self.tasks().into_iter().map(|(topic, _)| topic).collect()
    }
}
