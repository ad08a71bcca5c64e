//! Labels of the host's security modules, which the guest does not have. They never
//! reach it: `lsm_labels` decides whether they are dropped or refused.

use serde_json::{Map, Value};

use super::oci::{SpecError, refused};
use crate::config::LabelPolicy;

/// The labels of a `process` object.
pub const PROCESS: &[&str] = &["apparmorProfile", "selinuxLabel"];
/// The labels of `linux`.
pub const LINUX: &[&str] = &["mountLabel"];

/// Takes the labels `names` out of `object`, whose path in the spec is `path`.
///
/// # Errors
/// Names the field that is set, if the policy refuses it.
pub fn strip(
    object: &mut Map<String, Value>,
    path: &str,
    names: &[&str],
    policy: LabelPolicy,
) -> Result<(), SpecError> {
    for name in names {
        let label = object.remove(*name);
        let set = label.is_some_and(|label| label.as_str().is_none_or(|label| !label.is_empty()));
        match policy {
            LabelPolicy::Refuse if set => {
                let problem = "the guest has no such security module: remove the label, or set `lsm_labels` to \"ignore\"";
                return Err(refused(format!("{path}.{name}"), problem));
            }
            LabelPolicy::Ignore if set => {
                log::warn!("{path}.{name} is ignored, the guest has no such security module");
            }
            LabelPolicy::Ignore | LabelPolicy::Refuse => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn process() -> Map<String, Value> {
        let process = json!({ "cwd": "/", "apparmorProfile": "", "selinuxLabel": "l" });
        serde_json::from_value(process).unwrap()
    }

    #[test]
    fn ignored_labels_vanish_and_nothing_else_does() {
        let mut object = process();
        strip(&mut object, "process", PROCESS, LabelPolicy::Ignore).unwrap();
        assert_eq!(Value::Object(object), json!({ "cwd": "/" }));
    }

    #[test]
    fn a_label_that_is_set_is_refused_by_name_and_an_empty_one_is_none() {
        let refused = |object: &mut _| {
            let stripped = strip(object, "process", PROCESS, LabelPolicy::Refuse);
            stripped.map_err(|error| error.to_string())
        };
        let error = refused(&mut process()).unwrap_err();
        assert!(error.starts_with("process.selinuxLabel: "), "{error}");
        let mut object = process();
        object["selinuxLabel"] = "".into();
        assert_eq!(refused(&mut object), Ok(()));
    }
}
