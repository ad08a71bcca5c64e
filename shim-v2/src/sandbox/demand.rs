//! What the containers of a sandbox may use, each and together.

use std::collections::HashMap;

use nix::sched::CpuSet;

use super::pinning;
use crate::container::oci::{CPU_PERIOD, Resources};
use crate::container::pod::Limits;

/// Shares of one CPU, where only shares are given: who plans by them (Zun, and the requests
/// of Kubernetes) writes 1024 for each.
const SHARES_PER_CPU: u64 = 1024;
/// The least the kernel takes, which is written for who asks for nothing: a pod's pause
/// container, the best-effort containers of Kubernetes.
const LEAST_SHARES: u64 = 2;

/// What a container may use, by the resources it was created with and every update since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    memory: Option<u64>,
    quota: Option<u64>,
    period: Option<u64>,
    shares: Option<u64>,
    /// The host's CPUs it may run on.
    cpus: Option<CpuSet>,
    /// Whether there is a memory limit now.
    limited: bool,
    /// Whether the quota was lifted. It still counts, and so does the memory limit when it is
    /// lifted: who may use more than before is not to find less.
    lifted: bool,
}

impl Demand {
    /// With what `resources` name; 0 and negative values lift a limit.
    #[must_use]
    pub fn changed_by(self, resources: &Resources) -> Self {
        let limit = |given: Option<i64>| u64::try_from(given?).ok().filter(|limit| *limit > 0);
        let (quota, period, shares) = resources.named_cpu();
        let positive = |number: Option<u64>| number.filter(|number| *number > 0);
        Self {
            memory: limit(resources.named_memory_limit()).or(self.memory),
            quota: limit(quota).or(self.quota),
            period: positive(period).or(self.period),
            shares: positive(shares).or(self.shares),
            cpus: resources.named_cpus().and_then(cpus).or(self.cpus),
            limited: resources
                .named_memory_limit()
                .map_or(self.limited, |limit| limit > 0),
            lifted: quota.map_or(self.lifted, |quota| quota <= 0),
        }
    }

    /// CPU time within a [`CPU_PERIOD`]: the quota, or else what the shares stand for.
    fn cpu(&self) -> Option<u64> {
        let of = |amount: u64, whole: u64| amount.saturating_mul(CPU_PERIOD).div_ceil(whole);
        let period = self.period.unwrap_or(CPU_PERIOD);
        let quota = self.quota.map(|quota| of(quota, period));
        let shares = self.shares.filter(|shares| *shares > LEAST_SHARES);
        let shares = shares.map(|shares| of(shares, SHARES_PER_CPU));
        if self.lifted {
            quota.max(shares)
        } else {
            quota.or(shares)
        }
    }
}

fn cpus(list: &str) -> Option<CpuSet> {
    let cpus = pinning::parse(list);
    if cpus.is_none() {
        log::warn!("linux.resources.cpu.cpus is {list:?}, which is no list of CPUs: ignored");
    }
    cpus
}

/// What became of a container, or of a change of what it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The guest has applied the limits.
    Applied,
    /// It has not.
    Refused,
    /// There is no such container any more.
    Gone,
}

/// The demands of all containers: what each may use, and what it is about to. Until a change
/// is settled the greater counts.
#[derive(Clone, Debug)]
pub struct Demands {
    containers: HashMap<String, (Demand, Demand)>,
    sandbox: String,
}

impl Demands {
    /// None yet, in the sandbox of this id.
    pub fn new(sandbox: String) -> Self {
        Self {
            containers: HashMap::new(),
            sandbox,
        }
    }

    /// Notes that a container is about to have `resources`, as far as they are named.
    pub fn change(&mut self, container: String, resources: &Resources) {
        let (_, next) = self.containers.entry(container).or_default();
        *next = next.changed_by(resources);
    }

    /// Notes what became of it.
    pub fn settle(&mut self, container: &str, settled: Settled) {
        if settled == Settled::Gone {
            self.containers.remove(container);
        } else if let Some((now, next)) = self.containers.get_mut(container) {
            match settled {
                Settled::Applied => *now = *next,
                _ => *next = *now,
            }
        }
    }

    /// Whether a container without a memory limit lives on what there is, besides the one that
    /// has the sandbox's id: a pod's pause container uses nothing, and what the only container
    /// of a machine may use is never less than it was.
    pub fn has_unlimited(&self) -> bool {
        let mut others = self
            .containers
            .iter()
            .filter(|(container, _)| **container != self.sandbox);
        others.any(|(_, (now, next))| !now.limited || !next.limited)
    }

    /// The host's CPUs that the containers may run on, together; `None` while one of them, a
    /// pod's pause container aside, may run on any.
    pub fn cpus(&self) -> Option<CpuSet> {
        let lists = self.containers.iter().filter_map(|(container, (_, next))| {
            let pause = *container == self.sandbox && next.cpus.is_none();
            (!pause).then_some(next.cpus)
        });
        let union = |one: Option<CpuSet>, other| Some(pinning::union(&one?, &other?));
        lists.reduce(union).flatten()
    }

    /// The limits of the sandbox: those it was booted for, or what its containers may use
    /// together where that is more.
    pub fn limits(&self, boot: Limits) -> Limits {
        let both = self.containers.values();
        let memory = both
            .clone()
            .filter_map(|(now, next)| now.memory.max(next.memory));
        let memory = memory.reduce(u64::saturating_add);
        let cpu = both.filter_map(|(now, next)| now.cpu().max(next.cpu()));
        let cpu = cpu.reduce(u64::saturating_add);
        let boot_cpu = boot.cpu.map(|(quota, period)| {
            let demand = Demand {
                quota: Some(quota),
                period: Some(period),
                ..Demand::default()
            };
            demand.cpu().unwrap_or_default()
        });
        Limits {
            memory: boot.memory.max(memory),
            cpu: boot_cpu.max(cpu).map(|quota| (quota, CPU_PERIOD)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn demand(now: Demand, resources: Value) -> Demand {
        now.changed_by(&serde_json::from_value(resources).unwrap())
    }

    fn all(containers: &[Value]) -> Demands {
        let mut demands = Demands::new("0".to_owned());
        for (number, resources) in containers.iter().enumerate() {
            let resources = serde_json::from_value(resources.clone()).unwrap();
            demands.change(number.to_string(), &resources);
        }
        demands
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let full = json!({ "memory": { "limit": 1000 },
                           "cpu": { "quota": 300, "period": 200, "shares": 2048 } });
        let full = demand(Demand::default(), full);
        assert_eq!((full.memory, full.cpu()), (Some(1000), Some(150_000)));
        assert_eq!(demand(full, json!({})), full);
        let lifted = demand(
            full,
            json!({ "memory": { "limit": -1 }, "cpu": { "quota": -1 } }),
        );
        // What it had is its still, or what its shares stand for where that is more.
        assert_eq!((lifted.memory, lifted.cpu()), (Some(1000), Some(200_000)));
        let fewer = demand(lifted, json!({ "cpu": { "quota": -1, "shares": 1024 } }));
        assert_eq!(fewer.cpu(), Some(150_000));
        let limited = demand(fewer, json!({ "cpu": { "quota": 20 } }));
        assert_eq!(limited.cpu(), Some(10_000));
        let slower = demand(full, json!({ "cpu": { "period": 400 } }));
        assert_eq!((slower.memory, slower.cpu()), (Some(1000), Some(75_000)));
    }

    #[test]
    fn containers_add_up_and_never_to_less_than_the_boots() {
        let none = Limits::default();
        let of = |memory, cpu: Option<u64>| Limits {
            memory,
            cpu: cpu.map(|quota| (quota, 100_000)),
        };
        let first = json!({ "memory": { "limit": 512 }, "cpu": { "shares": 2 } });
        let second = json!({ "memory": { "limit": 100 }, "cpu": { "shares": 1024 } });
        let third = json!({ "cpu": { "quota": 50_000, "period": 100_000 } });
        let cases = [
            (vec![], none, none),
            (
                vec![json!({})],
                of(Some(64), Some(7)),
                of(Some(64), Some(7)),
            ),
            (vec![first.clone()], none, of(Some(512), None)),
            (
                vec![first.clone(), second.clone(), third.clone()],
                none,
                of(Some(612), Some(150_000)),
            ),
            (
                vec![first, second, third],
                of(Some(1000), Some(100_000)),
                of(Some(1000), Some(150_000)),
            ),
        ];
        for (containers, boot, expected) in cases {
            let limits = all(&containers).limits(boot);
            assert_eq!(limits, expected, "{containers:?} in {boot:?}");
        }
        let much = json!({ "memory": { "limit": i64::MAX }, "cpu": { "shares": u64::MAX } });
        let limits = all(&[much.clone(), much.clone(), much]).limits(none);
        assert_eq!(limits.memory, Some(u64::MAX));
    }

    #[test]
    fn a_container_that_is_gone_asks_for_nothing() {
        let mut demands = all(&[json!({ "memory": { "limit": 512 } })]);
        assert_eq!(demands.limits(Limits::default()).memory, Some(512));
        demands.settle("0", Settled::Gone);
        assert_eq!(demands.limits(Limits::default()), Limits::default());
    }

    #[test]
    fn who_has_no_memory_limit_is_known() {
        let limited = json!({ "memory": { "limit": 512 } });
        let settled = |containers: &[Value]| {
            let mut demands = all(containers);
            for number in 0..containers.len() {
                demands.settle(&number.to_string(), Settled::Applied);
            }
            demands
        };
        assert!(!settled(&[json!({}), limited.clone()]).has_unlimited());
        // In a pod without a pause container the first is like any other.
        let mut demands = Demands::new("pod".to_owned());
        demands.change("0".into(), &serde_json::from_value(json!({})).unwrap());
        assert!(demands.has_unlimited());
        let mut demands = settled(&[json!({}), limited.clone(), json!({})]);
        assert!(demands.has_unlimited());
        demands.settle("2", Settled::Gone);
        assert!(!demands.has_unlimited());
        let lifted = json!({ "memory": { "limit": -1 } });
        demands.change("1".into(), &serde_json::from_value(lifted).unwrap());
        assert!(demands.has_unlimited());
    }

    #[test]
    fn cpus_are_named_together_or_not_at_all() {
        let on = |cpus: &str| json!({ "cpu": { "cpus": cpus } });
        for (containers, expected) in [
            (vec![], None),
            (vec![json!({})], None),
            (vec![on("1")], Some("1")),
            (vec![json!({}), on("0-1"), on("3")], Some("0,1,3")),
            (vec![on("0"), on("1")], Some("0,1")),
            (vec![json!({}), on("1"), json!({})], None),
            (vec![json!({}), on("1"), on("")], None),
            (vec![on("nonsense")], None),
        ] {
            let expected = expected.and_then(pinning::parse);
            assert_eq!(all(&containers).cpus(), expected, "{containers:?}");
        }
        // An update that names none keeps them.
        let kept = demand(demand(Demand::default(), on("2")), on(""));
        assert_eq!(kept.cpus, pinning::parse("2"));
    }

    #[test]
    fn two_changes_at_once_are_both_kept() {
        let mut demands = all(&[json!({})]);
        for resources in [
            json!({ "memory": { "limit": 512 } }),
            json!({ "cpu": { "quota": 200_000, "period": 100_000 } }),
        ] {
            demands.change("0".into(), &serde_json::from_value(resources).unwrap());
        }
        let limits = demands.limits(Limits::default());
        assert_eq!(
            (limits.memory, limits.cpu),
            (Some(512), Some((200_000, CPU_PERIOD)))
        );
    }

    #[test]
    fn a_change_counts_at_once_where_it_is_more_and_when_it_is_settled_where_it_is_less() {
        let mut demands = all(&[json!({ "memory": { "limit": 512 } })]);
        demands.settle("0", Settled::Applied);
        for (limit, settled, before, after) in [
            (100, Settled::Refused, 512, 512),
            (600, Settled::Refused, 600, 512),
            (600, Settled::Applied, 600, 600),
            (100, Settled::Applied, 600, 100),
        ] {
            let memory = |demands: &Demands| demands.limits(Limits::default()).memory;
            let resources = json!({ "memory": { "limit": limit } });
            demands.change("0".into(), &serde_json::from_value(resources).unwrap());
            assert_eq!(memory(&demands), Some(before), "{limit} asked for");
            demands.settle("0", settled);
            assert_eq!(memory(&demands), Some(after), "{limit} {settled:?}");
        }
        demands.settle("1", Settled::Refused);
    }
}
