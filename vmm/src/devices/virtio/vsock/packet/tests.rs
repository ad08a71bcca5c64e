use super::*;

/// Memory cut into slices of the given lengths.
fn cut<'m>(bytes: &'m mut [u8], lens: &[usize]) -> Slices<'m> {
    let whole = VolatileSlice::from(bytes);
    let mut at = 0;
    let mut slices = Slices::new();
    for len in lens {
        slices.push(whole.subslice(at, *len).unwrap());
        at += len;
    }
    slices
}

fn header(len: u32) -> Header {
    Header {
        src_cid: 3,
        dst_cid: 2,
        src_port: 0x0102_0304,
        dst_port: 0x8005_0607,
        len,
        kind: TYPE_STREAM,
        op: op::RW,
        flags: 0xf0f1_f2f3,
        buf_alloc: 0x1122_3344,
        fwd_cnt: u32::MAX,
    }
}

fn read(slices: &[VolatileSlice<'_>]) -> Vec<u8> {
    slices
        .iter()
        .flat_map(|slice| {
            let mut bytes = vec![0; slice.len()];
            slice.copy_to(&mut bytes);
            bytes
        })
        .collect()
}

#[test]
fn the_header_has_the_layout_of_the_specification() {
    let bytes = header(7).to_bytes();
    assert_eq!(bytes[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[8..16], [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[16..20], [4, 3, 2, 1]);
    assert_eq!(bytes[20..24], [7, 6, 5, 0x80]);
    assert_eq!(bytes[24..28], [7, 0, 0, 0]);
    assert_eq!(bytes[28..32], [1, 0, 5, 0]);
    assert_eq!(bytes[32..36], [0xf3, 0xf2, 0xf1, 0xf0]);
    assert_eq!(bytes[36..40], [0x44, 0x33, 0x22, 0x11]);
    assert_eq!(bytes[40..], [0xff; 4]);
    assert_eq!(Header::from_bytes(&bytes), header(7));
}

#[test]
fn a_packet_is_the_same_however_it_is_cut() {
    let payload = b"what the guest says";
    let len = payload.len();
    let total = HEADER_LEN + len;
    let cuts: &[&[usize]] = &[
        &[total],
        &[HEADER_LEN, len],
        &[HEADER_LEN + 3, len - 3],
        &[HEADER_LEN - 1, 1, len],
        &[1, HEADER_LEN - 2, 2, len - 1],
        &[HEADER_LEN, 0, 5, 0, len - 5],
        &[7, 7, 7, 7, 7, 7, 7, total - 49],
    ];
    for cut_lens in cuts {
        let mut bytes = header(len as u32).to_bytes().to_vec();
        bytes.extend_from_slice(payload);
        let packet = TxPacket::from_slices(cut(&mut bytes, cut_lens)).unwrap();
        assert_eq!(packet.header, header(len as u32), "{cut_lens:?}");
        assert_eq!(read(&packet.payload), payload, "{cut_lens:?}");
    }
}

#[test]
fn bytes_after_the_payload_are_ignored() {
    let mut bytes = header(2).to_bytes().to_vec();
    bytes.extend_from_slice(b"yes and no");
    let packet = TxPacket::from_slices(cut(&mut bytes, &[50, 4])).unwrap();
    assert_eq!(read(&packet.payload), b"ye");
}

#[test]
fn a_chain_shorter_than_it_says_is_no_packet() {
    for (len, have) in [(0, 43), (0, 0), (1, 44), (u32::MAX, 100)] {
        let mut bytes = header(len).to_bytes().to_vec();
        bytes.resize(have, 0);
        assert!(TxPacket::from_slices(cut(&mut bytes, &[have])).is_none());
    }
}

#[test]
fn a_receive_buffer_is_filled_however_it_is_cut() {
    let cuts: &[&[usize]] = &[&[60], &[44, 16], &[20, 20, 20], &[43, 1, 1, 15], &[0, 60]];
    for cut_lens in cuts {
        let mut bytes = vec![0; 60];
        let buffer = RxBuffer::from_slices(cut(&mut bytes, cut_lens)).unwrap();
        let room: usize = buffer.payload().iter().map(VolatileSlice::len).sum();
        assert_eq!(room, 16, "{cut_lens:?}");
        for slice in buffer.payload() {
            slice.copy_from(&vec![b'x'; slice.len()]);
        }
        assert_eq!(buffer.finish(header(16)), 60);
        assert_eq!(bytes[..44], header(16).to_bytes());
        assert_eq!(bytes[44..], [b'x'; 16]);
    }
}

#[test]
fn a_receive_buffer_without_room_for_a_byte_is_refused() {
    for len in [0, 43, 44] {
        let mut bytes = vec![0; len];
        assert!(RxBuffer::from_slices(cut(&mut bytes, &[len])).is_none());
    }
}

impl<'m> RxBuffer<'m> {
    /// A buffer on plain memory, for the tests of the muxer.
    pub fn on(bytes: &'m mut [u8]) -> Self {
        Self::from_slices(vec![VolatileSlice::from(bytes)]).unwrap()
    }
}

#[test]
fn memory_that_runs_over_the_end_of_ram_is_none() {
    let mem = Ram::with_room(2 << 20);
    let collected = |address, len| {
        let descriptor = Descriptor::new(address, len, 0, 0);
        collect(&mem, std::iter::once(descriptor)).map(|slices| slices.len())
    };
    let end = (1 << 32) + (2 << 20);
    assert_eq!(collected(end - 4096, 4096), Some(1));
    assert_eq!(collected(end - 4096, 4097), None);
    assert_eq!(collected(end, 1), None);
    assert_eq!(collected(u64::MAX, 0), Some(0), "nothing, anywhere");
}
