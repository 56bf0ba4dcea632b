//! One call of the plugin: the verb and what the environment says. Pure: the environment is an argument.

use std::collections::BTreeMap;
use std::path::PathBuf;

use weft_model::{PodKey, Uid};

use crate::conf::is_identifier;
use crate::{CniError, Owner, PodRef};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Invocation {
    Add(Target),
    Del(Target),
    Check(Target),
    Status,
    Gc,
    Version,
}

/// The container an ADD, DEL or CHECK is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    pub owner: Owner,
    /// Absent only in DEL.
    pub netns: Option<PathBuf>,
    pub pod: Option<PodRef>,
}

/// Longest interface name the kernel takes (IFNAMSIZ less its NUL).
const MAX_IFNAME: usize = 15;
/// Runtimes use 64; the bound keeps file names and messages sane.
const MAX_CONTAINER_ID: usize = 200;

impl Invocation {
    pub fn parse(env: &BTreeMap<String, String>) -> Result<Self, CniError> {
        Ok(match command(env)? {
            Command::Add => Self::Add(target(env, Netns::Required)?),
            Command::Check => Self::Check(target(env, Netns::Required)?),
            Command::Del => Self::Del(target(env, Netns::Optional)?),
            Command::Status => Self::Status,
            Command::Gc => Self::Gc,
            Command::Version => Self::Version,
        })
    }
}

#[derive(PartialEq)]
enum Netns {
    Required,
    Optional,
}

fn command(env: &BTreeMap<String, String>) -> Result<Command, CniError> {
    match required(env, "CNI_COMMAND")? {
        "ADD" => Ok(Command::Add),
        "DEL" => Ok(Command::Del),
        "CHECK" => Ok(Command::Check),
        "STATUS" => Ok(Command::Status),
        "GC" => Ok(Command::Gc),
        "VERSION" => Ok(Command::Version),
        other => Err(CniError::invalid_environment(format!(
            "CNI_COMMAND {other:?} is unknown; use ADD, DEL, CHECK, STATUS, GC or VERSION"
        ))),
    }
}

fn target(env: &BTreeMap<String, String>, netns: Netns) -> Result<Target, CniError> {
    let container_id = required(env, "CNI_CONTAINERID")?;
    if !is_identifier(container_id) || container_id.len() > MAX_CONTAINER_ID {
        return Err(CniError::invalid_environment(format!(
            "CNI_CONTAINERID {container_id:?} is not valid: it starts with a letter or digit, then letters, digits, \
             '_', '.' or '-', at most {MAX_CONTAINER_ID} in all"
        )));
    }
    let ifname = required(env, "CNI_IFNAME")?;
    if !is_ifname(ifname) {
        return Err(CniError::invalid_environment(format!(
            "CNI_IFNAME {ifname:?} is not an interface name: 1 to {MAX_IFNAME} characters, no '/', ':' or space, \
             and not '.' or '..'"
        )));
    }
    let path = env.get("CNI_NETNS").filter(|path| !path.is_empty());
    if path.is_none() && netns == Netns::Required {
        return Err(missing("CNI_NETNS"));
    }
    Ok(Target {
        owner: Owner { container_id: container_id.to_owned(), ifname: ifname.to_owned() },
        netns: path.map(PathBuf::from),
        pod: pod(&args(env)?)?,
    })
}

fn required<'a>(env: &'a BTreeMap<String, String>, key: &str) -> Result<&'a str, CniError> {
    env.get(key).map(String::as_str).filter(|value| !value.is_empty()).ok_or_else(|| missing(key))
}

fn missing(key: &str) -> CniError {
    CniError::invalid_environment(format!("{key} is not set"))
}

fn is_ifname(text: &str) -> bool {
    (1..=MAX_IFNAME).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

/// `CNI_ARGS`: `KEY=VALUE` joined by semicolons. Unknown keys are ignored, whatever IgnoreUnknown says.
fn args(env: &BTreeMap<String, String>) -> Result<BTreeMap<&str, &str>, CniError> {
    let text = env.get("CNI_ARGS").map_or("", String::as_str);
    text.split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            pair.split_once('=').ok_or_else(|| {
                CniError::invalid_environment(format!("CNI_ARGS: {pair:?} is not in the form KEY=VALUE"))
            })
        })
        .collect()
}

fn pod(args: &BTreeMap<&str, &str>) -> Result<Option<PodRef>, CniError> {
    let value = |key: &str| args.get(key).copied().filter(|value| !value.is_empty());
    match (value("K8S_POD_NAMESPACE"), value("K8S_POD_NAME")) {
        (Some(namespace), Some(name)) => Ok(Some(PodRef {
            key: PodKey::new(namespace, name),
            uid: Uid::new(value("K8S_POD_UID").unwrap_or_default()),
        })),
        (None, None) => Ok(None),
        _ => Err(CniError::invalid_environment(
            "CNI_ARGS: K8S_POD_NAMESPACE and K8S_POD_NAME must be given together",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
    ];

    #[test]
    fn each_bad_variable_is_named() {
        for (key, value) in [
            ("CNI_COMMAND", "add"),
            ("CNI_COMMAND", ""),
            ("CNI_CONTAINERID", ""),
            ("CNI_CONTAINERID", "../../etc"),
            ("CNI_CONTAINERID", &"x".repeat(201)),
            ("CNI_NETNS", ""),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "sixteen-letters!"),
            ("CNI_ARGS", "K8S_POD_NAME"),
            ("CNI_ARGS", "K8S_POD_NAME=x"),
        ] {
            let mut env = env(&ADD);
            env.insert(key.to_owned(), value.to_owned());
            let error = Invocation::parse(&env).unwrap_err();
            assert_eq!(error.code, code::INVALID_ENVIRONMENT, "{key}={value}");
            assert!(error.msg.contains(key), "{error}");
        }
    }

    #[test]
    fn deletion_needs_no_namespace_and_the_pod_is_read_from_the_arguments() {
        let mut env = env(&ADD);
        env.remove("CNI_NETNS");
        env.insert("CNI_COMMAND".into(), "DEL".into());
        env.insert(
            "CNI_ARGS".into(),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u1;X=".into(),
        );
        let Invocation::Del(target) = Invocation::parse(&env).unwrap() else { panic!("not a deletion") };
        assert_eq!(target.netns, None);
        let pod = target.pod.unwrap();
        assert_eq!((pod.key.to_string().as_str(), pod.uid.as_str()), ("shop/web-0", "u1"));
    }
}
