//! What the containers of a sandbox may use, each and together.

use std::collections::HashMap;

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
}

impl Demand {
    /// With what `resources` name; 0 and negative values lift a limit.
    #[must_use]
    pub fn changed_by(self, resources: &Resources) -> Self {
        let limit = |given: Option<i64>, now| match given {
            Some(limit) => u64::try_from(limit).ok().filter(|limit| *limit > 0),
            None => now,
        };
        let (quota, period, shares) = resources.named_cpu();
        let positive = |number: Option<u64>| number.filter(|number| *number > 0);
        Self {
            memory: limit(resources.named_memory_limit(), self.memory),
            quota: limit(quota, self.quota),
            period: positive(period).or(self.period),
            shares: positive(shares).or(self.shares),
        }
    }

    /// CPU time within a [`CPU_PERIOD`]: the quota, or else what the shares stand for.
    fn cpu(&self) -> Option<u64> {
        let of = |amount: u64, whole: u64| amount.saturating_mul(CPU_PERIOD).div_ceil(whole);
        match (self.quota, self.shares) {
            (Some(quota), _) => Some(of(quota, self.period.unwrap_or(CPU_PERIOD))),
            (None, shares) => shares
                .filter(|shares| *shares > LEAST_SHARES)
                .map(|shares| of(shares, SHARES_PER_CPU)),
        }
    }
}

/// The demands of all containers.
#[derive(Clone, Debug, Default)]
pub struct Demands(HashMap<String, Demand>);

impl Demands {
    /// What a container may use.
    pub fn get(&self, container: &str) -> Option<Demand> {
        self.0.get(container).copied()
    }

    /// Notes what a container may use; nothing any more if `None`.
    pub fn set(&mut self, container: String, demand: Option<Demand>) {
        match demand {
            Some(demand) => self.0.insert(container, demand),
            None => self.0.remove(&container),
        };
    }

    /// The limits of the sandbox: those it was booted for, or what its containers may use
    /// together where that is more.
    pub fn limits(&self, boot: Limits) -> Limits {
        let memory = self.0.values().filter_map(|demand| demand.memory);
        let memory = memory.reduce(u64::saturating_add);
        let cpu = self.0.values().filter_map(Demand::cpu);
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
        let mut demands = Demands::default();
        for (number, resources) in containers.iter().enumerate() {
            let demand = demand(Demand::default(), resources.clone());
            demands.set(number.to_string(), Some(demand));
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
        assert_eq!((lifted.memory, lifted.cpu()), (None, Some(200_000)));
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
        assert!(demands.get("0").is_some());
        demands.set("0".into(), None);
        assert_eq!(demands.limits(Limits::default()), Limits::default());
    }
}
