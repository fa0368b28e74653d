//! Defaults: static ones from the schema table wherever their type appears, then a short list of functions
//! for those that depend on other fields of the same struct. What depends on the whole object is the kind's own.

use serde_json::{Map, Value};

use crate::schema::{Field, FieldKind, Type};

mod computed;

/// Fills in the defaults of an object and of everything below it.
///
/// Structs that are always present (`status`, `resources` …) are added as `{}`; zero values of fields
/// that have no meaningful zero count as absent.
pub fn apply(root: &'static Type, object: &mut Value) {
    if let Value::Object(members) = object {
        apply_type(root, members);
    }
}

fn apply_type(ty: &'static Type, members: &mut Map<String, Value>) {
    for field in ty.fields {
        if is_unset(field, members.get(field.json))
            && let Some(default) = default_of(field)
        {
            members.insert(field.json.to_owned(), default);
        }
    }
    computed::apply(ty.name, members);
    for (key, value) in members.iter_mut() {
        if let Some(field) = ty.field(key) {
            descend(field.kind, value);
        }
    }
}

fn descend(kind: FieldKind, value: &mut Value) {
    match (kind, value) {
        (FieldKind::Ref(ty), Value::Object(members)) => apply_type(ty.get(), members),
        (FieldKind::List(item), Value::Array(items)) => {
            for value in items {
                descend(*item, value);
            }
        }
        (FieldKind::Map(item), Value::Object(members)) => {
            for value in members.values_mut() {
                descend(*item, value);
            }
        }
        _ => {}
    }
}

fn default_of(field: &Field) -> Option<Value> {
    field.default.clone().or_else(|| field.embedded.then(|| Value::Object(Map::new())))
}

fn is_unset(field: &Field, value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty() && !field.nullable,
        Some(Value::Number(number)) => number.as_f64() == Some(0.0) && !field.nullable,
        Some(Value::Bool(value)) => !value && !field.nullable,
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::{type_named, types};

    fn defaulted(ty: &str, mut object: Value) -> Value {
        apply(type_named(ty).unwrap(), &mut object);
        object
    }

    #[test]
    fn a_pod_gets_what_upstream_gives_it() {
        let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "nginx",
            "ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"port": 80}},
            "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]}],
            "volumes": [{"name": "a", "configMap": {"name": "x"}}, {"name": "b"},
                {"name": "d", "hostPath": {"path": "/x"}},
                {"name": "e", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}});
        assert_eq!(
            defaulted("core.v1.Pod", pod),
            json!({"metadata": {"name": "a"}, "spec": {
                "containers": [{"name": "c", "image": "nginx",
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                        "failureThreshold": 3, "periodSeconds": 10, "successThreshold": 1, "timeoutSeconds": 1},
                    "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP", "apiVersion": "v1"}}}],
                    "resources": {}, "imagePullPolicy": "Always",
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
                "volumes": [{"name": "a", "configMap": {"name": "x", "defaultMode": 420}},
                    {"name": "b", "emptyDir": {}}, {"name": "d", "hostPath": {"path": "/x", "type": ""}},
                    {"name": "e", "projected": {"defaultMode": 420,
                        "sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}}]}}],
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                "securityContext": {}, "terminationGracePeriodSeconds": 30}, "status": {}})
        );
    }

    #[test]
    fn zero_counts_only_where_it_means_something() {
        let spec = json!({"terminationGracePeriodSeconds": 0, "restartPolicy": "",
            "containers": [{"name": "c", "readinessProbe": {"periodSeconds": 0}}]});
        let spec = defaulted("core.v1.PodSpec", spec);
        assert_eq!(spec["terminationGracePeriodSeconds"], 0);
        assert_eq!(spec["restartPolicy"], "Always");
        assert_eq!(spec["containers"][0]["readinessProbe"]["periodSeconds"], 10);
    }

    #[test]
    fn a_deployment_rolls_a_quarter_at_a_time() {
        let deployment = json!({"spec": {"selector": {}, "template": {}}});
        let deployment = defaulted("apps.v1.Deployment", deployment);
        assert_eq!(
            deployment["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(deployment["spec"]["replicas"], 1);
        assert_eq!(deployment["spec"]["template"]["spec"]["dnsPolicy"], "ClusterFirst");
        let recreate = json!({"spec": {"strategy": {"type": "Recreate"}}});
        assert_eq!(
            defaulted("apps.v1.Deployment", recreate)["spec"]["strategy"],
            json!({"type": "Recreate"})
        );
    }

    #[test]
    fn defaults_are_of_their_fields_kind() {
        for ty in types() {
            for field in ty.fields {
                let Some(default) = &field.default else { continue };
                let mut object = Map::new();
                if matches!(field.json, "kind" | "apiVersion") {
                    continue;
                }
                object.insert(field.json.to_owned(), default.clone());
                let expected = crate::codec::Expected { group: "", version: "v1", kind: "X", also: &[] };
                let decoded = crate::codec::decode_value(&Value::Object(object), ty, expected);
                assert!(decoded.is_ok(), "{}.{}: {decoded:?}", ty.name, field.json);
            }
        }
    }

    #[test]
    fn defaulting_twice_changes_nothing() {
        for ty in types().iter().filter(|ty| ty.kind.is_some()) {
            let once = defaulted(ty.name, json!({}));
            assert_eq!(defaulted(ty.name, once.clone()), once, "{}", ty.name);
        }
    }
}
