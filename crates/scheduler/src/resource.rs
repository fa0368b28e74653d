//! Amounts of resources: what Pods ask for and what nodes have.

use std::collections::BTreeMap;

use api::access::Access;
use api::quantity::Quantity;
use serde_json::Value;

/// What a Pod counts for in the score when it asks for no CPU, in thousandths.
const DEFAULT_CPU: i64 = 100;
/// What a Pod counts for in the score when it asks for no memory, in bytes.
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts by name: CPU in thousandths, everything else in units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources(BTreeMap<String, i64>);

impl Resources {
    /// Reads a map of quantities.
    pub(crate) fn read(object: &Value, field: &str) -> Self {
        let entries = object.map(field).into_iter().flatten();
        Self(entries.filter_map(|(name, value)| Some((name.clone(), amount(name, value)?))).collect())
    }

    pub(crate) fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let sum = self.0.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    /// The larger of both, name by name.
    fn raise_to(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let own = self.0.entry(name.clone()).or_default();
            *own = (*own).max(*amount);
        }
    }

    /// CPU and memory as the score counts them: a Pod that asks for nothing still takes something.
    pub(crate) fn scored(&self) -> [i64; 2] {
        let or = |name: &str, default: i64| self.0.get(name).copied().unwrap_or(default);
        [or("cpu", DEFAULT_CPU), or("memory", DEFAULT_MEMORY)]
    }
}

fn amount(name: &str, value: &Value) -> Option<i64> {
    let quantity: Quantity = match value {
        Value::String(text) => text.parse().ok()?,
        other => other.to_string().parse().ok()?,
    };
    Some(if name == "cpu" { quantity.milli() } else { quantity.units() })
}

/// What a Pod needs at once at most: its containers and sidecars together, or the hungriest moment of initialization.
pub(crate) fn pod_requests(spec: &Value) -> Resources {
    let request = |container: &Value| {
        container.field("resources").map(|r| Resources::read(r, "requests")).unwrap_or_default()
    };
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for container in spec.list("initContainers") {
        if container.text("restartPolicy") == "Always" {
            sidecars.add(&request(container));
            peak.raise_to(&sidecars);
        } else {
            let mut moment = sidecars.clone();
            moment.add(&request(container));
            peak.raise_to(&moment);
        }
    }
    let mut total = sidecars;
    for container in spec.list("containers") {
        total.add(&request(container));
    }
    total.raise_to(&peak);
    if let Some(resources) = spec.field("resources") {
        for (name, amount) in Resources::read(resources, "requests").0 {
            total.0.insert(name, amount);
        }
    }
    total.add(&Resources::read(spec, "overhead"));
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_needs_its_containers_or_its_hungriest_init_container() {
        let container = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let cpu = |spec: Value| pod_requests(&spec).get("cpu");
        assert_eq!(cpu(json!({"containers": [container("100m"), container("200m")]})), 300);
        assert_eq!(cpu(json!({"containers": [container("100m")], "initContainers": [container("1")]})), 1000);
        let sidecar = json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}});
        assert_eq!(
            cpu(json!({"containers": [container("100m")], "initContainers": [sidecar, container("1")]})),
            1050
        );
        assert_eq!(cpu(json!({"containers": [container("100m")], "initContainers": [sidecar]})), 150);
        assert_eq!(cpu(json!({"containers": [container("1")], "overhead": {"cpu": "1m"}})), 1001);
        assert_eq!(
            cpu(json!({"containers": [container("1")], "resources": {"requests": {"cpu": "2"}}})),
            2000
        );
    }

    #[test]
    fn amounts_have_their_units() {
        let resources = Resources::read(&json!({"a": {"cpu": "1500m", "memory": "1Mi", "pods": "110"}}), "a");
        assert_eq!(
            (resources.get("cpu"), resources.get("memory"), resources.get("pods")),
            (1500, 1_048_576, 110)
        );
        assert_eq!(Resources::default().scored(), [100, 209_715_200]);
    }
}
