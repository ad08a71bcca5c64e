//! Which containerd calls, and the form in which it wants its answer.
//!
//! | containerd | standard input of `start` | answer |
//! |---|---|---|
//! | 1.6 to 2.2 | nothing, or `Any` with runtime options | the plain address: task API version 2 |
//! | from 2.3 | `BootstrapParams` | JSON with version 3, understood by every 2.x |
//!
//! The two messages carry no mark that tells them apart, so `BootstrapParams` is
//! believed only if it repeats the id and the namespace given as flags. Anything
//! else is treated like the old form: what is on standard input is optional
//! knowledge, and not understanding it must never keep a pod from starting.

use containerd_shim_protos::bootstrap_api::BootstrapParams;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::flags::Flags;

/// The calling containerd, by what it wrote.
#[derive(Clone, Debug, PartialEq)]
pub enum Caller {
    /// Before 2.3.
    Legacy,
    /// 2.3 and later.
    Bootstrap(Box<BootstrapParams>),
    /// Nobody we know: answered like [`Caller::Legacy`], with a warning.
    Unknown,
}

impl Caller {
    /// Recognises the form of `stdin`.
    pub fn recognise(stdin: &[u8], flags: &Flags) -> Self {
        if stdin.is_empty() {
            return Self::Legacy;
        }
        if let Ok(params) = BootstrapParams::parse_from_bytes(stdin)
            && params.instance_id == flags.id
            && params.namespace == flags.namespace
        {
            return Self::Bootstrap(Box::new(params));
        }
        match Any::parse_from_bytes(stdin) {
            Ok(options) if options.type_url.contains('.') => Self::Legacy,
            _ => Self::Unknown,
        }
    }

    /// What to print on standard output for the shim listening at `address`.
    pub fn answer(&self, address: &str) -> String {
        match self {
            Self::Legacy | Self::Unknown => address.to_owned(),
            Self::Bootstrap(_) => {
                let answer = serde_json::json!({
                    "version": 3,
                    "address": address,
                    "protocol": "ttrpc",
                });
                answer.to_string()
            }
        }
    }

    /// The directory the caller wants the socket in, if it says so.
    pub fn socket_dir(&self) -> Option<&str> {
        match self {
            Self::Bootstrap(params) => params.socket_dir.as_deref().filter(|dir| !dir.is_empty()),
            Self::Legacy | Self::Unknown => None,
        }
    }

    /// Where the caller takes events, if it says so; otherwise `TTRPC_ADDRESS` does.
    pub fn ttrpc_address(&self) -> Option<&str> {
        match self {
            Self::Bootstrap(params) => Some(params.containerd_ttrpc_address.as_str()),
            Self::Legacy | Self::Unknown => None,
        }
        .filter(|address| !address.is_empty())
    }

    /// The options of the handler and whatever else came with them on `stdin`.
    pub fn options(&self, stdin: &[u8]) -> Vec<Any> {
        match self {
            Self::Legacy | Self::Unknown => Any::parse_from_bytes(stdin).into_iter().collect(),
            Self::Bootstrap(params) => {
                let values = params.extensions.iter();
                values
                    .filter_map(|extension| extension.value.clone().into_option())
                    .collect()
            }
        }
    }

    /// Whether the caller asks for debug output. Levels are open-ended: `DEBUG` is -4
    /// and everything below is more verbose.
    pub fn wants_debug(&self) -> bool {
        match self {
            Self::Bootstrap(params) => params.log_level.value() <= -4,
            Self::Legacy | Self::Unknown => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::LogLevel;

    const ADDRESS: &str = "unix:///run/containerd/s/abc";

    fn flags() -> Flags {
        let args = ["-namespace", "k8s.io", "-id", "c1", "start"];
        Flags::parse(args.map(str::to_owned)).unwrap()
    }

    fn params() -> BootstrapParams {
        BootstrapParams {
            instance_id: "c1".into(),
            namespace: "k8s.io".into(),
            containerd_version: "2.3.1".into(),
            containerd_ttrpc_address: "/run/containerd/containerd.sock.ttrpc".into(),
            log_level: LogLevel::LOG_LEVEL_DEBUG.into(),
            socket_dir: Some("/run/s".into()),
            ..BootstrapParams::default()
        }
    }

    #[test]
    fn nothing_and_options_are_the_old_form_answered_with_the_plain_address() {
        let options = Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: b"\x12\x09/etc/a.b".to_vec(),
            ..Any::default()
        };
        for stdin in [vec![], options.write_to_bytes().unwrap()] {
            let caller = Caller::recognise(&stdin, &flags());
            assert_eq!(caller, Caller::Legacy);
            assert_eq!(caller.answer(ADDRESS), ADDRESS);
        }
    }

    #[test]
    fn bootstrap_params_are_answered_with_json_version_3() {
        let caller = Caller::recognise(&params().write_to_bytes().unwrap(), &flags());
        let answer: serde_json::Value = serde_json::from_str(&caller.answer(ADDRESS)).unwrap();
        let expected = serde_json::json!({"version": 3, "address": ADDRESS, "protocol": "ttrpc"});
        assert_eq!(answer, expected);
        assert_eq!(caller.socket_dir(), Some("/run/s"));
        assert_eq!(
            caller.ttrpc_address(),
            Some("/run/containerd/containerd.sock.ttrpc")
        );
        assert!(caller.wants_debug());
    }

    #[test]
    fn params_of_another_container_are_not_believed() {
        let mut other = params();
        other.instance_id = "c2".into();
        let caller = Caller::recognise(&other.write_to_bytes().unwrap(), &flags());
        assert_eq!(caller, Caller::Unknown);
    }

    #[test]
    fn garbage_is_unknown_and_still_answered() {
        for stdin in [&b"\xff\xff\xff\xff"[..], b"{}", b"hello", &[0; 64]] {
            let caller = Caller::recognise(stdin, &flags());
            assert_eq!(caller, Caller::Unknown, "{stdin:?}");
            assert_eq!(caller.answer(ADDRESS), ADDRESS);
        }
    }
}
