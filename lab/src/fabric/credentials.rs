//! Who is who in a fabric: its authority, the API server's certificate, and a kubeconfig for every user.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use weft_pki::{Ca, Kubeconfig};

use super::config::{NODE_API_PORT, ips};
use super::paths::Paths;
use super::spec::{NodeAddresses, Spec};

pub const NAMESPACE: &str = "weft-system";
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// Writes the keys, certificates and kubeconfigs of a fabric.
pub fn write(
    spec: &Spec,
    paths: &Paths,
    nodes: &[NodeAddresses],
    api_port: u16,
) -> Result<(), weft_pki::Error> {
    let ca = Ca::create()?;
    ca.pair().write(&paths.pki("ca.crt"), &paths.pki("ca.key"))?;
    server_certificate(&ca, spec, nodes)?.write(&paths.pki("apiserver.crt"), &paths.pki("apiserver.key"))?;
    let signing = weft_pki::signing_key()?;
    weft_pki::write_private(&paths.pki("sa.key"), signing.private.as_str())?;
    weft_pki::write_public(&paths.pki("sa.pub"), &signing.public)?;
    let issuer = Issuer { ca: &ca, cluster: format!("weft-{}", spec.name) };
    let outside = format!("https://127.0.0.1:{api_port}");
    issuer.write(&paths.admin_kubeconfig(), &outside, "kubernetes-admin", Some("system:masters"))?;
    let controller = service_account("weft-controller");
    issuer.write(&paths.kubeconfig("controller"), &outside, &controller, Some(SERVICE_ACCOUNTS))?;
    for process in ["controller-manager", "scheduler"] {
        issuer.write(&paths.kubeconfig(process), &outside, &format!("system:kube-{process}"), None)?;
    }
    nodes.iter().try_for_each(|node| issuer.write_node(paths, &node.name, &outside))
}

struct Issuer<'a> {
    ca: &'a Ca,
    cluster: String,
}

impl Issuer<'_> {
    fn write_node(&self, paths: &Paths, node: &str, outside: &str) -> Result<(), weft_pki::Error> {
        let inside = format!("https://127.0.0.1:{NODE_API_PORT}");
        let file = |user: &str| paths.node_file(node, &format!("kubeconfig.{user}"));
        self.write(&file("agent"), &inside, &service_account("weft-agent"), Some(SERVICE_ACCOUNTS))?;
        // The proxy runs in the machine's namespace, where the node's loopback is out of reach.
        self.write(&file("proxy"), outside, &service_account("weft-proxy"), Some(SERVICE_ACCOUNTS))?;
        self.write(&file("kubelet"), &inside, &format!("system:node:{node}"), Some("system:nodes"))
    }

    fn write(
        &self,
        path: &Path,
        server: &str,
        user: &str,
        group: Option<&str>,
    ) -> Result<(), weft_pki::Error> {
        let client = self.ca.client_cert(user, group)?;
        Kubeconfig { cluster: &self.cluster, server, ca_cert: self.ca.cert_pem(), user, client: &client }
            .write(path)
    }
}

fn service_account(name: &str) -> String {
    format!("system:serviceaccount:{NAMESPACE}:{name}")
}

fn server_certificate(
    ca: &Ca,
    spec: &Spec,
    nodes: &[NodeAddresses],
) -> Result<weft_pki::Pair, weft_pki::Error> {
    let full = format!("kubernetes.default.svc.{}", spec.cluster_domain);
    let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", full.as_str(), "localhost"];
    let mut addresses: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    addresses.extend(spec.api_service_addresses());
    addresses.extend(nodes.iter().flat_map(ips));
    ca.server_cert(&names, &addresses)
}
