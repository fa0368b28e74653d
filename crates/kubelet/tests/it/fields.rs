//! Fields of a container that show in what the runtime is asked, and in what is read back from the node.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, PodStatus, Service};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::node::{Node, until};

async fn serve(node: &Node, namespace: &str, name: &str, spec: Value) -> Service {
    let services: Api<Service> = Api::namespaced(node.admin.clone(), namespace);
    let object = json!({"metadata": {"name": name}, "spec": spec});
    services.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_tells_of_the_services_of_the_namespace_unless_the_pod_wants_none() {
    let node = Node::start().await;
    let ports = json!([{"name": "http", "port": 80}, {"name": "metrics", "port": 9090, "protocol": "UDP"}]);
    let web = serve(&node, "default", "web-front", json!({"ports": ports})).await;
    serve(&node, "default", "headless", json!({"clusterIP": "None", "ports": [{"port": 1}]})).await;
    serve(&node, "kube-system", "elsewhere", json!({"ports": [{"port": 1}]})).await;
    let address = web.spec.unwrap().cluster_ip.unwrap();
    until("the node agent has seen the Services", async || {
        let name = format!("probe-{}", node.script.count("create_container"));
        let containers = json!([{"name": "probe", "image": "i"}]);
        node.create(&name, json!({"restartPolicy": "Never", "containers": containers})).await;
        node.wait_for_phase(&name, "Running").await;
        let seen = node.script.runs("probe").last().unwrap().env("WEB_FRONT_SERVICE_HOST");
        seen.is_some()
    })
    .await;
    let with = |links: bool, name: &str| {
        json!({"enableServiceLinks": links, "containers": [{"name": name, "image": "i",
        "env": [{"name": "URL", "value": "http://$(WEB_FRONT_SERVICE_HOST):$(WEB_FRONT_SERVICE_PORT_HTTP)"}]}]})
    };
    node.create("linked", with(true, "linked")).await;
    node.create("alone", with(false, "alone")).await;
    let linked = node.script.wait_for_run("linked", 1).await;
    let env = |name: &str| linked.env(name);
    assert_eq!(env("WEB_FRONT_SERVICE_HOST"), Some(address.clone()));
    assert_eq!(env("WEB_FRONT_SERVICE_PORT").as_deref(), Some("80"));
    assert_eq!(env("WEB_FRONT_PORT_9090_UDP"), Some(format!("udp://{address}:9090")));
    assert_eq!(env("URL"), Some(format!("http://{address}:80")));
    assert_eq!((env("HEADLESS_SERVICE_HOST"), env("ELSEWHERE_SERVICE_HOST")), (None, None));
    let alone = node.script.wait_for_run("alone", 1).await;
    assert_eq!(alone.env("WEB_FRONT_SERVICE_HOST"), None);
    for run in [&linked, &alone] {
        assert_eq!(
            run.env("KUBERNETES_SERVICE_HOST").as_deref(),
            Some("10.96.0.1"),
            "the API is always told"
        );
    }
    node.stop().await;
}

/// How the container of this name ended.
fn end(status: &PodStatus, name: &str) -> Option<ContainerStateTerminated> {
    let statuses = status.container_statuses.as_ref()?;
    statuses.iter().find(|status| status.name == name)?.state.as_ref()?.terminated.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_says_at_its_end_is_in_its_status() {
    let node = Node::start().await;
    let policy = "FallbackToLogsOnError";
    let pod = node
        .create(
            "p",
            json!({"restartPolicy": "Never", "containers": [
            {"name": "says", "image": "i", "terminationMessagePath": "/var/last", "terminationMessagePolicy": policy},
            {"name": "logs", "image": "i", "terminationMessagePolicy": policy},
            {"name": "fine", "image": "i", "terminationMessagePolicy": policy},
            {"name": "mute", "image": "i"}]}),
        )
        .await;
    node.wait_for_phase("p", "Running").await;
    let (meta, logs) = (&pod.metadata, node.directory.path().join("logs"));
    let logs = logs.join(format!("default_p_{}", meta.uid.as_deref().unwrap()));
    for name in ["says", "logs", "fine", "mute"] {
        std::fs::write(logs.join(name).join("0.log"), "2026-01-01T00:00:00Z stderr F from the log\n")
            .unwrap();
    }
    let run = node.script.runs("says").remove(0);
    let file = run.config.mounts.iter().find(|mount| mount.container_path == "/var/last").unwrap();
    std::fs::write(&file.host_path, "from the file").unwrap();
    assert!(
        node.script.runs("mute")[0]
            .config
            .mounts
            .iter()
            .any(|mount| mount.container_path == "/dev/termination-log")
    );
    for (name, exit_code) in [("says", 1), ("logs", 1), ("fine", 0), ("mute", 1)] {
        node.script.exit(name, exit_code);
    }
    let status = node.wait_for_phase("p", "Failed").await;
    let message = |name: &str| end(&status, name).unwrap().message;
    assert_eq!(message("says").as_deref(), Some("from the file"));
    assert_eq!(message("logs").as_deref(), Some("from the log\n"));
    assert_eq!(
        (message("fine"), message("mute")),
        (None, None),
        "logs count after a failure, and when they are asked for"
    );
    node.stop().await;
}
