//! Tells the program what it was built from, for `kakoi version`.

use std::process::Command;

fn main() {
    let git = |arguments: &[&str]| said("git", arguments).unwrap_or_else(|| "unknown".to_owned());
    let commit = git(&["rev-parse", "HEAD"]);
    let date = std::env::var("SOURCE_DATE_EPOCH").ok().map_or_else(
        || said("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
        |epoch| said("date", &["-u", "-d", &format!("@{epoch}"), "+%Y-%m-%dT%H:%M:%SZ"]),
    );
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let compiler = said(&rustc, &["--version"]).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=KAKOI_COMMIT={commit}");
    println!("cargo::rustc-env=KAKOI_DATE={}", date.unwrap_or_else(|| "unknown".to_owned()));
    println!("cargo::rustc-env=KAKOI_COMPILER={compiler}");
    if let Some(head) = said("git", &["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={head}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
}

fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
