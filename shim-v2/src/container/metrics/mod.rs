//! The guest's cgroup files, and the traffic of the pod's links, as the message in which
//! containerd expects figures.
//!
//! The guest has cgroup version 2 only. Which message is sent depends on the host,
//! as with runc: on a host of version 1, monitoring asks for version 1's fields.

mod cgroup;
pub mod network;
mod v1;
mod v2;

use std::collections::HashMap;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use protobuf::MessageFull;
use protobuf::well_known_types::any::Any;

use cgroup::Cgroup;
use network::Link;

/// Where hosts mount their cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The figures in `files` and of `links` as the message of the host's cgroup version.
///
/// # Errors
/// If the message cannot be encoded.
pub fn encode(files: &HashMap<String, String>, links: &[Link]) -> Result<Any, protobuf::Error> {
    let cgroup = Cgroup::new(files);
    match statfs(CGROUPS) {
        Ok(host) if host.filesystem_type() == CGROUP2_SUPER_MAGIC => {
            pack(&v2::metrics(&cgroup, links))
        }
        _ => pack(&v1::metrics(&cgroup, links)),
    }
}

/// containerd names a type by its full name alone.
fn pack<M: MessageFull>(message: &M) -> Result<Any, protobuf::Error> {
    Ok(Any {
        type_url: M::descriptor().full_name().to_owned(),
        value: message.write_to_bytes()?,
        ..Any::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::cgroups::metrics::Metrics as V1;
    use containerd_shim_protos::cgroups_v2::metrics::Metrics as V2;

    #[test]
    fn the_type_urls_are_the_ones_containerd_registers() {
        let url = |packed: Result<Any, protobuf::Error>| packed.unwrap().type_url;
        assert_eq!(
            url(pack(&V1::default())),
            "io.containerd.cgroups.v1.Metrics"
        );
        assert_eq!(
            url(pack(&V2::default())),
            "io.containerd.cgroups.v2.Metrics"
        );
    }
}
