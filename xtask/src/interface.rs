//! Generates the messages and services of CRI (`crates/cri/src/gen`) and of CSI (`crates/kubelet/src/csi/gen`) from our
//! `.proto` files, without `protoc`. The result is committed; the test here fails when the two differ.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

/// What is generated for one interface.
#[derive(Debug)]
pub(crate) struct Interface {
    name: &'static str,
    /// Below the workspace; its `.proto` files lie in `proto`.
    package: &'static str,
    protos: &'static [&'static str],
    /// Where the code goes, below the package.
    gen_dir: &'static str,
    /// One file for each protobuf package.
    outputs: &'static [&'static str],
    /// Messages whose `Debug` is written by hand, because it would print credentials.
    secret: &'static [&'static str],
    has_serde: bool,
}

/// The container runtime interface, and our own calls beside it.
pub(crate) const CRI: Interface = Interface {
    name: "CRI",
    package: "crates/cri",
    protos: &["runtime/v1/services.proto", "kakoi/v1/images.proto"],
    gen_dir: "src/gen",
    outputs: &["runtime.v1.rs", "kakoi.v1.rs"],
    secret: &[".runtime.v1.AuthConfig"],
    has_serde: true,
};

/// The container storage interface, as a node agent speaks it, with the registration of plugins.
pub(crate) const CSI: Interface = Interface {
    name: "CSI",
    package: "crates/kubelet",
    protos: &["csi/v1/node.proto", "pluginregistration/api.proto"],
    gen_dir: "src/csi/gen",
    outputs: &["csi.v1.rs", "pluginregistration.rs"],
    secret: &[".csi.v1.NodeStageVolumeRequest", ".csi.v1.NodePublishVolumeRequest"],
    has_serde: false,
};

/// Writes the generated code into the work tree.
///
/// # Errors
/// When a `.proto` file does not compile or a file cannot be written.
pub(crate) fn run(interface: &Interface) -> Result<(), Box<dyn Error>> {
    for (file, code) in generate(interface)? {
        let target = interface.directory().join(interface.gen_dir).join(file);
        fs::write(&target, code).map_err(|error| format!("write {}: {error}", target.display()))?;
    }
    Ok(())
}

impl Interface {
    fn directory(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(self.package)
    }
}

/// The code as it should be, by file name.
fn generate(interface: &Interface) -> Result<Vec<(&'static str, String)>, Box<dyn Error>> {
    let protos = interface.directory().join("proto");
    let descriptors = protox::compile(interface.protos, [&protos])?;
    let directory = tempfile::tempdir()?;
    let mut builder = tonic_prost_build::configure()
        .build_transport(false)
        .generate_default_stubs(true)
        .btree_map(".")
        .skip_debug(interface.secret.iter().copied())
        .out_dir(directory.path());
    if interface.has_serde {
        builder = builder
            .message_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
            .message_attribute(".", "#[serde(default)]");
    }
    builder.compile_fds(descriptors)?;
    let read = |file: &&'static str| {
        let code = fs::read_to_string(directory.path().join(file))?;
        Ok((*file, name_the_stubs(interface.name, &code)))
    };
    interface.outputs.iter().map(read).collect()
}

/// A method that a server leaves out answers with its own name, so that the caller's log says what is missing.
fn name_the_stubs(interface: &str, code: &str) -> String {
    let mut method = "";
    let mut named = String::with_capacity(code.len());
    for line in code.lines() {
        if let Some(rest) = line.trim_start().strip_prefix("async fn ") {
            method = rest.trim_end_matches('(');
        }
        let text = format!("this server does not implement the {interface} method `{method}`");
        named.push_str(&line.replace("Not yet implemented", &text));
        named.push('\n');
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(interface: &Interface) {
        for (file, code) in generate(interface).unwrap() {
            let path = interface.directory().join(interface.gen_dir).join(file);
            let committed = fs::read_to_string(path).unwrap();
            let command = interface.name.to_lowercase();
            assert!(committed == code, "run `cargo run -p xtask -- {command}` and commit the result");
        }
    }

    #[test]
    fn the_committed_cri_code_is_what_the_proto_files_generate() {
        check(&CRI);
    }

    #[test]
    fn the_committed_csi_code_is_what_the_proto_files_generate() {
        check(&CSI);
    }
}
