//! Filters for system calls.

use serde_json::{Value, json};

use crate::comparison::table::Group;

/// A filter that allows everything but what the rules say.
fn allow_but(spec: &mut Value, rules: Value) {
    filter(spec, "SCMP_ACT_ALLOW", rules);
}

fn filter(spec: &mut Value, default: &str, rules: Value) {
    spec["linux"]["seccomp"] = json!({
        "defaultAction": default,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    });
}

const MODE: &str = "grep -E '^Seccomp' /proc/self/status";

/// The rows of every run.
pub const SHORT: &[Group] = &[
    Group::shell(
        "calls that fail",
        |spec| {
            allow_but(
                spec,
                json!([
                    { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 },
                    { "names": ["link", "linkat", "no_such_call"], "action": "SCMP_ACT_ERRNO" },
                    { "names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
                    { "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5,
                      "args": [{ "index": 1, "value": 12, "op": "SCMP_CMP_EQ" }] },
                    { "names": ["chmod", "fchmodat"], "action": "SCMP_ACT_LOG" },
                    { "names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
                      "args": [{ "index": 0, "value": 0xffff_ffff_u32, "op": "SCMP_CMP_NE" }] },
                ]),
            );
        },
        &[
            ("a filter is there", MODE),
            ("with a number of their own", "mkdir /tmp/x"),
            ("with the usual number", "touch /tmp/a; ln /tmp/a /tmp/b"),
            ("as if it were not there", "hostname other"),
            ("by an argument", "kill -USR2 $$"),
            ("not by another argument", "kill -0 $$ && echo fine"),
            (
                "logged only",
                "touch /tmp/c; chmod 600 /tmp/c && stat -c %a /tmp/c",
            ),
            ("others work", "rm /tmp/a && echo removed"),
            (
                "init has it too",
                "grep -E '^(Seccomp|NoNewPrivs)' /proc/1/status",
            ),
        ],
    ),
    Group::shell(
        "calls that kill",
        |spec| {
            allow_but(
                spec,
                json!([
                    { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS" },
                    { "names": ["link", "linkat"], "action": "SCMP_ACT_KILL" },
                    { "names": ["symlink", "symlinkat"], "action": "SCMP_ACT_KILL_THREAD" },
                    { "names": ["sethostname"], "action": "SCMP_ACT_TRAP" },
                    { "names": ["mknod", "mknodat"], "action": "SCMP_ACT_TRACE" },
                ]),
            );
        },
        &[
            ("the process", "sh -c 'exec mkdir /tmp/x'; echo $?; ls /tmp"),
            (
                "by the old name",
                "touch /tmp/a; sh -c 'exec ln /tmp/a /tmp/b'; echo $?",
            ),
            ("the thread", "sh -c 'exec ln -s a /tmp/l'; echo $?"),
            ("by a trap", "sh -c 'exec hostname other'; echo $?"),
            ("not without a tracer", "mkfifo /tmp/p; echo $?"),
        ],
    ),
    Group::command(
        "an action that does not exist",
        |spec| {
            allow_but(
                spec,
                json!([{ "names": ["mkdir"], "action": "SCMP_ACT_FORGIVE" }]),
            )
        },
        &["true"],
    ),
];

/// The rows that only a full run has time for.
pub const FULL: &[Group] = &[
    Group::command(
        "an init that is killed",
        |spec| {
            allow_but(
                spec,
                json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS" }]),
            )
        },
        &["mkdir", "/tmp/x"],
    ),
    Group::shell(
        "comparisons of arguments",
        |spec| {
            // The signals of kill(2) are numbers to compare.
            allow_but(
                spec,
                json!([
                    { "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
                      "args": [{ "index": 1, "value": 30, "op": "SCMP_CMP_GT" }] },
                    { "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2,
                      "args": [{ "index": 1, "value": 28, "op": "SCMP_CMP_GE" }, { "index": 1, "value": 29, "op": "SCMP_CMP_LE" }] },
                    { "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5,
                      "args": [{ "index": 1, "value": 7, "valueTwo": 4, "op": "SCMP_CMP_MASKED_EQ" }] },
                ]),
            );
        },
        &[
            ("greater", "kill -31 $$"),
            ("between", "kill -28 $$; kill -29 $$"),
            ("masked", "kill -4 $$"),
            ("none of them", "kill -0 $$ && echo fine"),
        ],
    ),
    Group::shell(
        "without no_new_privs",
        |spec| {
            spec["process"]["noNewPrivileges"] = json!(false);
            allow_but(
                spec,
                json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13 }]),
            );
        },
        &[
            ("holds", "mkdir /tmp/x"),
            ("flags", "grep -E '^(NoNewPrivs|Seccomp)' /proc/self/status"),
        ],
    ),
    Group::shell(
        "for a user without no_new_privs",
        |spec| {
            spec["process"]["noNewPrivileges"] = json!(false);
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            allow_but(
                spec,
                json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13 }]),
            );
        },
        &[("holds", "mkdir /tmp/x"), ("mode", MODE)],
    ),
    Group::shell(
        "an own number for what is not named",
        |spec| {
            allow_but(spec, json!([]));
            spec["linux"]["seccomp"]["defaultAction"] = json!("SCMP_ACT_LOG");
            spec["linux"]["seccomp"]["flags"] =
                json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]);
        },
        &[("mode", MODE), ("works", "mkdir /tmp/x && ls /tmp")],
    ),
    Group::command(
        "everything fails",
        |spec| {
            filter(
                spec,
                "SCMP_ACT_ERRNO",
                json!([{ "names": ["exit", "exit_group", "write"], "action": "SCMP_ACT_ALLOW" }]),
            )
        },
        &["true"],
    ),
    Group::command(
        "an architecture that does not exist",
        |spec| {
            allow_but(spec, json!([]));
            spec["linux"]["seccomp"]["architectures"] = json!(["SCMP_ARCH_PDP11"]);
        },
        &["true"],
    ),
    Group::command(
        "a comparison that does not exist",
        |spec| {
            allow_but(
                spec,
                json!([{ "names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 0, "value": 1, "op": "SCMP_CMP_LIKE" }] }]),
            )
        },
        &["true"],
    ),
    Group::command(
        "an argument that does not exist",
        |spec| {
            allow_but(
                spec,
                json!([{ "names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 7, "value": 1, "op": "SCMP_CMP_EQ" }] }]),
            )
        },
        &["true"],
    ),
    Group::command(
        "a rule without names",
        |spec| allow_but(spec, json!([{ "names": [], "action": "SCMP_ACT_ERRNO" }])),
        &["true"],
    ),
    Group::command(
        "a notification without a listener",
        |spec| {
            allow_but(
                spec,
                json!([{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }]),
            )
        },
        &["true"],
    ),
    Group::running(
        "execs",
        |spec| {
            allow_but(
                spec,
                json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }]),
            )
        },
        "exec sleep 1000",
        &[
            ("have the container's filter", |c| {
                c.sh("mkdir /tmp/x; grep ^Seccomp /proc/self/status")
            }),
            ("also as another user", |c| {
                c.sh_with("mkdir /tmp/x", |p| {
                    p["user"] = json!({ "uid": 1000, "gid": 1000 })
                })
            }),
        ],
    ),
];
