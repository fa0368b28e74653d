//! The documents of an image: manifest, index, descriptor, platform; OCI's and Docker's schema 2.
//! Tolerant of what registries really send (absent media types, `null` lists), strict about what is verified.

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;

/// The media types asked for when a manifest is fetched, as the `Accept` header has them.
pub(crate) const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*";

/// Most bytes that a manifest, an index or an image configuration may have: 8 MiB. containerd refuses larger ones too.
pub(crate) const MAX_DOCUMENT: u64 = 8 << 20;

/// Media type of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What a document or a blob is, how many bytes it has and what they hash to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The media type; may be empty in old documents.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Digest of the bytes.
    pub digest: Digest,
    /// Number of bytes.
    pub size: u64,
    /// For an entry of an index: which machines it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free annotations; layouts keep the tag in `org.opencontainers.image.ref.name`.
    #[serde(
        default,
        deserialize_with = "or_null",
        skip_serializing_if = "std::collections::BTreeMap::is_empty"
    )]
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// The machines an image runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// CPU architecture by Go's names: `amd64`, `arm64`.
    pub architecture: String,
    /// Operating system: `linux`.
    pub os: String,
    /// CPU variant: `v7`, `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// An image manifest: its configuration and its layers, lowest first.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The image's configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    #[serde(default, deserialize_with = "or_null")]
    pub layers: Vec<Descriptor>,
}

/// An index: one image for several platforms.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// The manifests (or nested indexes).
    #[serde(default, deserialize_with = "or_null")]
    pub manifests: Vec<Descriptor>,
}

/// A fetched document, by what it says it is.
#[derive(Debug, Clone)]
pub(crate) enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several images, one for each platform.
    Index(Index),
}

/// A document that is neither a manifest nor an index that this program knows.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON, or fields are missing.
    #[error("the manifest cannot be read: {0}")]
    Syntax(String),
    /// A well-formed document of another kind.
    #[error(
        "the manifest's media type is `{0}`; kakoi pulls OCI images and Docker images of schema 2 (push the image again with a current tool)"
    )]
    Kind(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    schema_version: u64,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a document. `media_type` is what the transport said; the document's own word counts first.
    ///
    /// # Errors
    /// When the bytes are not JSON, or the document is of another kind (Docker's schema 1, an artifact).
    pub(crate) fn parse(bytes: &[u8], media_type: &str) -> Result<Self, DocumentError> {
        let syntax = |error: serde_json::Error| DocumentError::Syntax(error.to_string());
        let probe: Probe = serde_json::from_slice(bytes).map_err(syntax)?;
        let said = if probe.media_type.is_empty() { media_type } else { &probe.media_type };
        let is_index = matches!(said, OCI_INDEX | DOCKER_LIST);
        let is_manifest = matches!(said, OCI_MANIFEST | DOCKER_MANIFEST);
        match (probe.config.is_some(), probe.manifests.is_some()) {
            // A document that is both could be read as two different images (CVE-2021-41190).
            (true, true) => Err(DocumentError::Syntax("it has both `config` and `manifests`".to_owned())),
            (true, false) if !is_index && probe.schema_version == 2 => {
                serde_json::from_slice(bytes).map(Self::Manifest).map_err(syntax)
            }
            (false, true) if !is_manifest => serde_json::from_slice(bytes).map(Self::Index).map_err(syntax),
            _ if probe.schema_version == 1 => {
                Err(DocumentError::Kind("Docker image manifest, schema 1".to_owned()))
            }
            _ => Err(DocumentError::Kind(said.to_owned())),
        }
    }
}

impl Platform {
    /// The platform of this program: Linux on the CPU that it was compiled for.
    pub fn of_this_machine() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "x86" => ("386", None),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// How well an image for `offered` suits this platform; `None`: it does not run here.
    fn rank(&self, offered: &Self) -> Option<u8> {
        let same = self.os == offered.os && self.architecture == offered.architecture;
        let variant = |platform: &Self| platform.variant.clone().filter(|variant| !variant.is_empty());
        match (variant(self), variant(offered)) {
            _ if !same => None,
            (mine, theirs) if mine == theirs => Some(u8::MAX),
            (_, None) => Some(u8::MAX - 1),
            (Some(mine), Some(theirs)) if generation(&theirs) <= generation(&mine) => {
                Some(generation(&theirs))
            }
            // amd64 without a variant is v1: every machine runs it, and more is not known of this one.
            (None, Some(theirs)) if theirs == "v1" => Some(1),
            _ => None,
        }
    }

    /// The entries of `offered` that run here, the best first.
    pub fn select<'d>(&self, offered: &'d [Descriptor]) -> Vec<&'d Descriptor> {
        let unknown = Self { architecture: "unknown".to_owned(), os: "unknown".to_owned(), variant: None };
        let mut ranked: Vec<_> = offered
            .iter()
            .filter_map(|entry| match &entry.platform {
                Some(platform) if *platform == unknown => None,
                Some(platform) => self.rank(platform).map(|rank| (rank, entry)),
                None => Some((0, entry)),
            })
            .collect();
        ranked.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
        ranked.into_iter().map(|(_, entry)| entry).collect()
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

fn generation(variant: &str) -> u8 {
    variant.trim_start_matches('v').parse().unwrap_or(0)
}

/// `null` as the type's default: Go writes empty lists and maps so.
pub(crate) fn or_null<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(os: &str, architecture: &str, variant: Option<&str>) -> Descriptor {
        Descriptor {
            media_type: OCI_MANIFEST.to_owned(),
            digest: Digest::of(format!("{os}{architecture}{variant:?}").as_bytes()),
            size: 1,
            platform: Some(Platform {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: variant.map(str::to_owned),
            }),
            annotations: std::collections::BTreeMap::new(),
        }
    }

    fn chosen(architecture: &str, variant: Option<&str>, offered: &[Descriptor]) -> Vec<Option<String>> {
        let mine = entry("linux", architecture, variant).platform.unwrap();
        mine.select(offered).into_iter().map(|d| d.platform.clone().and_then(|p| p.variant)).collect()
    }

    #[test]
    fn the_best_variant_that_runs_here_is_chosen() {
        let offered = [
            entry("windows", "amd64", None),
            entry("unknown", "unknown", None),
            entry("linux", "arm", Some("v5")),
            entry("linux", "arm", Some("v7")),
            entry("linux", "arm", Some("v6")),
            entry("linux", "arm64", Some("v8")),
            entry("linux", "amd64", Some("v3")),
            entry("linux", "amd64", None),
        ];
        let v = |text: &str| Some(text.to_owned());
        assert_eq!(chosen("amd64", None, &offered), [None]);
        assert_eq!(chosen("arm", Some("v7"), &offered), [v("v7"), v("v6"), v("v5")]);
        assert_eq!(chosen("arm", Some("v6"), &offered), [v("v6"), v("v5")]);
        assert_eq!(chosen("arm64", Some("v8"), &offered), [v("v8")]);
        assert!(chosen("s390x", None, &offered).is_empty());
    }

    #[test]
    fn documents_are_known_by_their_own_word_first() {
        let digest = Digest::of(b"");
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"c","digest":"{digest}","size":0}},"layers":null}}"#
        );
        assert!(matches!(Document::parse(manifest.as_bytes(), "text/plain"), Ok(Document::Manifest(_))));
        let index = r#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(matches!(Document::parse(index.as_bytes(), OCI_INDEX), Ok(Document::Index(_))));
        assert!(matches!(Document::parse(index.as_bytes(), OCI_MANIFEST), Err(DocumentError::Kind(_))));
        let both = r#"{"schemaVersion":2,"config":{},"manifests":[]}"#;
        assert!(Document::parse(both.as_bytes(), "").unwrap_err().to_string().contains("both"));
        let old = Document::parse(br#"{"schemaVersion":1,"fsLayers":[]}"#, "").unwrap_err();
        assert!(old.to_string().contains("schema 1"), "{old}");
    }
}
