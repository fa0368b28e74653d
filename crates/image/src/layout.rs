//! OCI image layouts in directories: `oci:/dir` in `hosts.toml`, and what `load` reads.
//! Source: OCI image specification, `image-layout.md`.

use std::io;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use tokio::io::AsyncReadExt;

use crate::digest::Digest;
use crate::error::AttemptError;
use crate::manifest::{Descriptor, Index, MAX_DOCUMENT, Platform};
use crate::reference::Reference;
use crate::source::{BlobStream, Fetched};

const TAG: &str = "org.opencontainers.image.ref.name";
/// containerd's full name of an exported image.
const FULL_NAME: &str = "io.containerd.image.name";

/// A directory that holds one OCI layout.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    dir: PathBuf,
}

impl Layout {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The layouts of a directory of layouts that may hold the reference's repository, nearest name first:
    /// `docker.io/library/nginx`, `library/nginx`, `nginx`.
    pub(crate) fn of_repository(dir: &Path, reference: &Reference) -> Vec<Self> {
        let repository = reference.repository();
        let short = repository.strip_prefix("library/");
        let names = [Some(reference.name()), Some(repository.to_owned()), short.map(str::to_owned)];
        let dirs = names.into_iter().flatten().map(|name| dir.join(name));
        dirs.filter(|dir| dir.join("index.json").is_file()).map(Self::new).collect()
    }

    /// The entries of `index.json`.
    pub(crate) async fn index(&self) -> Result<Index, AttemptError> {
        let path = self.dir.join("index.json");
        let bytes = read_document(&path).await.map_err(|error| unreadable(&path, &error))?;
        serde_json::from_slice(&bytes).map_err(|error| unreadable(&path, &io::Error::other(error)))
    }

    /// The document that a reference's tag or digest names.
    pub(crate) async fn manifest(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Fetched, AttemptError> {
        if let Some(digest) = reference.digest() {
            return self.document(digest, "").await;
        }
        let index = self.index().await?;
        let tag = reference.tag().unwrap_or_default();
        let named: Vec<Descriptor> =
            index.manifests.iter().filter(|entry| is_named(entry, reference, tag)).cloned().collect();
        let chosen = platform.select(&named).first().copied().cloned();
        let is_only = index.manifests.len() == 1 && tag == "latest";
        let chosen = chosen.or_else(|| {
            index.manifests.first().filter(|entry| is_only && !entry.annotations.contains_key(TAG)).cloned()
        });
        let chosen = chosen.ok_or_else(|| {
            let tags: Vec<_> =
                index.manifests.iter().filter_map(|entry| entry.annotations.get(TAG)).cloned().collect();
            AttemptError::NotFound(format!(
                "{} has no tag `{tag}`, only: {}",
                self.dir.display(),
                tags.join(", ")
            ))
        })?;
        self.document(&chosen.digest, &chosen.media_type).await
    }

    /// A document by digest, verified.
    pub(crate) async fn document(&self, digest: &Digest, media_type: &str) -> Result<Fetched, AttemptError> {
        let path = self.blob_path(digest);
        let bytes = read_document(&path).await.map_err(|error| self.missing(digest, &path, &error))?;
        let fetched =
            Fetched { bytes: bytes.into(), media_type: media_type.to_owned(), digest: digest.clone() };
        fetched.verified()
    }

    /// The bytes of a blob.
    pub(crate) async fn blob(&self, digest: &Digest) -> Result<BlobStream, AttemptError> {
        let path = self.blob_path(digest);
        if !path.is_file() {
            return Err(self.missing(digest, &path, &io::ErrorKind::NotFound.into()));
        }
        stream_file(&path).await
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    fn missing(&self, digest: &Digest, path: &Path, error: &io::Error) -> AttemptError {
        match error.kind() {
            io::ErrorKind::NotFound => {
                AttemptError::NotFound(format!("{} has no {digest}", self.dir.display()))
            }
            _ => unreadable(path, error),
        }
    }
}

/// The full names that an entry of `index.json` gives its image.
pub(crate) fn names_of(entry: &Descriptor) -> Vec<Reference> {
    let full = entry.annotations.get(FULL_NAME);
    let tag = entry.annotations.get(TAG).filter(|name| name.contains(['/', ':']));
    full.or(tag).and_then(|name| name.parse().ok()).into_iter().collect()
}

/// The tag that an entry of `index.json` has, when it is only a tag.
pub(crate) fn tag_of(entry: &Descriptor) -> Option<&str> {
    entry.annotations.get(TAG).map(String::as_str)
}

fn is_named(entry: &Descriptor, reference: &Reference, tag: &str) -> bool {
    tag_of(entry) == Some(tag) || names_of(entry).iter().any(|name| name == reference)
}

fn unreadable(path: &Path, error: &io::Error) -> AttemptError {
    AttemptError::File { path: path.display().to_string(), cause: error.to_string() }
}

async fn read_document(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(io::Error::other("it is larger than 8 MiB, which no manifest or configuration is"));
    }
    Ok(bytes)
}

/// The bytes of a file, as a blob's stream.
pub(crate) async fn stream_file(path: &Path) -> Result<BlobStream, AttemptError> {
    let path = path.to_owned();
    let file = tokio::fs::File::open(&path).await.map_err(|error| unreadable(&path, &error))?;
    let stream = tokio_util::io::ReaderStream::with_capacity(file, 256 << 10);
    Ok(stream.map(move |chunk| chunk.map_err(|error| unreadable(&path, &error))).boxed())
}
