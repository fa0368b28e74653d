//! The promises of patches, and laws that hold for any document.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::type_named;

#[expect(clippy::needless_pass_by_value, reason = "reads better where it is called")]
fn strategic(ty: &str, current: Value, patch: Value) -> Result<Value, PatchError> {
    strategic_merge(type_named(ty).unwrap(), &current, &patch)
}

#[expect(clippy::needless_pass_by_value, reason = "reads better where it is called")]
fn pod(containers: Value) -> Value {
    json!({"spec": {"containers": containers}})
}

#[test]
fn containers_are_merged_by_name() {
    let current = pod(
        json!([{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "1"}]),
    );
    let patch =
        pod(json!([{"name": "b", "image": "2"}, {"name": "a", "env": [{"name": "Y", "value": "2"}]}]));
    assert_eq!(
        strategic("core.v1.Pod", current, patch).unwrap(),
        pod(json!([
            {"name": "b", "image": "2"},
            {"name": "a", "image": "1", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]},
        ]))
    );
}

#[test]
fn lists_without_a_key_are_replaced() {
    let current = pod(json!([{"name": "a", "args": ["1", "2"]}]));
    let patch = pod(json!([{"name": "a", "args": ["3"]}]));
    assert_eq!(strategic("core.v1.Pod", current, patch).unwrap(), pod(json!([{"name": "a", "args": ["3"]}])));
}

#[test]
fn null_deletes_and_is_not_stored() {
    let current = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "data": {"x": "1"}});
    let patch =
        json!({"metadata": {"labels": {"a": null, "c": null}}, "data": null, "binaryData": {"y": null}});
    assert_eq!(
        strategic("core.v1.ConfigMap", current, patch).unwrap(),
        json!({"metadata": {"labels": {"b": "2"}}, "binaryData": {}})
    );
}

#[test]
fn an_item_can_be_deleted_and_a_list_replaced() {
    let current = pod(json!([{"name": "a"}, {"name": "b"}, {"name": "c"}]));
    let delete = pod(json!([{"name": "b", "$patch": "delete"}]));
    assert_eq!(
        strategic("core.v1.Pod", current.clone(), delete).unwrap(),
        pod(json!([{"name": "a"}, {"name": "c"}]))
    );
    let replace = pod(json!([{"name": "z"}, {"$patch": "replace"}]));
    assert_eq!(strategic("core.v1.Pod", current, replace).unwrap(), pod(json!([{"name": "z"}])));
}

#[test]
fn a_map_can_be_replaced_or_emptied() {
    let current = json!({"data": {"a": "1", "b": "2"}});
    let replace = json!({"data": {"$patch": "replace", "c": "3"}});
    assert_eq!(
        strategic("core.v1.ConfigMap", current.clone(), replace).unwrap(),
        json!({"data": {"c": "3"}})
    );
    let delete = json!({"data": {"$patch": "delete"}});
    assert_eq!(strategic("core.v1.ConfigMap", current, delete).unwrap(), json!({"data": {}}));
}

#[test]
fn the_order_directive_orders_and_keeps_what_it_does_not_name() {
    let current = pod(json!([{"name": "a"}, {"name": "server"}, {"name": "b"}]));
    let patch = json!({"spec": {
        "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
        "containers": [{"name": "b", "image": "2"}]}});
    assert_eq!(
        strategic("core.v1.Pod", current, patch).unwrap(),
        pod(json!([{"name": "server"}, {"name": "b", "image": "2"}, {"name": "a"}]))
    );
}

#[test]
fn rollout_restart_and_set_image_work_on_a_template() {
    let current =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "nginx", "image": "nginx:1"}]}}}});
    let patch = json!({"spec": {"template": {
        "metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "2026-11-23T12:00:00Z"}},
        "spec": {"$setElementOrder/containers": [{"name": "nginx"}], "containers": [{"name": "nginx", "image": "nginx:2"}]}}}});
    assert_eq!(
        strategic("apps.v1.Deployment", current, patch).unwrap(),
        json!({"spec": {"template": {
            "spec": {"containers": [{"name": "nginx", "image": "nginx:2"}]},
            "metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "2026-11-23T12:00:00Z"}}}}})
    );
}

#[test]
fn scalars_are_taken_out_of_a_list() {
    let current = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
    let patch = json!({"metadata": {
        "$deleteFromPrimitiveList/finalizers": ["b"], "$setElementOrder/finalizers": ["c", "a"], "finalizers": ["c"]}});
    assert_eq!(
        strategic("core.v1.Pod", current, patch).unwrap(),
        json!({"metadata": {"finalizers": ["c", "a"]}})
    );
}

#[test]
fn retained_keys_clear_the_others() {
    let current = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(
        strategic("apps.v1.Deployment", current, patch).unwrap(),
        json!({"spec": {"strategy": {"type": "Recreate"}}})
    );
}

#[test]
fn a_volume_changes_its_source() {
    let current = json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}});
    let patch = json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]}});
    assert_eq!(
        strategic("core.v1.Pod", current, patch).unwrap(),
        json!({"spec": {"volumes": [{"name": "v", "configMap": {"name": "c"}}]}})
    );
}

/// The patch is what `kubectl apply` 1.32 computes with our `OpenAPI` document: a new image, and one container less.
#[test]
fn kubectl_apply_deletes_a_container_and_keeps_what_it_did_not_set() {
    let current = pod(json!([
        {"name": "a", "image": "nginx:1", "imagePullPolicy": "IfNotPresent"},
        {"name": "b", "image": "x"},
        {"name": "injected", "image": "proxy"},
    ]));
    let patch = json!({"spec": {"$setElementOrder/containers": [{"name": "a"}],
        "containers": [{"image": "nginx:2", "name": "a"}, {"$patch": "delete", "name": "b"}]}});
    assert_eq!(
        strategic("core.v1.Pod", current, patch).unwrap(),
        pod(json!([
            {"name": "a", "image": "nginx:2", "imagePullPolicy": "IfNotPresent"},
            {"name": "injected", "image": "proxy"},
        ]))
    );
}

#[test]
fn what_does_not_fit_is_refused_with_upstreams_text() {
    let cases = [
        (
            pod(json!([{"name": "a"}])),
            pod(json!([{"image": "x"}])),
            "map: map[image:x] does not contain declared merge key: name",
            ErrorClass::Internal,
        ),
        (
            pod(json!([{"name": "a"}])),
            pod(json!([{"name": "a", "$patch": "x"}])),
            "unknown patch type: x in map: map[$patch:x name:a]",
            ErrorClass::Internal,
        ),
        (
            json!({"spec": {"foo": {}}}),
            json!({"spec": {"foo": {}}}),
            "unable to find api field in struct PodSpec for the json field \"foo\"",
            ErrorClass::Internal,
        ),
        (
            json!({"spec": {}}),
            json!({"spec": {"$retainKeys": ["a"], "b": 1}}),
            "invalid patch format of retainKeys",
            ErrorClass::BadRequest,
        ),
        (
            pod(json!([{"name": "a"}])),
            json!({"spec": {"$setElementOrder": []}}),
            "invalid patch format of setElementOrder list",
            ErrorClass::BadRequest,
        ),
        (json!([]), json!({}), "invalid JSON document", ErrorClass::BadRequest),
    ];
    for (current, patch, message, class) in cases {
        let error = strategic("core.v1.Pod", current, patch.clone()).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.class()), (message, class), "{patch}");
    }
}

#[test]
fn json_patches_fail_with_a_reason() {
    let current = json!({"metadata": {"labels": {"a": "1"}}, "list": [1, 2]});
    let patch = json!([{"op": "replace", "path": "/metadata/labels/a", "value": "2"}, {"op": "remove", "path": "/list/0"}]);
    assert_eq!(
        json_patch(&current, &patch).unwrap(),
        json!({"metadata": {"labels": {"a": "2"}}, "list": [2]})
    );
    for (patch, class) in [
        (json!([{"op": "test", "path": "/metadata/labels/a", "value": "9"}]), ErrorClass::Unprocessable),
        (json!([{"op": "remove", "path": "/nothing"}]), ErrorClass::Unprocessable),
        (json!([{"op": "replace", "path": "/list/9", "value": 1}]), ErrorClass::Unprocessable),
        (json!([{"op": "dance", "path": "/a"}]), ErrorClass::BadRequest),
        (json!({}), ErrorClass::BadRequest),
        (
            Value::Array(vec![json!({"op": "test", "path": "", "value": 1}); MAX_OPERATIONS + 1]),
            ErrorClass::TooLarge,
        ),
    ] {
        assert_eq!(json_patch(&current, &patch).unwrap_err().class(), class);
    }
}

#[test]
fn a_body_names_its_repeated_members() {
    let body = read_body(br#"{"a":{"b":1,"b":2}}"#).unwrap();
    assert_eq!(body.patch, json!({"a": {"b": 2}}));
    assert_eq!(body.complaints, ["duplicate field \"a.b\""]);
    let error = read_body(b"{").unwrap_err();
    assert_eq!(error.to_string(), "error decoding patch: unexpected end of JSON input");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..5).prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-d]", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_object() -> impl Strategy<Value = Value> {
    prop::collection::hash_map("[a-d]", any_json(), 0..4)
        .prop_map(|map| Value::Object(map.into_iter().collect()))
}

/// The merge patch that leads from one document to another.
fn difference(from: &Value, to: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (from, to) else { return to.clone() };
    let removed = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = new.iter().filter(|(key, value)| old.get(*key) != Some(value)).map(|(key, value)| {
        (key.clone(), old.get(key).map_or_else(|| value.clone(), |before| difference(before, value)))
    });
    Value::Object(removed.chain(changed).collect())
}

fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(members) => members.values().any(has_null),
        _ => false,
    }
}

proptest! {
    #[test]
    fn merging_the_difference_gives_the_target(from in any_object(), to in any_object()) {
        prop_assume!(!has_null(&to));
        prop_assert_eq!(merge(&from, &difference(&from, &to)).unwrap(), to);
    }

    #[test]
    fn merging_twice_is_merging_once(object in any_object(), patch in any_object()) {
        let once = merge(&object, &patch).unwrap();
        prop_assert_eq!(merge(&once, &patch).unwrap(), once);
    }

    #[test]
    fn a_map_without_lists_merges_alike_in_both_ways(a in any_object(), b in any_object()) {
        // Annotations are free text: a strategic merge of them is a plain merge.
        let scalars = |value: &Value| -> Value {
            let Value::Object(members) = value else { return json!({}) };
            Value::Object(members.iter().filter(|(_, v)| !v.is_array() && !v.is_object()).map(|(k, v)| (k.clone(), v.clone())).collect())
        };
        let current = json!({"metadata": {"annotations": scalars(&a)}});
        let patch = json!({"metadata": {"annotations": scalars(&b)}});
        prop_assert_eq!(strategic("core.v1.Pod", current.clone(), patch.clone()).unwrap(), merge(&current, &patch).unwrap());
    }

    #[test]
    fn a_strategic_merge_of_containers_is_idempotent(
        old in prop::collection::hash_set("[a-e]", 0..5), new in prop::collection::hash_set("[a-e]", 0..5)
    ) {
        let named = |names: &std::collections::HashSet<String>, image: &str| {
            pod(names.iter().map(|name| json!({"name": name, "image": image})).collect())
        };
        let once = strategic("core.v1.Pod", named(&old, "1"), named(&new, "2")).unwrap();
        let twice = strategic("core.v1.Pod", once.clone(), named(&new, "2")).unwrap();
        prop_assert_eq!(&once, &twice);
        prop_assert_eq!(once["spec"]["containers"].as_array().unwrap().len(), old.union(&new).count());
    }

    #[test]
    fn no_patch_panics(current in any_object(), patch in any_object()) {
        let wrap = |value: &Value| json!({"spec": value, "metadata": value});
        let _ = strategic("core.v1.Pod", wrap(&current), wrap(&patch));
        let _ = json_patch(&current, &patch);
        let _ = json_patch(&current, &json!([patch]));
    }

    #[test]
    fn no_operation_panics(
        current in any_object(),
        operations in prop::collection::vec(
            ("(add|remove|replace|move|copy|test)", "(/[a-d0-2~-]{0,2}){0,3}", "(/[a-d0-2~-]{0,2}){0,3}", any_json()), 0..5)
    ) {
        let operations: Vec<Value> = operations.into_iter()
            .map(|(op, path, from, value)| json!({"op": op, "path": path, "from": from, "value": value}))
            .collect();
        let _ = json_patch(&current, &Value::Array(operations));
    }

    #[test]
    fn no_directive_panics(current in any_object(), list in any_json(), name in "(\\$patch|\\$retainKeys|\\$setElementOrder/(containers|finalizers|x)|\\$deleteFromPrimitiveList/?(finalizers)?)") {
        let patch = json!({"spec": {name.clone(): list.clone(), "containers": list.clone()}, "metadata": {name: list.clone(), "finalizers": list}});
        let _ = strategic("core.v1.Pod", json!({"spec": {"containers": [current]}, "metadata": {"finalizers": ["a"]}}), patch);
    }
}
