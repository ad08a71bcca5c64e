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

    /// A request that was refused: only the class of the reason is compared.
    pub fn refused(reason: &str) -> Self {
        Self(format!("refused: {}", class(reason)))
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

fn class(reason: &str) -> &'static str {
    let reason = reason.to_lowercase();
    CLASSES
        .iter()
        .find(|class| reason.contains(**class))
        .unwrap_or(&"for another reason")
}
