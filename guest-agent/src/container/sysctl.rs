//! Kernel parameters of a container: only those that belong to one of its namespaces,
//! as in runc; all others would change the guest for every container in it.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use agent_protocol::IPC_SYSCTLS;

use super::namespaces::Namespaces;
use crate::oci::{SpecError, require};

/// Checks `linux.sysctl`: the files below `/proc/sys` and what to write to them.
pub fn plan(
    sysctl: &BTreeMap<String, String>,
    namespaces: &Namespaces,
) -> Result<Vec<(PathBuf, String)>, SpecError> {
    let mut files = Vec::new();
    for (key, value) in sysctl {
        let path = relative_path(key);
        check(key, &path, namespaces)?;
        files.push((Path::new("/proc/sys").join(path), value.clone()));
    }
    Ok(files)
}

fn check(key: &str, path: &str, namespaces: &Namespaces) -> Result<(), SpecError> {
    let refused = |why| SpecError::Refused {
        field: format!("linux.sysctl, {key:?}"),
        why,
    };
    let plain = Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    require(plain, || refused("is not the name of a kernel parameter"))?;
    if IPC_SYSCTLS.contains(&path) || path.starts_with("fs/mqueue/") {
        return require(namespaces.has_ipc(), || {
            refused("needs an IPC namespace of the container's own")
        });
    }
    // A container always has the pod's network namespace (`Namespaces::plan`).
    if path.starts_with("net/") {
        return Ok(());
    }
    match path {
        "kernel/domainname" if namespaces.has_uts() => Ok(()),
        "kernel/hostname" if namespaces.has_uts() => {
            Err(refused("conflicts with the field hostname: use that"))
        }
        _ => Err(refused("is not in a separate kernel namespace")),
    }
}

/// The file of a parameter, as sysctl(8) finds it: where the first separator is a dot,
/// dots separate and slashes stand for dots; otherwise it is a path already.
fn relative_path(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(first) if key[first..].starts_with('.') => key
            .chars()
            .map(|character| match character {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Namespace;

    fn check_key(key: &str, kinds: &[&str]) -> Result<Vec<(PathBuf, String)>, SpecError> {
        let listed: Vec<Namespace> = ["pid", "mount", "network"]
            .iter()
            .chain(kinds)
            .map(|kind| Namespace {
                kind: kind.to_string(),
                path: "".into(),
            })
            .collect();
        let sysctl = BTreeMap::from([(key.to_owned(), "1".to_owned())]);
        plan(&sysctl, &Namespaces::plan(&listed).unwrap())
    }

    #[test]
    fn both_spellings_name_the_same_file() {
        for (key, file) in [
            ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "/proc/sys/net/ipv4/ip_forward"),
            (
                "net/ipv4/conf/eth0.7/rp_filter",
                "/proc/sys/net/ipv4/conf/eth0.7/rp_filter",
            ),
            (
                "net.ipv4.conf.eth0/7.rp_filter",
                "/proc/sys/net/ipv4/conf/eth0.7/rp_filter",
            ),
        ] {
            let files = check_key(key, &[]).unwrap();
            assert_eq!(files[0].0, Path::new(file), "{key}");
        }
    }

    #[test]
    fn a_parameter_needs_its_namespace() {
        for key in ["kernel.msgmax", "kernel.sem", "fs.mqueue.msg_max"] {
            assert!(check_key(key, &["ipc"]).is_ok(), "{key}");
            assert!(check_key(key, &["uts"]).is_err(), "{key}");
        }
        assert!(check_key("kernel.domainname", &["uts"]).is_ok());
        for key in ["kernel.domainname", "kernel.hostname"] {
            assert!(check_key(key, &[]).is_err(), "{key}");
        }
        let error = check_key("kernel.hostname", &["uts"]).unwrap_err();
        assert!(error.to_string().contains("hostname: use that"), "{error}");
    }

    #[test]
    fn parameters_of_the_whole_guest_are_refused() {
        for key in [
            "kernel.panic",
            "vm.swappiness",
            "fs.file-max",
            "user.max_net_namespaces",
        ] {
            let error = check_key(key, &["ipc", "uts"]).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
            assert!(
                error.contains("not in a separate kernel namespace"),
                "{error}"
            );
        }
    }

    #[test]
    fn no_key_leads_elsewhere() {
        for key in [
            "net/../kernel/panic",
            "net.//.kernel.panic",
            "/net/ipv4/ip_forward",
            "net/ipv4/../../kernel/panic",
            "",
        ] {
            assert!(check_key(key, &["ipc", "uts"]).is_err(), "{key}");
        }
    }
}
