//! The namespace labels that choose a standard, each with a version. A label that makes no sense is refused when it is
//! set; where one is there all the same, `enforce` takes it as `restricted`, `warn` and `audit` as nothing.

use std::fmt;

use serde_json::Value;

use super::{Level, Version};
use crate::access::{Access, metadata};
use crate::validation::{FieldErrors, Path};

/// What stands before `enforce`, `enforce-version`, `audit` … in the labels' names.
pub const PREFIX: &str = "pod-security.kubernetes.io/";

/// A standard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LevelVersion {
    /// How strict.
    pub level: Level,
    /// Of which version.
    pub version: Version,
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.level.as_str(), self.version)
    }
}

/// What a namespace asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    /// Pods that violate it are refused.
    pub enforce: LevelVersion,
    /// Pods that violate it are noted for the operator.
    pub audit: LevelVersion,
    /// Whoever makes Pods that violate it is told.
    pub warn: LevelVersion,
}

impl Modes {
    /// Reads a namespace's labels.
    pub fn of(namespace: &Value) -> Self {
        let labels = metadata(namespace);
        let text = |name: &str| {
            let labels = labels.map("labels")?;
            labels.get(&format!("{PREFIX}{name}"))?.as_str()
        };
        let mode = |name: &str, in_doubt: Level| LevelVersion {
            level: text(name).map_or(Level::Privileged, |text| level(text).unwrap_or(in_doubt)),
            version: text(&format!("{name}-version")).and_then(version).unwrap_or_default(),
        };
        Self {
            enforce: mode("enforce", Level::Restricted),
            audit: mode("audit", Level::Privileged),
            warn: mode("warn", Level::Privileged),
        }
    }
}

fn level(text: &str) -> Option<Level> {
    [Level::Privileged, Level::Baseline, Level::Restricted].into_iter().find(|level| level.as_str() == text)
}

/// `latest`, or `v1.N` without leading zeros.
fn version(text: &str) -> Option<Version> {
    if text == "latest" {
        return Some(Version::Latest);
    }
    let minor = text.strip_prefix("v1.")?;
    let is_plain = minor == "0" || !minor.starts_with('0');
    let is_number = minor.bytes().all(|b| b.is_ascii_digit());
    minor.parse().ok().filter(|_| is_plain && is_number).map(Version::Minor)
}

/// Refuses labels that choose nothing.
pub fn validate_labels(namespace: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let path = Path::new("metadata").child("labels");
    for (key, value) in metadata(namespace).entries("labels") {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        let (is_good, detail) = match name {
            "enforce" | "audit" | "warn" => {
                (level(value).is_some(), "must be one of privileged, baseline, restricted")
            }
            "enforce-version" | "audit-version" | "warn-version" => {
                (version(value).is_some(), "must be \"latest\" or \"v1.x\"")
            }
            _ => (true, ""),
        };
        if !is_good {
            errors.invalid(&path.key(key), value, detail);
        }
    }
    errors
}
