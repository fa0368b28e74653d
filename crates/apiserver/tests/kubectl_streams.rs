//! `kubectl logs`, `exec`, `attach` and `port-forward` through the API server to a kubelet that is played by this test.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod common;
#[path = "kubectl_streams/kubelet.rs"]
mod kubelet;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;

use common::Cluster;

#[test]
fn logs_exec_and_attach_reach_the_kubelet() {
    let cluster = Cluster::start();
    let asked = kubelet::start(&cluster);
    let logs = cluster.ok(&["logs", "shell", "--tail=3", "--previous", "--timestamps"]);
    assert!(logs.starts_with("one\ntwo\n"), "{logs}");
    for part in ["previous=true", "timestamps=true", "tailLines=3"] {
        assert!(logs.contains(part), "{logs}");
    }
    assert_eq!(
        asked.lock().unwrap()[0].split('?').next().unwrap(),
        "kube-apiserver-kubelet-client /containerLogs/default/shell/shell"
    );
    let waiting = cluster.fails(&["logs", "waiting"], "");
    assert_eq!(
        waiting,
        "Error from server (BadRequest): container \"shell\" in pod \"waiting\" is waiting to start: ContainerCreating\n"
    );

    let ran = cluster.kubectl_with(&["exec", "-i", "shell", "--", "cat", "-A b"], "hello\n");
    assert_eq!(ran.out, "input=1&output=1&error=1&command=cat&command=-A%20b\nhello\n", "{ran:?}");
    assert_eq!(ran.code, 3, "{ran:?}");
    assert_eq!(ran.err, "command terminated with exit code 3\n");
    let attached = cluster.kubectl_with(&["attach", "-i", "shell"], "typed\n");
    assert!(attached.out.contains("typed\n"), "{attached:?}");

    let unclear = cluster.fails(&["get", "--raw", "/api/v1/namespaces/default/pods/two/log"], "");
    assert!(
        unclear.contains("a container name must be specified for pod two, choose one of: [a b]"),
        "{unclear}"
    );
    let unknown = cluster.fails(&["logs", "two", "-c", "x"], "");
    assert!(unknown.contains("container x is not valid for pod two"), "{unknown}");
}

#[test]
fn a_port_is_forwarded() {
    let cluster = Cluster::start();
    kubelet::start(&cluster);
    let mut forwarding = cluster.spawn(&["port-forward", "pod/shell", ":80"]);
    let mut said = BufReader::new(forwarding.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let address: SocketAddr = line.split_whitespace().nth(2).unwrap().parse().unwrap();
    for _ in 0..3 {
        let mut connection = std::net::TcpStream::connect(address).unwrap();
        connection.write_all(b"hello").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "hello to 80\n");
    }
    forwarding.kill().unwrap();
    forwarding.wait().unwrap();
}

#[test]
fn a_pod_without_a_node_has_no_shell_and_no_log_yet() {
    let cluster = Cluster::start();
    cluster.ok(&["run", "lonely", "--image=debian"]);
    assert_eq!(cluster.ok(&["logs", "lonely"]), "");
    let refused = cluster.fails(&["exec", "lonely", "--", "true"], "");
    assert!(refused.contains("pod lonely does not have a host assigned"), "{refused}");
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"lost"},"spec":{"nodeName":"gone","containers":[{"name":"c","image":"i"}]}}"#;
    cluster.ok_with(&["apply", "-f", "-"], pod);
    let refused = cluster.fails(&["logs", "lost"], "");
    assert!(refused.contains("nodes \"gone\" not found"), "{refused}");
}
