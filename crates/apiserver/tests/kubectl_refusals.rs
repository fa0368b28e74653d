//! Bad input through `kubectl`: each refusal as the user sees it, held in `golden/refusals.txt`. `UPDATE_GOLDEN=1` writes
//! the file anew; read the difference before you commit it.

#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

mod common;

use std::fmt::Write as _;
use std::path::Path;

use common::Cluster;

/// A title, `kubectl`'s arguments, and its standard input.
type Case = (&'static str, &'static [&'static str], &'static str);

const CREATE: &[&str] = &["create", "-f", "-"];

const CASES: &[Case] = &[
    ("broken YAML", CREATE, "apiVersion: v1\nkind: Pod\n  metadata: {name: p}\n"),
    ("an unknown kind", CREATE, "apiVersion: v1\nkind: Podd\nmetadata: {name: p}\n"),
    (
        "an unknown field",
        CREATE,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  hostusers: false\n  containers: [{name: c, image: i}]\n",
    ),
    (
        "a wrong type",
        CREATE,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  hostUsers: \"no\"\n  containers: [{name: c, image: i}]\n",
    ),
    (
        "a number where a text must be",
        CREATE,
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {port: 80}\n",
    ),
    ("a bad name and no containers", CREATE, "apiVersion: v1\nkind: Pod\nmetadata: {name: P_0}\nspec: {}\n"),
    (
        "hostUsers: false with hostNetwork",
        CREATE,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {hostUsers: false, hostNetwork: true, containers: [{name: c, image: i}]}\n",
    ),
    (
        "hostUsers: false with hostPID and hostIPC",
        CREATE,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {hostUsers: false, hostPID: true, hostIPC: true, containers: [{name: c, image: i}]}\n",
    ),
    (
        "hostUsers: false with volumeDevices",
        CREATE,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  hostUsers: false\n  containers: [{name: c, image: i, volumeDevices: [{name: v, devicePath: /dev/x}]}]\n  volumes: [{name: v, persistentVolumeClaim: {claimName: v}}]\n",
    ),
    (
        "runAsUser out of range",
        CREATE,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {securityContext: {runAsUser: -1}, containers: [{name: c, image: i}]}\n",
    ),
    (
        "a volume that isn't there",
        CREATE,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}]}]}\n",
    ),
    (
        "an unknown service account",
        CREATE,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {serviceAccountName: ghost, containers: [{name: c, image: i}]}\n",
    ),
    (
        "an unknown priority class",
        CREATE,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {priorityClassName: ghost, containers: [{name: c, image: i}]}\n",
    ),
    ("a namespace that isn't there", &["create", "configmap", "c", "-n", "ghost"], ""),
    ("a name that is taken", &["create", "namespace", "default"], ""),
    ("something that isn't there", &["get", "pod", "ghost"], ""),
    ("a kind that isn't there", &["get", "foos"], ""),
    ("a bad label selector", &["get", "pods", "-l", "a in (b"], ""),
    ("a bad field selector", &["get", "pods", "--field-selector", "spec.foo=x"], ""),
    (
        "a field of a Pod that can't be changed",
        &["patch", "pod", "good", "-p", "{\"spec\":{\"hostUsers\":false}}"],
        "",
    ),
    (
        "a name that can't be changed",
        &["patch", "configmap", "kept", "-p", "{\"metadata\":{\"name\":\"other\"}}"],
        "",
    ),
    ("a patch of a wrong type", &["patch", "configmap", "kept", "-p", "{\"data\":{\"a\":1}}"], ""),
    ("a patch that isn't JSON", &["patch", "configmap", "kept", "--type=merge", "-p", "data: ["], ""),
    (
        "a patch with an unknown field",
        &["patch", "configmap", "kept", "-p", "{\"datax\":{}}", "--field-manager=m"],
        "",
    ),
    (
        "a JSON patch whose test fails",
        &[
            "patch",
            "configmap",
            "kept",
            "--type=json",
            "-p",
            "[{\"op\":\"test\",\"path\":\"/data/a\",\"value\":\"x\"}]",
        ],
        "",
    ),
    (
        "server-side apply of an unknown field",
        &["apply", "--server-side", "-f", "-"],
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndatax: {}\n",
    ),
    ("an immutable ConfigMap", &["patch", "configmap", "fixed", "-p", "{\"data\":{\"a\":\"2\"}}"], ""),
    ("the namespace default", &["delete", "namespace", "default"], ""),
    ("a token that is too short", &["create", "token", "default", "--duration=10s"], ""),
    ("a token for nobody", &["create", "token", "ghost"], ""),
    ("a command in a Pod without a node", &["exec", "good", "--", "true"], ""),
];

const BEFORE: &str = "
apiVersion: v1
kind: Pod
metadata: {name: good}
spec: {containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: kept}
data: {a: '1'}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: fixed}
immutable: true
data: {a: '1'}
";

#[test]
fn refusals_read_as_upstreams() {
    let cluster = Cluster::start();
    cluster.ok_with(&["create", "-f", "-"], BEFORE);
    let before = cluster.ok(&["get", "pods,configmaps,namespaces", "-A", "-o", "name"]);
    let mut all = String::new();
    for (title, arguments, input) in CASES {
        let said = cluster.kubectl_with(arguments, input);
        let text = format!("{}{}", said.out, said.err);
        writeln!(all, "# {title}: exit {}\n{}\n", said.code, text.trim_end()).unwrap();
    }
    let after = cluster.ok(&["get", "pods,configmaps,namespaces", "-A", "-o", "name"]);
    assert_eq!(after, before, "a refused request leaves something behind");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/refusals.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(golden.parent().unwrap()).unwrap();
        std::fs::write(&golden, &all).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(all == expected, "the refusals differ from {}:\n{all}", golden.display());
}
