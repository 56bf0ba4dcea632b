//! A pod's link: the veth pair, its addresses, routes and programs. Who owns which address is the agent's to say.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use weft_abi::Mac;
use weft_model::{Addr, Cidr};

use crate::datapath::Datapath;
use crate::device::{Device, Preference, gateway};
use crate::error::{NetlinkError, OpenError, PodError};
use crate::links::{self, Place};
use crate::netlink::Netlink;
use crate::netns::{in_namespace, netns_cookie};
use crate::node::write_sysctl;
use crate::routes::Route;

pub(crate) const DEVICE_PREFIX: &str = "wf";
const ALIAS_PREFIX: &str = "weft pod";

/// What a pod's link should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAttachment {
    pub netns: PathBuf,
    /// The container runtime's id of the sandbox.
    pub container: String,
    /// Inside the pod: `eth0`.
    pub interface: String,
    /// On the node; see [`device_name`].
    pub device: String,
    pub addresses: BTreeSet<Addr>,
    pub mtu: u32,
}

/// What a pod's link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    pub container: String,
    pub device: String,
    pub ifindex: u32,
    pub host_mac: Mac,
    pub pod_mac: Mac,
    pub addresses: BTreeSet<Addr>,
    pub mtu: u32,
    /// The pod's namespace as socket events name it.
    pub netns_cookie: u64,
}

/// A device name for a container: always the same, and unlike any other's.
pub fn device_name(container: &str) -> String {
    let hash = container.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{DEVICE_PREFIX}{:012x}", hash >> 16)
}

/// What the device's alias remembers; a device without one is half made.
struct Remembered {
    container: String,
    pod_mac: Mac,
    netns_cookie: u64,
}

impl Remembered {
    fn write(&self) -> String {
        format!("{ALIAS_PREFIX} {} {} {}", self.container, self.pod_mac, self.netns_cookie)
    }

    fn read(alias: &str) -> Option<Self> {
        let mut words = alias.strip_prefix(ALIAS_PREFIX)?.split_whitespace();
        Some(Self {
            container: words.next()?.to_owned(),
            pod_mac: words.next()?.parse().ok()?,
            netns_cookie: words.next()?.parse().ok()?,
        })
    }
}

impl Datapath {
    /// Idempotent. When it fails, nothing of the link is left. Programs run before the link is up; the pod reaches
    /// nobody until a plan with its addresses is applied.
    pub fn attach_pod(&self, pod: &PodAttachment) -> Result<PodLink, PodError> {
        check_request(pod)?;
        if self.check_pod(pod).is_ok() {
            return self.link_of(pod);
        }
        self.detach_pod(&pod.device)?;
        let result = self.build_link(pod);
        if result.is_err()
            && let Err(error) = self.detach_pod(&pod.device)
        {
            tracing::warn!(container = pod.container, %error, "a half-made link could not be removed");
        }
        result
    }

    /// Idempotent: what is not there is not missed.
    pub fn detach_pod(&self, device: &str) -> Result<(), PodError> {
        let container = || device.to_owned();
        self.netlink()
            .remove_device(device)
            .map_err(|source| PodError::Netlink { container: container(), source })?;
        links::unpin_all(&self.pod_links_dir(device))
            .map_err(|source| PodError::Open { container: container(), source })
    }

    /// Says what of the link is not as asked.
    pub fn check_pod(&self, pod: &PodAttachment) -> Result<(), PodError> {
        let link = self.link_of(pod)?;
        let wrong = |message: String| PodError::Wrong { container: pod.container.clone(), message };
        if link.container != pod.container {
            return Err(wrong(format!("device {} belongs to container {}", pod.device, link.container)));
        }
        if link.addresses != pod.addresses {
            return Err(wrong(format!("routes to {} are for {:?}", pod.device, link.addresses)));
        }
        if link.mtu != pod.mtu {
            return Err(wrong(format!("device {} has MTU {}, not {}", pod.device, link.mtu, pod.mtu)));
        }
        for program in ["from_pod", "to_pod"] {
            if !links::is_attached(&self.pod_links_dir(&pod.device).join(program)) {
                return Err(wrong(format!("program {program} is not attached to device {}", pod.device)));
            }
        }
        let inside = in_pod(pod, |netlink| check_inside(netlink, pod))?;
        inside.map_err(wrong)
    }

    /// Every finished link on this node, from the kernel.
    pub fn list_pods(&self) -> Result<Vec<PodLink>, PodError> {
        pod_links(self.netlink()).map_err(|source| PodError::Netlink { container: "any".to_owned(), source })
    }

    fn link_of(&self, pod: &PodAttachment) -> Result<PodLink, PodError> {
        let container = &pod.container;
        let links = self.list_pods()?;
        links.into_iter().find(|link| link.device == pod.device).ok_or_else(|| PodError::Wrong {
            container: container.clone(),
            message: format!("device {} is not there", pod.device),
        })
    }

    fn build_link(&self, pod: &PodAttachment) -> Result<PodLink, PodError> {
        let failed = |source| PodError::Netlink { container: pod.container.clone(), source };
        let namespace = File::open(&pod.netns)
            .map_err(|source| PodError::Namespace { path: pod.netns.clone(), source })?;
        self.netlink().add_veth(&pod.device, pod.mtu, &pod.interface, namespace.as_fd()).map_err(failed)?;
        let device = self.netlink().device(&pod.device).map_err(failed)?.ok_or_else(|| PodError::Wrong {
            container: pod.container.clone(),
            message: format!("device {} vanished while it was made", pod.device),
        })?;
        let prepared = prepare_host_side(self.netlink(), &device)
            .and_then(|()| self.attach_programs(&device.name, device.index));
        prepared.map_err(|source| PodError::Open { container: pod.container.clone(), source })?;
        let (pod_mac, netns_cookie) = in_pod(pod, |netlink| build_inside(netlink, pod, device.mac))?
            .map_err(|source| PodError::Open { container: pod.container.clone(), source })?;
        self.finish_host_side(
            pod,
            &device,
            &Remembered { container: pod.container.clone(), pod_mac, netns_cookie },
        )
        .map_err(failed)?;
        Ok(PodLink {
            container: pod.container.clone(),
            device: pod.device.clone(),
            ifindex: device.index,
            host_mac: device.mac,
            pod_mac,
            addresses: pod.addresses.clone(),
            mtu: pod.mtu,
            netns_cookie,
        })
    }

    pub(crate) fn attach_programs(&self, device: &str, ifindex: u32) -> Result<(), OpenError> {
        let directory = self.pod_links_dir(device);
        std::fs::create_dir_all(&directory)
            .map_err(|source| OpenError::File { path: directory.clone(), source })?;
        let programs = self.programs();
        links::ensure(
            &directory.join("from_pod"),
            programs.program("from_pod")?,
            Place::TcxIngress { ifindex },
        )?;
        links::ensure(&directory.join("to_pod"), programs.program("to_pod")?, Place::TcxEgress { ifindex })
    }

    /// The alias goes last: it marks the link as whole.
    fn finish_host_side(
        &self,
        pod: &PodAttachment,
        device: &Device,
        remembered: &Remembered,
    ) -> Result<(), NetlinkError> {
        let netlink = self.netlink();
        netlink.set_up(device.index)?;
        for addr in &pod.addresses {
            netlink.put_neighbour(device.index, *addr, remembered.pod_mac)?;
            netlink.put_route(&Route { to: Cidr::host(*addr), index: device.index, via: None })?;
        }
        netlink.set_alias(device.index, &remembered.write())
    }
}

fn check_request(pod: &PodAttachment) -> Result<(), PodError> {
    let wrong = |message: String| Err(PodError::Wrong { container: pod.container.clone(), message });
    if pod.device.is_empty() || pod.device.len() > 15 {
        return wrong(format!("device name {:?} must have 1 to 15 bytes", pod.device));
    }
    if pod.addresses.is_empty() {
        return wrong("a pod needs at least one address".to_owned());
    }
    if pod.container.is_empty() || pod.container.len() > 200 || pod.container.contains(char::is_whitespace) {
        return wrong(format!("{:?} is not a container id", pod.container));
    }
    Ok(())
}

fn in_pod<T: Send>(pod: &PodAttachment, work: impl FnOnce(&Netlink) -> T + Send) -> Result<T, PodError> {
    let namespace = |source| PodError::Namespace { path: pod.netns.clone(), source };
    in_namespace(&pod.netns, || Netlink::open().map(|netlink| work(&netlink)))
        .map_err(namespace)?
        .map_err(|source| PodError::Netlink { container: pod.container.clone(), source })
}

fn prepare_host_side(netlink: &Netlink, device: &Device) -> Result<(), OpenError> {
    netlink.set_no_link_local(device.index)?;
    // Sources are checked by from_pod, against exactly this pod's addresses.
    write_sysctl(&format!("net/ipv4/conf/{}/rp_filter", device.name), "0")?;
    write_sysctl(&format!("net/ipv6/conf/{}/accept_ra", device.name), "0")
}

/// Runs in the pod's namespace. Returns the pod side's link address and the namespace's number.
fn build_inside(netlink: &Netlink, pod: &PodAttachment, host_mac: Mac) -> Result<(Mac, u64), OpenError> {
    let loopback = 1;
    netlink.set_up(loopback)?;
    let missing = || OpenError::NoUplink { name: pod.interface.clone() };
    let device = netlink.device(&pod.interface)?.ok_or_else(missing)?;
    netlink.set_no_link_local(device.index)?;
    write_sysctl(&format!("net/ipv6/conf/{}/accept_ra", pod.interface), "0")?;
    for addr in &pod.addresses {
        netlink.put_address(device.index, *addr, Preference::Usual)?;
    }
    netlink.set_up(device.index)?;
    let families: BTreeSet<_> = pod.addresses.iter().map(|addr| addr.family()).collect();
    for family in families {
        netlink.put_neighbour(device.index, gateway(family), host_mac)?;
        netlink.put_default_route(device.index, gateway(family))?;
    }
    let cookie = netns_cookie().map_err(|source| OpenError::File { path: pod.netns.clone(), source })?;
    Ok((device.mac, cookie))
}

fn check_inside(netlink: &Netlink, pod: &PodAttachment) -> Result<(), String> {
    let devices = netlink.devices().map_err(|error| error.to_string())?;
    let Some(device) = devices.into_iter().find(|device| device.name == pod.interface) else {
        return Err(format!("interface {} is not in the pod", pod.interface));
    };
    if !device.is_up {
        return Err(format!("interface {} is down", pod.interface));
    }
    let assigned = netlink.addresses().map_err(|error| error.to_string())?;
    for addr in &pod.addresses {
        if !assigned.iter().any(|have| have.index == device.index && have.addr == *addr) {
            return Err(format!("interface {} does not have address {addr}", pod.interface));
        }
    }
    Ok(())
}

/// Every finished pod link of the namespace.
pub(crate) fn pod_links(netlink: &Netlink) -> Result<Vec<PodLink>, NetlinkError> {
    let routes = netlink.our_routes()?;
    let mut links = Vec::new();
    for device in netlink.devices()? {
        let Some(remembered) = device.alias.as_deref().and_then(Remembered::read) else { continue };
        let addresses =
            routes.iter().filter(|route| route.index == device.index).map(|route| route.to.addr()).collect();
        links.push(PodLink {
            container: remembered.container,
            device: device.name,
            ifindex: device.index,
            host_mac: device.mac,
            pod_mac: remembered.pod_mac,
            addresses,
            mtu: device.mtu,
            netns_cookie: remembered.netns_cookie,
        });
    }
    Ok(links)
}
