//! The fields of `KubeletConfiguration` that say when Pods are evicted. A signal that is not known and a soft threshold
//! without its grace period are refused.

use std::collections::BTreeMap;
use std::time::Duration;

use kubelet::{EvictionSettings, Signal, SoftThreshold, Threshold};
use serde::Deserialize;

use crate::duration;

/// The fields' names.
pub(super) const NAMES: &[&str] = &[
    "evictionHard",
    "evictionSoft",
    "evictionSoftGracePeriod",
    "evictionMaxPodGracePeriod",
    "evictionMinimumReclaim",
    "evictionPressureTransitionPeriod",
];

/// The fields as they are written.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Fields {
    #[serde(rename = "evictionHard", default)]
    hard: BTreeMap<String, String>,
    #[serde(rename = "evictionSoft", default)]
    soft: BTreeMap<String, String>,
    #[serde(rename = "evictionSoftGracePeriod", default)]
    soft_grace_period: BTreeMap<String, String>,
    #[serde(rename = "evictionMaxPodGracePeriod", default)]
    max_pod_grace_period: u32,
    #[serde(rename = "evictionMinimumReclaim", default)]
    minimum_reclaim: BTreeMap<String, String>,
    #[serde(
        rename = "evictionPressureTransitionPeriod",
        default,
        deserialize_with = "duration::deserialize"
    )]
    transition_period: Option<Duration>,
}

/// A field that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EvictionError {
    #[error(
        "{field}[{signal}]: {value:?} is neither an amount such as `100Mi` nor a percentage, or the signal is not known"
    )]
    Threshold { field: &'static str, signal: String, value: String },
    #[error("evictionSoftGracePeriod[{signal}]: {cause}")]
    Grace { signal: String, cause: String },
    #[error("grace period must be specified for the soft eviction threshold {0} (evictionSoftGracePeriod)")]
    NoGrace(String),
    #[error("evictionSoftGracePeriod[{0}] is of no use: evictionSoft has no such threshold")]
    NoThreshold(String),
}

impl Fields {
    /// What they say.
    pub(super) fn settings(&self) -> Result<EvictionSettings, EvictionError> {
        let mut settings = EvictionSettings {
            minimum_reclaim: thresholds("evictionMinimumReclaim", &self.minimum_reclaim)?
                .map(|(signal, _, reclaim)| (signal, reclaim))
                .collect(),
            max_pod_grace: Duration::from_secs(self.max_pod_grace_period.into()),
            ..EvictionSettings::default()
        };
        if let Some(transition) = self.transition_period.filter(|time| !time.is_zero()) {
            settings.transition = transition;
        }
        for (signal, _, threshold) in thresholds("evictionHard", &self.hard)? {
            settings.hard.set(signal, threshold);
        }
        for (signal, name, threshold) in thresholds("evictionSoft", &self.soft)? {
            let grace = self.soft_grace_period.get(name);
            let grace = grace.ok_or_else(|| EvictionError::NoGrace(name.to_owned()))?;
            let grace = duration::parse(grace)
                .map_err(|cause| EvictionError::Grace { signal: name.to_owned(), cause })?;
            settings.soft.insert(signal, SoftThreshold { threshold, grace });
        }
        let is_alone = |name: &&String| !self.soft.contains_key(*name);
        match self.soft_grace_period.keys().find(is_alone) {
            Some(name) => Err(EvictionError::NoThreshold(name.clone())),
            None => Ok(settings),
        }
    }
}

/// The thresholds of one field. Those of the image filesystem are left out: images lie on the node's own here.
fn thresholds<'a>(
    field: &'static str,
    texts: &'a BTreeMap<String, String>,
) -> Result<impl Iterator<Item = (Signal, &'a str, Threshold)>, EvictionError> {
    let is_other = |name: &str| name.starts_with("imagefs.") || name.starts_with("containerfs.");
    let parsed = texts.iter().filter(|(name, _)| !is_other(name)).map(|(name, value)| {
        let found = Signal::named(name).zip(Threshold::parse(value));
        let wrong = || EvictionError::Threshold { field, signal: name.clone(), value: value.clone() };
        found.map(|(signal, threshold)| (signal, name.as_str(), threshold)).ok_or_else(wrong)
    });
    Ok(parsed.collect::<Result<Vec<_>, _>>()?.into_iter())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn settings(fields: Value) -> Result<EvictionSettings, String> {
        let fields: Fields = serde_json::from_value(fields).map_err(|error| error.to_string())?;
        fields.settings().map_err(|error| error.to_string())
    }

    #[test]
    fn soft_thresholds_have_their_grace() {
        let read = settings(json!({"evictionSoft": {"memory.available": "10%", "imagefs.available": "20%"},
            "evictionSoftGracePeriod": {"memory.available": "1m30s", "imagefs.available": "1m"},
            "evictionMaxPodGracePeriod": 60, "evictionMinimumReclaim": {"nodefs.available": "500Mi"},
            "evictionPressureTransitionPeriod": "30s"}))
        .unwrap();
        let soft = SoftThreshold { threshold: Threshold::Percent(10), grace: Duration::from_secs(90) };
        assert_eq!(read.soft, [(Signal::Memory, soft)].into());
        assert_eq!(read.minimum_reclaim, [(Signal::Disk, Threshold::Amount(500 << 20))].into());
        assert_eq!((read.max_pod_grace, read.transition), (Duration::from_mins(1), Duration::from_secs(30)));
        assert_eq!(settings(json!({})).unwrap(), EvictionSettings::default());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_field() {
        for (fields, text) in [
            (json!({"evictionHard": {"memory.availabel": "1Mi"}}), "evictionHard[memory.availabel]"),
            (
                json!({"evictionSoft": {"memory.available": "much"}}),
                "evictionSoft[memory.available]: \"much\"",
            ),
            (
                json!({"evictionSoft": {"pid.available": "5%"}}),
                "grace period must be specified for the soft eviction threshold pid.available",
            ),
            (
                json!({"evictionSoftGracePeriod": {"pid.available": "1m"}}),
                "evictionSoft has no such threshold",
            ),
            (
                json!({"evictionSoft": {"pid.available": "5%"}, "evictionSoftGracePeriod": {"pid.available": "soon"}}),
                "evictionSoftGracePeriod[pid.available]: \"soon\"",
            ),
        ] {
            let refused = settings(fields).unwrap_err();
            assert!(refused.contains(text), "{refused}");
        }
    }
}
