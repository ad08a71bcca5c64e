//! `VmConfig`: everything a virtual machine is made of, complete at the start.
//!
//! One JSON document, read from an inherited descriptor (the shim) or from a file
//! (`husk-vmm --config vm.json`, by hand). Unknown keys are refused. Every file is
//! a [`Source`]: the shim passes descriptors, because the jailed VMM reaches no
//! path outside its jail; by hand it is a path, opened before anything else.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Smallest guest RAM accepted, in MiB: below it the kernel cannot unpack its initramfs.
pub const MIN_MEMORY_MIB: u32 = 32;
/// Largest guest RAM accepted, in MiB (1 TiB).
pub const MAX_MEMORY_MIB: u32 = 1024 * 1024;
/// Most vCPUs a guest may have; the MP table's APIC ids are 8 bits wide.
pub const MAX_VCPUS: u32 = 254;
/// Longest kernel command line passed on, in bytes; x86 Linux's COMMAND_LINE_SIZE
/// is 2048 and the VMM appends its device list.
pub const MAX_CMDLINE_LEN: usize = 1024;
/// Length of a virtio-fs tag on the wire (virtio 1.2, 5.11.4), in bytes.
pub const MAX_TAG_LEN: usize = 36;

/// Most network devices a guest may have at a time.
pub const MAX_NICS: u32 = 16;

/// Smallest and largest MTU of a network device (virtio 1.2, 5.1.4.1).
pub const MTU: std::ops::RangeInclusive<u16> = 68..=u16::MAX;

/// The whole machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Number of vCPUs started at boot. 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Most vCPUs there may be later, the same number if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_vcpus: Option<u32>,
    /// Guest RAM at boot in MiB, [`MIN_MEMORY_MIB`] to [`MAX_MEMORY_MIB`].
    pub memory_mib: u32,
    /// Most RAM there may be later in MiB, the same number if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_memory_mib: Option<u32>,
    /// What to boot.
    pub kernel: KernelConfig,
    /// The KVM device; by hand it may be left out for `/dev/kvm`.
    #[serde(default = "default_kvm")]
    pub kvm: Source,
    /// Where the guest's serial console goes, besides the 64 KiB kept for the post-mortem.
    #[serde(default)]
    pub console: ConsoleConfig,
    /// The vsock device, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// The virtio-fs device, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<ShareConfig>,
    /// The network devices, in the order in which the guest finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<NetConfig>,
    /// Number of slots for network devices, those of `net` included, which take the first;
    /// the others are filled over the control socket. At most [`MAX_NICS`]; as many as `net`
    /// has if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic_slots: Option<u32>,
}

/// The kernel, what it unpacks and what it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelConfig {
    /// Uncompressed ELF `vmlinux`.
    pub image: Source,
    /// cpio archive with `/init`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<Source>,
    /// Command line; the VMM appends one `virtio_mmio.device=` per device.
    pub cmdline: String,
}

/// A file the VMM uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Source {
    /// An inherited descriptor.
    Fd(RawFd),
    /// A descriptor that came with the document, over a socket: what was opened only after
    /// the VMM had been started. A jailed VMM accepts this form and the one above.
    Received {
        /// Its place among those that came.
        received: usize,
    },
    /// A path, for use by hand.
    Path(PathBuf),
}

/// Destination of the guest's serial output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleConfig {
    /// Kept in memory only; written to the log when the guest dies.
    #[default]
    Ring,
    /// Also copied to standard output (and standard input is the guest's), for use by hand.
    Stdio,
}

/// The user-space vsock device: Firecracker's host handshake over Unix sockets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, 3 or above (0 to 2 are reserved).
    pub cid: u32,
    /// A listening Unix stream socket on which the host writes `CONNECT <port>\n`
    /// and reads `OK <n>\n`: a descriptor, or by hand a path to bind.
    pub listener: Source,
    /// A guest connection to CID 2 port P is forwarded to the Unix socket
    /// `<guest_connect>_<P>`. Inside the jail's root when jailed.
    pub guest_connect: PathBuf,
}

/// The virtio-fs device and the directory below which trees may be exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// The tag the guest mounts, 1 to [`MAX_TAG_LEN`] bytes.
    pub tag: String,
    /// Directory all exports live below. Inside the jail's root when jailed.
    pub root: PathBuf,
    /// Trees exported from the start; more come and go over the control socket.
    #[serde(default)]
    pub exports: Vec<Export>,
}

/// One exported tree: a virtual-filesystem mount of its own, with its own caching.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// Relative to the share's root, and at the same place in the guest's mount.
    /// Plain components only: no `..`, no leading `/`.
    pub path: PathBuf,
    /// How long the guest may trust what it has read.
    pub cache: CachePolicy,
}

/// Who else writes the tree decides how long the guest may cache it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CachePolicy {
    /// Only this guest writes it (a container's rootfs): cache long.
    Always,
    /// The host changes it too (volumes): revalidate on every open.
    Revalidate,
}

/// A network device and the tap behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// A tap opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR: a descriptor, or by hand the
    /// name of a tap, which is made when there is none.
    pub tap: Source,
    /// The guest's address on the link.
    pub mac: MacAddress,
    /// The largest packet of the link, link-layer header not counted; within [`MTU`].
    pub mtu: u16,
}

/// A link-layer address, written `02:00:00:00:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// The text is no [`MacAddress`].
#[derive(Debug, Error)]
#[error("{0:?} is not a MAC address such as 02:00:00:00:00:01")]
pub struct NotAMacAddress(String);

impl FromStr for MacAddress {
    type Err = NotAMacAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let byte = |hex: &str| {
            let digits = hex.len() == 2 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
            u8::from_str_radix(hex, 16).ok().filter(|_| digits)
        };
        text.split(':')
            .map(byte)
            .collect::<Option<Vec<u8>>>()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| NotAMacAddress(text.to_owned()))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = NotAMacAddress;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Why a [`VmConfig`] is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not JSON, a wrong type, a missing or an unknown key; the text names key and line.
    #[error("VmConfig is not valid: {0}")]
    Parse(#[from] serde_json::Error),
    /// See [`ValueError`].
    #[error("VmConfig: {0}")]
    Value(#[from] ValueError),
}

/// A value out of its range.
#[derive(Debug, Error)]
#[error("`{key}` is {value}, must be {must}")]
pub struct ValueError {
    /// Dotted path of the key.
    key: String,
    /// What was given.
    value: String,
    /// What is accepted.
    must: String,
}

impl ValueError {
    /// Says that the key is one of `object`'s.
    #[must_use]
    pub fn within(self, object: impl fmt::Display) -> Self {
        let key = format!("{object}.{}", self.key);
        Self { key, ..self }
    }
}

fn default_kvm() -> Source {
    Source::Path(PathBuf::from("/dev/kvm"))
}

impl VmConfig {
    /// Parses and validates a JSON document.
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_slice(json)?;
        config.validate()?;
        Ok(config)
    }

    /// Most vCPUs there may be.
    pub fn possible_vcpus(&self) -> u32 {
        self.max_vcpus.unwrap_or(self.vcpus)
    }

    /// Most RAM there may be, in MiB.
    pub fn possible_memory_mib(&self) -> u32 {
        self.max_memory_mib.unwrap_or(self.memory_mib)
    }

    /// How many slots there are for network devices.
    pub fn possible_nics(&self) -> u32 {
        let given = u32::try_from(self.net.len()).unwrap_or(u32::MAX);
        self.nic_slots.unwrap_or(given)
    }

    /// Checks every range; says nothing about whether files exist.
    pub fn validate(&self) -> Result<(), ValueError> {
        check(
            (1..=MAX_VCPUS).contains(&self.vcpus),
            "vcpus",
            self.vcpus,
            || format!("1 to {MAX_VCPUS}"),
        )?;
        check(
            (MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib),
            "memory_mib",
            self.memory_mib,
            || format!("{MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}"),
        )?;
        check(
            (self.vcpus..=MAX_VCPUS).contains(&self.possible_vcpus()),
            "max_vcpus",
            self.possible_vcpus(),
            || format!("`vcpus` to {MAX_VCPUS}"),
        )?;
        check(
            (self.memory_mib..=MAX_MEMORY_MIB).contains(&self.possible_memory_mib()),
            "max_memory_mib",
            self.possible_memory_mib(),
            || format!("`memory_mib` to {MAX_MEMORY_MIB}"),
        )?;
        let cmdline = &self.kernel.cmdline;
        check(
            cmdline.len() <= MAX_CMDLINE_LEN && cmdline.bytes().all(|b| (0x20..0x7f).contains(&b)),
            "kernel.cmdline",
            format_args!("{} bytes long", cmdline.len()),
            || format!("at most {MAX_CMDLINE_LEN} bytes of printable ASCII"),
        )?;
        if let Some(vsock) = &self.vsock {
            check(
                vsock.cid >= 3 && vsock.cid != u32::MAX,
                "vsock.cid",
                vsock.cid,
                || "3 or above, and not 4294967295".into(),
            )?;
        }
        if let Some(share) = &self.share {
            share.validate()?;
        }
        check(
            self.net.len() <= MAX_NICS as usize,
            "net",
            format_args!("{} devices", self.net.len()),
            || format!("at most {MAX_NICS}"),
        )?;
        check(
            (self.net.len()..=MAX_NICS as usize).contains(&(self.possible_nics() as usize)),
            "nic_slots",
            self.possible_nics(),
            || format!("as many as `net` has to {MAX_NICS}"),
        )?;
        for (at, net) in self.net.iter().enumerate() {
            let valid = validate_nic(net.mac, net.mtu);
            valid.map_err(|error| error.within(format_args!("net[{at}]")))?;
        }
        Ok(())
    }
}

/// Checks what the guest is told of a network device.
pub fn validate_nic(mac: MacAddress, mtu: u16) -> Result<(), ValueError> {
    check(MTU.contains(&mtu), "mtu", mtu, || {
        format!("{} to {}", MTU.start(), MTU.end())
    })?;
    // The lowest bit of the first byte marks a group's address.
    check(mac.0[0] & 1 == 0 && mac.0 != [0; 6], "mac", mac, || {
        "the address of one station".into()
    })
}

impl ShareConfig {
    fn validate(&self) -> Result<(), ValueError> {
        check(
            (1..=MAX_TAG_LEN).contains(&self.tag.len()) && !self.tag.contains('\0'),
            "share.tag",
            format_args!("{:?}", self.tag),
            || format!("1 to {MAX_TAG_LEN} bytes without NUL"),
        )?;
        for (at, export) in self.exports.iter().enumerate() {
            let valid = export.validate();
            valid.map_err(|error| error.within(format_args!("share.exports[{at}]")))?;
        }
        Ok(())
    }
}

impl Export {
    /// Checks that the path cannot leave the share's root.
    pub fn validate(&self) -> Result<(), ValueError> {
        use std::path::Component;
        let plain = self
            .path
            .components()
            .all(|component| matches!(component, Component::Normal(_)));
        check(
            plain && self.path.components().next().is_some(),
            "path",
            format_args!("{:?}", self.path),
            || "a relative path of plain components".into(),
        )
    }
}

fn check(
    ok: bool,
    key: &'static str,
    value: impl std::fmt::Display,
    must: impl FnOnce() -> String,
) -> Result<(), ValueError> {
    if ok {
        return Ok(());
    }
    Err(ValueError {
        key: key.to_owned(),
        value: value.to_string(),
        must: must(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> serde_json::Value {
        serde_json::json!({
            "vcpus": 1,
            "memory_mib": 64,
            "kernel": { "image": 5, "cmdline": "console=ttyS0" },
        })
    }

    fn parse(value: &serde_json::Value) -> Result<VmConfig, ConfigError> {
        VmConfig::from_json(value.to_string().as_bytes())
    }

    #[test]
    fn minimal_document_gets_defaults() {
        let config = parse(&minimal()).unwrap();
        assert_eq!(config.kvm, Source::Path("/dev/kvm".into()));
        assert_eq!(config.console, ConsoleConfig::Ring);
        assert_eq!(config.kernel.image, Source::Fd(5));
    }

    #[test]
    fn unknown_key_is_refused_by_name() {
        let mut value = minimal();
        value["vcpu"] = 2.into();
        let error = parse(&value).unwrap_err().to_string();
        assert!(error.contains("vcpu"), "{error}");
    }

    #[test]
    fn zero_vcpus_is_refused_with_the_range() {
        let mut value = minimal();
        value["vcpus"] = 0.into();
        let error = parse(&value).unwrap_err().to_string();
        assert_eq!(error, "VmConfig: `vcpus` is 0, must be 1 to 254");
    }

    #[test]
    fn a_machine_is_never_smaller_than_at_its_boot() {
        let mut value = minimal();
        let config = parse(&value).unwrap();
        assert_eq!(
            (config.possible_vcpus(), config.possible_memory_mib()),
            (1, 64)
        );
        value["max_vcpus"] = 254.into();
        value["max_memory_mib"] = 4096.into();
        let config = parse(&value).unwrap();
        assert_eq!(
            (config.possible_vcpus(), config.possible_memory_mib()),
            (254, 4096)
        );
        for (key, bad) in [
            ("max_vcpus", 0),
            ("max_vcpus", 255),
            ("max_memory_mib", 63),
            ("max_memory_mib", 2 << 20),
        ] {
            let mut value = minimal();
            value[key] = bad.into();
            let error = parse(&value).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn wrong_type_is_refused() {
        let mut value = minimal();
        value["memory_mib"] = "64".into();
        assert!(matches!(parse(&value), Err(ConfigError::Parse(_))));
    }

    #[test]
    fn export_paths_cannot_leave_the_share() {
        for path in ["../x", "/x", "a/../../x", "", "."] {
            let export = Export {
                path: path.into(),
                cache: CachePolicy::Always,
            };
            assert!(export.validate().is_err(), "{path:?} was accepted");
        }
    }

    fn with_net(mac: &str, mtu: u32) -> Result<VmConfig, ConfigError> {
        let mut value = minimal();
        value["net"] = serde_json::json!([{ "tap": 9, "mac": mac, "mtu": mtu }]);
        parse(&value)
    }

    #[test]
    fn network_devices_are_checked() {
        for mtu in [68, 1500, 9000, 65535] {
            let config = with_net("02:Fe:00:00:00:0a", mtu).unwrap();
            assert_eq!(config.net[0].mac.to_string(), "02:fe:00:00:00:0a");
        }
        for (mac, mtu, word) in [
            (
                "02:00:00:00:00:01",
                67,
                "`net[0].mtu` is 67, must be 68 to 65535",
            ),
            ("02:00:00:00:00:01", 65536, "65536"),
            (
                "01:00:5e:00:00:01",
                1500,
                "`net[0].mac` is 01:00:5e:00:00:01",
            ),
            ("00:00:00:00:00:00", 1500, "one station"),
            ("02:00:00:00:00", 1500, "not a MAC address"),
            ("02:00:00:00:00:01:02", 1500, "not a MAC address"),
            ("2:0:0:0:0:1", 1500, "not a MAC address"),
            ("+2:00:00:00:00:01", 1500, "not a MAC address"),
            ("", 1500, "not a MAC address"),
        ] {
            let error = with_net(mac, mtu).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_slots_for_network_devices_are_at_least_the_devices() {
        let mut value = minimal();
        let nic = serde_json::json!({ "tap": 9, "mac": "02:00:00:00:00:01", "mtu": 1500 });
        value["net"] = vec![nic.clone(); 2].into();
        assert_eq!(parse(&value).unwrap().possible_nics(), 2);
        value["nic_slots"] = MAX_NICS.into();
        assert_eq!(parse(&value).unwrap().possible_nics(), 16);
        for (slots, nics, word) in [
            (1, 2, "`nic_slots` is 1"),
            (17, 2, "`nic_slots` is 17"),
            (16, 17, "`net` is 17 devices, must be at most 16"),
        ] {
            value["nic_slots"] = slots.into();
            value["net"] = vec![nic.clone(); nics].into();
            let error = parse(&value).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_config_survives_the_trip_through_json() {
        let mut value = minimal();
        value["share"] = serde_json::json!({
            "tag": "share", "root": "/share",
            "exports": [{ "path": "c1/rootfs", "cache": "always" }],
        });
        value["vsock"] = serde_json::json!({ "cid": 3, "listener": 7, "guest_connect": "/vsock" });
        value["net"] = serde_json::json!([
            { "tap": 8, "mac": "02:00:00:00:00:01", "mtu": 1500 },
            { "tap": "tap1", "mac": "02:00:00:00:00:02", "mtu": 9000 },
        ]);
        let config = parse(&value).unwrap();
        let again = serde_json::to_vec(&config).unwrap();
        assert_eq!(VmConfig::from_json(&again).unwrap(), config);
    }
}
