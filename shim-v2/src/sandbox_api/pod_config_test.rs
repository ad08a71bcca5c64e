use super::super::cri::{LinuxContainerResources, LinuxSandboxSecurityContext, UserNamespace};
use super::*;
use crate::container::pod::{Limits, PodRole};
use crate::sandbox::pod_cgroup::Place;
use ttrpc::Code;

fn request(config: &PodSandboxConfig) -> CreateSandboxRequest {
    CreateSandboxRequest {
        sandbox_id: "pod".to_owned(),
        netns_path: "/var/run/netns/pod".to_owned(),
        options: Some(Any {
            type_url: CRI_CONFIG.to_owned(),
            value: config.write_to_bytes().unwrap(),
            ..Any::default()
        })
        .into(),
        ..CreateSandboxRequest::default()
    }
}

fn of(config: &PodSandboxConfig) -> Result<PodConfig, Error> {
    PodConfig::of(&request(config))
}

/// A pod with these parts about Linux.
fn with(linux: LinuxPodSandboxConfig) -> PodSandboxConfig {
    PodSandboxConfig {
        hostname: "burrow".to_owned(),
        linux: Some(linux).into(),
        ..PodSandboxConfig::default()
    }
}

fn with_sysctls(sysctls: &[(&str, &str)]) -> PodSandboxConfig {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    with(LinuxPodSandboxConfig {
        sysctls: sysctls.iter().map(owned).collect(),
        ..LinuxPodSandboxConfig::default()
    })
}

#[test]
fn a_pods_resources_network_and_cgroup_are_what_the_boot_reads() {
    let config = with(LinuxPodSandboxConfig {
        cgroup_parent: "/kubepods/pod7".to_owned(),
        resources: Some(LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 150_000,
            memory_limit_in_bytes: 128 << 20,
            ..LinuxContainerResources::default()
        })
        .into(),
        ..LinuxPodSandboxConfig::default()
    });
    let pod = of(&config).unwrap();
    let limits = pod.spec.sandbox_limits(false).unwrap();
    let expected = Limits {
        memory: Some(128 << 20),
        cpu: Some((150_000, 100_000)),
    };
    assert_eq!(limits, expected);
    assert_eq!(pod.spec.pod_role(), PodRole::Sandbox);
    let netns = pod.spec.network_namespace().unwrap();
    assert_eq!(netns, Some(Path::new("/var/run/netns/pod")));
    assert_eq!(pod.spec.pod_place(), Place::parse("/kubepods/pod7/pod"));
    assert_eq!(pod.spec.oom_score_adj(), -998);
}

#[test]
fn a_pod_that_says_nothing_has_a_network_of_its_own_and_no_limits() {
    let pod = PodConfig::of(&CreateSandboxRequest::default()).unwrap();
    assert_eq!(pod.spec.network_namespace().unwrap(), None);
    assert_eq!(pod.spec.sandbox_limits(false).unwrap(), Limits::default());
    assert_eq!(pod.spec.pod_place(), None);
    assert!(pod.kernel_params.starts_with("hostname="), "the host's");
}

#[test]
fn a_cgroup_is_named_as_containerd_names_it() {
    for (parent, expected) in [
        ("", None),
        ("/", None),
        ("/kubepods/pod7", Some("/kubepods/pod7/id")),
        ("kubepods/", Some("kubepods/id")),
        (
            "/kubepods.slice/kubepods-pod7.slice",
            Some("kubepods-pod7.slice:cri-containerd:id"),
        ),
    ] {
        assert_eq!(cgroups_path(parent, "id").as_deref(), expected, "{parent}");
    }
}

#[test]
fn host_name_and_kernel_parameters_go_to_the_guests_command_line() {
    let sysctls = [
        ("net.ipv4.ping_group_range", "0 2147483647"),
        ("kernel.shm_rmid_forced", "1"),
    ];
    assert_eq!(
        of(&with_sysctls(&sysctls)).unwrap().kernel_params,
        "hostname=burrow sysctl.kernel.shm_rmid_forced=\"1\" \
         sysctl.net.ipv4.ping_group_range=\"0 2147483647\""
    );
}

#[test]
fn a_resolver_is_the_pods_or_the_hosts() {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let mut config = with(LinuxPodSandboxConfig::default());
    config.dns_config = Some(DNSConfig {
        servers: words(&["10.0.0.1", "10.0.0.2"]),
        searches: words(&["a.test", "b.test"]),
        options: words(&["ndots:5"]),
        ..DNSConfig::default()
    })
    .into();
    let text = |config: &PodSandboxConfig, name: &str| {
        let files = of(config).unwrap().etc;
        let file = files.into_iter().find(|(file, _)| *file == name);
        file.map(|(_, text)| text)
    };
    assert_eq!(
        text(&config, "resolv.conf").unwrap(),
        "search a.test b.test\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n"
    );
    assert_eq!(text(&config, "hostname").unwrap(), "burrow\n");
    config.dns_config = None.into();
    let own = |name| fs::read_to_string(Path::new("/etc").join(name)).ok();
    assert_eq!(text(&config, "resolv.conf"), own("resolv.conf"));
    assert_eq!(text(&config, "hosts"), own("hosts"));
}

/// A pod with one of its namespace modes changed.
fn with_namespaces(change: impl FnOnce(&mut NamespaceOption)) -> PodSandboxConfig {
    let mut options = NamespaceOption::default();
    change(&mut options);
    with(LinuxPodSandboxConfig {
        security_context: Some(LinuxSandboxSecurityContext {
            namespace_options: Some(options).into(),
            ..LinuxSandboxSecurityContext::default()
        })
        .into(),
        ..LinuxPodSandboxConfig::default()
    })
}

#[test]
fn what_a_guest_cannot_give_is_refused_by_name() {
    let node = protobuf::EnumOrUnknown::new(NamespaceMode::NODE);
    let host = |hostname: &str| PodSandboxConfig {
        hostname: hostname.to_owned(),
        ..PodSandboxConfig::default()
    };
    let long = "x".repeat(600);
    let cases = [
        (with_namespaces(|o| o.network = node), "network is NODE"),
        (with_namespaces(|o| o.pid = node), "pid is NODE"),
        (with_namespaces(|o| o.ipc = node), "ipc is NODE"),
        (
            with_namespaces(|o| o.userns_options = Some(UserNamespace::default()).into()),
            "user namespaces",
        ),
        (host("a b"), "options.hostname"),
        (host("x quiet=0"), "options.hostname"),
        (host(&"x".repeat(65)), "options.hostname"),
        (with_sysctls(&[("vm.swappiness", "1")]), "vm.swappiness"),
        (with_sysctls(&[("kernel.panic", "1")]), "kernel.panic"),
        (with_sysctls(&[("net.a b", "1")]), "net.a b"),
        (with_sysctls(&[("net..a", "1")]), "net..a"),
        (
            with_sysctls(&[("net.core.somaxconn", "1\" init=/x")]),
            "cannot be set",
        ),
        (
            with_sysctls(&[("net.core.somaxconn", "1\n2")]),
            "cannot be set",
        ),
        (with_sysctls(&[("net.core.somaxconn", &long)]), "384 bytes"),
    ];
    for (config, expected) in cases {
        let error = of(&config).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.code(), Code::INVALID_ARGUMENT, "{error}");
    }
    let node = with_namespaces(|o| {
        let users = UserNamespace {
            mode: node,
            ..UserNamespace::default()
        };
        o.userns_options = Some(users).into();
    });
    assert!(of(&node).is_ok(), "the host's users are no namespace");
}

#[test]
fn options_that_are_no_pods_are_refused() {
    for (type_url, value) in [
        ("runtimeoptions.v1.Options", &b""[..]),
        (CRI_CONFIG, &b"\xff\xff\xff"[..]),
        ("types.example/", &b""[..]),
    ] {
        let mut request = request(&PodSandboxConfig::default());
        request.options = Some(Any {
            type_url: type_url.to_owned(),
            value: value.to_vec(),
            ..Any::default()
        })
        .into();
        let error = PodConfig::of(&request).unwrap_err();
        assert_eq!(error.code(), Code::INVALID_ARGUMENT, "{error}");
        assert!(error.to_string().starts_with("options"), "{error}");
    }
}
