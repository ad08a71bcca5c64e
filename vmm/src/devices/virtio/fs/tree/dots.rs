//! The entries `.` and `..` of every directory, which POSIX wants listed and the
//! passthrough leaves out. They come first, and the host's listing follows.

use std::io;

use fuse_backend_rs::api::filesystem::DirEntry;

/// The names, each with the offset at which a listing goes on after it. A host's file
/// system counts its offsets from zero or hashes names; these are the last ones below
/// the largest, which ext4 keeps for the end.
const DOTS: [(&[u8], u64); 2] = [(b".", i64::MAX as u64 - 2), (b"..", i64::MAX as u64 - 1)];
/// What FUSE servers tell of an inode whose number they do not know (libfuse's
/// `FUSE_UNKNOWN_INO`).
const UNKNOWN_INODE: u64 = 0xffff_ffff;

/// Adds those of the two that are due at `offset` and gives the offset at which the
/// host's listing goes on; `None` if the reply is full before that. `inode` is the
/// directory's number.
///
/// # Errors
/// What `add` gave.
pub fn list(
    offset: u64,
    inode: u64,
    add: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
) -> io::Result<Option<u64>> {
    let due = match DOTS.iter().position(|(_, after)| *after == offset) {
        _ if offset == 0 => &DOTS[..],
        Some(last) => &DOTS[last + 1..],
        None => return Ok(Some(offset)),
    };
    for (name, after) in due {
        let entry = DirEntry {
            ino: if *name == b"." { inode } else { UNKNOWN_INODE },
            offset: *after,
            type_: u32::from(libc::DT_DIR),
            name,
        };
        if add(entry)? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names listed from `offset` with room for `room` of them, the offset after the
    /// last, and where the host's listing goes on.
    fn listed(offset: u64, room: usize) -> (Vec<String>, u64, Option<u64>) {
        let (mut names, mut after) = (Vec::new(), offset);
        let mut add = |entry: DirEntry| {
            if names.len() == room {
                return Ok(0);
            }
            names.push(String::from_utf8(entry.name.to_vec()).unwrap());
            after = entry.offset;
            Ok(32)
        };
        let on = list(offset, 7, &mut add).unwrap();
        (names, after, on)
    }

    #[test]
    fn both_come_first_whatever_the_room() {
        let (names, _, on) = listed(0, 9);
        assert_eq!((names, on), (vec![".".into(), "..".into()], Some(0)));
        let (names, after, on) = listed(0, 1);
        assert_eq!((names, on), (vec![".".into()], None));
        let (names, after, on) = listed(after, 1);
        assert_eq!((names, on), (vec!["..".into()], Some(0)));
        let (names, _, on) = listed(after, 9);
        assert_eq!((names, on), (vec![], Some(0)));
    }

    #[test]
    fn the_hosts_offsets_are_the_hosts() {
        for offset in [1, 4096, i64::MAX as u64] {
            let (names, _, on) = listed(offset, 9);
            assert_eq!((names, on), (vec![], Some(offset)));
        }
    }
}
