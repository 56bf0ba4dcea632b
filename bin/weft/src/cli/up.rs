//! `weft up`: weaves a cluster on this machine, brings an application up on it, shows what there is, and stays until Ctrl-C.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ipnet::{Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use weft_lab::fabric::{self, Families, Routing, Spec, TableSizes};
use weft_model::Forwarding;

use super::summary;
use crate::fabrics::DEFAULT_NAME;
use crate::manifests::{self, Manifests};
use crate::output::{Colour, Progress, mark, paint, seconds};

#[derive(clap::Args)]
pub struct Args {
    /// The cluster's name
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// How many nodes
    #[arg(long, default_value_t = 3)]
    nodes: u16,
    /// How packets reach pods of other nodes
    #[arg(long, value_enum, default_value = "direct")]
    routing: RoutingArg,
    /// Address families of pods and services
    #[arg(long, value_enum, default_value = "dual")]
    families: FamiliesArg,
    /// Port of the Kubernetes API on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    api_port: u16,
    /// Manifests to apply once the nodes are ready: a file or a folder; may be given again
    #[arg(long, value_name = "PATH")]
    apply: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// IPv4 range of the pods
    #[arg(long)]
    pods_v4: Option<Ipv4Net>,
    /// IPv6 range of the pods
    #[arg(long)]
    pods_v6: Option<Ipv6Net>,
    /// IPv4 range of the services
    #[arg(long)]
    services_v4: Option<Ipv4Net>,
    /// IPv6 range of the services
    #[arg(long)]
    services_v6: Option<Ipv6Net>,
    /// IPv4 range of the nodes
    #[arg(long)]
    nodes_v4: Option<Ipv4Net>,
    /// MTU of the links between nodes
    #[arg(long, default_value_t = 1500)]
    mtu: u32,
    /// Resolvers for names outside the cluster, instead of those of /etc/resolv.conf
    #[arg(long, value_name = "ADDRESS", conflicts_with = "names")]
    upstream: Vec<IpAddr>,
    /// Settings of names: servers by zone, cache and more (docs/names-settings.md)
    #[arg(long, value_name = "FILE")]
    names: Option<PathBuf>,
    /// Zones to spread the nodes over, in turn
    #[arg(long, value_name = "ZONE,...", value_delimiter = ',')]
    zones: Vec<String>,
    /// The region the zones are in
    #[arg(long, default_value = "lab")]
    region: String,
    /// Machines on the nodes' network that are no nodes, for clients from outside
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    outside: u16,
    /// Ports that services get on every node
    #[arg(long, default_value = "30000-32767", value_name = "FIRST-LAST", value_parser = port_range)]
    node_ports: RangeInclusive<u16>,
    /// Node ports answer on 127.0.0.1 and ::1 too, for processes of the node
    #[arg(long)]
    localhost_node_ports: bool,
    /// How connections from outside get to backends on other nodes
    #[arg(long, value_enum, default_value = "snat")]
    forwarding: ForwardingArg,
    /// Room in each node's kernel for addresses and ports of services
    #[arg(long, default_value_t = TableSizes::default().frontends, value_name = "ENTRIES")]
    max_frontends: u32,
    /// Room for the backends of all services' ports, each as often as its weight
    #[arg(long, default_value_t = TableSizes::default().backends, value_name = "ENTRIES")]
    max_backends: u32,
    /// Room for flows
    #[arg(long, default_value_t = TableSizes::default().flows, value_name = "ENTRIES")]
    max_flows: u32,
    /// How long a node may be silent before its pods count as not ready
    #[arg(long, default_value_t = 4, value_name = "SECONDS")]
    node_grace: u32,
    /// How long to wait for the pods to become ready before showing what there is
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    wait: u64,
    /// Weave, show, and take everything down again
    #[arg(long)]
    once: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum RoutingArg {
    /// Plain routes: nodes share a link
    Direct,
    /// Encapsulated: works over any network
    Vxlan,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ForwardingArg {
    /// From an address of the node they came to; replies go back through it
    Snat,
    /// With the client's address; replies go from the backend's node to the client
    Dsr,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum FamiliesArg {
    Dual,
    Ipv4,
    Ipv6,
}

impl Args {
    /// A range of a family that the cluster does not have would be of no effect.
    fn check_families(&self) -> Result<()> {
        let v4 = [
            ("--pods-v4", self.pods_v4.is_some()),
            ("--services-v4", self.services_v4.is_some()),
            ("--nodes-v4", self.nodes_v4.is_some()),
        ];
        let v6 = [("--pods-v6", self.pods_v6.is_some()), ("--services-v6", self.services_v6.is_some())];
        let (unused, families) = match self.families {
            FamiliesArg::Dual => return Ok(()),
            FamiliesArg::Ipv4 => (&v6[..], "ipv4"),
            FamiliesArg::Ipv6 => (&v4[..], "ipv6"),
        };
        match unused.iter().find(|(_, given)| *given) {
            Some((flag, _)) => {
                bail!("{flag} has no effect with --families {families}; leave one of them out")
            }
            None => Ok(()),
        }
    }

    /// As the name servers read them.
    fn names_settings(&self) -> Result<String> {
        match &self.names {
            Some(path) => super::names::read_settings(path),
            None if self.upstream.is_empty() => Ok(String::new()),
            None => {
                let servers = self.upstream.iter().map(|ip| SocketAddr::new(*ip, 53)).collect();
                Ok(weft_dns::Settings::with_servers(servers).to_yaml())
            }
        }
    }

    fn spec(&self) -> Spec {
        let mut spec = Spec {
            name: self.name.clone(),
            nodes: self.nodes,
            routing: match self.routing {
                RoutingArg::Direct => Routing::Direct,
                RoutingArg::Vxlan => Routing::Vxlan,
            },
            families: match self.families {
                FamiliesArg::Dual => Families::Dual,
                FamiliesArg::Ipv4 => Families::Ipv4,
                FamiliesArg::Ipv6 => Families::Ipv6,
            },
            api_port: self.api_port,
            mtu: self.mtu,
            zones: self.zones.clone(),
            region: self.region.clone(),
            outside: self.outside,
            node_ports: self.node_ports.clone(),
            localhost_node_ports: self.localhost_node_ports,
            forwarding: match self.forwarding {
                ForwardingArg::Snat => Forwarding::Snat,
                ForwardingArg::Dsr => Forwarding::Dsr,
            },
            tables: TableSizes {
                frontends: self.max_frontends,
                backends: self.max_backends,
                flows: self.max_flows,
            },
            node_grace_seconds: self.node_grace,
            ..Spec::default()
        };
        let set =
            |place: &mut Ipv4Net, given: Option<Ipv4Net>| given.into_iter().for_each(|net| *place = net);
        set(&mut spec.pods.v4, self.pods_v4);
        set(&mut spec.services.v4, self.services_v4);
        set(&mut spec.node_net.v4, self.nodes_v4);
        self.pods_v6.into_iter().for_each(|net| spec.pods.v6 = net);
        self.services_v6.into_iter().for_each(|net| spec.services.v6 = net);
        spec
    }
}

fn port_range(text: &str) -> std::result::Result<RangeInclusive<u16>, String> {
    let ends = text.split_once('-').and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
    ends.ok_or_else(|| "give the first and the last port, such as 30000-32767".to_owned())
}

pub async fn run(args: Args) -> Result<()> {
    args.check_families()?;
    // A manifest that cannot be read is said before anything is woven.
    let manifests = read_all(&args.apply)?;
    let spec = Spec { names: args.names_settings()?, ..args.spec() };
    println!("{}", paint(Colour::Bold, format!("Weaving {} with {} nodes", spec.name, spec.nodes)));
    let progress = Arc::new(Mutex::new(Progress::start()));
    let mut fabric = fabric::up(spec, reporter(progress.clone())).await?;
    let kubeconfig = fabric.paths().admin_kubeconfig();
    let shown = tokio::select! {
        shown = bring_up(&args, &kubeconfig, &manifests, &progress) => Some(shown),
        () = fabric.interrupted() => None,
    };
    if let Some(Err(error)) = &shown {
        eprintln!("{} {error:#}", mark(false));
    }
    if shown.is_some() && !args.once {
        println!("{}", paint(Colour::Dim, "Ctrl-C takes everything down."));
        fabric.interrupted().await;
    }
    println!();
    let name = args.name.clone();
    let started = Instant::now();
    fabric.down().await?;
    println!("{} {name} is down; nothing of it is left ({})", mark(true), seconds(started.elapsed()));
    match shown {
        Some(Err(error)) if args.once => Err(error),
        _ => Ok(()),
    }
}

fn read_all(paths: &[PathBuf]) -> Result<Manifests> {
    let mut all = Manifests::default();
    for path in paths {
        let read = manifests::read(path)?;
        all.objects.extend(read.objects);
        all.problems.extend(read.problems);
    }
    Ok(all)
}

fn reporter(progress: Arc<Mutex<Progress>>) -> Arc<fabric::Report> {
    Arc::new(move |event| {
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            fabric::Progress::Step(text) => progress.step(text),
            fabric::Progress::Done { .. } => progress.finish_step(),
            fabric::Progress::Nodes { ready, of } => progress.detail(format!("{ready} of {of} ready")),
            fabric::Progress::Restarting { process, why } => {
                eprintln!("  {} {process} {why}; starting it again", paint(Colour::Yellow, "!"));
            }
            fabric::Progress::Warning(text) => eprintln!("  {} {text}", paint(Colour::Yellow, "!")),
        }
    })
}

async fn bring_up(
    args: &Args,
    kubeconfig: &Path,
    manifests: &Manifests,
    progress: &Mutex<Progress>,
) -> Result<()> {
    let client = weft_kube::client_from_kubeconfig(kubeconfig).await?;
    let lock = || progress.lock().unwrap_or_else(PoisonError::into_inner);
    let mut problems = manifests.problems.clone();
    if !manifests.objects.is_empty() {
        lock().step(format!("applying {} objects", manifests.objects.len()));
        let applied = manifests::apply(&client, &manifests.objects, &args.namespace).await?;
        lock().finish_step();
        problems.extend(applied.problems);
        lock().step("starting the pods");
        let waited = wait_for_pods(&client, Duration::from_secs(args.wait), |ready, of| {
            lock().detail(format!("{ready} of {of} ready"));
        })
        .await?;
        lock().finish_step();
        problems.extend(waited);
    }
    let elapsed = lock().elapsed();
    println!("  up in {}", paint(Colour::Bold, seconds(elapsed)));
    for problem in &problems {
        eprintln!("{} {problem}", mark(false));
    }
    summary::print(&args.name).await
}

/// Waits until every pod is ready or finished; returns what is not by then.
async fn wait_for_pods(
    client: &kube::Client,
    patience: Duration,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<String>> {
    let deadline = Instant::now() + patience;
    let pods: Api<Pod> = Api::all(client.clone());
    let deployments: Api<k8s_openapi::api::apps::v1::Deployment> = Api::all(client.clone());
    loop {
        let all = pods.list(&ListParams::default()).await?.items;
        let waiting: Vec<String> = all.iter().filter(|pod| !is_settled(pod)).map(unready).collect();
        progress(all.len() - waiting.len(), all.len());
        // The pods of a workload applied a moment ago may not exist yet.
        let complete = deployments.list(&ListParams::default()).await?.items.iter().all(has_all_replicas);
        if waiting.is_empty() && complete {
            return Ok(Vec::new());
        }
        if Instant::now() >= deadline {
            return Ok(waiting);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn has_all_replicas(deployment: &k8s_openapi::api::apps::v1::Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    status.observed_generation.is_some() && status.replicas.unwrap_or(0) >= wanted
}

fn is_settled(pod: &Pod) -> bool {
    let status = pod.status.clone().unwrap_or_default();
    let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let mut conditions = status.conditions.into_iter().flatten();
    finished || conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn unready(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let status = pod.status.clone().unwrap_or_default();
    let condition = status.conditions.into_iter().flatten().find(|condition| condition.status == "False");
    let why = condition.and_then(|condition| condition.message.or(condition.reason));
    format!(
        "Pod {}/{} is not ready: {}",
        meta.namespace.as_deref().unwrap_or("default"),
        meta.name.as_deref().unwrap_or("?"),
        why.unwrap_or_else(|| format!("phase {}", status.phase.unwrap_or_default()))
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::Args;

    #[derive(Parser)]
    struct Up {
        #[command(flatten)]
        args: Args,
    }

    fn checked(line: &str) -> Result<(), String> {
        let words = std::iter::once("up").chain(line.split(' '));
        Up::parse_from(words).args.check_families().map_err(|error| error.to_string())
    }

    #[test]
    fn ranges_of_a_family_the_cluster_lacks_are_refused() {
        let refused = "--pods-v6 has no effect with --families ipv4; leave one of them out";
        assert_eq!(checked("--families ipv4 --pods-v6 fd00::/56"), Err(refused.to_owned()));
        assert!(checked("--families ipv6 --nodes-v4 10.0.0.0/24").is_err());
        assert_eq!(checked("--families ipv6 --pods-v6 fd00::/56"), Ok(()));
        assert_eq!(checked("--pods-v6 fd00::/56 --pods-v4 10.0.0.0/16"), Ok(()));
    }
}
