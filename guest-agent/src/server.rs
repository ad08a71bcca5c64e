//! The doors of the agent: calls, streams and forwarded connections. All open to the host alone.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use agent_protocol::agent_ttrpc::create_agent;
use agent_protocol::forward::FORWARD_PORT;
use agent_protocol::{RPC_PORT, STREAM_PORT};
use futures_util::stream::unfold;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::forward;
use crate::service::Service;
use crate::stdio::Streams;

/// How long a new stream may take to say whose it is.
const TOKEN_DEADLINE: Duration = Duration::from_secs(10);

/// Why the doors cannot be opened.
#[derive(Debug, Error)]
pub enum ServeError {
    /// No listening on a port.
    #[error("cannot listen on vsock port {port}")]
    Bind {
        /// The port.
        port: u32,
        /// Why not: without a vsock device there is no such address family member.
        #[source]
        source: io::Error,
    },
    /// ttrpc did not start.
    #[error("cannot serve calls")]
    Rpc(#[from] ttrpc::Error),
}

/// Starts to answer calls. They stop when the result is dropped.
pub async fn serve_calls(service: Service) -> Result<Server, ServeError> {
    let listener = bind(RPC_PORT)?;
    let from_host = unfold(listener, |listener| async move {
        Some((accept(&listener).await, listener))
    });
    let mut server = Server::new()
        .add_listener(Listener::new(from_host))
        .register_service(create_agent(Arc::new(service)));
    server.start().await?;
    Ok(server)
}

/// Starts to join streams with the processes they belong to.
pub fn serve_streams(streams: Arc<Streams>) -> Result<(), ServeError> {
    serve_each(STREAM_PORT, move |stream| {
        admit(stream, Arc::clone(&streams))
    })
}

/// Starts to carry on what is dialled on the pod's loopback of the host.
pub fn serve_forwards() -> Result<(), ServeError> {
    serve_each(FORWARD_PORT, |stream| async {
        // The host notices the end of its stream.
        forward::serve(stream).await.ok();
    })
}

/// Gives each connection to a port a task of its own.
fn serve_each<F>(
    port: u32,
    serve: impl Fn(VsockStream) -> F + Send + 'static,
) -> Result<(), ServeError>
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = bind(port)?;
    tokio::spawn(async move {
        loop {
            match accept(&listener).await {
                Ok(stream) => drop(tokio::spawn(serve(stream))),
                Err(error) => crate::console::warn(format_args!("accepting a stream: {error}")),
            }
        }
    });
    Ok(())
}

async fn admit(mut stream: VsockStream, streams: Arc<Streams>) {
    if let Ok(Ok(token)) = timeout(TOKEN_DEADLINE, stream.read_u64_le()).await {
        streams.attach(token, stream);
    }
}

fn bind(port: u32) -> Result<VsockListener, ServeError> {
    let any = VsockAddr::new(VMADDR_CID_ANY, port);
    VsockListener::bind(any).map_err(|source| ServeError::Bind { port, source })
}

/// The next connection from the host. A guest kernel with vsock loopback would let
/// containers in as well: theirs are dropped.
async fn accept(listener: &VsockListener) -> io::Result<VsockStream> {
    loop {
        let (stream, peer) = listener.accept().await?;
        if peer.cid() == VMADDR_CID_HOST {
            return Ok(stream);
        }
    }
}
