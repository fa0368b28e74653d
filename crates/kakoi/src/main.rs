//! One binary that runs Kubernetes Pods, each in a user namespace of its own.
//!
//! The commands are here; what they compose is in the crates beside this one. See ARCHITECTURE.md.

mod cli;
mod config;
mod ids;
mod instance;
mod output;
mod places;
mod version;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, OutputFormat};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(format!("kakoi: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Box<dyn Error>> {
    match &cli.command {
        Command::Version(output) => Ok(version::print(output.output == OutputFormat::Json)?),
        Command::Userns(query) => Ok(ids::print(query)?),
        Command::WhoOwns(query) => Ok(ids::who_owns(query.id, &query.query)?),
        Command::Up(_) | Command::Down(_) | Command::Runtime(_) | Command::Image(_) => {
            Err("not composed yet".into())
        }
    }
}
