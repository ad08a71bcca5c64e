//! The cgroup that the handler's options want the shim in (`ShimCgroup` of
//! `containerd.runc.v1.Options`): an operator's, in which all shims are counted together. That of
//! a pod, which Create enters later, counts for more: it pays for shim and VMM.

use std::fs;
use std::io;
use std::path::Path;

use containerd_shim_protos::shim::oci::Options;
use nix::errno::Errno;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::handover::RUNC_OPTIONS;
use crate::sandbox::pod_cgroup::hierarchies;

/// The cgroup named in these options, if they are runc's and name one.
pub fn of(options: &[Any]) -> Option<String> {
    let mut runcs = options
        .iter()
        .filter(|any| any.type_url.ends_with(RUNC_OPTIONS));
    let options = Options::parse_from_bytes(&runcs.next()?.value).ok()?;
    Some(options.shim_cgroup).filter(|cgroup| !cgroup.is_empty())
}

/// Moves this process into `cgroup` of each hierarchy below `root` that has it; `own` is its
/// /proc/self/cgroup (cgroups(7)).
///
/// # Errors
/// ENOENT if none has it, or what the kernel refused.
pub fn enter(cgroup: &str, root: &Path, own: &str) -> io::Result<()> {
    let mut entered = false;
    for (hierarchy, _) in hierarchies(root, own) {
        let directory = hierarchy.join(cgroup.trim_start_matches('/'));
        if directory.is_dir() {
            fs::write(directory.join("cgroup.procs"), "0")?;
            entered = true;
        }
    }
    match entered {
        true => Ok(()),
        false => Err(Errno::ENOENT.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_named_by_runcs_options_only() {
        let any = |name: &str, cgroup: &str| {
            let options = Options {
                shim_cgroup: cgroup.to_owned(),
                ..Options::default()
            };
            Any {
                type_url: name.to_owned(),
                value: options.write_to_bytes().unwrap(),
                ..Any::default()
            }
        };
        let runcs = "containerd.runc.v1.Options";
        assert_eq!(of(&[any(runcs, "/shims")]).as_deref(), Some("/shims"));
        assert_eq!(of(&[any(runcs, "")]), None);
        assert_eq!(of(&[any("runtimeoptions.v1.Options", "/shims")]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn every_hierarchy_that_has_it_is_entered() {
        let root = tempfile::tempdir().unwrap();
        let own = "2:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/c\n";
        let missing = enter("/shims", root.path(), own).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        for directory in ["cpu,cpuacct/shims", "unified/shims"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        enter("/shims", root.path(), own).unwrap();
        for directory in ["cpu,cpuacct/shims", "unified/shims"] {
            let procs = root.path().join(directory).join("cgroup.procs");
            assert_eq!(fs::read_to_string(procs).unwrap(), "0");
        }
        assert!(!root.path().join("systemd").exists());
        // Version 2 has one hierarchy.
        fs::write(root.path().join("cgroup.controllers"), "").unwrap();
        fs::create_dir(root.path().join("shims")).unwrap();
        enter("shims", root.path(), "0::/c\n").unwrap();
        assert!(root.path().join("shims/cgroup.procs").exists());
    }
}
