//! Bodies that `kubectl` sends, bodies encoded by hand, and bytes from nowhere.

mod law;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::codec::{Expected, MediaType};

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn read(type_name: &str, body: &[u8]) -> Result<Value, String> {
    let root = type_named(type_name).unwrap();
    let kind = root.kind.unwrap();
    let expected = Expected { group: kind.group, version: kind.version, kind: kind.kind, also: &[] };
    let decoded = crate::codec::decode(MediaType::Protobuf, body, root, expected);
    decoded.map(|decoded| decoded.object).map_err(|error| error.to_string())
}

fn recorded(command: &str) -> Value {
    let line = include_str!("bodies.txt").lines().find(|line| line.starts_with(command)).unwrap();
    let [_, type_name, hex] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
    read(type_name, &unhex(hex)).unwrap()
}

#[test]
fn kubectl_create_deployment() {
    assert_eq!(
        recorded("create-deployment"),
        json!({"kind": "Deployment", "apiVersion": "apps/v1",
            "metadata": {"name": "d", "labels": {"app": "d"}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "d"}}, "strategy": {},
                "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [
                    {"name": "nginx", "image": "nginx", "ports": [{"containerPort": 80}], "resources": {}}]}}},
            "status": {}})
    );
}

#[test]
fn kubectl_create_sa_and_token() {
    assert_eq!(
        recorded("create-sa"),
        json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "x"}})
    );
    assert_eq!(
        recorded("create-token"),
        json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
            "spec": {"expirationSeconds": 3600}, "status": {"token": ""}})
    );
}

#[test]
fn kubectl_create_secret_and_configmap() {
    assert_eq!(recorded("create-secret")["data"], json!({"a": "Yg=="}));
    assert_eq!(recorded("create-configmap")["data"], json!({"a": "b"}));
}

#[test]
fn kubectl_create_job_cronjob_namespace_quota() {
    let job = recorded("create-job");
    assert_eq!(job["spec"]["template"]["spec"]["containers"][0]["command"], json!(["sleep", "1"]));
    assert_eq!(job["spec"]["template"]["spec"]["restartPolicy"], "Never");
    let cron = recorded("create-cronjob");
    assert_eq!(cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["image"], "busybox");
    assert_eq!(recorded("create-namespace")["metadata"], json!({"name": "n"}));
    assert_eq!(recorded("create-quota")["spec"]["hard"], json!({"cpu": "1", "memory": "1Gi"}));
}

#[test]
fn kubectl_auth_can_i() {
    let review = recorded("auth-can-i");
    assert_eq!(
        review["spec"]["resourceAttributes"],
        json!({"namespace": "default", "verb": "get", "resource": "pods"})
    );
}

#[test]
fn kubectl_debug_node() {
    let pod = recorded("debug-node");
    assert_eq!(pod["spec"]["nodeName"], "n1");
    assert_eq!(pod["spec"]["hostPID"], true);
    assert_eq!(pod["spec"]["volumes"], json!([{"name": "host-root", "hostPath": {"path": "/"}}]));
    assert_eq!(
        pod["spec"]["containers"][0]["volumeMounts"],
        json!([{"name": "host-root", "mountPath": "/host"}])
    );
}

/// A small encoder: enough to say in a test what stands on the wire.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).unwrap());
    bytes
}

fn number(tag: u64, value: u64) -> Vec<u8> {
    [varint(tag << 3), varint(value)].concat()
}

fn bytes(tag: u64, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    [varint((tag << 3) | 2), varint(payload.len() as u64), payload.to_vec()].concat()
}

fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [bytes(1, api_version), bytes(2, kind)].concat();
    [MAGIC.to_vec(), bytes(1, meta), bytes(2, raw)].concat()
}

#[test]
fn inlined_messages_and_special_scalars_become_what_json_has() {
    let http_get = [bytes(1, "/healthz"), bytes(2, [number(1, 1), bytes(3, "web")].concat())].concat();
    let probe = [bytes(1, bytes(2, http_get)), number(2, 0), number(3, 5)].concat();
    let limits = bytes(1, [bytes(1, "cpu"), bytes(2, bytes(1, "1500m"))].concat());
    let container = [bytes(1, "c"), bytes(2, "nginx"), bytes(8, limits), bytes(10, probe)].concat();
    let config_map = [bytes(1, bytes(1, "conf")), number(3, 0o644)].concat();
    let volume = [bytes(1, "v"), bytes(2, bytes(19, config_map))].concat();
    let spec = [bytes(1, volume), bytes(2, container), number(4, 0), number(11, 0), number(37, 0)].concat();
    let created = [number(1, 1_795_435_200), number(2, 0)].concat();
    let meta =
        [bytes(1, "p"), bytes(8, created), bytes(9, ""), bytes(11, [bytes(1, "a"), bytes(2, "")].concat())]
            .concat();
    let pod = [bytes(1, meta), bytes(2, spec), bytes(3, "")].concat();
    assert_eq!(
        read("core.v1.Pod", &body("v1", "Pod", &pod)).unwrap(),
        json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "p", "creationTimestamp": "2026-11-23T12:00:00Z", "labels": {"a": ""}},
            "spec": {
                "volumes": [{"name": "v", "configMap": {"name": "conf", "defaultMode": 420}}],
                "containers": [{"name": "c", "image": "nginx", "resources": {"limits": {"cpu": "1500m"}},
                    "livenessProbe": {"httpGet": {"path": "/healthz", "port": "web"}, "timeoutSeconds": 5}}],
                "terminationGracePeriodSeconds": 0, "hostUsers": false},
            "status": {}})
    );
}

#[test]
fn negative_numbers_maps_of_lists_and_micro_times_are_read() {
    let extra = [bytes(1, "scopes"), bytes(2, [bytes(1, "a"), bytes(1, "b")].concat())].concat();
    let review = bytes(2, bytes(5, extra));
    let review = read(
        "authorization.v1.SubjectAccessReview",
        &body("authorization.k8s.io/v1", "SubjectAccessReview", &review),
    );
    assert_eq!(review.unwrap()["spec"]["extra"], json!({"scopes": ["a", "b"]}));

    let lease = bytes(2, [number(2, u64::MAX), bytes(3, [number(1, 1), number(2, 5000)].concat())].concat());
    let lease = read("coordination.v1.Lease", &body("coordination.k8s.io/v1", "Lease", &lease)).unwrap();
    assert_eq!(
        lease["spec"],
        json!({"leaseDurationSeconds": -1, "acquireTime": "1970-01-01T00:00:01.000005Z"})
    );
}

#[test]
fn the_envelope_is_checked() {
    let cases: [(&[u8], &str); 4] = [
        (b"", "the object provided is unrecognized (must be of type Pod): empty data (<empty>)"),
        (
            b"{}",
            "the object provided is unrecognized (must be of type Pod): provided data does not appear to be a protobuf message, expected prefix [107 56 115 0] ({})",
        ),
        (
            b"k8s\0\x0a\x05ab",
            "the object provided is unrecognized (must be of type Pod): unexpected EOF (6b3873000a056162)",
        ),
        (
            b"k8s\0\x0b",
            "the object provided is unrecognized (must be of type Pod): proto: illegal wireType 3 (6b3873000b)",
        ),
    ];
    for (bytes, message) in cases {
        assert_eq!(read("core.v1.Pod", bytes).unwrap_err(), message);
    }
    assert_eq!(
        read("core.v1.Pod", &body("v1", "Foo", b"")).unwrap_err(),
        "Foo in version \"v1\" cannot be handled as a Pod: no kind \"Foo\" is registered for version \"v1\""
    );
}

proptest! {
    #[test]
    fn any_bytes_end_in_an_object_or_a_message(bytes: Vec<u8>) {
        let _ = read("core.v1.Pod", &bytes);
        let _ = read("core.v1.Pod", &body("v1", "Pod", &bytes));
    }

    #[test]
    fn any_row_of_entries_ends_in_an_object_or_a_message(
        entries in prop::collection::vec((1u64..45, prop::collection::vec((1u64..45, any::<Vec<u8>>()), 0..4)), 0..6)
    ) {
        let raw: Vec<u8> = entries.iter().flat_map(|(tag, inner)| {
            bytes(*tag, inner.iter().flat_map(|(tag, payload)| bytes(*tag, payload)).collect::<Vec<u8>>())
        }).collect();
        for name in ["Pod", "Node", "Secret", "Event"] {
            let _ = read(&format!("core.v1.{name}"), &body("v1", name, &raw));
        }
        let _ = read("apiextensions.v1.CustomResourceDefinition",
            &body("apiextensions.k8s.io/v1", "CustomResourceDefinition", &raw));
    }

    #[test]
    fn a_cut_body_is_no_panic(cut in 0usize..210) {
        let line = include_str!("bodies.txt").lines().find(|line| line.starts_with("create-deployment")).unwrap();
        let whole = unhex(line.split(' ').next_back().unwrap());
        let _ = read("apps.v1.Deployment", &whole[..cut.min(whole.len())]);
    }

    #[test]
    fn a_config_map_is_what_was_encoded(data in prop::collection::btree_map("[a-z]{1,5}", "[^\u{0}]{1,8}", 1..5)) {
        let raw: Vec<u8> = data.iter().flat_map(|(k, v)| bytes(2, [bytes(1, k), bytes(2, v)].concat())).collect();
        let read = read("core.v1.ConfigMap", &body("v1", "ConfigMap", &raw)).unwrap();
        prop_assert_eq!(&read["data"], &json!(data));
    }
}
