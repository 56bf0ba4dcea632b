//! The one program: its verbs and their flags. What each verb does lives in the modules beside this file.

mod agent;
mod apiserver;
mod cli;
mod controller;
mod fabrics;
mod manifests;
mod output;
mod proxy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use output::Format;

/// The network of a Kubernetes cluster as one program.
#[derive(Parser)]
#[command(name = "weft", version, max_term_width = 100)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Weave a cluster on this machine and keep it running until Ctrl-C
    Up(cli::up::Args),
    /// Take a cluster on this machine down, whatever state it is in
    Down(cli::down::Args),
    /// What is in the kernel of every node, and whether it is what was planned
    Status(cli::status::Args),
    /// Live flows with names, verdicts and causes
    Observe(cli::observe::Args),
    /// Why a pod may or may not reach something, step by step
    Why(cli::why::Args),
    /// Questions about policies
    #[command(subcommand)]
    Policy(PolicyVerb),
    /// The settings of names outside the cluster
    #[command(subcommand)]
    Names(cli::names::Verb),
    /// Objects that are legal and probably not what was meant
    Check(cli::check::Args),
    /// Apply manifests to a cluster
    Apply(cli::apply::Args),
    /// The node's control: watches, compiles, applies
    #[command(hide = true)]
    Agent(ConfigFile),
    /// The node's name server
    #[command(hide = true)]
    Proxy(ConfigFile),
    /// The cluster's singleton
    #[command(hide = true)]
    Controller(ConfigFile),
    /// The embedded Kubernetes API
    #[command(hide = true)]
    Apiserver(ConfigFile),
    /// The CNI plugin: reads its request from the environment and stdin
    #[command(hide = true)]
    Cni,
    /// Parts of a cluster on one machine
    #[command(subcommand, hide = true)]
    Lab(LabVerb),
}

#[derive(Subcommand)]
enum PolicyVerb {
    /// Who may reach whom: computed, and with --probe measured through the kernel
    Matrix(cli::matrix::Args),
}

#[derive(Subcommand)]
enum LabVerb {
    /// The node's kubelet
    Kubelet(ConfigFile),
    /// Workload controllers and scheduler
    Controllers(ConfigFile),
    /// Stands in for a container whose image is not run
    Standin {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Starts and watches one container
    Run {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Tries connections from where it runs: targets on stdin, results on stdout, as JSON
    Probe,
    /// Sends a steady stream of HTTP requests from where it runs; the outcome on stdout, as JSON
    Load(cli::load::Args),
    /// Runs a program of this machine in a pod, on a node or on an outside machine of the lab
    Exec(cli::lab::ExecArgs),
}

#[derive(Args)]
struct ConfigFile {
    /// JSON file with the process's settings
    #[arg(long)]
    config: PathBuf,
}

/// Which cluster a verb is about.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// The cluster's name on this machine
    #[arg(long, default_value = fabrics::DEFAULT_NAME)]
    name: String,
    /// Text for people or JSON for programs
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
}

fn main() -> ExitCode {
    if weft_cni::called_as_plugin() {
        return agent::plugin();
    }
    let command = Command::parse();
    if matches!(command.verb, Verb::Cni) {
        return agent::plugin();
    }
    start_log(&command.verb);
    if is_for_people(&command.verb) {
        end_with_reader();
    }
    match run(command.verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weft: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    let ok = |result: anyhow::Result<()>| result.map(|()| ExitCode::SUCCESS);
    // There are dozens of these two: they bring their own, small runtimes.
    match verb {
        Verb::Lab(LabVerb::Standin { args }) => return Ok(weft_lab::standin::main(&args)),
        Verb::Lab(LabVerb::Run { args }) => return Ok(weft_lab::kubelet::monitor::main(&args)),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(hold_back_sigpipe)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match verb {
            Verb::Up(args) => ok(cli::up::run(args).await),
            Verb::Down(args) => ok(cli::down::run(args).await),
            Verb::Status(args) => cli::status::run(args).await,
            Verb::Observe(args) => ok(cli::observe::run(args).await),
            Verb::Why(args) => cli::why::run(args).await,
            Verb::Policy(PolicyVerb::Matrix(args)) => cli::matrix::run(args).await,
            Verb::Names(verb) => cli::names::run(verb),
            Verb::Check(args) => cli::check::run(args).await,
            Verb::Apply(args) => cli::apply::run(args).await,
            Verb::Agent(file) => ok(agent::run(&file.config).await),
            Verb::Proxy(file) => ok(proxy::run(&file.config).await),
            Verb::Controller(file) => ok(controller::run(&file.config).await),
            Verb::Apiserver(file) => ok(apiserver::run(&file.config).await),
            Verb::Lab(LabVerb::Kubelet(file)) => ok(cli::lab::kubelet(&file.config).await),
            Verb::Lab(LabVerb::Controllers(file)) => ok(cli::lab::controllers(&file.config).await),
            Verb::Lab(LabVerb::Probe) => ok(cli::lab::probe().await),
            Verb::Lab(LabVerb::Load(args)) => ok(cli::load::run(args).await),
            Verb::Lab(LabVerb::Exec(args)) => cli::lab::exec(args).await,
            Verb::Cni | Verb::Lab(LabVerb::Standin { .. } | LabVerb::Run { .. }) => {
                unreachable!("handled before the runtime starts")
            }
        }
    })
}

/// Answers on stdout and ends, as opposed to what runs for others.
fn is_for_people(verb: &Verb) -> bool {
    match verb {
        Verb::Status(_)
        | Verb::Observe(_)
        | Verb::Why(_)
        | Verb::Policy(_)
        | Verb::Names(_)
        | Verb::Check(_)
        | Verb::Apply(_)
        | Verb::Down(_) => true,
        // This one has a cluster to take down, whoever reads.
        Verb::Up(_) => false,
        Verb::Agent(_)
        | Verb::Proxy(_)
        | Verb::Controller(_)
        | Verb::Apiserver(_)
        | Verb::Cni
        | Verb::Lab(_) => false,
    }
}

/// A reader that has seen enough, such as `head`, ends the program as it ends any other: Rust starts with SIGPIPE ignored.
fn end_with_reader() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default disposition runs no code of this program.
    let restored = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    restored.expect("SIGPIPE has a default");
}

/// Connections are served by the runtime's threads: a peer that closes one is an error there, and not the end.
fn hold_back_sigpipe() {
    use nix::sys::signal::{SigSet, Signal};
    let mut held = SigSet::empty();
    held.add(Signal::SIGPIPE);
    held.thread_block().expect("a thread may block a signal");
}

/// Daemons log what they do; commands for people only what went wrong. WEFT_LOG overrides (tracing's filter syntax).
fn start_log(verb: &Verb) {
    let daemon = matches!(
        verb,
        Verb::Agent(_) | Verb::Proxy(_) | Verb::Controller(_) | Verb::Apiserver(_) | Verb::Lab(_)
    );
    let filter = tracing_subscriber::EnvFilter::try_from_env("WEFT_LOG").unwrap_or_else(|_| {
        tracing_subscriber::EnvFilter::new(if daemon { "info" } else { "error,kube_client=off" })
    });
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
