//! Pids: the processes of a container, all but the init as the guest numbers them.

use containerd_shim_protos::api::{PidsRequest, PidsResponse, ProcessInfo};
use containerd_shim_protos::shim::oci::ProcessDetails;
use protobuf::MessageFull;
use protobuf::well_known_types::any::Any;

use crate::container::Container;
use crate::error::Error;
use crate::shim::Shim;

/// Lists pids. Never empty: for containerd that means a leaked shim, so a guest
/// that does not answer is stood in for by the VMM's pid.
pub async fn pids(shim: &Shim, request: &PidsRequest) -> Result<PidsResponse, Error> {
    let container = shim.containers.get(&request.id)?;
    let sandbox = shim.slot.get();
    let mut pids = match &sandbox {
        Some(sandbox) => sandbox
            .agent
            .pids(&container.id)
            .await
            .unwrap_or_else(|error| {
                log::debug!("pids of {}: {error}", container.id);
                Vec::new()
            }),
        None => Vec::new(),
    };
    if pids.is_empty() {
        pids.push(sandbox.map_or_else(std::process::id, |_| container.pid));
    }
    Ok(PidsResponse {
        processes: describe(&container, pids),
        ..PidsResponse::default()
    })
}

/// As with runc, the pid of an exec tells which.
fn describe(container: &Container, pids: Vec<u32>) -> Vec<ProcessInfo> {
    let execs = container.all_execs();
    let exec_of = |pid| {
        execs
            .iter()
            .find(|exec| exec.state().is_alive() && exec.guest_pid() == Some(pid))
    };
    let init = container.init.guest_pid();
    let info = |pid| ProcessInfo {
        // By the number that containerd knows it by.
        pid: if init == Some(pid) {
            container.pid
        } else {
            pid
        },
        info: exec_of(pid).and_then(|exec| details(&exec.exec_id)).into(),
        ..ProcessInfo::default()
    };
    pids.into_iter().map(info).collect()
}

fn details(exec_id: &str) -> Option<Any> {
    let details = ProcessDetails {
        exec_id: exec_id.to_owned(),
        ..ProcessDetails::default()
    };
    let value = protobuf::Message::write_to_bytes(&details).ok()?;
    Some(Any {
        type_url: ProcessDetails::descriptor().full_name().to_owned(),
        value,
        ..Any::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::process::{Exit, Process};
    use crate::container::rootfs::Shared;
    use crate::container::stdio::Paths;
    use protobuf::Message;

    #[test]
    fn the_pid_of_a_living_exec_carries_its_id() {
        let process = |id: &str| Process::new(id.to_owned(), Paths::default(), Vec::new());
        let container = Container::new("c".into(), "/b".into(), 1, process(""), Shared::default());
        for (id, pid) in [("alive", 7), ("ended", 8)] {
            container.add_exec(process(id)).unwrap();
            let exec = container.process(id).unwrap();
            exec.set_guest_pid(pid);
            exec.begin_start().unwrap();
            exec.started();
        }
        container.process("ended").unwrap().exited(Exit::now(0));
        container.init.set_guest_pid(5);
        let list = describe(&container, vec![5, 7, 8]);
        assert!(list[0].info.is_none());
        assert_eq!(list[0].pid, container.pid);
        assert!(list[2].info.is_none());
        let any = list[1].info.as_ref().unwrap();
        assert_eq!(any.type_url, "containerd.runc.v1.ProcessDetails");
        let details = ProcessDetails::parse_from_bytes(&any.value).unwrap();
        assert_eq!(details.exec_id, "alive");
    }
}
