//! The texts of a cgroup's files (Linux, `Documentation/admin-guide/cgroup-v2.rst`).
//!
//! They come from a guest that may lie: what is not a number counts as absent, and
//! lists are bounded.

use std::collections::HashMap;

/// Most devices of `io.stat`, and most sizes of huge pages, that are reported.
const MAX_ENTRIES: usize = 256;

/// The files by name.
pub struct Cgroup<'a>(&'a HashMap<String, String>);

/// A value that may have no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The file says `max`.
    Max,
    /// So much. What has no file has a limit of 0, as with containerd's own reader.
    To(u64),
}

impl Limit {
    /// The number, or `max` for none.
    pub fn or(self, max: u64) -> u64 {
        match self {
            Self::Max => max,
            Self::To(value) => value,
        }
    }
}

/// One device's line of `io.stat`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its major number.
    pub major: u64,
    /// Its minor number.
    pub minor: u64,
    /// Bytes read.
    pub rbytes: u64,
    /// Bytes written.
    pub wbytes: u64,
    /// Reads.
    pub rios: u64,
    /// Writes.
    pub wios: u64,
}

/// Huge pages of one size.
#[derive(Debug, PartialEq, Eq)]
pub struct HugePages {
    /// The size as the kernel writes it, such as `2MB`.
    pub size: String,
    /// Bytes in use.
    pub current: u64,
    /// Bytes that may be.
    pub max: Limit,
    /// Allocations refused.
    pub failures: u64,
}

/// One line of a pressure file.
#[derive(Debug, Default, PartialEq)]
pub struct Pressure {
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last 5 minutes.
    pub avg300: f64,
    /// Microseconds in all.
    pub total: u64,
}

/// The keys and values of a flat keyed file; 0 for what is not there.
pub struct Keyed<'a>(HashMap<&'a str, u64>);

impl Keyed<'_> {
    /// The value of a key.
    pub fn get(&self, key: &str) -> u64 {
        self.0.get(key).copied().unwrap_or(0)
    }
}

impl<'a> Cgroup<'a> {
    /// The files as the agent sent them.
    pub fn new(files: &'a HashMap<String, String>) -> Self {
        Self(files)
    }

    fn text(&self, file: &str) -> &'a str {
        self.0.get(file).map_or("", |text| text.trim())
    }

    /// A file of one number.
    pub fn number(&self, file: &str) -> u64 {
        self.text(file).parse().unwrap_or(0)
    }

    /// A file of one limit.
    pub fn limit(&self, file: &str) -> Limit {
        match self.text(file) {
            "max" => Limit::Max,
            text => Limit::To(text.parse().unwrap_or(0)),
        }
    }

    /// A file of lines `key value`; `None` where there is none.
    pub fn keyed(&self, file: &str) -> Option<Keyed<'a>> {
        let line = |line: &'a str| {
            let (key, value) = line.split_once(' ')?;
            Some((key, value.trim().parse().ok()?))
        };
        let text = self.0.get(file)?;
        Some(Keyed(text.lines().filter_map(line).collect()))
    }

    /// `io.stat`.
    pub fn devices(&self) -> Vec<Device> {
        let lines = self.text("io.stat").lines();
        lines.filter_map(device).take(MAX_ENTRIES).collect()
    }

    /// The `hugetlb.*` files, by size.
    pub fn huge_pages(&self) -> Vec<HugePages> {
        let mut sizes: Vec<&str> = self
            .0
            .keys()
            .filter_map(|file| file.strip_prefix("hugetlb.")?.strip_suffix(".current"))
            .filter(|size| size.ends_with("B") && !size.contains('.'))
            .take(MAX_ENTRIES)
            .collect();
        sizes.sort_unstable();
        let pages = |size: &str| {
            let file = |key: &str| format!("hugetlb.{size}.{key}");
            HugePages {
                size: size.to_owned(),
                current: self.number(&file("current")),
                max: self.limit(&file("max")),
                failures: self.keyed(&file("events")).map_or(0, |e| e.get("max")),
            }
        };
        sizes.into_iter().map(pages).collect()
    }

    /// A pressure file's `some` and `full`; a kernel without PSI has none.
    pub fn pressure(&self, file: &str) -> Option<(Pressure, Pressure)> {
        let text = self.0.get(file)?;
        let of = |kind: &str| {
            let lines = text.lines();
            lines
                .filter_map(|line| line.strip_prefix(kind))
                .map(pressure)
                .next()
                .unwrap_or_default()
        };
        Some((of("some "), of("full ")))
    }
}

/// `8:0 rbytes=1 wbytes=2 …`; devices without figures have only their number.
fn device(line: &str) -> Option<Device> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut device = Device {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..Device::default()
    };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let value = value.parse().unwrap_or(0);
        match key {
            "rbytes" => device.rbytes = value,
            "wbytes" => device.wbytes = value,
            "rios" => device.rios = value,
            "wios" => device.wios = value,
            _ => {}
        }
    }
    Some(device)
}

/// `avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn pressure(line: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for (key, value) in line.split_whitespace().filter_map(|w| w.split_once('=')) {
        let percent = value.parse().ok().filter(|value: &f64| value.is_finite());
        match key {
            "avg10" => pressure.avg10 = percent.unwrap_or(0.0),
            "avg60" => pressure.avg60 = percent.unwrap_or(0.0),
            "avg300" => pressure.avg300 = percent.unwrap_or(0.0),
            "total" => pressure.total = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    pressure
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A cgroup as a Linux 6.12 guest shows it, with a limit of memory and none of pids.
    pub fn sample() -> HashMap<String, String> {
        let files = [
            (
                "cpu.stat",
                "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnice_usec 0\n\
                 nr_periods 10\nnr_throttled 4\nthrottled_usec 70\nnr_bursts 2\nburst_usec 9\n",
            ),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.25 avg300=0.00 total=42\n\
                 full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
            ),
            (
                "memory.stat",
                "anon 4096\nfile 8192\nkernel 700\nkernel_stack 300\nsock 11\nshmem 12\nfile_mapped 13\n\
                 file_dirty 14\nfile_writeback 15\nanon_thp 16\ninactive_anon 17\nactive_anon 18\n\
                 inactive_file 19\nactive_file 20\nunevictable 21\nslab_reclaimable 22\n\
                 slab_unreclaimable 23\nslab 45\nworkingset_refault_anon 24\n\
                 workingset_refault_file 25\npgfault 26\npgmajfault 27\n",
            ),
            ("memory.current", "16384\n"),
            ("memory.max", "1048576\n"),
            ("memory.peak", "32768\n"),
            (
                "memory.events",
                "low 0\nhigh 1\nmax 5\noom 3\noom_kill 2\noom_group_kill 1\n",
            ),
            ("memory.swap.current", "100\n"),
            ("memory.swap.max", "max\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            (
                "io.stat",
                "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n254:16 \nnonsense\n",
            ),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 6\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
        ];
        files
            .map(|(name, text)| (name.to_owned(), text.to_owned()))
            .into()
    }

    #[test]
    fn nonsense_is_absent_and_lists_are_bounded() {
        let mut files = sample();
        files.insert("memory.current".into(), "-1".into());
        files.insert("io.stat".into(), "8:0 rbytes=1\n".repeat(100_000));
        files.insert("cpu.pressure".into(), "some avg10=nan total=x".into());
        let cgroup = Cgroup::new(&files);
        assert_eq!(cgroup.number("memory.current"), 0);
        assert_eq!(cgroup.number("no.such"), 0);
        assert_eq!(cgroup.limit("no.such"), Limit::To(0));
        assert_eq!(cgroup.devices().len(), MAX_ENTRIES);
        let (some, full) = cgroup.pressure("cpu.pressure").unwrap();
        assert_eq!((some, full), (Pressure::default(), Pressure::default()));
        assert!(cgroup.pressure("io.pressure").is_none());
        assert!(cgroup.keyed("no.such").is_none());
    }

    #[test]
    fn devices_and_huge_pages_are_listed() {
        let files = sample();
        let cgroup = Cgroup::new(&files);
        let devices = cgroup.devices();
        assert_eq!(devices.len(), 2);
        assert_eq!(
            devices[0],
            Device {
                major: 8,
                rbytes: 1,
                wbytes: 2,
                rios: 3,
                wios: 4,
                ..Device::default()
            }
        );
        assert_eq!((devices[1].major, devices[1].minor), (254, 16));
        let pages = HugePages {
            size: "2MB".into(),
            current: 2_097_152,
            max: Limit::Max,
            failures: 6,
        };
        assert_eq!(cgroup.huge_pages(), [pages]);
    }
}
