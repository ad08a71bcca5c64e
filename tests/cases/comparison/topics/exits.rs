//! How processes end: exit codes and signals.

use crate::comparison::live::outcome;
use crate::comparison::table::{Group, Outcome};

/// Tells every signal it gets and goes on; its last act is to leave with 9 on SIGTERM.
const TELLING: &str =
    "for s in HUP INT QUIT USR1 USR2 WINCH CONT ALRM; do trap \"echo $s >>/tmp/told\" $s; done
    trap 'exit 9' TERM; touch /tmp/told
    while :; do sleep 0.1; done";

/// Waits until the init has told a signal.
macro_rules! told {
    ($signal:literal) => {
        concat!(
            "for i in $(seq 300); do grep -qx ",
            $signal,
            " /tmp/told && exit 0; sleep 0.1; done; exit 1"
        )
    };
}

/// The rows of every run.
pub const SHORT: &[Group] = &[
    Group::command(
        "an init that writes to both outputs and fails",
        |_| {},
        &["sh", "-c", "echo good; echo bad >&2; exit 3"],
    ),
    Group::shell(
        "children",
        |_| {},
        &[
            ("killed by SIGKILL", "sh -c 'kill -KILL $$'; echo $?"),
            ("killed by SIGSEGV", "sh -c 'kill -SEGV $$'; echo $?"),
            ("killed by SIGPIPE", "sh -c 'kill -PIPE $$'; echo $?"),
            (
                "killed by a real-time signal",
                "sh -c 'kill -40 $$'; echo $?",
            ),
            ("SIGPIPE ends a writer", "yes | head -n 1"),
            (
                "nothing is ignored or blocked",
                "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status",
            ),
            (
                "init ignores nothing",
                "grep -E '^Sig(Blk|Ign)' /proc/1/status",
            ),
            (
                "orphans go to the init",
                "(sh -c 'n=0; until grep -q \") . 1 \" /proc/$$/stat || [ $n = 100 ]; do n=$((n+1)); sleep 0.1; done; cut -d\" \" -f4 /proc/$$/stat >/tmp/parent' &) ; until [ -s /tmp/parent ]; do sleep 0.1; done; cat /tmp/parent",
            ),
            (
                "exit codes are taken modulo 256",
                "sh -c 'exit 257'; echo $?",
            ),
        ],
    ),
    Group::running(
        "signals from outside",
        |_| {},
        TELLING,
        &[
            ("HUP reaches the init", |c| {
                c.sh("until [ -e /tmp/told ]; do sleep 0.1; done");
                c.kill("", 1, false).ok();
                c.sh(told!("HUP"))
            }),
            ("INT reaches the init", |c| {
                c.kill("", 2, false).ok();
                c.sh(told!("INT"))
            }),
            ("QUIT reaches the init", |c| {
                c.kill("", 3, false).ok();
                c.sh(told!("QUIT"))
            }),
            ("USR1 reaches the init", |c| {
                c.kill("", 10, false).ok();
                c.sh(told!("USR1"))
            }),
            ("ALRM reaches the init", |c| {
                c.kill("", 14, false).ok();
                c.sh(told!("ALRM"))
            }),
            ("WINCH reaches the init", |c| {
                c.kill("", 28, false).ok();
                c.sh(told!("WINCH"))
            }),
            ("a signal without a handler leaves the init alive", |c| {
                c.kill("", 5, false).ok();
                c.sh("cut -d' ' -f2 /proc/1/stat")
            }),
            ("a signal that does not exist", |c| {
                outcome(c.kill("", 99, false))
            }),
            ("an exec dies of TERM", |c| c.sh_killed_by("sleep 1000", 15)),
            ("an exec dies of INT", |c| {
                c.sh_killed_by("exec sleep 1000", 2)
            }),
            ("an exec dies of SEGV", |c| {
                c.sh_killed_by("exec sleep 1000", 11)
            }),
            ("an exec dies of a real-time signal", |c| {
                c.sh_killed_by("exec sleep 1000", 37)
            }),
            ("TERM lets the init leave as it likes", |c| {
                c.kill("", 15, false).ok();
                Outcome(format!("{:?}", c.api.wait("").ok()))
            }),
        ],
    ),
];

/// The rows that only a full run has time for.
pub const FULL: &[Group] = &[
    Group::command("an init that succeeds", |_| {}, &["true"]),
    Group::command(
        "an init that leaves with 42",
        |_| {},
        &["sh", "-c", "exit 42"],
    ),
    Group::command(
        "an init that leaves with 255",
        |_| {},
        &["sh", "-c", "exit 255"],
    ),
    Group::command(
        "an init that cannot be killed by itself",
        |_| {},
        &["sh", "-c", "kill -KILL 1; kill -TERM 1; echo alive; exit 5"],
    ),
    Group::command(
        "an init that leaves a child behind",
        |_| {},
        &["sh", "-c", "sleep 1000 </dev/null >/dev/null 2>&1 & exit 6"],
    ),
    Group::running(
        "a container killed with KILL",
        |_| {},
        "exec sleep 1000",
        &[("its exit status", |c| {
            c.kill("", 9, true).ok();
            Outcome(format!("{:?}", c.api.wait("").ok()))
        })],
    ),
];
