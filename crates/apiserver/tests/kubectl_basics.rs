//! Sessions with the real `kubectl`: what a user types and sees.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod common;

use common::Cluster;

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: { name: userns }
spec:
  hostUsers: false
  containers:
  - name: shell
    command: [\"sleep\", \"infinity\"]
    image: debian
";

#[test]
fn a_pod_is_applied_changed_and_deleted() {
    let cluster = Cluster::start();
    assert_eq!(cluster.ok_with(&["apply", "-f", "-"], POD), "pod/userns created\n");
    assert_eq!(cluster.ok_with(&["apply", "-f", "-"], POD), "pod/userns unchanged\n");
    let wide = cluster.ok(&["get", "pod", "-o", "wide"]);
    let head: Vec<&str> = wide.lines().next().unwrap().split_whitespace().collect();
    let expected = "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES HOST-UIDS";
    assert_eq!(head.join(" "), expected);
    assert!(wide.lines().nth(1).unwrap().starts_with("userns   0/1     Pending   0 "), "{wide}");
    assert_eq!(cluster.ok(&["label", "pod", "userns", "a=b"]), "pod/userns labeled\n");
    assert_eq!(cluster.ok(&["annotate", "pod", "userns", "c=d"]), "pod/userns annotated\n");
    assert_eq!(cluster.ok(&["get", "pod", "-l", "a=b", "-o", "name"]), "pod/userns\n");
    assert_eq!(cluster.ok(&["get", "pod", "-l", "a!=b", "-o", "name"]), "");
    let path = "{.metadata.generation} {.metadata.labels.a} {.spec.hostUsers} {.status.qosClass}";
    let shown = cluster.ok(&["get", "pod", "userns", "-o", &format!("jsonpath={path}")]);
    assert_eq!(shown, "1 b false BestEffort");
    let described = cluster.ok(&["describe", "pod", "userns"]);
    for line in
        ["Status:           Pending", "Service Account:  default", "Events:                      <none>"]
    {
        assert!(described.contains(line), "{described}");
    }
    assert_eq!(cluster.ok(&["delete", "pod", "userns"]), "pod \"userns\" deleted\n");
    let gone = cluster.fails(&["get", "pod", "userns"], "");
    assert_eq!(gone, "Error from server (NotFound): pods \"userns\" not found\n");
}

#[test]
fn a_scheduled_pod_goes_when_its_kubelet_says_so() {
    let cluster = Cluster::start();
    let pod = POD.replace("spec:", "spec:\n  nodeName: node");
    cluster.ok_with(&["apply", "-f", "-"], &pod);
    cluster.ok(&["delete", "pod", "userns", "--wait=false"]);
    let path = "jsonpath={.metadata.deletionGracePeriodSeconds} {.metadata.generation}";
    assert_eq!(cluster.ok(&["get", "pod", "userns", "-o", path]), "30 2");
    assert!(cluster.ok(&["get", "pod", "userns"]).contains("Terminating"));
    // A longer grace changes nothing, a shorter one counts.
    cluster.ok(&["delete", "pod", "userns", "--wait=false", "--grace-period=40"]);
    assert_eq!(cluster.ok(&["get", "pod", "userns", "-o", path]), "30 2");
    cluster.ok(&["delete", "pod", "userns", "--wait=false", "--grace-period=5"]);
    assert_eq!(cluster.ok(&["get", "pod", "userns", "-o", path]), "5 2");
    cluster.ok(&["delete", "pod", "userns", "--force", "--grace-period=0"]);
    cluster.fails(&["get", "pod", "userns"], "");
}

#[test]
fn every_kind_of_patch_works() {
    let cluster = Cluster::start();
    cluster.ok(&["create", "configmap", "c", "--from-literal=a=1", "--from-literal=b=2"]);
    let data = || cluster.ok(&["get", "configmap", "c", "-o", "jsonpath={.data}"]);
    cluster.ok(&["patch", "configmap", "c", "-p", r#"{"data":{"a":null,"c":"3"}}"#]);
    assert_eq!(data(), r#"{"b":"2","c":"3"}"#);
    cluster.ok(&["patch", "configmap", "c", "--type=merge", "-p", r#"{"data":{"b":"x"}}"#]);
    assert_eq!(data(), r#"{"b":"x","c":"3"}"#);
    let patch = r#"[{"op":"test","path":"/data/b","value":"x"},{"op":"remove","path":"/data/b"}]"#;
    cluster.ok(&["patch", "configmap", "c", "--type=json", "-p", patch]);
    assert_eq!(data(), r#"{"c":"3"}"#);
    let refused = cluster.fails(&["patch", "configmap", "c", "--type=json", "-p", patch], "");
    assert!(refused.contains("the server rejected our request due to an error in our request"), "{refused}");
    assert_eq!(
        cluster.ok(&["patch", "configmap", "c", "-p", r#"{"data":{"c":"3"}}"#]),
        "configmap/c patched (no change)\n"
    );
}

#[test]
fn generators_send_protobuf_and_are_understood() {
    let cluster = Cluster::start();
    cluster.ok(&["create", "serviceaccount", "robot"]);
    cluster.ok(&["create", "secret", "generic", "s", "--from-literal=password=hunter2"]);
    let secret = cluster.ok(&["get", "secret", "s", "-o", "jsonpath={.type} {.data.password}"]);
    assert_eq!(secret, "Opaque aHVudGVyMg==");
    assert_eq!(cluster.ok(&["auth", "can-i", "create", "pods"]), "yes\n");
    assert!(cluster.ok(&["auth", "whoami"]).contains("kubernetes-admin"));
    let listed = cluster.ok(&["auth", "can-i", "--list"]);
    assert!(listed.contains("*.*"), "{listed}");
    assert_eq!(cluster.ok(&["create", "token", "robot"]).split('.').count(), 3);
    let short = cluster.fails(&["create", "token", "robot", "--duration=1m"], "");
    assert!(short.contains("may not specify a duration less than 10 minutes"), "{short}");
}

#[test]
fn a_service_accounts_token_says_who_it_is_and_may_do_little() {
    let cluster = Cluster::start();
    cluster.ok(&["create", "serviceaccount", "robot"]);
    let token = cluster.ok(&["create", "token", "robot"]);
    let address = format!("https://{}", cluster.server.as_ref().unwrap().address());
    // Without --kubeconfig's client certificate the token is the only credential.
    let empty = cluster.directory.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let ca = cluster.directory.path().join("pki/ca.crt");
    let ask = |words: &[&str]| {
        let mut command = std::process::Command::new("kubectl");
        command.args(["--kubeconfig", empty.to_str().unwrap(), "--server", &address]);
        command.args(["--certificate-authority", ca.to_str().unwrap(), "--token", token.trim()]);
        command.args(words).env("HOME", cluster.directory.path()).env_remove("KUBECONFIG");
        let output = command.output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (who, _) = ask(&["auth", "whoami"]);
    assert!(who.contains("system:serviceaccount:default:robot"), "{who}");
    assert!(
        who.contains("[system:serviceaccounts system:serviceaccounts:default system:authenticated]"),
        "{who}"
    );
    let (_, refused) = ask(&["get", "pods"]);
    assert_eq!(
        refused,
        "Error from server (Forbidden): pods is forbidden: User \"system:serviceaccount:default:robot\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"\n"
    );
    cluster.ok(&["delete", "serviceaccount", "robot"]);
    let (_, refused) = ask(&["auth", "whoami"]);
    assert!(refused.contains("You must be logged in to the server"), "{refused}");
}

#[test]
fn watching_shows_each_change() {
    use std::io::{BufRead, BufReader};
    let cluster = Cluster::start();
    let mut watching = cluster.spawn(&[
        "get",
        "configmap",
        "-w",
        "--output-watch-events",
        "-o",
        "jsonpath={.type} {.object.metadata.name}{\"\\n\"}",
    ]);
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines().map(Result::unwrap);
    cluster.ok(&["create", "configmap", "w"]);
    assert_eq!(lines.next().unwrap(), "ADDED w");
    cluster.ok(&["label", "configmap", "w", "x=y"]);
    assert_eq!(lines.next().unwrap(), "MODIFIED w");
    cluster.ok(&["delete", "configmap", "w"]);
    assert_eq!(lines.next().unwrap(), "DELETED w");
    watching.kill().unwrap();
    watching.wait().unwrap();
}

#[test]
fn waiting_ends_when_the_condition_comes() {
    let cluster = Cluster::start();
    cluster.ok_with(&["apply", "-f", "-"], POD);
    let mut waiting = cluster.spawn(&["wait", "--for=condition=Ready", "pod/userns", "--timeout=20s"]);
    let status = r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
    cluster.ok(&["patch", "pod", "userns", "--subresource=status", "--type=merge", "-p", status]);
    assert!(waiting.wait().unwrap().success());
    cluster.ok(&["delete", "pod", "userns"]);
    cluster.ok(&["wait", "--for=delete", "pod/userns", "--timeout=20s"]);
}

#[test]
fn a_dry_run_changes_nothing_and_a_diff_shows_the_change() {
    let cluster = Cluster::start();
    let said = cluster.ok_with(&["apply", "--dry-run=server", "-f", "-"], POD);
    assert_eq!(said, "pod/userns created (server dry run)\n");
    cluster.fails(&["get", "pod", "userns"], "");
    cluster.ok_with(&["apply", "-f", "-"], POD);
    assert_eq!(cluster.kubectl_with(&["diff", "-f", "-"], POD).code, 0);
    let changed =
        cluster.kubectl_with(&["diff", "-f", "-"], &POD.replace("image: debian", "image: debian:13"));
    assert_eq!(changed.code, 1, "{changed:?}");
    assert!(
        changed.out.contains("+  - image: debian:13") || changed.out.contains("+    image: debian:13"),
        "{changed:?}"
    );
}

#[test]
fn replacing_needs_the_newest_version() {
    let cluster = Cluster::start();
    cluster.ok(&["create", "configmap", "r", "--from-literal=a=1"]);
    let old = cluster.ok(&["get", "configmap", "r", "-o", "yaml"]);
    cluster.ok(&["patch", "configmap", "r", "-p", r#"{"data":{"a":"2"}}"#]);
    let refused = cluster.fails(&["replace", "-f", "-"], &old);
    assert!(
        refused.contains("Operation cannot be fulfilled on configmaps \"r\": the object has been modified; please apply your changes to the latest version and try again"),
        "{refused}"
    );
    let newest = cluster.ok(&["get", "configmap", "r", "-o", "yaml"]);
    assert_eq!(
        cluster.ok_with(&["replace", "-f", "-"], &newest.replace("\"2\"", "\"3\"")),
        "configmap/r replaced\n"
    );
}

#[test]
fn the_api_describes_itself() {
    let cluster = Cluster::start();
    let resources = cluster.ok(&["api-resources", "-o", "wide"]);
    let versions = cluster.ok(&["api-versions"]);
    common::golden::golden("api_resources.txt", &format!("{resources}\n{versions}"));
    let version = cluster.ok(&["version"]);
    assert!(version.contains("Server Version: v1.36."), "{version}");
    assert_eq!(cluster.ok(&["get", "--raw", "/readyz"]), "ok");
    let verbose = cluster.ok(&["get", "--raw", "/readyz?verbose"]);
    assert!(verbose.starts_with("[+]ping ok\n") && verbose.ends_with("readyz check passed\n"), "{verbose}");
    assert!(cluster.ok(&["get", "--raw", "/metrics"]).contains("apiserver_request_total{"));
    assert!(cluster.ok(&["get", "--raw", "/openid/v1/jwks"]).contains("ES256"));
}

#[test]
fn namespaces_come_and_go_as_upstream_does() {
    let cluster = Cluster::start();
    let refused = cluster.fails(&["delete", "namespace", "default"], "");
    assert_eq!(
        refused,
        "Error from server (Forbidden): namespaces \"default\" is forbidden: this namespace may not be deleted\n"
    );
    cluster.ok(&["create", "namespace", "team"]);
    assert_eq!(
        cluster.ok(&["get", "namespace", "team", "-o", "jsonpath={.metadata.labels}"]),
        r#"{"kubernetes.io/metadata.name":"team"}"#
    );
    cluster.ok(&["delete", "namespace", "team", "--wait=false"]);
    assert!(cluster.ok(&["get", "namespace", "team"]).contains("Terminating"));
    let refused = cluster.fails(&["create", "configmap", "c", "-n", "team"], "");
    assert!(
        refused.contains("configmaps \"c\" is forbidden: unable to create new content in namespace team because it is being terminated"),
        "{refused}"
    );
    let finalized =
        r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"team"},"spec":{"finalizers":[]}}"#;
    cluster.ok_with(&["replace", "--raw", "/api/v1/namespaces/team/finalize", "-f", "-"], finalized);
    cluster.fails(&["get", "namespace", "team"], "");
    let refused = cluster.fails(&["create", "configmap", "c", "-n", "nowhere"], "");
    assert!(refused.contains("namespaces \"nowhere\" not found"), "{refused}");
}

#[test]
fn bad_input_is_refused_in_upstreams_words() {
    let cluster = Cluster::start();
    let strict = cluster
        .fails(&["create", "-f", "-"], "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndatax: {}\n");
    assert!(
        strict.contains("ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"datax\""),
        "{strict}"
    );
    let wrong = cluster
        .fails(&["create", "-f", "-"], "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: 5\n");
    assert!(
        wrong.contains("cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type map[string]string"),
        "{wrong}"
    );
    let warned = cluster.kubectl_with(
        &["create", "--validate=warn", "-f", "-"],
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndatax: {}\n",
    );
    assert_eq!(warned.code, 0, "{warned:?}");
    assert!(warned.err.contains("Warning: unknown field \"datax\""), "{warned:?}");
    let taken = cluster.fails(&["create", "configmap", "c"], "");
    assert_eq!(taken, "error: failed to create configmap: configmaps \"c\" already exists\n");
    let unknown = cluster.fails(&["get", "configmap", "--field-selector", "data.x=1"], "");
    assert!(unknown.contains("data.x"), "{unknown}");
    let account = cluster
        .fails(&["run", "p", "--image=i", "--overrides={\"spec\":{\"serviceAccountName\":\"none\"}}"], "");
    assert!(
        account.contains("pods \"p\" is forbidden: error looking up service account default/none: serviceaccount \"none\" not found"),
        "{account}"
    );
}
