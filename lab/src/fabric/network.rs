//! The fabric's wires: the underlay with its bridge, and each machine's uplink, addresses, routes and sysctls.
//! Pods' links are the agent's.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::Path;

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::netns;
use super::spec::{NodeAddresses, OutsideMachine};

/// The device that joins a machine to the others, in every node and outside machine.
pub const UPLINK: &str = "eth0";
const BRIDGE: &str = "br0";

/// What nodes need to pass on pods' packets: forwarding, no duplicate-address wait, no routers' announcements,
/// and no reverse-path check, since replies to pods and tunnels may leave by another device.
const NODE_SYSCTLS: [(&str, &str); 11] = [
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
];

/// An ordinary host: it passes nothing on.
const HOST_SYSCTLS: [(&str, &str); 9] = [
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv6/conf/all/accept_redirects", "0"),
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv6/conf/all/forwarding", "0"),
];

/// Bridged frames must not take a detour through the packet filter. Missing without that kernel module.
const BRIDGE_SYSCTLS: [&str; 3] = [
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/bridge/bridge-nf-call-arptables",
];

/// Sets up the underlay: a bridge with the outside world's addresses.
pub fn weave_underlay(netns: &Path, addresses: &[IpNet], mtu: u32) -> io::Result<()> {
    netns::within(netns, || {
        sysctls(&NODE_SYSCTLS)?;
        for name in BRIDGE_SYSCTLS {
            optional_sysctl(name, "0")?;
        }
        with_netlink(async |handle| {
            up(&handle, "lo").await?;
            handle
                .link()
                .add(LinkBridge::new(BRIDGE).mtu(mtu).build())
                .execute()
                .await
                .map_err(failed("add the bridge"))?;
            let bridge = index(&handle, BRIDGE).await?;
            add_addresses(&handle, bridge, addresses).await
        })
    })
}

/// Joins one node to the underlay and gives it its addresses and its way out.
pub fn weave_node(
    underlay: &Path,
    netns: &Path,
    node: &NodeAddresses,
    gateways: &[IpNet],
    mtu: u32,
) -> io::Result<()> {
    netns::within(netns, || sysctls(&NODE_SYSCTLS))?;
    join(underlay, netns, &node.name, &node.addresses, mtu)?;
    netns::within(netns, || {
        with_netlink(async |handle| {
            for gateway in gateways {
                handle
                    .route()
                    .add(default_route(gateway.addr()))
                    .execute()
                    .await
                    .map_err(failed("add the default route"))?;
            }
            Ok(())
        })
    })
}

/// Joins an outside machine to the underlay. It has no way out: a machine on the local network and no more.
pub fn weave_outside(underlay: &Path, netns: &Path, machine: &OutsideMachine, mtu: u32) -> io::Result<()> {
    netns::within(netns, || sysctls(&HOST_SYSCTLS))?;
    join(underlay, netns, &machine.name, &machine.addresses, mtu)
}

/// A port on the bridge and, inside the machine, the uplink with its addresses.
fn join(underlay: &Path, netns: &Path, name: &str, addresses: &[IpNet], mtu: u32) -> io::Result<()> {
    let target = File::open(netns)?;
    netns::within(underlay, || {
        with_netlink(async |handle| {
            let bridge = index(&handle, BRIDGE).await?;
            let port = bridge_port(name, &target, bridge, mtu);
            handle.link().add(port).execute().await.map_err(failed("add the machine's link"))
        })?;
        // The port is a wire, not a host: it needs no address of its own.
        sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1")
    })?;
    netns::within(netns, || {
        with_netlink(async |handle| {
            up(&handle, "lo").await?;
            up(&handle, UPLINK).await?;
            let uplink = index(&handle, UPLINK).await?;
            add_addresses(&handle, uplink, addresses).await
        })
    })
}

/// A veth pair with one end on the bridge and the other, already named, inside the machine.
fn bridge_port(name: &str, machine: &File, bridge: u32, mtu: u32) -> LinkMessage {
    let mut peer = LinkMessageBuilder::<LinkUnspec>::default()
        .name(UPLINK.to_owned())
        .mtu(mtu)
        .setns_by_fd(machine.as_raw_fd())
        .build();
    // A peer description carries attributes only; its header must stay empty.
    peer.attributes.retain(|attribute| !matches!(attribute, LinkAttribute::LinkInfo(_)));
    LinkMessageBuilder::<LinkVeth>::new_with_info_kind(rtnetlink::packet_route::link::InfoKind::Veth)
        .name(name.to_owned())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .mtu(mtu)
        .controller(bridge)
        .up()
        .build()
}

fn default_route(gateway: IpAddr) -> RouteMessage {
    match gateway {
        IpAddr::V4(v4) => RouteMessageBuilder::<std::net::Ipv4Addr>::new().gateway(v4).build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<std::net::Ipv6Addr>::new().gateway(v6).build(),
    }
}

async fn add_addresses(handle: &Handle, link: u32, addresses: &[IpNet]) -> io::Result<()> {
    for address in addresses {
        let request = handle.address().add(link, address.addr(), address.prefix_len());
        request.execute().await.map_err(failed("add an address"))?;
    }
    Ok(())
}

async fn up(handle: &Handle, name: &str) -> io::Result<()> {
    let message = LinkUnspec::new_with_index(index(handle, name).await?).up().build();
    handle.link().set(message).execute().await.map_err(failed("set a link up"))
}

async fn index(handle: &Handle, name: &str) -> io::Result<u32> {
    let found = handle.link().get().match_name(name.to_owned()).execute().try_next().await;
    let link = found.map_err(failed("find a link"))?;
    link.map(|link| link.header.index).ok_or_else(|| io::Error::other(format!("there is no link {name}")))
}

fn failed(what: &'static str) -> impl Fn(rtnetlink::Error) -> io::Error {
    move |source| io::Error::other(format!("cannot {what}: {source}"))
}

/// Runs netlink requests in the calling thread's namespace.
fn with_netlink<T>(work: impl AsyncFnOnce(Handle) -> io::Result<T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let pump = tokio::spawn(connection);
        let result = work(handle).await;
        pump.abort();
        result
    })
}

fn sysctls(settings: &[(&str, &str)]) -> io::Result<()> {
    settings.iter().try_for_each(|(name, value)| sysctl(name, value))
}

fn sysctl(name: &str, value: &str) -> io::Result<()> {
    std::fs::write(Path::new("/proc/sys").join(name), value).map_err(|e| {
        io::Error::new(e.kind(), format!("cannot set {} to {value}: {e}", name.replace('/', ".")))
    })
}

fn optional_sysctl(name: &str, value: &str) -> io::Result<()> {
    if Path::new("/proc/sys").join(name).exists() { sysctl(name, value) } else { Ok(()) }
}
