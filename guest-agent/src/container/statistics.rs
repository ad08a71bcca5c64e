//! What a container's cgroup counts, as the kernel's text: the shim makes the metrics
//! of containerd from it.

use std::collections::HashMap;
use std::fs;

use super::cgroup::{Cgroup, CgroupError};

/// The files, by controller. One that the kernel does not have is left out.
const FILES: [&str; 27] = [
    "cgroup.stat",
    "cpu.max",
    "cpu.pressure",
    "cpu.stat",
    "cpu.weight",
    "io.pressure",
    "io.stat",
    "memory.current",
    "memory.events",
    "memory.events.local",
    "memory.high",
    "memory.low",
    "memory.max",
    "memory.min",
    "memory.oom.group",
    "memory.peak",
    "memory.pressure",
    "memory.stat",
    "memory.swap.current",
    "memory.swap.events",
    "memory.swap.max",
    "memory.swap.peak",
    "misc.current",
    "pids.current",
    "pids.events",
    "pids.max",
    "pids.peak",
];

/// The files of each size of huge pages: `hugetlb.<size><suffix>`.
const HUGETLB: [&str; 3] = [".current", ".max", ".events"];

impl Cgroup {
    /// The texts of all these files by name.
    pub fn statistics(&self) -> Result<HashMap<String, String>, CgroupError> {
        let mut names: Vec<String> = FILES.into_iter().map(str::to_owned).collect();
        names.extend(self.hugetlb_files()?);
        let mut texts = HashMap::with_capacity(names.len());
        for name in names {
            match self.read(&name) {
                Ok(text) => {
                    texts.insert(name, text);
                }
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(texts)
    }

    /// Which sizes there are depends on the CPU.
    fn hugetlb_files(&self) -> Result<Vec<String>, CgroupError> {
        let path = self.file("");
        let failed = |source| CgroupError::Io {
            action: "listing",
            path: path.clone(),
            source,
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(name) = name.to_str().filter(|name| is_hugetlb(name)) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

fn is_hugetlb(name: &str) -> bool {
    name.strip_prefix("hugetlb.").is_some_and(|rest| {
        HUGETLB.iter().any(|suffix| {
            rest.strip_suffix(suffix)
                .is_some_and(|size| !size.contains('.'))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_and_other_files_of_huge_pages_are_left_out() {
        for name in [
            "hugetlb.2MB.current",
            "hugetlb.1GB.max",
            "hugetlb.2MB.events",
        ] {
            assert!(is_hugetlb(name), "{name}");
        }
        for name in [
            "hugetlb.2MB.rsvd.max",
            "hugetlb.2MB.numa_stat",
            "memory.max",
        ] {
            assert!(!is_hugetlb(name), "{name}");
        }
    }
}
