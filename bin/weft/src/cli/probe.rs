//! Trying connections from inside a pod: what `weft policy matrix --probe` measures. Comparing with what was computed lives in `matrix`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, UdpSocket};

/// Connections under way at once: enough to finish soon, few enough not to be the load that makes them late.
const CONCURRENCY: usize = 64;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    pub address: SocketAddr,
    pub udp: bool,
    pub patience_ms: u64,
}

/// What an application in the pod experiences.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Connected,
    Refused,
    /// No answer within the patience: what a dropped packet looks like from inside.
    Silent,
    /// The kernel had no way there.
    Unreachable,
}

/// Tries every target; results in the order of the targets.
pub async fn probe_all(targets: Vec<Target>) -> Vec<Outcome> {
    futures::stream::iter(targets).map(probe).buffered(CONCURRENCY).collect().await
}

async fn probe(target: Target) -> Outcome {
    let patience = Duration::from_millis(target.patience_ms);
    let attempt = async {
        if target.udp {
            udp(target.address).await
        } else {
            TcpStream::connect(target.address).await.map(drop)
        }
    };
    match tokio::time::timeout(patience, attempt).await {
        Ok(Ok(())) => Outcome::Connected,
        Ok(Err(error)) => outcome_of(&error),
        Err(_) => Outcome::Silent,
    }
}

/// UDP has no handshake: an answer is a connection; the question is asked again in case the first was lost in start-up.
async fn udp(address: SocketAddr) -> io::Result<()> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(address).await?;
    let mut answer = [0u8; 2048];
    loop {
        socket.send(b"weft probe\n").await?;
        match tokio::time::timeout(Duration::from_millis(400), socket.recv(&mut answer)).await {
            Ok(result) => return result.map(drop),
            Err(_) => continue,
        }
    }
}

fn outcome_of(error: &io::Error) -> Outcome {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Outcome::Refused,
        io::ErrorKind::TimedOut => Outcome::Silent,
        _ => Outcome::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(address: SocketAddr, udp: bool) -> Target {
        Target { address, udp, patience_ms: 2_000 }
    }

    #[tokio::test]
    async fn tells_connected_from_refused() {
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = tcp.local_addr().unwrap();
        let closed = {
            let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            gone.local_addr().unwrap()
        };
        let quiet = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let silent = Target { patience_ms: 300, ..target(quiet.local_addr().unwrap(), true) };
        let outcomes =
            probe_all(vec![target(open, false), target(closed, false), target(closed, true), silent]).await;
        assert_eq!(outcomes, [Outcome::Connected, Outcome::Refused, Outcome::Refused, Outcome::Silent]);
    }
}
