//! Builds the shim and puts it where `include_bytes!(concat!(env!("OUT_DIR"), "/kakoi-shim"))` finds it.

#[allow(unreachable_pub, reason = "the module is shared with the shim's tests")]
#[path = "../shim/embed.rs"]
mod embed;

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let variable = |name: &str| std::env::var(name).map_err(|error| format!("{name}: {error}"));
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = manifest.ancestors().nth(2).ok_or("no workspace above the crate")?;
    for source in embed::SOURCES {
        println!("cargo:rerun-if-changed={}", workspace.join(source).display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(variable("OUT_DIR")?);
    // target/<profile>/build/<crate>/out: one directory for every profile, so that it is built once.
    let shared = out.ancestors().nth(4).unwrap_or(&out).join("embedded-shim");
    let program = embed::build(Path::new(&variable("CARGO")?), workspace, &variable("TARGET")?, &shared)?;
    std::fs::copy(program, out.join("kakoi-shim"))?;
    Ok(())
}
