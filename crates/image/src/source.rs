//! A place that images come from: a registry, a mirror, a directory of layouts. All give the same two things.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::digest::Digest;
use crate::error::AttemptError;
use crate::layout::Layout;
use crate::manifest::{Descriptor, Platform};
use crate::reference::Reference;
use crate::registry::Repository;
use crate::unpack::ContentError;

/// A fetched document and what it was fetched as.
#[derive(Debug, Clone)]
pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
}

impl Fetched {
    /// The document, if it hashes to its digest.
    pub(crate) fn verified(self) -> Result<Self, AttemptError> {
        let got = self.digest.same_kind_of(&self.bytes);
        if got == self.digest {
            return Ok(self);
        }
        Err(ContentError::Digest { expected: self.digest, got }.into())
    }
}

/// The bytes of a blob as they come; unverified.
pub(crate) type BlobStream = BoxStream<'static, Result<Bytes, AttemptError>>;

/// What kind of document is fetched; registries keep the kinds apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// A manifest or an index.
    Manifest,
    /// The image's configuration.
    Configuration,
}

impl Part {
    /// Its name, for messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Configuration => "configuration",
        }
    }
}

/// A place for one image's repository.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A directory of layouts.
    Layouts {
        /// `oci:/dir`, or the file's path.
        place: String,
        /// Those that may hold the repository.
        layouts: Vec<Layout>,
    },
    /// A registry or a mirror of one.
    Registry(Arc<Repository>),
    /// The layers of a file written by `docker save`, by the digest of their archives.
    Files {
        /// The file's path.
        place: String,
        /// Where each layer is.
        files: HashMap<Digest, PathBuf>,
    },
}

/// A source and what it may be asked for.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) source: Arc<Source>,
    /// What a tag means.
    pub(crate) can_resolve: bool,
    /// Content by digest.
    pub(crate) can_pull: bool,
    /// The registry before this one by the other protocol (HTTP, HTTPS).
    pub(crate) is_other_protocol: bool,
}

impl Candidate {
    /// A source that is asked for everything.
    pub(crate) fn always(source: Arc<Source>) -> Self {
        Self { source, can_resolve: true, can_pull: true, is_other_protocol: false }
    }

    /// Whether this source is worth a try after `before` failed.
    pub(crate) fn follows(&self, before: Option<&AttemptError>) -> bool {
        let is_misunderstood = matches!(before, Some(AttemptError::Broken(_) | AttemptError::Status(_)));
        !self.is_other_protocol || is_misunderstood
    }
}

impl Source {
    /// A directory of layouts, as `oci:/dir` names it.
    pub(crate) fn layouts(dir: &Path, reference: &Reference) -> Arc<Self> {
        let layouts = Layout::of_repository(dir, reference);
        Arc::new(Self::Layouts { place: format!("oci:{}", dir.display()), layouts })
    }

    /// Where it is, for messages.
    pub(crate) fn place(&self) -> String {
        match self {
            Self::Layouts { place, .. } | Self::Files { place, .. } => place.clone(),
            Self::Registry(repository) => repository.place(),
        }
    }

    /// The document that the reference's tag or digest names. Verified if it was asked for by digest.
    pub(crate) async fn manifest(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Fetched, AttemptError> {
        match self {
            Self::Registry(repository) => {
                repository.manifest(reference.identifier(), reference.digest()).await
            }
            Self::Layouts { layouts, .. } => {
                let mut answer = no_layout(reference);
                for layout in layouts {
                    match layout.manifest(reference, platform).await {
                        Ok(fetched) => return Ok(fetched),
                        Err(error) => answer = error,
                    }
                }
                Err(answer)
            }
            Self::Files { .. } => Err(AttemptError::NotFound("this file has no manifests".to_owned())),
        }
    }

    /// What the reference's tag means, when that is cheaper to ask than the document itself.
    pub(crate) async fn head(&self, reference: &Reference) -> Option<Digest> {
        match self {
            Self::Registry(repository) => repository.head(reference).await.ok().flatten(),
            Self::Layouts { .. } | Self::Files { .. } => None,
        }
    }

    /// A small document by its descriptor, verified.
    pub(crate) async fn document(
        &self,
        reference: &Reference,
        wanted: &Descriptor,
        part: Part,
    ) -> Result<Fetched, AttemptError> {
        match self {
            Self::Registry(repository) => match part {
                Part::Manifest => repository.manifest(wanted.digest.as_str(), Some(&wanted.digest)).await,
                Part::Configuration => repository.small_blob(wanted).await,
            },
            Self::Layouts { layouts, .. } => {
                let mut answer = no_layout(reference);
                for layout in layouts {
                    match layout.document(&wanted.digest, &wanted.media_type).await {
                        Ok(fetched) => return Ok(fetched),
                        Err(error) => answer = error,
                    }
                }
                Err(answer)
            }
            Self::Files { .. } => Err(AttemptError::NotFound("this file has no manifests".to_owned())),
        }
    }

    /// The bytes of a blob.
    pub(crate) async fn blob(
        &self,
        reference: &Reference,
        wanted: &Descriptor,
    ) -> Result<BlobStream, AttemptError> {
        match self {
            Self::Registry(repository) => repository.blob(wanted).await,
            Self::Layouts { layouts, .. } => {
                let mut answer = no_layout(reference);
                for layout in layouts {
                    match layout.blob(&wanted.digest).await {
                        Ok(stream) => return Ok(stream),
                        Err(error) => answer = error,
                    }
                }
                Err(answer)
            }
            Self::Files { files, .. } => match files.get(&wanted.digest) {
                Some(path) => crate::layout::stream_file(path).await,
                None => Err(AttemptError::NotFound(wanted.digest.to_string())),
            },
        }
    }
}

fn no_layout(reference: &Reference) -> AttemptError {
    AttemptError::NotFound(format!("no OCI layout for `{}`", reference.name()))
}
