//! Images made for a test, as a layout on disk or in a registry that may lie.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread::JoinHandle;

use image::Digest;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;
use tar::{EntryType, Header};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A layer, uncompressed; names are written as they are given.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, path, "", content)
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, b"")
    }

    fn entry(mut self, kind: EntryType, path: &str, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        let fields = header.as_mut_bytes();
        fields[..path.len()].copy_from_slice(path.as_bytes());
        fields[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// An image of one layer: blobs by digest, and which of them are the manifest and the layer.
#[derive(Clone)]
pub(crate) struct Image {
    blobs: BTreeMap<String, Vec<u8>>,
    manifest: String,
    layer: String,
}

impl Image {
    pub(crate) fn of(layer: Vec<u8>) -> Self {
        let mut blobs = BTreeMap::new();
        let mut keep = |bytes: Vec<u8>| {
            let (digest, size) = (Digest::of(&bytes).to_string(), bytes.len());
            blobs.insert(digest.clone(), bytes);
            (digest, size)
        };
        let (layer, layer_size) = keep(layer);
        let document = json!({
            "architecture": image::Platform::of_this_machine().architecture, "os": "linux",
            "config": {"Cmd": ["/app"]}, "rootfs": {"type": "layers", "diff_ids": [layer]},
        });
        let (config, config_size) = keep(document.to_string().into_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": image::OCI_MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config, "size": config_size},
            "layers": [{"mediaType": LAYER, "digest": layer, "size": layer_size}],
        });
        let (manifest, _) = keep(manifest.to_string().into_bytes());
        Self { blobs, manifest, layer }
    }

    /// The same promise with another layer behind it, of the same length.
    pub(crate) fn with_a_wrong_layer(mut self) -> Self {
        let layer = self.blobs.get_mut(&self.layer).unwrap();
        let last = layer.len() - 1;
        layer[last] ^= 1;
        self
    }

    /// Writes the image as an OCI layout, tagged `latest`.
    pub(crate) fn write_layout(&self, dir: &Path) {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        for (digest, bytes) in &self.blobs {
            let (_, hex) = digest.split_once(':').unwrap();
            fs::write(dir.join("blobs/sha256").join(hex), bytes).unwrap();
        }
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": image::OCI_MANIFEST, "digest": self.manifest, "size": self.blobs[&self.manifest].len(),
            "annotations": {"org.opencontainers.image.ref.name": "latest"},
        }]});
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        fs::write(dir.join("index.json"), index.to_string()).unwrap();
    }
}

/// A registry on `127.0.0.1:5000` of a network namespace, with one image under every name.
pub(crate) struct Registry {
    listener: TcpListener,
    server: Option<JoinHandle<()>>,
}

impl Registry {
    /// Serves in the network namespace of a process.
    pub(crate) fn start(pid: u32, image: Image) -> Self {
        let netns = fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let server = std::thread::spawn(move || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 5000)).unwrap();
            sender.send(listener.try_clone().unwrap()).unwrap();
            for connection in listener.incoming() {
                let Ok(connection) = connection else { break };
                // Who asks may hang up whenever they like.
                let _ = answer(&image, &connection);
            }
        });
        Self { listener: receiver.recv().unwrap(), server: Some(server) }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Wakes the thread that accepts.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn answer(image: &Image, mut connection: &TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(connection).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let mut words = request.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let name = path.rsplit('/').next().unwrap_or_default();
    let digest = if path.contains("/manifests/") { &image.manifest } else { name };
    let (status, body) = match image.blobs.get(digest) {
        Some(bytes) => ("200 OK", bytes.as_slice()),
        None => ("404 Not Found", &b""[..]),
    };
    let kind = if path.contains("/manifests/") { image::OCI_MANIFEST } else { "application/octet-stream" };
    write!(
        connection,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    if method == "GET" {
        connection.write_all(body)?;
    }
    connection.shutdown(Shutdown::Write)
}
