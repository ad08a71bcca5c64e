//! Tells the host, once, that the agent answers.

use std::io;
use std::time::Duration;

use agent_protocol::agent::Announce;
use agent_protocol::{BELL_PORT, VERSION};
use nix::time::{ClockId, clock_gettime};
use protobuf::Message;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

const RING_DEADLINE: Duration = Duration::from_secs(10);

/// Why the host could not be told.
#[derive(Debug, Error)]
pub enum BellError {
    /// The message could not be made.
    #[error("cannot encode the announcement")]
    Encode(#[from] protobuf::Error),
    /// The host did not take it.
    #[error("cannot announce to the host on vsock port {BELL_PORT}")]
    Host(#[from] io::Error),
    /// The host did not answer.
    #[error("the host did not take the announcement within {RING_DEADLINE:?}")]
    Deadline,
}

/// Connects, writes one `Announce` and closes.
pub async fn ring(nonce: &str, init_us: u64) -> Result<(), BellError> {
    let connect = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, BELL_PORT));
    let mut host = timeout(RING_DEADLINE, connect)
        .await
        .map_err(|_| BellError::Deadline)??;
    let announce = Announce {
        version: VERSION,
        nonce: nonce.into(),
        init_us,
        announce_us: boot_us(),
        ..Default::default()
    };
    let message = announce.write_to_bytes()?;
    let write = async {
        host.write_all(&message).await?;
        AsyncWriteExt::shutdown(&mut host).await
    };
    Ok(timeout(RING_DEADLINE, write)
        .await
        .map_err(|_| BellError::Deadline)??)
}

/// Microseconds since the kernel started.
pub fn boot_us() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        let (seconds, nanoseconds) = (time.tv_sec() as u64, time.tv_nsec() as u64);
        seconds * 1_000_000 + nanoseconds / 1_000
    })
}
