//! What the kubelet must do, case by case, in one world; each case leaves the node as it found it.
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Node, Pod};
use kube::api::{Api, AttachParams, DeleteParams, LogParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::world::{NODE, World, condition, pod_ip, wait_for};

macro_rules! run_cases {
    ($world:ident: $($case:ident),+ $(,)?) => {
        $(
            let begun = std::time::Instant::now();
            $case(&mut $world).await.with_context(|| {
                let log = std::fs::read_to_string($world.path("kubelet.log")).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(30).collect();
                format!("case {}; the kubelet's last words, newest first:\n{}", stringify!($case), tail.join("\n"))
            })?;
            nothing_left(&$world).await.with_context(|| format!("after case {}", stringify!($case)))?;
            println!("case {} ... ok ({:.2} s)", stringify!($case), begun.elapsed().as_secs_f32());
        )+
    };
}

pub async fn run_all() -> Result<()> {
    let mut world = World::new().await?;
    run_cases!(world:
        the_node_is_ready_when_its_network_is,
        a_stand_in_says_who_answers_and_whom_it_saw,
        readiness_that_somebody_took_is_given_back,
        a_host_command_gets_its_names_values_and_volumes,
        a_volume_needs_no_directory_on_the_host,
        a_crash_is_followed_by_a_rest_and_shown,
        a_finished_pod_gives_its_network_back_and_keeps_its_log,
        what_is_missing_is_waited_for,
        a_sidecar_outlives_the_work_and_no_more,
        a_failing_liveness_probe_restarts_the_container,
        commands_run_inside,
        ports_are_forwarded,
        the_grace_period_is_kept,
        a_deadline_ends_the_pod,
        pods_outlive_their_kubelet,
        a_pod_deleted_behind_the_kubelets_back_is_cleared_away,
        a_kubelet_killed_at_any_moment_leaves_nothing_behind,
    );
    Ok(())
}

fn stand_in(port: u16) -> Value {
    json!({"name": "c", "image": "example.org/app:1", "ports": [{"containerPort": port, "name": "web"}]})
}

fn host(script: &str) -> Value {
    json!({"name": "c", "image": "weft.dev/host", "command": ["sh", "-c", script]})
}

fn status_of(pod: &Pod, container: &str) -> Option<ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses];
    lists.into_iter().flatten().flatten().find(|status| status.name == container).cloned()
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

async fn http_get(address: &str, path: &str) -> Result<String> {
    let limit = Duration::from_secs(10);
    let connecting = tokio::time::timeout(limit, TcpStream::connect(address.parse::<SocketAddr>()?));
    let mut stream = connecting.await.with_context(|| format!("connect to {address}"))??;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    let reading = tokio::time::timeout(limit, stream.read_to_string(&mut answer));
    reading.await.with_context(|| format!("read from {address}"))??;
    Ok(answer)
}

fn body_of(answer: &str) -> Result<Value> {
    let body = answer.split_once("\r\n\r\n").context("an HTTP answer")?.1;
    serde_json::from_str(body).with_context(|| format!("JSON in {answer}"))
}

async fn the_node_is_ready_when_its_network_is(world: &mut World) -> Result<()> {
    let is = |node: &Node, status: &str| {
        let conditions = node.status.as_ref().and_then(|node| node.conditions.clone()).unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == status)
    };
    std::fs::write(world.path("cni/down"), "")?;
    world.start_kubelet()?;
    let nodes = Api::<Node>::all(world.client.clone());
    let node = wait_for(&nodes, NODE, "not ready", |node| node.is_some_and(|node| is(node, "False"))).await?;
    let text = serde_json::to_string(&node)?;
    ensure!(text.contains("error 50: the agent is down"), "the reason is told: {text}");
    std::fs::remove_file(world.path("cni/down"))?;
    let node = wait_for(&nodes, NODE, "ready", |node| node.is_some_and(|node| is(node, "True"))).await?;
    let node = node.context("a node")?;
    ensure!(node.metadata.labels.context("labels")?["kubernetes.io/hostname"] == NODE);
    ensure!(node.spec.is_none_or(|spec| spec.pod_cidr.is_none()), "pod CIDRs are for others to give");
    Ok(())
}

async fn a_stand_in_says_who_answers_and_whom_it_saw(world: &mut World) -> Result<()> {
    std::fs::write(world.path("cni/busy"), "")?;
    let mut container = stand_in(80);
    container["ports"] =
        json!([{"containerPort": 80, "name": "web"}, {"containerPort": 53, "protocol": "UDP"}]);
    container["readinessProbe"] = json!({"httpGet": {"port": "web"}, "initialDelaySeconds": 600});
    container["livenessProbe"] = json!({"grpc": {"port": 80}});
    let init = json!([{"name": "i", "image": "example.org/init"}]);
    world.create("web", json!({"initContainers": init, "containers": [container]})).await?;
    let pod = world.ready("web").await?;
    ensure!(!world.path("cni/busy").exists(), "the plugin's \"try again\" was answered with another try");
    let ip = pod_ip(&pod)?;
    let answer = body_of(&http_get(&format!("{ip}:80"), "/some/where?x=1").await?)?;
    for (field, expected) in [
        ("pod", "web"),
        ("namespace", "default"),
        ("node", NODE),
        ("container", "c"),
        ("path", "/some/where?x=1"),
    ] {
        ensure!(answer[field] == expected, "{field} in {answer}");
    }
    ensure!(answer["local"] == format!("{ip}:80"), "{answer}");
    ensure!(http_get(&format!("{ip}:80"), "/status?code=503").await?.starts_with("HTTP/1.1 503"));
    ensure!(http_get(&format!("{ip}:80"), "/status?code=x").await?.starts_with("HTTP/1.1 400"));
    let bytes = http_get(&format!("{ip}:80"), "/bytes?n=100000").await?;
    ensure!(bytes.matches('\0').count() == 100_000);
    let second =
        pod.status.as_ref().and_then(|status| status.pod_ips.clone()).context("addresses")?[1].ip.clone();
    ensure!(body_of(&http_get(&format!("[{second}]:80"), "/").await?)?["local"] == format!("[{second}]:80"));
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    socket.send_to(b"hello", format!("{ip}:53")).await?;
    let mut buffer = [0; 2048];
    let (length, _) = tokio::time::timeout(Duration::from_secs(5), socket.recv_from(&mut buffer)).await??;
    let answer: Value = serde_json::from_slice(&buffer[..length])?;
    ensure!(answer["pod"] == "web" && answer["bytes"] == 5, "{answer}");
    world.delete("web").await
}

/// As the node controller takes it from the pods of a node that was silent.
async fn readiness_that_somebody_took_is_given_back(world: &mut World) -> Result<()> {
    world.create("web", json!({"containers": [stand_in(80)]})).await?;
    let pod = world.ready("web").await?;
    let mut status = json!({"conditions": pod.status.and_then(|status| status.conditions)});
    for condition in status["conditions"].as_array_mut().context("conditions")? {
        if condition["type"] == "Ready" {
            condition["status"] = json!("False");
        }
    }
    let patch = Patch::Merge(json!({"status": status}));
    let taken = world.pods.patch_status("web", &PatchParams::default(), &patch).await?;
    ensure!(!condition(&taken, "Ready"), "taken: {taken:?}");
    world.ready("web").await?;
    world.delete("web").await
}

async fn a_host_command_gets_its_names_values_and_volumes(world: &mut World) -> Result<()> {
    let maps = Api::<ConfigMap>::default_namespaced(world.client.clone());
    let map = json!({"metadata": {"name": "settings"}, "data": {"colour": "red"}});
    maps.create(&PostParams::default(), &serde_json::from_value(map)?).await?;
    let mut container = host(
        "echo $COLOUR $(WHO) $IP; hostname; cat /etc/resolv.conf /etc/hosts /etc/one /tmp/work/made; sleep 600",
    );
    container["env"] = json!([
        {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
        {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]);
    container["volumeMounts"] = json!([
        {"name": "settings", "mountPath": "/etc/one", "subPath": "colour"}, {"name": "work", "mountPath": "/tmp/work"},
    ]);
    let mut init = host("echo made > /tmp/work/made");
    init["name"] = json!("i");
    init["volumeMounts"] = json!([{"name": "work", "mountPath": "/tmp/work"}]);
    let spec = json!({
        "initContainers": [init], "containers": [container], "terminationGracePeriodSeconds": 1,
        "hostname": "named", "subdomain": "sub", "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["elsewhere"]}],
        "volumes": [{"name": "settings", "configMap": {"name": "settings"}}, {"name": "work", "emptyDir": {}}],
    });
    world.create("names", spec).await?;
    let ip = pod_ip(&world.ready("names").await?)?;
    let log = log_with(world, "names", "made").await?;
    for expected in [
        &format!("red names {ip}"),
        "nameserver 10.96.0.10",
        "search default.svc.cluster.local svc.cluster.local cluster.local",
        "options ndots:5",
        "192.0.2.7\telsewhere",
        &format!("{ip}\tnamed.sub.default.svc.cluster.local\tnamed"),
    ] {
        ensure!(log.contains(expected), "{expected:?} in {log}");
    }
    ensure!(!std::path::Path::new("/tmp/work/made").exists(), "the host has nothing of it");
    maps.delete("settings", &DeleteParams::default()).await?;
    world.delete("names").await
}

/// The log once it holds `text`.
async fn log_with(world: &World, name: &str, text: &str) -> Result<String> {
    for _ in 0..500 {
        // A container that has not started has no log to give.
        match world.log(name).await {
            Ok(log) if log.contains(text) => return Ok(log),
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("{text:?} never came in the log of {name}: {}", world.log(name).await?)
}

async fn a_volume_needs_no_directory_on_the_host(world: &mut World) -> Result<()> {
    let mut container = host(
        "echo here > /weft-no-such-dir/deep/x && cat /weft-no-such-dir/deep/x /var/run/secrets/weft-test/x; \
         echo no > /var/run/secrets/weft-test/y || echo read-only; sleep 600",
    );
    container["volumeMounts"] = json!([
        {"name": "v", "mountPath": "/weft-no-such-dir/deep"},
        {"name": "v", "mountPath": "/var/run/secrets/weft-test", "readOnly": true},
    ]);
    let spec = json!({"containers": [container], "volumes": [{"name": "v", "emptyDir": {}}], "terminationGracePeriodSeconds": 1});
    world.create("mounts", spec).await?;
    let log = log_with(world, "mounts", "read-only").await?;
    ensure!(log.starts_with("here\nhere\n"), "{log}");
    for path in ["/weft-no-such-dir", "/run/secrets/weft-test"] {
        ensure!(!std::path::Path::new(path).exists(), "{path} on the host");
    }
    world.delete("mounts").await
}

async fn a_crash_is_followed_by_a_rest_and_shown(world: &mut World) -> Result<()> {
    world.create("crash", json!({"containers": [host("echo attempt; exit 3")]})).await?;
    let pod = world
        .pod_when("crash", "in CrashLoopBackOff", |pod| {
            let state = status_of(pod, "c").and_then(|status| status.state);
            state.and_then(|state| state.waiting?.reason).as_deref() == Some("CrashLoopBackOff")
        })
        .await?;
    let status = status_of(&pod, "c").context("a status")?;
    let last = status.last_state.and_then(|state| state.terminated).context("how it ended")?;
    ensure!((last.exit_code, status.restart_count, phase(&pod)) == (3, 1, "Running"), "{pod:?}");
    let previous = LogParams { previous: true, ..LogParams::default() };
    ensure!(world.pods.logs("crash", &previous).await? == "attempt\n");
    world.delete("crash").await
}

async fn a_finished_pod_gives_its_network_back_and_keeps_its_log(world: &mut World) -> Result<()> {
    let spec = json!({"restartPolicy": "Never", "containers": [host("echo done")]});
    world.create("once", spec).await?;
    let pod = world.pod_when("once", "over", |pod| phase(pod) == "Succeeded").await?;
    ensure!(!condition(&pod, "Ready"));
    for _ in 0..500 {
        if !world.leftovers()?.iter().any(|left| left.starts_with("veth") || left.contains("netns")) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let left = world.leftovers()?;
    ensure!(left.iter().all(|left| left.contains("/pods/")), "only files are left: {left:?}");
    ensure!(world.log("once").await? == "done\n");
    world.delete("once").await
}

async fn what_is_missing_is_waited_for(world: &mut World) -> Result<()> {
    let mut container = host("echo $KEY; sleep 600");
    container["envFrom"] = json!([{"configMapRef": {"name": "late"}}]);
    world.create("waits", json!({"containers": [container], "terminationGracePeriodSeconds": 1})).await?;
    world
        .pod_when("waits", "blocked", |pod| {
            let waiting = status_of(pod, "c").and_then(|status| status.state?.waiting);
            waiting.is_some_and(|waiting| {
                waiting.reason.as_deref() == Some("CreateContainerConfigError")
                    && waiting.message.as_deref() == Some("configmap \"late\" not found")
            })
        })
        .await?;
    let maps = Api::<ConfigMap>::default_namespaced(world.client.clone());
    let map = json!({"metadata": {"name": "late"}, "data": {"KEY": "value"}});
    maps.create(&PostParams::default(), &serde_json::from_value(map)?).await?;
    let pod = world.ready("waits").await?;
    ensure!(status_of(&pod, "c").is_some_and(|status| status.restart_count == 0));
    log_with(world, "waits", "value").await?;
    maps.delete("late", &DeleteParams::default()).await?;
    world.delete("waits").await
}

async fn a_sidecar_outlives_the_work_and_no_more(world: &mut World) -> Result<()> {
    let mut sidecar = stand_in(15000);
    sidecar["name"] = json!("s");
    sidecar["restartPolicy"] = json!("Always");
    sidecar["startupProbe"] = json!({"httpGet": {"port": 15000}});
    let mut work = host("exec 3<>/dev/tcp/127.0.0.1/15000 && echo reached");
    work["command"][0] = json!("bash");
    let spec = json!({"restartPolicy": "Never", "initContainers": [sidecar], "containers": [work]});
    world.create("side", spec).await?;
    let pod = world.pod_when("side", "over", |pod| phase(pod) == "Succeeded").await?;
    let sidecar =
        status_of(&pod, "s").and_then(|status| status.state?.terminated).context("the sidecar ended")?;
    ensure!(sidecar.exit_code == 0, "politely: {sidecar:?}");
    ensure!(
        world.pods.logs("side", &LogParams { container: Some("c".into()), ..Default::default() }).await?
            == "reached\n"
    );
    world.delete("side").await
}

async fn a_failing_liveness_probe_restarts_the_container(world: &mut World) -> Result<()> {
    let mut container = host("trap 'exit 0' TERM; while :; do sleep 0.1; done");
    container["livenessProbe"] =
        json!({"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1});
    world.create("ill", json!({"containers": [container], "terminationGracePeriodSeconds": 2})).await?;
    world
        .pod_when("ill", "restarted", |pod| {
            status_of(pod, "c").is_some_and(|status| status.restart_count > 0)
        })
        .await?;
    world.delete("ill").await
}

async fn commands_run_inside(world: &mut World) -> Result<()> {
    world.create("inside", json!({"containers": [stand_in(80)], "hostname": "in-here"})).await?;
    world.ready("inside").await?;
    let params = AttachParams::default().stdin(true).stdout(true).stderr(true);
    let script = "hostname; ip -br addr show eth0; cat; echo err >&2; exit 7";
    let mut session = world.pods.exec("inside", ["sh", "-c", script], &params).await?;
    let status = session.take_status().context("a status")?;
    let (mut stdin, mut stdout) = (session.stdin().context("stdin")?, session.stdout().context("stdout")?);
    stdin.write_all(b"through stdin\n").await?;
    stdin.shutdown().await?;
    drop(stdin);
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(10), stdout.read_to_string(&mut text)).await??;
    ensure!(
        text.contains("in-here") && text.contains("10.244.1.") && text.contains("through stdin"),
        "{text}"
    );
    let status = status.await.context("a status")?;
    ensure!(serde_json::to_string(&status)?.contains("\"message\":\"7\""), "{status:?}");
    world.delete("inside").await
}

async fn ports_are_forwarded(world: &mut World) -> Result<()> {
    world.create("forward", json!({"containers": [stand_in(8080)]})).await?;
    world.ready("forward").await?;
    let mut forwarder = world.pods.portforward("forward", &[8080]).await?;
    let mut stream = forwarder.take_stream(8080).context("a stream")?;
    stream.write_all(b"GET /f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(body_of(&answer)?["pod"] == "forward", "{answer}");
    drop(stream);
    forward_with_kubectl(world).await?;
    world.delete("forward").await
}

/// kubectl tunnels SPDY through the WebSocket, which the client library does not.
async fn forward_with_kubectl(world: &World) -> Result<()> {
    if Command::new("kubectl").args(["version", "--client"]).output().is_err() {
        crate::skip::skip("ports_are_forwarded", "the part with kubectl: kubectl is not on PATH");
        return Ok(());
    }
    let mut kubectl = tokio::process::Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(world.path("kubeconfig"))
        .args(["port-forward", "pod/forward", "18080:8080", "--address", "127.0.0.1"])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    // It says where it forwards from once it listens.
    let mut said = [0; 10];
    kubectl.stdout.as_mut().context("kubectl's words")?.read_exact(&mut said).await?;
    for round in 0..3 {
        let answer = http_get("127.0.0.1:18080", &format!("/{round}")).await?;
        ensure!(body_of(&answer)?["pod"] == "forward", "{answer}");
    }
    let bytes = http_get("127.0.0.1:18080", "/bytes?n=3000000").await?;
    ensure!(bytes.matches('\0').count() == 3_000_000);
    kubectl.kill().await?;
    Ok(())
}

async fn the_grace_period_is_kept(world: &mut World) -> Result<()> {
    let mut container = host("trap 'echo asked to end; exit 0' TERM; while :; do sleep 0.05; done");
    container["lifecycle"] = json!({"preStop": {"exec": {"command": ["sh", "-c", "echo > /tmp/kept/hook"]}}});
    container["volumeMounts"] = json!([{"name": "kept", "mountPath": "/tmp/kept"}]);
    let kept = world.path("kept");
    std::fs::create_dir_all(&kept)?;
    let volumes = json!([{"name": "kept", "hostPath": {"path": kept}}]);
    world.create("polite", json!({"containers": [container], "volumes": volumes})).await?;
    world.ready("polite").await?;
    let mut follow =
        Box::pin(world.pods.log_stream("polite", &LogParams { follow: true, ..Default::default() }).await?);
    world.delete("polite").await?;
    let mut log = String::new();
    futures::AsyncReadExt::read_to_string(&mut follow, &mut log).await?;
    ensure!(log.contains("asked to end"), "{log:?}");
    ensure!(kept.join("hook").exists(), "the hook ran");
    let stubborn = host("trap '' TERM; while :; do sleep 0.05; done");
    world.create("stubborn", json!({"containers": [stubborn], "terminationGracePeriodSeconds": 1})).await?;
    world.ready("stubborn").await?;
    world.delete("stubborn").await
}

async fn a_deadline_ends_the_pod(world: &mut World) -> Result<()> {
    let spec =
        json!({"containers": [stand_in(80)], "activeDeadlineSeconds": 1, "terminationGracePeriodSeconds": 1});
    world.create("late", spec).await?;
    let pod = world.pod_when("late", "over", |pod| phase(pod) == "Failed").await?;
    ensure!(pod.status.context("a status")?.reason.as_deref() == Some("DeadlineExceeded"));
    world.delete("late").await
}

/// The pid of the pod's container, as the monitor recorded it.
fn recorded(world: &World, pod: &Pod) -> Result<Value> {
    let uid = pod.metadata.uid.as_deref().context("a uid")?;
    let path = world.path("pods").join(uid).join("containers/c/1/started.json");
    Ok(serde_json::from_slice(&std::fs::read(&path).with_context(|| path.display().to_string())?)?)
}

async fn pods_outlive_their_kubelet(world: &mut World) -> Result<()> {
    let mut container = stand_in(80);
    container["readinessProbe"] = json!({"httpGet": {"port": 80}});
    world.create("stays", json!({"containers": [container]})).await?;
    world.create("ends", json!({"restartPolicy": "Never", "containers": [host("sleep 1; exit 4")]})).await?;
    let pod = world.ready("stays").await?;
    world.ready("ends").await?;
    let before = recorded(world, &pod)?;
    world.kill_kubelet()?;
    let ip = pod_ip(&pod)?;
    ensure!(
        body_of(&http_get(&format!("{ip}:80"), "/").await?)?["pod"] == "stays",
        "it answers without a kubelet"
    );
    world.start_kubelet()?;
    let ended = world.pod_when("ends", "over", |pod| phase(pod) == "Failed").await?;
    let end = status_of(&ended, "c").and_then(|status| status.state?.terminated).context("an end")?;
    ensure!(end.exit_code == 4, "its end was seen by whoever was there: {end:?}");
    let label = Patch::Merge(json!({"metadata": {"labels": {"x": "y"}}}));
    world.pods.patch("stays", &PatchParams::default(), &label).await?;
    let pod = world.ready("stays").await?;
    ensure!(recorded(world, &pod)? == before, "the same process still");
    ensure!(status_of(&pod, "c").is_some_and(|status| status.restart_count == 0));
    world.delete("ends").await?;
    world.delete("stays").await
}

async fn a_pod_deleted_behind_the_kubelets_back_is_cleared_away(world: &mut World) -> Result<()> {
    world.create("orphan", json!({"containers": [stand_in(80)]})).await?;
    world.ready("orphan").await?;
    world.kill_kubelet()?;
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    world.pods.delete("orphan", &at_once).await?;
    ensure!(!world.leftovers()?.is_empty());
    world.start_kubelet()?;
    nothing_left(world).await
}

async fn nothing_left(world: &World) -> Result<()> {
    for _ in 0..1000 {
        if world.leftovers()?.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("left behind: {:?}", world.leftovers()?)
}

async fn a_kubelet_killed_at_any_moment_leaves_nothing_behind(world: &mut World) -> Result<()> {
    for round in 0..8 {
        let names: Vec<_> = (0..3).map(|index| format!("r{round}-{index}")).collect();
        for name in &names {
            world
                .create(name, json!({"containers": [stand_in(80)], "terminationGracePeriodSeconds": 1}))
                .await?;
        }
        tokio::time::sleep(Duration::from_millis(15 * round)).await;
        world.kill_kubelet()?;
        world.start_kubelet()?;
        if round % 2 == 0 {
            for name in &names {
                world.ready(name).await?;
            }
        }
        for name in &names {
            world.delete(name).await?;
        }
    }
    nothing_left(world).await
}
