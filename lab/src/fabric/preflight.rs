//! Whether this machine can run a fabric: rights, kernel, tools and the port. Not here: whether the fabric is
//! possible at all (`spec`).

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

const BTF: &str = "/sys/kernel/btf/vmlinux";
/// tcx arrived in 6.6.
const OLDEST_KERNEL: (u32, u32) = (6, 6);
const FILESYSTEMS: &str = "/proc/filesystems";

/// What this machine lacks, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    #[error("user: namespaces, cgroups and BPF need root and this is user {uid}; run it with sudo")]
    NotRoot { uid: u32 },
    #[error("kernel: {release} is too old, tcx programs need {major}.{minor}; boot a newer kernel (Debian: bookworm-backports has one)", major = OLDEST_KERNEL.0, minor = OLDEST_KERNEL.1)]
    OldKernel { release: String },
    #[error(
        "kernel: {BTF} is missing; boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions do"
    )]
    NoBtf,
    #[error("kernel: the file system {kind} is missing; boot a kernel with {option}")]
    NoFilesystem { kind: &'static str, option: &'static str },
    #[error("api port: {port} on 127.0.0.1 is taken; give another --api-port, or 0 for a free one")]
    PortTaken { port: u16 },
    #[error(
        "api port: cannot listen on 127.0.0.1:{port}: {why}; give another --api-port, or 0 for a free one"
    )]
    Port { port: u16, why: String },
}

/// What was seen of the machine; gathered once, judged by a pure function.
#[derive(Clone, Debug)]
pub struct Machine {
    pub uid: u32,
    pub kernel: String,
    pub has_btf: bool,
    pub filesystems: String,
}

impl Machine {
    pub fn look() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self {
            uid: nix::unistd::geteuid().as_raw(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            has_btf: Path::new(BTF).exists(),
            filesystems: read(FILESYSTEMS),
        }
    }

    /// Everything that stands in the way; empty when the machine will do.
    pub fn problems(&self) -> Vec<MachineError> {
        let mut found = Vec::new();
        if self.uid != 0 {
            found.push(MachineError::NotRoot { uid: self.uid });
        }
        if kernel_version(&self.kernel).is_none_or(|version| version < OLDEST_KERNEL) {
            found.push(MachineError::OldKernel { release: self.kernel.clone() });
        }
        if !self.has_btf {
            found.push(MachineError::NoBtf);
        }
        for (kind, option) in [("bpf", "CONFIG_BPF_SYSCALL=y"), ("cgroup2", "CONFIG_CGROUPS=y")] {
            if !self.filesystems.lines().any(|line| line.split_whitespace().last() == Some(kind)) {
                found.push(MachineError::NoFilesystem { kind, option });
            }
        }
        found
    }
}

/// The port to serve the API on: the one asked for if it is free, or any free one for 0.
pub fn choose_port(wanted: u16) -> Result<u16, MachineError> {
    let attempt = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)).and_then(|listener| listener.local_addr());
    match attempt {
        Ok(address) => Ok(address.port()),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(MachineError::PortTaken { port: wanted }),
        Err(e) => Err(MachineError::Port { port: wanted, why: e.to_string() }),
    }
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Machine {
        Machine {
            uid: 0,
            kernel: "6.18.44-fc".into(),
            has_btf: true,
            filesystems: "nodev\tbpf\nnodev\tcgroup2\n\text4\n".into(),
        }
    }

    #[test]
    fn a_good_machine_has_no_problems_and_each_lack_is_named_with_its_remedy() {
        assert_eq!(good().problems(), []);
        let cases: [(Machine, &str, &str); 6] = [
            (Machine { uid: 1000, ..good() }, "user:", "sudo"),
            (Machine { kernel: "6.5.0-1-amd64".into(), ..good() }, "6.5.0-1-amd64 is too old", "6.6"),
            (Machine { kernel: "unknown".into(), ..good() }, "kernel:", "newer kernel"),
            (Machine { has_btf: false, ..good() }, BTF, "CONFIG_DEBUG_INFO_BTF"),
            (Machine { filesystems: "nodev\tcgroup2\n".into(), ..good() }, "bpf", "CONFIG_BPF_SYSCALL"),
            (
                Machine { filesystems: "nodev\tbpf\nnodev\tcgroup\n".into(), ..good() },
                "cgroup2",
                "CONFIG_CGROUPS",
            ),
        ];
        for (machine, what, remedy) in cases {
            let found = machine.problems();
            assert_eq!(found.len(), 1, "{found:?}");
            let text = found[0].to_string();
            assert!(text.contains(what) && text.contains(remedy), "{text}");
        }
    }

    #[test]
    fn kernel_versions_compare_as_numbers() {
        assert_eq!(kernel_version("6.12.3-amd64"), Some((6, 12)));
        assert!(Machine { kernel: "6.12.3".into(), ..good() }.problems().is_empty());
        assert!(Machine { kernel: "10.0".into(), ..good() }.problems().is_empty());
    }

    #[test]
    fn a_taken_port_is_named_and_zero_finds_a_free_one() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = holder.local_addr().unwrap().port();
        assert_eq!(choose_port(port), Err(MachineError::PortTaken { port }));
        assert_ne!(choose_port(0).unwrap(), 0);
    }
}
