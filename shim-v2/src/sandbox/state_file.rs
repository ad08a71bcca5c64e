//! `state.json`: everything made on the host for a sandbox, recorded before it is
//! made, so that whoever cleans up (this shim or a later `delete`) can undo it.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::network::Redirects;
use super::pod_cgroup::Leaf;

/// Directory of all sandboxes: `<namespace>/<sandbox id>/` below it.
const RUN_DIR: &str = "/run/husk";
/// Version of the file's format; another one is not touched.
const VERSION: u32 = 1;

/// The recorded facts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Format of this file.
    pub version: u32,
    /// The resident shim.
    pub shim: Option<ProcessRef>,
    /// The socket containerd connects to.
    pub socket: Option<PathBuf>,
    /// The bundle of the sandbox's first container.
    pub bundle: PathBuf,
    /// The VMM.
    pub vmm: Option<ProcessRef>,
    /// The leaves of the pod's cgroup that shim and VMM live in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cgroups: Vec<Leaf>,
    /// Files of a pod's containers, in the bundle.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
    /// What was added to the links in the pod's network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirects: Option<Redirects>,
    /// Mount points in the order of mounting.
    pub mounts: Vec<PathBuf>,
    /// Containers whose hooks were run, or begun with: their `poststop` is due.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooked: Vec<HookedContainer>,
    /// The sandbox's first container was deleted, and others go on.
    #[serde(default)]
    pub outlived: bool,
}

impl State {
    /// Whether the shim lives.
    pub fn is_served(&self) -> bool {
        self.shim.is_some_and(|shim| shim.is_alive())
    }
}

/// A container with hooks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookedContainer {
    /// Its id.
    pub id: String,
    /// Its bundle, whose config.json names the hooks.
    pub bundle: PathBuf,
}

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessRef {
    /// Its pid on the host.
    pub pid: i32,
    /// When it started, in clock ticks since boot (field 22 of /proc/pid/stat).
    pub start_time: u64,
}

impl ProcessRef {
    /// Describes a living process; `None` if there is none with this pid.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The program's name in parentheses may itself hold blanks and parentheses.
        let (_, after_name) = stat.rsplit_once(") ")?;
        let start_time = after_name.split(' ').nth(19)?.parse().ok()?;
        Some(Self { pid, start_time })
    }

    /// Whether the process is still the one described.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }
}

/// The state of one sandbox and the file that holds it.
#[derive(Debug)]
pub struct StateFile {
    dir: PathBuf,
    state: Mutex<State>,
}

/// The run directory of a sandbox.
pub fn run_dir(namespace: &str, id: &str) -> PathBuf {
    Path::new(RUN_DIR).join(namespace).join(id)
}

/// Makes a run directory. Another sandbox's end may remove the directories above
/// between their making and ours.
fn make_dir(dir: &Path) -> io::Result<()> {
    const ATTEMPTS: u32 = 10;
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    for _ in 1..ATTEMPTS {
        match builder.create(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
    }
    builder.create(dir)
}

impl StateFile {
    /// Makes the run directory and writes the first state.
    pub fn create(dir: PathBuf, state: State) -> io::Result<Self> {
        make_dir(&dir)?;
        let file = Self {
            dir,
            state: Mutex::new(State {
                version: VERSION,
                ..state
            }),
        };
        file.write(&file.lock())?;
        Ok(file)
    }

    /// Reads the state left in `dir`; `None` when there is none.
    pub fn load(dir: PathBuf) -> io::Result<Option<Self>> {
        let json = match fs::read(dir.join("state.json")) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let state: State = serde_json::from_slice(&json)?;
        if state.version != VERSION {
            let text = format!("state.json has version {}, not {VERSION}", state.version);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let state = Mutex::new(state);
        Ok(Some(Self { dir, state }))
    }

    /// The sandbox's run directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The sandbox's id.
    pub fn id(&self) -> String {
        let name = self.dir.file_name();
        name.unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The sandbox's namespace in containerd.
    pub fn namespace(&self) -> String {
        let name = self.dir.parent().and_then(Path::file_name);
        name.unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The root directory of the VMM.
    pub fn jail(&self) -> PathBuf {
        self.dir.join("jail")
    }

    /// A copy of the state.
    pub fn state(&self) -> State {
        self.lock().clone()
    }

    /// Changes the state and writes it, before the caller does what it describes.
    pub fn record(&self, change: impl FnOnce(&mut State)) -> io::Result<()> {
        let mut state = self.lock();
        change(&mut state);
        self.write(&state)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the file as a whole: a reader sees the old state or the new one.
    fn write(&self, state: &State) -> io::Result<()> {
        let new = self.dir.join("state.json.new");
        fs::write(&new, serde_json::to_vec(state)?)?;
        fs::rename(new, self.dir.join("state.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temp_dir(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("husk-state-{name}-{}", std::process::id()))
    }

    #[test]
    fn the_state_survives_the_file() {
        let dir = temp_dir("trip");
        let file = StateFile::create(dir.clone(), State::default()).unwrap();
        file.record(|state| {
            state.vmm = Some(ProcessRef {
                pid: 7,
                start_time: 9,
            });
            state.mounts.push("/a".into());
        })
        .unwrap();
        let again = StateFile::load(dir.clone()).unwrap().unwrap();
        assert_eq!(again.state(), file.state());
        fs::remove_dir_all(&dir).unwrap();
        assert!(StateFile::load(dir).unwrap().is_none());
    }

    #[test]
    fn a_state_of_another_version_is_not_touched() {
        let dir = temp_dir("version");
        let file = StateFile::create(dir.clone(), State::default()).unwrap();
        file.record(|state| state.version = 99).unwrap();
        assert!(StateFile::load(dir.clone()).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_process_is_known_by_more_than_its_pid() {
        let me = ProcessRef::of(std::process::id() as i32).unwrap();
        assert!(me.is_alive());
        let other = ProcessRef {
            start_time: me.start_time + 1,
            ..me
        };
        assert!(!other.is_alive());
        assert_eq!(ProcessRef::of(i32::MAX), None);
    }
}
