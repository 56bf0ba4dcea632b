//! Starts one attempt of one container: its bundle, its monitor, and the wait for its end.
//! When to start which is lifecycle.rs.
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::bundle::{
    Access, AttemptDir, Bundle, Exit, Handshake, Mount, Program, Started, Stdin, Terminal, User, at,
    read_json, write_json,
};
use super::environment::{EnvError, PodFacts, environment, expand};
use super::isolate::{DEFAULT_PATH, READY_FD};
use super::lifecycle::Role;
use super::monitor::kill_cgroup;
use super::process::ProcessId;
use super::sandbox::{PodDir, Record};
use super::sources::Gathered;
use super::volumes::{VolumeError, Volumes};
use crate::standin::{Options, Run};

/// The image whose containers run commands of the host.
const HOST_IMAGE: &str = "weft.dev/host";

/// Whether a container runs a host command, or a stand-in runs for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runner {
    Host,
    StandIn,
}

pub fn runner_of(image: Option<&str>) -> Runner {
    let image = image.unwrap_or_default();
    let name = image.split('@').next().unwrap_or_default();
    // A colon after the last slash begins the tag; one before it is a registry's port.
    let untagged = match name.rfind(':') {
        Some(colon) if !name[colon..].contains('/') => &name[..colon],
        _ => name,
    };
    if untagged == HOST_IMAGE { Runner::Host } else { Runner::StandIn }
}

/// All that a start needs beside the container itself.
pub struct StartContext<'a> {
    pub pod: &'a Pod,
    pub record: &'a Record,
    pub dir: &'a PodDir,
    pub hostname: &'a str,
    pub node: &'a str,
    pub facts: &'a PodFacts,
    pub gathered: &'a Gathered,
    pub volumes: &'a Volumes,
    pub services: &'a [(String, String)],
    pub weft_exe: &'a Path,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The spec refers to something that is not there (yet).
    #[error(transparent)]
    Env(#[from] EnvError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A start as the monitor told it.
#[derive(Debug)]
pub struct Launch {
    pub result: Result<Started, Exit>,
    pub warnings: Vec<String>,
}

/// The container of that name in any of the pod's lists, and its role.
pub fn find_container(spec: &PodSpec, name: &str) -> Option<(Container, Role)> {
    let init = spec.init_containers.iter().flatten().find(|container| container.name == name);
    if let Some(container) = init {
        let stays = container.restart_policy.as_deref() == Some("Always");
        return Some((container.clone(), if stays { Role::Sidecar } else { Role::Init }));
    }
    if let Some(container) = spec.containers.iter().find(|container| container.name == name) {
        return Some((container.clone(), Role::Main));
    }
    let ephemeral = spec.ephemeral_containers.iter().flatten().find(|container| container.name == name)?;
    Some((as_container(ephemeral), Role::Ephemeral))
}

fn as_container(ephemeral: &EphemeralContainer) -> Container {
    Container {
        name: ephemeral.name.clone(),
        image: ephemeral.image.clone(),
        command: ephemeral.command.clone(),
        args: ephemeral.args.clone(),
        env: ephemeral.env.clone(),
        env_from: ephemeral.env_from.clone(),
        working_dir: ephemeral.working_dir.clone(),
        volume_mounts: ephemeral.volume_mounts.clone(),
        security_context: ephemeral.security_context.clone(),
        stdin: ephemeral.stdin,
        stdin_once: ephemeral.stdin_once,
        tty: ephemeral.tty,
        ..Container::default()
    }
}

/// Every container of the pod in the order they start, with its role.
pub fn list_containers(spec: &PodSpec) -> Vec<(String, Role)> {
    let init = spec.init_containers.iter().flatten().map(|container| container.name.clone());
    let main = spec.containers.iter().map(|container| container.name.clone());
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| container.name.clone());
    let names = init.chain(main).chain(ephemeral);
    names.filter_map(|name| find_container(spec, &name).map(|(_, role)| (name, role))).collect()
}

/// Writes the bundle of an attempt.
pub fn prepare(
    context: &StartContext<'_>,
    container: &Container,
    role: Role,
    attempt: u32,
) -> Result<AttemptDir, StartError> {
    let mut env =
        environment(context.pod, container, context.facts, &context.gathered.sources, context.services)?;
    let volumes = context.volumes.mounts(container, &env)?;
    add_defaults(&mut env, context.hostname, container);
    let dir = context.dir.attempt(&container.name, attempt);
    let cgroup = context.record.container_cgroup(&container.name);
    // A try under the same number that never ran may have left files that would be taken for this one's.
    match std::fs::remove_dir_all(&dir.0) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&dir.0, error).into()),
        _ => {}
    }
    for path in [&dir.0, &cgroup] {
        std::fs::create_dir_all(path).map_err(|error| at(path, error))?;
    }
    let bundle = Bundle {
        container: container.name.clone(),
        cgroup,
        monitor_cgroup: context.record.monitor_cgroup(),
        netns: context.record.netns(),
        hostname: context.hostname.to_owned(),
        files: name_files(context.dir),
        volumes,
        program: program(context, container, role, &env),
        env,
        working_dir: container.working_dir.as_ref().filter(|dir| !dir.is_empty()).map(PathBuf::from),
        user: user(context.pod, container),
        stdin: stdin(container),
        terminal: if container.tty == Some(true) { Terminal::Pty } else { Terminal::None },
    };
    write_json(&dir.bundle(), &bundle)?;
    Ok(dir)
}

fn add_defaults(env: &mut Vec<(String, String)>, hostname: &str, container: &Container) {
    let mut default = |name: &str, value: &str| {
        if !env.iter().any(|(key, _)| key == name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    };
    default("PATH", DEFAULT_PATH);
    default("HOSTNAME", hostname);
    default("HOME", "/root");
    if container.tty == Some(true) {
        default("TERM", "xterm");
    }
}

fn name_files(dir: &PodDir) -> Vec<Mount> {
    let file = |name: &str| Mount {
        source: dir.etc().join(name),
        target: Path::new("/etc").join(name),
        access: Access::ReadWrite,
    };
    vec![file("resolv.conf"), file("hosts"), file("hostname")]
}

fn stdin(container: &Container) -> Stdin {
    match (container.stdin, container.stdin_once) {
        (Some(true), Some(true)) => Stdin::OpenOnce,
        (Some(true), _) => Stdin::Open,
        _ => Stdin::Closed,
    }
}

/// Host commands run as the user the pod asks for. A stand-in stays root: it must open any port.
fn user(pod: &Pod, container: &Container) -> Option<User> {
    if runner_of(container.image.as_deref()) == Runner::StandIn {
        return None;
    }
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let of_container = container.security_context.as_ref();
    let number = |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok());
    let uid = number(of_container.and_then(|c| c.run_as_user).or(of_pod.and_then(|p| p.run_as_user)))?;
    let gid = number(of_container.and_then(|c| c.run_as_group).or(of_pod.and_then(|p| p.run_as_group)));
    let extra = of_pod.iter().flat_map(|p| p.supplemental_groups.iter().flatten().copied().chain(p.fs_group));
    Some(User { uid, gid: gid.unwrap_or(0), groups: extra.filter_map(|group| number(Some(group))).collect() })
}

fn program(
    context: &StartContext<'_>,
    container: &Container,
    role: Role,
    env: &[(String, String)],
) -> Program {
    if runner_of(container.image.as_deref()) == Runner::StandIn {
        return stand_in(context, container, role);
    }
    let lookup = |name: &str| env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let words = container.command.iter().flatten().chain(container.args.iter().flatten());
    let mut argv: Vec<_> = words.map(|word| expand(word, lookup)).collect();
    if argv.is_empty() {
        argv.push("/bin/sh".to_owned());
    }
    Program::Host { argv }
}

fn stand_in(context: &StartContext<'_>, container: &Container, role: Role) -> Program {
    let ports = served_ports(container);
    let meta = &context.pod.metadata;
    let options = Options {
        namespace: meta.namespace.clone().unwrap_or_default(),
        pod: meta.name.clone().unwrap_or_default(),
        node: context.node.to_owned(),
        container: container.name.clone(),
        image: container.image.clone(),
        tcp: ports.tcp.into_iter().collect(),
        udp: ports.udp.into_iter().collect(),
        ready_fd: Some(READY_FD),
        run: if role == Role::Init { Run::Once } else { Run::Serving },
    };
    let verb = ["weft-standin", "lab", "standin"].map(str::to_owned);
    Program::StandIn {
        exe: context.weft_exe.to_owned(),
        argv: verb.into_iter().chain(options.to_args()).collect(),
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct ServedPorts {
    tcp: BTreeSet<u16>,
    udp: BTreeSet<u16>,
}

/// The declared ports, and those that only a probe or hook names: without them the pod could never be ready.
fn served_ports(container: &Container) -> ServedPorts {
    let mut ports = ServedPorts::default();
    for port in container.ports.iter().flatten() {
        let Ok(number) = u16::try_from(port.container_port) else { continue };
        match port.protocol.as_deref().unwrap_or("TCP") {
            "TCP" => drop(ports.tcp.insert(number)),
            "UDP" => drop(ports.udp.insert(number)),
            _ => {}
        }
    }
    let probes = [&container.startup_probe, &container.readiness_probe, &container.liveness_probe];
    for probe in probes.into_iter().flatten() {
        ports.tcp.extend(probe_port(container, probe));
    }
    ports
}

/// The TCP port a probe asks on the pod's own address.
pub fn probe_port(container: &Container, probe: &Probe) -> Option<u16> {
    if let Some(grpc) = &probe.grpc {
        return u16::try_from(grpc.port).ok();
    }
    let http = probe.http_get.as_ref().filter(|http| http.host.as_deref().unwrap_or_default().is_empty());
    let tcp = probe.tcp_socket.as_ref().filter(|tcp| tcp.host.as_deref().unwrap_or_default().is_empty());
    let port = http.map(|http| &http.port).or(tcp.map(|tcp| &tcp.port))?;
    resolve_port(container, port)
}

/// A port by number or by one of the container's names.
pub fn resolve_port(container: &Container, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => match text.parse() {
            Ok(number) => number,
            Err(_) => {
                let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(text))?;
                named.container_port
            }
        },
    };
    u16::try_from(number).ok()
}

/// Starts the monitor and waits until the container runs, or could not start.
pub async fn launch(weft_exe: &Path, dir: &AttemptDir) -> io::Result<Launch> {
    let (exe, path) = (weft_exe.to_owned(), dir.0.clone());
    let (stdout, monitor) =
        tokio::task::spawn_blocking(move || spawn_monitor(&exe, &path)).await.map_err(io::Error::other)??;
    let mut lines = BufReader::new(tokio::net::unix::pipe::Receiver::from_owned_fd(stdout)?).lines();
    let mut warnings = Vec::new();
    while let Some(line) = lines.next_line().await? {
        match serde_json::from_str(&line).map_err(io::Error::other)? {
            Handshake::Warning(warning) => warnings.push(warning),
            Handshake::Started(started) => return Ok(Launch { result: Ok(started), warnings }),
            Handshake::Failed(exit) => {
                reap(monitor).await?;
                return Ok(Launch { result: Err(exit), warnings });
            }
        }
    }
    reap(monitor).await?;
    let log = dir.0.join("monitor.log");
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    Err(io::Error::other(format!("the monitor ended without a word; its log: {}", said.trim())))
}

async fn reap(monitor: Option<ProcessId>) -> io::Result<()> {
    if let Some(pidfd) = monitor.map(ProcessId::open).transpose()?.flatten() {
        pidfd.ended().await?;
    }
    Ok(())
}

fn spawn_monitor(exe: &Path, dir: &Path) -> io::Result<(std::os::fd::OwnedFd, Option<ProcessId>)> {
    let log = std::fs::File::create(dir.join("monitor.log"))?;
    let mut command = Command::new(exe);
    command.args(["lab", "run"]).arg(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().map_err(|error| at(exe, error))?;
    let stdout = child.stdout.take().ok_or_else(|| io::Error::other("no pipe from the monitor"))?;
    let id = i32::try_from(child.id()).ok().and_then(|pid| ProcessId::of(pid).ok());
    Ok((stdout.into(), id))
}

/// Waits for the end of a container that a monitor watches; also one that an earlier kubelet started.
pub async fn exit_of(dir: &AttemptDir, cgroup: &Path, started: &Started) -> io::Result<Exit> {
    if let Some(pidfd) = started.monitor.open()? {
        pidfd.ended().await?;
    }
    if let Some(exit) = read_json(&dir.exit())? {
        return Ok(exit);
    }
    // The monitor was killed: without it nobody would see the container's end, so it ends now.
    kill_cgroup(cgroup)?;
    let exit = Exit::unseen("the container's monitor was killed", Some(started.started_at), Timestamp::now());
    write_json(&dir.exit(), &exit)?;
    Ok(exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_host_image_is_known_by_any_tag() {
        for (image, runner) in [
            ("weft.dev/host", Runner::Host),
            ("weft.dev/host:latest", Runner::Host),
            ("weft.dev/host:1@sha256:00", Runner::Host),
            ("weft.dev/hostess", Runner::StandIn),
            ("registry:5000/weft.dev/host", Runner::StandIn),
            ("nginx", Runner::StandIn),
        ] {
            assert_eq!(runner_of(Some(image)), runner, "{image}");
        }
    }

    #[test]
    fn a_stand_in_serves_what_is_declared_and_what_probes_ask() {
        let container: Container = serde_json::from_value(json!({
            "name": "c",
            "ports": [{"containerPort": 80, "name": "web"}, {"containerPort": 53, "protocol": "UDP"},
                      {"containerPort": 99, "protocol": "SCTP"}],
            "readinessProbe": {"httpGet": {"port": "web"}},
            "livenessProbe": {"grpc": {"port": 9000}},
            "startupProbe": {"tcpSocket": {"port": 7, "host": "192.0.2.1"}},
        }))
        .expect("a container");
        let ports = served_ports(&container);
        assert_eq!(ports, ServedPorts { tcp: BTreeSet::from([80, 9000]), udp: BTreeSet::from([53]) });
        assert_eq!(resolve_port(&container, &IntOrString::String("81".into())), Some(81));
        assert_eq!(resolve_port(&container, &IntOrString::String("no".into())), None);
    }

    #[test]
    fn containers_are_listed_in_the_order_they_start() {
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [{"name": "m"}],
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
            "ephemeralContainers": [{"name": "e"}],
        }))
        .expect("a spec");
        let names = ["i", "s", "m", "e"].map(str::to_owned);
        let roles = [Role::Init, Role::Sidecar, Role::Main, Role::Ephemeral];
        assert_eq!(list_containers(&spec), names.into_iter().zip(roles).collect::<Vec<_>>());
    }
}
