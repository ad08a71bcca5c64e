//! Device nodes and who may use them.

use serde_json::{Value, json};

use crate::comparison::table::Group;

/// Adds device nodes.
fn nodes(spec: &mut Value, devices: Value) {
    spec["linux"]["devices"] = devices;
}

/// Adds rules behind containerd's first, which denies everything.
fn rules(spec: &mut Value, rules: &[Value]) {
    let devices = &mut spec["linux"]["resources"]["devices"];
    devices
        .as_array_mut()
        .expect("rules")
        .extend_from_slice(rules);
}

/// Makes a node where nodes can be made under both runtimes and tries it.
macro_rules! node {
    ($numbers:literal, $use:literal) => {
        concat!("rm -f /run/node; mknod /run/node ", $numbers, " && ", $use)
    };
}

/// The rows of every run.
pub const SHORT: &[Group] = &[
    Group::shell(
        "the defaults",
        |spec| {
            // Where nodes can be made: runc's own root could be, ours cannot.
            let mounts = spec["mounts"].as_array_mut().expect("mounts");
            mounts.retain(|mount| mount["destination"] != "/run");
            mounts.push(json!({ "destination": "/run", "type": "tmpfs", "source": "tmpfs" }));
        },
        &[
            ("names", "ls /dev | grep -vx core | sort"),
            ("core", "readlink /dev/core"),
            (
                "numbers and modes",
                "cd /dev; stat -c '%n %F %t %T %a %u %g' full null random tty urandom zero",
            ),
            (
                "links",
                "cd /dev; for l in fd ptmx stderr stdin stdout; do echo $l $(readlink $l); done",
            ),
            (
                "directories",
                "cd /dev; stat -c '%n %a %u %g' . mqueue pts shm",
            ),
            ("null swallows", "echo x >/dev/null; cat /dev/null | wc -c"),
            (
                "zero gives zeros",
                "head -c 5 /dev/zero | od -c | head -n 1",
            ),
            ("full is full", "echo x >/dev/full"),
            (
                "random gives",
                "head -c 16 /dev/random | wc -c; head -c 16 /dev/urandom | wc -c",
            ),
            ("no terminal", "echo x >/dev/tty"),
            ("ptmx opens", ": <>/dev/ptmx && echo opened"),
            (
                "the kernel's log may not be read",
                node!("c 1 11", "head -c 1 /run/node"),
            ),
            (
                "memory may not be read",
                node!("c 1 1", "head -c 1 /run/node"),
            ),
            ("a null made by hand works", node!("c 1 3", "cat /run/node")),
            (
                "a terminal made by hand does not",
                node!("c 4 64", "head -c 1 /run/node"),
            ),
            (
                "a console made by hand does not",
                node!("c 5 1", "head -c 1 /run/node"),
            ),
            (
                "a disk made by hand does not",
                node!("b 7 0", "head -c 1 /run/node"),
            ),
            ("nodes on the root", "mknod /node c 1 3 && cat /node"),
        ],
    ),
    Group::shell(
        "nodes of the spec",
        |spec| {
            nodes(
                spec,
                json!([
                    { "path": "/dev/also-null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 5, "gid": 6 },
                    { "path": "/dev/sub/zero", "type": "u", "major": 1, "minor": 5 },
                    { "path": "/dev/disk", "type": "b", "major": 7, "minor": 0, "fileMode": 0o600 },
                    { "path": "/dev/pipe", "type": "p", "fileMode": 0o666 },
                    { "path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600 },
                ]),
            );
            rules(
                spec,
                &[json!({ "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" })],
            );
        },
        &[
            (
                "with mode and owner",
                "stat -c '%F %t %T %a %u %g' /dev/also-null",
            ),
            (
                "in a directory of its own",
                "stat -c '%F %t %T %a %u %g' /dev/sub/zero /dev/sub",
            ),
            ("a disk", "stat -c '%F %t %T %a' /dev/disk"),
            ("a pipe", "stat -c '%F %a' /dev/pipe"),
            ("one of the usual ones", "stat -c '%F %a' /dev/null"),
            ("a disk that no rule allows", "head -c 1 /dev/disk"),
        ],
    ),
    Group::shell(
        "rules of the spec",
        |spec| {
            nodes(
                spec,
                json!([
                    { "path": "/dev/log", "type": "c", "major": 1, "minor": 11 },
                    { "path": "/dev/mine", "type": "c", "major": 1, "minor": 5 },
                ]),
            );
            rules(
                spec,
                &[
                    json!({ "allow": true, "type": "c", "major": 1, "minor": 11, "access": "w" }),
                    json!({ "allow": true, "type": "b", "access": "m" }),
                    json!({ "allow": false, "type": "c", "major": 1, "minor": 9, "access": "rwm" }),
                ],
            );
        },
        &[
            ("writing only", "echo hello >/dev/log && echo written"),
            ("not reading", "head -c 1 /dev/log"),
            ("making disks", node!("b 7 0", "echo made")),
            (
                "but not reading them",
                node!("b 7 0", "head -c 1 /run/node"),
            ),
            (
                "what is allowed without a rule",
                "head -c 2 /dev/mine | wc -c",
            ),
            (
                "a rule against a usual one",
                "head -c 2 /dev/urandom | wc -c",
            ),
            ("other characters", node!("c 10 1", "echo made")),
        ],
    ),
];

/// The rows that only a full run has time for.
pub const FULL: &[Group] = &[
    Group::shell(
        "everything allowed",
        |spec| spec["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]),
        &[
            (
                "the kernel's log opens",
                node!("c 1 11", ": </run/node && echo opened"),
            ),
            (
                "a device that is not there",
                node!("c 240 7", ": </run/node"),
            ),
        ],
    ),
    Group::command(
        "a node of a kind that does not exist",
        |spec| {
            nodes(
                spec,
                json!([{ "path": "/dev/x", "type": "z", "major": 1, "minor": 3 }]),
            )
        },
        &["true"],
    ),
    Group::command(
        "a rule of a kind that does not exist",
        |spec| {
            rules(
                spec,
                &[json!({ "allow": true, "type": "z", "access": "rwm" })],
            )
        },
        &["true"],
    ),
];
