//! The traffic of a pod's links, as the host counts it in the pod's network namespace.

use std::fs;

use containerd_shim_protos::{cgroups, cgroups_v2};

use crate::sandbox::network::tap;

/// What went through a link since it was made.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Towards the pod.
    pub received: Traffic,
    /// From the pod.
    pub sent: Traffic,
}

/// One direction.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of frames.
    pub bytes: u64,
    /// Frames.
    pub packets: u64,
    /// Frames that were damaged.
    pub errors: u64,
    /// Frames that were not taken.
    pub dropped: u64,
}

/// Both versions' messages have the same fields, in types of their own.
macro_rules! from_link {
    ($($stat:ty),+) => {
        $(impl From<&Link> for $stat {
            fn from(link: &Link) -> Self {
                Self {
                    name: link.name.clone(),
                    rx_bytes: link.received.bytes,
                    rx_packets: link.received.packets,
                    rx_errors: link.received.errors,
                    rx_dropped: link.received.dropped,
                    tx_bytes: link.sent.bytes,
                    tx_packets: link.sent.packets,
                    tx_errors: link.sent.errors,
                    tx_dropped: link.sent.dropped,
                    ..Self::default()
                }
            }
        })+
    };
}

from_link!(
    cgroups::metrics::NetworkStat,
    cgroups_v2::metrics::NetworkStat
);

/// The links of the namespace that the process `pid` is in, without `lo` and our taps; none if
/// the process is gone.
pub fn links(pid: u32) -> Vec<Link> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/dev"));
    parse(&table.unwrap_or_default())
}

/// Two lines of heading, then a line for each link: eight numbers for what was received and
/// eight for what was sent (`net/dev` in proc_pid_net(5)).
fn parse(table: &str) -> Vec<Link> {
    let links = table.lines().skip(2).filter_map(|line| {
        let (name, numbers) = line.trim().rsplit_once(':')?;
        let numbers = numbers.split_whitespace().map(str::parse::<u64>);
        let numbers: Vec<u64> = numbers.collect::<Result<_, _>>().ok()?;
        let traffic = |first: usize| match numbers.get(first..first + 4) {
            Some(&[bytes, packets, errors, dropped]) => Some(Traffic {
                bytes,
                packets,
                errors,
                dropped,
            }),
            _ => None,
        };
        Some(Link {
            name: name.to_owned(),
            received: traffic(0)?,
            sent: traffic(8)?,
        })
    });
    let of_pod = |link: &Link| link.name != "lo" && tap::link_of(&link.name).is_none();
    links.filter(of_pod).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What a message tells: the name, then what was received and what was sent.
    pub trait Told {
        fn told(&self) -> (&str, [[u64; 4]; 2]);
    }

    macro_rules! told {
        ($($stat:ty),+) => {
            $(impl Told for $stat {
                fn told(&self) -> (&str, [[u64; 4]; 2]) {
                    let rx = [self.rx_bytes, self.rx_packets, self.rx_errors, self.rx_dropped];
                    let tx = [self.tx_bytes, self.tx_packets, self.tx_errors, self.tx_dropped];
                    (&self.name, [rx, tx])
                }
            })+
        };
    }

    told!(
        cgroups::metrics::NetworkStat,
        cgroups_v2::metrics::NetworkStat
    );

    /// One link, each of whose numbers is another.
    pub fn sample() -> Vec<Link> {
        parse("\n\neth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0")
    }

    #[test]
    fn the_links_of_a_pod_are_read_from_the_kernels_table() {
        let table = "Inter-|   Receive         |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:    9000      10    1    2    0     0          0         0     7000       8    3    4    0     0       0          0
eth0:1:       5       6    7    8    0     0          0         0        9      10   11   12    0     0       0          0
 husk7:    9000      10    0    0    0     0          0         0     7000       8    0    0    0     0       0          0
broken: 1 2 x
";
        let traffic = |bytes, packets, errors, dropped| Traffic {
            bytes,
            packets,
            errors,
            dropped,
        };
        let link = |name: &str, received, sent| Link {
            name: name.to_owned(),
            received,
            sent,
        };
        let expected = [
            link("eth0", traffic(9000, 10, 1, 2), traffic(7000, 8, 3, 4)),
            link("eth0:1", traffic(5, 6, 7, 8), traffic(9, 10, 11, 12)),
        ];
        assert_eq!(parse(table), expected);
        assert_eq!(parse(""), []);
    }

    #[test]
    fn a_process_that_is_gone_has_no_links() {
        assert_eq!(links(0), []);
    }
}
