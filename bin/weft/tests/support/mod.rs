//! A whole fabric under test: `weft up` as a child process, other verbs beside it, and a check that nothing stays.
#![allow(dead_code)] // each test file uses its own part

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

#[path = "../../../../tests/skip.rs"]
pub mod skip;

/// Longer than anything here takes, so that a hang fails and does not block.
pub const PATIENCE: Duration = Duration::from_secs(120);
const READY: &str = "Ctrl-C takes everything down.";

pub fn weft() -> &'static str {
    env!("CARGO_BIN_EXE_weft")
}

/// A running fabric; taken down when dropped, whatever the test did to it.
pub struct Fabric {
    pub name: String,
    child: Option<Child>,
    printed: Arc<Mutex<String>>,
}

impl Fabric {
    /// Starts `weft up` with these arguments and returns when it says that all is up.
    pub fn up(name: &str, args: &[&str]) -> Self {
        let name = format!("{name}-{}", std::process::id() % 10_000);
        let mut child = Command::new(weft())
            .args(["up", "--name", &name])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("weft can be started");
        let printed = Arc::new(Mutex::new(String::new()));
        collect(child.stdout.take().unwrap(), printed.clone());
        collect(child.stderr.take().unwrap(), printed.clone());
        let mut fabric = Self { name, child: Some(child), printed };
        let up = wait_until(PATIENCE, || fabric.printed().contains(READY) || fabric.ended());
        assert!(
            up && fabric.printed().contains(READY),
            "weft up did not come up:\n{}{}",
            fabric.printed(),
            fabric.logs()
        );
        fabric
    }

    /// What `weft up` has printed so far.
    pub fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    fn ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    pub fn root(&self) -> PathBuf {
        Path::new("/run/weft").join(&self.name)
    }

    /// Runs another verb against this fabric.
    pub fn run(&self, args: &[&str]) -> Output {
        Command::new(weft()).args(args).args(["--name", &self.name]).output().expect("weft can be started")
    }

    /// The same, expecting success; what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "weft {args:?}: {}\n{out}{err}{}", output.status, self.logs());
        out
    }

    /// Runs a command of this machine in a pod of namespace `default`.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Output {
        let pod = format!("default/{pod}");
        let mut weft = Command::new(weft());
        weft.args(["lab", "exec", "--name", &self.name, &pod, "--"]).args(command);
        weft.output().expect("weft can be started")
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let out = self.ok(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("weft {args:?}: {error}:\n{out}"))
    }

    /// An object or a list of the cluster's API, by its path.
    pub fn get(&self, path: &str) -> Value {
        self.ask("GET", path, None)
    }

    /// Changes an object by a merge patch (RFC 7386).
    pub fn patch(&self, path: &str, patch: &Value) -> Value {
        self.ask("PATCH", path, Some(patch))
    }

    pub fn delete(&self, path: &str) -> Value {
        self.ask("DELETE", path, None)
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let kubeconfig = self.root().join("kubeconfig");
        let body = body.map(|body| serde_json::to_vec(body).unwrap()).unwrap_or_default();
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/merge-patch+json")
            .body(body)
            .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(async {
            let client = weft_kube::client_from_kubeconfig(&kubeconfig).await?;
            client.request::<Value>(request).await.map_err(|error| error.to_string().into())
        });
        answer.unwrap_or_else(|error: Box<dyn std::error::Error>| {
            panic!("{method} {path}: {error}\n{}", self.logs())
        })
    }

    /// The pid of the supervisor.
    pub fn supervisor(&self) -> u32 {
        self.child.as_ref().expect("still supervised").id()
    }

    /// Pids of a process of a node, from its cgroup.
    pub fn pids(&self, node: &str, process: &str) -> Vec<i32> {
        let file = self.cgroup(node).join(process);
        let procs = std::fs::read_to_string(file.join("cgroup.procs")).unwrap_or_default();
        procs.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// The cgroup of a node.
    pub fn cgroup(&self, node: &str) -> PathBuf {
        Path::new("/sys/fs/cgroup/unified/weft").join(&self.name).join(node)
    }

    /// A client with all rights.
    pub async fn client(&self) -> kube::Client {
        let kubeconfig = kube::config::Kubeconfig::read_from(self.root().join("kubeconfig")).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
        kube::Client::try_from(config).unwrap()
    }

    pub fn namespace(&self, node: &str) -> String {
        format!("/run/netns/weft-{}-{node}", self.name)
    }

    /// The end of every process' log, for a failure's message.
    pub fn logs(&self) -> String {
        let Ok(entries) = std::fs::read_dir(self.root().join("logs")) else { return String::new() };
        let mut all = String::new();
        for entry in entries.flatten() {
            let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            all += &format!(
                "--- {}\n{}\n",
                entry.path().display(),
                lines[lines.len().saturating_sub(15)..].join("\n")
            );
        }
        all
    }

    /// Ends the fabric as Ctrl-C does and checks that nothing of it is left.
    pub fn down(mut self) {
        let mut child = self.child.take().expect("still supervised");
        signal(child.id(), libc::SIGINT);
        let ended = wait_until(PATIENCE, || child.try_wait().unwrap().is_some());
        assert!(ended, "weft up did not end at SIGINT:\n{}", self.printed());
        assert!(child.wait().unwrap().success(), "{}", self.printed());
        assert_eq!(leftovers(&self.name), Vec::<String>::new());
    }

    /// Kills the supervisor as the out-of-memory killer would; the fabric stays.
    pub fn kill_supervisor(&mut self) {
        let mut child = self.child.take().expect("still supervised");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(child.id(), libc::SIGTERM);
            if !wait_until(Duration::from_secs(30), || child.try_wait().unwrap().is_some()) {
                child.kill().ok();
            }
            child.wait().ok();
        }
        Command::new(weft()).args(["down", "--name", &self.name]).output().ok();
    }
}

pub fn signal(pid: u32, signal: i32) {
    // SAFETY: kill takes two integers; the pid is that of a child not yet waited for.
    unsafe { libc::kill(pid as i32, signal) };
}

fn collect(stream: impl Read + Send + 'static, into: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let mut printed = into.lock().unwrap();
            printed.push_str(&line);
            printed.push('\n');
        }
    });
}

pub fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    done()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What is left of a fabric, looked for apart from the program's own inspector.
pub fn leftovers(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let root = format!("/run/weft/{name}");
    found.extend(Path::new(&root).exists().then(|| root.clone()));
    let cgroup = format!("/sys/fs/cgroup/unified/weft/{name}");
    found.extend(Path::new(&cgroup).exists().then_some(cgroup));
    let namespaces = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let ours = namespaces.filter_map(|entry| entry.file_name().into_string().ok());
    found.extend(ours.filter(|netns| netns.starts_with(&format!("weft-{name}-"))));
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&root) || line.contains(&format!("weft-{name}-")))
            .map(String::from),
    );
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = text(&command).replace('\0', " ");
        if command.contains(&root) && process.file_name() != *std::process::id().to_string() {
            found.push(format!("process {}: {command}", process.file_name().to_string_lossy()));
        }
    }
    found
}

/// The folder with sample applications, or `None` after saying that the test is skipped.
pub fn sample_apps(test: &str) -> Option<PathBuf> {
    let given = std::env::var_os("WEFT_TEST_DATA").map(PathBuf::from);
    let data = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"));
    let apps = data.join("apps");
    if apps.is_dir() {
        return Some(apps);
    }
    skip::skip(test, format!("no sample applications at {}; set WEFT_TEST_DATA", apps.display()));
    None
}
