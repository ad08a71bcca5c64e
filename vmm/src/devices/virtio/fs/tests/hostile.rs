//! What a guest that attacks gets.

use super::client::*;
use crate::devices::virtio::VirtioDevice;
use crate::testing::Buffer;

/// Names that could mean another directory than the one given with them.
fn hostile_names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        "..",
        ".",
        "",
        "/",
        "/etc/passwd",
        "../victim",
        "../../../outside/victim",
        "../new",
        "sub/../../victim",
        "sub/file",
        "sub/",
        "./file",
        "link/victim",
    ]
    .iter()
    .map(|name| name.as_bytes().to_vec())
    .collect();
    names.push(vec![b'a'; 256]);
    names.push(vec![b'a'; 4000]);
    names
}

fn attacked() -> (Client, u64) {
    let mut guest = Client::new(vec![rootfs(), volume()]);
    std::fs::create_dir(guest.host.path("share/c1/rootfs/sub")).unwrap();
    guest.host.write("share/c1/rootfs/sub/file", "");
    guest.host.write("share/c1/rootfs/file", "");
    let link = guest.host.path("share/c1/rootfs/link");
    std::os::unix::fs::symlink(guest.host.path("outside"), link).unwrap();
    let dir = guest.walk("c1/rootfs").unwrap().node;
    (guest, dir)
}

#[test]
fn no_operation_takes_a_name_that_leaves_its_directory() {
    let (mut guest, dir) = attacked();
    let file = guest.walk("c1/rootfs/file").unwrap().node;
    let before = guest.host.outside();
    for name in hostile_names() {
        let mut zero = name.clone();
        zero.push(0);
        let inside = cstr("inside");
        let pair = |first: &[u8], second: &[u8]| [first, second].concat();
        let with = |args: Vec<u8>, names: &[u8]| [args, names.to_vec()].concat();
        let requests = [
            (LOOKUP, zero.clone()),
            (MKDIR, with(words(&[0o755, 0]), &zero)),
            (MKNOD, with(words(&[libc::S_IFREG | 0o644, 0, 0, 0]), &zero)),
            (MKNOD, with(words(&[libc::S_IFIFO | 0o644, 0, 0, 0]), &zero)),
            (
                CREATE,
                with(words(&[libc::O_CREAT as u32 | 1, 0o644, 0, 0]), &zero),
            ),
            (UNLINK, zero.clone()),
            (RMDIR, zero.clone()),
            (SYMLINK, pair(&zero, &cstr("/target"))),
            (LINK, with(longs(&[file]), &zero)),
            (RENAME, with(longs(&[dir]), &pair(&zero, &inside))),
            (RENAME, with(longs(&[dir]), &pair(&cstr("file"), &zero))),
            (RENAME2, with(longs(&[dir, 0]), &pair(&zero, &inside))),
            (RENAME2, with(longs(&[dir, 0]), &pair(&cstr("file"), &zero))),
            (RENAME2, with(longs(&[dir, 2]), &pair(&cstr("file"), &zero))),
        ];
        for (opcode, body) in requests {
            let result = guest.ask(opcode, dir, &body);
            let name = String::from_utf8_lossy(&name);
            assert!(
                matches!(result, Err(libc::EINVAL | libc::ENAMETOOLONG)),
                "operation {opcode} with {name:?}: {result:?}"
            );
        }
    }
    assert_eq!(guest.host.outside(), before);
    let victim = std::fs::read(guest.host.path("outside/victim")).unwrap();
    assert_eq!(victim, b"untouched");
    assert!(!guest.host.path("share/c1/rootfs/inside").exists());
}

#[test]
fn a_nul_ends_a_name() {
    let (mut guest, dir) = attacked();
    let mut body = words(&[0o755, 0]);
    body.extend(b"made\0/../../evil\0");
    let before = guest.host.outside();
    // Taken up to the NUL or refused.
    if guest.ask(MKDIR, dir, &body).is_ok() {
        assert!(guest.host.path("share/c1/rootfs/made").is_dir());
    }
    assert_eq!(guest.host.outside(), before);
    // And one without NUL is no name.
    assert_eq!(guest.ask(LOOKUP, dir, b"file"), Err(libc::EINVAL));
}

#[test]
fn symlinks_of_the_guest_are_not_followed() {
    let (mut guest, dir) = attacked();
    let link = guest.lookup(dir, "link").unwrap();
    assert_eq!(link.mode & libc::S_IFMT, libc::S_IFLNK);
    assert!(guest.lookup(link.node, "victim").is_err());
    assert!(guest.open(link.node, libc::O_RDONLY).is_err());
    let mut body = words(&[0o755, 0]);
    body.extend(cstr("evil"));
    assert!(guest.ask(MKDIR, link.node, &body).is_err());
    assert!(!guest.host.path("outside/evil").exists());
    // O_PATH would make open(2) ignore O_CREAT and O_EXCL, and follow the link.
    let flags = (libc::O_CREAT | libc::O_PATH) as u32;
    let mut body = words(&[flags, 0o644, 0, 0]);
    body.extend(cstr("link"));
    assert!(guest.ask(CREATE, dir, &body).is_err());
}

#[test]
fn exports_are_closed_to_each_other() {
    let (mut guest, dir) = attacked();
    guest.host.write("share/c1/volume/file", "");
    let other = guest.walk("c1/volume").unwrap().node;
    let file = guest.walk("c1/volume/file").unwrap().node;
    let names = [cstr("file"), cstr("moved")].concat();
    let rename = [longs(&[other]), names].concat();
    assert_eq!(guest.ask(RENAME, dir, &rename), Err(libc::EXDEV));
    let link = [longs(&[file]), cstr("linked")].concat();
    assert_eq!(guest.ask(LINK, dir, &link), Err(libc::EXDEV));
    // Another export's node number under this export's index means nothing.
    let mixed = (dir >> 56) << 56 | (file & ((1 << 56) - 1));
    assert_error_or_short(guest.ask(GETATTR, mixed, &[0; 16]));
}

#[test]
fn nodes_and_handles_out_of_thin_air_are_errors() {
    let (mut guest, dir) = attacked();
    for node in [
        0,
        2,
        99,
        u64::MAX,
        200 << 56 | 1,
        (1 << 56) | 12345,
        dir ^ 2,
    ] {
        assert!(guest.lookup(node, "file").is_err(), "{node:#x}");
        assert!(guest.open(node, libc::O_RDWR).is_err(), "{node:#x}");
        assert!(guest.read(node, 1, 10).is_err(), "{node:#x}");
    }
    let file = guest.walk("c1/rootfs/file").unwrap().node;
    for handle in [0, 1, 7, u64::MAX] {
        assert!(guest.read(file, handle, 10).is_err());
        assert!(guest.ask(READDIR, dir, &io_args(handle, 0, 100)).is_err());
    }
}

/// A sane errno, or a reply that fits the room there was.
fn assert_error_or_short(result: Result<Vec<u8>, i32>) {
    match result {
        Ok(reply) => assert!(reply.len() <= 8192 - 16),
        Err(errno) => assert!((1..=133).contains(&errno), "{errno}"),
    }
}

#[test]
fn huge_sizes_and_offsets_are_errors_or_small() {
    let (mut guest, dir) = attacked();
    let handle = u64_at(&guest.ask(OPENDIR, dir, &words(&[0, 0])).unwrap(), 0);
    for opcode in [READDIR, READDIRPLUS] {
        for (node, handle) in [(dir, handle), (ROOT, 0)] {
            for offset in [0, 1, u64::MAX - 1, u64::MAX] {
                for len in [0, 1, 4096, u32::MAX] {
                    assert_error_or_short(guest.ask(opcode, node, &io_args(handle, offset, len)));
                }
            }
        }
    }
    let file = guest.walk("c1/rootfs/file").unwrap().node;
    let handle = guest.open(file, libc::O_RDWR).unwrap();
    for (offset, len) in [(u64::MAX, 1), (1 << 63, 10), (0, u32::MAX)] {
        assert_error_or_short(guest.ask(READ, file, &io_args(handle, offset, len)));
        assert_error_or_short(guest.ask(WRITE, file, &io_args(handle, offset, len)));
    }
    for opcode in [GETXATTR, LISTXATTR] {
        let mut body = words(&[u32::MAX, 0]);
        body.extend(cstr("user.x"));
        assert_error_or_short(guest.ask(opcode, file, &body));
    }
    let count = words(&[u32::MAX, 0]);
    let mut forget = words(&[48, BATCH_FORGET, 1, 0]);
    forget.extend(longs(&[0]));
    forget.extend(words(&[0; 4]));
    forget.extend(count);
    assert_eq!(guest.exchange(&forget, 100), None);
    guest.walk("c1/rootfs/file").unwrap();
}

#[test]
fn every_operation_survives_too_little_of_everything() {
    let (mut guest, dir) = attacked();
    for opcode in (0..70).chain([4096, 1_048_576, 436_207_616, u32::MAX]) {
        for len in [0u32, 1, 39, 40, 41, 48, 100, 1 << 20, u32::MAX] {
            for real in [0, 8, 39, 40, 41, 64, 200] {
                for room in [0, 15, 16, 17, 200] {
                    let mut request = words(&[len, opcode, 5, 0]);
                    request.extend(longs(&[dir]));
                    request.resize(real, 0);
                    guest.exchange(&request, room);
                }
            }
            // Buffers are never given back by the mock driver.
            guest.fs.reset();
            guest.activate();
        }
    }
    guest.init();
    guest.walk("c1/rootfs/file").unwrap();
}

#[test]
fn a_request_of_too_many_bytes_is_refused() {
    let (mut guest, dir) = attacked();
    let mut request = words(&[40, GETATTR, 5, 0]);
    request.extend(longs(&[dir]));
    request.resize(40, 0);
    let header = guest.queue.readable(&request);
    let big = Buffer {
        address: 0x40_0000,
        len: 2 << 20,
        writable: true,
    };
    guest.queue.add(&[header, big]);
    guest.queue.kick().write(1).unwrap();
    assert_eq!(guest.wait().1, 16);
    let reply = guest.queue.bytes(Buffer { len: 16, ..big });
    assert_eq!(reply[4..8], (-libc::E2BIG).to_le_bytes());
}

#[test]
fn a_reset_in_the_middle_of_requests_is_clean() {
    let (mut guest, dir) = attacked();
    for round in 0..50 {
        for _ in 0..round {
            let mut request = words(&[45, LOOKUP, 5, 0]);
            request.extend(longs(&[dir]));
            request.extend(words(&[0; 4]));
            request.extend(cstr("file"));
            let parts = [guest.queue.readable(&request), guest.queue.writable(200)];
            guest.queue.add(&parts);
            guest.queue.kick().write(1).unwrap();
        }
        guest.fs.reset();
        guest.activate();
        guest.init();
    }
    guest.walk("c1/rootfs/file").unwrap();
}
