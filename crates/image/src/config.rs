//! An image's configuration: what the container runs with unless the Pod says otherwise.
//! Field names and meanings: OCI image specification, `config.md`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::manifest::or_null;

/// What a container of the image runs with by default. Absent in the image is empty here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageConfig {
    /// `USER`: `uid`, `uid:gid`, or names to be looked up in the image's `/etc/passwd` and `/etc/group`.
    #[serde(deserialize_with = "or_null")]
    pub user: String,
    /// `ENV`, as `NAME=value`.
    #[serde(deserialize_with = "or_null")]
    pub env: Vec<String>,
    /// `ENTRYPOINT`.
    #[serde(deserialize_with = "or_null")]
    pub entrypoint: Vec<String>,
    /// `CMD`.
    #[serde(deserialize_with = "or_null")]
    pub cmd: Vec<String>,
    /// `WORKDIR`.
    #[serde(deserialize_with = "or_null")]
    pub working_dir: String,
    /// `STOPSIGNAL`: `SIGQUIT` or a number.
    #[serde(deserialize_with = "or_null")]
    pub stop_signal: String,
    /// `VOLUME` paths.
    #[serde(with = "set")]
    pub volumes: Vec<String>,
    /// `EXPOSE`, as `80/tcp`.
    #[serde(with = "set")]
    pub exposed_ports: Vec<String>,
    /// `LABEL`.
    #[serde(deserialize_with = "or_null")]
    pub labels: BTreeMap<String, String>,
}

/// The whole configuration document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageDocument {
    /// CPU architecture by Go's names.
    pub architecture: String,
    /// Operating system.
    pub os: String,
    /// When the image was made, RFC 3339; as the image says it.
    #[serde(deserialize_with = "or_null", skip_serializing_if = "String::is_empty")]
    pub created: String,
    /// What containers run with.
    #[serde(deserialize_with = "or_null")]
    pub config: ImageConfig,
    /// The uncompressed layers' digests.
    pub rootfs: RootFs,
}

/// The digests of the layers' uncompressed archives, lowest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// One digest for each layer, lowest first.
    #[serde(deserialize_with = "or_null")]
    pub diff_ids: Vec<Digest>,
}

/// The Go maps with empty values that Docker uses for sets.
mod set {
    use std::collections::BTreeMap;

    use serde::ser::SerializeMap;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(names: &[String], serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(names.len()))?;
        for name in names {
            map.serialize_entry(name, &serde_json::json!({}))?;
        }
        map.end()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
        let map: Option<BTreeMap<String, serde_json::Value>> = Option::deserialize(deserializer)?;
        Ok(map.unwrap_or_default().into_keys().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_docker_configuration_with_nulls_is_read() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"User":"1000:50","Env":["A=b"],"Cmd":null,
            "Entrypoint":["/e"],"Volumes":{"/data":{}},"ExposedPorts":{"80/tcp":{},"443/tcp":{}},"Labels":null,
            "StopSignal":"SIGQUIT","OnBuild":null},"rootfs":{"type":"layers","diff_ids":null},"history":[]}"#;
        let document: ImageDocument = serde_json::from_str(text).unwrap();
        let config = &document.config;
        assert_eq!((config.user.as_str(), config.stop_signal.as_str()), ("1000:50", "SIGQUIT"));
        assert_eq!(config.volumes, ["/data"]);
        assert_eq!(config.exposed_ports, ["443/tcp", "80/tcp"]);
        assert!(config.cmd.is_empty() && config.labels.is_empty());
        let again: ImageDocument = serde_json::from_str(&serde_json::to_string(&document).unwrap()).unwrap();
        assert_eq!(again, document);
    }

    #[test]
    fn an_image_without_a_config_section_has_defaults() {
        let document: ImageDocument = serde_json::from_str(r#"{"os":"linux","config":null}"#).unwrap();
        assert_eq!(document.config, ImageConfig::default());
    }
}
