//! `weft down`: nothing of a cluster stays behind.

use anyhow::{Result, bail};
use weft_lab::fabric::{self, Spec};

use crate::fabrics::DEFAULT_NAME;
use crate::output::mark;

#[derive(clap::Args)]
pub struct Args {
    /// The cluster's name
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
}

pub async fn run(args: Args) -> Result<()> {
    let spec = Spec { name: args.name, ..Spec::default() };
    let (name, state_root, netns_root) = (spec.name, spec.state_root, spec.netns_root);
    let left = tokio::task::spawn_blocking({
        let name = name.clone();
        move || {
            fabric::down(&name, &state_root, &netns_root)?;
            Ok::<_, fabric::Error>(fabric::leftovers(&name, &state_root, &netns_root))
        }
    })
    .await??;
    if !left.is_empty() {
        bail!("{name} is not wholly gone:\n  {}", left.join("\n  "));
    }
    println!("{} {name} is down; nothing of it is left", mark(true));
    Ok(())
}
