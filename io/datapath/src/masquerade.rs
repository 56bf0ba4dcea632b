//! Pods' traffic to outside the cluster takes the node's address: one nftables table, replaced as a whole.

use std::io::Write;
use std::process::{Command, Stdio};

use weft_model::{Cidr, Family};
use weft_plan::NodeSettings;

use crate::error::MasqueradeError;
use crate::pods::DEVICE_PREFIX;

const TABLE: &str = "table inet weft";

/// The table as `nft` reads it.
pub(crate) fn render(settings: &NodeSettings) -> String {
    let mut rules = String::new();
    for (family, word) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
        let pods = prefixes(settings.pod_cidrs.iter(), family);
        let cluster = prefixes(settings.cluster_cidrs.iter(), family);
        if pods.is_empty() {
            continue;
        }
        let elsewhere =
            if cluster.is_empty() { String::new() } else { format!("{word} daddr != {{ {cluster} }} ") };
        rules += &format!(
            "    {word} saddr {{ {pods} }} {elsewhere}oifname != \"{DEVICE_PREFIX}*\" oifname != \"lo\" masquerade\n"
        );
    }
    // Declared before it is deleted, so that deleting never fails; all of it is one transaction.
    format!(
        "{TABLE}\ndelete {TABLE}\n{TABLE} {{\n  chain postrouting {{\n    type nat hook postrouting priority srcnat; policy accept;\n{rules}  }}\n}}\n"
    )
}

fn prefixes<'a>(cidrs: impl Iterator<Item = &'a Cidr>, family: Family) -> String {
    // A prefix inside another would be refused as a conflicting interval.
    let of_family: Vec<&Cidr> = cidrs.filter(|cidr| cidr.family() == family).collect();
    let outermost = of_family
        .iter()
        .filter(|cidr| !of_family.iter().any(|other| other != *cidr && other.covers(***cidr)));
    outermost.map(|cidr| cidr.to_string()).collect::<Vec<_>>().join(", ")
}

pub(crate) fn install(text: &str) -> Result<(), MasqueradeError> {
    run(text)
}

pub(crate) fn remove() -> Result<(), MasqueradeError> {
    run(&format!("{TABLE}\ndelete {TABLE}\n"))
}

fn run(script: &str) -> Result<(), MasqueradeError> {
    let spawned = Command::new("nft")
        .args(["-f", "-"])
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(MasqueradeError::NotInstalled);
        }
        Err(error) => return Err(MasqueradeError::Run(error)),
    };
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).map_err(MasqueradeError::Run)?;
    }
    let output = child.wait_with_output().map_err(MasqueradeError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    Err(MasqueradeError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
