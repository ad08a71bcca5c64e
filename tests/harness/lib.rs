//! The harness of the end-to-end tests: what a test needs in order to read as prose.
//!
//! ```no_run
//! use husk_tests::{Container, Node};
//!
//! let _node = Node::enter();
//! let output = Container::husk(&["echo", "hello"]).run().succeeded();
//! assert_eq!(output.text(), "hello\n");
//! ```
//!
//! [`Node::enter`] takes the [`ledger`] of host objects; when it goes out of scope
//! everything the test made must be gone again. The tests run as root on the node
//! (`tests/node/run`), one at a time, because the ledger is the whole host's.

pub mod config;
pub mod containerd;
pub mod cri;
pub mod cri_events;
pub mod ctr;
pub mod dump;
pub mod hold;
pub mod ledger;
pub mod network;
pub mod node;
pub mod pod;
pub mod pod_plan;
pub mod process;
pub mod rootfs;
pub mod sandbox_api;
pub mod shim;
pub mod streaming;
pub mod task_api;
pub mod timeline;
pub mod tty;
pub mod vm;

pub use config::Config;
pub use ctr::{Container, Runtime, Task, ctr};
pub use node::Node;
pub use pod::Pod;
pub use pod_plan::PodPlan;
pub use process::{Output, Running};
pub use vm::Vm;
