//! `kakoi-shim`, started by the daemon only; see the library.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(u8::try_from(shim::run()).unwrap_or(1))
}
