//! The decoder's promises: exact texts, pruning, canonical output.

use serde_json::json;

use super::*;
use crate::schema::type_named;

fn expected(kind: &'static str) -> Expected<'static> {
    Expected { group: "", version: "v1", kind, also: &[] }
}

fn decode_json(kind: &'static str, body: &str) -> Result<Decoded, DecodeError> {
    let root = type_named(&format!("core.v1.{kind}")).unwrap();
    decode(MediaType::Json, body.as_bytes(), root, expected(kind))
}

fn refusal(kind: &'static str, body: &str) -> String {
    decode_json(kind, body).unwrap_err().to_string()
}

#[test]
fn a_file_has_as_many_objects_as_documents() {
    let text = b"# a comment\n---\nkind: A\nvalue: yes\n---\n---\n{\"kind\": \"B\"}\n...\n---\nkind: &k C\nagain: *k\n";
    let found = crate::codec::documents(text).unwrap();
    assert_eq!(
        found,
        [json!({"kind": "A", "value": true}), json!({"kind": "B"}), json!({"kind": "C", "again": "C"})]
    );
    assert_eq!(crate::codec::documents(b"").unwrap(), Vec::<Value>::new());
    assert!(crate::codec::documents(b"a: b: c").unwrap_err().contains("line 1"));
}

#[test]
fn unknown_and_duplicate_fields_are_named_by_their_path_and_pruned() {
    let body = r#"{"apiVersion":"v1","kind":"Pod","datax":1,"metadata":{"name":"a","name":"b"},
        "spec":{"containers":[{"name":"c","foo":1,"Image":"x","env":[{"name":"A"},{"nam":"B"}]}]}}"#;
    let decoded = decode_json("Pod", body).unwrap();
    assert_eq!(
        decoded.unknown,
        [
            "unknown field \"datax\"",
            "duplicate field \"metadata.name\"",
            "unknown field \"spec.containers[0].foo\"",
            "unknown field \"spec.containers[0].Image\"",
            "unknown field \"spec.containers[0].env[1].nam\"",
        ]
    );
    assert_eq!(
        decoded.object,
        json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "b"},
               "spec": {"containers": [{"name": "c", "env": [{"name": "A"}, {}]}]}})
    );
}

#[test]
fn the_strict_message_is_upstreams() {
    let decoded = decode_json("ConfigMap", r#"{"datax":{},"data":{"a":"1","a":"2"}}"#).unwrap();
    assert_eq!(
        decoded.strict_error(expected("ConfigMap")).unwrap(),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"datax\", duplicate field \"data.a\""
    );
}

#[test]
fn values_of_a_wrong_type_get_gos_text() {
    for (kind, body, reason) in [
        (
            "ConfigMap",
            r#"{"data":{"a":1}}"#,
            "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
        ),
        (
            "ConfigMap",
            r#"{"data":[]}"#,
            "json: cannot unmarshal array into Go struct field ConfigMap.data of type map[string]string",
        ),
        (
            "ConfigMap",
            r#"{"immutable":"yes"}"#,
            "json: cannot unmarshal string into Go struct field ConfigMap.immutable of type bool",
        ),
        (
            "ConfigMap",
            r#"{"metadata":{"labels":{"a":true}}}"#,
            "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            "Pod",
            r#"{"spec":{"containers":{}}}"#,
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            "Pod",
            r#"{"spec":{"containers":["a"]}}"#,
            "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type v1.Container",
        ),
        (
            "Pod",
            r#"{"spec":{"containers":[{"env":[{"name":"a","value":1}]}]}}"#,
            "json: cannot unmarshal number into Go struct field EnvVar.spec.containers.env.value of type string",
        ),
        (
            "Pod",
            r#"{"spec":{"containers":[{"ports":[{"containerPort":"80"}]}]}}"#,
            "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
        ),
        (
            "Pod",
            r#"{"spec":{"containers":[{"ports":[{"containerPort":8.5}]}]}}"#,
            "json: cannot unmarshal number 8.5 into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
        ),
        (
            "Pod",
            r#"{"spec":{"restartPolicy":1}}"#,
            "json: cannot unmarshal number into Go struct field PodSpec.spec.restartPolicy of type v1.RestartPolicy",
        ),
        (
            "Pod",
            r#"{"spec":5}"#,
            "json: cannot unmarshal number into Go struct field Pod.spec of type v1.PodSpec",
        ),
        (
            "Pod",
            r#"{"metadata":{"creationTimestamp":5}}"#,
            "json: cannot unmarshal number into Go value of type string",
        ),
        (
            "Pod",
            r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"x"}}}]}}"#,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        ("Secret", r#"{"data":{"a":"%"}}"#, "illegal base64 data at input byte 0"),
    ] {
        let wanted = format!("{kind} in version \"v1\" cannot be handled as a {kind}: {reason}");
        assert_eq!(refusal(kind, body), wanted, "{body}");
    }
}

#[test]
fn broken_documents_say_what_was_expected() {
    for (body, message) in [
        (
            "",
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)",
        ),
        (
            "{\"a\":1,}",
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: invalid character '}' looking for beginning of object key string ({\"a\":1,})",
        ),
        (
            "x",
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: invalid character 'x' looking for beginning of value (78)",
        ),
        (
            "[]",
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: json: cannot unmarshal array into Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" } (5b5d)",
        ),
        (
            "{\"kind\":5}",
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: json: cannot unmarshal number into Go struct field .kind of type string ({\"kind\":5})",
        ),
        (
            "{\"kind\":\"Foo\",\"apiVersion\":\"v1\"}",
            "Foo in version \"v1\" cannot be handled as a Pod: no kind \"Foo\" is registered for version \"v1\"",
        ),
        (
            "{\"kind\":\"Pod\",\"apiVersion\":\"v2\"}",
            "the API version in the data (v2) does not match the expected API version (v1)",
        ),
    ] {
        assert_eq!(refusal("Pod", body), message, "{body}");
    }
}

#[test]
fn a_body_may_come_in_an_older_version_where_its_kind_says_so() {
    let body = br#"{"kind":"Eviction","apiVersion":"policy/v1beta1","metadata":{"name":"p"}}"#;
    let root = crate::schema::type_named("policy.v1.Eviction").unwrap();
    let expected = Expected { group: "policy", version: "v1", kind: "Eviction", also: &["policy/v1beta1"] };
    decode(MediaType::Json, body, root, expected).unwrap();
    let refused = decode(MediaType::Json, body, root, Expected { also: &[], ..expected }).unwrap_err();
    assert!(matches!(refused, DecodeError::OtherVersion { .. }), "{refused}");
}

#[test]
fn the_object_comes_back_as_go_would_write_it() {
    let body = r#"{"metadata":{"name":"a","labels":{},"creationTimestamp":null,"annotations":{"x":null}},
        "spec":{"nodeName":"","hostNetwork":false,"hostUsers":false,"terminationGracePeriodSeconds":0,"priority":0,
        "volumes":[{"name":"v","emptyDir":{}}],"tolerations":[],
        "containers":[{"name":"","image":"i","command":[],"resources":{"requests":{"cpu":"1000m","memory":"1024Mi"},"limits":{}}}]}}"#;
    assert_eq!(
        decode_json("Pod", body).unwrap().object,
        json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "annotations": {"x": ""}},
            "spec": {"hostUsers": false, "terminationGracePeriodSeconds": 0, "priority": 0,
                "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "", "image": "i", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]}})
    );
}

#[test]
fn yaml_is_read_like_json() {
    let root = type_named("core.v1.Pod").unwrap();
    let body = b"apiVersion: v1\nkind: Pod\nmetadata: { name: userns }\nspec:\n  hostUsers: false\n  containers:\n  - name: shell\n    command: [\"sleep\", \"infinity\"]\n    image: debian\n    imag: x\n    image: debian2\n";
    let decoded = decode(MediaType::Yaml, body, root, expected("Pod")).unwrap();
    assert_eq!(
        decoded.unknown,
        [
            "yaml: unmarshal errors:\n  line 11: key \"image\" already set in map",
            "unknown field \"spec.containers[0].imag\"",
        ]
    );
    assert_eq!(decoded.object["spec"]["hostUsers"], false);
    assert_eq!(decoded.object["spec"]["containers"][0]["image"], "debian2");

    let error =
        decode(MediaType::Yaml, b"kind: Pod\n  a: b\n", root, expected("Pod")).unwrap_err().to_string();
    assert!(
        error.starts_with("the object provided is unrecognized (must be of type Pod): yaml: line 2: "),
        "{error}"
    );
}

#[test]
fn a_patched_value_is_typed_again() {
    let root = type_named("core.v1.ConfigMap").unwrap();
    let decoded = decode_value(&json!({"data": {"a": "b"}, "foo": 1}), root, expected("ConfigMap")).unwrap();
    assert_eq!(decoded.unknown, ["unknown field \"foo\""]);
    assert_eq!(decoded.object, json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"a": "b"}}));
}

#[test]
fn delete_options_come_with_the_version_of_any_group() {
    let root = type_named("meta.v1.DeleteOptions").unwrap();
    for body in [
        r#"{"propagationPolicy":"Background"}"#,
        r#"{"kind":"DeleteOptions","apiVersion":"apps/v1","propagationPolicy":"Background"}"#,
    ] {
        let decoded = decode(MediaType::Json, body.as_bytes(), root, expected("DeleteOptions")).unwrap();
        assert_eq!(decoded.object["propagationPolicy"], "Background");
        assert_eq!(decoded.unknown, Vec::<String>::new());
    }
}

#[test]
fn a_whole_float_of_a_patch_is_a_whole_number() {
    let root = type_named("core.v1.Pod").unwrap();
    let value = json!({"spec": {"priority": 5.0, "containers": []}});
    let decoded = decode_value(&value, root, expected("Pod")).unwrap();
    assert_eq!(decoded.object["spec"]["priority"], 5);
}

#[test]
fn media_types_ignore_parameters() {
    assert_eq!(MediaType::of("application/json; charset=utf-8"), Some(MediaType::Json));
    assert_eq!(MediaType::of(""), Some(MediaType::Json));
    assert_eq!(MediaType::of("application/vnd.kubernetes.protobuf"), Some(MediaType::Protobuf));
    assert_eq!(MediaType::of("text/plain"), None);
}
