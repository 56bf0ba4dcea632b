//! The node's datapath as one handle: what is loaded, where it is attached, and taking it all away again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use libbpf_rs::libbpf_sys;
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};
use weft_abi::{
    AddrKey, AffinityKey, AffinityValue, BackendKey, BackendValue, Config as ProgramConfig, Count,
    EndpointValue, FlowKey, FlowValue, MemberKey, NatKey, NatValue, PolicyMapKey, PolicyValue, PrefixKey,
    RouteValue, RoutingNumber, ServiceKey, ServiceValue, SourceKey,
};
use weft_model::{Family, Routing};
use weft_plan::{FORWARDING_PORTS, NodePlan, NodeSettings};

use crate::error::{ApplyError, OpenError};
use crate::leftovers;
use crate::links::{self, Place};
use crate::maglev::MaglevTables;
use crate::maps::{KernelWrites, Table, Writes};
use crate::netlink::Netlink;
use crate::netns::netns_cookie;
use crate::node::{self, Ports};
use crate::pods::{DEVICE_PREFIX, PodLink, pod_links};
use crate::programs::Programs;
use crate::reserved;
use crate::service_state::ServiceState;
use crate::tables::KernelTables;
use crate::usage::{Refused, Usage};

/// Where the datapath lives and what it stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Inside a mounted bpffs; made if missing.
    pub bpffs_dir: PathBuf,
    /// The cgroup v2 directory whose processes' sockets are translated.
    pub cgroup_dir: PathBuf,
    pub uplink: String,
    pub routing: Routing,
    pub flow_entries: u32,
    pub capacity: Capacity,
}

/// How much room the tables of services have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Addresses and ports that services have, and source ranges beside them.
    pub frontends: u32,
    /// Backends of all lists, each as often as its weight.
    pub backends: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { frontends: 1 << 16, backends: 1 << 20 }
    }
}

impl Config {
    fn table_sizes(&self) -> BTreeMap<&'static str, u32> {
        let Capacity { frontends, backends } = self.capacity;
        BTreeMap::from([
            ("flows", self.flow_entries),
            ("services", frontends),
            ("source_ranges", frontends),
            ("maglev", frontends),
            ("backends", backends),
            ("members", backends),
        ])
    }
}

impl Config {
    pub const DEFAULT_FLOW_ENTRIES: u32 = 1 << 17;
}

/// Denied events each CPU may send in a second; the rest is counted.
const DENIED_EVENTS: u32 = 200;
/// The same of refusals that their sender is told of (RFC 4443, 2.4).
const ICMP_ERRORS: u32 = 1000;

const SOCKET_HOOKS: &[(&str, libbpf_sys::bpf_attach_type)] = &[
    ("connect4", libbpf_sys::BPF_CGROUP_INET4_CONNECT),
    ("connect6", libbpf_sys::BPF_CGROUP_INET6_CONNECT),
    ("sendmsg4", libbpf_sys::BPF_CGROUP_UDP4_SENDMSG),
    ("sendmsg6", libbpf_sys::BPF_CGROUP_UDP6_SENDMSG),
    ("recvmsg4", libbpf_sys::BPF_CGROUP_UDP4_RECVMSG),
    ("recvmsg6", libbpf_sys::BPF_CGROUP_UDP6_RECVMSG),
    ("getpeername4", libbpf_sys::BPF_CGROUP_INET4_GETPEERNAME),
    ("getpeername6", libbpf_sys::BPF_CGROUP_INET6_GETPEERNAME),
];

pub(crate) struct Maps {
    pub endpoints: Table<AddrKey, EndpointValue>,
    pub classes: Table<AddrKey, u32>,
    pub class_blocks: Table<PrefixKey, u32>,
    pub policies: Table<PolicyMapKey, PolicyValue>,
    pub routes: Table<PrefixKey, RouteValue>,
    pub services: Table<ServiceKey, ServiceValue>,
    pub backends: Table<BackendKey, BackendValue>,
    pub members: Table<MemberKey, u32>,
    pub maglev: MaglevTables,
    pub source_ranges: Table<SourceKey, u32>,
    pub announced: Table<AddrKey, u32>,
    pub flows: Table<FlowKey, FlowValue>,
    pub nat: Table<NatKey, NatValue>,
    pub affinities: Table<AffinityKey, AffinityValue>,
    pub node_addresses: Table<u32, AddrKey>,
    pub epoch: Table<u32, u32>,
    pub counters: Table<u32, Count>,
}

/// What the writer remembers between two plans.
#[derive(Default)]
pub(crate) struct Memory {
    /// `None`: not read from the kernel yet, or a change stopped half-way.
    pub node: Option<HeldNode>,
    pub services: Option<ServiceState>,
    /// Said already.
    pub refused: Vec<Refused>,
    pub usage: BTreeMap<&'static str, Usage>,
    pub leftovers_removed: bool,
    /// Programs wait for their first plan, because their maps are empty.
    pub attach_after_apply: bool,
}

/// What the kernel holds of a plan, but for its services.
pub(crate) struct HeldNode {
    pub plan: NodePlan,
    pub links: Vec<PodLink>,
    pub tables: KernelTables,
}

/// The node's programs, maps, links and devices. Dropping it leaves all of them working.
pub struct Datapath {
    config: Config,
    programs: Programs,
    maps: Maps,
    netlink: Netlink,
    ports: Ports,
    memory: Mutex<Memory>,
}

impl Datapath {
    /// Loads the programs, over the tables of the process before if there was one, and puts them in the place of
    /// the ones that run. Acts on the calling thread's namespace.
    pub fn open(config: Config) -> Result<Self, OpenError> {
        Self::open_with(config, Arc::new(KernelWrites))
    }

    /// With another way into kernel maps than system calls alone.
    pub fn open_with(config: Config, writes: Arc<dyn Writes>) -> Result<Self, OpenError> {
        check_kernel()?;
        for directory in [config.bpffs_dir.clone(), maps_dir(&config), config.bpffs_dir.join("links")] {
            make_directory(&directory)?;
        }
        check_file_system(&config.bpffs_dir, BPF_FS_MAGIC, |path| OpenError::NotBpffs { path })?;
        check_file_system(&config.cgroup_dir, CGROUP2_SUPER_MAGIC, |path| OpenError::NotCgroup { path })?;
        let netlink = Netlink::open()?;
        let ports = node::prepare(&netlink, &config.uplink, config.routing)?;
        let programs = Programs::load_sized(
            &maps_dir(&config),
            &program_config(&config, &ports)?,
            &config.table_sizes(),
        )?;
        let maps = Maps::of(&programs, &writes)?;
        let memory = Memory { attach_after_apply: programs.were_maps_recreated(), ..Default::default() };
        let datapath = Self { config, programs, maps, netlink, ports, memory: Mutex::new(memory) };
        if !datapath.programs.were_maps_recreated() {
            datapath.attach_everything()?;
        }
        datapath.collect_dead()?;
        Ok(datapath)
    }

    /// Takes away everything of Weft in the calling thread's namespace and under `config`'s directories. The
    /// namespace's devices may be gone already.
    pub fn cleanup(config: &Config) -> Result<(), OpenError> {
        links::unpin_all(&config.bpffs_dir)?;
        let netlink = Netlink::open()?;
        for device in netlink.devices()? {
            if is_ours(&device.name, device.alias.as_deref()) {
                netlink.remove_device(&device.name)?;
            }
        }
        for route in netlink.our_routes()? {
            netlink.remove_route(&route)?;
        }
        for assigned in netlink.addresses()?.into_iter().filter(|assigned| assigned.is_ours) {
            netlink.remove_address(assigned.index, assigned.addr)?;
        }
        reserved::release()?;
        leftovers::remove_table().map_err(OpenError::Leftover)
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Loaded programs, for whoever runs them on packets of its own.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    pub(crate) fn maps(&self) -> &Maps {
        &self.maps
    }

    pub(crate) fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    pub(crate) fn ports(&self) -> &Ports {
        &self.ports
    }

    /// What forwarded connections come from; an address may change while programs run.
    pub(crate) fn put_node_addresses(&self, settings: &NodeSettings) -> Result<(), ApplyError> {
        let first = |family| settings.node_addresses.iter().find(|addr| addr.family() == family);
        let entry = |family| first(family).map(|addr| AddrKey::from(*addr)).unwrap_or_default();
        let entries = [(0, entry(Family::V4)), (1, entry(Family::V6))];
        self.maps.node_addresses.put(&entries, &|slot| format!("node address {slot}"))
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn pod_links_dir(&self, device: &str) -> PathBuf {
        self.config.bpffs_dir.join("links").join(device)
    }

    /// Existing links get the new programs; missing ones are made.
    pub(crate) fn attach_everything(&self) -> Result<(), OpenError> {
        self.attach_ports()?;
        self.attach_sockets()?;
        for link in pod_links(&self.netlink)? {
            self.attach_programs(&link.device, link.ifindex)?;
        }
        self.programs.keep_layout(&maps_dir(&self.config))
    }

    fn attach_ports(&self) -> Result<(), OpenError> {
        let directory = self.pod_links_dir("node");
        make_directory(&directory)?;
        let from_net = self.programs.program("from_net")?;
        let uplink = Place::TcxIngress { ifindex: self.ports.uplink.index };
        links::ensure(&directory.join("uplink"), from_net, uplink)?;
        let to_net = self.programs.program("to_net")?;
        let out = Place::TcxEgress { ifindex: self.ports.uplink.index };
        links::ensure(&directory.join("uplink_out"), to_net, out)?;
        let Some(tunnel) = &self.ports.tunnel else {
            links::unpin(&directory.join("tunnel_in"))?;
            return links::unpin(&directory.join("tunnel_out"));
        };
        let ifindex = tunnel.index;
        links::ensure(&directory.join("tunnel_in"), from_net, Place::TcxIngress { ifindex })?;
        let to_tunnel = self.programs.program("to_tunnel")?;
        links::ensure(&directory.join("tunnel_out"), to_tunnel, Place::TcxEgress { ifindex })
    }

    fn attach_sockets(&self) -> Result<(), OpenError> {
        let path = &self.config.cgroup_dir;
        let cgroup = fs::File::open(path).map_err(|source| OpenError::File { path: path.clone(), source })?;
        let directory = self.pod_links_dir("sockets");
        make_directory(&directory)?;
        for (name, kind) in SOCKET_HOOKS {
            let place = Place::Cgroup { directory: cgroup.as_fd(), kind: *kind };
            links::ensure(&directory.join(name), self.programs.program(name)?, place)?;
        }
        Ok(())
    }

    /// Pins whose device went away with its namespace, and devices that were left half made.
    fn collect_dead(&self) -> Result<(), OpenError> {
        let devices = self.netlink.devices()?;
        for device in &devices {
            let half_made = device.alias.is_none() && is_pod_device(&device.name);
            if half_made {
                tracing::info!(device = device.name, "removing a half-made link");
                self.netlink.remove_device(&device.name)?;
            }
        }
        let directory = self.config.bpffs_dir.join("links");
        let file = |source| OpenError::File { path: directory.clone(), source };
        for entry in fs::read_dir(&directory).map_err(file)? {
            let entry = entry.map_err(file)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let there = devices.iter().any(|device| device.name == name && device.alias.is_some());
            if is_pod_device(&name) && !there {
                links::unpin_all(&entry.path())?;
            }
        }
        Ok(())
    }
}

impl Maps {
    fn of(programs: &Programs, writes: &Arc<dyn Writes>) -> Result<Self, OpenError> {
        Ok(Self {
            endpoints: Table::new(programs.map("endpoints")?, "endpoints", writes),
            classes: Table::new(programs.map("classes")?, "classes", writes),
            class_blocks: Table::new(programs.map("class_blocks")?, "class_blocks", writes),
            policies: Table::new(programs.map("policies")?, "policies", writes),
            routes: Table::new(programs.map("routes")?, "routes", writes),
            services: Table::new(programs.map("services")?, "services", writes),
            backends: Table::new(programs.map("backends")?, "backends", writes),
            members: Table::new(programs.map("members")?, "members", writes),
            maglev: MaglevTables::new(programs.map("maglev")?, writes),
            source_ranges: Table::new(programs.map("source_ranges")?, "source_ranges", writes),
            announced: Table::new(programs.map("announced")?, "announced", writes),
            flows: Table::new(programs.map("flows")?, "flows", writes),
            affinities: Table::new(programs.map("affinities")?, "affinities", writes),
            nat: Table::new(programs.map("nat")?, "nat", writes),
            node_addresses: Table::new(programs.map("node_addresses")?, "node_addresses", writes),
            epoch: Table::new(programs.map("epoch")?, "epoch", writes),
            counters: Table::new(programs.map("counters")?, "counters", writes),
        })
    }
}

fn maps_dir(config: &Config) -> PathBuf {
    config.bpffs_dir.join("maps")
}

fn program_config(config: &Config, ports: &Ports) -> Result<ProgramConfig, OpenError> {
    let (routing, vni) = match config.routing {
        Routing::Direct => (RoutingNumber::DIRECT, 0),
        Routing::Vxlan { vni, .. } => (RoutingNumber::VXLAN, vni),
    };
    let host_netns = netns_cookie()
        .map_err(|source| OpenError::File { path: PathBuf::from("/proc/self/ns/net"), source })?;
    Ok(ProgramConfig {
        host_netns,
        uplink_ifindex: ports.uplink.index,
        tunnel_ifindex: ports.tunnel.as_ref().map(|tunnel| tunnel.index).unwrap_or_default(),
        routing,
        vni,
        denied_events: DENIED_EVENTS,
        tunnel_port: match config.routing {
            Routing::Direct => 0,
            Routing::Vxlan { port, .. } => port.into(),
        },
        nat_ports: FORWARDING_PORTS,
        icmp_errors: ICMP_ERRORS,
        uplink_mac: link_address(ports),
    })
}

fn link_address(ports: &Ports) -> [u8; 8] {
    let [a, b, c, d, e, f] = ports.uplink.mac.0;
    [a, b, c, d, e, f, 0, 0]
}

fn is_pod_device(name: &str) -> bool {
    name.strip_prefix(DEVICE_PREFIX)
        .is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn is_ours(name: &str, alias: Option<&str>) -> bool {
    is_pod_device(name) || name == node::TUNNEL || alias.is_some_and(|alias| alias.starts_with("weft pod "))
}

fn make_directory(path: &Path) -> Result<(), OpenError> {
    match fs::create_dir_all(path) {
        Err(source) if source.kind() == io::ErrorKind::PermissionDenied => Err(OpenError::NotPermitted),
        Err(source) => Err(OpenError::File { path: path.to_owned(), source }),
        Ok(()) => Ok(()),
    }
}

fn check_file_system(path: &Path, magic: FsType, wrong: fn(PathBuf) -> OpenError) -> Result<(), OpenError> {
    match statfs(path) {
        Ok(found) if found.filesystem_type() == magic => Ok(()),
        Ok(_) => Err(wrong(path.to_owned())),
        Err(error) => Err(OpenError::File { path: path.to_owned(), source: error.into() }),
    }
}

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// What this kernel lacks, before anything is changed.
fn check_kernel() -> Result<(), OpenError> {
    let loopback = 1;
    // SAFETY: a query without options only reads.
    let result = unsafe {
        libbpf_sys::bpf_prog_query_opts(loopback, libbpf_sys::BPF_TCX_INGRESS, std::ptr::null_mut())
    };
    judge_kernel(Path::new(BTF).exists(), -result)
}

/// `tcx_query` is the error number with which the kernel answers who is attached to a device's tcx hook.
fn judge_kernel(has_btf: bool, tcx_query: i32) -> Result<(), OpenError> {
    match tcx_query {
        _ if !has_btf => Err(OpenError::NoBtf { path: PathBuf::from(BTF) }),
        libc::EPERM => Err(OpenError::NotPermitted),
        libc::EINVAL => Err(OpenError::NoTcx { release: kernel_release() }),
        _ => Ok(()),
    }
}

fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lack_of_the_kernel_is_named_with_its_remedy() {
        let told = |has_btf, tcx| judge_kernel(has_btf, tcx).map_err(|error| error.to_string());
        assert_eq!(told(true, 0), Ok(()));
        assert_eq!(told(true, libc::ENODEV), Ok(()), "the hook is known, the device is not");
        let cases = [
            (told(false, libc::EINVAL), [BTF, "CONFIG_DEBUG_INFO_BTF=y"]),
            (told(true, libc::EINVAL), ["no tcx hooks", "Linux 6.6 or newer"]),
            (told(true, libc::EPERM), ["not permitted", "run as root"]),
        ];
        for (told, words) in cases {
            let text = told.unwrap_err();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
        assert!(told(true, libc::EINVAL).unwrap_err().contains(&kernel_release()));
    }
}
