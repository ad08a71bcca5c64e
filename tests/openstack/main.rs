//! OpenStack's own code as the caller (`make e2e-openstack`): Kuryr wires a pod, Zun creates a
//! capsule. There is no cloud; what each script leaves out of it, it tells.

mod kuryr;
mod zun;

use std::process::Command;

/// Where `tests/node/run --carry` puts the scripts and their Python.
const CARRIED: &str = "/usr/local/lib/husk-tests";

/// A script of this folder about to be run.
fn script(name: &str, args: &[&str]) -> Command {
    let mut python = Command::new(format!("{CARRIED}/python/run"));
    python.arg(format!("{CARRIED}/openstack/{name}"));
    python.args(args);
    python
}
