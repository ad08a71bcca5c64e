//! Clean-up of directories and processes. Unmounting needs privileges: those tests
//! say so when they are skipped.

use super::*;
use crate::mount::{CloneOptions, ReadOnly, clone_tree};
use crate::sandbox::state_file::State;
use std::os::unix::net::UnixListener;

fn temp_dir(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("husk-cleanup-{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn state_file(dir: &Path) -> StateFile {
    let state = State {
        socket: Some(dir.join("socket")),
        bundle: dir.join("bundle"),
        files: vec![dir.join("bundle/hosts"), dir.join("bundle/never-written")],
        ..State::default()
    };
    StateFile::create(dir.join("run/ns/id"), state).unwrap()
}

#[test]
fn everything_of_the_shims_making_goes_and_a_second_run_is_harmless() {
    let dir = temp_dir("all");
    let file = state_file(&dir);
    let jail = file.dir().join("jail");
    fs::create_dir_all(jail.join("share/c1/mounts/0")).unwrap();
    fs::write(jail.join("share/c1/mounts/0/hosts"), "").unwrap();
    drop(UnixListener::bind(jail.join("vsock")).unwrap());
    drop(UnixListener::bind(dir.join("socket")).unwrap());
    fs::create_dir(dir.join("bundle")).unwrap();
    fs::write(dir.join("bundle/address"), "unix://x").unwrap();
    fs::write(dir.join("bundle/hosts"), "127.0.0.1 localhost").unwrap();
    for _ in 0..2 {
        release_sandbox(&file).unwrap();
        remove_shim(&file).unwrap();
    }
    assert_eq!(fs::read_dir(dir.join("bundle")).unwrap().count(), 0);
    assert!(!dir.join("run").exists());
    assert!(!dir.join("socket").exists());
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn data_that_is_not_ours_is_never_removed() {
    let dir = temp_dir("data");
    let file = state_file(&dir);
    let precious = file.dir().join("jail/share/c1/precious");
    fs::create_dir_all(precious.parent().unwrap()).unwrap();
    fs::write(&precious, "data").unwrap();
    let error = release_sandbox(&file).unwrap_err();
    assert!(matches!(error, CleanupError::Remove { .. }), "{error}");
    assert_eq!(fs::read_to_string(&precious).unwrap(), "data");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_recorded_process_is_killed_and_one_with_a_recycled_pid_is_not() {
    let mut child = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    let process = ProcessRef::of(child.id() as i32).unwrap();
    let stranger = ProcessRef {
        start_time: process.start_time + 1,
        ..process
    };
    kill(&stranger).unwrap();
    assert!(child.try_wait().unwrap().is_none(), "a stranger was killed");
    kill(&process).unwrap();
    assert!(!child.wait().unwrap().success());
}

#[test]
fn mounts_are_undone_in_reverse_and_struck_from_the_record() {
    let dir = temp_dir("mounts");
    let file = state_file(&dir);
    let jail = file.dir().join("jail");
    let (outer, inner) = (jail.join("share"), jail.join("share/c1"));
    fs::create_dir_all(&inner).unwrap();
    fs::create_dir(dir.join("source")).unwrap();
    fs::write(dir.join("source/file"), "data").unwrap();
    let options = CloneOptions {
        readonly: ReadOnly::Nothing,
        recursive: false,
        follows_host: false,
    };
    for (source, target) in [(&outer, &outer), (&dir.join("source"), &inner)] {
        file.record(|state| state.mounts.push(target.clone()))
            .unwrap();
        if let Err(error) = clone_tree(source, target, options) {
            eprintln!("skipped: {error} (needs CAP_SYS_ADMIN)");
            return fs::remove_dir_all(dir).unwrap();
        }
    }
    assert!(inner.join("file").exists());
    assert_eq!(mount::mounts_below(&jail).unwrap().len(), 2);
    assert!(matches!(
        remove_tree(file.dir(), &jail),
        Err(CleanupError::Unmount { .. })
    ));
    release_sandbox(&file).unwrap();
    assert_eq!(file.state().mounts, Vec::<PathBuf>::new());
    assert!(!jail.exists());
    assert_eq!(fs::read_to_string(dir.join("source/file")).unwrap(), "data");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_process_that_ends_just_before_it_is_killed_is_no_error() {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pidfd = sys::pidfd_open(i32::try_from(child.id()).unwrap()).unwrap();
    child.wait().unwrap();
    sys::pidfd_kill(pidfd.as_fd()).unwrap();
}
