//! The controllers against the real API server, under their own accounts and rights. Kubelets are played by the
//! test: they make bound pods run, and end those that are to go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use weft_lab::controllers::{self, podcidr};
use weft_lab::fabric::bootstrap;

const PATIENCE: Duration = Duration::from_secs(60);

/// A control plane whose nodes are played. Everything ends when it is dropped.
struct Cluster {
    admin: Client,
    _server: weft_apiserver::Server,
    _work: JoinSet<()>,
    _directory: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca = weft_pki::Ca::create().unwrap();
        let server = serve(directory.path(), &ca).await;
        let url = format!("https://{}", server.address());
        let client = async |user: &str, group: Option<&str>| {
            let path = directory.path().join(user.replace(':', "-"));
            let pair = ca.client_cert(user, group).unwrap();
            let file = weft_pki::Kubeconfig {
                cluster: "t",
                server: &url,
                ca_cert: ca.cert_pem(),
                user,
                client: &pair,
            };
            file.write(&path).unwrap();
            bootstrap::client(&path).await.unwrap()
        };
        let admin = client("kubernetes-admin", Some("system:masters")).await;
        let manager = client("system:kube-controller-manager", None).await;
        let scheduler = client("system:kube-scheduler", None).await;
        let ranges =
            client("system:serviceaccount:weft-system:weft-controller", Some("system:serviceaccounts")).await;
        bootstrap::wait_ready(&admin).await;
        bootstrap::create("t", &admin).await.unwrap();
        let mut work = JoinSet::new();
        work.spawn(controllers::run_with(manager, scheduler));
        work.spawn(async move {
            podcidr::run(ranges, pools()).await.unwrap();
        });
        work.spawn(play_kubelets(admin.clone()));
        Self { admin, _server: server, _work: work, _directory: directory }
    }

    async fn with_nodes(names: &[&str]) -> Self {
        let cluster = Self::start().await;
        for name in names {
            cluster.add_node(name).await;
        }
        cluster
    }

    async fn add_node(&self, name: &str) {
        let nodes = Api::<Node>::all(self.admin.clone());
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
        nodes.create(&PostParams::default(), &parse(node)).await.unwrap();
        let status = json!({"status": {"allocatable": {"cpu": "8", "memory": "32Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}]}});
        // The node's first writers are many: its ranges and its status come at the same moment, and neither is refused.
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.admin.clone(), "default")
    }

    async fn create<K>(&self, object: Value)
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        self.api::<K>().create(&PostParams::default(), &parse(object)).await.unwrap();
    }

    /// Waits until what a look at the cluster returns satisfies.
    async fn until<T: std::fmt::Debug>(
        &self,
        what: &str,
        look: impl AsyncFn() -> T,
        enough: impl Fn(&T) -> bool,
    ) -> T {
        let mut last = None;
        let wait = async {
            loop {
                let seen = look().await;
                if enough(&seen) {
                    return seen;
                }
                last = Some(seen);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(seen) => seen,
            Err(_) => panic!("{what}: {last:?}"),
        }
    }

    async fn pods(&self, label: &str) -> Vec<Pod> {
        let list = ListParams::default().labels(label);
        self.api::<Pod>().list(&list).await.unwrap().items
    }

    async fn rolled_out(&self, name: &str, image: &str, replicas: i32) {
        let look = async || {
            let deployment = self.api::<Deployment>().get(name).await.unwrap();
            let generation = deployment.metadata.generation;
            let status = deployment.status.unwrap_or_default();
            let images: BTreeSet<String> =
                self.pods(&format!("app={name}")).await.iter().map(image_of).collect();
            (
                generation == status.observed_generation,
                status.updated_replicas,
                status.available_replicas,
                status.replicas,
                images,
            )
        };
        let wanted =
            (true, Some(replicas), Some(replicas), Some(replicas), BTreeSet::from([image.to_owned()]));
        self.until(name, look, |seen| *seen == wanted).await;
    }
}

async fn serve(directory: &Path, ca: &weft_pki::Ca) -> weft_apiserver::Server {
    let pair = ca.server_cert(&["localhost"], &[Ipv4Addr::LOCALHOST.into()]).unwrap();
    let signing = weft_pki::signing_key().unwrap();
    let config = weft_apiserver::Config {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        namespace_listeners: Vec::new(),
        data_dir: directory.join("api"),
        tls_cert: pair.cert.clone(),
        tls_key: pair.key.as_str().to_owned(),
        client_ca: ca.cert_pem().to_owned(),
        service_account_key: signing.private.as_str().to_owned(),
        service_account_public: signing.public,
        service_ranges: vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        node_ports: weft_apiserver::DEFAULT_NODE_PORTS,
        cluster_domain: "cluster.local".to_owned(),
        kubelet_socket: directory.join("{node}.sock").display().to_string(),
        kubernetes_endpoints: Vec::new(),
        bootstrap_manifests: Vec::new(),
        history: weft_apiserver::DEFAULT_HISTORY,
    };
    std::fs::create_dir_all(&config.data_dir).unwrap();
    weft_apiserver::start(config).await.unwrap()
}

fn pools() -> podcidr::Pools {
    let ranges = vec!["10.244.0.0/22".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()];
    podcidr::Pools { ranges, node_mask_v4: 24, node_mask_v6: 64 }
}

/// Bound pods get addresses and run; those labelled `ends` succeed; those that are to go are gone at once.
async fn play_kubelets(admin: Client) {
    let pods = Api::<Pod>::all(admin.clone());
    let mut events = Box::pin(watcher(pods, watcher::Config::default()).default_backoff().applied_objects());
    let mut numbers = BTreeMap::<String, usize>::new();
    while let Some(event) = events.next().await {
        let Ok(pod) = event else { continue };
        let api = Api::<Pod>::namespaced(admin.clone(), &pod.namespace().unwrap());
        if pod.metadata.deletion_timestamp.is_some() {
            let _ = api
                .delete(
                    &pod.name_any(),
                    &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() },
                )
                .await;
            continue;
        }
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) || phase != Some("Pending") {
            continue;
        }
        let count = numbers.len();
        let number = *numbers.entry(pod.uid().unwrap()).or_insert(count) + 2;
        let ends = pod.labels().contains_key("ends");
        let status = json!({"status": {
            "phase": if ends { "Succeeded" } else { "Running" },
            "podIP": format!("10.244.0.{number}"),
            "podIPs": [{"ip": format!("10.244.0.{number}")}, {"ip": format!("fd00:10:244::{number:x}")}],
            "conditions": [{"type": "Ready", "status": if ends { "False" } else { "True" }}],
        }});
        let _ = api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&status)).await;
    }
}

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn template(app: &str, image: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [{"name": "c", "image": image, "ports": [{"containerPort": 80}]}]}})
}

fn deployment(name: &str, replicas: i32) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template(name, "v1")}})
}

fn image_of(pod: &Pod) -> String {
    pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap_or_default()
}

fn node_of(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.node_name.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_of_many_deployments_comes_up_behind_its_services() {
    let cluster = Cluster::with_nodes(&["n1", "n2", "n3"]).await;
    let names: Vec<String> = (0..14).map(|number| format!("app{number}")).collect();
    for name in &names {
        cluster.create::<Deployment>(deployment(name, 2)).await;
        let service = json!({"metadata": {"name": name}, "spec": {"selector": {"app": name}, "ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}]}});
        cluster.create::<k8s_openapi::api::core::v1::Service>(service).await;
    }
    for name in &names {
        cluster.rolled_out(name, "v1", 2).await;
        let slices = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
        let look = async || {
            let slices = cluster.api::<EndpointSlice>().list(&slices).await.unwrap().items;
            let ready = |slice: &EndpointSlice| {
                slice
                    .endpoints
                    .iter()
                    .filter(|e| e.conditions.as_ref().is_some_and(|c| c.ready == Some(true)))
                    .count()
            };
            let mut seen: Vec<(String, usize)> =
                slices.iter().map(|s| (s.address_type.clone(), ready(s))).collect();
            seen.sort();
            seen
        };
        cluster.until(name, look, |seen| *seen == [("IPv4".to_owned(), 2), ("IPv6".to_owned(), 2)]).await;
    }
    // Exactly two pods each, spread over the nodes.
    let mut per_node = BTreeMap::<String, usize>::new();
    for pod in cluster.api::<Pod>().list(&ListParams::default()).await.unwrap() {
        *per_node.entry(node_of(&pod).unwrap()).or_default() += 1;
    }
    assert_eq!(per_node.values().sum::<usize>(), 28, "{per_node:?}");
    assert!(per_node.values().all(|count| (8..=11).contains(count)), "{per_node:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roll_outs_scale_and_deletion() {
    let cluster = Cluster::with_nodes(&["n1", "n2"]).await;
    cluster.create::<Deployment>(deployment("web", 4)).await;
    cluster.rolled_out("web", "v1", 4).await;
    let api = cluster.api::<Deployment>();
    let patch =
        async |patch: Value| api.patch("web", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    patch(json!({"spec": {"template": template("web", "v2")}})).await;
    cluster.rolled_out("web", "v2", 4).await;
    patch(json!({"spec": {"replicas": 7}})).await;
    cluster.rolled_out("web", "v2", 7).await;
    patch(json!({"spec": {"replicas": 1, "template": template("web", "v1")}})).await;
    cluster.rolled_out("web", "v1", 1).await;
    let sets = cluster.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(sets.len(), 2, "the first version's set is used again");
    api.delete("web", &DeleteParams::default()).await.unwrap();
    cluster.until("everything goes", async || cluster.pods("app=web").await.len(), |count| *count == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbered_pods_daemons_and_jobs() {
    let cluster = Cluster::with_nodes(&["n1", "n2", "n3"]).await;
    cluster
        .create::<StatefulSet>(
            json!({"metadata": {"name": "db"}, "spec": {"serviceName": "db", "replicas": 3,
            "selector": {"matchLabels": {"app": "db"}}, "template": template("db", "v1")}}),
        )
        .await;
    cluster
        .create::<DaemonSet>(json!({"metadata": {"name": "log"}, "spec": {
            "selector": {"matchLabels": {"app": "log"}}, "template": template("log", "v1")}}))
        .await;
    let mut ending = template("once", "v1");
    ending["metadata"]["labels"]["ends"] = json!("yes");
    ending["spec"]["restartPolicy"] = json!("Never");
    cluster.create::<Job>(json!({"metadata": {"name": "once"}, "spec": {"completions": 5, "parallelism": 2, "template": ending}})).await;
    let names = async || {
        let mut names: Vec<String> = cluster.pods("app=db").await.iter().map(ResourceExt::name_any).collect();
        names.sort();
        names
    };
    cluster.until("the set", names, |names| *names == ["db-0", "db-1", "db-2"]).await;
    let homes = async || {
        let homes: BTreeSet<String> = cluster.pods("app=log").await.iter().filter_map(node_of).collect();
        homes.into_iter().collect::<Vec<_>>()
    };
    cluster.until("the daemons", homes, |homes| *homes == ["n1", "n2", "n3"]).await;
    let job = async || cluster.api::<Job>().get("once").await.unwrap().status.unwrap_or_default();
    let complete = |status: &k8s_openapi::api::batch::v1::JobStatus| status.completion_time.is_some();
    let status = cluster.until("the job", job, complete).await;
    assert_eq!(status.succeeded, Some(5));
    cluster.add_node("n4").await;
    cluster.until("a daemon for the new node", homes, |homes| homes.len() == 4).await;
    let update = json!({"spec": {"template": template("db", "v2")}});
    cluster.api::<StatefulSet>().patch("db", &PatchParams::default(), &Patch::Merge(&update)).await.unwrap();
    let images = async || cluster.pods("app=db").await.iter().map(image_of).collect::<Vec<_>>();
    cluster.until("the new version", images, |images| *images == ["v2", "v2", "v2"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_get_pod_ranges_of_their_own_and_the_one_too_many_is_told() {
    let names = ["n1", "n2", "n3", "n4", "n5"];
    let cluster = Cluster::start().await;
    let cluster = Arc::new(cluster);
    futures::future::join_all(names.iter().map(|name| cluster.add_node(name))).await;
    let nodes = Api::<Node>::all(cluster.admin.clone());
    let look = async || {
        let mut ranges = Vec::new();
        let mut told = Vec::new();
        for node in nodes.list(&ListParams::default()).await.unwrap() {
            ranges.extend(node.spec.as_ref().and_then(|spec| spec.pod_cidrs.clone()));
            let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
            told.extend(
                conditions.into_iter().filter(|c| c.type_ == podcidr::CONDITION).filter_map(|c| c.message),
            );
        }
        (ranges, told)
    };
    let (ranges, told) =
        cluster.until("ranges", look, |(ranges, told)| ranges.len() == 4 && !told.is_empty()).await;
    let v4: BTreeSet<&String> = ranges.iter().map(|pair| &pair[0]).collect();
    assert_eq!(v4.len(), 4, "{ranges:?}");
    assert!(told[0].contains("10.244.0.0/22"), "{told:?}");
}
