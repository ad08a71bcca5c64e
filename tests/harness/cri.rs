//! A client of containerd's CRI service: its calls, as they are. [`crate::pod`] makes pods
//! with them.

use std::time::Duration;

use k8s_cri::v1;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

pub use k8s_cri::v1 as api;
pub use tonic::{Code, Status};

use crate::process;

const SOCKET: &str = "unix:///run/containerd/containerd.sock";

/// A client of the service. Every call ends within [`process::DEADLINE`], and has a connection of
/// its own: containerd may have been restarted meanwhile.
pub struct Cri {
    tokio: tokio::runtime::Runtime,
}

/// A call's answer, or what the service says instead.
pub type Answer<T> = Result<T, Status>;

macro_rules! calls {
    ($($name:ident: $request:ident => $response:ident,)+) => {
        impl Cri {
            $(
                #[doc = concat!("The service's `", stringify!($name), "`.")]
                ///
                /// # Errors
                /// What the service answers instead.
                pub fn $name(&self, request: v1::$request) -> Answer<v1::$response> {
                    let mut request = tonic::Request::new(request);
                    request.set_timeout(process::DEADLINE);
                    let answer = self.tokio.block_on(async {
                        let mut client = RuntimeServiceClient::new(endpoint().connect_lazy());
                        client.$name(request).await
                    });
                    Ok(answer?.into_inner())
                }
            )+
        }
    };
}

calls! {
    version: VersionRequest => VersionResponse,
    status: StatusRequest => StatusResponse,
    run_pod_sandbox: RunPodSandboxRequest => RunPodSandboxResponse,
    stop_pod_sandbox: StopPodSandboxRequest => StopPodSandboxResponse,
    remove_pod_sandbox: RemovePodSandboxRequest => RemovePodSandboxResponse,
    pod_sandbox_status: PodSandboxStatusRequest => PodSandboxStatusResponse,
    list_pod_sandbox: ListPodSandboxRequest => ListPodSandboxResponse,
    create_container: CreateContainerRequest => CreateContainerResponse,
    start_container: StartContainerRequest => StartContainerResponse,
    stop_container: StopContainerRequest => StopContainerResponse,
    remove_container: RemoveContainerRequest => RemoveContainerResponse,
    container_status: ContainerStatusRequest => ContainerStatusResponse,
    list_containers: ListContainersRequest => ListContainersResponse,
    update_container_resources: UpdateContainerResourcesRequest => UpdateContainerResourcesResponse,
    reopen_container_log: ReopenContainerLogRequest => ReopenContainerLogResponse,
    exec: ExecRequest => ExecResponse,
    attach: AttachRequest => AttachResponse,
    port_forward: PortForwardRequest => PortForwardResponse,
    exec_sync: ExecSyncRequest => ExecSyncResponse,
    container_stats: ContainerStatsRequest => ContainerStatsResponse,
    list_container_stats: ListContainerStatsRequest => ListContainerStatsResponse,
    pod_sandbox_stats: PodSandboxStatsRequest => PodSandboxStatsResponse,
    list_pod_sandbox_stats: ListPodSandboxStatsRequest => ListPodSandboxStatsResponse,
    list_metric_descriptors: ListMetricDescriptorsRequest => ListMetricDescriptorsResponse,
    list_pod_sandbox_metrics: ListPodSandboxMetricsRequest => ListPodSandboxMetricsResponse,
    runtime_config: RuntimeConfigRequest => RuntimeConfigResponse,
}

/// What UpdatePodSandboxResources is asked. The service's published API has had it since
/// Kubernetes 1.32, the crate of it not yet.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdatePodSandboxResourcesRequest {
    /// Which pod.
    #[prost(string, tag = "1")]
    pub pod_sandbox_id: String,
    /// What the runtime takes itself.
    #[prost(message, optional, tag = "2")]
    pub overhead: Option<v1::LinuxContainerResources>,
    /// What all containers may use together.
    #[prost(message, optional, tag = "3")]
    pub resources: Option<v1::LinuxContainerResources>,
}

impl Cri {
    /// The service's `update_pod_sandbox_resources`.
    ///
    /// # Errors
    /// What the service answers instead: Unimplemented where it is older than the call.
    pub fn update_pod_sandbox_resources(
        &self,
        request: UpdatePodSandboxResourcesRequest,
    ) -> Answer<()> {
        const CALL: &str = "/runtime.v1.RuntimeService/UpdatePodSandboxResources";
        let mut request = tonic::Request::new(request);
        request.set_timeout(process::DEADLINE);
        self.tokio.block_on(async {
            let mut client = Grpc::new(endpoint().connect_lazy());
            let ready = client.ready().await;
            ready.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<_, ()>::default();
            client
                .unary(request, CALL.parse().expect("a path"), codec)
                .await
        })?;
        Ok(())
    }

    /// Connects.
    ///
    /// # Panics
    /// If the service does not answer.
    #[track_caller]
    pub fn connect() -> Self {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime for the client");
        let connected = tokio.block_on(endpoint().connect());
        connected.expect("containerd's socket");
        Self { tokio }
    }
}

/// Where the service is.
pub(crate) fn endpoint() -> Endpoint {
    Endpoint::from_static(SOCKET).connect_timeout(Duration::from_secs(60))
}
