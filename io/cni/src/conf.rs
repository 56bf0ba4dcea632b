//! The network configuration a runtime passes on stdin: versions, and the fields Weft reads. No environment here.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::{CniError, Owner};

/// A version of the specification that Weft can speak, oldest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Version {
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

pub const SUPPORTED_VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

impl Version {
    pub fn parse(text: &str) -> Result<Self, CniError> {
        match text {
            "0.3.1" => Ok(Self::V0_3_1),
            "0.4.0" => Ok(Self::V0_4_0),
            "1.0.0" => Ok(Self::V1_0_0),
            "1.1.0" => Ok(Self::V1_1_0),
            other => Err(CniError::incompatible_version(format!(
                "cniVersion {other:?} is not supported; use one of {}",
                SUPPORTED_VERSIONS.join(", ")
            ))),
        }
    }

    pub fn as_str(self) -> &'static str {
        SUPPORTED_VERSIONS[self as usize]
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One plugin's configuration, as the runtime derives it from a conflist.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    pub version: Version,
    pub name: String,
    pub agent_socket: PathBuf,
    /// The result of the plugins before this one, or (CHECK, DEL) of the last ADD; its own format is kept.
    pub prev_result: Option<Map<String, Value>>,
    /// GC only: what the runtime still has in this network.
    pub valid_attachments: Option<BTreeSet<Owner>>,
}

const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

impl NetConf {
    pub fn parse(bytes: &[u8]) -> Result<Self, CniError> {
        let conf = object(bytes)?;
        let version = Version::parse(&version_text(&conf)?)?;
        let name = match conf.get("name") {
            Some(Value::String(name)) if is_identifier(name) => name.clone(),
            Some(other) => {
                return Err(CniError::invalid_config(format!(
                    "name {other} is not valid: it starts with a letter or digit, then letters, digits, '_', '.' or '-'"
                )));
            }
            None => return Err(CniError::invalid_config("name is missing")),
        };
        refuse_foreign_ipam(&conf)?;
        Ok(Self {
            version,
            name,
            agent_socket: agent_socket(&conf)?,
            prev_result: prev_result(&conf)?,
            valid_attachments: valid_attachments(&conf)?,
        })
    }
}

/// The `cniVersion` of any input, also of one that is not otherwise a configuration (VERSION, and errors).
pub fn declared_version(bytes: &[u8]) -> Result<Option<String>, CniError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    match object(bytes)?.get("cniVersion") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(CniError::invalid_config(format!("cniVersion {other} is not a string"))),
    }
}

/// A configuration list for the agent behind `socket`.
pub fn conflist(socket: &Path, version: Version) -> String {
    let plugin = json!({"type": "weft", "agentSocket": socket});
    let list = json!({"cniVersion": version.as_str(), "name": "weft", "plugins": [plugin]});
    format!("{list:#}\n")
}

/// What the specification allows for network names and container ids.
pub fn is_identifier(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, CniError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(CniError::decode("the network configuration on stdin is not a JSON object")),
        Err(error) => {
            Err(CniError::decode("the network configuration on stdin is not JSON").with_details(error))
        }
    }
}

fn version_text(conf: &Map<String, Value>) -> Result<String, CniError> {
    match conf.get("cniVersion") {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(CniError::invalid_config(format!("cniVersion {other} is not a string"))),
        None => Err(CniError::incompatible_version(format!(
            "cniVersion is missing; use one of {}",
            SUPPORTED_VERSIONS.join(", ")
        ))),
    }
}

/// Weft's agent gives the addresses; a configuration that asks another plugin for them would be half obeyed.
fn refuse_foreign_ipam(conf: &Map<String, Value>) -> Result<(), CniError> {
    match conf.get("ipam") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(ipam)) if ipam.is_empty() => Ok(()),
        Some(other) => Err(CniError::unsupported_field(format!(
            "ipam: {other} is not supported: addresses come from the node's pod CIDRs; remove the field"
        ))),
    }
}

fn agent_socket(conf: &Map<String, Value>) -> Result<PathBuf, CniError> {
    match conf.get("agentSocket") {
        Some(Value::String(path)) if Path::new(path).is_absolute() => Ok(path.into()),
        Some(other) => Err(CniError::invalid_config(format!("agentSocket {other} is not an absolute path"))),
        None => {
            Err(CniError::invalid_config("agentSocket is missing: the absolute path of the agent's socket"))
        }
    }
}

fn prev_result(conf: &Map<String, Value>) -> Result<Option<Map<String, Value>>, CniError> {
    match conf.get("prevResult") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map.clone())),
        Some(_) => Err(CniError::invalid_config("prevResult is not an object")),
    }
}

fn valid_attachments(conf: &Map<String, Value>) -> Result<Option<BTreeSet<Owner>>, CniError> {
    let Some(value) = conf.get(VALID_ATTACHMENTS) else { return Ok(None) };
    let bad = |what: &str| CniError::invalid_config(format!("{VALID_ATTACHMENTS}{what}"));
    let list = match value {
        Value::Null => return Ok(Some(BTreeSet::new())),
        Value::Array(list) => list,
        _ => return Err(bad(" is not a list")),
    };
    let text = |item: &Value, index: usize, key: &str| {
        item.get(key)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .ok_or_else(|| bad(&format!("[{index}].{key} is not a string")))
    };
    list.iter()
        .enumerate()
        .map(|(index, item)| {
            Ok(Owner {
                container_id: text(item, index, "containerID")?,
                ifname: text(item, index, "ifname")?,
            })
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code;

    fn refuse(conf: Value) -> CniError {
        NetConf::parse(conf.to_string().as_bytes()).unwrap_err()
    }

    #[test]
    fn each_fault_has_its_code_and_names_its_field() {
        let good =
            json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft", "agentSocket": "/run/a.sock"});
        let with = |key: &str, value: Value| {
            let mut conf = good.clone();
            conf[key] = value;
            refuse(conf)
        };
        for (key, value, code) in [
            ("cniVersion", json!("0.2.0"), code::INCOMPATIBLE_VERSION),
            ("cniVersion", json!(1), code::INVALID_CONFIG),
            ("name", json!("../x"), code::INVALID_CONFIG),
            ("agentSocket", json!("relative"), code::INVALID_CONFIG),
            ("ipam", json!({"type": "host-local"}), code::UNSUPPORTED_FIELD),
            ("prevResult", json!([]), code::INVALID_CONFIG),
            (VALID_ATTACHMENTS, json!([{"containerID": "a"}]), code::INVALID_CONFIG),
        ] {
            let error = with(key, value);
            assert_eq!(error.code, code, "{key}: {error}");
            assert!(error.msg.contains(key), "{key}: {error}");
        }
        assert_eq!(NetConf::parse(b"{").unwrap_err().code, code::DECODE);
        assert_eq!(NetConf::parse(b"[]").unwrap_err().code, code::DECODE);
    }

    #[test]
    fn every_supported_version_is_read() {
        for text in SUPPORTED_VERSIONS {
            let conf = json!({"cniVersion": text, "name": "n", "agentSocket": "/s"}).to_string();
            assert_eq!(NetConf::parse(conf.as_bytes()).unwrap().version.as_str(), text);
        }
    }

    #[test]
    fn our_own_conflist_is_accepted_plugin_by_plugin() {
        let list: Value =
            serde_json::from_str(&conflist(Path::new("/run/agent.sock"), Version::V1_1_0)).unwrap();
        let mut plugin = list["plugins"][0].clone();
        plugin["cniVersion"] = list["cniVersion"].clone();
        plugin["name"] = list["name"].clone();
        let conf = NetConf::parse(plugin.to_string().as_bytes()).unwrap();
        assert_eq!(conf.agent_socket, Path::new("/run/agent.sock"));
    }
}
