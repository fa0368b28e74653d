//! Packs root file systems (tar archives) as OCI images, the same bytes every time, and pushes them to a plain
//! HTTP registry. `hack/images/build.sh` uses it, so that no other image tool is needed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use flate2::{Compression, GzBuilder};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use image::{
    Descriptor, Digest, Hasher, ImageConfig, ImageDocument, Index, Manifest, OCI_INDEX, OCI_MANIFEST,
    Platform, RootFs,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

#[derive(Parser)]
#[command(about = "Packs tar archives as an OCI image layout, reproducibly")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes an OCI layout.
    Layout(Box<LayoutArgs>),
    /// Copies an OCI layout's images to a plain HTTP registry.
    Push(PushArgs),
}

#[derive(Args)]
struct LayoutArgs {
    /// Directory to write.
    #[arg(long)]
    out: PathBuf,
    /// The image's tag.
    #[arg(long, default_value = "latest")]
    tag: String,
    /// A layer's tar archive; may be repeated, lowest first.
    #[arg(long = "layer", required = true)]
    layers: Vec<PathBuf>,
    /// One word of the entrypoint; may be repeated.
    #[arg(long, allow_hyphen_values = true)]
    entrypoint: Vec<String>,
    /// One word of the command; may be repeated.
    #[arg(long, allow_hyphen_values = true)]
    cmd: Vec<String>,
    /// An environment variable, `NAME=value`; may be repeated.
    #[arg(long)]
    env: Vec<String>,
    /// An exposed port, `80/tcp`; may be repeated.
    #[arg(long)]
    expose: Vec<String>,
    /// A volume; may be repeated.
    #[arg(long)]
    volume: Vec<String>,
    /// A label, `name=value`; may be repeated.
    #[arg(long)]
    label: Vec<String>,
    /// The user.
    #[arg(long, default_value = "")]
    user: String,
    /// The working directory.
    #[arg(long, default_value = "")]
    workdir: String,
    /// The signal that stops a container.
    #[arg(long, default_value = "")]
    stop_signal: String,
}

#[derive(Args)]
struct PushArgs {
    /// The OCI layout.
    #[arg(long)]
    from: PathBuf,
    /// Where to: `127.0.0.1:5000/library/nginx`. All tags of the layout are pushed.
    to: String,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    match Cli::parse().command {
        Command::Layout(args) => write_layout(&args),
        Command::Push(args) => push(&args).await,
    }
}

fn write_layout(args: &LayoutArgs) -> Result<(), Failure> {
    let blobs = args.out.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    for archive in &args.layers {
        let (descriptor, diff_id) = write_layer(&blobs, archive)?;
        layers.push(descriptor);
        diff_ids.push(diff_id);
    }
    let platform = Platform::of_this_machine();
    let document = ImageDocument {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        created: "1970-01-01T00:00:00Z".to_owned(),
        config: config(args)?,
        rootfs: RootFs { kind: "layers".to_owned(), diff_ids },
    };
    let config = write_blob(&blobs, CONFIG, &serde_json::to_vec(&document)?)?;
    let manifest = with_kind(&Manifest { config, layers }, OCI_MANIFEST)?;
    let mut entry = write_blob(&blobs, OCI_MANIFEST, &manifest)?;
    entry.platform = Some(platform);
    entry.annotations.insert("org.opencontainers.image.ref.name".to_owned(), args.tag.clone());
    let index = with_kind(&Index { manifests: vec![entry] }, OCI_INDEX)?;
    fs::write(args.out.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    fs::write(args.out.join("index.json"), index)?;
    Ok(())
}

fn config(args: &LayoutArgs) -> Result<ImageConfig, Failure> {
    let label = |text: &String| -> Result<_, Failure> {
        let (name, value) =
            text.split_once('=').ok_or_else(|| format!("label `{text}` is not name=value"))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    Ok(ImageConfig {
        user: args.user.clone(),
        env: args.env.clone(),
        entrypoint: args.entrypoint.clone(),
        cmd: args.cmd.clone(),
        working_dir: args.workdir.clone(),
        stop_signal: args.stop_signal.clone(),
        volumes: args.volume.clone(),
        exposed_ports: args.expose.clone(),
        labels: args.label.iter().map(label).collect::<Result<_, _>>()?,
    })
}

/// A document with its `schemaVersion` and `mediaType` in front.
fn with_kind(document: &impl serde::Serialize, kind: &str) -> Result<Vec<u8>, Failure> {
    let mut whole = serde_json::Map::new();
    whole.insert("schemaVersion".to_owned(), 2.into());
    whole.insert("mediaType".to_owned(), kind.into());
    if let serde_json::Value::Object(fields) = serde_json::to_value(document)? {
        whole.extend(fields);
    }
    Ok(serde_json::to_vec(&whole)?)
}

/// Compresses an archive into the layout; the digests of both forms are computed on the way.
fn write_layer(blobs: &Path, archive: &Path) -> Result<(Descriptor, Digest), Failure> {
    let draft = blobs.join("draft");
    let mut input = BufReader::new(File::open(archive)?);
    let hashed = Hashed { output: File::create(&draft)?, hasher: Hasher::sha256(), size: 0 };
    // No name and no time in the header: the same archive gives the same bytes.
    let mut gzip = GzBuilder::new().mtime(0).write(hashed, Compression::new(6));
    let mut plain = Hasher::sha256();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = input.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        plain.update(bytes);
        gzip.write_all(bytes)?;
    }
    let hashed = gzip.finish()?;
    let digest = hashed.hasher.finish();
    fs::rename(&draft, blobs.join(digest.hex()))?;
    Ok((descriptor(LAYER, digest, hashed.size), plain.finish()))
}

fn write_blob(blobs: &Path, media_type: &str, bytes: &[u8]) -> Result<Descriptor, Failure> {
    let digest = Digest::of(bytes);
    fs::write(blobs.join(digest.hex()), bytes)?;
    Ok(descriptor(media_type, digest, bytes.len() as u64))
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        annotations: BTreeMap::new(),
    }
}

struct Hashed {
    output: File,
    hasher: Hasher,
    size: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.output.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

async fn push(args: &PushArgs) -> Result<(), Failure> {
    let (host, repository) = args.to.split_once('/').ok_or("write HOST:PORT/REPOSITORY")?;
    let base = format!("http://{host}/v2/{repository}");
    let index: Index = serde_json::from_slice(&fs::read(args.from.join("index.json"))?)?;
    for entry in &index.manifests {
        let manifest_bytes = fs::read(blob_path(&args.from, &entry.digest))?;
        let manifest: Manifest = serde_json::from_slice(&manifest_bytes)?;
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            push_blob(&base, &args.from, blob).await?;
        }
        let tag = entry.annotations.get("org.opencontainers.image.ref.name").map_or("latest", String::as_str);
        let url = format!("{base}/manifests/{tag}");
        send("PUT", &url, Some(OCI_MANIFEST), manifest_bytes).await?;
    }
    Ok(())
}

fn blob_path(layout: &Path, digest: &Digest) -> PathBuf {
    layout.join("blobs").join(digest.algorithm()).join(digest.hex())
}

async fn push_blob(base: &str, layout: &Path, blob: &Descriptor) -> Result<(), Failure> {
    let location = send("POST", &format!("{base}/blobs/uploads/"), None, Vec::new()).await?;
    let origin = base.split("/v2/").next().unwrap_or_default();
    let location = if location.starts_with('/') { format!("{origin}{location}") } else { location };
    let separator = if location.contains('?') { '&' } else { '?' };
    let url = format!("{location}{separator}digest={}", blob.digest);
    send("PUT", &url, Some("application/octet-stream"), fs::read(blob_path(layout, &blob.digest))?).await?;
    Ok(())
}

/// Sends one request and gives the answer's `Location`.
async fn send(method: &str, url: &str, kind: Option<&str>, body: Vec<u8>) -> Result<String, Failure> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<bytes::Bytes>>();
    let mut request = http::Request::builder().method(method).uri(url);
    if let Some(kind) = kind {
        request = request.header("content-type", kind);
    }
    let answer = client.request(request.body(Full::new(body.into()))?).await?;
    let (head, body) = answer.into_parts();
    if !head.status.is_success() {
        let text = body.collect().await?.to_bytes();
        return Err(format!("{method} {url}: {} {}", head.status, String::from_utf8_lossy(&text)).into());
    }
    let location = head.headers.get("location").and_then(|value| value.to_str().ok());
    Ok(location.unwrap_or_default().to_owned())
}
