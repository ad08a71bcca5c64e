//! Hooks as real programs: what they are given, in which order, and how they fail.

use super::*;
use crate::sandbox::state_file::State;
use serde_json::json;
use std::fs;

/// A bundle whose config.json has `hooks`, and a run directory beside it.
struct Fixture {
    dir: PathBuf,
    file: StateFile,
    host: HostHooks,
}

fn fixture(name: &str, hooks: Value) -> Fixture {
    let dir = std::env::temp_dir().join(format!("husk-hooks-{name}-{}", std::process::id()));
    let bundle = dir.join("bundle");
    fs::create_dir_all(&bundle).unwrap();
    let spec = json!({ "ociVersion": "1.1.0", "hooks": hooks, "annotations": { "a": "b" } });
    fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    let spec = Spec::load(&bundle).unwrap();
    let host = HostHooks::new(&spec, "c", &bundle);
    let file = StateFile::create(dir.join("run"), State::default()).unwrap();
    Fixture { dir, file, host }
}

impl Fixture {
    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("bundle/log")).unwrap_or_default()
    }

    async fn create(&self) -> Result<(), String> {
        let created = self.host.create(&self.file, 42).await;
        created.map_err(|error| chain(&error))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

fn shell(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script] })
}

#[tokio::test]
async fn hooks_run_in_order_each_with_its_state_and_poststop_once() {
    let log = |name: &str| shell(&format!("echo {name} $(cat) >>log"));
    let hooks = json!({
        "poststop": [log("poststop")],
        "poststart": [log("poststart")],
        "createContainer": [log("createContainer")],
        "createRuntime": [log("first"), log("second")],
        "prestart": [log("prestart")],
    });
    let fixture = fixture("order", hooks);
    let bundle = fixture.dir.join("bundle");
    fixture.create().await.unwrap();
    assert!(pending(&fixture.file, "c"));
    poststart(&fixture.file, "c", 42).await.unwrap();
    poststop(&fixture.file, "c").await;
    poststop(&fixture.file, "c").await;
    poststop_after_crash_elsewhere(&fixture);
    let text = fixture.log();
    let lines: Vec<(&str, Value)> = text
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, state)| (name, serde_json::from_str(state).unwrap()))
        .collect();
    let state = |status: &str, pid: Option<u32>| {
        let mut state = json!({
            "ociVersion": OCI_VERSION, "id": "c", "status": status,
            "bundle": bundle, "annotations": { "a": "b" },
        });
        if let Some(pid) = pid {
            state["pid"] = pid.into();
        }
        state
    };
    let creating = state("creating", Some(42));
    let expected = [
        ("prestart", creating.clone()),
        ("first", creating.clone()),
        ("second", creating.clone()),
        ("createContainer", creating),
        ("poststart", state("running", Some(42))),
        ("poststop", state("stopped", None)),
    ];
    assert_eq!(lines, expected);
}

/// `delete` makes a runtime of its own, which a test that has one cannot.
fn poststop_after_crash_elsewhere(fixture: &Fixture) {
    std::thread::scope(|scope| {
        scope.spawn(|| poststop_after_crash(&fixture.file));
    });
}

#[tokio::test]
async fn a_dead_shims_poststop_is_run_by_delete() {
    let hooks = json!({
        "createRuntime": [shell("true")],
        "poststop": [shell("exit 3"), shell("echo gone >>log")],
    });
    let fixture = fixture("crash", hooks);
    fixture.create().await.unwrap();
    poststop_after_crash_elsewhere(&fixture);
    assert_eq!(fixture.log(), "gone\n", "a failure must not stop the next");
    assert!(!pending(&fixture.file, "c"));
}

#[tokio::test]
async fn a_failing_create_hook_tells_how_and_stops_the_rest() {
    let cases = [
        (
            shell("echo out; echo err >&2; exit 3"),
            "error running hook #1: error running hook: exit status 3, stdout: out, stderr: err",
        ),
        (
            shell("kill -9 $$"),
            "error running hook: signal: 9 (SIGKILL)",
        ),
        (
            json!({ "path": "/nonexistent/hook" }),
            "error running hook #1: /nonexistent/hook cannot be executed: No such file",
        ),
        (
            json!({ "path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1 }),
            "error running hook #1: hook ran past specified timeout of 1.0s",
        ),
    ];
    for (index, (hook, words)) in cases.into_iter().enumerate() {
        let hooks = json!({
            "createRuntime": [shell("echo one >>log"), hook],
            "createContainer": [shell("echo never >>log")],
        });
        let fixture = fixture(&format!("fail{index}"), hooks);
        let error = fixture.create().await.unwrap_err();
        assert!(error.starts_with("hooks.createRuntime: "), "{error}");
        assert!(error.contains(words), "{error}");
        assert_eq!(fixture.log(), "one\n");
    }
}

#[tokio::test]
async fn a_hook_has_its_environment_its_name_and_no_descriptor_of_ours() {
    let with_env = json!({
        "path": "/bin/sh",
        "args": ["the-name", "-c", "echo $0-$X-${HOME-none} $(ls /proc/self/fd | tr '\\n' ,) >>log"],
        "env": ["X=y=z", "PATH=/usr/bin:/bin"],
    });
    let inherits = shell("echo ${PATH:+path} >>log");
    let fixture = fixture("env", json!({ "prestart": [with_env, inherits] }));
    // As the shim does first of all; the test's own caller may have left something open.
    crate::sys::keep_descriptors_from_children().unwrap();
    let open = fs::File::open("/dev/null").unwrap();
    fixture.create().await.unwrap();
    drop(open);
    // ls has its three streams and the directory it reads.
    assert_eq!(fixture.log(), "the-name-y=z-none 0,1,2,3,\npath\n");
}

#[tokio::test]
async fn a_process_left_behind_and_endless_output_hold_nothing_up() {
    let hooks = json!({
        "prestart": [shell("sleep 90 & exit 0"), shell("head -c 1000000 /dev/zero; exit 1")],
    });
    let fixture = fixture("left", hooks);
    let created = timeout(Duration::from_secs(60), fixture.create()).await;
    let error = created.expect("in time").unwrap_err();
    assert!(error.contains("hook #1"), "{error}");
    assert!(error.len() < 2 * MAX_OUTPUT as usize, "{}", error.len());
}

#[test]
fn a_hook_that_cannot_be_meant_is_refused_by_name() {
    let check = |hook: Value| {
        let hooks: Hooks =
            serde_json::from_value(json!({ "poststop": [{ "path": "/a" }, hook] })).expect("hooks");
        hooks.check().map_err(|error| error.to_string())
    };
    assert_eq!(check(json!({ "path": "/b", "timeout": 1 })), Ok(()));
    let relative = check(json!({ "path": "b" })).unwrap_err();
    assert!(
        relative.starts_with("hooks.poststop[1].path: "),
        "{relative}"
    );
    let never = check(json!({ "path": "/b", "timeout": 0 })).unwrap_err();
    assert!(never.starts_with("hooks.poststop[1].timeout: "), "{never}");
}

#[test]
fn only_the_hooks_of_the_container_reach_the_guest() {
    let start = json!({ "path": "/in/the/rootfs", "env": ["a=b"], "timeout": 3 });
    let hooks = json!({ "prestart": [{ "path": "/a" }], "startContainer": [start] });
    let hooks: Hooks = serde_json::from_value(hooks).unwrap();
    let guest = serde_json::to_value(hooks.for_guest()).unwrap();
    assert_eq!(guest, json!({ "startContainer": [start] }));
}
