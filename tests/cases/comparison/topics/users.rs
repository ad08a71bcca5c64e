//! The user a process runs as.

use serde_json::json;

use crate::comparison::table::Group;

const IDENTITY: &str = "grep -E '^(Uid|Gid|Groups)' /proc/self/status | tr '\\t' ' '";

/// The rows of every run.
pub const SHORT: &[Group] = &[
    Group::shell(
        "root",
        |_| {},
        &[
            ("identity", IDENTITY),
            ("home", "echo $HOME"),
            ("umask", "umask"),
            (
                "its output belongs to it",
                "stat -L -c '%u %g' /proc/1/fd/1",
            ),
            (
                "writes a file of its own",
                "touch /tmp/own; stat -c '%u %g %a' /tmp/own",
            ),
            (
                "gives a file away",
                "touch /tmp/away; chown 12:34 /tmp/away; stat -c '%u %g' /tmp/away",
            ),
            (
                "becomes another user",
                "su user -s /bin/sh -c 'id; echo $HOME'",
            ),
        ],
    ),
    Group::shell(
        "a user of the image",
        |spec| spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 }),
        &[
            ("identity", IDENTITY),
            ("home", "echo $HOME"),
            ("capabilities", "grep Cap /proc/self/status"),
            ("may not write root's files", "touch /etc/passwd"),
            (
                "may not read another's",
                "cat /proc/1/environ | tr '\\0' '\\n'",
            ),
            (
                "writes into /tmp",
                "echo mine >/tmp/mine; stat -c '%u %g %a' /tmp/mine",
            ),
            (
                "writes to its standard output by name",
                "echo named >/dev/stdout",
            ),
            (
                "may not give a file away",
                "touch /tmp/kept; chown 0 /tmp/kept",
            ),
            ("may not send root signals", "kill -0 1"),
            (
                "sees its own processes",
                "ls -ld /proc/self/fd >/dev/null && echo readable",
            ),
        ],
    ),
    Group::shell(
        "numbers that no file knows",
        |spec| {
            spec["process"]["user"] =
                json!({ "uid": 4_000_000, "gid": 77, "additionalGids": [29, 5, 4_000_001] })
        },
        &[
            ("identity", IDENTITY),
            ("home", "echo $HOME"),
            ("new files", "touch /tmp/new; stat -c '%u %g' /tmp/new"),
        ],
    ),
];

/// The rows that only a full run has time for.
pub const FULL: &[Group] = &[
    Group::shell(
        "root with further groups",
        |spec| spec["process"]["user"] = json!({ "uid": 0, "gid": 0, "additionalGids": [10, 20] }),
        &[("identity", IDENTITY)],
    ),
    Group::shell(
        "a umask of its own",
        |spec| spec["process"]["user"]["umask"] = json!(0o027),
        &[
            ("umask", "umask"),
            (
                "new files",
                "touch /tmp/f; mkdir /tmp/d; stat -c %a /tmp/f /tmp/d",
            ),
        ],
    ),
    Group::shell(
        "a home of its own",
        |spec| {
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            spec["process"]["env"] = json!(["PATH=/bin", "HOME=/var"]);
        },
        &[("home", "echo $HOME; cd; pwd")],
    ),
];
