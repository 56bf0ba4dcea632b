//! The node's own namespace: forwarding, the tunnel device, the name server's addresses, routes to other nodes' pods.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use weft_model::{Addr, Cidr, Routing};
use weft_plan::NodePlan;

use crate::device::{Device, Preference};
use crate::error::{NetlinkError, OpenError};
use crate::netlink::Netlink;
use crate::reserved;
use crate::routes::Route;

pub(crate) const TUNNEL: &str = "weft_vx";
const LOOPBACK: u32 = 1;
/// What VXLAN adds over IPv6, the larger of the two: outer IPv6, UDP, VXLAN and the inner Ethernet header.
const VXLAN_OVERHEAD: u32 = 70;

/// Devices that programs are attached to.
pub(crate) struct Ports {
    pub uplink: Device,
    pub tunnel: Option<Device>,
}

/// Idempotent.
pub(crate) fn prepare(netlink: &Netlink, uplink: &str, routing: Routing) -> Result<Ports, OpenError> {
    let uplink = netlink.device(uplink)?.ok_or_else(|| OpenError::NoUplink { name: uplink.to_owned() })?;
    // A router stops listening to routers unless told otherwise, and would lose its own default route.
    if read_sysctl(&format!("net/ipv6/conf/{}/accept_ra", uplink.name)).as_deref() == Some("1") {
        write_sysctl(&format!("net/ipv6/conf/{}/accept_ra", uplink.name), "2")?;
    }
    write_sysctl("net/ipv4/ip_forward", "1")?;
    write_sysctl("net/ipv6/conf/all/forwarding", "1")?;
    reserved::reserve()?;
    netlink.set_up(LOOPBACK)?;
    let tunnel = match routing {
        Routing::Direct => {
            netlink.remove_device(TUNNEL)?;
            None
        }
        Routing::Vxlan { port, .. } => Some(prepare_tunnel(netlink, port, uplink.mtu)?),
    };
    Ok(Ports { uplink, tunnel })
}

fn prepare_tunnel(netlink: &Netlink, port: u16, uplink_mtu: u32) -> Result<Device, OpenError> {
    let mtu = uplink_mtu.saturating_sub(VXLAN_OVERHEAD);
    // The port of a device cannot be changed; its alias says which it has.
    let alias = format!("weft vxlan {port}");
    let existing = netlink.device(TUNNEL)?;
    if existing.as_ref().is_none_or(|device| device.alias.as_deref() != Some(&alias)) {
        netlink.remove_device(TUNNEL)?;
        netlink.add_vxlan(TUNNEL, port, mtu)?;
    }
    let missing = || OpenError::NoUplink { name: TUNNEL.to_owned() };
    let device = netlink.device(TUNNEL)?.ok_or_else(missing)?;
    netlink.set_no_link_local(device.index)?;
    netlink.set_arp_off(device.index)?;
    write_sysctl(&format!("net/ipv4/conf/{TUNNEL}/rp_filter"), "0")?;
    netlink.set_up(device.index)?;
    netlink.set_alias(device.index, &alias)?;
    Ok(device)
}

/// The kernel state around the maps that follows from the plan.
pub(crate) fn apply(netlink: &Netlink, ports: &Ports, plan: &NodePlan) -> Result<usize, NetlinkError> {
    if let Some(tunnel) = &ports.tunnel
        && netlink.device(TUNNEL)?.is_some_and(|device| device.mtu != plan.settings.pod_mtu)
    {
        netlink.set_mtu(tunnel.index, plan.settings.pod_mtu)?;
    }
    Ok(apply_addresses(netlink, &plan.settings.host_addresses)? + apply_routes(netlink, ports, plan)?)
}

/// Addresses that end on this node and are on no device yet (the name server's) go to the loopback device.
fn apply_addresses(netlink: &Netlink, wanted: &BTreeSet<Addr>) -> Result<usize, NetlinkError> {
    let assigned = netlink.addresses()?;
    let mut changes = 0;
    for addr in wanted {
        if !assigned.iter().any(|have| have.addr == *addr) {
            netlink.put_address(LOOPBACK, *addr, Preference::Deprecated)?;
            changes += 1;
        }
    }
    for have in assigned.iter().filter(|have| have.is_ours && have.index == LOOPBACK) {
        if !wanted.contains(&have.addr) {
            netlink.remove_address(LOOPBACK, have.addr)?;
            changes += 1;
        }
    }
    Ok(changes)
}

/// Routes that the node's own stack uses: pods' packets to other nodes never see them.
fn apply_routes(netlink: &Netlink, ports: &Ports, plan: &NodePlan) -> Result<usize, NetlinkError> {
    let wanted: BTreeSet<Route> =
        plan.routes.iter().filter_map(|(to, hop)| wanted_route(ports, plan, *to, hop.via)).collect();
    let indices = [Some(ports.uplink.index), ports.tunnel.as_ref().map(|tunnel| tunnel.index)];
    let have: BTreeSet<Route> =
        netlink.our_routes()?.into_iter().filter(|route| indices.contains(&Some(route.index))).collect();
    for route in wanted.difference(&have) {
        netlink.put_route(route)?;
    }
    let prefixes: BTreeSet<Cidr> = wanted.iter().map(|route| route.to).collect();
    let stray: Vec<&Route> = have.difference(&wanted).filter(|route| !replaced(route, &prefixes)).collect();
    for route in &stray {
        netlink.remove_route(route)?;
    }
    Ok(wanted.difference(&have).count() + stray.len())
}

/// Putting a route over another of the same prefix has already removed that one.
fn replaced(route: &Route, wanted: &BTreeSet<Cidr>) -> bool {
    wanted.contains(&route.to)
}

fn wanted_route(ports: &Ports, plan: &NodePlan, to: Cidr, via: Addr) -> Option<Route> {
    let is_pods = plan.settings.cluster_pod_cidrs.iter().any(|pods| pods.covers(to));
    match &ports.tunnel {
        Some(tunnel) if is_pods => Some(Route { to, index: tunnel.index, via: None }),
        // Another node's address is reached as before Weft came.
        Some(_) => None,
        None if to == Cidr::host(via) => None,
        None => Some(Route { to, index: ports.uplink.index, via: Some(via) }),
    }
}

fn sysctl_path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}

pub(crate) fn read_sysctl(name: &str) -> Option<String> {
    fs::read_to_string(sysctl_path(name)).ok().map(|text| text.trim().to_owned())
}

/// In the calling thread's namespace.
pub(crate) fn write_sysctl(name: &str, value: &str) -> Result<(), OpenError> {
    if read_sysctl(name).as_deref() == Some(value) {
        return Ok(());
    }
    let path = sysctl_path(name);
    fs::write(&path, value).map_err(|source| OpenError::File { path, source })
}
