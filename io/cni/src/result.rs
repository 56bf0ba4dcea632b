//! The result object of ADD in each version of the specification, and what CHECK compares it with.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use weft_model::{Addr, Family};

use crate::{Attached, Attachment, CniError, Version};

/// The result of an ADD; what earlier plugins of the chain did comes first.
pub fn add_result(
    version: Version,
    attachment: &Attachment,
    previous: Option<&Map<String, Value>>,
) -> Result<Value, CniError> {
    let Some(attached) = &attachment.attached else {
        return Err(CniError::failed(format!("the agent's answer for {} is not complete", attachment.owner)));
    };
    let mut result = previous.cloned().unwrap_or_default();
    result.insert("cniVersion".to_owned(), version.as_str().into());
    let before = list(&mut result, "interfaces")?.len();
    list(&mut result, "interfaces")?.extend(interfaces(version, attachment, attached));
    let container = before + 1;
    list(&mut result, "ips")?
        .extend(attachment.addresses.iter().map(|addr| ip_config(version, *addr, container)));
    list(&mut result, "routes")?.extend(attached.gateways.iter().map(|gateway| {
        let dst = if gateway.family() == Family::V4 { "0.0.0.0/0" } else { "::/0" };
        json!({"dst": dst, "gw": gateway})
    }));
    result.entry("dns").or_insert_with(|| json!({}));
    Ok(Value::Object(result))
}

/// CHECK: what the runtime was told must still be what the agent holds.
pub fn compare(previous: &Map<String, Value>, attachment: &Attachment) -> Result<(), CniError> {
    let owner = &attachment.owner;
    let told = |key: &str, field: &str| -> BTreeSet<String> {
        let items = previous.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        items.iter().filter_map(|item| item.get(field)?.as_str().map(str::to_owned)).collect()
    };
    let names = told("interfaces", "name");
    for name in [&attachment.device, &owner.ifname] {
        if !names.contains(name) {
            return Err(CniError::check_failed(format!(
                "prevResult.interfaces of {owner} does not name {name}"
            )));
        }
    }
    let addresses = told("ips", "address");
    for address in attachment.addresses.iter().map(|addr| host_prefix(*addr)) {
        if !addresses.contains(&address) {
            return Err(CniError::check_failed(format!(
                "prevResult.ips of {owner} does not hold {address}, which the agent gave it"
            )));
        }
    }
    Ok(())
}

fn interfaces(version: Version, attachment: &Attachment, attached: &Attached) -> [Value; 2] {
    let mut host = json!({"name": attachment.device, "mac": attached.host_mac});
    let mut container =
        json!({"name": attachment.owner.ifname, "mac": attached.mac, "sandbox": attachment.netns});
    if version >= Version::V1_1_0 {
        host["mtu"] = attached.mtu.into();
        container["mtu"] = attached.mtu.into();
    }
    [host, container]
}

fn ip_config(version: Version, addr: Addr, interface: usize) -> Value {
    let mut config = json!({"address": host_prefix(addr), "interface": interface});
    if version < Version::V1_0_0 {
        config["version"] = if addr.family() == Family::V4 { "4" } else { "6" }.into();
    }
    config
}

fn host_prefix(addr: Addr) -> String {
    match addr.family() {
        Family::V4 => format!("{addr}/32"),
        Family::V6 => format!("{addr}/128"),
    }
}

fn list<'a>(result: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Vec<Value>, CniError> {
    match result.entry(key).or_insert_with(|| json!([])) {
        Value::Array(list) => Ok(list),
        null @ Value::Null => {
            *null = json!([]);
            Ok(null.as_array_mut().expect("it was made a list just now"))
        }
        _ => Err(CniError::invalid_config(format!("prevResult.{key} is not a list"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MacAddr, Owner, code};

    fn attachment() -> Attachment {
        let owner = Owner { container_id: "c1".into(), ifname: "eth0".into() };
        Attachment {
            device: owner.device(),
            owner,
            network: "weft".into(),
            pod: None,
            netns: "/run/netns/x".into(),
            addresses: vec!["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            attached: Some(Attached {
                mac: MacAddr([2, 0, 0, 0, 0, 1]),
                host_mac: MacAddr([2, 0, 0, 0, 0, 2]),
                mtu: 1500,
                gateways: vec!["169.254.1.1".parse().unwrap(), "fe80::1".parse().unwrap()],
            }),
        }
    }

    #[test]
    fn each_version_has_its_fields_and_no_later_ones() {
        let result = |version| add_result(version, &attachment(), None).unwrap();
        let device = attachment().device;
        assert_eq!(
            result(Version::V1_1_0),
            json!({
                "cniVersion": "1.1.0",
                "interfaces": [
                    {"name": device, "mac": "02:00:00:00:00:02", "mtu": 1500},
                    {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x", "mtu": 1500},
                ],
                "ips": [
                    {"address": "10.244.1.2/32", "interface": 1},
                    {"address": "fd00::2/128", "interface": 1},
                ],
                "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
                "dns": {},
            })
        );
        assert_eq!(result(Version::V1_0_0)["interfaces"][1].get("mtu"), None);
        assert_eq!(result(Version::V1_0_0)["ips"][0].get("version"), None);
        for version in [Version::V0_3_1, Version::V0_4_0] {
            assert_eq!(result(version)["cniVersion"], version.as_str());
            assert_eq!(result(version)["ips"][0]["version"], "4");
            assert_eq!(result(version)["ips"][1]["version"], "6");
        }
    }

    #[test]
    fn earlier_plugins_results_are_kept_and_indexes_move_on() {
        let previous = json!({
            "interfaces": [{"name": "dummy0"}],
            "ips": [{"address": "192.0.2.1/24", "interface": 0}],
            "dns": {"nameservers": ["192.0.2.53"]},
        });
        let result = add_result(Version::V1_0_0, &attachment(), previous.as_object()).unwrap();
        assert_eq!(result["interfaces"][0]["name"], "dummy0");
        assert_eq!(result["ips"][0]["interface"], 0);
        assert_eq!(result["ips"][1]["interface"], 2);
        assert_eq!(result["dns"]["nameservers"][0], "192.0.2.53");
        let bad = json!({"ips": {}});
        let error = add_result(Version::V1_0_0, &attachment(), bad.as_object()).unwrap_err();
        assert_eq!(error.code, code::INVALID_CONFIG);
    }

    #[test]
    fn a_result_compares_equal_with_itself_and_differences_are_named() {
        let result = add_result(Version::V1_1_0, &attachment(), None).unwrap();
        compare(result.as_object().unwrap(), &attachment()).unwrap();
        let mut other = attachment();
        other.addresses[0] = "10.244.1.9".parse().unwrap();
        let error = compare(result.as_object().unwrap(), &other).unwrap_err();
        assert!(error.msg.contains("10.244.1.9/32"), "{error}");
    }
}
