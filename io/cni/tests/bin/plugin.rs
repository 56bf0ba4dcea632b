//! The plugin as a process of its own, so that tests can run it as a container runtime does, and kill it.

fn main() {
    std::process::exit(weft_cni::plugin_main(weft_cni::process_env(), std::io::stdin(), std::io::stdout()));
}
