//! Which namespaces a container gets.
//!
//! | kind | listed without a path | not listed |
//! |---|---|---|
//! | mount, pid | new | refused: it would be the guest's own |
//! | network | the guest's, which is the pod's | refused: it would be the host's |
//! | ipc, uts, cgroup | new | the guest's |
//! | user, time | refused | none |
//!
//! A path is refused: the guest has none of the host's namespaces.

use nix::sched::CloneFlags;

use crate::oci::{Namespace, SpecError};

/// The new namespaces of one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespaces {
    new: CloneFlags,
}

impl Namespaces {
    /// Checks `linux.namespaces`.
    pub fn plan(listed: &[Namespace]) -> Result<Self, SpecError> {
        let mut new = CloneFlags::empty();
        let mut network = false;
        for namespace in listed {
            let refused = |why| SpecError::Refused {
                field: format!("linux.namespaces, {:?}", namespace.kind),
                why,
            };
            if !namespace.path.as_os_str().is_empty() {
                return Err(refused(
                    "a path names a namespace of the host, which the guest does not have",
                ));
            }
            new |= match namespace.kind.as_str() {
                "mount" => CloneFlags::CLONE_NEWNS,
                "pid" => CloneFlags::CLONE_NEWPID,
                "ipc" => CloneFlags::CLONE_NEWIPC,
                "uts" => CloneFlags::CLONE_NEWUTS,
                "cgroup" => CloneFlags::CLONE_NEWCGROUP,
                "network" => {
                    network = true;
                    CloneFlags::empty()
                }
                "user" => return Err(refused("user namespaces are not supported in the guest")),
                "time" => return Err(refused("time namespaces are not supported in the guest")),
                other => {
                    return Err(SpecError::Value {
                        field: "linux.namespaces".into(),
                        value: other.into(),
                        must: "mount, pid, network, ipc, uts or cgroup",
                    });
                }
            };
        }
        for (present, kind, why) in [
            (
                new.contains(CloneFlags::CLONE_NEWNS),
                "mount",
                "without it the container would share the guest's mounts",
            ),
            (
                new.contains(CloneFlags::CLONE_NEWPID),
                "pid",
                "without it the container asks for the host's processes, which a guest cannot show",
            ),
            (
                network,
                "network",
                "without it the container asks for the host's network, which a guest does not have",
            ),
        ] {
            if !present {
                let field = format!("linux.namespaces, no {kind:?}");
                return Err(SpecError::Refused { field, why });
            }
        }
        Ok(Self { new })
    }

    /// Those to be made together with the process.
    pub fn at_clone(self) -> CloneFlags {
        // A new cgroup namespace starts at the cgroup its maker is in, which must be
        // the container's: it is made by the child itself.
        self.new - CloneFlags::CLONE_NEWCGROUP
    }

    /// Those the child makes itself, once in its cgroup.
    pub fn in_child(self) -> CloneFlags {
        self.new & CloneFlags::CLONE_NEWCGROUP
    }

    /// Whether host and domain name are the container's own.
    pub fn has_uts(self) -> bool {
        self.new.contains(CloneFlags::CLONE_NEWUTS)
    }

    /// Those a further process of the container joins by itself. The pid namespace is
    /// not among them: it must be entered by the parent, before the fork.
    pub fn to_join() -> CloneFlags {
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP
            | CloneFlags::CLONE_NEWNET
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(listed: &[&str]) -> Result<Namespaces, SpecError> {
        let listed: Vec<Namespace> = listed
            .iter()
            .map(|kind| Namespace {
                kind: kind.to_string(),
                path: "".into(),
            })
            .collect();
        Namespaces::plan(&listed)
    }

    #[test]
    fn the_usual_list() {
        let namespaces = plan(&["pid", "ipc", "uts", "mount", "network", "cgroup"]).unwrap();
        let expected = CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWNS;
        assert_eq!(namespaces.at_clone(), expected);
        assert_eq!(namespaces.in_child(), CloneFlags::CLONE_NEWCGROUP);
        assert!(namespaces.has_uts());
    }

    #[test]
    fn host_modes_are_refused_by_name() {
        for (listed, missing) in [
            (&["mount", "network"], "pid"),
            (&["mount", "pid"], "network"),
            (&["pid", "network"], "mount"),
        ] {
            let error = plan(listed).unwrap_err().to_string();
            assert!(error.contains(&format!("no \"{missing}\"")), "{error}");
        }
    }

    #[test]
    fn what_is_not_listed_is_the_guests() {
        let namespaces = plan(&["mount", "pid", "network"]).unwrap();
        assert!(!namespaces.has_uts());
        assert_eq!(namespaces.in_child(), CloneFlags::empty());
    }

    #[test]
    fn user_time_unknown_and_paths_are_refused() {
        for kind in ["user", "time", "wonder"] {
            let error = plan(&["mount", "pid", "network", kind])
                .unwrap_err()
                .to_string();
            assert!(error.contains(kind), "{error}");
        }
        let path = Namespace {
            kind: "ipc".into(),
            path: "/proc/7/ns/ipc".into(),
        };
        assert!(matches!(
            Namespaces::plan(&[path]),
            Err(SpecError::Refused { .. })
        ));
    }
}
