//! Rows of services, endpoints, network policies and ingresses.
use serde_json::Value;

use super::cells::{NONE, age, items, join, name, or_none, plain, selector, some_of, text};
use super::{Layout, column, wide};

pub(super) fn layout(kind: &str) -> Option<Layout> {
    Some(match kind {
        "Service" => SERVICE,
        "Endpoints" => ENDPOINTS,
        "EndpointSlice" => ENDPOINT_SLICE,
        "NetworkPolicy" => NETWORK_POLICY,
        "Ingress" => INGRESS,
        "IngressClass" => INGRESS_CLASS,
        "ServiceCIDR" => SERVICE_CIDR,
        "IPAddress" => IP_ADDRESS,
        _ => return None,
    })
}

const SERVICE: Layout = Layout {
    columns: &[
        column("Name"),
        column("Type"),
        column("Cluster-IP"),
        column("External-IP"),
        column("Port(s)"),
        column("Age"),
        wide("Selector"),
    ],
    row: |o, now| {
        let spec = &o["spec"];
        let kind = text(spec, "type");
        let first = text_of(&spec["clusterIPs"][0]);
        let ip = if first.is_empty() { text(spec, "clusterIP") } else { first };
        let ip = if kind == "ExternalName" { "" } else { ip };
        vec![
            name(o),
            Value::from(kind),
            or_none(ip),
            Value::from(external_ip(o)),
            Value::from(service_ports(&spec["ports"])),
            age(o, now),
            selector(&spec["selector"]),
        ]
    },
};

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn external_ip(service: &Value) -> String {
    let spec = &service["spec"];
    let given: Vec<&str> = items(&spec["externalIPs"]).map(text_of).collect();
    let or =
        |list: Vec<&str>, missing: &str| if list.is_empty() { missing.to_owned() } else { list.join(",") };
    match text(spec, "type") {
        "ExternalName" => text(spec, "externalName").to_owned(),
        "LoadBalancer" => {
            let balancer = balancer_addresses(service);
            or(balancer.into_iter().chain(given).collect(), "<pending>")
        }
        _ => or(given, NONE),
    }
}

fn balancer_addresses(object: &Value) -> Vec<&str> {
    let ingress = items(&object["status"]["loadBalancer"]["ingress"]);
    ingress.map(|i| if text(i, "ip").is_empty() { text(i, "hostname") } else { text(i, "ip") }).collect()
}

fn service_ports(ports: &Value) -> String {
    let pieces: Vec<String> = items(ports)
        .map(|port| {
            let protocol = text(port, "protocol");
            match port["nodePort"].as_i64().unwrap_or(0) {
                0 => format!("{}/{protocol}", port["port"]),
                node => format!("{}:{node}/{protocol}", port["port"]),
            }
        })
        .collect();
    if pieces.is_empty() { NONE.to_owned() } else { pieces.join(",") }
}

const ENDPOINTS: Layout = Layout {
    columns: &[column("Name"), column("Endpoints"), column("Age")],
    row: |o, now| vec![name(o), Value::from(subset_addresses(&o["subsets"])), age(o, now)],
};

fn subset_addresses(subsets: &Value) -> String {
    let mut all = Vec::new();
    for subset in items(subsets) {
        let ports: Vec<&Value> = items(&subset["ports"]).collect();
        for address in items(&subset["addresses"]) {
            let ip = text(address, "ip");
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            all.extend(ports.iter().map(|port| host_port(ip, &port["port"])));
        }
    }
    some_of(&all, 3)
}

fn host_port(ip: &str, port: &Value) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

const ENDPOINT_SLICE: Layout = Layout {
    columns: &[column("Name"), column("AddressType"), column("Ports"), column("Endpoints"), column("Age")],
    row: |o, now| {
        let ports: Vec<String> = items(&o["ports"]).map(slice_port).collect();
        let addresses: Vec<String> =
            items(&o["endpoints"]).flat_map(|e| items(&e["addresses"]).map(plain)).collect();
        let or_unset = |list: &[String]| {
            let text = some_of(list, 3);
            Value::from(if text == NONE { "<unset>".to_owned() } else { text })
        };
        vec![
            name(o),
            Value::from(text(o, "addressType")),
            or_unset(&ports),
            or_unset(&addresses),
            age(o, now),
        ]
    },
};

fn slice_port(port: &Value) -> String {
    match (&port["port"], text(port, "name")) {
        (Value::Null, "") => "*".to_owned(),
        (Value::Null, name) => name.to_owned(),
        (number, _) => number.to_string(),
    }
}

const NETWORK_POLICY: Layout = Layout {
    columns: &[column("Name"), column("Pod-Selector"), column("Age")],
    row: |o, now| vec![name(o), selector(&o["spec"]["podSelector"]), age(o, now)],
};

const INGRESS: Layout = Layout {
    columns: &[
        column("Name"),
        column("Class"),
        column("Hosts"),
        column("Address"),
        column("Ports"),
        column("Age"),
    ],
    row: |o, now| {
        let hosts: Vec<String> = items(&o["spec"]["rules"])
            .map(|r| text(r, "host").to_owned())
            .filter(|h| !h.is_empty())
            .collect();
        let hosts = if hosts.is_empty() { "*".to_owned() } else { some_of(&hosts, 3) };
        let tls = items(&o["spec"]["tls"]).next().is_some();
        vec![
            name(o),
            or_none(text(&o["spec"], "ingressClassName")),
            Value::from(hosts),
            Value::from(join(balancer_addresses(o).into_iter())),
            Value::from(if tls { "80, 443" } else { "80" }),
            age(o, now),
        ]
    },
};

const INGRESS_CLASS: Layout = Layout {
    columns: &[column("Name"), column("Controller"), column("Parameters"), column("Age")],
    row: |o, now| {
        let parameters = &o["spec"]["parameters"];
        let group = text(parameters, "apiGroup");
        let dot = if group.is_empty() { "" } else { "." };
        let named = format!("{}{dot}{group}/{}", text(parameters, "kind"), text(parameters, "name"));
        let parameters = if parameters.is_null() { NONE.to_owned() } else { named };
        vec![name(o), Value::from(text(&o["spec"], "controller")), Value::from(parameters), age(o, now)]
    },
};

const SERVICE_CIDR: Layout = Layout {
    columns: &[column("Name"), column("CIDRs"), column("Age")],
    row: |o, now| vec![name(o), Value::from(join(items(&o["spec"]["cidrs"]).map(text_of))), age(o, now)],
};

const IP_ADDRESS: Layout = Layout {
    columns: &[column("Name"), column("ParentRef")],
    row: |o, _| {
        let parent = &o["spec"]["parentRef"];
        let parts = ["resource", "namespace", "name"].map(|field| text(parent, field));
        vec![name(o), Value::from(parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("/"))]
    },
};
