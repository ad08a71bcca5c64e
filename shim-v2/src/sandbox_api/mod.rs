//! containerd's sandbox service (`sandboxer = "shim"`): a pod's machine without a pause
//! container. Its containers come by the task service, on the same socket.
//!
//! As in [`crate::task`], each method logs, calls its verb and maps the error, and verbs that
//! change something run to their end whether or not their caller waits. In the order of a
//! pod's life (`plugins/sandbox/controller.go` of containerd 2):
//!
//! | call | what it does here |
//! |---|---|
//! | CreateSandbox | checks everything, writes the pod's files |
//! | StartSandbox | boots the machine |
//! | Platform, SandboxStatus | are asked before each container |
//! | WaitSandbox | answers when the machine is gone: the pod is no longer ready |
//! | StopSandbox | ends the machine, and frees all the host had for it |
//! | ShutdownSandbox | ends the shim |

mod create;
mod metrics;
pub mod pod;
mod pod_config;
mod start;
mod status;
mod stop;

#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::unwrap_used,
    reason = "generated"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/generated.rs"));
}

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
    WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::Sandbox;
use ttrpc::asynchronous::TtrpcContext;

use crate::error::finish;
use crate::shim::Shim;
use generated::cri;

/// The service containerd calls.
pub struct SandboxService {
    shim: Arc<Shim>,
}

impl SandboxService {
    /// The service of a shim.
    pub fn new(shim: Arc<Shim>) -> Self {
        Self { shim }
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        let id = request.sandbox_id.clone();
        self.shim
            .run("CreateSandbox", &id, |shim| create::create(shim, request))
            .await
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        let id = request.sandbox_id.clone();
        self.shim
            .run("StartSandbox", &id, |shim| start::start(shim, request))
            .await
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        request: PlatformRequest,
    ) -> ttrpc::Result<PlatformResponse> {
        let answer = status::platform(&self.shim, &request);
        finish("Platform", &request.sandbox_id, answer)
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        let id = request.sandbox_id.clone();
        self.shim
            .run("StopSandbox", &id, |shim| stop::stop(shim, request))
            .await
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        let answer = status::wait(&self.shim, &request).await;
        finish("WaitSandbox", &request.sandbox_id, answer)
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        let answer = status::status(&self.shim, &request);
        finish("SandboxStatus", &request.sandbox_id, answer)
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: PingRequest,
    ) -> ttrpc::Result<PingResponse> {
        let answer = status::ping(&self.shim, &request).await;
        finish("PingSandbox", &request.sandbox_id, answer)
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        let id = request.sandbox_id.clone();
        self.shim
            .run("ShutdownSandbox", &id, |shim| stop::shutdown(shim, request))
            .await
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        let answer = metrics::metrics(&self.shim, &request).await;
        finish("SandboxMetrics", &request.sandbox_id, answer)
    }
}
