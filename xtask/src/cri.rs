//! Generates the CRI messages and services (`crates/cri/src/gen`) from our `.proto` files, without `protoc`.
//! The result is committed; the test here fails when the two differ.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

/// The one file that holds the whole generated package.
const OUTPUT: &str = "runtime.v1.rs";

/// Messages whose `Debug` is written by hand, because it would print credentials.
const SECRET: [&str; 1] = [".runtime.v1.AuthConfig"];

/// Writes the generated code into the work tree.
///
/// # Errors
/// When a `.proto` file does not compile or the file cannot be written.
pub(crate) fn run() -> Result<(), Box<dyn Error>> {
    let target = crate_directory().join("src/gen").join(OUTPUT);
    fs::write(&target, generate()?).map_err(|error| format!("write {}: {error}", target.display()))?;
    Ok(())
}

fn crate_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/cri")
}

/// The code as it should be.
fn generate() -> Result<String, Box<dyn Error>> {
    let protos = crate_directory().join("proto");
    let descriptors = protox::compile(["runtime/v1/services.proto"], [&protos])?;
    let directory = tempfile::tempdir()?;
    tonic_prost_build::configure()
        .build_transport(false)
        .generate_default_stubs(true)
        .btree_map(".")
        .skip_debug(SECRET)
        .message_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".", "#[serde(default)]")
        .out_dir(directory.path())
        .compile_fds(descriptors)?;
    Ok(name_the_stubs(&fs::read_to_string(directory.path().join(OUTPUT))?))
}

/// A method that a server leaves out answers with its own name, so that the caller's log says what is missing.
fn name_the_stubs(code: &str) -> String {
    let mut method = "";
    let mut named = String::with_capacity(code.len());
    for line in code.lines() {
        if let Some(rest) = line.trim_start().strip_prefix("async fn ") {
            method = rest.trim_end_matches('(');
        }
        let text = format!("this server does not implement the CRI method `{method}`");
        named.push_str(&line.replace("Not yet implemented", &text));
        named.push('\n');
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_cri_code_is_what_the_proto_files_generate() {
        let committed = fs::read_to_string(crate_directory().join("src/gen").join(OUTPUT)).unwrap();
        assert!(committed == generate().unwrap(), "run `cargo run -p xtask -- cri` and commit the result");
    }
}
