//! Resource limits nobody named: a process has those of whoever started it, which with runc
//! is the shim. The guest's own are another machine's, so they are told by name.

use nix::sys::resource::{Resource, getrlimit};
use serde_json::{Map, Value, json};

/// All limits of getrlimit(2), as the OCI spec calls them.
const NAMES: [(&str, Resource); 16] = [
    ("RLIMIT_AS", Resource::RLIMIT_AS),
    ("RLIMIT_CORE", Resource::RLIMIT_CORE),
    ("RLIMIT_CPU", Resource::RLIMIT_CPU),
    ("RLIMIT_DATA", Resource::RLIMIT_DATA),
    ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE),
    ("RLIMIT_LOCKS", Resource::RLIMIT_LOCKS),
    ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK),
    ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE),
    ("RLIMIT_NICE", Resource::RLIMIT_NICE),
    ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE),
    ("RLIMIT_NPROC", Resource::RLIMIT_NPROC),
    ("RLIMIT_RSS", Resource::RLIMIT_RSS),
    ("RLIMIT_RTPRIO", Resource::RLIMIT_RTPRIO),
    ("RLIMIT_RTTIME", Resource::RLIMIT_RTTIME),
    ("RLIMIT_SIGPENDING", Resource::RLIMIT_SIGPENDING),
    ("RLIMIT_STACK", Resource::RLIMIT_STACK),
];

/// This process's limits: type, soft and hard value.
pub fn own() -> Vec<(&'static str, u64, u64)> {
    // A limit this kernel does not have is nobody's.
    let found = NAMES.iter().filter_map(|(name, resource)| {
        let (soft, hard) = getrlimit(*resource).ok()?;
        Some((*name, soft, hard))
    });
    found.collect()
}

/// Adds those of `limits` that the OCI `process` object does not name. What is wrong with
/// the object is the guest's to say.
pub fn inherit(process: &mut Map<String, Value>, limits: &[(&str, u64, u64)]) {
    let list = process.entry("rlimits").or_insert(Value::Null);
    if list.is_null() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else {
        return;
    };
    for (kind, soft, hard) in limits {
        if !list.iter().any(|limit| limit["type"] == *kind) {
            list.push(json!({ "type": kind, "soft": soft, "hard": hard }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_stays_and_the_rest_is_inherited() {
        let mut process = Map::new();
        process.insert(
            "rlimits".into(),
            json!([{ "type": "RLIMIT_CORE", "soft": 1, "hard": 2 }]),
        );
        inherit(&mut process, &[("RLIMIT_CORE", 3, 4), ("RLIMIT_AS", 5, 6)]);
        let wanted = json!([
            { "type": "RLIMIT_CORE", "soft": 1, "hard": 2 },
            { "type": "RLIMIT_AS", "soft": 5, "hard": 6 },
        ]);
        assert_eq!(process["rlimits"], wanted);
    }

    #[test]
    fn none_or_null_is_an_empty_list_and_nonsense_is_left_to_the_guest() {
        for nothing in [json!({}), json!({ "rlimits": null })] {
            let mut process = nothing.as_object().cloned().unwrap();
            inherit(&mut process, &[("RLIMIT_AS", 5, 6)]);
            assert_eq!(process["rlimits"].as_array().unwrap().len(), 1);
        }
        let mut process = json!({ "rlimits": 7 }).as_object().cloned().unwrap();
        inherit(&mut process, &[("RLIMIT_AS", 5, 6)]);
        assert_eq!(process["rlimits"], 7);
    }

    #[test]
    fn this_process_has_all_of_them() {
        assert_eq!(own().len(), NAMES.len());
    }
}
