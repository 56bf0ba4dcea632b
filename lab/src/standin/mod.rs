//! The stand-in (`weft lab standin`): answers on a container's ports in place of an image that is not run here,
//! saying which pod answered and which address it saw. The kubelet decides which ports; this only serves them.
mod answers;
mod options;
mod serve;

pub use options::{Options, Run, UsageError};

use std::process::ExitCode;

/// Serves until SIGTERM. `args` are those after `weft lab standin`.
pub fn main(args: &[String]) -> ExitCode {
    let options = match Options::parse(args) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let image = options.image.as_deref().unwrap_or("unknown");
    if options.run == Run::Once {
        println!("image {image} is not run here: init container {} counts as successful", options.container);
        return ExitCode::SUCCESS;
    }
    println!("image {image} is not run here: a stand-in answers for container {}", options.container);
    match serve::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
