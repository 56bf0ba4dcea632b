//! docs/names.md: what the name server promises, by section of the specification, by RFC, and by who asks. The tests that
//! prove each row are found in `proofs`.

use crate::proofs::{Part, Row, Table};

pub fn table() -> Table {
    let parts = PARTS.iter().map(|(title, rows)| Part {
        heading: format!("\n## {title}\n\n| key | about | what holds | proved by |\n|---|---|---|---|\n"),
        rows: rows.iter().map(|(key, about)| row(key, about)).collect(),
    });
    Table {
        file: "docs/names.md",
        head: HEAD.to_owned(),
        parts: parts.collect(),
        row: "row of names",
        owns: |key| !key.starts_with("spec.") && !key.starts_with("status."),
    }
}

fn row(key: &str, about: &str) -> Row {
    Row { key: key.to_owned(), shown: format!("{key} | {about}") }
}

const HEAD: &str = "# Names, by specification and by RFC

Generated from the tests by `cargo run -p xtask -- write-tables`; `xtask check` compares. How names work is in
[design/names.md](design/names.md).
";

type Rows = &'static [(&'static str, &'static str)];

const PARTS: [(&str, Rows); 5] = [
    ("Kubernetes DNS-Based Service Discovery 1.1.0", SPECIFICATION),
    ("Beyond the specification", BEYOND),
    ("Search lists", SEARCH),
    ("RFCs", RFCS),
    ("Clients", CLIENTS),
];

const SPECIFICATION: Rows = &[
    ("DNS-SD 2.1", "comparisons"),
    ("DNS-SD 2.2", "schema version"),
    ("DNS-SD 2.3.1", "A and AAAA of a service"),
    ("DNS-SD 2.3.2", "SRV of a service"),
    ("DNS-SD 2.3.3", "PTR of a service"),
    ("DNS-SD 2.4.1", "A and AAAA of a headless service"),
    ("DNS-SD 2.4.2", "SRV of a headless service"),
    ("DNS-SD 2.4.3", "PTR of an endpoint"),
    ("DNS-SD 2.5", "ExternalName"),
    ("DNS-SD 2.6", "names that spell a pod's address"),
];

const BEYOND: Rows = &[
    ("names.pods", "hostname and subdomain of a pod; StatefulSets"),
    ("names.wildcards", "wildcards"),
    ("names.clusterset", "clusterset.local"),
    ("names.causes", "why a name does not exist"),
    ("names.changes", "changes of services and endpoints"),
    ("pods.dnsPolicy", "spec.dnsPolicy of a pod"),
    ("pods.dnsConfig", "spec.dnsConfig of a pod"),
    ("pods.hostname", "spec.hostname, subdomain and setHostnameAsFQDN of a pod"),
];

const SEARCH: Rows = &[
    ("search.inside", "a walk that ends in the cluster"),
    ("search.outside", "a walk that ends outside"),
    ("search.later", "a walk that comes back"),
    ("search.not", "what is no walk"),
    ("search.services", "names that services could have"),
    ("search.once", "what a walk costs"),
    ("search.off", "the setting"),
    ("search.why", "`weft why POD NAME`"),
];

const RFCS: Rows = &[
    ("RFC 1034 §4.3.2", "aliases are followed"),
    ("RFC 1035 §4.1.1", "codes of bad questions"),
    ("RFC 1035 §4.2.1", "512 bytes over UDP"),
    ("RFC 2308 §2", "SOA in negative answers"),
    ("RFC 3596 §2.5", "ip6.arpa"),
    ("RFC 3597 §3", "unknown types"),
    ("RFC 4343", "case"),
    ("RFC 6891", "EDNS"),
    ("RFC 7766", "TCP"),
    ("RFC 8020", "nothing below a name that does not exist"),
    ("RFC 8482", "ANY"),
    ("RFC 8914", "extended errors"),
    ("RFC 9619", "one question"),
];

const CLIENTS: Rows = &[
    ("client.dig", "dig"),
    ("client.kdig", "kdig"),
    ("client.glibc", "getaddrinfo of glibc"),
    ("client.musl", "getaddrinfo of musl"),
    ("client.go", "Go's own resolver"),
    ("client.java", "Java"),
    ("client.fuzz", "whoever sends anything"),
];
