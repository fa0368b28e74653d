//! Hand-made layers, images and stores.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{Digest, ImageStore, ImageStoreConfig};
use serde_json::{Value, json};
use tar::{EntryType, Header};

pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(crate) const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Fails with the reason when the tests do not run as root.
pub(crate) fn need_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests unpack layers with owners and devices: run them as root"
    );
}

/// A tar archive under construction.
pub(crate) struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, path, mode, "", b"", &[])
    }

    pub(crate) fn file(self, path: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, path, 0o644, "", content.as_bytes(), &[])
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, 0o777, target, b"", &[])
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, 0o644, target, b"", &[])
    }

    /// Any entry; the path is written as it is, with nothing checked.
    #[expect(clippy::too_many_arguments, reason = "the fields of a header, in its order")]
    pub(crate) fn entry(
        mut self,
        kind: EntryType,
        path: &str,
        mode: u32,
        link: &str,
        data: &[u8],
        pax: &[(&str, &[u8])],
    ) -> Self {
        if !pax.is_empty() {
            self.0.append_pax_extensions(pax.iter().copied()).unwrap();
        }
        let mut header = Header::new_ustar();
        let fields = header.as_mut_bytes();
        fields[..path.len()].copy_from_slice(path.as_bytes());
        fields[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    /// A header made by the caller, with its checksum set here.
    pub(crate) fn raw(mut self, mut header: Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// An image as blobs and a manifest.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) blobs: BTreeMap<Digest, Vec<u8>>,
    pub(crate) manifest: Vec<u8>,
    pub(crate) layers: Vec<Digest>,
    pub(crate) config: Digest,
}

impl Image {
    /// An image of gzip layers.
    pub(crate) fn of(layers: &[Vec<u8>]) -> Self {
        Self::with(layers, GZIP, gzip, &json!({"Cmd": ["sh"], "Env": ["A=b"]}))
    }

    pub(crate) fn with(
        layers: &[Vec<u8>],
        media_type: &str,
        compress: fn(&[u8]) -> Vec<u8>,
        config: &Value,
    ) -> Self {
        let mut blobs = BTreeMap::new();
        let mut keep = |bytes: Vec<u8>| {
            let digest = Digest::of(&bytes);
            let size = bytes.len();
            blobs.insert(digest.clone(), bytes);
            (digest, size)
        };
        let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let document = json!({
            "architecture": image::Platform::of_this_machine().architecture, "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let (config, config_size) = keep(serde_json::to_vec(&document).unwrap());
        let packed: Vec<_> = layers.iter().map(|layer| keep(compress(layer))).collect();
        let described: Vec<_> = packed
            .iter()
            .map(|(digest, size)| json!({"mediaType": media_type, "digest": digest, "size": size}))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": image::OCI_MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config, "size": config_size},
            "layers": described,
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        blobs.insert(Digest::of(&manifest), manifest.clone());
        Self { blobs, manifest, layers: packed.into_iter().map(|(digest, _)| digest).collect(), config }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Writes the image as an OCI layout with a tag.
    pub(crate) fn write_layout(&self, dir: &Path, tag: &str) {
        std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        for (digest, bytes) in &self.blobs {
            std::fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        }
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": image::OCI_MANIFEST, "digest": self.digest(), "size": self.manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }]});
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        std::fs::write(dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    }
}

/// A store in a temporary directory, with its own `certs.d` and a directory of layouts for docker.io.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Arc<ImageStore>,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(fast())
    }

    pub(crate) fn with(network: image::NetworkConfig) -> Self {
        need_root();
        let dir = tempfile::tempdir().unwrap();
        let mirror = dir.path().join("mirror");
        std::fs::create_dir(&mirror).unwrap();
        let settings = ImageStoreConfig { network, ..config(dir.path()) };
        let node = Self { store: ImageStore::open(settings).unwrap(), dir };
        node.hosts("docker.io", &format!("server = \"oci:{}\"\n", mirror.display()));
        node
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn mirror(&self) -> PathBuf {
        self.path().join("mirror")
    }

    pub(crate) fn hosts(&self, registry: &str, text: &str) {
        let dir = self.path().join("certs.d").join(registry);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), text).unwrap();
    }

    /// Puts an image into the mirror and pulls it.
    pub(crate) async fn pull_layers(
        &self,
        name: &str,
        layers: &[Vec<u8>],
    ) -> Result<image::ImageRecord, String> {
        Image::of(layers).write_layout(&self.mirror().join(name), "latest");
        self.pull(name).await
    }

    pub(crate) async fn pull(&self, name: &str) -> Result<image::ImageRecord, String> {
        self.store.pull(name, None, |_| {}).await.map_err(|error| error.to_string())
    }

    /// What is below `tmp/` and `layers/`.
    pub(crate) fn leftovers(&self) -> (usize, usize) {
        let count = |name: &str| std::fs::read_dir(self.path().join("images").join(name)).unwrap().count();
        (count("tmp"), count("layers"))
    }
}

pub(crate) fn config(dir: &Path) -> ImageStoreConfig {
    let mut config = ImageStoreConfig::new(dir.join("images"), dir.join("certs.d"));
    config.network = fast();
    config
}

/// Limits for tests: long enough for a loaded machine.
pub(crate) fn fast() -> image::NetworkConfig {
    use std::time::Duration;
    let mut network = image::NetworkConfig::direct();
    network.connect_timeout = Duration::from_secs(10);
    network.response_timeout = Duration::from_secs(10);
    network.idle_timeout = Duration::from_secs(10);
    network.backoff = Duration::from_millis(5);
    network
}

/// Limits for tests of silence: each takes this long at least.
pub(crate) fn impatient() -> image::NetworkConfig {
    use std::time::Duration;
    let mut network = fast();
    network.connect_timeout = Duration::from_millis(400);
    network.response_timeout = Duration::from_millis(400);
    network.idle_timeout = Duration::from_millis(400);
    network.retries = 8;
    network
}

/// Opens a store that was closed a moment ago. A process that another test is just starting may hold the lock
/// until its `execve`.
pub(crate) fn reopen(dir: &Path) -> Arc<ImageStore> {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        match ImageStore::open(config(dir)) {
            Err(image::StoreError::InUse { .. }) if std::time::Instant::now() < deadline => {
                std::thread::yield_now();
            }
            other => return other.unwrap(),
        }
    }
}
