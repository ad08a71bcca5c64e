//! Links that the guest makes itself, as the machine needs no device for them: VRFs, which carry
//! nothing, and what was made on another link of the namespace, whose frames that one carries.

use netlink_packet_route::link::{
    InfoData, InfoKind, InfoMacVlan, InfoVlan, InfoVrf, LinkAttribute, LinkInfo, LinkMessage,
    MacVlanMode, VlanFlags,
};

use super::scan::{Link, infos};

/// Those of a VLAN that a kernel can be asked for. It tells of them as if all bits were.
const VLAN_FLAGS: VlanFlags = VlanFlags::ReorderHdr
    .union(VlanFlags::Gvrp)
    .union(VlanFlags::LooseBinding)
    .union(VlanFlags::Mvrp)
    .union(VlanFlags::BridgeBinding);

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// It as a link.
    pub link: Link,
    /// What it is made of.
    pub recipe: Recipe,
}

/// How a kernel is asked for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Its kind.
    pub kind: InfoKind,
    /// What is particular to the kind.
    pub data: InfoData,
    /// The number of the link that it is made on; a VRF is made on none.
    pub lower: Option<u32>,
}

impl Recipe {
    /// That of a link of the namespace that has the links of `here`; `None` if it is not made so,
    /// or if too little is understood of it.
    pub fn of(message: &LinkMessage, here: &[LinkMessage]) -> Option<Self> {
        let data = infos(message).find_map(|info| match info {
            LinkInfo::Data(data) => Some(data.clone()),
            _ => None,
        })?;
        let on_another = |kind, data| {
            let lower = Some(lower(message, here)?);
            Some(Self { kind, data, lower })
        };
        match data {
            InfoData::Vrf(mut vrf) => {
                vrf.retain(|part| matches!(part, InfoVrf::TableId(_)));
                let (kind, data) = (InfoKind::Vrf, InfoData::Vrf(vrf));
                let lower = None;
                Some(Self { kind, data, lower })
            }
            InfoData::Vlan(mut parts) => {
                for part in &mut parts {
                    if let InfoVlan::Flags((_, mask)) = part {
                        *mask = VLAN_FLAGS;
                    }
                }
                on_another(InfoKind::Vlan, InfoData::Vlan(parts))
            }
            InfoData::IpVlan(_) => on_another(InfoKind::IpVlan, data),
            InfoData::MacVlan(mut parts) => {
                // The addresses of a mode that filters by them are told another way than set.
                if parts.contains(&InfoMacVlan::Mode(MacVlanMode::Source)) {
                    return None;
                }
                parts.retain(|part| matches!(part, InfoMacVlan::Mode(_) | InfoMacVlan::Flags(_)));
                on_another(InfoKind::MacVlan, InfoData::MacVlan(parts))
            }
            _ => None,
        }
    }

    /// Whether it can be given an Ethernet address: an ipvlan has that of its lower link.
    pub fn takes_an_address(&self) -> bool {
        self.kind != InfoKind::IpVlan
    }
}

/// The number of the link of this namespace that a link was made on.
fn lower(message: &LinkMessage, here: &[LinkMessage]) -> Option<u32> {
    let attributes = message.attributes.iter();
    let mut numbers = attributes.filter_map(|attribute| match attribute {
        LinkAttribute::Link(number) => Some(*number),
        _ => None,
    });
    numbers.next().filter(|_| !is_elsewhere(message, here))
}

/// Whether a link was made on one of another namespace than that of `here`.
pub fn is_elsewhere(message: &LinkMessage, here: &[LinkMessage]) -> bool {
    message.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkNetNsId(_) => true,
        // Kernels before 5.18 do not tell the namespace of the one that it was made on.
        LinkAttribute::Link(lower) => !here.iter().any(|link| link.header.index == *lower),
        _ => false,
    })
}
