//! The pods of this node as the name server sees them: by the address they ask from, with their search lists.

use weft_model::Addr;
use weft_model::{
    ClusterDns, Collapse, DnsPolicy, Pod, PodNetwork, ResolvConf, Searching, SharedMap, Snapshot,
};
use weft_plan::NameClient;

use super::normal;
use crate::endpoints::Locals;

pub(super) fn clients(snapshot: &Snapshot, locals: &Locals<'_>) -> SharedMap<Addr, NameClient> {
    let clients = locals.iter().flat_map(|local| {
        let client = NameClient { pod: local.pod.key.clone(), searching: searching(snapshot, local.pod) };
        local.addresses.iter().map(move |addr| (*addr, client.clone()))
    });
    clients.collect()
}

/// `None`: the pod's resolver has no search list of the cluster, or its walks are left alone.
fn searching(snapshot: &Snapshot, pod: &Pod) -> Option<Searching> {
    let settings = &snapshot.settings;
    if settings.names.collapse == Collapse::Off || pod.dns.policy == DnsPolicy::Default {
        return None;
    }
    let cluster =
        ClusterDns { servers: settings.dns_addresses.clone(), domain: normal(&settings.cluster_domain) };
    let node = ResolvConf { search: settings.names.node_search.clone(), ..ResolvConf::default() };
    let conf = ResolvConf::of_pod(&pod.dns, PodNetwork::Own, &pod.key.namespace, &cluster, &node);
    let mut searching = conf.searching();
    for domain in &mut searching.domains {
        domain.make_ascii_lowercase();
    }
    (!searching.domains.is_empty()).then_some(searching)
}
