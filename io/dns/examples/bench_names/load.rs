//! How soon a change is answered, and what a flood from one client does to another.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use weft_plan::{NameRecords, NameRow, write_names};

use crate::plan::{self, service_name, version};
use crate::{Outcome, start_upstream, start_weft};

const CHANGES: u64 = 500;
const FLOODING: Duration = Duration::from_secs(6);
/// Questions of the flood in a second, and of the client that must not suffer.
const FLOOD_RATE: u32 = 20_000;
const QUIET_RATE: u32 = 1000;

fn question(name: &str, id: u16) -> Outcome<Vec<u8>> {
    let mut message = Message::query();
    message.metadata.id = id;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(format!("{name}."))?, RecordType::A));
    Ok(message.to_vec()?)
}

fn client(address: [u8; 4], port: u16) -> Outcome<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddr::from((address, 0)))?;
    socket.connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

/// From an agent's message to the answer, with as many other names as there are.
pub fn changes() -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let upstream = start_upstream()?;
    let weft = start_weft(dir.path(), upstream.port)?;
    let socket = client([127, 0, 0, 1], weft.port)?;
    let before = plan::large();
    let mut times = Vec::new();
    let mut buffer = [0; 4096];
    for number in 1..=CHANGES {
        let name = format!("new-{number}.{}", service_name(0).replacen("service-0.", "", 1));
        let records = NameRecords {
            a: BTreeSet::from([Ipv4Addr::from(0x0a70_0000 + number as u32)]),
            ..NameRecords::default()
        };
        let start = Instant::now();
        let mut body = Vec::new();
        let head = before.head(Some(version(number)), version(number + 1));
        write_names(&mut body, head, std::iter::once(NameRow::Name(name.clone(), Some(records))))?;
        plan::send(&dir.path().join("names.sock"), &body)?;
        loop {
            socket.send(&question(&name, number as u16)?)?;
            let length = socket.recv(&mut buffer)?;
            if !Message::from_vec(&buffer[..length])?.answers.is_empty() {
                break;
            }
        }
        times.push(start.elapsed());
    }
    print("from a change to its answer", &mut times);
    Ok(())
}

pub fn flood() -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let upstream = start_upstream()?;
    let weft = start_weft(dir.path(), upstream.port)?;
    let quiet = client([127, 0, 0, 2], weft.port)?;
    for (round, what) in
        ["alone", "alone", "beside a flood inside", "beside a flood outside"].iter().enumerate()
    {
        let ends = AtomicBool::new(false);
        let mut times = std::thread::scope(|scope| -> Outcome<Vec<Duration>> {
            let flooding = (round > 1).then(|| {
                scope.spawn(|| random_names(weft.port, round == 3, &ends).map_err(|error| error.to_string()))
            });
            let times = ask_quietly(&quiet);
            ends.store(true, Ordering::Relaxed);
            if let Some(flooding) = flooding {
                let sent = flooding.join().map_err(|_| "the flood failed")??;
                println!("{sent} questions in the flood");
            }
            times
        })?;
        print(what, &mut times);
    }
    Ok(())
}

fn ask_quietly(socket: &UdpSocket) -> Outcome<Vec<Duration>> {
    let mut times = Vec::new();
    let mut buffer = [0; 4096];
    let begin = Instant::now();
    let mut number: u32 = 0;
    while begin.elapsed() < FLOODING {
        let message = question(&service_name(number as usize % 1000), number as u16)?;
        let start = Instant::now();
        socket.send(&message)?;
        socket.recv(&mut buffer)?;
        times.push(start.elapsed());
        number += 1;
        let due = Duration::from_secs(1) / QUIET_RATE * number;
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
    }
    Ok(times)
}

fn random_names(port: u16, outside: bool, ends: &AtomicBool) -> Outcome<u32> {
    let socket = client([127, 0, 0, 3], port)?;
    socket.set_nonblocking(true)?;
    let zone = if outside { "example.org" } else { "namespace-0.svc.cluster.local" };
    let mut buffer = [0; 4096];
    let begin = Instant::now();
    let mut sent: u32 = 0;
    while !ends.load(Ordering::Relaxed) {
        let message = question(&format!("random-{sent}-{}.{zone}", port), sent as u16)?;
        let _ = socket.send(&message);
        while socket.recv(&mut buffer).is_ok() {}
        sent += 1;
        if sent.is_multiple_of(20) {
            let due = Duration::from_secs(1) / FLOOD_RATE * sent;
            std::thread::sleep(due.saturating_sub(begin.elapsed()));
        }
    }
    Ok(sent)
}

fn print(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    println!("{what}: median {:?}, p99 {:?}, of {}", at(50), at(99), times.len());
}
