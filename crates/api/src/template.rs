//! Where the kinds of the API keep the Pods that they make: a Pod is its own, a Deployment has a template, a `CronJob`
//! has one two levels down. Kinds that are not known here are taken to keep theirs where most do.

use serde_json::Value;

use crate::access::Access;

/// The places that are not `spec.template`, by kind.
const PLACES: [(&str, &str); 3] =
    [("Pod", ""), ("PodTemplate", "/template"), ("CronJob", "/spec/jobTemplate/spec/template")];

/// Where most kinds have their template.
const USUAL: &str = "/spec/template";

/// The Pod of an object of that kind, or the template of those that it makes: something with `metadata` and `spec`.
/// `None` where the object has none.
pub fn pod_of<'a>(kind: &str, object: &'a Value) -> Option<&'a Value> {
    object.pointer(place(kind)).filter(|pod| is_pod(pod))
}

/// The path of the Pod's spec, for messages: `spec` of a Pod, `spec.template.spec` of a Deployment.
pub fn spec_path(kind: &str) -> String {
    format!("{}.spec", place(kind).replace('/', ".")).trim_start_matches('.').to_owned()
}

fn place(kind: &str) -> &'static str {
    PLACES.iter().find(|(known, _)| *known == kind).map_or(USUAL, |(_, place)| place)
}

fn is_pod(value: &Value) -> bool {
    value.field("spec").is_some_and(|spec| spec.field("containers").is_some_and(Value::is_array))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_kind_with_pods_is_read() {
        let pod = json!({"spec": {"containers": []}});
        let mut own = pod.clone();
        own["kind"] = json!("Pod");
        let kinds = [
            (own, "spec"),
            (json!({"kind": "PodTemplate", "template": pod}), "template.spec"),
            (json!({"kind": "Deployment", "spec": {"template": pod}}), "spec.template.spec"),
            (json!({"kind": "Rollout", "spec": {"template": pod}}), "spec.template.spec"),
            (
                json!({"kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": pod}}}}),
                "spec.jobTemplate.spec.template.spec",
            ),
        ];
        for (object, path) in kinds {
            let kind = object["kind"].as_str().unwrap();
            assert_eq!(pod_of(kind, &object).map(|p| &p["spec"]), Some(&pod["spec"]), "{object}");
            assert_eq!(spec_path(kind), path);
        }
    }

    #[test]
    fn other_objects_have_no_pods() {
        assert_eq!(pod_of("ConfigMap", &json!({"data": {}})), None);
        assert_eq!(pod_of("Certificate", &json!({"spec": {"template": {"spec": {}}}})), None);
    }
}
