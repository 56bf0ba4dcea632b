//! The kubelet against the embedded API server, with a CNI plugin of shell and real namespaces. The program plays
//! every process itself: the test, the kubelet (which is killed), the monitors and the stand-ins.
mod cases;
#[path = "../../../tests/skip.rs"]
mod skip;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["lab", "run", ..] => weft_lab::kubelet::monitor::main(&args[2..]),
        ["lab", "standin", ..] => weft_lab::standin::main(&args[2..]),
        ["kubelet", dir] => world::kubelet_process(dir.as_ref()),
        // Asked by test runners; the cases share one world and are not run singly.
        ["--list", ..] => ExitCode::SUCCESS,
        _ => test(),
    }
}

fn test() -> ExitCode {
    if !nix::unistd::Uid::effective().is_root() {
        skip::skip("kubelet", "needs root, for namespaces and cgroups");
        return ExitCode::SUCCESS;
    }
    if let Err(error) = world::enter() {
        eprintln!("kubelet: cannot make a world to test in: {error}");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.expect("a runtime").block_on(cases::run_all()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}
