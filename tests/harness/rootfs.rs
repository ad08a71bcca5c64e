//! Root file systems for containers that are not made from an image's snapshot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::process;

/// The archive the image was imported from.
const IMAGE: &str = "/usr/local/lib/node/busybox.tar";

/// Where the directories are: not in `/tmp`, which the ledger counts.
const PLACE: &str = "/var/tmp";

/// A fresh copy of the test image's files, unmounted when dropped, and beside it a
/// directory `host` for what a test wants to share with its container.
pub struct Rootfs {
    place: TempDir,
}

impl Rootfs {
    /// Mounts one: an overlay on the image's only layer, as containerd makes it.
    ///
    /// # Panics
    /// If it cannot be mounted.
    #[track_caller]
    pub fn mount() -> Self {
        let place = tempfile::tempdir_in(PLACE).expect("a temporary directory");
        for name in ["upper", "work", "rootfs", "host"] {
            fs::create_dir(place.path().join(name)).expect("a directory");
        }
        let options = format!(
            "lowerdir={},upperdir={at}/upper,workdir={at}/work",
            layer().display(),
            at = place.path().display()
        );
        let rootfs = Self { place };
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]);
        mount.arg(rootfs.path());
        process::run(mount).succeeded();
        rootfs
    }

    /// The root directory.
    pub fn path(&self) -> PathBuf {
        self.place.path().join("rootfs")
    }

    /// The directory beside it.
    pub fn host(&self) -> PathBuf {
        self.place.path().join("host")
    }
}

impl Drop for Rootfs {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        umount.args(["--recursive", "--lazy"]).arg(self.path());
        // What stays mounted is in the ledger.
        process::run(umount);
    }
}

/// The image's layer, unpacked once.
#[track_caller]
fn layer() -> &'static Path {
    static LAYER: OnceLock<PathBuf> = OnceLock::new();
    LAYER.get_or_init(|| {
        let place = tempfile::tempdir_in(PLACE)
            .expect("a temporary directory")
            .keep();
        for (archive, member) in [
            (Path::new(IMAGE), Some("layer.tar")),
            (&place.join("layer.tar"), None),
        ] {
            let mut tar = Command::new("tar");
            tar.arg("-C").arg(&place).arg("-xf").arg(archive);
            tar.args(member);
            process::run(tar).succeeded();
        }
        fs::remove_file(place.join("layer.tar")).expect("the unpacked layer");
        // The root directory of a container is open to all; a temporary one is not.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&place, open).expect("a directory of ours");
        place
    })
}
