//! Quotas, and objects as far as they use something.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use api::access::{Access as _, metadata};
use api::kind::{self, Kind};
use api::quota::{self, Facts, Usage};
use informer::Meta;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

/// A `ResourceQuota`.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Value")]
pub(crate) struct Quota {
    pub(crate) key: Meta,
    pub(crate) is_deleted: bool,
    pub(crate) object: Value,
}

impl From<Value> for Quota {
    fn from(object: Value) -> Self {
        let is_deleted = metadata(&object).field("deletionTimestamp").is_some();
        Self { key: Meta::of(&object), is_deleted, object }
    }
}

impl informer::Object for Quota {
    fn meta(&self) -> &Meta {
        &self.key
    }
}

/// A kind of which objects use more than their own number.
pub(crate) trait Using: Clone + Send + 'static {
    /// Its plural in the core group.
    const PLURAL: &'static str;
}

#[derive(Clone, Debug)]
pub(crate) struct Pods;
#[derive(Clone, Debug)]
pub(crate) struct Services;
#[derive(Clone, Debug)]
pub(crate) struct Claims;

impl Using for Pods {
    const PLURAL: &'static str = "pods";
}
impl Using for Services {
    const PLURAL: &'static str = "services";
}
impl Using for Claims {
    const PLURAL: &'static str = "persistentvolumeclaims";
}

/// What one object uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Charge {
    pub(crate) usage: Usage,
    pub(crate) facts: Option<Facts>,
    /// From when on it uses only its number: a Pod whose time to end is over, though nobody has seen it end.
    ends: Option<Timestamp>,
    after: Usage,
}

impl Charge {
    fn of(kind: &Kind, object: &Value) -> Self {
        let ends = quota::must_end(object);
        let of = |now: Timestamp| quota::usage_of(kind, object, now);
        let usage = of(Timestamp::MIN);
        Self {
            usage,
            facts: Facts::of(kind, object),
            ends,
            after: ends.map(|_| of(Timestamp::MAX)).unwrap_or_default(),
        }
    }

    /// What it uses at a time, and how long until it uses something else.
    pub(crate) fn at(&self, now: Timestamp) -> (&Usage, Option<Duration>) {
        match self.ends {
            Some(ends) if now > ends => (&self.after, None),
            Some(ends) => {
                (&self.usage, Some(ends.duration_since(now).unsigned_abs() + Duration::from_millis(1)))
            }
            None => (&self.usage, None),
        }
    }
}

/// An object of such a kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Value", bound = "W: Using")]
pub(crate) struct Counted<W> {
    pub(crate) key: Meta,
    pub(crate) charge: Arc<Charge>,
    which: PhantomData<W>,
}

impl<W: Using> From<Value> for Counted<W> {
    fn from(object: Value) -> Self {
        let kind = kind::find("", "v1", W::PLURAL);
        let charge = kind.map(|kind| Charge::of(kind, &object));
        let nothing = Charge { usage: Usage::new(), facts: None, ends: None, after: Usage::new() };
        Self { key: Meta::of(&object), charge: Arc::new(charge.unwrap_or(nothing)), which: PhantomData }
    }
}

impl<W: Using> informer::Object for Counted<W> {
    fn meta(&self) -> &Meta {
        &self.key
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_that_should_have_ended_uses_its_number_alone() {
        let pod: Counted<Pods> =
            json!({"metadata": {"name": "p", "namespace": "n", "deletionGracePeriodSeconds": 30,
            "deletionTimestamp": "2026-11-23T12:00:00Z"}, "spec": {"containers": [{"name": "c"}]}})
            .into();
        let at = |text: &str| {
            let (usage, again) = pod.charge.at(text.parse().unwrap());
            (usage.contains_key("pods"), usage.contains_key("count/pods"), again.map(|wait| wait.as_secs()))
        };
        assert_eq!(at("2026-11-23T12:00:20Z"), (true, true, Some(10)));
        assert_eq!(at("2026-11-23T12:00:31Z"), (false, true, None));
    }
}
