//! What the device offers, and what it makes of the driver's answer.
//!
//! Nothing is offered that the host's kernel would not do. Towards the host (`HOST_*`,
//! `CSUM`) the tap takes any header it knows; towards the guest (`GUEST_*`) it is told by
//! TUNSETOFFLOAD what the driver accepted, and finishes checksums and cuts segments for
//! everything else. A kernel that knows a kind of segment knows it both ways, so asking
//! for one tells about the other.

use std::io;

use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6, c_uint};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};

/// TCP in segments, as taps do since Linux 2.6.
const TCP: c_uint = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
/// UDP in segments; a tap since Linux 6.2 does both or neither.
const UDP: c_uint = TUN_F_USO4 | TUN_F_USO6;

/// Offloads of the tap, with the bits to offer for each.
const OFFERS: [(c_uint, &[u32]); 5] = [
    (TUN_F_CSUM, &[VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM]),
    (
        TUN_F_TSO4,
        &[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_GUEST_TSO4],
    ),
    (
        TUN_F_TSO6,
        &[VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_GUEST_TSO6],
    ),
    (
        TUN_F_TSO_ECN,
        &[VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_GUEST_ECN],
    ),
    (
        UDP,
        &[
            VIRTIO_NET_F_HOST_USO,
            VIRTIO_NET_F_GUEST_USO4,
            VIRTIO_NET_F_GUEST_USO6,
        ],
    ),
];

/// Whether `features` has the bit of that number.
pub fn has(features: u64, bit: u32) -> bool {
    features & (1 << bit) != 0
}

/// Finds out by `set` what a link can leave to the guest, and leaves it at nothing.
pub fn probe(set: impl Fn(c_uint) -> io::Result<()>) -> io::Result<c_uint> {
    let known = [TCP | UDP, TCP]
        .into_iter()
        .find(|offload| set(*offload).is_ok());
    set(0)?;
    Ok(known.unwrap_or(0))
}

/// The feature bits of a device whose link knows `offload`.
pub fn offered(offload: c_uint) -> u64 {
    let always = [VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU, VIRTIO_NET_F_MRG_RXBUF];
    OFFERS
        .iter()
        .filter(|(needs, _)| offload & needs == *needs)
        .flat_map(|(_, bits)| bits.iter())
        .chain(&always)
        .fold(0, |features, bit| features | 1 << bit)
}

/// What the link may leave to a driver that accepted `features`.
///
/// Bits without those they need (virtio 1.2, 5.1.3.1) are as good as not accepted; the tap
/// would refuse them.
pub fn accepted(features: u64) -> c_uint {
    if !has(features, VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let mut offload = TUN_F_CSUM;
    for (bit, flag) in [
        (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
        (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
    ] {
        if has(features, bit) {
            offload |= flag;
        }
    }
    if offload != TUN_F_CSUM && has(features, VIRTIO_NET_F_GUEST_ECN) {
        offload |= TUN_F_TSO_ECN;
    }
    if has(features, VIRTIO_NET_F_GUEST_USO4) && has(features, VIRTIO_NET_F_GUEST_USO6) {
        offload |= UDP;
    }
    offload
}
