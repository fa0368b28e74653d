//! One binary that runs Kubernetes Pods, each in a user namespace of its own.
//!
//! The commands are here; what they compose is in the crates beside this one. See ARCHITECTURE.md.

mod agent;
mod cgroup;
mod check;
mod cli;
mod config;
mod control;
mod down;
mod duration;
mod ids;
mod images;
mod instance;
mod log;
mod machine;
mod node;
mod notify;
mod output;
mod owner;
mod places;
mod policy;
mod progress;
mod roles;
mod serve;
mod shutdown;
mod signal;
mod snapshot;
mod up;
mod version;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use cli::{Cli, Command, OutputFormat};
use places::Places;

fn main() -> ExitCode {
    sys::memory::give_back();
    let cli = Cli::parse();
    match run(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        // What was asked is printed, and it is bad news.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            output::note(format!("kakoi: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs a command; `false` when the thing asked turned out badly.
fn run(cli: &Cli) -> Result<bool, Box<dyn Error>> {
    match &cli.command {
        Command::Version(output) => version::print(output.output == OutputFormat::Json)?,
        Command::Userns(query) => ids::print(query)?,
        Command::WhoOwns(query) => owner::who_owns(query)?,
        Command::Policy(policy) => match &policy.command {
            cli::PolicyCommand::Explain(explain) => policy::explain(explain)?,
        },
        Command::Check(query) => return Ok(check::check(query)?),
        command => {
            log::init(cli.log_format);
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(serve_or_ask(command))?;
        }
    }
    Ok(true)
}

/// The commands that wait: for requests, for the kernel, or for the daemon.
async fn serve_or_ask(command: &Command) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Up(up) => Ok(Box::pin(up::up(&places(&up.instance)?, up)).await?),
        Command::Down(down) => {
            let grace = Duration::from_secs(down.grace_period);
            Ok(Box::pin(down::down(&places(&down.instance)?, grace)).await?)
        }
        Command::Apiserver(apiserver) => {
            Ok(Box::pin(control::apiserver(&places(&apiserver.instance)?, apiserver)).await?)
        }
        Command::ControllerManager(role) => Ok(Box::pin(control::controller_manager(role)).await?),
        Command::Scheduler(role) => Ok(Box::pin(control::scheduler(role)).await?),
        Command::Kubelet(kubelet) => Ok(Box::pin(agent::run(&places(&kubelet.instance)?, kubelet)).await?),
        Command::Runtime(runtime) => Ok(Box::pin(serve::serve(&places(&runtime.instance)?, runtime)).await?),
        Command::Image(image) => Ok(Box::pin(images::run(&places(&image.instance)?, &image.command)).await?),
        Command::Snapshot(snapshot) => {
            Ok(Box::pin(snapshot::run(&places(&snapshot.instance)?, &snapshot.command)).await?)
        }
        Command::Version(_)
        | Command::Userns(_)
        | Command::WhoOwns(_)
        | Command::Policy(_)
        | Command::Check(_) => Ok(()),
    }
}

/// The places below the root, made absolute: names are derived from it.
fn places(instance: &cli::Instance) -> Result<Places, std::io::Error> {
    let root = std::path::absolute(&instance.root)?;
    Ok(Places::new(&root.canonicalize().unwrap_or(root)))
}
