//! A spec, checked and turned into what the child has to do. Everything that can be
//! found wrong without touching the system is found here, before anything is made.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use nix::sys::personality::Persona;

use super::credentials::Credentials;
use super::devices::{self, DevPlan};
use super::mounts::{self, PlannedMount};
use super::namespaces::Namespaces;
use super::resources::Limits;
use super::scheduling::{self, Scheduling};
use super::seccomp::Filter;
use super::{mount_options, program, sysctl};
use crate::oci::{self, ConsoleSize, Spec, SpecError};

/// Everything about a container's init and its surroundings.
#[derive(Debug)]
pub struct ContainerPlan {
    pub namespaces: Namespaces,
    pub rootfs: PathBuf,
    pub readonly_rootfs: bool,
    pub propagation: Option<MsFlags>,
    pub mounts: Vec<PlannedMount>,
    pub dev: DevPlan,
    pub hostname: String,
    pub domainname: String,
    /// Files below `/proc/sys` and what to write.
    pub sysctls: Vec<(PathBuf, String)>,
    pub masked_paths: Vec<PathBuf>,
    pub readonly_paths: Vec<PathBuf>,
    pub limits: Limits,
    pub process: ProcessPlan,
    pub common: Common,
}

/// What every process of a container gets.
#[derive(Debug, Default)]
pub struct Common {
    /// What later processes inherit where they leave it open; none for the init itself.
    pub init: Option<oci::Process>,
    filter: Option<Filter>,
    personality: Option<Persona>,
}

/// Everything about one process.
#[derive(Debug)]
pub struct ProcessPlan {
    pub args: Vec<CString>,
    /// `args[0]`, to be looked up.
    pub name: String,
    pub env: Vec<String>,
    pub cwd: PathBuf,
    pub credentials: Credentials,
    pub scheduling: Scheduling,
    pub filter: Option<Filter>,
    pub oom_score_adj: i32,
    pub console_size: Option<ConsoleSize>,
}

impl ContainerPlan {
    /// Checks a whole spec.
    pub fn new(spec: &Spec) -> Result<Self, SpecError> {
        let process = spec
            .process
            .as_ref()
            .ok_or(SpecError::Missing { field: "process" })?;
        let root = spec
            .root
            .as_ref()
            .ok_or(SpecError::Missing { field: "root" })?;
        absolute("root.path", &root.path)?;
        let linux = &spec.linux;
        let namespaces = Namespaces::plan(&linux.namespaces)?;
        for (field, name) in [
            ("hostname", &spec.hostname),
            ("domainname", &spec.domainname),
        ] {
            if !name.is_empty() && !namespaces.has_uts() {
                let why = "needs a UTS namespace of the container's own";
                return Err(SpecError::Refused {
                    field: field.into(),
                    why,
                });
            }
        }
        // Relative ones count from the container's root, as with runc.
        let rooted = |paths: &[PathBuf]| paths.iter().map(|p| Path::new("/").join(p)).collect();
        let mounts = mounts::plan(&spec.mounts)?;
        let filter = linux.seccomp.as_ref().map(Filter::plan).transpose()?;
        let personality = linux.personality.as_ref().map(scheduling::persona);
        let mut common = Common {
            init: None,
            filter: filter.flatten(),
            personality: personality.transpose()?,
        };
        let plan = ProcessPlan::new(process, &common)?;
        common.init = Some(process.clone());
        Ok(Self {
            sysctls: sysctl::plan(&linux.sysctl, &namespaces)?,
            namespaces,
            rootfs: root.path.clone(),
            readonly_rootfs: root.readonly,
            propagation: mount_options::root_propagation(&linux.rootfs_propagation)?,
            dev: devices::plan(&linux.devices, &mounts)?,
            mounts,
            hostname: spec.hostname.clone(),
            domainname: spec.domainname.clone(),
            masked_paths: rooted(&linux.masked_paths),
            readonly_paths: rooted(&linux.readonly_paths),
            limits: Limits::plan(linux)?,
            process: plan,
            common,
        })
    }
}

impl ProcessPlan {
    /// Checks one process. What an exec leaves open is taken from the container's init.
    pub fn new(process: &oci::Process, common: &Common) -> Result<Self, SpecError> {
        let name = process.args.first().cloned().ok_or(SpecError::Missing {
            field: "process.args",
        })?;
        absolute("process.cwd", &process.cwd)?;
        let mut process = process.clone();
        if let Some(init) = &common.init {
            process.capabilities = process.capabilities.or_else(|| init.capabilities.clone());
            process.oom_score_adj = process.oom_score_adj.or(init.oom_score_adj);
            if process.rlimits.is_empty() {
                process.rlimits.clone_from(&init.rlimits);
            }
        }
        for entry in &process.env {
            c_string("process.env", entry)?;
            if !entry.contains('=') {
                return Err(SpecError::Value {
                    field: "process.env".into(),
                    value: entry.clone(),
                    must: "NAME=value",
                });
            }
        }
        let oom_score_adj = process.oom_score_adj.unwrap_or(0);
        if !(-1000..=1000).contains(&oom_score_adj) {
            return Err(SpecError::Value {
                field: "process.oomScoreAdj".into(),
                value: oom_score_adj.to_string(),
                must: "-1000 to 1000",
            });
        }
        Ok(Self {
            args: process
                .args
                .iter()
                .map(|arg| c_string("process.args", arg))
                .collect::<Result<_, _>>()?,
            name,
            env: program::unique_env(&process.env),
            credentials: Credentials::plan(&process)?,
            scheduling: Scheduling::plan(&process, common.personality)?,
            filter: common.filter.clone(),
            oom_score_adj,
            console_size: process.console_size,
            cwd: process.cwd,
        })
    }
}

fn absolute(field: &str, path: &Path) -> Result<(), SpecError> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(SpecError::Value {
        field: field.into(),
        value: path.display().to_string(),
        must: "an absolute path",
    })
}

fn c_string(field: &str, text: &str) -> Result<CString, SpecError> {
    CString::new(text).map_err(|_| SpecError::Value {
        field: field.into(),
        value: text.into(),
        must: "without NUL bytes",
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec() -> Value {
        json!({
            "process": { "args": ["sh", "-c", "true"], "cwd": "/", "env": ["A=1", "A=2"] },
            "root": { "path": "/run/husk/share/c/rootfs" },
            "linux": { "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "network" }, { "type": "uts" },
            ] },
        })
    }

    fn plan(value: &Value) -> Result<ContainerPlan, SpecError> {
        ContainerPlan::new(&Spec::from_json(value.to_string().as_bytes())?)
    }

    #[test]
    fn an_ordinary_spec() {
        let plan = plan(&spec()).unwrap();
        assert_eq!(plan.process.name, "sh");
        assert_eq!(plan.process.env, ["A=2"]);
        assert_eq!(plan.process.oom_score_adj, 0);
    }

    #[test]
    fn wrong_values_are_refused_by_name() {
        for (pointer, value, expected) in [
            ("/process", Value::Null, "process is missing"),
            ("/root", Value::Null, "root is missing"),
            ("/root/path", json!("rootfs"), "root.path"),
            ("/process/args", json!([]), "process.args"),
            ("/process/args", json!(["a", "b\u{0}c"]), "process.args"),
            ("/process/cwd", json!("tmp"), "process.cwd"),
            ("/process/env", json!(["A=\u{0}"]), "process.env"),
        ] {
            let mut spec = spec();
            *spec.pointer_mut(pointer).unwrap() = value;
            let error = plan(&spec).unwrap_err().to_string();
            assert!(error.contains(expected), "{pointer}: {error}");
        }
    }

    #[test]
    fn a_hostname_needs_its_namespace() {
        let mut spec = spec();
        spec["hostname"] = json!("pod");
        assert!(plan(&spec).is_ok());
        spec["linux"]["namespaces"].as_array_mut().unwrap().pop();
        assert!(plan(&spec).unwrap_err().to_string().contains("hostname"));
    }

    #[test]
    fn an_exec_inherits_what_it_leaves_open() {
        let process = |value: Value| oci::Process::from_json(value.to_string().as_bytes()).unwrap();
        let common = Common {
            init: Some(process(
                json!({ "args": ["a"], "cwd": "/", "oomScoreAdj": 500,
                    "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 10, "hard": 20 }] }),
            )),
            ..Common::default()
        };
        let exec = process(json!({ "args": ["b"], "cwd": "/" }));
        let plan = ProcessPlan::new(&exec, &common).unwrap();
        assert_eq!(plan.oom_score_adj, 500);
        let credentials = format!("{:?}", plan.credentials);
        assert!(
            credentials.contains("(RLIMIT_NOFILE, 10, 20)"),
            "{credentials}"
        );
        let exec = process(json!({ "args": ["b"], "cwd": "/", "oomScoreAdj": 7 }));
        assert_eq!(ProcessPlan::new(&exec, &common).unwrap().oom_score_adj, 7);
    }
}
