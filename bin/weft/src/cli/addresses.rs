//! Load balancer addresses for `weft status`: who has each, since when, and how full the pools are.

use std::collections::BTreeMap;

use anyhow::Result;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::ListParams;
use weft_compile::announce::{Announced, announced};
use weft_kube::claims::{AddressLease, address_leases};
use weft_model::Addr;
use weft_model::parse::{AddressPoolObject, FamilyCapacity};

use crate::fabrics::Fabric;
use crate::output::{Table, mark};

pub struct Addresses {
    wanted: BTreeMap<Addr, Announced>,
    leases: BTreeMap<Addr, AddressLease>,
    pools: Vec<AddressPoolObject>,
}

pub async fn read(fabric: &Fabric) -> Result<Addresses> {
    let client = fabric.client().await?;
    let pools = match Api::<AddressPoolObject>::all(client.clone()).list(&ListParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        pools => pools?.items,
    };
    let leases = address_leases(&client).await?.into_iter().map(|lease| (lease.addr, lease)).collect();
    let wanted = match pools.is_empty() {
        true => BTreeMap::new(),
        false => announced(&fabric.snapshot().await?.0),
    };
    Ok(Addresses { wanted, leases, pools })
}

/// Nothing where nobody uses load balancers.
pub fn print(addresses: &Addresses) {
    let all: std::collections::BTreeSet<Addr> =
        addresses.wanted.keys().chain(addresses.leases.keys()).copied().collect();
    if !all.is_empty() {
        let mut table =
            Table::new(&["ADDRESS", "SERVICE", "OWNER", "SINCE", "TRANSITIONS", "LAST FAILOVER", "TROUBLE"]);
        for addr in all {
            table.row(address_row(addr, addresses.wanted.get(&addr), addresses.leases.get(&addr)));
        }
        println!();
        print!("{table}");
    }
    if !addresses.pools.is_empty() {
        let mut table = Table::new(&["POOL", "IPV4 USED", "IPV6 USED", "READY"]);
        addresses.pools.iter().for_each(|pool| table.row(pool_row(pool)));
        println!();
        print!("{table}");
    }
}

fn address_row(addr: Addr, wanted: Option<&Announced>, lease: Option<&AddressLease>) -> Vec<String> {
    let none = || "-".to_owned();
    let services =
        wanted.map(|wanted| wanted.services.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
    let owner = lease.and_then(|lease| lease.holder.as_ref()).map(ToString::to_string);
    let since = lease.and_then(|lease| lease.since).map(ago);
    let transitions = lease.map_or(0, |lease| lease.transitions);
    let trouble = match (wanted, &owner, lease.and_then(|lease| lease.obstacle.clone())) {
        (_, _, Some(obstacle)) => obstacle,
        (Some(wanted), None, None) if wanted.candidates.is_empty() => "no node may announce it".to_owned(),
        (Some(_), None, None) => "not announced yet".to_owned(),
        (None, _, None) => "no service has it; being withdrawn".to_owned(),
        (Some(_), Some(_), None) => none(),
    };
    let failover = since.clone().filter(|_| transitions > 0).unwrap_or_else(none);
    vec![
        addr.to_string(),
        services.unwrap_or_else(none),
        owner.unwrap_or_else(none),
        since.unwrap_or_else(none),
        transitions.to_string(),
        failover,
        trouble,
    ]
}

fn pool_row(pool: &AddressPoolObject) -> Vec<String> {
    let status = pool.status.clone().unwrap_or_default();
    let capacity = status.capacity.unwrap_or_default();
    let used = |capacity: Option<FamilyCapacity>| {
        capacity.map_or("-".to_owned(), |capacity| format!("{} of {}", capacity.used, capacity.total))
    };
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    let ready = match ready {
        Some(ready) if ready.status == "True" => mark(true),
        Some(ready) => format!("{} {}", mark(false), ready.message),
        None => "not looked at yet".to_owned(),
    };
    let name = pool.metadata.name.clone().unwrap_or_default();
    vec![name, used(capacity.ipv4), used(capacity.ipv6), ready]
}

fn ago(since: Timestamp) -> String {
    let seconds = (Timestamp::now().as_second() - since.as_second()).max(0);
    match seconds {
        0..=119 => format!("{seconds}s ago"),
        120..=7199 => format!("{}m ago", seconds / 60),
        7200..=172_799 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}
