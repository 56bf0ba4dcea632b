//! Other name servers with the same names: those of this machine that are installed.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::plan::{service_addr, service_name};
use crate::{Outcome, Running, SERVICES, free_port};

pub fn start(dir: &Path, upstream: u16, only: &[&str]) -> Outcome<Vec<Running>> {
    let mut running = Vec::new();
    for (program, start) in [
        ("unbound", unbound as fn(&Path, u16, u16) -> Outcome<Command>),
        ("kresd", knot_resolver),
        ("dnsmasq", dnsmasq),
    ] {
        if !only.is_empty() && !only.contains(&program) {
            continue;
        }
        if Command::new(program).arg("-V").output().is_err() {
            println!("{program} is not installed");
            continue;
        }
        let own = dir.join(program);
        fs::create_dir(&own)?;
        let port = free_port()?;
        running.push(Running::start(program, port, start(&own, port, upstream)?)?);
    }
    Ok(running)
}

fn unbound(dir: &Path, port: u16, upstream: u16) -> Outcome<Command> {
    let mut text = format!(
        "server:\n interface: 127.0.0.1\n port: {port}\n num-threads: 1\n use-syslog: no\n verbosity: 0\n username: \"\"\n \
         chroot: \"\"\n directory: \"{0}\"\n pidfile: \"{0}/pid\"\n module-config: \"iterator\"\n do-daemonize: no\n \
         do-not-query-localhost: no\n msg-cache-size: 64m\n rrset-cache-size: 128m\n incoming-num-tcp: 100\n \
         local-zone: \"cluster.local.\" static\n",
        dir.display()
    );
    for number in 0..SERVICES {
        writeln!(text, " local-data: \"{}. 5 IN A {}\"", service_name(number), service_addr(number))?;
    }
    writeln!(
        text,
        "remote-control:\n control-enable: no\nforward-zone:\n name: \".\"\n forward-addr: 127.0.0.1@{upstream}"
    )?;
    let file = dir.join("conf");
    fs::write(&file, text)?;
    let mut command = Command::new("unbound");
    command.arg("-d").arg("-c").arg(file);
    Ok(command)
}

fn hosts(dir: &Path) -> Outcome<std::path::PathBuf> {
    let rows = (0..SERVICES).map(|number| format!("{} {}\n", service_addr(number), service_name(number)));
    let file = dir.join("hosts");
    fs::write(&file, rows.collect::<String>())?;
    Ok(file)
}

fn knot_resolver(dir: &Path, port: u16, upstream: u16) -> Outcome<Command> {
    let text = format!(
        "net.listen('127.0.0.1', {port})\ntrust_anchors.remove('.')\nmodules = {{ 'hints > iterate' }}\n\
         hints.add_hosts('{}')\ncache.size = 100 * MB\npolicy.add(policy.all(policy.STUB('127.0.0.1@{upstream}')))\n",
        hosts(dir)?.display()
    );
    fs::write(dir.join("conf"), text)?;
    let mut command = Command::new("kresd");
    command.args(["-n", "-q", "-c", "conf"]).arg(dir);
    Ok(command)
}

fn dnsmasq(dir: &Path, port: u16, upstream: u16) -> Outcome<Command> {
    let mut command = Command::new("dnsmasq");
    command.args(["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]);
    command.args([
        "--listen-address=127.0.0.1",
        "--bind-interfaces",
        "--cache-size=25000",
        "--dns-forward-max=5000",
    ]);
    command.arg(format!("--port={port}")).arg(format!("--server=127.0.0.1#{upstream}"));
    command.arg("--local=/cluster.local/").arg(format!("--addn-hosts={}", hosts(dir)?.display()));
    command.arg(format!("--pid-file={}", dir.join("pid").display()));
    Ok(command)
}
