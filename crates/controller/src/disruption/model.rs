//! Pod disruption budgets and Pods, as far as the controller of budgets reads them.

use std::collections::BTreeMap;

use api::selector::LabelSelector;
use informer::Meta;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::metadata::{Metadata, OwnerReference};

/// A `PodDisruptionBudget`.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "WholeBudget")]
pub(crate) struct Budget {
    pub(crate) key: Meta,
    pub(crate) generation: i64,
    pub(crate) is_deleted: bool,
    pub(crate) spec: Spec,
    pub(crate) status: Status,
}

#[derive(Deserialize)]
struct WholeBudget {
    metadata: BudgetMetadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct BudgetMetadata {
    #[serde(flatten)]
    metadata: Metadata,
    #[serde(default)]
    generation: i64,
}

impl From<WholeBudget> for Budget {
    fn from(whole: WholeBudget) -> Self {
        let BudgetMetadata { metadata, generation } = whole.metadata;
        let is_deleted = metadata.is_deleted();
        Self { key: metadata.key(), generation, is_deleted, spec: whole.spec, status: whole.status }
    }
}

/// What a budget allows.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Spec {
    /// `None` selects nothing, an empty one all Pods of the namespace.
    #[serde(deserialize_with = "selector")]
    pub(crate) selector: Option<LabelSelector>,
    pub(crate) min_available: Option<Amount>,
    pub(crate) max_unavailable: Option<Amount>,
}

fn selector<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<LabelSelector>, D::Error> {
    let object = Option::<Value>::deserialize(deserializer)?;
    Ok(LabelSelector::from_object(object.as_ref()))
}

/// A number of Pods, or a share of those that there should be.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Amount {
    Number(i64),
    /// Such as `30%`.
    Share(String),
}

impl Amount {
    /// Of `whole` Pods, rounded up; what is no percentage counts as 0, as the API has refused it.
    pub(crate) fn of(&self, whole: i64) -> i64 {
        match self {
            Self::Number(number) => *number,
            Self::Share(text) => {
                let percent: i64 =
                    text.strip_suffix('%').and_then(|text| text.parse().ok()).unwrap_or_default();
                (percent.saturating_mul(whole) + 99).div_euclid(100)
            }
        }
    }

    pub(crate) const fn is_share(&self) -> bool {
        matches!(self, Self::Share(_))
    }
}

/// The status of a budget; its conditions as they are written.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    pub(crate) observed_generation: i64,
    /// Pods that were evicted and are not seen to end yet, with the time of the eviction.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) disrupted_pods: BTreeMap<String, String>,
    pub(crate) disruptions_allowed: i64,
    pub(crate) current_healthy: i64,
    pub(crate) desired_healthy: i64,
    pub(crate) expected_pods: i64,
    pub(crate) conditions: Vec<Condition>,
}

/// A condition of a budget.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) observed_generation: i64,
    pub(crate) last_transition_time: String,
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// A Pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "WholePod")]
pub(crate) struct Pod {
    pub(crate) key: Meta,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) is_deleted: bool,
    pub(crate) is_ready: bool,
    /// What keeps its number.
    pub(crate) controller: Option<OwnerReference>,
}

#[derive(Deserialize)]
struct WholePod {
    metadata: PodMetadata,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Deserialize)]
struct PodMetadata {
    #[serde(flatten)]
    metadata: Metadata,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    conditions: Vec<PodCondition>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl From<WholePod> for Pod {
    fn from(whole: WholePod) -> Self {
        let PodMetadata { metadata, labels } = whole.metadata;
        let is_true = |condition: &PodCondition| condition.kind == "Ready" && condition.status == "True";
        let mut owners = metadata.owner_references.iter();
        Self {
            key: metadata.key(),
            labels,
            is_deleted: metadata.is_deleted(),
            is_ready: whole.status.conditions.iter().any(is_true),
            controller: owners.find(|owner| owner.controller == Some(true)).cloned(),
        }
    }
}

impl informer::Object for Budget {
    fn meta(&self) -> &Meta {
        &self.key
    }
}

impl informer::Object for Pod {
    fn meta(&self) -> &Meta {
        &self.key
    }
}
