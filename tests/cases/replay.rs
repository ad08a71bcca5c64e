//! What nerdctl and its like do with a task: hooks that come late, labels, a logger that
//! reads the streams' fifos and may be replaced, a client that comes back.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;

use husk_tests::network::told;
use husk_tests::process::Stream;
use husk_tests::rootfs::Rootfs;
use husk_tests::{Container, Node, Runtime, Task, ctr};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A hook's program: notes its name and the state it was given, and wires the network namespace of
/// the process it was told of, as nerdctl's createRuntime does.
const HOOK: &str = r#"#!/bin/sh
state=$(cat)
pid=$(echo "$state" | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')
links=none
if [ "$1" = createRuntime ]; then
    n() { nsenter --net=/proc/$pid/ns/net ip "$@"; }
    ip link add replay$pid type veth peer name eth0 netns $pid
    ip addr add 10.4.0.1/24 dev replay$pid
    ip link set replay$pid up
    n addr add 10.4.0.2/24 dev eth0
    n link set eth0 up
    n route add default via 10.4.0.1
fi
[ -z "$pid" ] || [ "$pid" = 0 ] || links=$(nsenter --net=/proc/$pid/ns/net ip -o link | wc -l)
echo "$1 $links $state" >>"$2"
"#;

/// One call of a hook.
struct Call {
    name: String,
    links: String,
    state: Value,
}

/// A directory with the hook's program and what it noted. Not in `/tmp`: the ledger.
struct Hooks(TempDir);

impl Hooks {
    fn new() -> Self {
        let directory = tempfile::tempdir_in("/var/tmp").expect("a temporary directory");
        let program = directory.path().join("hook");
        fs::write(&program, HOOK).expect("the hook's program");
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("a file of ours");
        Self(directory)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }

    /// The entry of `hooks.<name>` in a spec.
    fn entry(&self, name: &str) -> Value {
        let program = self.path("hook");
        json!([{ "path": program, "args": ["hook", name, self.path("calls")],
                 "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] }])
    }

    fn calls(&self) -> Vec<Call> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        let call = |line: &str| {
            let (name, rest) = line.split_once(' ')?;
            let (links, state) = rest.split_once(' ')?;
            Some(Call {
                name: name.into(),
                links: links.into(),
                state: serde_json::from_str(state).ok()?,
            })
        };
        text.lines()
            .map(|line| call(line).unwrap_or_else(|| panic!("a call, not {line:?}")))
            .collect()
    }
}

/// `ctr`'s own default spec with another root, command and hooks.
#[track_caller]
fn spec(id: &str, rootfs: &Rootfs, args: &[&str], hooks: &Value) -> Value {
    let text = ctr(&["oci", "spec"]).succeeded().text();
    let mut spec: Value = serde_json::from_str(&text).expect("a spec");
    spec["root"]["path"] = json!(rootfs.path());
    spec["process"]["args"] = json!(args);
    spec["process"]["cwd"] = json!("/");
    spec["process"]["env"] = json!(["PATH=/bin:/usr/bin"]);
    spec["linux"]["cgroupsPath"] = json!(format!("/default/{id}"));
    spec["hooks"] = hooks.clone();
    spec
}

#[test]
fn late_hooks_are_run_on_the_host_with_the_tasks_state() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let hooks = Hooks::new();
        let rootfs = Rootfs::mount();
        let hook = json!({
            "createRuntime": hooks.entry("createRuntime"),
            "poststop": hooks.entry("poststop"),
        });
        let id = format!("late-{}", runtime.name().replace('.', "-"));
        let config = hooks.path("spec.json");
        let text = spec(&id, &rootfs, &["/bin/sleep", "infinity"], &hook).to_string();
        fs::write(&config, text).expect("a spec");

        let run = ["run", "--detach", "--null-io", "--runtime", runtime.name()];
        let rest = ["--label", "client=replay", "--config", &config, &id];
        ctr(&[&run[..], &rest[..]].concat()).succeeded();
        let task = Task::of(&id);

        let calls = hooks.calls();
        assert_eq!(calls.len(), 1, "{runtime:?}");
        let call = &calls[0];
        assert_eq!(call.name, "createRuntime", "{runtime:?}");
        assert_eq!(call.state["id"], json!(id), "{runtime:?}");
        assert_eq!(call.state["pid"], json!(task.pid()), "{runtime:?}");
        // A namespace of its own: lo and what the hook has added, which the container has.
        assert_eq!(call.links, "2", "{runtime:?}: {}", call.state);
        let has = "ls /sys/class/net; ip -o -4 addr show dev eth0 | tr -s ' ' | cut -d ' ' -f 2-4; ip route | head -n 1";
        let expected = "eth0\nlo\neth0 inet 10.4.0.2/24\ndefault via 10.4.0.1 dev eth0 \n";
        assert_eq!(told(&task, has), expected, "{runtime:?}");
        told(&task, "ping -c 1 -W 20 10.4.0.1");

        let labels = ctr(&["container", "list", "--quiet", "labels.client==replay"]);
        assert_eq!(labels.succeeded().text().trim(), id, "{runtime:?}");

        task.destroy();
        let names: Vec<String> = hooks.calls().into_iter().map(|call| call.name).collect();
        assert_eq!(names, ["createRuntime", "poststop"], "{runtime:?}");
    });
}

#[test]
fn a_logger_that_is_replaced_misses_no_line() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let script = "while read x; do echo \"out $x\"; echo \"err $x\" >&2; done; echo end";
        let task = Container::new(runtime, &["sh", "-c", script]).detach_with_input();
        let [stdin, stdout, stderr] = ["stdin", "stdout", "stderr"].map(|name| task.fifo(name));
        let mut input = File::options()
            .read(true)
            .write(true)
            .open(stdin)
            .expect("a fifo of ctr's");

        let mut first = File::open(&stdout).expect("a fifo of ctr's");
        let mut errors = Stream::of_fifo(&stderr);
        input.write_all(b"1\n").expect("room in a fifo");
        errors.wait_for("err 1\n");
        let mut line = [0; 6];
        first.read_exact(&mut line).expect("a line");
        assert_eq!(&line, b"out 1\n", "{runtime:?}");
        drop(first);
        input.write_all(b"2\n").expect("room in a fifo");
        errors.wait_for("err 2\n");

        let mut second = Stream::of_fifo(&stdout);
        input.write_all(b"3\n").expect("room in a fifo");
        second.wait_for("out 2\nout 3\n");
        errors.wait_for("err 3\n");
        task.destroy();
    });
}
