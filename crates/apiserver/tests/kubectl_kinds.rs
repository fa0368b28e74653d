//! Sessions of the real `kubectl` with the kinds of a whole cluster. What it prints is held in `golden/kinds.txt`;
//! `UPDATE_GOLDEN=1` writes the file anew, and the difference is to be read before it is committed.

#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

mod common;

use std::fmt::Write as _;

use common::Cluster;
use common::golden::{golden, steady};

/// `kubectl`'s arguments, one command a line, in the order of one session.
const SESSION: &[&str] = &[
    "create deployment web --image=nginx:1.27 --replicas=2",
    "create serviceaccount robot",
    "create quota small --hard=pods=3,limits.cpu=2",
    "create configmap settings --from-literal=a=1",
    "create role reader --verb=get,list --resource=pods",
    "create rolebinding readers --role=reader --serviceaccount=default:robot --user=jane",
    "create clusterrole auditor --verb=get --resource=nodes",
    "create clusterrolebinding auditors --clusterrole=auditor --group=audit",
    "create job once --image=debian -- true",
    "create cronjob often --image=debian --schedule=*/5\u{a0}*\u{a0}*\u{a0}*\u{a0}* -- true",
    "create poddisruptionbudget web --selector=app=web --min-available=1",
    "create priorityclass high --value=1000",
    "create ingress web --rule=example.org/*=web:80",
    "create service externalname far --external-name=example.org",
    "create service clusterip bare --clusterip=None",
    "expose deployment web --port=80 --cluster-ip=10.96.0.80",
    "autoscale deployment web --min=1 --max=5 --cpu-percent=80",
    "scale deployment web --replicas=3",
    "get deployment web -o jsonpath={.spec.replicas}{.metadata.generation}",
    "get horizontalpodautoscalers.v1.autoscaling web -o jsonpath={.spec.targetCPUUtilizationPercentage}",
    "get horizontalpodautoscalers.v2.autoscaling web -o jsonpath={.spec.metrics[0].resource.target.averageUtilization}",
    "get service web -o jsonpath={.spec.clusterIPs}{.spec.ipFamilies}{.spec.type}",
    "get ipaddress 10.96.0.80 -o jsonpath={.spec.parentRef.name}",
    "get deployment,quota,rolebinding,job,cronjob,pdb,ingress,service,hpa -o wide",
    "get clusterrolebinding/auditors priorityclass/high servicecidr/kubernetes -o wide",
    "get componentstatuses",
    "patch deployment web --subresource=scale --type=merge -p {\"spec\":{\"replicas\":0}}",
    "get deployment web -o jsonpath={.spec.replicas}",
    "delete service web",
    "get ipaddress 10.96.0.80",
];

/// Commands that the server refuses, with their input.
const REFUSED: &[(&str, &str)] = &[
    ("patch deployment web --subresource=scale --type=merge -p {\"spec\":{\"replicas\":-1}}", ""),
    ("expose deployment web --name=taken --port=80 --cluster-ip=10.96.0.1", ""),
    (
        "create -f -",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec:\n  selector: {matchLabels: {app: a}}\n  template: {metadata: {labels: {app: b}}, spec: {containers: [{name: c, image: i}]}}\n",
    ),
    (
        "create -f -",
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {type: NodePort, ports: [{port: 80, nodePort: 80}]}\n",
    ),
    (
        "create -f -",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: np}\nspec: {podSelector: {}, ingress: [{from: [{}]}]}\n",
    ),
];

#[test]
fn a_session_with_the_kinds_of_a_cluster_reads_as_upstreams() {
    let cluster = Cluster::start();
    let mut text = String::new();
    for line in SESSION {
        let arguments: Vec<String> = line.split(' ').map(|word| word.replace('\u{a0}', " ")).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let said = cluster.kubectl(&arguments);
        write!(text, "$ kubectl {line}\n{}{}\n", steady(&said.out), said.err).unwrap();
    }
    for (line, input) in REFUSED {
        let arguments: Vec<&str> = line.split(' ').collect();
        write!(text, "$ kubectl {line}\n{}\n", cluster.fails(&arguments, input)).unwrap();
    }
    golden("kinds.txt", &text.replace('\u{a0}', " "));
}

#[test]
fn every_field_is_explained() {
    let cluster = Cluster::start();
    let field = cluster.ok(&["explain", "pod.spec.hostUsers"]);
    assert!(field.contains("FIELD: hostUsers <boolean>"), "{field}");
    assert!(field.contains("Use the host's user namespace."), "{field}");
    let all = cluster.ok(&["explain", "deployment", "--recursive"]);
    for line in ["GROUP:      apps", "  spec\t<DeploymentSpec>", "        hostUsers\t<boolean>"] {
        assert!(all.contains(line), "{all}");
    }
    let older = cluster.ok(&["get", "--raw", "/openapi/v2"]);
    assert!(older.starts_with(r#"{"swagger":"2.0""#), "{}", older.get(..100).unwrap_or_default());
}
