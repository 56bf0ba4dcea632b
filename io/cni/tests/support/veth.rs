//! A pod network of plain veth pairs, routed through a namespace that plays the node.

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;
use weft_cni::{Attached, Attachment, CniError, PodNetwork};
use weft_model::Family;

/// A network namespace with a name of its own, removed with the value.
pub struct Namespace(pub String);

impl Namespace {
    pub async fn new(role: &str) -> Self {
        let namespace = Self(format!("weft-cni-{}-{role}", std::process::id()));
        run(&["ip", "netns", "add", &namespace.0]).await.unwrap();
        run(&["ip", "-n", &namespace.0, "link", "set", "lo", "up"]).await.unwrap();
        namespace
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// Runs `work` on a thread inside the namespace.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let path = self.path();
        let inside = move || {
            let file = std::fs::File::open(path).unwrap();
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::spawn(inside).join().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

pub struct VethNetwork {
    pub node: String,
}

const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";

impl PodNetwork for VethNetwork {
    async fn attach(&self, attachment: &Attachment) -> Result<Attached, CniError> {
        if self.check(attachment).await.is_err() {
            self.detach(attachment).await?;
            self.plug(attachment).await?;
        }
        Ok(Attached {
            mac: self.mac(&["nsenter", &in_pod(&attachment.netns)], &attachment.owner.ifname).await?,
            host_mac: self.mac(&["ip", "netns", "exec", &self.node], &attachment.device).await?,
            mtu: 1500,
            gateways: vec![GATEWAY_V4.parse().expect("constant"), GATEWAY_V6.parse().expect("constant")],
        })
    }

    async fn detach(&self, attachment: &Attachment) -> Result<(), CniError> {
        // The kernel takes the link away by itself, at a moment of its own, when the pod's namespace ends.
        match run(&["ip", "-n", &self.node, "link", "del", &attachment.device]).await {
            Err(error) if !error.to_string().contains("Cannot find device") => Err(error),
            _ => Ok(()),
        }
    }

    async fn check(&self, attachment: &Attachment) -> Result<(), CniError> {
        run(&["ip", "-n", &self.node, "link", "show", &attachment.device]).await?;
        let shown = run(&["nsenter", &in_pod(&attachment.netns), "ip", "-o", "addr", "show"]).await?;
        match attachment.addresses.iter().find(|addr| !shown.contains(&format!(" {addr}/"))) {
            None => Ok(()),
            Some(addr) => Err(CniError::check_failed(format!("{} has no address {addr}", attachment.owner))),
        }
    }

    async fn status(&self) -> Result<(), CniError> {
        Ok(())
    }
}

impl VethNetwork {
    async fn plug(&self, attachment: &Attachment) -> Result<(), CniError> {
        let (node, device, pod) = (&self.node, &attachment.device, in_pod(&attachment.netns));
        let ifname = &attachment.owner.ifname;
        // Both ends are made in the pod, which needs no name for its namespace; one moves to the node.
        let moved = format!("/run/netns/{node}");
        let mut steps = vec![
            format!("nsenter {pod} ip link add {ifname} type veth peer name {device}"),
            format!("nsenter {pod} ip link set {device} netns {moved}"),
            format!("nsenter {pod} ip link set {ifname} up"),
            format!("ip -n {node} link set {device} up"),
            format!("ip -n {node} addr add {GATEWAY_V4}/32 dev {device}"),
            format!("ip -n {node} addr add {GATEWAY_V6}/64 dev {device} nodad"),
        ];
        for addr in &attachment.addresses {
            steps.extend(match addr.family() {
                Family::V4 => [
                    format!("nsenter {pod} ip addr add {addr}/32 dev {ifname}"),
                    format!("nsenter {pod} ip route add {GATEWAY_V4} dev {ifname} scope link"),
                    format!("nsenter {pod} ip route add default via {GATEWAY_V4} dev {ifname}"),
                    format!("ip -n {node} route add {addr}/32 dev {device}"),
                ],
                Family::V6 => [
                    format!("nsenter {pod} ip addr add {addr}/128 dev {ifname} nodad"),
                    format!("nsenter {pod} ip route add {GATEWAY_V6} dev {ifname}"),
                    format!("nsenter {pod} ip route add default via {GATEWAY_V6} dev {ifname}"),
                    format!("ip -n {node} route add {addr}/128 dev {device}"),
                ],
            });
        }
        for step in steps {
            run(&step.split(' ').collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    async fn mac(&self, inside: &[&str], device: &str) -> Result<weft_cni::MacAddr, CniError> {
        let shown = run(&[inside, &["ip", "-o", "link", "show", device]].concat()).await?;
        let mac = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
        mac.and_then(|mac| mac.parse().ok())
            .ok_or_else(|| CniError::failed(format!("{device} has no Ethernet address")))
    }
}

fn in_pod(netns: &Path) -> String {
    format!("--net={}", netns.display())
}

pub async fn run(words: &[&str]) -> Result<String, CniError> {
    let output = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| CniError::failed(format!("{}: {error}", words[0])))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(CniError::failed(format!("{}: {}", words.join(" "), error.trim())))
}
