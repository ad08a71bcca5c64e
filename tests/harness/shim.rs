//! The shim called by hand: for bundles that containerd would never make, and for
//! requests that `ctr` has no words for.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, KillRequest, ShutdownRequest};
use containerd_shim_protos::ttrpc::{Code, Error, context};
use containerd_shim_protos::{Client, TaskClient};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::ctr;
use crate::process::{self, Running};

const SHIM: &str = "/usr/local/bin/containerd-shim-rust-v2";
const ID: &str = "by-hand";

/// Kills an exec as containerd's client library does it for its callers: with SIGKILL
/// and `all`.
///
/// # Panics
/// If the container's shim does not do it.
#[track_caller]
pub fn kill_exec(container: &str, exec_id: &str) {
    let address = Path::new(ctr::BUNDLES).join(container).join("address");
    let address = fs::read_to_string(address).expect("the bundle's address file");
    let client = Client::connect(address.trim()).expect("the shim listens");
    let request = KillRequest {
        id: container.into(),
        exec_id: exec_id.into(),
        signal: 9,
        all: true,
        ..Default::default()
    };
    let killed = TaskClient::new(client).kill(deadline(), &request);
    assert!(killed.is_ok(), "{killed:?}");
}

/// Runs the shim's program in a bundle as a containerd does, `arguments` having the last
/// word.
#[track_caller]
pub fn run(bundle: &Bundle, arguments: &[&str]) -> process::Output {
    process::run(bundle.shim(arguments))
}

/// A bundle that tests spoil. Gone when dropped.
pub struct Bundle(TempDir);

impl Bundle {
    /// A bundle as containerd makes it, of a container that runs `true`.
    ///
    /// # Panics
    /// If it cannot be written.
    #[track_caller]
    pub fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let bin = directory.path().join("rootfs/bin");
        fs::create_dir_all(&bin).expect("a root file system");
        fs::copy("/usr/bin/busybox", bin.join("true")).expect("the node has busybox");
        // containerd reads the shim's log from a fifo of this name.
        fs::write(directory.path().join("log"), "").expect("a log");
        let bundle = Self(directory);
        bundle.write_config(&spec().to_string());
        bundle
    }

    /// The same with one key of its spec changed, or left out for a null.
    ///
    /// # Panics
    /// If there is no such key's parent.
    #[track_caller]
    pub fn with(pointer: &str, value: Value) -> Self {
        let bundle = Self::new();
        let mut spec = spec();
        let (parent, key) = pointer.rsplit_once('/').expect("a JSON pointer");
        let object = spec.pointer_mut(parent).expect("a key of the spec");
        if value.is_null() {
            object.as_object_mut().expect("an object").remove(key);
        } else {
            object[key] = value;
        }
        bundle.write_config(&spec.to_string());
        bundle
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Replaces `config.json`.
    ///
    /// # Panics
    /// If it cannot be written.
    #[track_caller]
    pub fn write_config(&self, text: &str) {
        fs::write(self.path().join("config.json"), text).expect("a config.json");
    }

    /// Has a shim started with `stdin` on its standard input, and ends it again. `meanwhile` is
    /// called while it runs, if it was started.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn started_with(&self, stdin: &[u8], meanwhile: impl FnOnce()) -> process::Output {
        let mut start = Running::start(self.shim(&["start"]));
        start.feed(stdin.to_owned());
        let started = start.finish();
        if started.code == 0 {
            meanwhile();
            self.end(&connected(&started));
        }
        started
    }

    /// Shutdown and `delete`.
    #[track_caller]
    fn end(&self, task: &TaskClient) {
        let shutdown = ShutdownRequest {
            id: ID.into(),
            ..Default::default()
        };
        // The shim may be gone before it has answered.
        task.shutdown(deadline(), &shutdown).ok();
        let bundle = self.path().to_string_lossy().into_owned();
        process::run(self.shim(&["-bundle", &bundle, "delete"])).succeeded();
    }

    /// Goes through `start`, `Create` and `delete` as containerd does, and gives the
    /// code and the text of the refusal.
    ///
    /// # Panics
    /// If the bundle is accepted.
    #[track_caller]
    pub fn refusal(&self) -> (Code, String) {
        let started = process::run(self.shim(&["start"])).succeeded();
        let task = connected(&started);
        let request = CreateTaskRequest {
            id: ID.into(),
            bundle: self.path().to_string_lossy().into_owned(),
            ..Default::default()
        };
        let answer = task.create(deadline(), &request);
        self.end(&task);
        match answer {
            Err(Error::RpcStatus(status)) => (status.code(), status.message),
            other => panic!("a status was expected: {other:?}"),
        }
    }

    fn shim(&self, args: &[&str]) -> Command {
        command(self.path(), ID, args)
    }
}

impl Default for Bundle {
    fn default() -> Self {
        Self::new()
    }
}

/// The shim's program as containerd calls it for a container or a sandbox.
pub(crate) fn command(bundle: &Path, id: &str, args: &[&str]) -> Command {
    let mut shim = Command::new(SHIM);
    shim.current_dir(bundle)
        .env("TTRPC_ADDRESS", "/run/containerd/containerd.sock.ttrpc")
        .args(["-namespace", "default", "-id", id])
        .args(["-address", "/run/containerd/containerd.sock"])
        .args(args);
    shim
}

/// A client of the shim whose address `start` has printed.
#[track_caller]
fn connected(started: &process::Output) -> TaskClient {
    let client = Client::connect(started.text().trim()).expect("the shim listens");
    TaskClient::new(client)
}

fn deadline() -> context::Context {
    context::with_duration(Duration::from_secs(60))
}

fn spec() -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": ["true"],
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "mount" }, { "type": "network" },
            ],
        },
    })
}
