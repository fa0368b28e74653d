//! Warnings about Pods that are allowed and yet likely not meant: sent in `Warning` headers, shown by `kubectl`.

use serde_json::Value;

use crate::access::{Access, metadata, spec};
use crate::name::dns_label_faults;
use crate::quantity::Quantity;
use crate::validation::volume_mapping::{NONE, PREFIX, is_unmapped};
use crate::validation::{Path, quote};

const LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Volume types that no longer work, and since when.
const DEAD_VOLUMES: [(&str, &str, &str); 9] = [
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// All warnings about a new Pod; a changed Pod gets none, as upstream.
pub fn pod(pod: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some() {
        return Vec::new();
    }
    let mut out = Vec::new();
    name(pod, &mut out);
    volumes(spec(pod), &mut out);
    duplicates(spec(pod), &mut out);
    seccomp_annotations(pod, &mut out);
    for (path, container) in containers(spec(pod)) {
        fractional_bytes(container, &path, &mut out);
        hidden_variables(container, &path, &mut out);
    }
    ports(spec(pod), &mut out);
    if spec(pod).int("terminationGracePeriodSeconds").is_some_and(|s| s < 0) {
        out.push(
            "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
                .to_owned(),
        );
    }
    writable_host_paths(pod, &mut out);
    ids_outside_the_range(pod, &mut out);
    out
}

fn containers(spec: &Value) -> impl Iterator<Item = (Path, &Value)> {
    LISTS.into_iter().flat_map(move |list| {
        let path = Path::new("spec").child(list);
        spec.list(list).iter().enumerate().map(move |(i, container)| (path.index(i), container))
    })
}

fn name(pod: &Value, out: &mut Vec<String>) {
    let faults = dns_label_faults(metadata(pod).text("name"));
    if !faults.is_empty() {
        out.push(format!("metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]", faults.join(" ")));
    }
}

fn volumes(spec: &Value, out: &mut Vec<String>) {
    for (i, volume) in spec.list("volumes").iter().enumerate() {
        for (field, shown, text) in DEAD_VOLUMES {
            if volume.field(field).is_some() {
                out.push(format!("spec.volumes[{i}].{shown}: {text}"));
            }
        }
    }
}

fn duplicates(spec: &Value, out: &mut Vec<String>) {
    for (list, field) in [("hostAliases", "ip"), ("imagePullSecrets", "name")] {
        let mut seen: Vec<&str> = Vec::new();
        for (i, item) in spec.list(list).iter().enumerate() {
            let value = item.text(field);
            if seen.contains(&value) {
                out.push(format!("spec.{list}[{i}].{field}: duplicate {field} {}", quote(value)));
            }
            seen.push(value);
        }
    }
    for (i, _) in spec.list("imagePullSecrets").iter().enumerate().filter(|(_, s)| s.text("name").is_empty())
    {
        out.push(format!("spec.imagePullSecrets[{i}].name: invalid empty name \"\""));
    }
}

fn seccomp_annotations(pod: &Value, out: &mut Vec<String>) {
    const POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    const CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
    for (key, _) in metadata(pod).entries("annotations") {
        if key == POD || key.starts_with(CONTAINER) {
            out.push(format!("metadata.annotations[{key}]: non-functional in v1.27+; use the \"seccompProfile\" field instead"));
        }
    }
}

fn fractional_bytes(container: &Value, path: &Path, out: &mut Vec<String>) {
    for name in ["memory", "ephemeral-storage"] {
        for list in ["limits", "requests"] {
            let text = container.pointer(&format!("/resources/{list}/{name}")).and_then(Value::as_str);
            if let Some(amount) = text.and_then(|t| t.parse::<Quantity>().ok())
                && !amount.is_whole()
            {
                let path = path.child("resources").child(list).key(name);
                let amount = quote(&amount.to_string());
                out.push(format!("{path}: fractional byte value {amount} is invalid, must be an integer"));
            }
        }
    }
}

fn hidden_variables(container: &Value, path: &Path, out: &mut Vec<String>) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, variable) in container.list("env").iter().enumerate() {
        let (name, value) = (variable.text("name"), variable.text("value"));
        let reference = format!("$({name})");
        let extends =
            variable.field("valueFrom").is_none() && value != reference && value.contains(&reference);
        if seen.contains(&name) && !extends {
            let path = path.child("env").index(i);
            let name = quote(name);
            out.push(format!(
                "{path}: hides previous definition of {name}, which may be dropped when using apply"
            ));
        }
        seen.push(name);
    }
}

fn ports(spec: &Value, out: &mut Vec<String>) {
    let mut seen: Vec<(Path, &Value)> = Vec::new();
    for (path, container) in containers(spec) {
        for (i, port) in container.list("ports").iter().enumerate() {
            let path = path.child("ports").index(i);
            for (other_path, other) in &seen {
                if let Some(how) = clash(port, other) {
                    out.push(format!("{path}: {how} port definition with {other_path}"));
                }
            }
            let name = port.text("name");
            if let Some((other, _)) = seen.iter().find(|(_, p)| !name.is_empty() && p.text("name") == name) {
                let name = quote(name);
                out.push(format!("{path}: duplicate port name {name} with {other}, services and probes that select ports by name will use {other}"));
            }
            seen.push((path, port));
        }
    }
}

fn clash(port: &Value, other: &Value) -> Option<&'static str> {
    let key = |p: &Value| (p.int("containerPort"), p.text("protocol").to_owned());
    if key(port) != key(other) {
        return None;
    }
    let host = |p: &Value| (p.int("hostPort").unwrap_or_default(), p.text("hostIP").to_owned());
    let ((a, a_ip), (b, b_ip)) = (host(port), host(other));
    match () {
        () if (a, &a_ip) == (b, &b_ip) => Some("duplicate"),
        () if a == 0 || b == 0 => Some("overlapping"),
        () if a == b && a_ip.is_empty() != b_ip.is_empty() => Some("dangerously ambiguous"),
        () => None,
    }
}

/// A hostPath volume is ID-mapped in a Pod with a user namespace: its root writes there as the node's root.
fn writable_host_paths(pod: &Value, out: &mut Vec<String>) {
    if spec(pod).flag("hostUsers") != Some(false) {
        return;
    }
    for (i, volume) in spec(pod).list("volumes").iter().enumerate() {
        let Some(host_path) = volume.field("hostPath") else { continue };
        let name = volume.text("name");
        let is_writable = containers(spec(pod))
            .flat_map(|(_, c)| c.list("volumeMounts"))
            .any(|m| m.text("name") == name && !m.is_true("readOnly"));
        if is_writable && !is_unmapped(pod, name) {
            let target = host_path.text("path");
            out.push(format!("spec.volumes[{i}].hostPath: root in this Pod has the rights of the node's root below {target}, because the volume is ID-mapped and writable: mount it readOnly, or set the annotation {PREFIX}{name}: {NONE}"));
        }
    }
}

/// IDs that a Pod with a user namespace of the usual size does not have: its containers will not start.
fn ids_outside_the_range(pod: &Value, out: &mut Vec<String>) {
    const IDS_PER_POD: i64 = 65536;
    if spec(pod).flag("hostUsers") != Some(false) {
        return;
    }
    let mut check = |path: Path, context: Option<&Value>| {
        let Some(context) = context else { return };
        let groups = context.list("supplementalGroups").iter().enumerate();
        let groups = groups.map(|(i, group)| (path.child("supplementalGroups").index(i), group.as_i64()));
        let single = ["runAsUser", "runAsGroup", "fsGroup"].map(|name| (path.child(name), context.int(name)));
        for (path, id) in single.into_iter().chain(groups) {
            if let Some(id) = id.filter(|id| *id >= IDS_PER_POD) {
                out.push(format!("{path}: {id} is outside the IDs 0-{} that a Pod with `hostUsers: false` has on a node with the default `idsPerPod`", IDS_PER_POD - 1));
            }
        }
    };
    check(Path::new("spec").child("securityContext"), spec(pod).field("securityContext"));
    for (path, container) in containers(spec(pod)) {
        check(path.child("securityContext"), container.field("securityContext"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn warn(spec: &Value) -> Vec<String> {
        pod(&json!({"metadata": {"name": "p"}, "spec": spec}), None)
    }

    fn host_path(read_only: bool, annotations: &Value) -> Vec<String> {
        pod(
            &json!({"metadata": {"name": "p", "annotations": annotations}, "spec": {"hostUsers": false,
                "volumes": [{"name": "v", "hostPath": {"path": "/srv"}}],
                "containers": [{"volumeMounts": [{"name": "v", "mountPath": "/m", "readOnly": read_only}]}]}}),
            None,
        )
    }

    #[test]
    fn a_writable_host_path_in_a_user_namespace_is_told() {
        assert_eq!(
            host_path(false, &json!({})),
            [
                "spec.volumes[0].hostPath: root in this Pod has the rights of the node's root below /srv, because the volume is ID-mapped and writable: mount it readOnly, or set the annotation kakoi.dev/volume-mapping.v: none"
            ]
        );
        assert!(host_path(true, &json!({})).is_empty());
        assert!(host_path(false, &json!({"kakoi.dev/volume-mapping.v": "none"})).is_empty());
        assert!(
            warn(&json!({"volumes": [{"name": "v", "hostPath": {"path": "/srv"}}],
                "containers": [{"volumeMounts": [{"name": "v", "mountPath": "/m"}]}]}))
            .is_empty()
        );
    }

    #[test]
    fn an_id_that_the_pod_cannot_have_is_told() {
        let found =
            warn(&json!({"hostUsers": false, "containers": [{"securityContext": {"runAsUser": 70000}}]}));
        assert_eq!(found.len(), 1);
        assert!(
            found[0].starts_with(
                "spec.containers[0].securityContext.runAsUser: 70000 is outside the IDs 0-65535"
            )
        );
        assert!(warn(&json!({"containers": [{"securityContext": {"runAsUser": 70000}}]})).is_empty());
    }

    #[test]
    fn upstreams_warnings() {
        assert_eq!(
            warn(&json!({"volumes": [{"name": "v", "gitRepo": {}}]})),
            ["spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+"]
        );
        assert_eq!(
            warn(
                &json!({"containers": [{"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "A", "value": "x$(A)"}]}]})
            ),
            [
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply"
            ]
        );
        assert_eq!(
            warn(&json!({"containers": [{"resources": {"limits": {"memory": "100m"}}}]})),
            [
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer"
            ]
        );
        assert_eq!(
            warn(
                &json!({"containers": [{"ports": [{"containerPort": 80, "protocol": "TCP"}]}, {"ports": [{"containerPort": 80, "protocol": "TCP"}]}]})
            ),
            ["spec.containers[1].ports[0]: duplicate port definition with spec.containers[0].ports[0]"]
        );
        assert_eq!(
            pod(&json!({"metadata": {"name": "a.b"}}), None),
            [
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]"
            ]
        );
    }
}
