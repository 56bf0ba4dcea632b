//! Network devices by netlink: listing, making and setting them up. Which devices there should be lives in `node` and `pods`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo,
};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan};
use weft_abi::Mac;
use weft_model::{Addr, Family};

use crate::error::NetlinkError;
use crate::netlink::{Netlink, ORIGIN};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub name: String,
    pub index: u32,
    pub mac: Mac,
    pub mtu: u32,
    pub alias: Option<String>,
    pub is_up: bool,
}

impl Device {
    fn from_message(message: LinkMessage) -> Self {
        let mut device = Self {
            name: String::new(),
            index: message.header.index,
            mac: Mac::default(),
            mtu: 0,
            alias: None,
            is_up: message.header.flags.contains(LinkFlags::Up),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => device.name = name,
                LinkAttribute::Address(bytes) => device.mac = Mac(bytes.try_into().unwrap_or_default()),
                LinkAttribute::Mtu(mtu) => device.mtu = mtu,
                LinkAttribute::IfAlias(alias) => device.alias = Some(alias),
                _ => {}
            }
        }
        device
    }
}

impl Netlink {
    pub fn devices(&self) -> Result<Vec<Device>, NetlinkError> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), "devices")?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(Device::from_message(message)),
                _ => None,
            })
            .collect())
    }

    pub fn device(&self, name: &str) -> Result<Option<Device>, NetlinkError> {
        Ok(self.devices()?.into_iter().find(|device| device.name == name))
    }

    /// A veth pair, one end named `device` here and the other named `peer` in the namespace of `peer_namespace`.
    pub fn add_veth(
        &self,
        device: &str,
        mtu: u32,
        peer: &str,
        peer_namespace: BorrowedFd<'_>,
    ) -> Result<(), NetlinkError> {
        let other = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer.to_owned())
            .mtu(mtu)
            .setns_by_fd(peer_namespace.as_raw_fd())
            .build();
        let link = LinkMessageBuilder::<LinkVeth>::new(device, peer)
            .mtu(mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(other)))
            .build();
        self.change(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL, || {
            format!("add veth {device} with peer {peer}")
        })
    }

    /// A tunnel device that takes each packet's far end from its metadata.
    pub fn add_vxlan(&self, name: &str, port: u16, mtu: u32) -> Result<(), NetlinkError> {
        let link = LinkMessageBuilder::<LinkVxlan>::new(name)
            .collect_metadata(true)
            .learning(false)
            .port(port)
            .udp_zero_csum6_rx(true)
            .mtu(mtu)
            .build();
        self.change(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL, || {
            format!("add vxlan device {name} on port {port}")
        })
    }

    pub fn remove_device(&self, name: &str) -> Result<(), NetlinkError> {
        let Some(device) = self.device(name)? else { return Ok(()) };
        let link = LinkMessageBuilder::<LinkUnspec>::new().index(device.index).build();
        self.change_if_there(RouteNetlinkMessage::DelLink(link), 0, || format!("remove device {name}"))
    }

    pub fn set_up(&self, index: u32) -> Result<(), NetlinkError> {
        let link = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
        self.change(RouteNetlinkMessage::SetLink(link), 0, || format!("set device {index} up"))
    }

    pub fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let link = LinkMessageBuilder::<LinkUnspec>::new().index(index).mtu(mtu).build();
        self.change(RouteNetlinkMessage::SetLink(link), 0, || {
            format!("set the MTU of device {index} to {mtu}")
        })
    }

    pub fn set_alias(&self, index: u32, alias: &str) -> Result<(), NetlinkError> {
        let link = LinkMessageBuilder::<LinkUnspec>::new().index(index).alias(alias).build();
        self.change(RouteNetlinkMessage::SetLink(link), 0, || format!("set the alias of device {index}"))
    }

    /// No ARP: the neighbour's link address is then the device's own.
    pub fn set_arp_off(&self, index: u32) -> Result<(), NetlinkError> {
        let link = LinkMessageBuilder::<LinkUnspec>::new().index(index).arp(false).build();
        self.change(RouteNetlinkMessage::SetLink(link), 0, || format!("turn ARP of device {index} off"))
    }

    /// No link-local address by itself: nobody speaks to it, and its detection of duplicates takes seconds.
    pub fn set_no_link_local(&self, index: u32) -> Result<(), NetlinkError> {
        let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let mut link = LinkMessageBuilder::<LinkUnspec>::new().index(index).build();
        link.attributes.push(LinkAttribute::AfSpecUnspec(vec![mode]));
        self.change(RouteNetlinkMessage::SetLink(link), 0, || {
            format!("turn link-local addresses of device {index} off")
        })
    }

    pub fn put_neighbour(&self, index: u32, addr: Addr, mac: Mac) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        let destination = match addr.to_ip() {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        };
        message.header.family = family(addr);
        message.attributes.push(NeighbourAttribute::Destination(destination));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        self.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("add neighbour {addr} {mac} on device {index}")
        })
    }

    /// Host addresses (all bits) on a device. `Deprecated` keeps the kernel from choosing it as a source.
    pub fn put_address(&self, index: u32, addr: Addr, preference: Preference) -> Result<(), NetlinkError> {
        let message = address_message(index, addr, preference);
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("add address {addr} to device {index}")
        })
    }

    pub fn remove_address(&self, index: u32, addr: Addr) -> Result<(), NetlinkError> {
        let message = address_message(index, addr, Preference::Usual);
        self.change_if_there(RouteNetlinkMessage::DelAddress(message), 0, || {
            format!("remove address {addr} from device {index}")
        })
    }

    pub fn addresses(&self) -> Result<Vec<AssignedAddress>, NetlinkError> {
        let answers = self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), "addresses")?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) => AssignedAddress::from_message(&message),
                _ => None,
            })
            .collect())
    }
}

/// Whether the kernel may choose an address as the source of what the node sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preference {
    Usual,
    Deprecated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AssignedAddress {
    pub index: u32,
    pub addr: Addr,
    pub is_ours: bool,
}

impl AssignedAddress {
    fn from_message(message: &AddressMessage) -> Option<Self> {
        let mut addr = None;
        let mut is_ours = false;
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => addr = Some(*ip),
                AddressAttribute::Address(ip) => addr = addr.or(Some(*ip)),
                AddressAttribute::Protocol(protocol) => is_ours = u8::from(*protocol) == ORIGIN,
                _ => {}
            }
        }
        Some(Self { index: message.header.index, addr: addr?.into(), is_ours })
    }
}

fn address_message(index: u32, addr: Addr, preference: Preference) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.family = family(addr);
    message.header.prefix_len = if addr.family() == Family::V4 { 32 } else { 128 };
    message.attributes.push(AddressAttribute::Local(addr.to_ip()));
    message.attributes.push(AddressAttribute::Address(addr.to_ip()));
    message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(ORIGIN)));
    if addr.family() == Family::V6 {
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    if preference == Preference::Deprecated {
        // RFC 6724, rule 3, is IPv6's way; IPv4 does not choose an address of host scope.
        match addr.family() {
            Family::V4 => message.header.scope = AddressScope::Host,
            Family::V6 => {
                let mut lifetimes = CacheInfo::default();
                lifetimes.ifa_preferred = 0;
                lifetimes.ifa_valid = u32::MAX;
                message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
            }
        }
    }
    message
}

pub(crate) fn family(addr: Addr) -> AddressFamily {
    match addr.family() {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// Where pods send everything; nobody has these addresses, permanent neighbours stand for them.
pub(crate) fn gateway(of: Family) -> Addr {
    match of {
        Family::V4 => Ipv4Addr::new(169, 254, 1, 1).into(),
        Family::V6 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}
