//! Where a fabric's files, namespaces and cgroups are, by name alone. Nothing here touches the disk.

use std::path::{Path, PathBuf};

use super::spec::Spec;

/// The name of the kernel's side of a node: also its cgroup and directory.
pub const UNDERLAY: &str = "underlay";

/// All places of one fabric. Derived from the name, so that what was left behind is found without records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    name: String,
    state_root: PathBuf,
    netns_root: PathBuf,
}

impl Paths {
    pub fn new(name: &str, state_root: &Path, netns_root: &Path) -> Self {
        Self { name: name.to_owned(), state_root: state_root.to_owned(), netns_root: netns_root.to_owned() }
    }

    pub fn of(spec: &Spec) -> Self {
        Self::new(&spec.name, &spec.state_root, &spec.netns_root)
    }

    pub fn state_root(&self) -> &Path {
        &self.state_root
    }

    pub fn netns_root(&self) -> &Path {
        &self.netns_root
    }

    /// Marks that a fabric made `netns_root` a mount point, so that the last one undoes it.
    pub fn made_netns_root(&self) -> PathBuf {
        self.state_root.join(".made-netns-root")
    }

    pub fn root(&self) -> PathBuf {
        self.state_root.join(&self.name)
    }

    pub fn record(&self) -> PathBuf {
        self.root().join("fabric.json")
    }

    pub fn processes(&self) -> PathBuf {
        self.root().join("processes")
    }

    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.root().join("kubeconfig")
    }

    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.root().join(format!("kubeconfig.{user}"))
    }

    pub fn config(&self, process: &str) -> PathBuf {
        self.root().join("config").join(format!("{process}.json"))
    }

    /// The settings of names, the same for all nodes.
    pub fn names_settings(&self) -> PathBuf {
        self.root().join("names.yaml")
    }

    pub fn log(&self, process: &str) -> PathBuf {
        self.root().join("logs").join(format!("{process}.log"))
    }

    pub fn pki(&self, file: &str) -> PathBuf {
        self.root().join("pki").join(file)
    }

    pub fn api_store(&self) -> PathBuf {
        self.root().join("api")
    }

    pub fn bpffs(&self) -> PathBuf {
        self.root().join("bpf")
    }

    /// Where a cgroup v2 hierarchy is mounted when the machine has none.
    pub fn own_cgroup_mount(&self) -> PathBuf {
        self.root().join("cgroup")
    }

    /// Where the kubelets bind the pods' network namespaces.
    pub fn pod_netns(&self) -> PathBuf {
        self.root().join("netns")
    }

    pub fn node(&self, node: &str) -> PathBuf {
        self.root().join("nodes").join(node)
    }

    pub fn node_file(&self, node: &str, file: &str) -> PathBuf {
        self.node(node).join(file)
    }

    /// The prefix of all of the fabric's namespace names. Fabric names hold no second fabric's prefix:
    /// see `owns_netns`.
    pub fn netns_name(&self, node: &str) -> String {
        format!("weft-{}-{node}", self.name)
    }

    pub fn netns(&self, node: &str) -> PathBuf {
        self.netns_root.join(self.netns_name(node))
    }

    /// Whether a namespace name is this fabric's: `weft-a-node1` is not that of a fabric named `a-node1`.
    pub fn owns_netns(&self, name: &str) -> bool {
        let Some(node) = name.strip_prefix(&format!("weft-{}-", self.name)) else { return false };
        let numbered = |prefix: &str| {
            node.strip_prefix(prefix).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        };
        node == UNDERLAY || numbered("node") || numbered("outside")
    }

    pub fn cgroup(&self, mount: &Path) -> PathBuf {
        mount.join("weft").join(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fabric_does_not_claim_the_namespaces_of_one_whose_name_starts_alike() {
        let paths = Paths::new("a", Path::new("/run/weft"), Path::new("/run/netns"));
        assert!(paths.owns_netns("weft-a-node12"));
        assert!(paths.owns_netns("weft-a-underlay"));
        assert!(paths.owns_netns("weft-a-outside1"));
        for other in [
            "weft-a-b-node1",
            "weft-a-outside",
            "weft-a-outside1-node1",
            "weft-a-node",
            "weft-a-node1x",
            "weft-ab-node1",
            "a-node1",
            "weft-a-",
        ] {
            assert!(!paths.owns_netns(other), "{other}");
        }
    }
}
