//! The names of a large cluster: services with addresses, and services whose pods have names of their own.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use weft_plan::{NamePlan, NameRecords, NameVersion, SrvRecord, write_names};

use crate::{Outcome, PODS, SERVICES};

const DOMAIN: &str = "cluster.local";
const NAMESPACES: usize = 200;
/// So many services are headless; all pods are behind these.
const HEADLESS: usize = 1000;
pub const WITH_ADDRESS: usize = SERVICES - HEADLESS;

pub fn service_name(number: usize) -> String {
    format!("service-{number}.namespace-{}.svc.{DOMAIN}", number % NAMESPACES)
}

pub fn service_addr(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0100 + number as u32)
}

fn pod_addr(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0af4_0002 + number as u32)
}

pub fn large() -> NamePlan {
    let mut plan = NamePlan {
        domain: DOMAIN.to_owned(),
        reverse: BTreeSet::from(["10.96.0.0/12".parse().unwrap_or_else(|_| unreachable!("it is a prefix"))]),
        ..NamePlan::default()
    };
    let at = |plan: &mut NamePlan, name: String, records: NameRecords| _ = plan.names.insert(name, records);
    for name in [DOMAIN.to_owned(), format!("svc.{DOMAIN}")] {
        at(&mut plan, name, NameRecords::default());
    }
    for number in 0..NAMESPACES {
        at(&mut plan, format!("namespace-{number}.svc.{DOMAIN}"), NameRecords::default());
    }
    for number in 0..SERVICES {
        let own = service_name(number);
        let mut srv = BTreeSet::new();
        let mut a = BTreeSet::new();
        let port = |target: &str| SrvRecord { priority: 0, weight: 100, port: 80, target: target.to_owned() };
        if number < WITH_ADDRESS {
            a.insert(service_addr(number));
            srv.insert(port(&own));
            point(&mut plan, service_addr(number), &own);
        } else {
            let each = PODS / HEADLESS;
            let first = (number - WITH_ADDRESS) * each;
            for pod in first..first + each {
                let addr = pod_addr(pod);
                let name = format!("{}.{own}", addr.to_string().replace('.', "-"));
                a.insert(addr);
                srv.insert(port(&name));
                point(&mut plan, addr, &name);
                at(&mut plan, name, NameRecords { a: [addr].into(), ..NameRecords::default() });
            }
        }
        at(&mut plan, own.clone(), NameRecords { a, ..NameRecords::default() });
        at(&mut plan, format!("_tcp.{own}"), NameRecords::default());
        at(&mut plan, format!("_http._tcp.{own}"), NameRecords { srv, ..NameRecords::default() });
    }
    plan
}

fn point(plan: &mut NamePlan, addr: Ipv4Addr, name: &str) {
    plan.pointers.insert(addr.into(), [name.to_owned()].into());
}

pub const fn version(sequence: u64) -> NameVersion {
    NameVersion { maker: 1, sequence }
}

/// Gives all names to the server, as an agent does.
pub fn put(socket: &Path) -> Outcome<()> {
    let plan = large();
    let mut body = Vec::new();
    write_names(&mut body, plan.head(None, version(1)), plan.rows())?;
    let start = Instant::now();
    while UnixStream::connect(socket).is_err() {
        if start.elapsed() > Duration::from_secs(20) {
            return Err("the server does not start".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    send(socket, &body)
}

pub fn send(socket: &Path, body: &[u8]) -> Outcome<()> {
    let mut stream = UnixStream::connect(socket)?;
    write!(
        stream,
        "PUT /plan HTTP/1.1\r\nhost: weft\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 204") { Ok(()) } else { Err(answer.into()) }
}

pub fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let asked = query.queries.first()?.clone();
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    if asked.query_type() == RecordType::A {
        let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
        reply.add_answer(Record::from_rdata(asked.name().clone(), 3600, data));
    }
    reply.add_query(asked);
    reply.to_vec().ok()
}
