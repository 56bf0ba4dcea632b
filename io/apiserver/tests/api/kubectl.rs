//! Scripts of kubectl commands against the server, with what each must say, once for each version of kubectl here.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::json;

use crate::pods::fake_kubelet;
use crate::skip::skip;
use crate::support::{Fixture, pod};

/// kubectl with its own home, so that nothing cached or configured by people matters.
#[derive(Clone)]
struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
}

/// The versions that Kubernetes supports with a server of ours: one minor version to each side.
const SUPPORTED: [&str; 3] = ["1.31", "1.32", "1.33"];
/// Where Google's packages put kubectl, a program for each minor version.
const VERSIONED: &str = "/usr/lib/google-cloud-sdk/bin";

/// What is here of kubectl, by minor version.
fn programs() -> BTreeMap<String, PathBuf> {
    let versioned = std::fs::read_dir(VERSIONED).into_iter().flatten().flatten();
    let versioned = versioned.map(|entry| entry.path()).filter(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("kubectl.1.3"))
    });
    let mut programs = BTreeMap::new();
    for program in std::iter::once(PathBuf::from("kubectl")).chain(versioned) {
        if let Some(version) = minor_version(&program) {
            programs.insert(version, program);
        }
    }
    programs
}

fn minor_version(program: &Path) -> Option<String> {
    let output = Command::new(program).args(["version", "--client", "-o", "json"]).output().ok()?;
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let part = |name: &str| {
        answer["clientVersion"][name].as_str().map(|text| text.trim_matches(|c: char| !c.is_ascii_digit()))
    };
    Some(format!("{}.{}", part("major")?, part("minor")?))
}

/// Carries out a script with each kubectl, against a server of its own.
async fn with_each(name: &str, script: impl AsyncFn(&Fixture, &Kubectl)) {
    let programs = programs();
    if programs.is_empty() {
        return skip(name, format!("kubectl is neither on PATH nor in {VERSIONED}"));
    }
    for (version, program) in programs {
        eprintln!("with kubectl {version}, {}", program.display());
        let fixture = Fixture::start().await;
        let home = fixture.dir.path().join("home");
        std::fs::create_dir_all(&home).unwrap();
        let program = if program.is_absolute() { under_its_name(&home, &program) } else { program };
        let kubectl = Kubectl { program, kubeconfig: fixture.write_kubeconfig(), home };
        script(&fixture, &kubectl).await;
    }
}

/// The server is told the program's name, and what it writes is credited to that.
fn under_its_name(home: &Path, program: &Path) -> PathBuf {
    let named = home.join("kubectl");
    std::os::unix::fs::symlink(program, &named).unwrap();
    named
}

impl Kubectl {
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(words(line))
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    async fn run(&self, line: &str, input: &str) -> Output {
        let (mut command, input) = (self.command(line), input.to_owned());
        tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        })
        .await
        .unwrap()
    }

    /// Runs a command that must succeed quietly and returns what it printed.
    async fn ok(&self, line: &str) -> String {
        self.ok_with(line, "").await
    }

    async fn ok_with(&self, line: &str, input: &str) -> String {
        let output = self.run(line, input).await;
        let (out, err) = texts(&output);
        assert!(output.status.success(), "kubectl {line}: {out}{err}");
        out
    }

    /// Runs a command that must fail and returns its complaint.
    async fn fails(&self, line: &str) -> String {
        let output = self.run(line, "").await;
        let (out, err) = texts(&output);
        assert!(!output.status.success(), "kubectl {line} did not fail: {out}");
        err
    }
}

fn texts(output: &Output) -> (String, String) {
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// Splits at spaces outside single quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().expect("never empty").push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: main, image: 'nginx:1', ports: [{containerPort: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
";

#[test]
fn every_supported_version_is_here() {
    let programs = programs();
    let missing: Vec<_> = SUPPORTED.into_iter().filter(|version| !programs.contains_key(*version)).collect();
    if !missing.is_empty() {
        let why = format!("kubectl {} is neither on PATH nor in {VERSIONED}", missing.join(", "));
        skip("every_supported_version_is_here", why);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_get_and_change() {
    with_each("apply_get_and_change", async |_: &Fixture, kubectl: &Kubectl| {
        has(
            &kubectl.ok_with("apply -f -", DEPLOYMENT).await,
            &["deployment.apps/web created", "service/web created"],
        );
        has(
            &kubectl.ok_with("apply -f -", DEPLOYMENT).await,
            &["deployment.apps/web unchanged", "service/web unchanged"],
        );
        let changed = DEPLOYMENT.replace("nginx:1", "nginx:2");
        has(&kubectl.ok_with("diff -f -", DEPLOYMENT).await, &[]);
        has(
            &kubectl.ok_with("apply -f -", &changed).await,
            &["deployment.apps/web configured", "service/web unchanged"],
        );
        has(&kubectl.ok("get deployments").await, &["NAME", "READY", "UP-TO-DATE", "0/2"]);
        has(&kubectl.ok("get deploy -o wide").await, &["CONTAINERS", "IMAGES", "nginx:2", "app=web"]);
        has(&kubectl.ok("get deploy web -o yaml").await, &["replicas: 2", "image: nginx:2"]);
        assert_eq!(kubectl.ok("get deploy web -o jsonpath={.spec.replicas}").await, "2");
        has(&kubectl.ok("describe deployment web").await, &["StrategyType:", "RollingUpdate", "nginx:2"]);
        kubectl.ok("scale deployment web --replicas=5").await;
        kubectl.ok("label deployment web tier=front").await;
        kubectl.ok("annotate deployment web note=hello").await;
        kubectl.ok("set image deployment/web main=nginx:3").await;
        kubectl.ok("patch deploy web -p '{\"spec\":{\"paused\":true}}'").await;
        kubectl.ok("patch deploy web --type=merge -p '{\"spec\":{\"minReadySeconds\":7}}'").await;
        kubectl.ok("patch deploy web --type=json -p '[{\"op\":\"add\",\"path\":\"/metadata/labels/j\",\"value\":\"1\"}]'").await;
        let columns = "get deploy web -o custom-columns=R:.spec.replicas,P:.spec.paused,M:.spec.minReadySeconds,L:.metadata.labels";
        has(&kubectl.ok(columns).await, &["5", "true", "7", "tier:front", "j:1"]);
        has(&kubectl.ok("get all -l app=web").await, &["deployment.apps/web"]);
        has(&kubectl.ok("rollout history deployment web").await, &["deployment.apps/web"]);
        has(&kubectl.ok("delete deployment,service web").await, &["deployment.apps \"web\" deleted"]);
        has(
            &kubectl.fails("get deployment web").await,
            &["Error from server (NotFound): deployments.apps \"web\" not found"],
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_side_apply_and_its_conflicts() {
    with_each("server_side_apply_and_its_conflicts", async |_: &Fixture, kubectl: &Kubectl| {
        has(&kubectl.ok_with("apply --server-side -f -", DEPLOYMENT).await, &["web serverside-applied"]);
        kubectl.ok("scale deployment web --replicas=4").await;
        let output = kubectl.run("apply --server-side -f -", DEPLOYMENT).await;
        let (_, err) = texts(&output);
        assert!(!output.status.success());
        has(&err, &["Apply failed with 1 conflict: conflict with \"kubectl\"", ".spec.replicas"]);
        kubectl.ok_with("apply --server-side --force-conflicts -f -", DEPLOYMENT).await;
        assert_eq!(kubectl.ok("get deploy web -o jsonpath={.spec.replicas}").await, "2");
        has(
            &kubectl.ok_with("apply --server-side --dry-run=server -f -", DEPLOYMENT).await,
            &["(server dry run)"],
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generators_speak_protobuf() {
    with_each("generators_speak_protobuf", async |_: &Fixture, kubectl: &Kubectl| {
        for line in [
            "create namespace shop",
            "create deployment d --image=nginx --replicas=0 --port=80",
            "create configmap c --from-literal=a=b",
            "create secret generic s --from-literal=a=b",
            "create service clusterip h --clusterip=None --tcp=80",
            "create service nodeport n --tcp=80:8080",
            "create job j --image=x",
            "create cronjob cj --image=x --schedule='*/5 * * * *'",
            "create role r --verb=get --resource=pods",
            "create rolebinding rb --role=r --user=jane",
            "create ingress i --rule='foo.com/*=h:80'",
            "create serviceaccount robot",
            "create poddisruptionbudget p --selector=a=b --min-available=50%",
            "create priorityclass low --value=0",
            "create quota q --hard=pods=2",
        ] {
            has(&kubectl.ok(line).await, &["created"]);
        }
        assert_eq!(kubectl.ok("get deploy d -o jsonpath={.spec.replicas}").await, "0");
        assert_eq!(kubectl.ok("get secret s -o jsonpath={.data.a}").await, "Yg==");
        assert_eq!(kubectl.ok("get pdb p -o jsonpath={.spec.minAvailable}").await, "50%");
        assert_eq!(kubectl.ok("create token robot").await.split('.').count(), 3);
        has(&kubectl.ok("auth can-i get pods --as jane").await, &["yes"]);
        has(&kubectl.fails("auth can-i delete pods --as jane").await, &[]);
        has(&kubectl.ok("auth whoami").await, &["admin", "system:masters"]);
        has(&kubectl.ok("delete namespace shop").await, &["namespace \"shop\" deleted"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_of_the_gateway_and_multicluster_apis_install() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/crds");
    if !data.exists() {
        return skip(
            "definitions_of_the_gateway_and_multicluster_apis_install",
            format!("{} is not there", data.display()),
        );
    }
    with_each(
        "definitions_of_the_gateway_and_multicluster_apis_install",
        async |_: &Fixture, kubectl: &Kubectl| {
            kubectl.ok(&format!("create -R -f {}", data.display())).await;
            kubectl.ok("wait --for=condition=Established crd --all --timeout=30s").await;
            has(
                &kubectl.ok("api-resources").await,
                &["httproutes", "serviceexports", "clusternetworkpolicies"],
            );
            has(&kubectl.ok("explain httproute.spec.hostnames").await, &["<[]string>"]);
            let route = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec: {parentRefs: [{name: g}], rules: [{backendRefs: [{name: b, port: 80}]}]}
";
            has(
                &kubectl.ok_with("apply -f -", route).await,
                &["httproute.gateway.networking.k8s.io/r created"],
            );
            has(&kubectl.ok("get httproute r -o yaml").await, &["type: PathPrefix", "weight: 1"]);
            has(&kubectl.ok("delete httproute r").await, &["deleted"]);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_waiting_explaining_and_refusals() {
    with_each("watching_waiting_explaining_and_refusals", async |_: &Fixture, kubectl: &Kubectl| {
    let mut watching = kubectl.command("get configmaps -w --output-watch-events").spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(watching.stdout.take().unwrap()));
    let mut next = move || lines.next().unwrap().unwrap();
    let (first, mut next) = tokio::task::spawn_blocking(move || (next(), next)).await.unwrap();
    has(&first, &["EVENT", "NAME", "DATA"]);
    kubectl.ok("create configmap seen --from-literal=a=b").await;
    let line =
        tokio::task::spawn_blocking(move || std::iter::repeat_with(&mut next).find(|l| l.contains("seen")))
            .await;
    has(&line.unwrap().unwrap(), &["ADDED", "seen", "1"]);
    watching.kill().unwrap();
    watching.wait().unwrap();
    has(&kubectl.ok("explain deployment.spec.strategy").await, &["KIND:       Deployment", "rollingUpdate"]);
    has(&kubectl.ok("api-resources --namespaced=false").await, &["namespaces", "nodes", "clusterroles"]);
    has(&kubectl.ok("version").await, &["Server Version: v1.32"]);
    kubectl.ok("create configmap held --from-literal=a=b").await;
    kubectl
        .ok("patch configmap held --type=merge -p '{\"metadata\":{\"finalizers\":[\"weft.dev/hold\"]}}'")
        .await;
    kubectl.ok("delete configmap held --wait=false").await;
    let waiting = kubectl.clone();
    let gone =
        tokio::spawn(async move { waiting.ok("wait --for=delete configmap/held --timeout=20s").await });
    kubectl.ok("patch configmap held --type=merge -p '{\"metadata\":{\"finalizers\":null}}'").await;
    gone.await.unwrap();
    let bad = "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {ports: [{port: 99999}], sellector: {a: b}}\n";
    let (_, err) = texts(&kubectl.run("apply -f -", bad).await);
    has(&err, &["unknown field \"spec.sellector\""]);
    let (_, err) = texts(&kubectl.run("apply --validate=false -f -", bad).await);
    has(&err, &["The Service \"bad\" is invalid", "spec.ports[0].port"]);
    has(
        &kubectl.fails("get pods --as jane").await,
        &["Error from server (Forbidden): pods is forbidden: User \"jane\""],
    );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_reach_the_kubelet() {
    with_each("logs_reach_the_kubelet", async |fixture: &Fixture, kubectl: &Kubectl| {
        fake_kubelet(&fixture.dir.path().join("node1.sock")).await;
        let mut placed = pod("web");
        placed["spec"]["nodeName"] = json!("node1");
        kubectl.ok_with("create -f -", &placed.to_string()).await;
        assert_eq!(kubectl.ok("logs web").await, "line one\nline two\n");
        has(&kubectl.fails("logs web -c other").await, &["container other is not valid for pod web"]);
        // The stand-in kubelet upgrades but is no WebSocket server, so only the request's way is seen here.
        has(&kubectl.fails("exec nothing -- true").await, &["pods \"nothing\" not found"]);
    })
    .await;
}
