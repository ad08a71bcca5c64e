//! `hooks`, as far as they run in the guest.

use std::path::PathBuf;

use serde::Deserialize;

use super::null_is_default;

/// `hooks`. All others run on the host and are none of the guest's business.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    /// Run in the container, just before its program.
    #[serde(default, deserialize_with = "null_is_default")]
    pub start_container: Vec<Hook>,
}

/// One hook.
#[derive(Clone, Debug, Deserialize)]
pub struct Hook {
    /// The program, as the container sees it.
    pub path: PathBuf,
    /// Its arguments, the name it is called by included.
    #[serde(default, deserialize_with = "null_is_default")]
    pub args: Vec<String>,
    /// Its environment; missing means that of the container's process.
    pub env: Option<Vec<String>>,
    /// Seconds it may take.
    pub timeout: Option<i64>,
}
