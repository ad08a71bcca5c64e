//! Pods and containers as a kubelet plans them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::containerd;
use crate::cri::{Answer, Cri, api};
use crate::ctr::Runtime;
use crate::pod::Pod;

/// The cgroup of all pods, as a kubelet has it.
const PODS: &str = "/sys/fs/cgroup/kubepods";

/// The handler whose pods have no pause container, if containerd can do without.
const BY_SANDBOX_API: &str = "rust-sandbox";

/// A number nothing else of this test run has.
pub(crate) fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A pod about to be run.
pub struct PodPlan {
    handler: &'static str,
    /// What RunPodSandbox is told.
    pub config: api::PodSandboxConfig,
    cgroup: Option<PathBuf>,
    logs: TempDir,
}

impl PodPlan {
    /// A pod as a kubelet plans it: shared ipc, a pid namespace for each container, a network
    /// of its own, a cgroup without limits.
    ///
    /// # Panics
    /// If there is no place for its logs.
    #[track_caller]
    pub fn new(runtime: Runtime) -> Self {
        let number = unique();
        let logs = tempfile::tempdir().expect("a place for logs");
        let config = api::PodSandboxConfig {
            metadata: Some(api::PodSandboxMetadata {
                name: format!("pod-{number}"),
                uid: format!("uid-{number}"),
                namespace: "tests".into(),
                attempt: 0,
            }),
            hostname: format!("pod-{number}"),
            log_directory: logs.path().to_string_lossy().into_owned(),
            linux: Some(api::LinuxPodSandboxConfig {
                security_context: Some(api::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces(api::NamespaceMode::Container)),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        Self {
            handler: runtime.handler(),
            config,
            cgroup: None,
            logs,
        }
    }

    /// The same by our runtime and the sandbox API, which containerd has for the CRI service since
    /// 2.0. `None` with an older one, which is said in the output.
    ///
    /// # Panics
    /// As [`PodPlan::new`].
    #[track_caller]
    pub fn by_sandbox_api() -> Option<Self> {
        let version = containerd::version();
        if version.starts_with("1.") {
            eprintln!("skipped: containerd {version} has no sandbox API for the CRI service");
            return None;
        }
        Some(Self {
            handler: BY_SANDBOX_API,
            ..Self::new(Runtime::Husk)
        })
    }

    /// On a network of both families, on which a pod may have ports of the node: `dual`.
    ///
    /// # Panics
    /// If the plan is not one of [`PodPlan::new`].
    #[must_use]
    #[track_caller]
    pub fn on_both_families(mut self) -> Self {
        self.handler = match self.handler {
            "rust" => "rust-dual",
            "runc" => "runc-dual",
            other => panic!("no handler like {other} on the network"),
        };
        self
    }

    /// Changes what RunPodSandbox is told.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut api::PodSandboxConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// In a cgroup of its own with these files, such as `("memory.max", "100M")`.
    ///
    /// # Panics
    /// If the cgroup cannot be made so.
    #[must_use]
    #[track_caller]
    pub fn in_cgroup(mut self, files: &[(&str, &str)]) -> Self {
        let name = format!("pod{}", unique());
        let path = Path::new(PODS).join(&name);
        fs::create_dir_all(&path).expect("a cgroup");
        for above in ["/sys/fs/cgroup", PODS] {
            let control = Path::new(above).join("cgroup.subtree_control");
            fs::write(control, "+cpuset +cpu +io +memory +pids").expect("controllers for pods");
        }
        for (file, value) in files {
            fs::write(path.join(file), value).expect("a file of the cgroup");
        }
        self.cgroup = Some(path);
        self.linux().cgroup_parent = format!("/kubepods/{name}");
        self
    }

    /// With these namespaces instead of the usual ones.
    ///
    /// # Panics
    /// If the part about Linux was taken out.
    #[must_use]
    pub fn with_namespaces(mut self, namespaces: api::NamespaceOption) -> Self {
        let security = self.linux().security_context.as_mut();
        security.expect("a plan's own").namespace_options = Some(namespaces);
        self
    }

    /// The part of the configuration about Linux.
    ///
    /// # Panics
    /// If it was taken out.
    pub fn linux(&mut self) -> &mut api::LinuxPodSandboxConfig {
        self.config.linux.as_mut().expect("a Linux pod")
    }

    /// Runs it.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    pub fn run(self) -> Pod {
        let pod = self.try_run();
        pod.unwrap_or_else(|error| panic!("RunPodSandbox: {error}"))
    }

    /// Runs it or tells why it cannot be run.
    ///
    /// # Errors
    /// What the service answers.
    pub fn try_run(self) -> Answer<Pod> {
        let cri = Cri::connect();
        // Removed with the plan or the pod, whether there is one or not.
        let cgroup = OwnCgroup(self.cgroup);
        let answer = cri.run_pod_sandbox(api::RunPodSandboxRequest {
            config: Some(self.config.clone()),
            runtime_handler: self.handler.into(),
        })?;
        let id = answer.pod_sandbox_id;
        Ok(Pod::of(cri, id, self.config, cgroup, self.logs))
    }
}

/// What a container's configuration says of security.
///
/// # Panics
/// If it says nothing, which [`Pod::plan`] never leaves so.
pub fn security(config: &mut api::ContainerConfig) -> &mut api::LinuxContainerSecurityContext {
    let linux = config.linux.as_mut();
    let security = linux.and_then(|linux| linux.security_context.as_mut());
    security.expect("a configuration of Pod::plan")
}

/// What a container's configuration says of resources.
///
/// # Panics
/// If it says nothing, which [`Pod::plan`] never leaves so.
pub fn resources(config: &mut api::ContainerConfig) -> &mut api::LinuxContainerResources {
    let linux = config.linux.as_mut();
    let resources = linux.and_then(|linux| linux.resources.as_mut());
    resources.expect("a configuration of Pod::plan")
}

/// What namespaces a kubelet asks for; `pid` is for the containers.
pub fn namespaces(pid: api::NamespaceMode) -> api::NamespaceOption {
    api::NamespaceOption {
        network: api::NamespaceMode::Pod.into(),
        pid: pid.into(),
        ipc: api::NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

/// A pod's cgroup, removed when dropped.
pub(crate) struct OwnCgroup(pub(crate) Option<PathBuf>);

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // As a kubelet does it, as often as it takes: the shim may be on its way out. What it
            // still holds is found by the ledger.
            let deadline = Instant::now() + Duration::from_secs(60);
            while fs::remove_dir(path).is_err() && path.exists() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(100));
            }
            drop(fs::remove_dir(PODS));
        }
    }
}
