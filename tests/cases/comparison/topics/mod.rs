//! The rows of the table, a file a topic.

pub mod capabilities;
pub mod devices;
pub mod errors;
pub mod execs;
pub mod exits;
pub mod files;
pub mod hooks;
pub mod mounts;
pub mod namespaces;
pub mod processes;
pub mod resources;
pub mod seccomp;
pub mod tasks;
pub mod terminals;
pub mod users;
