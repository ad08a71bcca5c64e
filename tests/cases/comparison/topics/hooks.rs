//! Hooks: when they run, with what, and what their failure does.

use serde_json::{Value, json};

use crate::comparison::drive::host;
use crate::comparison::table::Group;

/// Adds a hook of that kind that runs a script in the host's directory, where `$0` is.
fn hook(spec: &mut Value, kind: &str, script: &str) {
    let script = format!("cd \"${{0%/*}}\"; {script}");
    let hook = json!({
        "path": "/bin/sh",
        "args": ["sh", "-c", script, host(spec, "x")],
        "env": ["PATH=/usr/bin:/bin", format!("KIND={kind}")],
    });
    match &mut spec["hooks"][kind] {
        Value::Array(hooks) => hooks.push(hook),
        empty => *empty = json!([hook]),
    }
}

/// Notes the hook's kind and the status it is told, without spaces.
const NOTE: &str = "echo \"$KIND $(tr -d ' \\n' | grep -o '\"status\":\"[a-z]*\"')\" >>notes";

/// The rows of every run.
pub const SHORT: &[Group] = &[
    Group::command(
        "all kinds on the host",
        |spec| {
            for kind in [
                "prestart",
                "createRuntime",
                "createContainer",
                "poststart",
                "poststop",
            ] {
                hook(spec, kind, NOTE);
            }
        },
        &["echo", "ran"],
    )
    .afterwards("cat notes"),
    Group::command(
        "a hook of creation that fails",
        |spec| {
            hook(spec, "createRuntime", "echo it broke >&2; exit 3");
            hook(spec, "poststop", "echo stopped >>notes");
        },
        &["echo", "ran"],
    )
    .afterwards("cat notes"),
    Group::command(
        "a hook in the container",
        |spec| {
            spec["hooks"] = json!({ "startContainer": [{
                "path": "/bin/sh", "args": ["sh", "-c", "cat >/tmp/state; echo $WHERE >/tmp/where"], "env": ["PATH=/bin", "WHERE=inside"],
            }] });
        },
        &[
            "sh",
            "-c",
            "cat /tmp/where; grep -o '\"status\": *\"[a-z]*\"' /tmp/state | tr -d ' '",
        ],
    ),
];

/// The rows that only a full run has time for.
pub const FULL: &[Group] = &[
    Group::command(
        "their order",
        |spec| {
            for (kind, word) in [("createRuntime", "1"), ("createRuntime", "2"), ("prestart", "0"), ("poststop", "8"), ("poststop", "9")] {
                hook(spec, kind, &format!("echo {word} >>notes"));
            }
        },
        &["true"],
    )
    .afterwards("cat notes"),
    Group::command(
        "what they are told",
        |spec| hook(spec, "createRuntime", "cat >state; grep -o '\"ociVersion\"' state; env | cut -d= -f1 | grep -v -e ^_ -e PWD -e SHLVL -e OLDPWD | sort >names; readlink /proc/self/fd/0 | cut -d: -f1 >input"),
        &["true"],
    )
    .afterwards("grep -o '\"[a-zA-Z]*\":' state | sort; tr ',' '\\n' <state | grep -c -E '\"pid\":[1-9]'; cat names input"),
    Group::command(
        "a process that is there",
        |spec| hook(spec, "createRuntime", "pid=$(grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*'); kill -0 $pid && echo lives >>notes; [ $(readlink /proc/$pid/ns/net) != $(readlink /proc/self/ns/net) ] && echo apart >>notes"),
        &["true"],
    )
    .afterwards("cat notes"),
    Group::command(
        "a hook before the start that fails",
        |spec| hook(spec, "prestart", "exit 3"),
        &["echo", "ran"],
    ),
    Group::command(
        "a hook after the start that fails",
        |spec| hook(spec, "poststart", "exit 3"),
        &["sh", "-c", "sleep 1; echo ran"],
    ),
    Group::command(
        "a hook after the stop that fails",
        |spec| hook(spec, "poststop", "exit 3"),
        &["echo", "ran"],
    ),
    Group::command(
        "a hook that is not there",
        |spec| spec["hooks"] = json!({ "createRuntime": [{ "path": "/no/such/hook" }] }),
        &["echo", "ran"],
    ),
    Group::command(
        "a hook that takes too long",
        |spec| {
            hook(spec, "createRuntime", "exec sleep 100");
            spec["hooks"]["createRuntime"][0]["timeout"] = json!(1);
        },
        &["echo", "ran"],
    ),
    Group::command(
        "a hook in the container that fails",
        |spec| spec["hooks"] = json!({ "startContainer": [{ "path": "/bin/false" }] }),
        &["echo", "ran"],
    ),
    Group::running(
        "an exec",
        |spec| hook(spec, "poststart", "echo started >>notes"),
        "exec sleep 1000",
        &[("runs no hook", |c| c.sh("echo inside"))],
    )
    .afterwards("cat notes"),
];
