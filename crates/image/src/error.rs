//! Why an image could not be had: what was asked for, where it was tried, what each place said, and what to do.

use std::fmt;

use crate::digest::Digest;
use crate::manifest::DocumentError;
use crate::reference::ReferenceError;
use crate::store::StoreError;
use crate::unpack::{ContentError, UnpackError};

/// What one place answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AttemptError {
    /// It does not have the image. `manifest unknown` is the registries' own word for it.
    #[error("not found: {0}")]
    NotFound(String),
    /// It wants credentials, or others.
    #[error("unauthorized: {0}")]
    Unauthorized(String),
    /// Nobody listens there.
    #[error("connection refused by {0}")]
    ConnectionRefused(String),
    /// No connection for another reason: name, route, proxy.
    #[error("cannot connect to {address}: {cause}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// What the system said.
        cause: String,
    },
    /// The certificates do not fit.
    #[error("TLS: {0}")]
    Tls(String),
    /// It took too long.
    #[error("timeout: {0}")]
    Timeout(String),
    /// Another HTTP status than hoped for.
    #[error("{0}")]
    Status(String),
    /// The connection broke, or what came is not HTTP.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// What came is not what was promised.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The manifest cannot be used.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A file of an OCI layout cannot be read.
    #[error("reading {path}: {cause}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        cause: String,
    },
}

/// One place that was tried, and what it answered.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// `https://registry-1.docker.io`, `oci:/srv/images`.
    pub place: String,
    /// What it answered.
    pub error: AttemptError,
}

/// All places that were tried, in order.
#[derive(Debug, Clone, Default)]
pub struct Attempts(pub Vec<Attempt>);

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no host in hosts.toml may be asked for this (see `capabilities`)");
        }
        for (index, attempt) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", attempt.place, attempt.error)?;
        }
        let remedy = self.remedy();
        if remedy.is_empty() { Ok(()) } else { write!(f, " ({remedy})") }
    }
}

impl Attempts {
    /// The answer that matters: the last place's, which is the registry itself where mirrors come first.
    fn decisive(&self) -> Option<&AttemptError> {
        let last = self.0.last().map(|attempt| &attempt.error);
        let told = self.0.iter().rev().map(|attempt| &attempt.error);
        let is_answer = |error: &&AttemptError| {
            matches!(
                error,
                AttemptError::NotFound(_) | AttemptError::Unauthorized(_) | AttemptError::Content(_)
            )
        };
        match last {
            Some(AttemptError::ConnectionRefused(_) | AttemptError::Unreachable { .. }) => {
                told.into_iter().find(is_answer).or(last)
            }
            other => other,
        }
    }

    fn remedy(&self) -> &'static str {
        match self.decisive() {
            Some(AttemptError::NotFound(_)) => "check the image's name and tag",
            Some(AttemptError::Unauthorized(_)) => {
                "check that the image exists, and give the Pod an `imagePullSecrets` entry for this registry"
            }
            Some(AttemptError::ConnectionRefused(_)) => "is the registry running, and is its port right?",
            Some(AttemptError::Unreachable { .. }) => {
                "check the registry's name and the node's network, DNS and HTTPS_PROXY"
            }
            Some(AttemptError::Tls(_)) => "give the registry's CA as `ca` in its hosts.toml",
            Some(AttemptError::Timeout(_)) => "the registry or the network is too slow; it is tried again",
            Some(AttemptError::Content(_)) => {
                "the registry or a mirror serves damaged content; push the image again"
            }
            _ => "",
        }
    }
}

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The text is not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// `hosts.toml` for the registry is wrong.
    #[error(transparent)]
    Hosts(#[from] crate::registry::HostsError),
    /// Nobody gave the manifest.
    #[error("pulling `{reference}`: {attempts}")]
    Manifest {
        /// The image.
        reference: String,
        /// Who was asked.
        attempts: Attempts,
    },
    /// The manifest came, but a part of the image did not.
    #[error("pulling `{reference}`: {part} {digest}: {attempts}")]
    Part {
        /// The image.
        reference: String,
        /// `layer`, `configuration`.
        part: &'static str,
        /// The part's digest.
        digest: Digest,
        /// Who was asked.
        attempts: Attempts,
    },
    /// A layer cannot be unpacked.
    #[error("unpacking `{reference}`: layer {digest}: {source}")]
    Layer {
        /// The image.
        reference: String,
        /// The layer's digest.
        digest: Digest,
        /// Why.
        source: Box<UnpackError>,
    },
    /// The image is for other machines.
    #[error("`{reference}` is not for this machine ({wanted}); it has {offered}")]
    Platform {
        /// The image.
        reference: String,
        /// This machine.
        wanted: String,
        /// What the image has.
        offered: String,
    },
    /// The image's documents contradict each other, or are of an unknown kind.
    #[error("`{reference}` cannot be used: {reason}")]
    Image {
        /// The image.
        reference: String,
        /// Why.
        reason: String,
    },
    /// The store itself.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a caller does with a failed pull: the code it reports and whether it tries again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullErrorKind {
    /// The reference or the node's configuration is wrong.
    Invalid,
    /// No such image.
    NotFound,
    /// Credentials are missing or wrong.
    Unauthorized,
    /// The registry cannot be reached or is too slow.
    Unavailable,
    /// What came is not what was promised, or not allowed.
    Corrupt,
    /// The disk is full.
    NoSpace,
    /// Anything else.
    Other,
}

impl PullError {
    /// What kind of failure this is.
    pub fn kind(&self) -> PullErrorKind {
        match self {
            Self::Reference(_) | Self::Hosts(_) => PullErrorKind::Invalid,
            Self::Manifest { attempts, .. } | Self::Part { attempts, .. } => {
                attempts.decisive().map_or(PullErrorKind::Invalid, AttemptError::kind)
            }
            Self::Layer { source, .. } => match **source {
                UnpackError::NoSpace { .. } => PullErrorKind::NoSpace,
                UnpackError::Disk { .. } => PullErrorKind::Other,
                _ => PullErrorKind::Corrupt,
            },
            Self::Image { .. } => PullErrorKind::Corrupt,
            Self::Platform { .. } => PullErrorKind::NotFound,
            Self::Store(error) if error.is_no_space() => PullErrorKind::NoSpace,
            Self::Store(_) => PullErrorKind::Other,
        }
    }
}

impl AttemptError {
    fn kind(&self) -> PullErrorKind {
        match self {
            Self::NotFound(_) => PullErrorKind::NotFound,
            Self::Unauthorized(_) => PullErrorKind::Unauthorized,
            Self::Content(_) | Self::Document(_) => PullErrorKind::Corrupt,
            Self::File { .. } => PullErrorKind::Other,
            _ => PullErrorKind::Unavailable,
        }
    }
}

/// Why a file could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("loading `{path}`: {cause}")]
    Read {
        /// The file or directory.
        path: String,
        /// What the system said.
        cause: String,
    },
    /// It is neither kind of archive.
    #[error(
        "`{path}` holds no image: it has neither `index.json` (OCI layout) nor `manifest.json` (`docker save`)"
    )]
    Unknown {
        /// The file or directory.
        path: String,
    },
    /// An image in it has no name.
    #[error("`{path}`: the image has no name in it; give one (`kakoi image load FILE --name NAME`)")]
    NoName {
        /// The file or directory.
        path: String,
    },
    /// One of its images cannot be taken.
    #[error("loading `{path}`: {source}")]
    Image {
        /// The file or directory.
        path: String,
        /// Why.
        source: Box<PullError>,
    },
}
