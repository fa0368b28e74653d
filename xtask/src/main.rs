//! The project's own checks and code generation.

use std::error::Error;
use std::process::ExitCode;

mod cases;
mod interface;
mod schema;
mod tidy;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    match run(words.next().as_deref(), words.next().as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&*error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Option<&str>, option: Option<&str>) -> Result<(), Box<dyn Error>> {
    match command {
        Some("cri") => interface::run(&interface::CRI),
        Some("csi") => interface::run(&interface::CSI),
        Some("schema") => Ok(schema::run(option == Some("--check"))?),
        Some("tidy") => tidy::run(),
        other => Err(format!("unknown command {other:?}; known: cri, csi, schema, tidy").into()),
    }
}

#[expect(clippy::print_stderr, reason = "a command line program's own message")]
fn report(error: &dyn Error) {
    eprintln!("xtask: {error}");
}
