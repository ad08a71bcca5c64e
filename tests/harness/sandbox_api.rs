//! The sandbox API of our shim, spoken without containerd: in an order it would never choose,
//! and also where containerd has none.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
    WaitSandboxResponse,
};
use containerd_shim_protos::ttrpc::Client;
use k8s_cri::v1::PodSandboxConfig;
use prost::Message as _;
use tempfile::TempDir;

use crate::process;
use crate::shim;
use crate::task_api::{Connection, Refusal};

const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";
/// Of every sandbox made here.
pub const ID: &str = "pod-by-hand";

/// What a call came to.
pub type Answer<T> = Result<T, Refusal>;

/// A shim that `start` left serving in an empty bundle, as containerd makes one for a sandbox.
pub struct SandboxShim {
    bundle: TempDir,
    address: String,
    connection: Connection,
}

macro_rules! calls {
    ($($name:ident: $method:literal $request:ident => $response:ident,)+) => {
        impl SandboxShim {
            $(
                #[doc = concat!("The service's `", $method, "` for a sandbox of this id.")]
                ///
                /// # Errors
                /// What the shim answers instead.
                #[track_caller]
                pub fn $name(&self, id: &str) -> Answer<$response> {
                    let request = $request { sandbox_id: id.into(), ..Default::default() };
                    self.connection.call($method, &request)
                }
            )+
        }
    };
}

calls! {
    start: "StartSandbox" StartSandboxRequest => StartSandboxResponse,
    platform: "Platform" PlatformRequest => PlatformResponse,
    stop: "StopSandbox" StopSandboxRequest => StopSandboxResponse,
    wait: "WaitSandbox" WaitSandboxRequest => WaitSandboxResponse,
    status: "SandboxStatus" SandboxStatusRequest => SandboxStatusResponse,
    ping: "PingSandbox" PingRequest => PingResponse,
    shutdown: "ShutdownSandbox" ShutdownSandboxRequest => ShutdownSandboxResponse,
    metrics: "SandboxMetrics" SandboxMetricsRequest => SandboxMetricsResponse,
}

impl SandboxShim {
    /// Starts it.
    ///
    /// # Panics
    /// If it does not serve.
    #[track_caller]
    pub fn run() -> Self {
        let bundle = TempDir::new().expect("a temporary directory");
        fs::write(bundle.path().join("log"), "").expect("a log");
        let started = process::run(shim::command(bundle.path(), ID, &["start"])).succeeded();
        let address = started.text().trim().to_owned();
        let client = Client::connect(&address).expect("the shim listens");
        Self {
            bundle,
            address,
            connection: Connection::new(client, SERVICE),
        }
    }

    /// Its bundle.
    pub fn bundle(&self) -> PathBuf {
        self.bundle.path().to_owned()
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The service's `CreateSandbox` with a pod's configuration.
    ///
    /// # Errors
    /// What the shim answers instead.
    #[track_caller]
    pub fn create(&self, id: &str, config: &PodSandboxConfig) -> Answer<CreateSandboxResponse> {
        self.create_in(id, "", config)
    }

    /// The same in a network namespace; an empty path is for a new one.
    ///
    /// # Errors
    /// What the shim answers instead.
    #[track_caller]
    pub fn create_in(
        &self,
        id: &str,
        netns: &str,
        config: &PodSandboxConfig,
    ) -> Answer<CreateSandboxResponse> {
        let request = CreateSandboxRequest {
            sandbox_id: id.into(),
            netns_path: netns.into(),
            bundle_path: self.bundle.path().to_string_lossy().into_owned(),
            options: Some(Any {
                type_url: "runtime.v1.PodSandboxConfig".into(),
                value: config.encode_to_vec(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        self.connection.call("CreateSandbox", &request)
    }

    /// A call in a connection and a thread of its own.
    pub fn waiter(&self) -> std::thread::JoinHandle<Answer<WaitSandboxResponse>> {
        let client = Client::connect(&self.address).expect("the shim listens");
        let connection = Connection::new(client, SERVICE);
        let request = WaitSandboxRequest {
            sandbox_id: ID.into(),
            ..Default::default()
        };
        std::thread::spawn(move || connection.call("WaitSandbox", &request))
    }

    /// A call of the task service on the same socket.
    ///
    /// # Errors
    /// What the shim answers instead.
    #[track_caller]
    pub fn task<Q: Message, A: Message>(&self, method: &str, request: &Q) -> Answer<A> {
        let client = Client::connect(&self.address).expect("the shim listens");
        Connection::new(client, "containerd.task.v3.Task").call(method, request)
    }

    /// What containerd calls after the shim went: `delete`.
    #[track_caller]
    pub fn delete(&self) {
        let bundle = self.bundle.path().to_string_lossy().into_owned();
        let command: Command =
            shim::command(self.bundle.path(), ID, &["-bundle", &bundle, "delete"]);
        process::run(command).succeeded();
    }
}

impl Drop for SandboxShim {
    fn drop(&mut self) {
        // Gone already, or the test failed.
        drop(self.connection.call::<_, ShutdownSandboxResponse>(
            "ShutdownSandbox",
            &ShutdownSandboxRequest {
                sandbox_id: ID.into(),
                ..Default::default()
            },
        ));
    }
}
