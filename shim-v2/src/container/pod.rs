//! What a CRI server says of pods: with annotations, and by the namespaces it names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::oci::{CPU_PERIOD, Linux, Mount, Namespace, Process, Spec, SpecError, refused};
use crate::identity::identity_of;
use crate::sandbox::pod_cgroup::Place;

/// What a pod's author may say of its size: bytes of memory for its containers together.
const MEMORY_ANNOTATION: &str = "io.husk.memory";
/// And a number of CPUs.
const VCPUS_ANNOTATION: &str = "io.husk.vcpus";
/// The kinds of namespaces a container shares with the host by having no entry for them.
const KINDS: [&str; 4] = ["network", "pid", "ipc", "uts"];

/// The place of a container in its pod, from the annotations of the CRI plugins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodRole {
    /// No pod: a sandbox of its own.
    Alone,
    /// The pod's first container, whose id names the sandbox.
    Sandbox,
    /// One more container of a running sandbox.
    Member {
        /// The sandbox's id.
        sandbox: String,
    },
}

/// The running pod a container is to join.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What stands for each of its containers on the host, which containerd was told, and its
    /// init as the guest numbers it.
    pub pids: Vec<(u32, u32)>,
}

impl Pod {
    /// Where the guest has a namespace of one of the pod's containers; `path` is as a CRI
    /// server writes it.
    pub fn in_guest(&self, kind: &str, path: &Path) -> Option<PathBuf> {
        let of = |pid: u32| PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
        let joined = self.pids.iter().find(|(host, _)| path == of(*host));
        joined.map(|(_, guest)| of(*guest))
    }
}

/// What the containers of a sandbox may use together; none is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Quota and period in microseconds.
    pub cpu: Option<(u64, u64)>,
}

impl Spec {
    /// What a CRI server would write for the pause container of a pod that has none, as far as
    /// the boot of its machine reads it. No path is for a network namespace of its own.
    pub fn of_pod(
        netns: &str,
        cgroups_path: Option<String>,
        oom_score_adj: i64,
        annotations: HashMap<String, String>,
    ) -> Self {
        let field = |name: &str, value: Value| Map::from_iter([(name.to_owned(), value)]);
        let mut spec = Self {
            linux: Linux {
                namespaces: vec![Namespace {
                    kind: "network".to_owned(),
                    path: Some(PathBuf::from(netns)),
                }],
                rest: cgroups_path.map_or_else(Map::new, |path| field("cgroupsPath", path.into())),
                ..Linux::default()
            },
            process: Some(Process {
                rest: field("oomScoreAdj", oom_score_adj.into()),
                ..Process::default()
            }),
            annotations,
            ..Self::default()
        };
        let kind = "io.kubernetes.cri.container-type".to_owned();
        spec.annotations.insert(kind, "sandbox".to_owned());
        spec
    }

    /// Gives a container of a pod without a pause container what containerd would take from
    /// one: the files `etc` for its `/etc`, unless it has others, and the pod's shared memory
    /// instead of some of its own.
    pub fn furnish(&mut self, etc: &[PathBuf]) {
        let access = match self.root.rest.get("readonly") {
            Some(Value::Bool(true)) => "ro",
            _ => "rw",
        };
        for file in etc {
            let Some(name) = file.file_name() else {
                continue;
            };
            let place = Path::new("/etc").join(name);
            let taken = |mount: &Mount| mount.destination().map(Path::new) == Some(&place);
            if !self.mounts.iter().any(taken) {
                let mount = Mount::bind(file, &place, &["rbind", "rprivate", access]);
                self.mounts.push(mount);
            }
        }
        let PodRole::Member { sandbox } = self.pod_role() else {
            return;
        };
        // As containerd has it for a pause container; no file of the host is meant.
        let shared = Path::new("/").join(sandbox).join("shm");
        for mount in &mut self.mounts {
            if mount.kind == "tmpfs" && mount.destination() == Some("/dev/shm") {
                let options = ["rbind", "rprivate", "rw", "nosuid", "nodev", "noexec"];
                *mount = Mount::bind(&shared, Path::new("/dev/shm"), &options);
            }
        }
    }

    /// The container's place in its pod.
    pub fn pod_role(&self) -> PodRole {
        const FAMILIES: [(&str, &str); 2] = [
            (
                "io.kubernetes.cri.container-type",
                "io.kubernetes.cri.sandbox-id",
            ),
            (
                "io.kubernetes.cri-o.ContainerType",
                "io.kubernetes.cri-o.SandboxID",
            ),
        ];
        for (kind, id) in FAMILIES {
            match (
                self.annotations.get(kind).map(String::as_str),
                self.annotations.get(id),
            ) {
                (Some("sandbox"), _) => return PodRole::Sandbox,
                (Some("container"), Some(sandbox)) => {
                    let sandbox = sandbox.clone();
                    return PodRole::Member { sandbox };
                }
                _ => {}
            }
        }
        PodRole::Alone
    }

    /// Where the pod's cgroup is, for the first container of a pod: no other has one above it
    /// that is its own.
    pub fn pod_place(&self) -> Option<Place> {
        let path = self.linux.rest.get("cgroupsPath")?.as_str()?;
        match self.pod_role() {
            PodRole::Sandbox => Place::parse(path),
            PodRole::Alone | PodRole::Member { .. } => None,
        }
    }

    /// The limits of the sandbox that is made for this container: what the pod's own annotations
    /// say where the configuration allows it, otherwise what the CRI server says of the pod,
    /// otherwise the container's own, each for itself.
    ///
    /// # Errors
    /// [`SpecError::Refused`] names the annotation that is no number.
    pub fn sandbox_limits(&self, annotations_allowed: bool) -> Result<Limits, SpecError> {
        let annotated = match annotations_allowed {
            true => self.annotated_limits()?,
            false => Limits::default(),
        };
        let memory = self.number("io.kubernetes.cri.sandbox-memory")?;
        let quota = self.number("io.kubernetes.cri.sandbox-cpu-quota")?;
        let period = self.number("io.kubernetes.cri.sandbox-cpu-period")?;
        let cpu = quota.map(|quota| (quota, period.unwrap_or(CPU_PERIOD)));
        let own = self.resources();
        Ok(Limits {
            memory: annotated.memory.or(memory).or_else(|| own.memory_limit()),
            cpu: annotated.cpu.or(cpu).or_else(|| own.cpu_limit()),
        })
    }

    fn annotated_limits(&self) -> Result<Limits, SpecError> {
        let vcpus = self.number(VCPUS_ANNOTATION)?;
        Ok(Limits {
            memory: self.number(MEMORY_ANNOTATION)?,
            cpu: vcpus.map(|count| (count.saturating_mul(CPU_PERIOD), CPU_PERIOD)),
        })
    }

    /// The namespaces of the host that it asks for, by kind: it has no entry for them, or one
    /// with their path.
    pub fn host_namespaces(&self) -> Vec<&'static str> {
        let own = |kind: &str| {
            let mut entries = self.linux.namespaces.iter();
            entries.any(|entry| entry.kind == kind && !entry.is_hosts())
        };
        KINDS.into_iter().filter(|kind| !own(kind)).collect()
    }

    /// A number that an annotation sets; 0 and less mean that nothing is set.
    fn number(&self, annotation: &str) -> Result<Option<u64>, SpecError> {
        let Some(text) = self.annotations().get(annotation) else {
            return Ok(None);
        };
        let number: i64 = text.trim().parse().map_err(|_| {
            let field = format!("annotations[{annotation:?}]");
            refused(field, format!("{text:?} is not a number"))
        })?;
        Ok(u64::try_from(number).ok().filter(|number| *number > 0))
    }
}

impl Namespace {
    /// Whether its path leads to the namespace this program is in, which is containerd's.
    fn is_hosts(&self) -> bool {
        let name = if self.kind == "network" {
            "net"
        } else {
            &self.kind
        };
        let host = identity_of(&Path::new("/proc/self/ns").join(name));
        let named = self.path.as_deref().and_then(identity_of);
        named.is_some() && named == host
    }
}

impl Mount {
    fn bind(source: &Path, destination: &Path, options: &[&str]) -> Self {
        let destination = destination.to_string_lossy().into_owned();
        Self {
            kind: "bind".to_owned(),
            source: source.to_string_lossy().into_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            rest: Map::from_iter([("destination".to_owned(), destination.into())]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_container_is_furnished_with_what_it_does_not_bring() {
        let mut spec = Spec::parse(
            json!({
                "root": { "path": "rootfs", "readonly": true },
                "mounts": [
                    { "destination": "/etc/hosts", "type": "bind", "source": "/kubelets" },
                    { "destination": "/dev/shm", "type": "tmpfs", "source": "shm" },
                    { "destination": "/tmp", "type": "tmpfs", "source": "tmp" },
                ],
                "annotations": {
                    "io.kubernetes.cri.container-type": "container",
                    "io.kubernetes.cri.sandbox-id": "pod",
                },
            })
            .to_string()
            .as_bytes(),
        )
        .unwrap();
        let etc = ["hostname", "hosts", "resolv.conf"].map(|file| Path::new("/b").join(file));
        spec.furnish(&etc);
        let mounts: Vec<_> = spec
            .mounts
            .iter()
            .map(|mount| (mount.destination().unwrap(), mount.source.as_str()))
            .collect();
        let expected = [
            ("/etc/hosts", "/kubelets"),
            ("/dev/shm", "/pod/shm"),
            ("/tmp", "tmp"),
            ("/etc/hostname", "/b/hostname"),
            ("/etc/resolv.conf", "/b/resolv.conf"),
        ];
        assert_eq!(mounts, expected);
        assert_eq!(spec.mounts[3].options, ["rbind", "rprivate", "ro"]);
        assert_eq!(spec.mounts[1].kind, "bind");
    }

    fn limits(annotations: &Value) -> Result<Limits, SpecError> {
        allowing(true, annotations)
    }

    fn allowing(allowed: bool, annotations: &Value) -> Result<Limits, SpecError> {
        let spec = json!({
            "linux": { "resources": {
                "memory": { "limit": 1000 }, "cpu": { "quota": 20_000, "period": 10_000 },
            } },
            "annotations": annotations,
        });
        Spec::parse(spec.to_string().as_bytes())
            .unwrap()
            .sandbox_limits(allowed)
    }

    #[test]
    fn the_pods_limits_go_before_the_containers_each_for_itself() {
        let of = |memory, cpu| Limits {
            memory: Some(memory),
            cpu: Some(cpu),
        };
        let cases = [
            (json!({}), of(1000, (20_000, 10_000))),
            (
                json!({ "io.kubernetes.cri.sandbox-memory": "5000" }),
                of(5000, (20_000, 10_000)),
            ),
            (
                json!({ "io.kubernetes.cri.sandbox-cpu-quota": "300000",
                        "io.kubernetes.cri.sandbox-cpu-period": "100000",
                        "io.kubernetes.cri.sandbox-memory": "0" }),
                of(1000, (300_000, 100_000)),
            ),
            (
                json!({ "io.kubernetes.cri.sandbox-cpu-quota": "-1",
                        "io.kubernetes.cri.sandbox-cpu-period": "0" }),
                of(1000, (20_000, 10_000)),
            ),
            (
                json!({ "io.kubernetes.cri.sandbox-cpu-quota": "50000" }),
                of(1000, (50_000, 100_000)),
            ),
            (
                json!({ "io.kubernetes.cri.sandbox-memory": "5000", "io.husk.memory": "7000",
                        "io.husk.vcpus": "3" }),
                of(7000, (300_000, 100_000)),
            ),
            (
                json!({ "io.husk.memory": "0", "io.husk.vcpus": "-1" }),
                of(1000, (20_000, 10_000)),
            ),
        ];
        for (annotations, expected) in cases {
            assert_eq!(limits(&annotations).unwrap(), expected, "{annotations}");
        }
    }

    #[test]
    fn an_annotation_that_is_no_number_is_refused_by_name() {
        for name in ["io.kubernetes.cri.sandbox-memory", "io.husk.memory"] {
            let error = limits(&json!({ name: "1Gi" })).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(name) && text.contains("\"1Gi\""), "{text}");
        }
    }

    #[test]
    fn the_authors_annotations_count_where_they_are_allowed_only() {
        let annotations = json!({ "io.husk.memory": "7000", "io.husk.vcpus": "none" });
        let limits = allowing(false, &annotations).unwrap();
        assert_eq!(
            (limits.memory, limits.cpu),
            (Some(1000), Some((20_000, 10_000)))
        );
    }

    fn spec(namespaces: &Value) -> Spec {
        let spec = json!({ "linux": { "namespaces": namespaces } });
        Spec::parse(spec.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_namespace_is_the_hosts_without_an_entry_and_by_its_path() {
        let all = json!([{"type": "network"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}]);
        assert!(spec(&all).host_namespaces().is_empty());
        let cases = [
            (
                json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}]),
                "network",
            ),
            (
                json!([{"type": "network"}, {"type": "ipc"}, {"type": "uts"}]),
                "pid",
            ),
            (
                json!([{"type": "network", "path": "/proc/self/ns/net"}, {"type": "pid"},
                       {"type": "ipc"}, {"type": "uts"}]),
                "network",
            ),
        ];
        for (namespaces, kind) in cases {
            assert_eq!(spec(&namespaces).host_namespaces(), [kind], "{namespaces}");
        }
        let elsewhere = json!([{"type": "network", "path": "/run/netns/none"}, {"type": "pid"},
                               {"type": "ipc"}, {"type": "uts"}]);
        assert!(spec(&elsewhere).host_namespaces().is_empty());
    }
}
