//! CloseIO: standard input may end now. Needs no guest: what was written is still
//! delivered, and the end follows it on the same stream.

use containerd_shim_protos::api::{CloseIORequest, Empty};

use crate::error::Error;
use crate::shim::Shim;

/// Lets go of standard input's writing end.
pub fn close_io(shim: &Shim, request: &CloseIORequest) -> Result<Empty, Error> {
    let container = shim.containers.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    if request.stdin {
        process.close_stdin();
    }
    Ok(Empty::default())
}
