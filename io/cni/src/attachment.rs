//! One container's interface as Weft knows it. How it is stored lives in `attachments`, how it is made in `PodNetwork`.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use weft_model::{Addr, LocalEndpoint, PodKey, Uid};

/// The unit of the specification: one interface of one container.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Owner {
    pub container_id: String,
    pub ifname: String,
}

impl Owner {
    /// Name of the host side of the link: the same for the same owner, always, and within the kernel's 15 characters.
    pub fn device(&self) -> String {
        format!("wf{:012x}", self.hash() >> 16)
    }

    /// A file name for this owner; unlike `device` it need not be short, so it stays readable.
    pub fn file_name(&self) -> String {
        format!("{}@{:016x}", self.container_id, self.hash())
    }

    /// FNV-1a over id, NUL and interface. The upper bits mix best, so shorter names take those.
    fn hash(&self) -> u64 {
        let bytes = self.container_id.bytes().chain([0]).chain(self.ifname.bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.ifname, self.container_id)
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PodRef {
    pub key: PodKey,
    /// Empty where the runtime does not say.
    pub uid: Uid,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attachment {
    pub owner: Owner,
    /// Name of the network configuration it was made under.
    pub network: String,
    /// Absent for containers that belong to no pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    pub netns: PathBuf,
    pub device: String,
    pub addresses: Vec<Addr>,
    /// What the kernel holds; absent until ADD is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<Attached>,
}

/// What making the link showed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attached {
    /// Of the container's interface.
    pub mac: MacAddr,
    /// Of the host's side.
    pub host_mac: MacAddr,
    pub mtu: u32,
    /// Next hop of the default route, one per family.
    pub gateways: Vec<Addr>,
}

impl Attachment {
    pub fn local_endpoint(&self) -> Option<LocalEndpoint> {
        let pod = self.pod.as_ref()?;
        Some(LocalEndpoint {
            pod: pod.key.clone(),
            uid: pod.uid.clone(),
            addresses: self.addresses.iter().copied().collect::<BTreeSet<_>>(),
            device: self.device.clone(),
        })
    }

    /// Whether the container's namespace still stands behind its path; an unmounted one leaves a plain file.
    pub fn sandbox_exists(&self) -> bool {
        nix::sys::statfs::statfs(&self.netns)
            .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not an Ethernet address");
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let digits = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(digits).ok_or_else(bad)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(octets)) }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_are_stable_short_and_distinct() {
        let name = |id: &str, ifname: &str| {
            Owner { container_id: id.to_owned(), ifname: ifname.to_owned() }.device()
        };
        assert_eq!(name("c1", "eth0"), name("c1", "eth0"));
        assert_eq!(name("c1", "eth0").len(), 14);
        let ids: BTreeSet<String> =
            (0..10_000).flat_map(|n| ["eth0", "eth1"].map(|ifname| name(&format!("c{n}"), ifname))).collect();
        assert_eq!(ids.len(), 20_000);
    }

    #[test]
    fn ethernet_addresses_round_trip() {
        let mac: MacAddr = "02:00:5e:10:00:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
        for bad in ["", "02:00:5e:10:00", "02:00:5e:10:00:ff:01", "+2:00:5e:10:00:ff", "02:00:5e:10:00:0ff"] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }
}
