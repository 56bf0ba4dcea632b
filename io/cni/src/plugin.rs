//! The plugin process: environment and stdin in, result or error on stdout. It decides nothing; the agent does.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use crate::client::{CallError, Patience, call};
use crate::conf::{NetConf, SUPPORTED_VERSIONS, Version, declared_version};
use crate::invocation::{Invocation, Target};
use crate::result::{add_result, compare};
use crate::wire::{self, AttachRequest, CheckRequest, DetachRequest, GcRequest, MAX_BODY};
use crate::{Attachment, CniError, Deletions};

/// Runs one call and returns the exit code. Needs no async runtime and may be called from within one.
pub fn plugin_main(
    env: impl IntoIterator<Item = (String, String)>,
    stdin: impl Read,
    mut stdout: impl Write,
) -> i32 {
    let env: BTreeMap<String, String> = env.into_iter().collect();
    let input = read_input(stdin);
    let outcome = input.as_deref().map_err(Clone::clone).and_then(|input| run(&env, input));
    let version = answer_version(input.as_deref().unwrap_or_default());
    let (output, exit) = match &outcome {
        Ok(Outcome { output: Some(output), .. }) => (format!("{output:#}\n"), 0),
        Ok(Outcome { output: None, .. }) => (String::new(), 0),
        Err(error) => (format!("{:#}\n", error_output(&version, error)), 1),
    };
    match stdout.write_all(output.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => exit,
        Err(_) => {
            // The runtime never learnt of the attachment, so it may never delete it.
            if let Ok(Outcome { undo: Some(undo), .. }) = outcome {
                let _ = delete(&undo.conf, &undo.request);
            }
            1
        }
    }
}

/// The environment of this process.
pub fn process_env() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .map(|(key, value)| (key.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
}

/// Whether a container runtime started this process: it sets the verb and gives no arguments.
pub fn called_as_plugin() -> bool {
    std::env::args_os().len() == 1 && std::env::var_os("CNI_COMMAND").is_some()
}

/// What to print, and how to take it back if that fails.
struct Outcome {
    output: Option<Value>,
    undo: Option<Undo>,
}

struct Undo {
    conf: NetConf,
    request: DetachRequest,
}

impl Outcome {
    fn silent() -> Self {
        Self { output: None, undo: None }
    }
}

/// ADD waits for the pod's policy to be in the kernel; runtimes give it minutes.
const ADD: Patience = Patience { connect: Duration::from_secs(1), total: Duration::from_secs(60) };
/// A deletion that nobody answers is queued, so it need not wait long.
const DEL: Patience = Patience { connect: Duration::ZERO, total: Duration::from_secs(20) };
const CHECK: Patience = Patience { connect: Duration::from_secs(1), total: Duration::from_secs(20) };
const STATUS: Patience = Patience { connect: Duration::ZERO, total: Duration::from_secs(5) };
const GC: Patience = Patience { connect: Duration::from_secs(1), total: Duration::from_secs(60) };

fn run(env: &BTreeMap<String, String>, input: &[u8]) -> Result<Outcome, CniError> {
    let invocation = Invocation::parse(env)?;
    if invocation == Invocation::Version {
        return Ok(Outcome { output: Some(version_output(input)?), undo: None });
    }
    let conf = NetConf::parse(input)?;
    match invocation {
        Invocation::Add(target) => add(conf, target),
        Invocation::Del(target) => delete(&conf, &DetachRequest { owner: target.owner }),
        Invocation::Check(target) => {
            since(Version::V0_4_0, &conf, "CHECK").and_then(|()| check(&conf, target))
        }
        Invocation::Status => since(Version::V1_1_0, &conf, "STATUS").and_then(|()| status(&conf)),
        Invocation::Gc => since(Version::V1_1_0, &conf, "GC").and_then(|()| collect(conf)),
        Invocation::Version => unreachable!("answered above"),
    }
}

fn add(conf: NetConf, target: Target) -> Result<Outcome, CniError> {
    let request = AttachRequest {
        owner: target.owner.clone(),
        network: conf.name.clone(),
        pod: target.pod,
        netns: target.netns.unwrap_or_default(),
    };
    let body = ask(&conf, wire::ADD, &request, ADD).map_err(|error| match error {
        CallError::Unreachable(reason) => CniError::try_later(reason),
        CallError::Refused(error) => error,
    })?;
    let undo = Undo { request: DetachRequest { owner: target.owner }, conf };
    let output = decode(&body)
        .and_then(|attachment| add_result(undo.conf.version, &attachment, undo.conf.prev_result.as_ref()));
    match output {
        Ok(output) => Ok(Outcome { output: Some(output), undo: Some(undo) }),
        Err(error) => {
            // The first error says what is wrong; a failed deletion is queued or repeated by the runtime's own DEL.
            let _ = delete(&undo.conf, &undo.request);
            Err(error)
        }
    }
}

fn delete(conf: &NetConf, request: &DetachRequest) -> Result<Outcome, CniError> {
    let reason = match ask(conf, wire::DEL, request, DEL) {
        Ok(_) => return Ok(Outcome::silent()),
        Err(CallError::Refused(error)) => return Err(error),
        Err(CallError::Unreachable(reason)) => reason,
    };
    let failed = |error: std::io::Error| {
        CniError::io(format!("{reason}; and the deletion of {} cannot be queued", request.owner))
            .with_details(error)
    };
    let Some(queue) = Deletions::beside(&conf.agent_socket).map_err(failed)? else {
        return Ok(Outcome::silent());
    };
    queue.queue(request).map_err(failed)?;
    // An agent that started between the call and the queueing may have read the queue already.
    if ask(conf, wire::DEL, request, Patience { total: Duration::from_secs(1), ..DEL }).is_ok() {
        queue.done(&request.owner).map_err(failed)?;
    }
    Ok(Outcome::silent())
}

fn check(conf: &NetConf, target: Target) -> Result<Outcome, CniError> {
    let previous = conf
        .prev_result
        .as_ref()
        .ok_or_else(|| CniError::invalid_config("prevResult is missing: CHECK compares with it"))?;
    let request = CheckRequest { owner: target.owner, netns: target.netns.unwrap_or_default() };
    let body = ask(conf, wire::CHECK, &request, CHECK).map_err(|error| match error {
        CallError::Unreachable(reason) => CniError::try_later(reason),
        CallError::Refused(error) => error,
    })?;
    compare(previous, &decode(&body)?)?;
    Ok(Outcome::silent())
}

fn status(conf: &NetConf) -> Result<Outcome, CniError> {
    match ask(conf, wire::STATUS, &json!({}), STATUS) {
        Ok(_) => Ok(Outcome::silent()),
        Err(CallError::Unreachable(reason)) => Err(CniError::not_ready(reason)),
        Err(CallError::Refused(error)) => Err(error),
    }
}

fn collect(conf: NetConf) -> Result<Outcome, CniError> {
    let Some(keep) = conf.valid_attachments.clone() else {
        return Err(CniError::invalid_config(
            "cni.dev/valid-attachments is missing: without it GC would delete every attachment",
        ));
    };
    let request = GcRequest { network: conf.name.clone(), keep };
    match ask(&conf, wire::GC, &request, GC) {
        Ok(_) => Ok(Outcome::silent()),
        Err(CallError::Unreachable(reason)) => Err(CniError::try_later(reason)),
        Err(CallError::Refused(error)) => Err(error),
    }
}

fn since(first: Version, conf: &NetConf, verb: &str) -> Result<(), CniError> {
    if conf.version >= first {
        return Ok(());
    }
    Err(CniError::incompatible_version(format!(
        "cniVersion {} has no {verb}; it exists since {first}",
        conf.version
    )))
}

/// On a thread of its own, as a runtime may already run on this one.
fn ask(
    conf: &NetConf,
    path: &str,
    request: &(impl Serialize + Sync),
    patience: Patience,
) -> Result<Bytes, CallError> {
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| CallError::Refused(CniError::io("event loop").with_details(error)))?;
        runtime.block_on(call(&conf.agent_socket, path, request, patience))
    };
    let broken = || CallError::Refused(CniError::failed("the thread that calls the agent ended early"));
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|_| Err(broken())))
}

fn decode(body: &[u8]) -> Result<Attachment, CniError> {
    serde_json::from_slice(body)
        .map_err(|error| CniError::decode("the agent's answer is not understood").with_details(error))
}

fn read_input(stdin: impl Read) -> Result<Vec<u8>, CniError> {
    let mut input = Vec::new();
    stdin
        .take(MAX_BODY as u64 + 1)
        .read_to_end(&mut input)
        .map_err(|error| CniError::io("cannot read stdin").with_details(error))?;
    if input.len() > MAX_BODY {
        return Err(CniError::invalid_config(format!(
            "the network configuration is longer than {MAX_BODY} bytes"
        )));
    }
    Ok(input)
}

fn version_output(input: &[u8]) -> Result<Value, CniError> {
    let version = declared_version(input)?.unwrap_or_else(|| Version::V1_1_0.as_str().to_owned());
    Ok(json!({"cniVersion": version, "supportedVersions": SUPPORTED_VERSIONS}))
}

/// The version errors are written in: the caller's if it is one of ours.
fn answer_version(input: &[u8]) -> String {
    let declared = declared_version(input).ok().flatten();
    declared
        .filter(|text| SUPPORTED_VERSIONS.contains(&text.as_str()))
        .unwrap_or_else(|| Version::V1_1_0.as_str().to_owned())
}

fn error_output(version: &str, error: &CniError) -> Value {
    let mut output = json!({"cniVersion": version, "code": error.code, "msg": error.msg});
    if !error.details.is_empty() {
        output["details"] = error.details.as_str().into();
    }
    output
}
