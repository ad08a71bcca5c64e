//! The list of differences from runc that are wanted, `tests/differences.toml`.

use std::process::Command;

use husk_tests::Running;
use serde_json::Value;

const LIST: &str = include_str!("../../differences.toml");

/// A case that is allowed to differ, because it must.
#[derive(Debug)]
pub struct Excuse {
    /// The difference that excuses it.
    pub id: String,
    /// `topic/group: case`.
    pub case: String,
    /// What our answer contains; nothing stands for an empty answer.
    pub husk: String,
    /// The version of runc that answers otherwise, if others do not: the first two numbers.
    pub runc: Option<String>,
}

impl Excuse {
    /// Whether this is the answer that the list tells.
    pub fn describes(&self, answer: &str) -> bool {
        if self.husk.is_empty() {
            answer.is_empty()
        } else {
            answer.contains(&self.husk)
        }
    }
}

/// All listed cases.
///
/// # Panics
/// If the list cannot be read.
pub fn all() -> Vec<Excuse> {
    let list: Value = toml::from_str(LIST).expect("tests/differences.toml");
    let mut excuses = Vec::new();
    for difference in list["difference"].as_array().expect("differences") {
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        let cases = difference["case"].as_array().cloned().unwrap_or_default();
        excuses.extend(cases.iter().map(|case| Excuse {
            id: text(&difference["id"]),
            case: text(&case["name"]),
            husk: text(&case["husk"]),
            runc: case.get("runc").map(text),
        }));
    }
    excuses
}

/// The listed cases of one topic, as far as they differ from the runc of this node.
pub fn of_topic(topic: &str) -> Vec<Excuse> {
    let node = runc_version();
    let mut excuses = all();
    excuses.retain(|excuse| {
        let here = excuse.runc.as_ref().is_none_or(|runc| *runc == node);
        here && excuse.case.split('/').next() == Some(topic)
    });
    excuses
}

/// The first two numbers of it, such as 1.3.
fn runc_version() -> String {
    let mut command = Command::new("runc");
    command.arg("--version");
    let said = Running::start(command).finish().succeeded().text();
    let version = said.split_whitespace().nth(2).expect("runc version N");
    version.splitn(3, '.').take(2).collect::<Vec<_>>().join(".")
}
