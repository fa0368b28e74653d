//! Which volume fits a claim. Pure.

use api::access::{Access as _, metadata, spec, status};
use api::quantity::Quantity;
use api::selector::{LabelSelector, Requirement};
use serde_json::Value;

use super::model::Node;

/// The smallest volume that is free and fits; `node` is where it must be usable, where that is known.
pub(crate) fn find<'a>(
    claim: &Value,
    volumes: impl Iterator<Item = &'a Value>,
    node: Option<&Node>,
) -> Option<&'a Value> {
    let selector = LabelSelector::from_object(spec(claim).field("selector"));
    let has_selector = spec(claim).field("selector").is_some();
    let is_selected = |volume: &Value| {
        !has_selector
            || selector.as_ref().is_some_and(|selector| selector.matches(metadata(volume).map("labels")))
    };
    let is_free = |volume: &Value| {
        spec(volume).field("claimRef").is_none()
            && metadata(volume).field("deletionTimestamp").is_none()
            && status(volume).text("phase") == "Available"
    };
    let fitting = volumes.filter(|volume| {
        is_free(volume)
            && unfit(claim, volume).is_none()
            && is_selected(volume)
            && node.is_none_or(|node| is_usable_on(volume, node))
    });
    fitting.min_by(|one, other| size_of(one).cmp(&size_of(other)).then_with(|| name(one).cmp(name(other))))
}

fn name(object: &Value) -> &str {
    metadata(object).text("name")
}

/// The size of a volume.
fn size_of(volume: &Value) -> Quantity {
    let capacity = spec(volume).field("capacity").map(|all| all.text("storage")).unwrap_or_default();
    capacity.parse().unwrap_or(Quantity::ZERO)
}

fn asked(claim: &Value) -> Quantity {
    let requests = spec(claim).field("resources").and_then(|all| all.field("requests"));
    requests.and_then(|all| all.text("storage").parse().ok()).unwrap_or(Quantity::ZERO)
}

/// The class that a claim or volume names, in its field or in the annotation of old.
pub(crate) fn class(object: &Value) -> &str {
    const OLD: &str = "volume.beta.kubernetes.io/storage-class";
    let old = metadata(object).field("annotations").map(|all| all.text(OLD)).unwrap_or_default();
    if old.is_empty() { spec(object).text("storageClassName") } else { old }
}

fn mode(object: &Value) -> &str {
    match spec(object).text("volumeMode") {
        "" => "Filesystem",
        mode => mode,
    }
}

/// Why a volume can't be a claim's, in upstream's words; `None` when it can.
pub(crate) fn unfit(claim: &Value, volume: &Value) -> Option<&'static str> {
    let has_mode = |mode: &Value| spec(volume).list("accessModes").contains(mode);
    let attributes = |object: &Value| spec(object).text("volumeAttributesClassName").to_owned();
    if asked(claim) > size_of(volume) {
        Some("requested PV is too small")
    } else if class(claim) != class(volume) {
        Some("storageClassName does not match")
    } else if attributes(claim) != attributes(volume) {
        Some("volumeAttributesClassName does not match")
    } else if mode(claim) != mode(volume) {
        Some("incompatible volumeMode")
    } else if !spec(claim).list("accessModes").iter().all(has_mode) {
        Some("incompatible accessMode")
    } else {
        None
    }
}

/// Whether a volume says that it can be used on a node: one of its terms holds, or it has none.
fn is_usable_on(volume: &Value, node: &Node) -> bool {
    let required = spec(volume).field("nodeAffinity").and_then(|affinity| affinity.field("required"));
    let Some(required) = required else { return true };
    required.list("nodeSelectorTerms").iter().any(|term| {
        let (labels, fields) = (term.list("matchExpressions"), term.list("matchFields"));
        let of_label = |one: &Value| holds(one, node.labels.get(one.text("key")).map(String::as_str));
        let of_field = |one: &Value| one.text("key") == "metadata.name" && holds(one, Some(node.name()));
        // A term that asks nothing holds for no node.
        !(labels.is_empty() && fields.is_empty())
            && labels.iter().all(of_label)
            && fields.iter().all(of_field)
    })
}

fn holds(requirement: &Value, value: Option<&str>) -> bool {
    Requirement::of_node_selector(requirement).is_some_and(|one| one.matches_value(value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn volume(name: &str, size: &str, change: Value) -> Value {
        let mut volume = json!({"metadata": {"name": name, "labels": {"tier": name}},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]}, "status": {"phase": "Available"}});
        json_merge(&mut volume, change);
        volume
    }

    fn json_merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (name, value) in from {
                    json_merge(into.entry(name).or_insert(Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }

    fn claim(size: &str, change: Value) -> Value {
        let mut claim = json!({"metadata": {"name": "c", "namespace": "n"},
            "spec": {"resources": {"requests": {"storage": size}}, "accessModes": ["ReadWriteOnce"]}});
        json_merge(&mut claim, change);
        claim
    }

    fn found(claim: &Value, volumes: &[Value], node: Option<&Node>) -> Option<String> {
        find(claim, volumes.iter(), node).map(|volume| name(volume).to_owned())
    }

    #[test]
    fn the_smallest_volume_that_fits_is_taken() {
        let volumes = [
            volume("large", "10Gi", json!({})),
            volume("middle", "5Gi", json!({})),
            volume("small", "1Gi", json!({})),
            volume("taken", "2Gi", json!({"spec": {"claimRef": {"name": "other"}}})),
            volume("going", "2Gi", json!({"metadata": {"deletionTimestamp": "2026-11-23T12:00:00Z"}})),
            volume("released", "2Gi", json!({"status": {"phase": "Released"}})),
            volume("fast", "2Gi", json!({"spec": {"storageClassName": "fast"}})),
            volume("block", "2Gi", json!({"spec": {"volumeMode": "Block"}})),
            volume("many", "3Gi", json!({"spec": {"accessModes": ["ReadWriteOnce", "ReadWriteMany"]}})),
        ];
        for (change, expected) in [
            (json!({}), Some("many")),
            (json!({"spec": {"selector": {"matchLabels": {"tier": "large"}}}}), Some("large")),
            (json!({"spec": {"selector": {"matchLabels": {"tier": "none"}}}}), None),
            (json!({"spec": {"storageClassName": "fast"}}), Some("fast")),
            (json!({"spec": {"storageClassName": "slow"}}), None),
            (json!({"spec": {"volumeMode": "Block"}}), Some("block")),
            (json!({"spec": {"accessModes": ["ReadWriteMany"]}}), Some("many")),
            (json!({"spec": {"accessModes": ["ReadOnlyMany"]}}), None),
            (json!({"spec": {"resources": {"requests": {"storage": "4Gi"}}}}), Some("middle")),
            (json!({"spec": {"resources": {"requests": {"storage": "11Gi"}}}}), None),
        ] {
            let told = change.to_string();
            assert_eq!(found(&claim("2Gi", change), &volumes, None).as_deref(), expected, "{told}");
        }
    }

    #[test]
    fn a_volume_of_another_node_is_not_taken_where_the_node_is_known() {
        let on = |name: &str| {
            let term = json!({"matchExpressions": [{"key": "host", "operator": "In", "values": [name]}]});
            json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}}})
        };
        let volumes = [volume("a", "1Gi", on("a")), volume("b", "1Gi", on("b"))];
        let node: Node = json!({"metadata": {"name": "node-b", "labels": {"host": "b"}}}).into();
        assert_eq!(found(&claim("1Gi", json!({})), &volumes, Some(&node)).as_deref(), Some("b"));
        assert_eq!(found(&claim("1Gi", json!({})), &volumes, None).as_deref(), Some("a"));
        let field =
            json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-b"]}]});
        let by_name = volume(
            "f",
            "1Gi",
            json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [field]}}}}),
        );
        assert!(is_usable_on(&by_name, &node));
        let nothing =
            volume("n", "1Gi", json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{}]}}}}));
        assert!(!is_usable_on(&nothing, &node));
    }
}
