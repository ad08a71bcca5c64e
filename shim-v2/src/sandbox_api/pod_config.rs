//! What CreateSandbox says becomes what the boot and the pod's containers need. Pure, but for
//! the host's own name and files, which stand in for what the pod does not say.
//!
//! There is no pause container, and containerd leaves to the shim what it does for one:
//! the pod's host name, kernel parameters, `/etc/resolv.conf`, `/etc/hosts`, `/etc/hostname`
//! (its `internal/cri/server/podsandbox/sandbox_run_linux.go`). The guest is the pod: name and
//! parameters are set by its kernel at boot, before there is any process.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use agent_protocol::IPC_SYSCTLS;
use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use husk_vmm::config::MAX_CMDLINE_LEN;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use super::cri::{
    DNSConfig, LinuxPodSandboxConfig, NamespaceMode, NamespaceOption, PodSandboxConfig,
};
use crate::container::oci::Spec;
use crate::error::Error;

/// The message a CRI server describes its pods with.
const CRI_CONFIG: &str = "runtime.v1.PodSandboxConfig";
/// Longest host name, in bytes (`__NEW_UTS_LEN`, uname(2)).
const MAX_HOSTNAME: usize = 64;
/// Most bytes that the pod's parameters may add to the guest's kernel command line: the operator
/// may have half of it, and the shim has its own.
const MAX_PARAMS: usize = MAX_CMDLINE_LEN / 2 - 128;
/// How readily the host kills the machine before any container says otherwise: as containerd's
/// pause container.
const OOM_SCORE_ADJ: i64 = -998;

/// A pod as it is to be booted.
#[derive(Debug)]
pub struct PodConfig {
    /// What a CRI server would have written for a pause container, as far as a boot reads it.
    pub spec: Spec,
    /// For the guest's kernel command line.
    pub kernel_params: String,
    /// Files of its containers' `/etc`, which they share: name and text.
    pub etc: Vec<(&'static str, String)>,
}

impl PodConfig {
    /// Reads and checks a request.
    ///
    /// # Errors
    /// [`Error::Argument`] names the field.
    pub fn of(request: &CreateSandboxRequest) -> Result<Self, Error> {
        let config = decode(request.options.as_ref())?;
        let linux = config.linux.get_or_default();
        check_namespaces(linux.security_context.namespace_options.get_or_default())?;
        let hostname = hostname(&config.hostname)?;
        Ok(Self {
            spec: spec(request, linux)?,
            kernel_params: kernel_params(&hostname, &linux.sysctls)?,
            etc: etc(&hostname, config.dns_config.as_ref()),
        })
    }
}

fn wrong(what: &'static str, problem: impl Into<String>) -> Error {
    Error::Argument {
        what,
        problem: problem.into(),
    }
}

/// Without options there is nothing special about the pod.
fn decode(options: Option<&Any>) -> Result<PodSandboxConfig, Error> {
    let Some(options) = options.filter(|options| !options.type_url.is_empty()) else {
        return Ok(PodSandboxConfig::default());
    };
    // A name alone, as containerd writes it, or behind the address of a server of types.
    let name = options.type_url.rsplit('/').next().unwrap_or_default();
    if name != CRI_CONFIG {
        let problem = format!("are a {name:?}, only {CRI_CONFIG} is known");
        return Err(wrong("options", problem));
    }
    PodSandboxConfig::parse_from_bytes(&options.value)
        .map_err(|error| wrong("options", format!("are no {CRI_CONFIG}: {error}")))
}

fn check_namespaces(options: &NamespaceOption) -> Result<(), Error> {
    const FIELD: &str = "options.linux.security_context.namespace_options";
    let host = |mode: &protobuf::EnumOrUnknown<NamespaceMode>| {
        mode.enum_value() == Ok(NamespaceMode::NODE)
    };
    for (what, mode) in [
        ("network", &options.network),
        ("pid", &options.pid),
        ("ipc", &options.ipc),
    ] {
        if host(mode) {
            let problem = format!(
                "{what} is NODE, the host's: a guest does not see it, run this pod with another runtime"
            );
            return Err(wrong(FIELD, problem));
        }
    }
    match options.userns_options.as_ref() {
        Some(users) if !host(&users.mode) => Err(wrong(FIELD, "user namespaces are not supported")),
        _ => Ok(()),
    }
}

/// The pod's host name, otherwise the host's own, as with a pause container.
fn hostname(asked: &str) -> Result<String, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if asked.is_empty() {
        let own = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        return Ok(own.trim().chars().filter(|c| plain(*c)).collect());
    }
    if asked.len() > MAX_HOSTNAME || !asked.chars().all(plain) {
        let problem = format!(
            "{:?} is none: at most {MAX_HOSTNAME} of a-z, A-Z, 0-9, `-`, `.` and `_`",
            asked.chars().take(MAX_HOSTNAME).collect::<String>()
        );
        return Err(wrong("options.hostname", problem));
    }
    Ok(asked.to_owned())
}

/// `hostname=` and `sysctl.<name>=` (the kernel's admin-guide/kernel-parameters).
fn kernel_params(hostname: &str, sysctls: &HashMap<String, String>) -> Result<String, Error> {
    const FIELD: &str = "options.linux.sysctls";
    let mut params = match hostname {
        "" => Vec::new(),
        name => vec![format!("hostname={name}")],
    };
    let mut sorted: Vec<_> = sysctls.iter().collect();
    sorted.sort_unstable();
    for (name, value) in sorted {
        if !is_of_a_pod(name) {
            let problem = format!("{name:?} is not a parameter of a pod's own namespaces");
            return Err(wrong(FIELD, problem));
        }
        if !value.bytes().all(|byte| matches!(byte, b' '..=b'~')) || value.contains('"') {
            return Err(wrong(FIELD, format!("{name}: {value:?} cannot be set")));
        }
        params.push(format!("sysctl.{name}=\"{}\"", value.trim()));
    }
    let params = params.join(" ");
    if params.len() > MAX_PARAMS {
        let problem = format!("take more than {MAX_PARAMS} bytes of the guest's command line");
        return Err(wrong(FIELD, problem));
    }
    Ok(params)
}

/// Those that belong to a namespace which pods do not share with their host.
fn is_of_a_pod(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let own = IPC_SYSCTLS.contains(&name.replace('.', "/").as_str())
        || name == "kernel.domainname"
        || name.starts_with("net.")
        || name.starts_with("fs.mqueue.");
    own && name.chars().all(plain) && !name.contains("..")
}

fn spec(request: &CreateSandboxRequest, linux: &LinuxPodSandboxConfig) -> Result<Spec, Error> {
    let resources = linux.resources.get_or_default();
    let mut annotations = request.annotations.clone();
    for (name, number) in [
        ("sandbox-memory", resources.memory_limit_in_bytes),
        ("sandbox-cpu-quota", resources.cpu_quota),
        ("sandbox-cpu-period", resources.cpu_period),
    ] {
        // What containerd itself says, if it does, is the same.
        let annotation = annotations.entry(format!("io.kubernetes.cri.{name}"));
        annotation.or_insert_with(|| number.to_string());
    }
    let cgroup = cgroups_path(&linux.cgroup_parent, &request.sandbox_id);
    let spec = Spec::of_pod(&request.netns_path, cgroup, OOM_SCORE_ADJ, annotations);
    spec.sandbox_limits(false)?;
    Ok(spec)
}

/// Where containerd's pause container would be: `slice:prefix:name` below a slice of
/// systemd's, otherwise a path.
fn cgroups_path(parent: &str, id: &str) -> Option<String> {
    let last = parent.trim_end_matches('/').rsplit('/').next()?;
    if last.is_empty() {
        return None;
    }
    Some(match last.ends_with(".slice") {
        true => format!("{last}:cri-containerd:{id}"),
        false => format!("{}/{id}", parent.trim_end_matches('/')),
    })
}

fn etc(hostname: &str, dns: Option<&DNSConfig>) -> Vec<(&'static str, String)> {
    let hosts_own = |name: &str| fs::read_to_string(Path::new("/etc").join(name)).ok();
    let resolver = dns.map(resolv_conf).or_else(|| hosts_own("resolv.conf"));
    let files = [
        ("hostname", Some(format!("{hostname}\n"))),
        ("hosts", hosts_own("hosts")),
        ("resolv.conf", resolver),
    ];
    let known = files
        .into_iter()
        .filter_map(|(name, text)| Some((name, text?)));
    known.collect()
}

/// resolv.conf(5).
fn resolv_conf(dns: &DNSConfig) -> String {
    let mut text = String::new();
    let mut line = |keyword: &str, words: &[String]| {
        if !words.is_empty() {
            text.push_str(&format!("{keyword} {}\n", words.join(" ")));
        }
    };
    line("search", &dns.searches);
    for server in &dns.servers {
        line("nameserver", std::slice::from_ref(server));
    }
    line("options", &dns.options);
    text
}

#[cfg(test)]
#[path = "pod_config_test.rs"]
mod tests;
