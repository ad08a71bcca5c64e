//! Pods as a kubelet makes them through the CRI service.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::containerd;
use crate::cri::{Answer, Cri, api};
use crate::ctr::{IMAGE, Runtime};
use crate::pod_plan::{OwnCgroup, PodPlan, namespaces, unique};
use crate::process::DEADLINE;
use crate::streaming::{PortForward, Streams};

/// How often a kubelet's questions are asked again.
const PERIOD: Duration = Duration::from_millis(200);

/// How long containerd may go on writing to the log of a container that has ended. What is
/// missing then, the test misses.
const LOG_END: Duration = Duration::from_secs(30);

/// A pod that runs. Stopped and removed when dropped.
pub struct Pod {
    /// For calls that have no shorter form here.
    pub cri: Cri,
    id: String,
    config: api::PodSandboxConfig,
    cgroup: OwnCgroup,
    logs: TempDir,
}

impl Pod {
    /// What became of a plan.
    pub(crate) fn of(
        cri: Cri,
        id: String,
        config: api::PodSandboxConfig,
        cgroup: OwnCgroup,
        logs: TempDir,
    ) -> Self {
        Self {
            cri,
            id,
            config,
            cgroup,
            logs,
        }
    }

    /// A usual pod.
    #[track_caller]
    pub fn run(runtime: Runtime) -> Self {
        PodPlan::new(runtime).run()
    }

    /// The sandbox's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The pod's cgroup on the host, if it was given one.
    pub fn cgroup(&self) -> Option<&Path> {
        self.cgroup.0.as_deref()
    }

    /// A container about to be created.
    pub fn plan(&self, command: &[&str]) -> api::ContainerConfig {
        let name = format!("container-{}", unique());
        api::ContainerConfig {
            log_path: format!("{name}.log"),
            metadata: Some(api::ContainerMetadata { name, attempt: 0 }),
            image: Some(api::ImageSpec {
                image: IMAGE.into(),
                ..Default::default()
            }),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            linux: Some(api::LinuxContainerConfig {
                resources: Some(api::LinuxContainerResources::default()),
                security_context: Some(api::LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces(api::NamespaceMode::Container)),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }

    /// Creates a container.
    ///
    /// # Errors
    /// What the service answers.
    pub fn try_create(&self, config: api::ContainerConfig) -> Answer<PodContainer<'_>> {
        let log = self.logs.path().join(&config.log_path);
        let request = api::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let id = self.cri.create_container(request)?.container_id;
        Ok(PodContainer { pod: self, id, log })
    }

    /// Creates and starts a container.
    ///
    /// # Panics
    /// If it does not start.
    #[track_caller]
    pub fn start(&self, config: api::ContainerConfig) -> PodContainer<'_> {
        let container = self.try_create(config);
        let container = container.unwrap_or_else(|error| panic!("CreateContainer: {error}"));
        let started = container.start();
        started.unwrap_or_else(|error| panic!("StartContainer: {error}"));
        container
    }

    /// A container that runs a script.
    #[track_caller]
    pub fn script(&self, script: &str) -> PodContainer<'_> {
        self.start(self.plan(&["sh", "-c", script]))
    }

    /// What the service says of it.
    ///
    /// # Panics
    /// If it says nothing.
    #[track_caller]
    pub fn status(&self) -> api::PodSandboxStatus {
        let request = api::PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose: false,
        };
        let answer = self.cri.pod_sandbox_status(request).expect("a status");
        answer.status.expect("a status")
    }

    /// The path of its network namespace.
    ///
    /// # Panics
    /// If the service does not tell.
    #[track_caller]
    pub fn network_namespace(&self) -> String {
        let request = api::PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose: true,
        };
        let answer = self.cri.pod_sandbox_status(request).expect("a status");
        let info = answer.info.get("info").expect("what is in it");
        let info: Value = serde_json::from_str(info).expect("JSON");
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array();
        let mut namespaces = namespaces.into_iter().flatten();
        let network = namespaces.find(|namespace| namespace["type"] == "network");
        let path = network.and_then(|network| network["path"].as_str());
        path.expect("a path").to_owned()
    }

    /// The addresses that CNI gave it.
    ///
    /// # Panics
    /// If it has no network.
    #[track_caller]
    pub fn addresses(&self) -> Vec<String> {
        let network = self.status().network.expect("a network");
        let others = network.additional_ips.into_iter().map(|more| more.ip);
        std::iter::once(network.ip).chain(others).collect()
    }

    /// Whether the service calls it ready.
    #[track_caller]
    pub fn is_ready(&self) -> bool {
        self.status().state() == api::PodSandboxState::SandboxReady
    }

    /// Waits until the service no longer calls it ready.
    ///
    /// # Panics
    /// If it is by the deadline.
    #[track_caller]
    pub fn wait_not_ready(&self) {
        let deadline = Instant::now() + DEADLINE;
        while self.is_ready() {
            assert!(Instant::now() < deadline, "ready: {:?}", self.status());
            thread::sleep(PERIOD);
        }
    }

    /// Connects to a port of it as `kubectl port-forward` does.
    ///
    /// # Panics
    /// If the service offers no stream.
    #[track_caller]
    pub fn port_forward(&self, port: u16) -> PortForward {
        let answer = self.cri.port_forward(api::PortForwardRequest {
            pod_sandbox_id: self.id.clone(),
            port: vec![port.into()],
        });
        let answer = answer.unwrap_or_else(|error| panic!("PortForward: {error}"));
        PortForward::open(&answer.url)
    }

    /// Stops it with all its containers.
    ///
    /// # Panics
    /// If it does not stop.
    #[track_caller]
    pub fn stop(&self) {
        let pod_sandbox_id = self.id.clone();
        let stopped = self
            .cri
            .stop_pod_sandbox(api::StopPodSandboxRequest { pod_sandbox_id });
        stopped.unwrap_or_else(|error| panic!("StopPodSandbox: {error}"));
    }

    /// Stops and removes it.
    ///
    /// # Panics
    /// If it cannot be removed.
    #[track_caller]
    pub fn remove(self) {
        self.stop();
        let removed = self.try_remove();
        removed.unwrap_or_else(|error| panic!("RemovePodSandbox: {error}"));
    }

    fn try_remove(&self) -> Answer<api::RemovePodSandboxResponse> {
        let pod_sandbox_id = self.id.clone();
        self.cri
            .remove_pod_sandbox(api::RemovePodSandboxRequest { pod_sandbox_id })
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Removed already, or the ledger tells.
        let pod_sandbox_id = self.id.clone();
        drop(
            self.cri
                .stop_pod_sandbox(api::StopPodSandboxRequest { pod_sandbox_id }),
        );
        drop(self.try_remove());
    }
}

/// A container of a pod.
pub struct PodContainer<'a> {
    pod: &'a Pod,
    id: String,
    log: PathBuf,
}

impl PodContainer<'_> {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Starts it.
    ///
    /// # Errors
    /// What the service answers.
    pub fn start(&self) -> Answer<api::StartContainerResponse> {
        let container_id = self.id.clone();
        self.pod
            .cri
            .start_container(api::StartContainerRequest { container_id })
    }

    /// What the service says of it.
    ///
    /// # Panics
    /// If it says nothing.
    #[track_caller]
    pub fn status(&self) -> api::ContainerStatus {
        let request = api::ContainerStatusRequest {
            container_id: self.id.clone(),
            verbose: false,
        };
        let answer = self.pod.cri.container_status(request).expect("a status");
        answer.status.expect("a status")
    }

    /// Waits until it has ended: its last status.
    ///
    /// # Panics
    /// If it does not end by the deadline.
    #[track_caller]
    pub fn ended(&self) -> api::ContainerStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = self.status();
            if status.state() == api::ContainerState::ContainerExited {
                self.wait_for_log();
                return status;
            }
            assert!(Instant::now() < deadline, "still there: {status:?}");
            thread::sleep(PERIOD);
        }
    }

    /// Waits until containerd has closed its log, which it fills in the background: an exit
    /// may be told before the last lines are written.
    fn wait_for_log(&self) {
        let is_open = || {
            let containerd = containerd::pid()?;
            let mut files = fs::read_dir(format!("/proc/{containerd}/fd"))
                .ok()?
                .flatten();
            files.find(|file| fs::read_link(file.path()).is_ok_and(|link| link == self.log))
        };
        let deadline = Instant::now() + LOG_END;
        while is_open().is_some() && Instant::now() < deadline {
            thread::sleep(PERIOD);
        }
    }

    /// Its log without the times: stream, tag and text of each line.
    pub fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines = log.lines().filter_map(|line| line.split_once(' '));
        lines.map(|(_, rest)| rest.to_owned()).collect()
    }

    /// Waits until its log has this line.
    ///
    /// # Panics
    /// If it has not by the deadline.
    #[track_caller]
    pub fn logs(&self, line: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !self.log().iter().any(|found| found == line) {
            assert!(Instant::now() < deadline, "no {line:?} in {:?}", self.log());
            thread::sleep(PERIOD);
        }
    }

    /// Moves the log away and has it reopened, as a kubelet does.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn rotate_log(&self) {
        fs::rename(&self.log, self.log.with_extension("1")).expect("a log");
        let container_id = self.id.clone();
        let request = api::ReopenContainerLogRequest { container_id };
        let reopened = self.pod.cri.reopen_container_log(request);
        reopened.unwrap_or_else(|error| panic!("ReopenContainerLog: {error}"));
    }

    /// Runs a command in it, within `timeout` seconds if that is not 0.
    ///
    /// # Errors
    /// What the service answers.
    pub fn exec_within(&self, command: &[&str], timeout: i64) -> Answer<api::ExecSyncResponse> {
        self.pod.cri.exec_sync(api::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout,
        })
    }

    /// Runs a command in it as `kubectl exec -i` does, on a terminal if `tty`.
    ///
    /// # Panics
    /// If the service offers no streams.
    #[track_caller]
    pub fn exec_streamed(&self, command: &[&str], tty: bool) -> Streams {
        let answer = self.pod.cri.exec(api::ExecRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        });
        Streams::open(&answer.unwrap_or_else(|error| panic!("Exec: {error}")).url)
    }

    /// Attaches to its streams as `kubectl attach -i` does.
    ///
    /// # Panics
    /// If the service offers no streams.
    #[track_caller]
    pub fn attach(&self) -> Streams {
        let answer = self.pod.cri.attach(api::AttachRequest {
            container_id: self.id.clone(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        });
        Streams::open(&answer.unwrap_or_else(|error| panic!("Attach: {error}")).url)
    }

    /// What a script prints in it.
    ///
    /// # Panics
    /// If it does not end with 0.
    #[track_caller]
    pub fn told(&self, script: &str) -> String {
        let answer = self.exec_within(&["sh", "-c", script], 0);
        let answer = answer.unwrap_or_else(|error| panic!("ExecSync {script:?}: {error}"));
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let stderr = text(answer.stderr);
        assert_eq!(answer.exit_code, 0, "{script:?}: {stderr}");
        text(answer.stdout)
    }

    /// Stops it: TERM, and after `timeout` seconds KILL.
    ///
    /// # Panics
    /// If it does not stop.
    #[track_caller]
    pub fn stop(&self, timeout: i64) {
        let container_id = self.id.clone();
        let stopped = self.pod.cri.stop_container(api::StopContainerRequest {
            container_id,
            timeout,
        });
        stopped.unwrap_or_else(|error| panic!("StopContainer: {error}"));
    }

    /// Removes it.
    ///
    /// # Panics
    /// If it cannot be removed.
    #[track_caller]
    pub fn remove(self) {
        let container_id = self.id.clone();
        let removed = self
            .pod
            .cri
            .remove_container(api::RemoveContainerRequest { container_id });
        removed.unwrap_or_else(|error| panic!("RemoveContainer: {error}"));
    }
}
