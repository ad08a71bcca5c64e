//! With the kernel of this machine, in a network namespace of the test's own.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;

use nix::sched::{CloneFlags, unshare};

use super::*;

/// Runs a test in a namespace with lo up, with its loopback taken over; where the user or the
/// kernel cannot have that, not at all.
fn taken_over(test: impl FnOnce(Loopback) + Send + 'static) {
    let inside = || {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            return eprintln!("skipped: needs root");
        }
        up(&mut Netlink::open().unwrap()).unwrap();
        match take_over() {
            Ok(loopback) => test(loopback),
            Err(error) => eprintln!("skipped: {error}"),
        }
    };
    thread::spawn(inside).join().unwrap();
}

/// The connection that arrives by the listener of its family.
fn accepted(loopback: &Loopback, dialled: SocketAddr) -> TcpStream {
    let mut listeners = loopback.listeners.iter();
    let own = |one: &&TcpListener| one.local_addr().unwrap().is_ipv4() == dialled.is_ipv4();
    listeners.find(own).unwrap().accept().unwrap().0
}

#[test]
fn instructions_are_encoded_as_the_kernel_reads_them() {
    // r2 = *(u32 *)(r6 + 12)
    let load = instruction(op::LOAD_WORD, 2, 6, 12, 0);
    assert_eq!(load.to_ne_bytes(), [0x61, 0x62, 12, 0, 0, 0, 0, 0]);
    // if r2 != -2 goto -1
    let jump = instruction(op::JUMP_NOT_EQUAL_K, 2, 0, -1, -2);
    let bytes = [0x55, 2, 0xff, 0xff, 0xfe, 0xff, 0xff, 0xff];
    assert_eq!(jump.to_ne_bytes(), bytes);
}

#[test]
fn every_jump_ends_at_the_lookup_or_at_the_end() {
    let map = fs::File::open("/dev/null").unwrap().into();
    let code = program(&map);
    assert_eq!(code.len(), OUT + 2);
    for (at, instruction) in code.iter().enumerate() {
        let [opcode, _, low, high, ..] = instruction.to_ne_bytes();
        if [op::JUMP_EQUAL_K, op::JUMP_NOT_EQUAL_K].contains(&opcode) {
            let target = at + 1 + usize::from(u16::from_ne_bytes([low, high]));
            assert!([LOOKUP, OUT].contains(&target), "{at} jumps to {target}");
        }
    }
    assert_eq!(code[LOOKUP].to_ne_bytes()[0], op::LOAD_IMMEDIATE);
}

#[test]
fn any_port_of_loopback_is_ours_and_tells_what_was_dialled() {
    taken_over(|loopback| {
        for dialled in ["127.0.0.1:1", "127.9.8.7:65535", "[::1]:8080"] {
            let dialled: SocketAddr = dialled.parse().unwrap();
            if dialled.is_ipv6() && loopback.listeners.len() == 1 {
                continue;
            }
            let mut client = TcpStream::connect(dialled).unwrap();
            let mut server = accepted(&loopback, dialled);
            assert_eq!(server.local_addr().unwrap(), dialled);
            client.write_all(b"question").unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            let mut heard = String::new();
            server.read_to_string(&mut heard).unwrap();
            assert_eq!(heard, "question");
        }
    });
}

#[test]
fn other_addresses_and_other_protocols_go_their_way() {
    taken_over(|loopback| {
        let add = std::process::Command::new("ip")
            .args(["address", "add", "10.9.8.7/32", "dev", "lo"])
            .status();
        if add.is_ok_and(|status| status.success()) {
            assert!(TcpStream::connect("10.9.8.7:80").is_err());
            let server = TcpListener::bind("10.9.8.7:80").unwrap();
            TcpStream::connect("10.9.8.7:80").unwrap();
            server.accept().unwrap();
        }
        let receiver = UdpSocket::bind("127.0.0.1:53").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"datagram", "127.0.0.1:53").unwrap();
        assert_eq!(receiver.recv(&mut [0; 9]).unwrap(), 8);
        drop(loopback);
    });
}

#[test]
fn nothing_is_left() {
    taken_over(|loopback| {
        drop(loopback);
        assert!(TcpStream::connect("127.0.0.1:80").is_err());
        // And the port is anybody's.
        TcpListener::bind("127.0.0.1:80").unwrap();
        let sockets = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
        assert_eq!(sockets.lines().count(), 1, "{sockets}");
    });
}
