//! What a row of the comparison is made of.
//!
//! Starting a container is what costs time on the node, so cases that need the same spec
//! share one container: a [`Group`] is one variation of the spec and the cases asked in it.

use serde_json::Value;

use super::live::Live;

/// A change to the spec that `ctr oci spec` prints.
pub type Change = fn(&mut Value);

/// Something asked of a running container.
pub type Request = fn(&Live) -> Outcome;

/// One variation of the spec, with the cases asked in a container made from it.
pub struct Group {
    /// What the variation is about; unique in its topic.
    pub name: &'static str,
    /// The variation.
    pub spec: Change,
    /// What is asked.
    pub cases: Cases,
    /// A shell snippet for the host once the container is gone, run in the directory that
    /// the spec's [`host`](super::drive::host) paths are in. Its case is `afterwards`.
    pub after: Option<&'static str>,
}

/// What is asked in a container.
pub enum Cases {
    /// Snippets that the container's shell runs one after the other, each in a subshell:
    /// everything it writes and its exit code are compared.
    Shell(&'static [(&'static str, &'static str)]),
    /// The container's own command, a case of the group's name: output, exit code, or
    /// why it is refused.
    Command(&'static [&'static str]),
    /// The container runs this script, and its shim is asked over the task API.
    Running(&'static str, &'static [(&'static str, Request)]),
}

impl Group {
    /// Snippets in a shell.
    pub const fn shell(
        name: &'static str,
        spec: Change,
        cases: &'static [(&'static str, &'static str)],
    ) -> Self {
        Self {
            name,
            spec,
            cases: Cases::Shell(cases),
            after: None,
        }
    }

    /// One command.
    pub const fn command(
        name: &'static str,
        spec: Change,
        command: &'static [&'static str],
    ) -> Self {
        Self {
            name,
            spec,
            cases: Cases::Command(command),
            after: None,
        }
    }

    /// Requests to the shim of a running container.
    pub const fn running(
        name: &'static str,
        spec: Change,
        script: &'static str,
        cases: &'static [(&'static str, Request)],
    ) -> Self {
        Self {
            name,
            spec,
            cases: Cases::Running(script, cases),
            after: None,
        }
    }

    /// The same with a look at the host afterwards.
    pub const fn afterwards(mut self, snippet: &'static str) -> Self {
        self.after = Some(snippet);
        self
    }

    /// The names of its cases, `events` being the one that every group has.
    pub fn case_names(&self) -> Vec<String> {
        let own: Vec<&str> = match self.cases {
            Cases::Shell(cases) => cases.iter().map(|case| case.0).collect(),
            Cases::Running(_, cases) => cases.iter().map(|case| case.0).collect(),
            Cases::Command(_) => vec!["ends"],
        };
        let after = self.after.map(|_| "afterwards");
        own.into_iter()
            .chain(after)
            .chain(["events"])
            .map(|case| format!("{}: {case}", self.name))
            .collect()
    }
}

/// What came of a case: a few lines of text that are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome(pub String);

impl Outcome {
    /// A process that ended.
    pub fn ended(code: i64, stdout: &str, stderr: &str) -> Self {
        let mut text = format!("exit {code}\n{stdout}");
        if !stderr.is_empty() {
            text.push_str("\nstandard error:\n");
            text.push_str(stderr);
        }
        Self(text.trim_end().to_owned())
    }

    /// Whether both are refusals for a reason of one class, where runc's shim tells no code
    /// and ours one that clients can act on (`status-codes` in the list of differences).
    pub fn tells_more_than(&self, runc: &Self) -> bool {
        if let Some((refused, code)) = self.0.split_once(TOLD_AS) {
            return runc.0 == refused || runc.0 == format!("refused: {code}");
        }
        let codes = ["INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"];
        let without = |code| self.0.replace(&format!("({code})"), "(UNKNOWN)");
        !self.0.contains(OTHER) && codes.iter().any(|code| without(code) == runc.0)
    }

    /// Whether these are all our events but some that runc's shims lose now and then: the last,
    /// the deletion's (containerd 2.1's ends before it has published it), and that of an OOM
    /// kill whose cgroup was gone before it was looked at, or which is told after the exit.
    pub fn loses_some_of(&self, husk: &Self) -> bool {
        let lost = |line: &&str| *line == "/tasks/oom" || line.starts_with("/tasks/delete");
        let told = self.0.lines().filter(|line| *line != "/tasks/oom");
        let told: Vec<&str> = told.collect();
        let kept = husk
            .0
            .lines()
            .filter(|line| told.contains(line) || !lost(line));
        !told.is_empty() && kept.eq(told.iter().copied())
    }

    /// A request that was refused: only the class of the reason is compared.
    pub fn refused(reason: &str) -> Self {
        let (words, code) = split_code(reason);
        match (class(words), code) {
            // The code may be all that is left of the reason: clients say no word twice.
            (OTHER, Some(code)) if code != "unknown" => {
                Self(format!("refused: {OTHER}{TOLD_AS}{code}"))
            }
            (class, _) => Self(format!("refused: {class}")),
        }
    }
}

/// How runtimes and the C library word what went wrong. The first that occurs names the
/// class.
const CLASSES: &[&str] = &[
    "executable file not found in $path",
    "exec format error",
    "permission denied",
    "operation not permitted",
    "is a directory",
    "not a directory",
    "read-only file system",
    "no such device",
    "no such file or directory",
    "already exists",
    "not found",
    "no such process",
    "invalid argument",
    "argument list too long",
];

/// Status codes as containerd's clients word them.
const CODES: &[&str] = &[
    "unknown",
    "invalid argument",
    "not found",
    "failed precondition",
    "not implemented",
];

/// The class of a reason that is in none.
const OTHER: &str = "for another reason";

/// Between the class and the code of a reason.
const TOLD_AS: &str = ", told as ";

/// The words, and what containerd and its clients put after them: what the status code says.
fn split_code(reason: &str) -> (&str, Option<&str>) {
    match reason.rsplit_once(": ") {
        Some((words, code)) if CODES.contains(&code.trim_end()) => (words, Some(code.trim_end())),
        _ => (reason, None),
    }
}

fn class(reason: &str) -> &'static str {
    let words = reason.to_lowercase();
    CLASSES
        .iter()
        .find(|class| words.contains(**class))
        .unwrap_or(&OTHER)
}
