//! A steady stream of requests from where it runs: what tests use to see that nothing is lost meanwhile.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior};

const PATIENCE: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub struct Args {
    /// Where to send HTTP requests
    address: SocketAddr,
    /// Requests per second, each on its own connection
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    #[arg(long, default_value_t = 5)]
    seconds: u32,
}

#[derive(Serialize, Deserialize, Default, Debug)]
pub struct Outcome {
    pub sent: u32,
    pub answered: u32,
    pub failures: Vec<String>,
    pub elapsed_millis: u64,
}

/// Open loop: a slow answer delays no other request.
pub async fn run(args: Args) -> Result<()> {
    let started = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / args.rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut requests = tokio::task::JoinSet::new();
    let mut outcome = Outcome::default();
    for _ in 0..args.rate * args.seconds {
        ticks.tick().await;
        outcome.sent += 1;
        requests.spawn(request(args.address));
        while let Some(done) = requests.try_join_next() {
            outcome.count(done?);
        }
    }
    while let Some(done) = requests.join_next().await {
        outcome.count(done?);
    }
    outcome.elapsed_millis = started.elapsed().as_millis() as u64;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

impl Outcome {
    fn count(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) => self.answered += 1,
            Err(error) => self.failures.push(error),
        }
    }
}

async fn request(address: SocketAddr) -> Result<(), String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: weft\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(Ok(answer)) if answer.starts_with(b"HTTP/1.1 200") => Ok(()),
        Ok(Ok(answer)) => {
            Err(format!("unexpected answer: {}", String::from_utf8_lossy(&answer[..answer.len().min(60)])))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
    }
}
