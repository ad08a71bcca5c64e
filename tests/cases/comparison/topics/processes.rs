//! Arguments, environment, working directory and what a process inherits.

use serde_json::json;

use crate::comparison::table::Group;

/// The rows of every run.
pub const SHORT: &[Group] = &[
    Group::command(
        "arguments with everything in them",
        |_| {},
        &[
            "sh",
            "-c",
            "for a; do echo \"[$a]\"; done",
            "name",
            "",
            "two words",
            "new\nline",
            "$HOME",
            "\u{fc}ml\u{e4}ut \u{1f980}",
            "'\"",
        ],
    ),
    Group::shell(
        "the environment",
        |spec| {
            spec["process"]["env"] = json!([
                "PATH=/bin",
                "A=1",
                "B=",
                "C=with = sign",
                "A=2",
                "D=two\nlines",
                "lower=x",
                "E=\u{fc}",
            ]);
        },
        &[
            ("as the kernel has it", "tr '\\0' '|' </proc/1/environ"),
            ("as a child has it", "env | sort"),
        ],
    ),
    Group::shell(
        "what a process inherits",
        |_| {},
        &[
            ("descriptors", "ls /proc/1/fd"),
            ("limits nobody named", "cat /proc/1/limits"),
            (
                "nothing else is open",
                "for f in 0 1 2; do readlink /proc/1/fd/$f | sed 's/:.*//'; done",
            ),
            ("standard input is at its end", "cat | wc -c"),
            ("priority", "cut -d' ' -f18,19 /proc/1/stat"),
            ("scheduling", "cut -d' ' -f41 /proc/1/stat"),
            (
                "personality",
                "cat /proc/1/personality 2>/dev/null || echo closed",
            ),
            (
                "the command line",
                "tr '\\0' '\\n' </proc/1/cmdline | head -n 2",
            ),
            ("the program", "readlink /proc/1/exe"),
            ("the root", "readlink /proc/1/root"),
            (
                "no tracer, no threads",
                "grep -E '^(TracerPid|Threads)' /proc/1/status",
            ),
            (
                "a session of the audit",
                "cat /proc/self/sessionid 2>/dev/null | wc -c",
            ),
            ("it may dump core", "grep CoreDumping /proc/1/status"),
            ("timer slack", "cat /proc/self/timerslack_ns"),
            (
                "its own score file",
                "cat /proc/self/oom_score_adj >/dev/null && echo readable",
            ),
            (
                "the kernel's command line is the kernel's",
                "[ -s /proc/cmdline ] && echo readable",
            ),
            (
                "a clock that is right",
                "[ $(date +%Y) -ge 2024 ] && echo right",
            ),
            ("the time zone", "date +%Z; echo ${TZ-unset}"),
            ("page size and words", "uname -m; uname -s"),
            ("entropy", "cat /proc/sys/kernel/random/poolsize"),
        ],
    ),
];

/// The rows that only a full run has time for.
pub const FULL: &[Group] = &[
    Group::shell(
        "an entry without a value",
        |spec| spec["process"]["env"] = json!(["PATH=/bin", "NOTHING", "X=1"]),
        &[("as the kernel has it", "tr '\\0' '|' </proc/1/environ")],
    ),
    Group::command(
        "no environment, program by path",
        |spec| {
            spec["process"]["env"] = json!([]);
            spec["process"]["args"] = json!(["/bin/cat", "/proc/self/environ"]);
        },
        &[],
    ),
    Group::command(
        "no environment, program by name",
        |spec| spec["process"]["env"] = json!([]),
        &["true"],
    ),
    Group::command(
        "the second directory of the path",
        |spec| spec["process"]["env"] = json!(["PATH=/none:/bin"]),
        &["echo", "found"],
    ),
    Group::command(
        "a program relative to the working directory",
        |spec| spec["process"]["cwd"] = json!("/bin"),
        &["./echo", "found"],
    ),
    Group::command(
        "a program through a link",
        |spec| {
            let root = spec["root"]["path"].as_str().unwrap_or_default().to_owned();
            std::os::unix::fs::symlink("/bin/busybox", format!("{root}/echo")).expect("a link");
        },
        &["/echo", "linked"],
    ),
    Group::command(
        "a script",
        |spec| {
            use std::os::unix::fs::PermissionsExt;
            let script = format!(
                "{}/script",
                spec["root"]["path"].as_str().unwrap_or_default()
            );
            std::fs::write(
                &script,
                "#!/bin/sh -e\necho \"$0 $1\"\nfalse\necho not reached\n",
            )
            .expect("a script");
            std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).expect("its mode");
        },
        &["/script", "argument"],
    ),
    Group::shell(
        "a working directory that is made",
        |spec| {
            spec["process"]["cwd"] = json!("/made/up");
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        },
        &[
            ("is where the process starts", "pwd; readlink /proc/1/cwd"),
            ("belongs to root", "stat -c '%u %g %a' /made /made/up"),
        ],
    ),
    Group::shell(
        "a working directory with dots and a link",
        |spec| spec["process"]["cwd"] = json!("/usr/../usr/bin/"),
        &[
            ("is resolved", "readlink /proc/1/cwd"),
            (
                "in the environment",
                "tr '\\0' '\\n' </proc/1/environ | grep PWD",
            ),
        ],
    ),
    Group::shell(
        "a personality of 32 bits",
        |spec| spec["linux"]["personality"] = json!({ "domain": "LINUX32" }),
        &[("the machine's name", "uname -m")],
    ),
    Group::shell(
        "many and long arguments",
        |spec| {
            let args = spec["process"]["args"].as_array_mut().expect("arguments");
            args.push(json!("name"));
            args.extend((0..2000).map(|n| json!(format!("argument {n}"))));
            args.push(json!("x".repeat(100_000)));
        },
        &[("arrive", "echo $#; eval \"echo \\${#$#}\"")],
    ),
];
