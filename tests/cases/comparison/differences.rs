//! The list of differences from runc that are wanted, `tests/differences.toml`.

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
        }));
    }
    excuses
}

/// The listed cases of one topic.
pub fn of_topic(topic: &str) -> Vec<Excuse> {
    let mut excuses = all();
    excuses.retain(|excuse| excuse.case.split('/').next() == Some(topic));
    excuses
}
