//! Answers for what they cost, beside other name servers of this machine, in one run: `scripts/bench-names`.
//! Every server has the same names and the same upstream server, runs on one core, and is asked by dnsperf on another. The
//! machine may be busy, so what counts is processor time.

#[path = "bench_names/load.rs"]
mod load;
#[path = "bench_names/plan.rs"]
mod plan;
#[path = "bench_names/rivals.rs"]
mod rivals;

use std::error::Error;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use weft_dns::{Config, Settings};

pub type Outcome<T> = Result<T, Box<dyn Error>>;

pub const SERVICES: usize = 10_000;
pub const PODS: usize = 100_000;
/// Names asked of the upstream server.
pub const OUTSIDE: usize = 10_000;
const SERVER_CORE: usize = 0;
const CLIENT_CORE: usize = 1;
const ROUNDS: usize = 1;
const SECONDS: &str = "4";
/// Questions per second when latency is measured: every server keeps up with these.
const STEADY: &str = "4000";

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["upstream", port] => upstream(port.parse()?),
        ["serve", dir, port, upstream] => serve(Path::new(dir), port.parse()?, upstream.parse()?),
        ["memory"] => memory(),
        ["changes"] => load::changes(),
        ["flood"] => load::flood(),
        ["memory" | "changes" | "flood", ..] => {
            Err("bench_names memory, changes and flood take no arguments".into())
        }
        only => compare(only),
    }
}

/// Every name outside has an address for an hour.
fn upstream(port: u16) -> Outcome<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
    let mut buffer = [0; 1500];
    loop {
        let (length, client) = socket.recv_from(&mut buffer)?;
        let Some(answer) = plan::answer(&buffer[..length]) else { continue };
        socket.send_to(&answer, client)?;
    }
}

fn serve(dir: &Path, port: u16, upstream: SocketAddr) -> Outcome<()> {
    let listen = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    let mut config = Config::new("bench", listen, dir.join("names"), dir.join("names.sock"));
    config.port = port;
    config.settings = Settings::with_servers(vec![upstream]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(weft_dns::run(config))?;
    Ok(())
}

/// A server under test; it ends with the value.
pub struct Running {
    pub name: &'static str,
    child: Child,
    pub port: u16,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    pub fn start(name: &'static str, port: u16, mut command: Command) -> Outcome<Self> {
        pin(&mut command, SERVER_CORE);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self { name, child, port })
    }

    /// Processor time of the process and of the children it has waited for.
    fn cpu(&self) -> Outcome<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 = fields
            .get(11..15)
            .ok_or("stat is short")?
            .iter()
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        // USER_HZ is 100 everywhere Linux runs.
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Resident memory in KiB: all, and without what is the program file's.
    fn memory(&self) -> Outcome<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
        };
        Ok((field("VmRSS:"), field("RssAnon:")))
    }
}

fn pin(command: &mut Command, core: usize) {
    // SAFETY: between fork and exec only a system call is made; nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            let mut set = CpuSet::new();
            set.set(core).map_err(std::io::Error::from)?;
            sched_setaffinity(Pid::from_raw(0), &set).map_err(std::io::Error::from)
        });
    }
}

fn itself() -> Outcome<Command> {
    Ok(Command::new(std::env::current_exe()?))
}

fn free_port() -> Outcome<u16> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

pub fn start_upstream() -> Outcome<Running> {
    let port = free_port()?;
    let mut command = itself()?;
    command.args(["upstream", &port.to_string()]);
    Running::start("upstream", port, command)
}

pub fn start_weft(dir: &Path, upstream: u16) -> Outcome<Running> {
    let port = free_port()?;
    let mut command = itself()?;
    command.arg("serve").arg(dir).arg(port.to_string()).arg(format!("127.0.0.1:{upstream}"));
    let running = Running::start("weft", port, command)?;
    plan::put(&dir.join("names.sock"))?;
    Ok(running)
}

fn memory() -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let upstream = start_upstream()?;
    let weft = start_weft(dir.path(), upstream.port)?;
    let (all, own) = weft.memory()?;
    println!("{SERVICES} services, {PODS} pods: {all} KiB resident, {own} KiB without the program file");
    let outside = outside_file(dir.path())?;
    let inside = inside_file(dir.path())?;
    for file in [&inside, &outside] {
        dnsperf(&weft, file, Transport::Udp, &["-n", "2"])?;
    }
    let (all, own) = weft.memory()?;
    println!("after every name was asked: {all} KiB resident, {own} KiB without the program file");
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Transport {
    Udp,
    Tcp,
}

struct Figures {
    per_cpu_second: f64,
    p99: Duration,
}

/// All servers, or those named.
fn compare(only: &[&str]) -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let upstream = start_upstream()?;
    let files = [("authoritative", inside_file(dir.path())?), ("cached", outside_file(dir.path())?)];
    let mut servers = vec![start_weft(dir.path(), upstream.port)?];
    servers.extend(rivals::start(dir.path(), upstream.port, only)?);
    for server in &servers {
        for (_, file) in &files {
            // Until it is up, and everything was asked once.
            let start = Instant::now();
            while dnsperf(server, file, Transport::Udp, &["-n", "1"])?.lost > 0 {
                if start.elapsed() > Duration::from_secs(60) {
                    return Err(format!("{} does not answer", server.name).into());
                }
            }
        }
        println!("{}: {} KiB resident", server.name, server.memory()?.0);
    }
    println!(
        "{:<14}{:<6}{:<16}{:>14}{:>9}{:>12}{:>9}",
        "names", "over", "server", "per cpu s", "ratio", "p99", "ratio"
    );
    for (kind, file) in &files {
        for transport in [Transport::Udp, Transport::Tcp] {
            let mut all: Vec<Vec<Figures>> = servers.iter().map(|_| Vec::new()).collect();
            for _ in 0..ROUNDS {
                for (server, figures) in servers.iter().zip(&mut all) {
                    figures.push(measure(server, file, transport)?);
                }
            }
            print(kind, transport, &servers, &all);
        }
    }
    Ok(())
}

fn print(kind: &str, transport: Transport, servers: &[Running], all: &[Vec<Figures>]) {
    let over = if transport == Transport::Udp { "udp" } else { "tcp" };
    let best: Vec<(f64, Duration)> = all
        .iter()
        .map(|figures| {
            let rate = figures.iter().map(|figures| figures.per_cpu_second).fold(0.0, f64::max);
            (rate, figures.iter().map(|figures| figures.p99).min().unwrap_or_default())
        })
        .collect();
    for (server, (rate, p99)) in servers.iter().zip(&best) {
        println!(
            "{kind:<14}{over:<6}{:<16}{rate:>14.0}{:>9.2}{:>9} us{:>9.2}",
            server.name,
            best[0].0 / rate,
            p99.as_micros(),
            best[0].1.as_secs_f64() / p99.as_secs_f64(),
        );
    }
}

fn measure(server: &Running, file: &Path, transport: Transport) -> Outcome<Figures> {
    let before = server.cpu()?;
    let run = dnsperf(server, file, transport, &["-l", SECONDS])?;
    let used = server.cpu()? - before;
    let per_cpu_second = run.completed as f64 / used.as_secs_f64().max(0.01);
    let steady = dnsperf(server, file, transport, &["-l", SECONDS, "-Q", STEADY, "-v"])?;
    let mut latencies = steady.latencies;
    latencies.sort();
    let p99 = latencies.get(latencies.len() * 99 / 100).copied().unwrap_or(Duration::MAX);
    Ok(Figures { per_cpu_second, p99 })
}

struct Run {
    completed: u64,
    lost: u64,
    latencies: Vec<Duration>,
}

fn dnsperf(server: &Running, file: &Path, transport: Transport, arguments: &[&str]) -> Outcome<Run> {
    let mut command = Command::new("dnsperf");
    command.args(["-s", "127.0.0.1", "-p", &server.port.to_string(), "-T", "1", "-t", "2", "-d"]).arg(file);
    command.args(["-c", "20", "-m", if transport == Transport::Udp { "udp" } else { "tcp" }]).args(arguments);
    pin(&mut command, CLIENT_CORE);
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
    };
    let completed = number("Queries completed:").ok_or_else(|| format!("dnsperf says: {text}"))?;
    if completed > 0 && !text.contains("NOERROR") {
        return Err(format!("{} does not answer as it should: {text}", server.name).into());
    }
    let lost = number("Queries lost:").unwrap_or_default();
    let latency = |line: &str| -> Option<Duration> {
        let seconds: f64 = line.strip_prefix("> NOERROR ")?.split_whitespace().next_back()?.parse().ok()?;
        Some(Duration::from_secs_f64(seconds))
    };
    Ok(Run { completed, lost, latencies: text.lines().filter_map(latency).collect() })
}

fn inside_file(dir: &Path) -> Outcome<PathBuf> {
    let file = dir.join("inside");
    // Those with one address: the others' lists are not in every server's hosts file.
    let rows = (0..plan::WITH_ADDRESS).map(|number| format!("{} A\n", plan::service_name(number)));
    fs::write(&file, rows.collect::<String>())?;
    Ok(file)
}

fn outside_file(dir: &Path) -> Outcome<PathBuf> {
    let file = dir.join("outside");
    let rows = (0..OUTSIDE).map(|number| format!("host{number}.example.org A\n"));
    fs::write(&file, rows.collect::<String>())?;
    Ok(file)
}
