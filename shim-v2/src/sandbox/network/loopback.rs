//! The one hook into a pod's network namespace besides the redirects: who connects there to a
//! loopback address, as containerd does for `kubectl port-forward`, is let to sockets of ours,
//! whatever the port.
//!
//! A BPF program (`BPF_PROG_TYPE_SK_LOOKUP`, Linux 5.9) is asked for the listening socket of
//! each connection that arrives in the namespace, before the kernel looks for one by its port.
//! So no port is taken but one that the kernel chose, a program that somebody else has
//! attached is left alone, and all is gone when the descriptors are closed, however the shim
//! ends. Packets of the guest never meet it: tc has them before.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};

use super::netlink::{Netlink, NetlinkError};
use super::scan::LOOPBACK;
use crate::sys;

/// Opcodes: class, size or operation, and source (K: immediate, X: register), see
/// Documentation/bpf/standardization/instruction-set.rst.
mod op {
    pub const LOAD_BYTE: u8 = 0x71;
    pub const LOAD_WORD: u8 = 0x61;
    pub const LOAD_IMMEDIATE: u8 = 0x18;
    pub const STORE_WORD: u8 = 0x62;
    pub const ADD_K: u8 = 0x07;
    pub const MOVE_K: u8 = 0xb7;
    pub const MOVE_X: u8 = 0xbf;
    pub const JUMP_EQUAL_K: u8 = 0x15;
    pub const JUMP_NOT_EQUAL_K: u8 = 0x55;
    pub const CALL: u8 = 0x85;
    pub const EXIT: u8 = 0x95;
}

/// Offsets in `struct bpf_sk_lookup` of linux/bpf.h; addresses in the network's byte order.
mod ctx {
    pub const PROTOCOL: i16 = 12;
    pub const LOCAL_IP4: i16 = 40;
    pub const LOCAL_IP6: i16 = 44;
}

// Helpers of the kernel (`enum bpf_func_id`).
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

/// Marks the immediate of `LOAD_IMMEDIATE` as a map's descriptor (`BPF_PSEUDO_MAP_FD`).
const MAP_DESCRIPTOR: u8 = 1;
/// Go on: with the socket that was assigned, or by the port (`SK_PASS`).
const PASS: i32 = 1;
/// Where the key lies below the frame pointer.
const KEY: i16 = -4;

// Registers that calls leave alone; the others are arguments and results.
const CTX: u8 = 6;
const SOCKET: u8 = 7;
const FRAME: u8 = 10;

// Where jumps go, and when the first two do.
const LOOKUP: usize = 15;
const OUT: usize = 28;
const NOT_TCP: (u8, i32, usize) = (op::JUMP_NOT_EQUAL_K, libc::IPPROTO_TCP, OUT);
const IS_127: (u8, i32, usize) = (op::JUMP_EQUAL_K, 127, LOOKUP);

/// The namespace's loopback is ours as long as this lives.
#[derive(Debug)]
pub struct Loopback {
    /// Accept what is dialled on any port; a connection's own address is the dialled one.
    pub listeners: Vec<TcpListener>,
    _link: OwnedFd,
}

/// Takes over the loopback addresses of the calling thread's network namespace.
///
/// # Errors
/// Where the kernel has no such programs or refuses ours, see [`sys::attach_socket_lookup`],
/// and where lo is down.
pub fn take_over() -> io::Result<Loopback> {
    let mut listeners = vec![TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?];
    match TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        Ok(listener) => listeners.push(listener),
        // Nobody can dial it either.
        Err(error) => log::debug!("the pod's namespace has no ::1: {error}"),
    }
    let sockets: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
    let map = sys::socket_map(&sockets)?;
    let netns = File::open("/proc/thread-self/ns/net")?;
    let link = sys::attach_socket_lookup(netns.as_fd(), &program(&map))?;
    Ok(Loopback {
        listeners,
        _link: link,
    })
}

/// Brings up lo of a namespace of our own.
pub fn up(netlink: &mut Netlink) -> Result<(), NetlinkError> {
    let mut lo = LinkMessage::default();
    lo.header.index = LOOPBACK;
    lo.header.flags = LinkFlags::Up;
    lo.header.change_mask = LinkFlags::Up;
    netlink.change(0, RouteNetlinkMessage::SetLink(lo))
}

/// Assigns TCP connections to 127.0.0.0/8 the first socket of `map`, those to ::1 the second,
/// and lets everything else go its way.
fn program(map: &OwnedFd) -> Vec<u64> {
    let map = map.as_raw_fd();
    let mut code = vec![
        instruction(op::MOVE_X, CTX, 1, 0, 0),
        instruction(op::STORE_WORD, FRAME, 0, KEY, 0),
    ];
    load_and_jump(&mut code, op::LOAD_WORD, ctx::PROTOCOL, NOT_TCP);
    // Of a packet of the other version an address reads as 0.
    load_and_jump(&mut code, op::LOAD_BYTE, ctx::LOCAL_IP4, IS_127);
    code.push(instruction(op::STORE_WORD, FRAME, 0, KEY, 1));
    for (at, word) in (ctx::LOCAL_IP6..).step_by(4).zip([0, 0, 0, 1_i32.to_be()]) {
        let otherwise = (op::JUMP_NOT_EQUAL_K, word, OUT);
        load_and_jump(&mut code, op::LOAD_WORD, at, otherwise);
    }
    debug_assert_eq!(code.len(), LOOKUP);
    code.extend([
        // It takes two places.
        instruction(op::LOAD_IMMEDIATE, 1, MAP_DESCRIPTOR, 0, map),
        0,
        instruction(op::MOVE_X, 2, FRAME, 0, 0),
        instruction(op::ADD_K, 2, 0, 0, KEY.into()),
        instruction(op::CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        instruction(op::JUMP_EQUAL_K, 0, 0, 7, 0),
        instruction(op::MOVE_X, SOCKET, 0, 0, 0),
        instruction(op::MOVE_X, 1, CTX, 0, 0),
        instruction(op::MOVE_X, 2, SOCKET, 0, 0),
        instruction(op::MOVE_K, 3, 0, 0, 0),
        instruction(op::CALL, 0, 0, 0, SK_ASSIGN),
        instruction(op::MOVE_X, 1, SOCKET, 0, 0),
        instruction(op::CALL, 0, 0, 0, SK_RELEASE),
    ]);
    debug_assert_eq!(code.len(), OUT);
    code.push(instruction(op::MOVE_K, 0, 0, 0, PASS));
    code.push(instruction(op::EXIT, 0, 0, 0, 0));
    code
}

/// Loads a part of the context and jumps forward on it: by which comparison, with what, where.
fn load_and_jump(code: &mut Vec<u64>, load: u8, at: i16, jump: (u8, i32, usize)) {
    let (comparison, value, target) = jump;
    code.push(instruction(load, 2, CTX, at, 0));
    let distance = target - code.len() - 1;
    code.push(instruction(comparison, 2, 0, distance as i16, value));
}

/// `struct bpf_insn`: opcode, two registers of four bits, offset, immediate.
fn instruction(opcode: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    let [offset_0, offset_1] = offset.to_ne_bytes();
    let [imm_0, imm_1, imm_2, imm_3] = immediate.to_ne_bytes();
    let registers = source << 4 | destination;
    u64::from_ne_bytes([
        opcode, registers, offset_0, offset_1, imm_0, imm_1, imm_2, imm_3,
    ])
}

#[cfg(test)]
#[path = "loopback_test.rs"]
mod tests;
