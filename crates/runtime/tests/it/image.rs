//! A busybox image as an OCI layout, made from the machine's own static busybox.

use std::path::{Path, PathBuf};

use image::Digest;
use serde_json::{Value, json};
use tar::{EntryType, Header};

const APPLETS: [&str; 24] = [
    "sh", "ls", "cat", "id", "stat", "sleep", "true", "false", "echo", "env", "ps", "kill", "grep", "touch",
    "mkdir", "chown", "tty", "dd", "nc", "ip", "hostname", "mount", "wc", "test",
];

/// Writes the image `busybox` below `mirror`, with a volume at `/data` and a file of an owner that Pods don't have.
pub(crate) fn write(mirror: &Path) {
    write_layout(&mirror.join("busybox"), &[busybox()], &json!({"Volumes": {"/data": {}}}));
}

/// Writes an image with these files of root's, each in a layer of its own above `busybox`'s, and this volume.
pub(crate) fn write_above(mirror: &Path, name: &str, files: &[(String, Vec<u8>)], volume: &str) {
    let layer = |(path, content): &(String, Vec<u8>)| {
        let mut tar = tar::Builder::new(Vec::new());
        entry(&mut tar, EntryType::Regular, path, 0o644, (0, 0), "", content);
        tar.into_inner().unwrap()
    };
    let layers: Vec<Vec<u8>> = std::iter::once(busybox()).chain(files.iter().map(layer)).collect();
    write_layout(&mirror.join(name), &layers, &json!({"Volumes": {volume: {}}}));
}

fn busybox() -> Vec<u8> {
    let program = ["/bin/busybox", "/usr/bin/busybox"].iter().map(PathBuf::from).find(|path| path.exists());
    let program = program.expect("these tests need busybox: apt-get install busybox-static");
    let mut tar = tar::Builder::new(Vec::new());
    for (path, mode) in [("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o700), ("data", 0o750)] {
        entry(&mut tar, EntryType::Directory, path, mode, (0, 0), "", b"");
    }
    entry(&mut tar, EntryType::Regular, "bin/busybox", 0o755, (0, 0), "", &std::fs::read(program).unwrap());
    for applet in APPLETS {
        entry(&mut tar, EntryType::Symlink, &format!("bin/{applet}"), 0o777, (0, 0), "busybox", b"");
    }
    entry(
        &mut tar,
        EntryType::Regular,
        "etc/passwd",
        0o644,
        (0, 0),
        "",
        b"root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/:\n",
    );
    entry(
        &mut tar,
        EntryType::Regular,
        "etc/group",
        0o644,
        (0, 0),
        "",
        b"root:x:0:\nweb:x:1000:\nextra:x:50:web\n",
    );
    entry(&mut tar, EntryType::Regular, "data/seed", 0o640, (1000, 1000), "", b"seeded");
    entry(&mut tar, EntryType::Regular, "root-only", 0o600, (0, 0), "", b"mine");
    entry(&mut tar, EntryType::Regular, "stranger", 0o666, (70_000, 70_000), "", b"strange");
    tar.into_inner().unwrap()
}

#[expect(clippy::too_many_arguments, reason = "they are the fields of a tar header")]
fn entry(
    tar: &mut tar::Builder<Vec<u8>>,
    kind: EntryType,
    path: &str,
    mode: u32,
    (uid, gid): (u64, u64),
    link: &str,
    data: &[u8],
) {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_path(path).unwrap();
    if !link.is_empty() {
        header.set_link_name(link).unwrap();
    }
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(gid);
    header.set_mtime(0);
    header.set_size(data.len() as u64);
    header.set_cksum();
    tar.append(&header, data).unwrap();
}

/// An image of these layers, the lowest first, which runs a shell.
fn write_layout(directory: &Path, layers: &[Vec<u8>], settings: &Value) {
    let mut config = json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]});
    config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let keep = |bytes: &[u8], media_type: &str| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let platform = image::Platform::of_this_machine();
    let document = json!({
        "architecture": platform.architecture, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| Digest::of(layer)).collect::<Vec<_>>()},
    });
    let config = keep(&serde_json::to_vec(&document).unwrap(), "application/vnd.oci.image.config.v1+json");
    let layers: Vec<Value> =
        layers.iter().map(|layer| keep(layer, "application/vnd.oci.image.layer.v1.tar")).collect();
    let manifest =
        json!({"schemaVersion": 2, "mediaType": image::OCI_MANIFEST, "config": config, "layers": layers});
    let mut entry = keep(&serde_json::to_vec(&manifest).unwrap(), image::OCI_MANIFEST);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    std::fs::write(directory.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
}
