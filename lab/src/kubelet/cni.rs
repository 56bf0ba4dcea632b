//! Calls CNI plugins as a container runtime does: one process per verb, configuration on stdin, result on stdout.
//! What the plugin then does is not the kubelet's business.
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

const LONGEST_CALL: Duration = Duration::from_secs(120);
/// "Try again later" in the CNI specification.
const TRY_AGAIN: u64 = 11;
const PLUGIN_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

#[derive(Debug, thiserror::Error)]
pub enum CniError {
    #[error("CNI configuration {path}: {message}")]
    Config { path: PathBuf, message: String },
    #[error("CNI plugin {plugin}, {verb}: {message}")]
    Call { plugin: String, verb: &'static str, message: String },
    #[error("CNI plugin {plugin}, {verb}: error {code}: {message}")]
    Refused { plugin: String, verb: &'static str, code: u64, message: String },
}

impl CniError {
    /// Whether the plugin asked for another try soon.
    pub fn asks_to_retry(&self) -> bool {
        matches!(self, Self::Refused { code: TRY_AGAIN, .. })
    }
}

/// Who a call is for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attachment {
    pub sandbox_id: String,
    pub netns: PathBuf,
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    /// Host ports, for plugins that say they can map them.
    pub port_mappings: Vec<Value>,
}

/// What ADD returned.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attached {
    pub ips: Vec<IpAddr>,
    pub result: Value,
}

/// The node's CNI configuration and how its plugins are run.
#[derive(Clone, Debug)]
pub struct Cni {
    pub conf: PathBuf,
    /// Program and leading arguments of the plugin of type `weft`.
    pub weft: Vec<String>,
}

struct Network {
    name: String,
    version: String,
    plugins: Vec<Map<String, Value>>,
}

impl Cni {
    pub async fn add(&self, to: &Attachment) -> Result<Attached, CniError> {
        let network = self.network()?;
        let mut previous = None;
        for plugin in &network.plugins {
            let conf = config_for(&network, plugin, to, previous.as_ref());
            let result = self.call("ADD", plugin, Some(to), &conf).await?;
            previous = Some(result);
        }
        let result = previous.ok_or_else(|| self.bad_config("it lists no plugin"))?;
        Ok(Attached { ips: addresses(&result), result })
    }

    /// Detaches; a plugin that never attached must accept it too.
    pub async fn del(&self, from: &Attachment, attached: Option<&Attached>) -> Result<(), CniError> {
        let network = self.network()?;
        for plugin in network.plugins.iter().rev() {
            let conf = config_for(&network, plugin, from, attached.map(|attached| &attached.result));
            self.call("DEL", plugin, Some(from), &conf).await?;
        }
        Ok(())
    }

    /// Whether the network can take pods now.
    pub async fn status(&self) -> Result<(), CniError> {
        let network = self.network()?;
        for plugin in &network.plugins {
            let conf = plain_config(&network, plugin);
            self.call("STATUS", plugin, None, &conf).await?;
        }
        Ok(())
    }

    fn bad_config(&self, message: impl ToString) -> CniError {
        CniError::Config { path: self.conf.clone(), message: message.to_string() }
    }

    fn network(&self) -> Result<Network, CniError> {
        let text = std::fs::read(&self.conf).map_err(|error| self.bad_config(error))?;
        let conf: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|error| self.bad_config(error))?;
        let string = |field: &str| {
            conf.get(field)
                .and_then(Value::as_str)
                .map(str::to_owned)
                .ok_or_else(|| self.bad_config(format!("field {field} is missing or not a string")))
        };
        let (name, version) = (string("name")?, string("cniVersion")?);
        let plugins = match conf.get("plugins") {
            None => vec![conf.clone()],
            Some(Value::Array(plugins)) => plugins.iter().filter_map(Value::as_object).cloned().collect(),
            Some(_) => return Err(self.bad_config("field plugins is not a list")),
        };
        Ok(Network { name, version, plugins })
    }

    async fn call(
        &self,
        verb: &'static str,
        plugin: &Map<String, Value>,
        attachment: Option<&Attachment>,
        conf: &Value,
    ) -> Result<Value, CniError> {
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        let failed = |message: String| CniError::Call { plugin: kind.to_owned(), verb, message };
        let mut command = self
            .command(kind)
            .ok_or_else(|| failed(format!("no such program in {}", PLUGIN_DIRS.join(", "))))?;
        command.env_clear().env("PATH", super::isolate::DEFAULT_PATH).env("CNI_COMMAND", verb);
        command.env("CNI_PATH", PLUGIN_DIRS.join(":"));
        if let Some(attachment) = attachment {
            command.envs(environment(attachment));
        }
        let output = tokio::time::timeout(LONGEST_CALL, exchange(command, conf.to_string()))
            .await
            .map_err(|_| failed(format!("no answer within {} s", LONGEST_CALL.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        let answer = serde_json::from_slice::<Value>(&output.stdout);
        if output.status.success() {
            // DEL and STATUS succeed without a word.
            return if output.stdout.is_empty() {
                Ok(Value::Null)
            } else {
                answer.map_err(|e| failed(e.to_string()))
            };
        }
        Err(refusal(kind, verb, answer.ok(), &output))
    }

    fn command(&self, kind: &str) -> Option<Command> {
        if let ("weft", Some((program, args))) = (kind, self.weft.split_first()) {
            let mut command = Command::new(program);
            command.args(args);
            return Some(command);
        }
        let found = PLUGIN_DIRS.iter().map(|dir| Path::new(dir).join(kind)).find(|path| path.is_file())?;
        Some(Command::new(found))
    }
}

async fn exchange(mut command: Command, conf: String) -> std::io::Result<std::process::Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin may answer without reading; its answer counts.
        let _ = stdin.write_all(conf.as_bytes()).await;
    }
    child.wait_with_output().await
}

fn refusal(
    plugin: &str,
    verb: &'static str,
    answer: Option<Value>,
    output: &std::process::Output,
) -> CniError {
    let plugin = plugin.to_owned();
    let Some(answer) = answer.filter(Value::is_object) else {
        let message = format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        return CniError::Call { plugin, verb, message };
    };
    let text = |field: &str| answer.get(field).and_then(Value::as_str).unwrap_or_default();
    let message =
        [text("msg"), text("details")].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
    let code = answer.get("code").and_then(Value::as_u64).unwrap_or_default();
    CniError::Refused { plugin, verb, code, message: message.join(": ") }
}

fn environment(attachment: &Attachment) -> Vec<(&'static str, String)> {
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        attachment.namespace, attachment.pod, attachment.sandbox_id, attachment.uid
    );
    vec![
        ("CNI_CONTAINERID", attachment.sandbox_id.clone()),
        ("CNI_NETNS", attachment.netns.display().to_string()),
        ("CNI_IFNAME", "eth0".to_owned()),
        ("CNI_ARGS", args),
    ]
}

fn plain_config(network: &Network, plugin: &Map<String, Value>) -> Value {
    let mut conf = plugin.clone();
    conf.insert("name".into(), json!(network.name));
    conf.insert("cniVersion".into(), json!(network.version));
    Value::Object(conf)
}

fn config_for(
    network: &Network,
    plugin: &Map<String, Value>,
    attachment: &Attachment,
    previous: Option<&Value>,
) -> Value {
    let mut conf = plain_config(network, plugin);
    if let Some(previous) = previous {
        conf["prevResult"] = previous.clone();
    }
    let maps_ports =
        plugin.get("capabilities").and_then(|caps| caps.get("portMappings")) == Some(&Value::Bool(true));
    if maps_ports && !attachment.port_mappings.is_empty() {
        conf["runtimeConfig"] = json!({ "portMappings": attachment.port_mappings });
    }
    if let Some(object) = conf.as_object_mut() {
        object.remove("capabilities");
    }
    conf
}

/// The pod's addresses, in the order the plugin gave them.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let entries = result.get("ips").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    entries
        .iter()
        .filter_map(|entry| entry.get("address")?.as_str()?.split('/').next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn attachment() -> Attachment {
        Attachment {
            sandbox_id: "abc".into(),
            netns: "/run/netns/x".into(),
            namespace: "default".into(),
            pod: "web".into(),
            uid: "u-1".into(),
            port_mappings: vec![json!({"hostPort": 80, "containerPort": 8080, "protocol": "tcp"})],
        }
    }

    fn cni(dir: &Path, script: &str, plugins: Value) -> Cni {
        let plugin = dir.join("plugin");
        std::fs::write(&plugin, format!("#!/bin/sh\nDIR={}\n{script}", dir.display())).expect("writes");
        std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        let conf = dir.join("conflist");
        let list = json!({"cniVersion": "1.1.0", "name": "net", "plugins": plugins});
        std::fs::write(&conf, list.to_string()).expect("writes");
        Cni { conf, weft: vec![plugin.display().to_string(), "cni".into()] }
    }

    #[tokio::test]
    async fn add_chains_plugins_and_del_undoes_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let script = r#"cat > $DIR/$CNI_COMMAND.$(ls $DIR | wc -l); env > $DIR/env
            test $CNI_COMMAND = ADD && echo '{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.7/32"},{"address":"fd00::7/128"}]}'
            exit 0"#;
        let plugins =
            json!([{"type": "weft", "capabilities": {"portMappings": true}}, {"type": "weft", "x": 1}]);
        let cni = cni(dir.path(), script, plugins);
        let attached = cni.add(&attachment()).await.expect("attached");
        assert_eq!(attached.ips, ["10.0.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]);
        let env = std::fs::read_to_string(dir.path().join("env")).expect("env");
        for expected in
            ["CNI_CONTAINERID=abc", "CNI_NETNS=/run/netns/x", "CNI_IFNAME=eth0", "K8S_POD_UID=u-1"]
        {
            assert!(env.contains(expected), "{expected} in {env}");
        }
        let read = |name: &str| -> Value {
            serde_json::from_slice(&std::fs::read(dir.path().join(name)).expect(name)).expect("JSON")
        };
        let (first, second) = (read("ADD.2"), read("ADD.4"));
        assert_eq!(first["runtimeConfig"]["portMappings"][0]["hostPort"], 80);
        assert_eq!(
            (&first["name"], first.get("capabilities"), first.get("prevResult")),
            (&json!("net"), None, None)
        );
        assert_eq!(second["prevResult"]["ips"][0]["address"], "10.0.0.7/32");
        cni.del(&attachment(), Some(&attached)).await.expect("detached");
        assert_eq!(read("DEL.5")["x"], 1);
    }

    #[tokio::test]
    async fn refusals_carry_their_code_and_words() {
        let dir = tempfile::tempdir().expect("a directory");
        let script = r#"echo '{"code":11,"msg":"not yet","details":"agent starting"}'; exit 1"#;
        let cni = cni(dir.path(), script, json!([{"type": "weft"}]));
        let error = cni.status().await.expect_err("refused");
        assert!(error.asks_to_retry());
        assert_eq!(error.to_string(), "CNI plugin weft, STATUS: error 11: not yet: agent starting");
    }

    #[tokio::test]
    async fn a_crash_and_a_missing_plugin_are_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let crash = cni(dir.path(), "echo boom >&2; exit 3", json!([{"type": "weft"}]));
        let error = crash.add(&attachment()).await.expect_err("crashed").to_string();
        assert!(error.contains("exit status: 3: boom"), "{error}");
        let missing = cni(dir.path(), "", json!([{"type": "no-such-plugin"}]));
        let error = missing.add(&attachment()).await.expect_err("missing").to_string();
        assert!(error.contains("no-such-plugin, ADD: no such program"), "{error}");
        let no_conf = Cni { conf: dir.path().join("none"), weft: vec![] };
        assert!(no_conf.status().await.expect_err("no file").to_string().contains("none"));
    }
}
