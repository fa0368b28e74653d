//! Builds `kakoi-shim` as a static program, for `crates/runtime/build.rs` (which embeds it) and for the shim's own tests.
//!
//! The outer cargo holds its target directory's lock while a build script runs, so the inner one gets a directory of
//! its own. `--target` is given even for the host: only then do the flags not reach build scripts and derive macros.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Sources whose change means another program, relative to the workspace.
#[allow(dead_code, reason = "the tests do not need it")]
pub const SOURCES: [&str; 6] = [
    "Cargo.lock",
    "crates/shim/Cargo.toml",
    "crates/shim/embed.rs",
    "crates/shim/src",
    "crates/sys/Cargo.toml",
    "crates/sys/src",
];

/// Builds it below `target_dir` and answers where it is.
pub fn build(cargo: &Path, workspace: &Path, target: &str, target_dir: &Path) -> Result<PathBuf, String> {
    let mut command = Command::new(cargo);
    command.current_dir(workspace);
    command.args([
        "build",
        "--quiet",
        "--offline",
        "--package",
        "shim",
        "--bin",
        "kakoi-shim",
        "--profile",
        "shim",
    ]);
    command.args(["--target", target, "--target-dir"]).arg(target_dir);
    // What the outer cargo (or clippy) set for its own compilations is not for this one.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let is_kept = matches!(name.as_str(), "CARGO_HOME" | "CARGO_NET_OFFLINE")
            || name.starts_with("CARGO_REGISTRIES")
            || name.ends_with("_LINKER");
        let is_cargo =
            name.starts_with("CARGO_") || matches!(name.as_str(), "RUSTC_WORKSPACE_WRAPPER" | "RUSTFLAGS");
        if is_cargo && !is_kept {
            command.env_remove(name);
        }
    }
    command.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    let output = command.output().map_err(|error| format!("cannot run {}: {error}", cargo.display()))?;
    if !output.status.success() {
        return Err(format!("building kakoi-shim failed:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(target_dir.join(target).join("shim/kakoi-shim"))
}
