//! Stop 8 of twelve: the agent in the guest. Checks who rang the bell, then speaks
//! `agent.proto`: typed calls, each with a deadline, each ending at once when the
//! VM does.
//!
//! Whatever the guest says is bounded before anybody reads it: a hostile guest may
//! lie about its own container, but not flood or forge the host's log.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::time::Duration;

use agent_protocol::agent::{
    Announce, ConfigureNetworkRequest, CreateContainerRequest, DeleteProcessRequest, Empty,
    ExecProcessRequest, Link, ListPidsRequest, NetworkChange, NetworkRefusal, NicSlot,
    PauseContainerRequest, PingRequest, ReadCgroupRequest, ResizePtyRequest, ResizeRequest,
    ResizeResponse, ResumeContainerRequest, SignalProcessRequest, StartContainerRequest,
    UpdateContainerRequest, WaitOomRequest, WaitProcessRequest,
};
use agent_protocol::agent_ttrpc::AgentClient;
use agent_protocol::{MAX_ANNOUNCE_LEN, RPC_PORT, VERSION};
use protobuf::Message;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

use super::vmm_process::{self, VmmEnd};
use super::vsock::Vsock;

/// Setting a container up may read a lot through the share.
const CREATE: Duration = Duration::from_secs(60);
/// Looking a program up and executing it. Longer than the agent's own limit for it,
/// so that its answer comes and tells what became of the process.
const START: Duration = Duration::from_secs(70);
/// Killing what is left in a container and unmounting it.
const DELETE: Duration = Duration::from_millis(2800);
/// Calls that only touch the agent's own state.
const QUICK: Duration = Duration::from_secs(3);
/// Freezing or thawing every process of a container; longer than the agent's own limit.
const FREEZE: Duration = Duration::from_secs(12);
/// Applying new limits: a smaller one for memory has to be reclaimed first.
const UPDATE: Duration = Duration::from_secs(10);
/// Bringing CPUs and memory online; longer than the agent's own limit.
const RESIZE: Duration = Duration::from_secs(20);
/// Pids and figures, for which there is a fallback, and a sign of life. With [`END_GRACE`] this stays
/// within the 2 s that containerd itself waits for them.
const LISTING: Duration = Duration::from_secs(1);
/// Setting up the network: a few requests to the guest's kernel for each address and route.
const NETWORK: Duration = Duration::from_secs(10);
/// Ending the machine; the answer may never come.
const POWER_OFF: Duration = Duration::from_secs(1);
/// How long a broken connection may take to turn out as the VM's end.
const END_GRACE: Duration = Duration::from_millis(900);
/// How long the announcement may take once the bell rang.
const ANNOUNCE: Duration = Duration::from_secs(5);
/// Most pids taken from the guest: as many as Linux has by default.
const MAX_PIDS: usize = 32_768;
/// Longest text of one cgroup file taken from the guest, in bytes. The longest the
/// kernel writes is `memory.stat`, of 2 KiB.
const MAX_FILE: usize = 64 * 1024;
/// Longest error text taken from the guest, in characters.
const MAX_TEXT: usize = 1024;

/// Why the guest did not do what it was asked to.
#[derive(Debug, Error)]
pub enum AgentError {
    /// It answered with an error.
    #[error("{text}")]
    Status {
        /// Its code.
        code: ttrpc::Code,
        /// Its text, bounded and in one line.
        text: String,
    },
    /// It did not answer in time.
    #[error("the guest did not answer {call} within {} s", deadline.as_secs())]
    Deadline {
        /// What was asked.
        call: &'static str,
        /// How long it was waited for.
        deadline: Duration,
    },
    /// The VM ended before the answer came.
    #[error("the virtual machine ended during {call}: {reason}")]
    VmGone {
        /// What was asked.
        call: &'static str,
        /// Why it ended.
        reason: String,
    },
    /// The connection broke though the VM lives: the agent violated the protocol.
    #[error("the connection to the agent broke during {call}: {text}")]
    Connection {
        /// What was asked.
        call: &'static str,
        /// What the transport says.
        text: String,
    },
}

impl AgentError {
    /// Whether the guest gave no answer at all, so that there is nothing to be said
    /// about what was asked for.
    pub fn is_silence(&self) -> bool {
        !matches!(self, Self::Status { .. })
    }
}

/// Why the first contact failed.
#[derive(Debug, Error)]
pub enum BellError {
    /// The connection that should announce the agent broke.
    #[error("the guest's announcement did not arrive")]
    Read(#[source] io::Error),
    /// Not an announcement.
    #[error("the guest's announcement is malformed")]
    Malformed(#[source] protobuf::Error),
    /// Another contract.
    #[error(
        "the agent speaks version {0} of the protocol, this shim {VERSION}: install shim and initramfs of the same release"
    )]
    Version(u32),
    /// The bell was not rung by the agent of this boot.
    #[error("the announcement does not carry this boot's nonce")]
    Nonce,
}

/// Accepts the one connection of the bell and checks it.
///
/// # Errors
/// See [`BellError`].
pub async fn answer_bell(listener: &UnixListener, nonce: &str) -> Result<(), BellError> {
    let (stream, _) = listener.accept().await.map_err(BellError::Read)?;
    let announce = match timeout(ANNOUNCE, read_announce(stream)).await {
        Ok(announce) => announce?,
        Err(_) => return Err(BellError::Read(io::ErrorKind::TimedOut.into())),
    };
    if announce.version != VERSION {
        return Err(BellError::Version(announce.version));
    }
    if announce.nonce != nonce {
        return Err(BellError::Nonce);
    }
    let (init, announced) = (announce.init_us, announce.announce_us);
    log::info!("agent announced; guest clock: PID 1 at {init} us, serving at {announced} us");
    Ok(())
}

async fn read_announce(stream: UnixStream) -> Result<Announce, BellError> {
    let mut bytes = Vec::new();
    let mut limited = stream.take(MAX_ANNOUNCE_LEN as u64);
    limited
        .read_to_end(&mut bytes)
        .await
        .map_err(BellError::Read)?;
    Announce::parse_from_bytes(&bytes).map_err(BellError::Malformed)
}

/// What the agent tells of an ended process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// As a shell reports it.
    pub status: u32,
    /// Kills by the OOM killer in its container so far.
    pub oom_kills: u64,
}

/// A connection to the agent; clones share it.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
    gone: watch::Receiver<Option<VmmEnd>>,
}

impl Agent {
    /// Connects to the agent's RPC port.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn connect(
        vsock: &Vsock,
        gone: watch::Receiver<Option<VmmEnd>>,
    ) -> Result<Self, AgentError> {
        let stream = vsock
            .connect(RPC_PORT)
            .await
            .map_err(|error| AgentError::Connection {
                call: "connect",
                text: error.to_string(),
            })?;
        let client = AgentClient::new(Client::new(Socket::new(stream)));
        Ok(Self { client, gone })
    }

    /// Answers while the agent does.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn ping(&self) -> Result<(), AgentError> {
        let request = PingRequest::default();
        let call = self.client.ping(within(LISTING), &request);
        self.call("Ping", Some(LISTING), call).await.map(drop)
    }

    /// The guest's network devices.
    pub async fn links(&self) -> Result<Vec<Link>, AgentError> {
        let request = Empty::default();
        let call = self.client.list_links(within(NETWORK), &request);
        Ok(self.call("ListLinks", Some(NETWORK), call).await?.links)
    }

    /// Changes the guest's network. Returns what it refused.
    pub async fn configure_network(
        &self,
        changes: Vec<NetworkChange>,
    ) -> Result<Vec<NetworkRefusal>, AgentError> {
        let most = changes.len();
        let request = ConfigureNetworkRequest {
            changes,
            ..ConfigureNetworkRequest::default()
        };
        let call = self.client.configure_network(within(NETWORK), &request);
        let answer = self.call("ConfigureNetwork", Some(NETWORK), call).await?;
        let mut refusals = answer.refusals;
        refusals.truncate(most);
        for refusal in &mut refusals {
            refusal.text = bounded(&refusal.text);
        }
        Ok(refusals)
    }

    /// Has the guest take the network device that is in a slot. Returns its link.
    pub async fn plug_nic(&self, slot: u32) -> Result<Link, AgentError> {
        let request = nic_slot(slot);
        let call = self.client.plug_nic(within(NETWORK), &request);
        self.call("PlugNic", Some(NETWORK), call).await
    }

    /// Has the guest let go of the network device in a slot.
    pub async fn unplug_nic(&self, slot: u32) -> Result<(), AgentError> {
        let request = nic_slot(slot);
        let call = self.client.unplug_nic(within(NETWORK), &request);
        self.call("UnplugNic", Some(NETWORK), call).await.map(drop)
    }

    /// Sets a container up; its program is found but not running yet. Returns its init's
    /// pid in the guest.
    pub async fn create(&self, request: &CreateContainerRequest) -> Result<u32, AgentError> {
        let call = self.client.create_container(within(CREATE), request);
        let created = self.call("CreateContainer", Some(CREATE), call).await?;
        Ok(created.pid)
    }

    /// Lets a created container's program run.
    pub async fn start(&self, container: &str) -> Result<(), AgentError> {
        let request = StartContainerRequest {
            container_id: container.to_owned(),
            ..StartContainerRequest::default()
        };
        let call = self.client.start_container(within(START), &request);
        self.call("StartContainer", Some(START), call)
            .await
            .map(drop)
    }

    /// Runs one more process in a container; returns its pid in the guest.
    pub async fn exec(&self, request: &ExecProcessRequest) -> Result<u32, AgentError> {
        let call = self.client.exec_process(within(START), request);
        let answer = self.call("ExecProcess", Some(START), call).await?;
        Ok(answer.pid)
    }

    /// Sends a signal to a process, or to all of its container.
    pub async fn signal(&self, request: &SignalProcessRequest) -> Result<(), AgentError> {
        let call = self.client.signal_process(within(QUICK), request);
        self.call("SignalProcess", Some(QUICK), call)
            .await
            .map(drop)
    }

    /// Waits for a process's end, for as long as it lives.
    pub async fn wait(&self, container: &str, exec: &str) -> Result<Ended, AgentError> {
        let request = WaitProcessRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            ..WaitProcessRequest::default()
        };
        let call = self
            .client
            .wait_process(ttrpc::context::Context::default(), &request);
        let answer = self.call("WaitProcess", None, call).await?;
        Ok(Ended {
            status: answer.exit_status.min(255),
            oom_kills: answer.oom_kills,
        })
    }

    /// Waits until the OOM killer has killed in a container more often than `seen`;
    /// returns how often.
    pub async fn wait_oom(&self, container: &str, seen: u64) -> Result<u64, AgentError> {
        let request = WaitOomRequest {
            container_id: container.to_owned(),
            seen,
            ..WaitOomRequest::default()
        };
        let call = self
            .client
            .wait_oom(ttrpc::context::Context::default(), &request);
        Ok(self.call("WaitOom", None, call).await?.kills)
    }

    /// Freezes every process of a container.
    pub async fn pause(&self, container: &str) -> Result<(), AgentError> {
        let request = PauseContainerRequest {
            container_id: container.to_owned(),
            ..PauseContainerRequest::default()
        };
        let call = self.client.pause_container(within(FREEZE), &request);
        self.call("PauseContainer", Some(FREEZE), call)
            .await
            .map(drop)
    }

    /// Lets the processes of a container go on.
    pub async fn resume(&self, container: &str) -> Result<(), AgentError> {
        let request = ResumeContainerRequest {
            container_id: container.to_owned(),
            ..ResumeContainerRequest::default()
        };
        let call = self.client.resume_container(within(FREEZE), &request);
        self.call("ResumeContainer", Some(FREEZE), call)
            .await
            .map(drop)
    }

    /// Applies an OCI `linux.resources` object to a container.
    pub async fn update(&self, container: &str, resources: Vec<u8>) -> Result<(), AgentError> {
        let request = UpdateContainerRequest {
            container_id: container.to_owned(),
            resources_json: resources,
            ..UpdateContainerRequest::default()
        };
        let call = self.client.update_container(within(UPDATE), &request);
        self.call("UpdateContainer", Some(UPDATE), call)
            .await
            .map(drop)
    }

    /// The files of a container's cgroup by their names.
    pub async fn read_cgroup(
        &self,
        container: &str,
    ) -> Result<HashMap<String, String>, AgentError> {
        let request = ReadCgroupRequest {
            container_id: container.to_owned(),
            ..ReadCgroupRequest::default()
        };
        let call = self.client.read_cgroup(within(LISTING), &request);
        let mut files = self.call("ReadCgroup", Some(LISTING), call).await?.files;
        files.retain(|_, text| text.len() <= MAX_FILE);
        Ok(files)
    }

    /// Forgets an ended process, or with an empty `exec` the whole container.
    pub async fn delete(&self, container: &str, exec: &str) -> Result<(), AgentError> {
        let request = DeleteProcessRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            ..DeleteProcessRequest::default()
        };
        let call = self.client.delete_process(within(DELETE), &request);
        self.call("DeleteProcess", Some(DELETE), call)
            .await
            .map(drop)
    }

    /// Sets the size of a process's terminal.
    pub async fn resize(&self, request: &ResizePtyRequest) -> Result<(), AgentError> {
        let call = self.client.resize_pty(within(QUICK), request);
        self.call("ResizePty", Some(QUICK), call).await.map(drop)
    }

    /// Has the guest use the CPUs and the memory (as its MemTotal, in KiB) it was given;
    /// tells what it has.
    pub async fn use_size(&self, cpus: u32, memory_kib: u64) -> Result<ResizeResponse, AgentError> {
        let request = ResizeRequest {
            cpus,
            memory_kib,
            ..ResizeRequest::default()
        };
        let call = self.client.resize(within(RESIZE), &request);
        self.call("Resize", Some(RESIZE), call).await
    }

    /// The pids in a container, as the guest numbers them.
    pub async fn pids(&self, container: &str) -> Result<Vec<u32>, AgentError> {
        let request = ListPidsRequest {
            container_id: container.to_owned(),
            ..ListPidsRequest::default()
        };
        let call = self.client.list_pids(within(LISTING), &request);
        let mut pids = self.call("ListPids", Some(LISTING), call).await?.pids;
        pids.truncate(MAX_PIDS);
        Ok(pids)
    }

    /// Ends the machine cleanly. An error may just mean that it was quick.
    pub async fn power_off(&self) -> Result<(), AgentError> {
        let request = Empty::default();
        let call = self.client.power_off(within(POWER_OFF), &request);
        self.call("PowerOff", Some(POWER_OFF), call).await.map(drop)
    }

    /// Runs one call to its answer, its deadline or the VM's end. No deadline means
    /// that the call lasts as long as what it waits for.
    async fn call<T>(
        &self,
        call: &'static str,
        deadline: Option<Duration>,
        answer: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, AgentError> {
        let mut gone = self.gone.clone();
        let result = tokio::select! {
            biased;
            result = answer => result,
            end = vmm_process::end(&mut gone) => {
                return Err(AgentError::VmGone { call, reason: end.reason });
            }
            deadline = expire(deadline) => return Err(AgentError::Deadline { call, deadline }),
        };
        match result {
            Ok(answer) => Ok(answer),
            Err(ttrpc::Error::RpcStatus(status)) => Err(AgentError::Status {
                code: status.code.enum_value().unwrap_or(ttrpc::Code::UNKNOWN),
                text: bounded(&status.message),
            }),
            Err(error) => match timeout(END_GRACE, vmm_process::end(&mut gone)).await {
                Ok(end) => Err(AgentError::VmGone {
                    call,
                    reason: end.reason,
                }),
                Err(_) => Err(AgentError::Connection {
                    call,
                    text: bounded(&error.to_string()),
                }),
            },
        }
    }
}

fn nic_slot(number: u32) -> NicSlot {
    NicSlot {
        number,
        ..NicSlot::default()
    }
}

/// Waits for a deadline, for ever if there is none.
async fn expire(deadline: Option<Duration>) -> Duration {
    match deadline {
        Some(deadline) => {
            tokio::time::sleep(deadline).await;
            deadline
        }
        None => std::future::pending().await,
    }
}

/// The deadline as the agent is told. A little later than ours: its own timer then
/// never answers for it, and what it does is not given up while it may still count.
fn within(deadline: Duration) -> ttrpc::context::Context {
    ttrpc::context::with_duration(deadline + END_GRACE)
}

/// A text of the guest's, fit for logs and errors.
fn bounded(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(MAX_TEXT)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    async fn ring(name: &str, bytes: &[u8]) -> Result<(), BellError> {
        let path = std::env::temp_dir().join(format!("husk-bell-{name}-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let mut guest = UnixStream::connect(&path).await.unwrap();
        guest.write_all(bytes).await.unwrap();
        drop(guest);
        std::fs::remove_file(path).unwrap();
        answer_bell(&listener, "abc").await
    }

    fn announce(version: u32, nonce: &str) -> Vec<u8> {
        let announce = Announce {
            version,
            nonce: nonce.to_owned(),
            ..Announce::default()
        };
        announce.write_to_bytes().unwrap()
    }

    #[tokio::test]
    async fn only_this_boots_agent_is_let_in() {
        ring("right", &announce(VERSION, "abc")).await.unwrap();
        let wrong = ring("nonce", &announce(VERSION, "abd")).await;
        assert!(matches!(wrong, Err(BellError::Nonce)));
        let old = ring("version", &announce(VERSION + 1, "abc")).await;
        assert!(matches!(old, Err(BellError::Version(_))));
        assert!(matches!(
            ring("garbage", b"\xff\xff").await,
            Err(BellError::Malformed(_))
        ));
        let flood = vec![0x22; 2 * MAX_ANNOUNCE_LEN];
        assert!(ring("flood", &flood).await.is_err());
    }

    #[test]
    fn texts_of_the_guest_are_bounded_and_in_one_line() {
        assert_eq!(bounded("a\nb\x1b[2Jc"), "ab[2Jc");
        assert_eq!(bounded(&"x".repeat(5000)).len(), MAX_TEXT);
    }
}
