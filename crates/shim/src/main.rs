//! `kakoi-shim`, started by the daemon only; see the library.

fn main() -> std::process::ExitCode {
    if std::env::args_os().nth(1).is_some_and(|role| role == shim::HOLD) {
        shim::hold();
    }
    std::process::ExitCode::from(u8::try_from(shim::run()).unwrap_or(1))
}
