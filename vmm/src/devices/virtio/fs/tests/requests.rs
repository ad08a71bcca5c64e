//! What an honest guest sees.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::client::*;
use crate::devices::virtio::VirtioDevice;

#[test]
fn a_file_of_the_host_can_be_read() {
    let mut guest = Client::new(vec![rootfs()]);
    guest.host.write("share/c1/rootfs/hello", "content");
    let file = guest.walk("c1/rootfs/hello").unwrap();
    let handle = guest.open(file.node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(file.node, handle, 4096).unwrap(), b"content");
}

#[test]
fn a_file_of_the_guest_is_on_the_host() {
    let mut guest = Client::new(vec![rootfs()]);
    let dir = guest.walk("c1/rootfs").unwrap().node;
    let mut body = words(&[(libc::O_CREAT | libc::O_WRONLY) as u32, 0o100_6755, 0, 0]);
    body.extend(cstr("made"));
    let reply = guest.ask(CREATE, dir, &body).unwrap();
    let (node, handle) = (u64_at(&reply, 0), u64_at(&reply, 128));
    let mut body = io_args(handle, 3, 4);
    body.extend(b"data");
    guest.ask(WRITE, node, &body).unwrap();
    let path = guest.host.path("share/c1/rootfs/made");
    assert_eq!(std::fs::read(&path).unwrap(), b"\0\0\0data");
    // Every bit of the mode is the guest's choice, whatever the VMM's umask.
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o6755);
}

#[test]
fn files_belong_to_who_made_them_whatever_groups_let_them() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: changing users needs root");
        return;
    }
    let mut guest = Client::new(vec![volume()]);
    let path = guest.host.path("share/c1/volume");
    // The guest has checked that a supplementary group of the caller may write here.
    std::os::unix::fs::chown(&path, Some(0), Some(2000)).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o2770)).unwrap();
    let dir = guest.walk("c1/volume").unwrap().node;
    let mut body = words(&[0o755, 0]);
    body.extend(cstr("made"));
    guest.ask_as(1000, MKDIR, dir, &body).unwrap();
    let made = std::fs::metadata(path.join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (1000, 2000));
    assert_eq!(made.mode() & 0o2000, 0o2000, "setgid is inherited");
}

#[test]
fn caching_follows_the_export() {
    let mut guest = Client::new(vec![rootfs(), volume()]);
    guest.host.write("share/c1/rootfs/file", "");
    guest.host.write("share/c1/volume/file", "");
    let cached = guest.walk("c1/rootfs/file").unwrap();
    assert_eq!((cached.name_valid_s, cached.attr_valid_s), (86_400, 86_400));
    let fresh = guest.walk("c1/volume/file").unwrap();
    assert_eq!((fresh.name_valid_s, fresh.attr_valid_s), (0, 0));
    for path in ["c1", "c1/rootfs", "c1/volume"] {
        assert_eq!(guest.walk(path).unwrap().name_valid_s, 0, "{path}");
    }
}

#[test]
fn absent_names_are_cached_where_only_the_guest_can_make_them() {
    let mut guest = Client::new(vec![rootfs(), volume()]);
    let absent = guest.walk("c1/rootfs/absent").unwrap();
    assert_eq!((absent.node, absent.name_valid_s), (0, 86_400));
    assert_eq!(guest.walk("c1/volume/absent"), Err(libc::ENOENT));
    assert_eq!(guest.walk("absent"), Err(libc::ENOENT));
    assert_eq!(guest.walk("c1/absent"), Err(libc::ENOENT));
}

#[test]
fn changes_of_the_host_show_in_a_volume() {
    let mut guest = Client::new(vec![volume()]);
    guest.host.write("share/c1/volume/old", "");
    let dir = guest.walk("c1/volume").unwrap().node;
    assert_eq!(guest.list(dir).unwrap(), ["old"]);
    guest.host.write("share/c1/volume/new", "");
    assert_eq!(guest.list(dir).unwrap(), ["new", "old"]);
    guest.walk("c1/volume/new").unwrap();
}

#[test]
fn the_attributes_of_an_exports_root_are_those_of_now() {
    let mut guest = Client::new(vec![rootfs()]);
    let dir = guest.walk("c1/rootfs").unwrap();
    let mut body = vec![0; 88];
    body[0] = 1; // FATTR_MODE
    body[68..72].copy_from_slice(&0o700u32.to_le_bytes());
    guest.ask(SETATTR, dir.node, &body).unwrap();
    assert_eq!(guest.walk("c1/rootfs").unwrap().mode & 0o7777, 0o700);
}

#[test]
fn holes_are_found() {
    let mut guest = Client::new(vec![rootfs()]);
    let path = guest.host.path("share/c1/rootfs/sparse");
    let file = std::fs::File::create(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 1 << 20).unwrap();
    let node = guest.walk("c1/rootfs/sparse").unwrap().node;
    let handle = guest.open(node, libc::O_RDONLY).unwrap();
    let mut body = longs(&[handle, 0]);
    body.extend(words(&[libc::SEEK_DATA as u32, 0]));
    let reply = guest.ask(LSEEK, node, &body).unwrap();
    assert_eq!(u64_at(&reply, 0), 1 << 20);
}

#[test]
fn forgotten_inodes_are_closed() {
    let mut guest = Client::new(vec![rootfs()]);
    guest.host.write("share/c1/rootfs/file", "");
    let before = guest.host.descriptors("share");
    let node = guest.walk("c1/rootfs/file").unwrap().node;
    assert_eq!(guest.host.descriptors("share"), before + 1);
    // On the high-priority queue, as Linux does; there is no reply.
    let mut request = words(&[48, FORGET, 99, 0]);
    request.extend(longs(&[node]));
    request.extend(words(&[0; 4]));
    request.extend(longs(&[1]));
    let buffer = guest.hiprio.readable(&request);
    let head = guest.hiprio.add(&[buffer]);
    guest.hiprio.kick().write(1).unwrap();
    // The queues have no order between them: one of these requests comes after it.
    for _ in 0..1000 {
        guest.walk("c1").unwrap();
    }
    assert_eq!(guest.host.descriptors("share"), before);
    assert_eq!(guest.hiprio.used(), Some((head, 0)));
}

#[test]
fn destroy_is_answered_and_the_share_can_be_mounted_again() {
    let mut guest = Client::new(vec![rootfs()]);
    guest.host.write("share/c1/rootfs/file", "");
    guest.walk("c1/rootfs/file").unwrap();
    assert_eq!(guest.ask(DESTROY, 0, b""), Ok(vec![]));
    assert_eq!(guest.host.descriptors("share"), 1);
    guest.init();
    guest.walk("c1/rootfs/file").unwrap();
}

#[test]
fn a_reset_forgets_the_guest_and_a_new_driver_starts_afresh() {
    let mut guest = Client::new(vec![rootfs()]);
    guest.host.write("share/c1/rootfs/file", "content");
    let node = guest.walk("c1/rootfs/file").unwrap().node;
    guest.open(node, libc::O_RDONLY).unwrap();
    guest.fs.reset();
    assert_eq!(guest.host.descriptors("share"), 1, "the export's root");
    // The old queues are dead.
    let buffer = guest.queue.readable(&[0; 40]);
    guest.queue.add(&[buffer]);
    guest.queue.kick().write(1).unwrap();
    guest.activate();
    guest.init();
    guest.walk("c1/rootfs/file").unwrap();
}

#[test]
fn the_configuration_holds_tag_and_queue_count() {
    let guest = Client::new(vec![]);
    let mut space = [0xff; 44];
    guest.fs.read_config(0, &mut space);
    assert_eq!(&space[..6], b"share\0");
    assert_eq!(space[6..36], [0; 30]);
    assert_eq!(space[36..40], 1u32.to_le_bytes());
}
