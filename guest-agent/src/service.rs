//! The agent's service: each call is looked up, done, and its error mapped; nothing else.
//!
//! Calls that change something run as tasks of their own: when the caller's deadline
//! passes or its connection breaks, ttrpc drops the call, but what was begun is
//! finished, so nothing is ever half made.

use std::sync::Arc;

use agent_protocol::agent::{
    CloseStdinRequest, ConfigureNetworkRequest, ConfigureNetworkResponse, CreateContainerRequest,
    CreateContainerResponse, DeleteProcessRequest, Empty, ExecProcessRequest, ExecProcessResponse,
    Link, ListLinksResponse, ListPidsRequest, ListPidsResponse, NicSlot, PauseContainerRequest,
    PingRequest, PingResponse, ReadCgroupRequest, ReadCgroupResponse, ResizePtyRequest,
    ResizeRequest, ResizeResponse, ResumeContainerRequest, SignalProcessRequest,
    StartContainerRequest, UpdateContainerRequest, WaitOomRequest, WaitOomResponse,
    WaitProcessRequest, WaitProcessResponse,
};
use agent_protocol::agent_ttrpc::Agent;
use async_trait::async_trait;
use tokio::task::JoinError;
use ttrpc::r#async::TtrpcContext;

use crate::container::Container;
use crate::container::create::{Workshop, create_container, exec_process};
use crate::error::Error;
use crate::growth;
use crate::network;
use crate::nic;
use crate::power;
use crate::process::signal_number;
use crate::reaper;
use crate::registry::Registry;

/// Implements the calls of `agent.proto`.
#[derive(Clone, Debug)]
pub struct Service {
    workshop: Workshop,
    containers: Arc<Registry<Container>>,
}

impl Service {
    /// A service without containers.
    pub fn new(workshop: Workshop) -> Self {
        Self {
            workshop,
            containers: Arc::new(Registry::new("container")),
        }
    }

    async fn create(
        self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, Error> {
        let id = request.container_id.as_str();
        let reservation = self.containers.reserve(id)?;
        let container = create_container(&self.workshop, &request).await?;
        let pid = container.process("")?.pid();
        reservation.fill(container);
        Ok(CreateContainerResponse {
            pid: pid.as_raw() as u32,
            ..Default::default()
        })
    }

    async fn exec(self, request: ExecProcessRequest) -> Result<ExecProcessResponse, Error> {
        let container = self.containers.get(&request.container_id)?;
        container.require_unpaused()?;
        let reservation = container.reserve_exec(&request.exec_id)?;
        let stdio = request.stdio.unwrap_or_default();
        let process =
            exec_process(&self.workshop, &container, &request.process_json, &stdio).await?;
        let pid = process.pid();
        reservation.fill(process);
        Ok(ExecProcessResponse {
            pid: pid.as_raw() as u32,
            ..Default::default()
        })
    }

    async fn delete(self, request: DeleteProcessRequest) -> Result<(), Error> {
        let container = self.containers.get(&request.container_id)?;
        if !request.exec_id.is_empty() {
            return container.delete_exec(&request.exec_id);
        }
        container.destroy().await?;
        self.containers.remove(&request.container_id);
        Ok(())
    }

    fn signal(&self, request: &SignalProcessRequest) -> Result<(), Error> {
        let signal = signal_number(request.signal)?;
        let container = self.containers.get(&request.container_id)?;
        if request.all && request.exec_id.is_empty() {
            return Ok(container.cgroup().signal(signal)?);
        }
        container.process(&request.exec_id)?.signal(signal)
    }

    fn pids(&self, request: &ListPidsRequest) -> Result<ListPidsResponse, Error> {
        let pids = self
            .containers
            .get(&request.container_id)?
            .cgroup()
            .pids()?;
        Ok(ListPidsResponse {
            pids: pids.into_iter().map(|pid| pid.as_raw() as u32).collect(),
            ..Default::default()
        })
    }

    async fn wait(&self, request: &WaitProcessRequest) -> Result<WaitProcessResponse, Error> {
        let container = self.containers.get(&request.container_id)?;
        let exit = container.ended(&request.exec_id).await?;
        Ok(WaitProcessResponse {
            exit_status: exit.status,
            exited_at_ns: exit.at_ns,
            // Asked for after the exit, so the kill that caused it is in it.
            oom_kills: container.cgroup().oom_kills(),
            ..Default::default()
        })
    }

    async fn wait_for_oom(&self, request: &WaitOomRequest) -> Result<WaitOomResponse, Error> {
        let container = self.containers.get(&request.container_id)?;
        match container.cgroup().wait_oom(request.seen).await? {
            Some(kills) => Ok(WaitOomResponse {
                kills,
                ..Default::default()
            }),
            None => Err(Error::NotFound {
                kind: "container",
                id: request.container_id.clone(),
            }),
        }
    }

    fn statistics(&self, request: &ReadCgroupRequest) -> Result<ReadCgroupResponse, Error> {
        let container = self.containers.get(&request.container_id)?;
        Ok(ReadCgroupResponse {
            files: container.cgroup().statistics()?,
            ..Default::default()
        })
    }
}

/// The result of a call that ran as a task.
fn joined<T>(result: Result<Result<T, Error>, JoinError>) -> ttrpc::Result<T> {
    match result {
        Ok(result) => Ok(result?),
        Err(error) => Err(ttrpc::Error::Others(error.to_string())),
    }
}

#[async_trait]
impl Agent for Service {
    async fn ping(&self, _: &TtrpcContext, _: PingRequest) -> ttrpc::Result<PingResponse> {
        Ok(PingResponse {
            version: agent_protocol::VERSION,
            realtime_ns: reaper::realtime_ns(),
            ..Default::default()
        })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        joined(tokio::spawn(self.clone().create(request)).await)
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.containers.get(&request.container_id)?;
        container.require_unpaused()?;
        joined(tokio::spawn(async move { container.start().await }).await)?;
        Ok(Empty::default())
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: ExecProcessRequest,
    ) -> ttrpc::Result<ExecProcessResponse> {
        joined(tokio::spawn(self.clone().exec(request)).await)
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> ttrpc::Result<Empty> {
        self.signal(&request)?;
        Ok(Empty::default())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        Ok(self.wait(&request).await?)
    }

    async fn delete_process(
        &self,
        _: &TtrpcContext,
        request: DeleteProcessRequest,
    ) -> ttrpc::Result<Empty> {
        joined(tokio::spawn(self.clone().delete(request)).await)?;
        Ok(Empty::default())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let process = self
            .containers
            .get(&request.container_id)?
            .process(&request.exec_id)?;
        process.io().resize(request.width, request.height)?;
        Ok(Empty::default())
    }

    async fn close_stdin(
        &self,
        _: &TtrpcContext,
        request: CloseStdinRequest,
    ) -> ttrpc::Result<Empty> {
        let process = self
            .containers
            .get(&request.container_id)?
            .process(&request.exec_id)?;
        process.io().close_stdin().await;
        Ok(Empty::default())
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: PauseContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.containers.get(&request.container_id)?;
        joined(tokio::spawn(async move { container.pause().await }).await)?;
        Ok(Empty::default())
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: ResumeContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.containers.get(&request.container_id)?;
        joined(tokio::spawn(async move { container.resume().await }).await)?;
        Ok(Empty::default())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.containers.get(&request.container_id)?;
        let update = async move { container.update(&request.resources_json).await };
        joined(tokio::spawn(update).await)?;
        Ok(Empty::default())
    }

    async fn read_cgroup(
        &self,
        _: &TtrpcContext,
        request: ReadCgroupRequest,
    ) -> ttrpc::Result<ReadCgroupResponse> {
        Ok(self.statistics(&request)?)
    }

    async fn wait_oom(
        &self,
        _: &TtrpcContext,
        request: WaitOomRequest,
    ) -> ttrpc::Result<WaitOomResponse> {
        Ok(self.wait_for_oom(&request).await?)
    }

    async fn resize(
        &self,
        _: &TtrpcContext,
        request: ResizeRequest,
    ) -> ttrpc::Result<ResizeResponse> {
        joined(tokio::spawn(growth::resize(request)).await)
    }

    async fn list_pids(
        &self,
        _: &TtrpcContext,
        request: ListPidsRequest,
    ) -> ttrpc::Result<ListPidsResponse> {
        Ok(self.pids(&request)?)
    }

    async fn list_links(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<ListLinksResponse> {
        Ok(ListLinksResponse {
            links: network::links()?,
            ..Default::default()
        })
    }

    async fn configure_network(
        &self,
        _: &TtrpcContext,
        request: ConfigureNetworkRequest,
    ) -> ttrpc::Result<ConfigureNetworkResponse> {
        Ok(ConfigureNetworkResponse {
            refusals: network::configure(&request.changes)?,
            ..Default::default()
        })
    }

    async fn plug_nic(&self, _: &TtrpcContext, request: NicSlot) -> ttrpc::Result<Link> {
        Ok(nic::plug(request.number)?)
    }

    async fn unplug_nic(&self, _: &TtrpcContext, request: NicSlot) -> ttrpc::Result<Empty> {
        nic::unplug(request.number)?;
        Ok(Empty::default())
    }

    async fn power_off(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        tokio::spawn(power::off(Arc::clone(&self.workshop.reaper)));
        Ok(Empty::default())
    }
}
