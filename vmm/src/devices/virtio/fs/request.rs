//! One FUSE request: from a descriptor chain to the number of bytes in its reply.

use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode, OutHeader};
use fuse_backend_rs::api::server::{MAX_BUFFER_SIZE, Server};
use fuse_backend_rs::transport::{Reader, VirtioFsWriter};
use virtio_queue::DescriptorChain;
use vm_memory::ByteValued as _;

use super::tree::Tree;
use crate::memory::{GuestMemory, Ram};

/// Most bytes of a request, and of the room for its reply: the largest READ or WRITE the
/// server negotiates, and a page for headers and arguments.
const MAX_BYTES: usize = MAX_BUFFER_SIZE as usize + 4096;

const REPLY_HEADER_LEN: u32 = size_of::<OutHeader>() as u32;

/// Serves the request in `chain`. Answers the bytes written to it, which Linux compares
/// with the length the reply states.
///
/// What cannot be understood is answered EINVAL as long as its header can be read and
/// there is room; else the chain goes back untouched.
pub fn serve(
    server: &Server<std::sync::Arc<Tree>>,
    mem: &Ram,
    chain: DescriptorChain<GuestMemory>,
) -> u32 {
    let Ok(reader) = Reader::from_descriptor_chain::<GuestMemory>(mem, chain.clone()) else {
        return 0;
    };
    let Ok(writer) = VirtioFsWriter::new::<GuestMemory>(mem, chain) else {
        return 0;
    };
    // Read once more by the server: these two only choose how a failure is answered.
    let Ok(InHeader { opcode, unique, .. }) = reader.clone().read_obj() else {
        return 0;
    };
    let refusal = writer.clone();
    if reader.available_bytes() > MAX_BYTES || writer.available_bytes() > MAX_BYTES {
        return refuse(refusal, opcode, unique, libc::E2BIG);
    }
    match server.handle_message(reader, writer.into(), None, None) {
        // The server replies to DESTROY and says that it did not.
        Ok(0) if opcode == Opcode::Destroy as u32 => {
            let room = refusal.available_bytes() >= REPLY_HEADER_LEN as usize;
            if room { REPLY_HEADER_LEN } else { 0 }
        }
        Ok(written) => written as u32,
        Err(error) => {
            log::debug!(target: "guest", "virtio-fs: refused request {opcode}: {error}");
            refuse(refusal, opcode, unique, libc::EINVAL)
        }
    }
}

fn refuse(mut writer: VirtioFsWriter<'_>, opcode: u32, unique: u64, errno: i32) -> u32 {
    let silent = [Opcode::Forget as u32, Opcode::BatchForget as u32];
    if silent.contains(&opcode) {
        return 0;
    }
    let header = OutHeader {
        len: REPLY_HEADER_LEN,
        error: -errno,
        unique,
    };
    match std::io::Write::write_all(&mut writer, header.as_slice()) {
        Ok(()) => REPLY_HEADER_LEN,
        Err(_) => 0,
    }
}
