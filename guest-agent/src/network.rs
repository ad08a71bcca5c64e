//! The pod's network: the guest's devices, and the changes to them that the shim asks for.
//!
//! The shim knows what the pod's network namespace holds and words it as requests of
//! rtnetlink(7), packet filters as transactions of nfnetlink, and kernel parameters; the agent
//! hands them to the kernel, one by one, and reads each answer.
//! The kernel carries a request out while it is sent: nothing here ever waits.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use agent_protocol::agent::{Link, NetworkChange, NetworkRefusal};
use nix::errno::Errno;
use nix::sys::socket::sockopt::SndBufForce;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
};

use crate::error::Error;
use crate::sys;

/// Where the kernel lists its network devices.
const DEVICES: &str = "/sys/class/net";
/// Where it keeps its parameters.
const PARAMETERS: &str = "/proc/sys";
/// Room for an answer: an error number, the header it answers, a text.
const ANSWER: usize = 4096;
/// Length of a message's header (`struct nlmsghdr`) and of an attribute's.
const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// Type of the message that acknowledges or refuses.
const NLMSG_ERROR: u16 = 2;
/// The attribute that says in words why a request was refused.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// The devices, without lo, ordered by their indexes.
pub fn links() -> Result<Vec<Link>, Error> {
    let failed = |error: io::Error| Error::io("listing the network devices", &error);
    let mut links = Vec::new();
    for device in fs::read_dir(DEVICES).map_err(failed)? {
        let device = device.map_err(failed)?;
        // A container's own devices come and go meanwhile.
        let Ok(link) = link(&device.path()) else {
            continue;
        };
        if link.name != "lo" {
            links.push(link);
        }
    }
    links.sort_by_key(|link| link.index);
    Ok(links)
}

/// The device that sysfs shows at `device`.
pub fn link(device: &Path) -> io::Result<Link> {
    let name = device.file_name().unwrap_or_default();
    Ok(Link {
        name: name.to_string_lossy().into_owned(),
        index: read(device, "ifindex", |text| text.parse().ok())?,
        mac: read(device, "address", mac)?,
        ..Default::default()
    })
}

fn read<T>(device: &Path, file: &str, parse: impl FnOnce(&str) -> Option<T>) -> io::Result<T> {
    let text = fs::read_to_string(device.join(file))?;
    parse(text.trim_end()).ok_or(io::ErrorKind::InvalidData.into())
}

/// Bytes as the kernel writes an address: `aa:bb:cc:dd:ee:ff`.
fn mac(text: &str) -> Option<Vec<u8>> {
    let bytes = text.split(':').filter(|byte| !byte.is_empty());
    bytes
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect()
}

/// Brings up lo.
pub fn loopback_up() -> Result<(), Error> {
    const LENGTH: u32 = 32;
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
    let mut request = Vec::new();
    // `struct nlmsghdr`: length, type, flags, sequence number and port.
    request.extend(LENGTH.to_ne_bytes());
    request.extend(libc::RTM_SETLINK.to_ne_bytes());
    request.extend((flags as u16).to_ne_bytes());
    request.extend([0; 8]);
    // `struct ifinfomsg`: family and type, index, flags, which of them to change.
    request.extend([0; 4]);
    request.extend(1_u32.to_ne_bytes());
    request.extend([up, up].concat());
    let mut kernel = Kernel::open(SockProtocol::NetlinkRoute).map_err(broken)?;
    kernel.ask(&request)?.map_err(|refusal| Error::Network {
        what: "link lo, up".to_owned(),
        errno: refusal.errno,
        text: refusal.text,
    })
}

/// Has the kernel carry out the changes in order. Returns those that it refused.
pub fn configure(changes: &[NetworkChange]) -> Result<Vec<NetworkRefusal>, Error> {
    let mut kernel = Kernel::open(SockProtocol::NetlinkRoute).map_err(broken)?;
    let mut refusals = Vec::new();
    for (number, change) in (0..).zip(changes) {
        let done = if change.parameter {
            set_parameter(&change.request)
        } else if change.netfilter {
            transact(&change.request)
        } else {
            kernel.ask(&change.request)?
        };
        if let Err(refusal) = done {
            let error = Error::Network {
                what: change.what.clone(),
                errno: refusal.errno,
                text: refusal.text,
            };
            refusals.push(NetworkRefusal {
                change: number,
                errno: refusal.errno as i32,
                text: error.to_string(),
                message: refusal.message,
                ..Default::default()
            });
        }
    }
    Ok(refusals)
}

/// Writes a kernel parameter: its file below [`PARAMETERS`], an equals sign and its value.
fn set_parameter(request: &[u8]) -> Result<(), Refusal> {
    let (file, value) = str::from_utf8(request)
        .ok()
        .and_then(|text| text.split_once('='))
        .ok_or_else(|| Refusal::of(Errno::EINVAL))?;
    let opened = File::options()
        .write(true)
        .open(Path::new(PARAMETERS).join(file));
    let written = opened.and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|error| Refusal::of(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))
}

/// The kernel's word that a request was not carried out.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    /// The number of the message.
    message: u32,
    errno: Errno,
    /// The kernel's explanation, if it has one.
    text: String,
}

impl Refusal {
    /// Of the whole request.
    fn of(errno: Errno) -> Self {
        Self {
            message: 0,
            errno,
            text: String::new(),
        }
    }
}

/// A conversation with the kernel's network.
struct Kernel {
    socket: OwnedFd,
    answer: [u8; ANSWER],
}

fn broken(errno: Errno) -> Error {
    Error::System {
        what: "talking to the kernel's network",
        errno,
    }
}

impl Kernel {
    fn open(protocol: SockProtocol) -> nix::Result<Self> {
        // Non-blocking: should an answer be missing, that is an error and no wait.
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            protocol,
        )?;
        sys::explain_netlink_errors(socket.as_fd())?;
        let answer = [0; ANSWER];
        Ok(Self { socket, answer })
    }

    /// Has it carry out a request; the inner error is its refusal.
    fn ask(&mut self, request: &[u8]) -> Result<Result<(), Refusal>, Error> {
        let socket = self.socket.as_raw_fd();
        send(socket, request, MsgFlags::empty()).map_err(broken)?;
        let length = recv(socket, &mut self.answer, MsgFlags::empty()).map_err(broken)?;
        Ok(acknowledged(self.answer.get(..length).unwrap_or_default()))
    }
}

/// Has the kernel carry out a transaction of nfnetlink, or tells why not: by its first refusal. Of
/// what it does not refuse it says nothing.
fn transact(request: &[u8]) -> Result<(), Refusal> {
    let mut kernel = Kernel::open(SockProtocol::NetlinkNetFilter).map_err(Refusal::of)?;
    // It is sent as a whole.
    setsockopt(&kernel.socket, SndBufForce, &request.len()).map_err(Refusal::of)?;
    let socket = kernel.socket.as_raw_fd();
    send(socket, request, MsgFlags::empty()).map_err(Refusal::of)?;
    let mut first = Ok(());
    loop {
        match recv(socket, &mut kernel.answer, MsgFlags::empty()) {
            Ok(length) => {
                let answer = kernel.answer.get(..length).unwrap_or_default();
                first = first.and_then(|()| acknowledged(answer));
            }
            Err(Errno::EAGAIN) => return first,
            // Some refusals had no room behind the first ones, or there was no room for any.
            Err(Errno::ENOBUFS) => first = first.and(Err(Refusal::of(Errno::ENOBUFS))),
            Err(errno) => return first.and(Err(Refusal::of(errno))),
        }
    }
}

/// Reads the answer to a request.
fn acknowledged(answer: &[u8]) -> Result<(), Refusal> {
    let message = answer.get(8..12).and_then(|bytes| bytes.try_into().ok());
    let refused = |errno, text| Refusal {
        message: message.map_or(0, u32::from_ne_bytes),
        errno,
        text,
    };
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok());
    let code = answer.get(HEADER..HEADER + 4);
    let code = code.and_then(|bytes| bytes.try_into().ok());
    match (kind.map(u16::from_ne_bytes), code.map(i32::from_ne_bytes)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => {
            let attributes = answer.get(HEADER + 4 + HEADER..).unwrap_or_default();
            let text = explanation(attributes).unwrap_or_default();
            Err(refused(Errno::from_raw(code.saturating_neg()), text))
        }
        _ => Err(refused(Errno::EPROTO, String::new())),
    }
}

fn explanation(mut attributes: &[u8]) -> Option<String> {
    loop {
        let (header, _) = attributes.split_at_checked(ATTRIBUTE_HEADER)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = attributes.get(ATTRIBUTE_HEADER..length)?;
        if u16::from_ne_bytes([header[2], header[3]]) == NLMSGERR_ATTR_MSG {
            let text = String::from_utf8_lossy(value);
            return Some(text.trim_end_matches('\0').to_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u16, code: i32, attributes: &[u8]) -> Vec<u8> {
        let mut answer = vec![0; HEADER];
        answer[4..6].copy_from_slice(&kind.to_ne_bytes());
        answer[8] = 7;
        answer.extend(code.to_ne_bytes());
        answer.extend([0; HEADER]);
        answer.extend(attributes);
        answer
    }

    #[test]
    fn an_answer_is_read_with_its_explanation() {
        let refusal = |errno, text: &str| Refusal {
            message: 7,
            errno,
            text: text.to_owned(),
        };
        assert_eq!(acknowledged(&answer(NLMSG_ERROR, 0, &[])), Ok(()));
        let refused = acknowledged(&answer(NLMSG_ERROR, -libc::EEXIST, &[]));
        assert_eq!(refused, Err(refusal(Errno::EEXIST, "")));
        // Another attribute of one byte and its padding, then the text.
        let mut attributes = vec![5, 0, 9, 0, 7, 0, 0, 0];
        attributes.extend([7, 0, 1, 0, b'n', b'o', 0]);
        let refused = acknowledged(&answer(NLMSG_ERROR, -libc::EINVAL, &attributes));
        assert_eq!(refused, Err(refusal(Errno::EINVAL, "no")));
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_an_error() {
        let endless = [0, 0, 9, 0];
        assert_eq!(explanation(&endless), None);
        let whole = answer(NLMSG_ERROR, -libc::EINVAL, &[200, 0, 1, 0]);
        for length in 0..whole.len() {
            assert!(acknowledged(&whole[..length]).is_err(), "{length}");
        }
        assert!(acknowledged(&answer(3, 0, &[])).is_err());
    }

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        assert_eq!(mac("02:00:0a:58:00:ff"), Some(vec![2, 0, 10, 88, 0, 255]));
        assert_eq!(mac(""), Some(Vec::new()));
        assert_eq!(mac("02:zz"), None);
    }

    #[test]
    fn lo_is_not_among_the_devices() {
        let links = links().unwrap();
        assert!(links.iter().all(|link| link.name != "lo" && link.index > 1));
    }

    #[test]
    fn lo_is_brought_up() {
        let inside = || {
            if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
                eprintln!("skipped: needs root");
                return;
            }
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            assert!(std::net::TcpStream::connect(address).is_err());
            loopback_up().unwrap();
            assert!(std::net::TcpStream::connect(address).is_ok());
        };
        std::thread::spawn(inside).join().unwrap();
    }

    #[test]
    fn a_transaction_is_carried_out_or_its_first_refusal_told() {
        let message = |kind: u16, number: u32, rest: &[u8]| {
            let mut message = (HEADER as u32 + rest.len() as u32).to_ne_bytes().to_vec();
            message.extend(kind.to_ne_bytes());
            message.extend([1, 4]);
            message.extend(number.to_ne_bytes());
            message.extend([0; 4]);
            message.extend(rest);
            message
        };
        // Begin, one request of nftables for the table `t` of family inet, end.
        let transaction = move |kind: u16| NetworkChange {
            what: "table".to_owned(),
            request: [
                message(0x10, 0, &[0, 0, 0, 10]),
                message(10 << 8 | kind, 1, &[1, 0, 0, 0, 6, 0, 1, 0, b't', 0, 0, 0]),
                message(0x11, 2, &[0, 0, 0, 10]),
            ]
            .concat(),
            netfilter: true,
            ..Default::default()
        };
        let inside = move || {
            if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
                eprintln!("skipped: needs root");
                return;
            }
            // NFT_MSG_DELTABLE, NFT_MSG_NEWTABLE and the former again.
            let changes = [2, 0, 2].map(transaction);
            match configure(&changes) {
                Ok(refusals) => {
                    assert_eq!(refusals.len(), 1);
                    let refusal = &refusals[0];
                    assert_eq!((refusal.change, refusal.message), (0, 1));
                    assert_eq!(refusal.errno, libc::ENOENT);
                }
                Err(error) => eprintln!("skipped: {error}"),
            }
        };
        std::thread::spawn(inside).join().unwrap();
    }

    #[test]
    fn a_parameter_is_written_or_refused() {
        let change = |request: &[u8]| NetworkChange {
            what: "it".into(),
            request: request.to_owned(),
            parameter: true,
            ..Default::default()
        };
        let inside = move || {
            if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
                eprintln!("skipped: needs root");
                return;
            }
            let changes = [
                change(b"net/core/somaxconn=500"),
                change(b"net/core/never_there=1"),
                change(b"net/core/somaxconn=many"),
                change(b"net/core/somaxconn"),
                change(&[0xff]),
            ];
            let refusals = configure(&changes).unwrap();
            let refused: Vec<_> = refusals.iter().map(|one| (one.change, one.errno)).collect();
            let invalid = libc::EINVAL;
            assert_eq!(refused[0], (1, libc::ENOENT));
            assert_eq!(refused[1..], [(2, invalid), (3, invalid), (4, invalid)]);
            let value = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
            assert_eq!(value, "500\n");
        };
        std::thread::spawn(inside).join().unwrap();
    }

    #[test]
    fn the_kernel_refuses_what_is_no_request() {
        let what = "nonsense";
        let mut request = vec![0; HEADER];
        request[..4].copy_from_slice(&16u32.to_ne_bytes());
        // A request of a type that does not exist; it asks for an acknowledgement.
        request[4..6].copy_from_slice(&0x7fff_u16.to_ne_bytes());
        request[6] = 5;
        let change = NetworkChange {
            what: what.into(),
            request,
            ..Default::default()
        };
        let refusals = configure(&[change.clone(), change]).unwrap();
        let numbers: Vec<u32> = refusals.iter().map(|refusal| refusal.change).collect();
        assert_eq!(numbers, [0, 1]);
        assert_eq!(refusals[1].errno, libc::EOPNOTSUPP);
        assert!(refusals[1].text.contains(what), "{}", refusals[1].text);
        assert_eq!(configure(&[]).unwrap(), []);
    }
}
