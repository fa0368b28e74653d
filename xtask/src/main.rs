//! The project's own checks and code generation.

use std::error::Error;
use std::process::ExitCode;

mod cri;

fn main() -> ExitCode {
    match run(std::env::args().nth(1).as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&*error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Option<&str>) -> Result<(), Box<dyn Error>> {
    match command {
        Some("cri") => cri::run(),
        other => Err(format!("unknown command {other:?}; known: cri").into()),
    }
}

#[expect(clippy::print_stderr, reason = "a command line program's own message")]
fn report(error: &dyn Error) {
    eprintln!("xtask: {error}");
}
