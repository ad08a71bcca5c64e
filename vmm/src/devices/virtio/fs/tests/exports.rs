//! Exports that come and go under a mounted guest.

use std::path::Path;

use super::client::*;
use crate::config::CachePolicy;
use crate::devices::virtio::fs::ShareError;

#[test]
fn a_new_export_is_seen_at_once() {
    let mut guest = Client::new(vec![]);
    guest.host.write("share/c1/rootfs/file", "");
    assert_eq!(guest.walk("c1"), Err(libc::ENOENT));
    assert_eq!(guest.list(ROOT).unwrap(), [] as [&str; 0]);
    guest.fs.control().add(&rootfs()).unwrap();
    assert_eq!(guest.list(ROOT).unwrap(), ["c1"]);
    guest.walk("c1/rootfs/file").unwrap();
    guest.fs.control().add(&volume()).unwrap();
    let parent = guest.walk("c1").unwrap().node;
    assert_eq!(guest.list(parent).unwrap(), ["rootfs", "volume"]);
}

#[test]
fn a_removed_export_is_closed_and_gone() {
    let mut guest = Client::new(vec![rootfs(), volume()]);
    guest.host.write("share/c1/rootfs/file", "");
    let root = guest.walk("c1/rootfs").unwrap().node;
    let file = guest.walk("c1/rootfs/file").unwrap().node;
    let handle = guest.open(file, libc::O_RDONLY).unwrap();
    guest.fs.control().remove(Path::new("c1/rootfs")).unwrap();
    assert_eq!(guest.host.descriptors("share/c1/rootfs"), 0);
    // What the guest remembers answers an error, and nothing panics.
    assert_eq!(guest.read(file, handle, 10), Err(libc::ENOENT));
    assert_eq!(guest.lookup(root, "file"), Err(libc::ENOENT));
    assert_eq!(guest.ask(GETATTR, file, &[0; 16]), Err(libc::ENOENT));
    assert_eq!(guest.walk("c1/rootfs"), Err(libc::ENOENT));
    let parent = guest.walk("c1").unwrap().node;
    assert_eq!(guest.list(parent).unwrap(), ["volume"]);
    guest.fs.control().remove(Path::new("c1/volume")).unwrap();
    assert_eq!(guest.list(ROOT).unwrap(), [] as [&str; 0]);
    assert_eq!(guest.host.descriptors("share"), 0);
}

#[test]
fn an_export_that_returns_is_another_one_to_the_guest() {
    let mut guest = Client::new(vec![]);
    guest.host.write("share/c1/rootfs/file", "");
    let control = guest.fs.control();
    let mut seen = Vec::new();
    // More often than there are file system indices.
    for _ in 0..300 {
        control.add(&rootfs()).unwrap();
        let root = guest.walk("c1/rootfs").unwrap();
        let file = guest.walk("c1/rootfs/file").unwrap();
        seen.push((root.node, root.generation));
        seen.push((file.node, file.generation));
        control.remove(Path::new("c1/rootfs")).unwrap();
    }
    let total = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), total, "a node id and generation came twice");
}

#[test]
fn there_is_room_for_255_exports_and_a_clear_error_for_one_more() {
    let mut guest = Client::new(vec![]);
    let control = guest.fs.control();
    for at in 0..255 {
        std::fs::create_dir(guest.host.path(&format!("share/t{at}"))).unwrap();
        control
            .add(&export(&format!("t{at}"), CachePolicy::Always))
            .unwrap();
    }
    let error = control.add(&rootfs()).unwrap_err();
    assert!(matches!(error, ShareError::TooMany { .. }), "{error}");
    guest.walk("t254").unwrap();
    control.remove(Path::new("t7")).unwrap();
    control.add(&rootfs()).unwrap();
    guest.walk("c1/rootfs").unwrap();
}

#[test]
fn overlapping_exports_are_refused() {
    let guest = Client::new(vec![rootfs()]);
    let control = guest.fs.control();
    std::fs::create_dir(guest.host.path("share/c1/rootfs/sub")).unwrap();
    for path in ["c1/rootfs", "c1/rootfs/sub", "c1"] {
        let error = control.add(&export(path, CachePolicy::Always)).unwrap_err();
        assert!(matches!(error, ShareError::Overlap { .. }), "{error}");
    }
}

#[test]
fn what_cannot_be_exported_is_refused_and_leaves_nothing() {
    let mut guest = Client::new(vec![]);
    let control = guest.fs.control();
    for path in ["", ".", "..", "/etc", "a/../b", "../outside"] {
        let error = control.add(&export(path, CachePolicy::Always)).unwrap_err();
        assert!(matches!(error, ShareError::Path { .. }), "{path}: {error}");
    }
    let error = control
        .add(&export("absent/dir", CachePolicy::Always))
        .unwrap_err();
    assert!(matches!(error, ShareError::Open { .. }), "{error}");
    assert_eq!(guest.list(ROOT).unwrap(), [] as [&str; 0]);
    let error = control.remove(Path::new("absent")).unwrap_err();
    assert_eq!(error.to_string(), "absent is not exported");
}

#[test]
fn only_directories_are_exported() {
    let mut guest = Client::new(vec![]);
    guest.host.write("share/file", "");
    let link = guest.host.path("share/link");
    std::os::unix::fs::symlink(guest.host.path("outside"), link).unwrap();
    for path in ["file", "link"] {
        let error = guest
            .fs
            .control()
            .add(&export(path, CachePolicy::Always))
            .unwrap_err();
        assert!(matches!(error, ShareError::NotADirectory { .. }), "{error}");
    }
    assert_eq!(guest.list(ROOT).unwrap(), [] as [&str; 0]);
}

#[test]
fn pseudo_directories_refuse_changes_but_never_as_unknown() {
    let mut guest = Client::new(vec![rootfs()]);
    let pseudo = guest.walk("c1").unwrap().node;
    let name = cstr("name");
    let mut two = cstr("name");
    two.extend(cstr("other"));
    for node in [ROOT, pseudo] {
        for opcode in 1..64 {
            if [INIT, DESTROY, FORGET, BATCH_FORGET, 36].contains(&opcode) {
                continue;
            }
            let mut body = match opcode {
                MKNOD | CREATE => vec![0; 16],
                MKDIR | LINK | RENAME => vec![0; 8],
                RENAME2 => vec![0; 16],
                LOOKUP | UNLINK | RMDIR | SYMLINK => vec![],
                21 => words(&[0, 0]),
                GETXATTR => words(&[0, 0]),
                _ => vec![0; 128],
            };
            body.extend(match opcode {
                SYMLINK | RENAME | RENAME2 => &two,
                _ => &name,
            });
            let unsupported_anywhere = matches!(opcode, 7 | 19 | 31..=33 | 37 | 40 | 41 | 47..);
            let result = guest.ask(opcode, node, &body);
            assert!(
                unsupported_anywhere || result != Err(libc::ENOSYS),
                "operation {opcode} would be switched off everywhere"
            );
        }
    }
    assert_eq!(guest.list(ROOT).unwrap(), ["c1"]);
}
