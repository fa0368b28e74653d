//! The environment as users write it, and the sentences they get when it cannot be made.
#![expect(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::json;

use super::*;

fn objects() -> Snapshot {
    let map: ConfigMap = serde_json::from_value(json!({"data": {"color": "red", "bad=key": "x"}})).unwrap();
    let secret: Secret = serde_json::from_value(json!({"data": {"password": "czNjcmV0"}})).unwrap();
    let mut objects = Snapshot::default();
    objects.config_maps.insert("cm".into(), Arc::new(map));
    objects.secrets.insert("secret".into(), Arc::new(secret));
    objects
}

fn plan(container: serde_json::Value) -> Result<Environment, EnvError> {
    plan_with(container, &EnvFiles::new())
}

fn plan_with(container: serde_json::Value, files: &EnvFiles) -> Result<Environment, EnvError> {
    let pod: Pod = serde_json::from_value(
        json!({"metadata": {"name": "p", "namespace": "default"}, "spec": {"containers": [container]}}),
    )
    .unwrap();
    let input = EnvInput {
        pod: &pod,
        addresses: &PodAddresses { pod_ips: vec!["10.0.0.9".into()], host_ips: vec![] },
        objects: &objects(),
        api_service: &ApiService { host: "10.96.0.1".into(), port: 443 },
        allocatable: &Amounts::new(),
        links: &None,
        files,
    };
    plan_environment(input, &pod.spec.as_ref().unwrap().containers[0])
}

#[test]
fn every_source_of_a_variable_works_and_later_ones_win() {
    let environment = plan(json!({"name": "c",
        "envFrom": [{"configMapRef": {"name": "cm"}, "prefix": "P_"}, {"secretRef": {"name": "secret"}},
                    {"configMapRef": {"name": "none", "optional": true}}],
        "env": [
            {"name": "PLAIN", "value": "a$(P_color)$(NOPE)$$(X)"},
            {"name": "P_color", "value": "blue"},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "CM", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "color"}}},
            {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "password"}}},
            {"name": "MAYBE", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "no", "optional": true}}},
            {"name": "API", "value": "$(KUBERNETES_SERVICE_HOST)"}]}))
    .unwrap();
    for (name, value) in [
        ("PLAIN", "ared$(NOPE)$(X)"),
        ("P_color", "blue"),
        ("password", "s3cret"),
        ("IP", "10.0.0.9"),
        ("CM", "red"),
        ("SECRET", "s3cret"),
        ("API", "10.96.0.1"),
        ("KUBERNETES_PORT_443_TCP", "tcp://10.96.0.1:443"),
        ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
    ] {
        assert_eq!(environment.get(name), Some(value), "{name}");
    }
    assert_eq!(environment.get("MAYBE"), None);
    let skipped =
        SkippedKeys { keys: vec!["P_bad=key".into()], kind: "configMap", object: "default/cm".into() };
    assert_eq!(environment.skipped, [skipped]);
}

#[test]
fn a_missing_object_or_key_is_told_in_upstreams_words() {
    let key = |kind: &str, name: &str| {
        plan(json!({"name": "c", "env": [{"name": "A", "valueFrom": {kind: {"name": name, "key": "nope"}}}]}))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(key("configMapKeyRef", "none"), "configmap \"none\" not found");
    assert_eq!(key("secretKeyRef", "none"), "secret \"none\" not found");
    assert_eq!(key("configMapKeyRef", "cm"), "couldn't find key nope in ConfigMap default/cm");
    assert_eq!(key("secretKeyRef", "secret"), "couldn't find key nope in Secret default/secret");
}

#[test]
fn a_variable_comes_from_a_file_that_another_container_wrote() {
    let key = |key: &str, optional: bool| {
        let source = json!({"volumeName": "v", "path": "vars.env", "key": key, "optional": optional});
        json!({"name": "c", "env": [{"name": "A", "valueFrom": {"fileKeyRef": source}},
            {"name": "B", "value": "<$(A)>"}]})
    };
    let read = |outcome| EnvFiles::from([(("v".to_owned(), "vars.env".to_owned()), outcome)]);
    let good = read(Ok("HOST='db $(B)'\n".to_owned()));
    let environment = plan_with(key("HOST", false), &good).unwrap();
    assert_eq!((environment.get("A"), environment.get("B")), (Some("db $(B)"), Some("<db $(B)>")));
    let text = |container, files: &EnvFiles| plan_with(container, files).unwrap_err().to_string();
    assert_eq!(
        text(key("PORT", false), &good),
        "environment variable key \"PORT\" not found in file \"vars.env\" of the volume \"v\""
    );
    let absent = read(Err(ReadError::Absent("vars.env".into())));
    assert!(text(key("HOST", false), &absent).starts_with("variable A: couldn't parse env file: vars.env"));
    for files in [&good, &absent] {
        assert_eq!(plan_with(key("PORT", true), files).unwrap().get("A"), None);
    }
    assert_eq!(
        text(key("HOST", true), &read(Ok("HOST=db".to_owned()))),
        "variable A: couldn't parse env file: vars.env: invalid environment variable format at line 1: value must be enclosed in single quotes"
    );
    assert_eq!(
        text(key("HOST", true), &EnvFiles::new()),
        "variable A: cannot find the volume \"v\" referenced by FileKeyRef"
    );
}

#[test]
fn arguments_expand_against_the_whole_environment() {
    let environment = plan(json!({"name": "c", "env": [{"name": "A", "value": "1"}]})).unwrap();
    let arguments = vec!["--a=$(A)".to_owned(), "$(KUBERNETES_SERVICE_PORT)".to_owned(), "$(B)".to_owned()];
    assert_eq!(plan_arguments(Some(&arguments), &environment), ["--a=1", "443", "$(B)"]);
}
