//! Pods from their creation to their end.

use kube::api::{DeleteParams, LogParams};
use serde_json::json;

use crate::node::{Node, restarts, until, waiting};
use crate::script::Script;

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_pod_runs_with_the_ids_of_its_record() {
    let node = Node::start().await;
    let pod = node.create("p", json!({"hostUsers": false})).await;
    let status = node.wait_for_phase("p", "Running").await;
    let record = std::fs::read_to_string(node.pod_dir(&pod).join("userns")).unwrap();
    assert_eq!(
        record,
        r#"{"uidMappings":[{"hostId":131072,"containerId":0,"length":65536}],"gidMappings":[{"hostId":131072,"containerId":0,"length":65536}]}"#
    );
    let map = cri::v1::IdMapping { host_id: 131_072, container_id: 0, length: 65_536 };
    {
        let books = node.script.books();
        let sandbox = books.sandboxes.values().next().unwrap();
        let context = sandbox.config.linux.as_ref().unwrap().security_context.as_ref().unwrap();
        let userns = context.namespace_options.as_ref().unwrap().userns_options.as_ref().unwrap();
        assert_eq!(userns.uids, [map]);
        let container = books.containers.values().next().unwrap();
        let mounts = &container.config.mounts;
        assert_eq!(mounts.len(), 2);
        assert!(mounts.iter().all(|mount| mount.uid_mappings == [map] && mount.gid_mappings == [map]), "F11");
    }
    assert_eq!(status.pod_ip.as_deref(), Some("10.99.0.1"));
    assert_eq!(status.host_ip.as_deref(), Some("127.0.0.1"));
    let first = &status.container_statuses.unwrap()[0];
    assert!(first.ready);
    assert_eq!(first.image, "docker.io/library/image:1");
    assert_eq!(first.container_id.as_deref(), Some("script://container-0002"));
    for reason in ["Pulling", "Pulled", "Created", "Started"] {
        node.wait_for_event("p", reason).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_leaves_nothing() {
    let node = Node::start().await;
    let pod = node
        .create(
            "p",
            json!({"hostUsers": false, "terminationGracePeriodSeconds": 7,
        "volumes": [{"name": "m", "emptyDir": {"medium": "Memory"}}],
        "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "m", "mountPath": "/m"}]}]}),
        )
        .await;
    node.wait_for_phase("p", "Running").await;
    node.pods().delete("p", &DeleteParams::default()).await.unwrap();
    node.wait_until_gone("p").await;
    until("its directory is gone", async || !node.pod_dir(&pod).exists()).await;
    until("its logs are gone", async || {
        std::fs::read_dir(node.directory.path().join("logs")).unwrap().next().is_none()
    })
    .await;
    {
        let books = node.script.books();
        assert!(books.sandboxes.is_empty() && books.containers.is_empty());
        assert!(books.calls.contains(&"stop_container 7".to_owned()), "{:?}", books.calls);
    }
    node.wait_for_event("p", "Killing").await;
    let next = node.create("q", json!({"hostUsers": false})).await;
    node.wait_for_phase("q", "Running").await;
    let record = std::fs::read_to_string(node.pod_dir(&next).join("userns")).unwrap();
    assert!(record.contains("196608"), "the block freed last is given last: {record}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_completes_keeps_its_status_and_frees_what_it_held() {
    let node = Node::start().await;
    let pod = node.create("p", json!({"hostUsers": false, "restartPolicy": "Never"})).await;
    node.wait_for_phase("p", "Running").await;
    node.script.exit("c", 0);
    let status = node.wait_for_phase("p", "Succeeded").await;
    let ended = |status: &k8s_openapi::api::core::v1::PodStatus| {
        status.container_statuses.as_ref().unwrap()[0].state.as_ref().unwrap().terminated.clone().unwrap()
    };
    assert_eq!(ended(&status).exit_code, 0);
    until("its IDs are free", async || !node.pod_dir(&pod).join("userns").exists()).await;
    assert!(node.script.books().sandboxes.is_empty());
    assert_eq!(ended(&node.status("p").await), ended(&status), "the status outlives the runtime's records");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashing_container_backs_off_and_its_logs_stay_readable() {
    let node = Node::start().await;
    let pod = node.create("p", json!({})).await;
    node.wait_for_phase("p", "Running").await;
    let uid = pod.metadata.uid.as_deref().unwrap();
    let logs = node.directory.path().join(format!("logs/default_p_{uid}/c"));
    std::fs::write(logs.join("0.log"), "2026-01-01T00:00:00Z stdout F first run\n").unwrap();
    node.script.exit("c", 1);
    node.wait_for("p", "restarted", |status| restarts(status) == 1 && waiting(status).is_none()).await;
    std::fs::write(logs.join("1.log"), "2026-01-01T00:00:00Z stdout F second run\n").unwrap();
    let log = |previous| {
        let params = LogParams { previous, ..LogParams::default() };
        let pods = node.pods();
        async move { pods.logs("p", &params).await.unwrap() }
    };
    assert_eq!(log(false).await, "second run\n");
    assert_eq!(log(true).await, "first run\n");
    node.script.exit("c", 1);
    let status = node.wait_for("p", "waiting", |status| waiting(status) == Some("CrashLoopBackOff")).await;
    let first = &status.container_statuses.unwrap()[0];
    let message = first.state.as_ref().unwrap().waiting.as_ref().unwrap().message.clone().unwrap();
    assert_eq!(message, format!("back-off 10s restarting failed container=c pod=p_default({uid})"));
    assert_eq!(first.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
    let event = node.wait_for_event("p", "BackOff").await;
    assert_eq!(
        event.message.as_deref(),
        Some(format!("Back-off restarting failed container c in pod p_default({uid})").as_str())
    );
    assert_eq!(event.involved_object.field_path.as_deref(), Some("spec.containers{c}"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_go_first() {
    let node = Node::start().await;
    node.create(
        "p",
        json!({"initContainers": [{"name": "i", "image": "i"}], "containers": [{"name": "c", "image": "i"}]}),
    )
    .await;
    node.wait_for("p", "initialising", |status| waiting(status) == Some("PodInitializing")).await;
    until("the init container runs", async || node.script.count("start_container") == 1).await;
    node.script.exit("i", 0);
    node.wait_for_phase("p", "Running").await;
    assert_eq!(node.script.count("start_container"), 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f01_without_support_of_the_handler_nothing_is_allocated() {
    let script = Script { has_userns: false, ..Script::new() };
    let node = Node::start_with(script, true).await;
    let pod = node.create("p", json!({"hostUsers": false})).await;
    let event = node.wait_for_event("p", "FailedCreatePodSandBox").await;
    assert_eq!(
        event.message.as_deref(),
        Some(
            "Failed to create pod sandbox: can't set `spec.hostUsers: false`, runtime does not support user namespaces"
        )
    );
    assert!(!node.pod_dir(&pod).join("userns").exists());
    assert_eq!(node.script.count("run_pod_sandbox"), 0);
    node.create("plain", json!({})).await;
    node.wait_for_phase("plain", "Running").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a18_with_the_gate_off_the_field_is_refused_by_name() {
    let node = Node::start_with(Script::new(), false).await;
    for (name, value) in [("yes", true), ("no", false)] {
        node.create(name, json!({"hostUsers": value})).await;
        let event = node.wait_for_event(name, "FailedCreatePodSandBox").await;
        let text = "Failed to create pod sandbox: the feature gate \"UserNamespacesSupport\" is disabled: can't set spec.HostUsers";
        assert_eq!(event.message.as_deref(), Some(text));
    }
    node.create("unset", json!({})).await;
    node.wait_for_phase("unset", "Running").await;
    {
        let books = node.script.books();
        let context =
            books.sandboxes.values().next().unwrap().config.linux.as_ref().unwrap().security_context.clone();
        assert_eq!(context.unwrap().namespace_options.unwrap().userns_options, None);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forbidden_sysctl_fails_the_pod() {
    let node = Node::start().await;
    let sysctls = json!([{"name": "kernel.core_pattern", "value": "x"}]);
    node.create("p", json!({"securityContext": {"sysctls": sysctls}})).await;
    let status = node.wait_for_phase("p", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("SysctlForbidden"));
    assert_eq!(
        status.message.as_deref(),
        Some("Pod was rejected: forbidden sysctl: \"kernel.core_pattern\" not allowlisted")
    );
    assert_eq!(node.script.count("run_pod_sandbox"), 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_past_its_deadline_fails() {
    let node = Node::start().await;
    node.create("p", json!({"activeDeadlineSeconds": 1, "terminationGracePeriodSeconds": 1})).await;
    let status = node.wait_for_phase("p", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
    until("it is stopped", async || node.script.books().sandboxes.is_empty()).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_the_node_ends_has_failed_when_its_containers_have_stopped() {
    let node = Node::start().await;
    node.script.hold("c");
    node.create("p", json!({"activeDeadlineSeconds": 4})).await;
    node.wait_for_phase("p", "Running").await;
    node.wait_for_event("p", "DeadlineExceeded").await;
    until("it is told to stop", async || node.script.count("stop_container") > 0).await;
    let status = node.status("p").await;
    assert_eq!((status.phase.as_deref(), status.reason), (Some("Running"), None));
    node.script.let_go("c");
    let status = node.wait_for_phase("p", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
    assert!(status.container_statuses.unwrap()[0].state.as_ref().unwrap().terminated.is_some());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_restarts_all_containers_in_their_place() {
    let mut node = Node::start().await;
    let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let spec = json!({"restartPolicy": "Never", "volumes": [{"name": "v", "emptyDir": {}}],
        "initContainers": [{"name": "setup", "image": "i"}],
        "containers": [{"name": "main", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "lifecycle": {"preStop": {"exec": {"command": ["never"]}}}},
            {"name": "watch", "image": "i", "restartPolicy": "Never", "restartPolicyRules": rules}]});
    let pod = node.create("p", spec).await;
    node.script.wait_for_run("setup", 1).await;
    node.script.exit("setup", 0);
    let before = node.wait_for_phase("p", "Running").await;
    let kept = node.pod_dir(&pod).join("volumes/kubernetes.io~empty-dir/v/kept");
    std::fs::write(&kept, "").unwrap();
    node.script.exit("watch", 42);
    let condition = |status: &k8s_openapi::api::core::v1::PodStatus| {
        let mut conditions = status.conditions.iter().flatten();
        conditions.find(|found| found.type_ == "AllContainersRestarting").cloned()
    };
    // The init container runs again, alone; the others' records are gone and their ends are told.
    until("setup runs again", async || {
        node.status("p").await.init_container_statuses.is_some_and(|list| list[0].restart_count == 1)
    })
    .await;
    let between = node.wait_for_phase("p", "Pending").await;
    assert_eq!(condition(&between).unwrap().status, "False");
    assert_eq!(node.script.runs("main").len(), 0);
    let ends: Vec<i32> = between
        .container_statuses
        .iter()
        .flatten()
        .map(|status| status.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code)
        .collect();
    assert_eq!(ends, [143, 42], "main was killed, watch ended by itself");
    assert!(node.script.books().calls.contains(&"stop_container 0".to_owned()));
    assert_eq!(node.script.count("exec never"), 0, "no hook runs");
    // A node agent that dies now goes on from here.
    node.stop_kubelet().await;
    node.start_kubelet().await;
    node.script.exit("setup", 0);
    let after = node.wait_for_phase("p", "Running").await;
    let counts: Vec<i32> =
        after.container_statuses.iter().flatten().map(|status| status.restart_count).collect();
    assert_eq!(counts, [1, 1]);
    assert_eq!((&after.pod_ip, node.script.count("run_pod_sandbox")), (&before.pod_ip, 1));
    assert!(kept.exists(), "volumes stay");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_all_containers_is_completed_after_the_node_agent_died_in_it() {
    let mut node = Node::start().await;
    let rules =
        json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "NotIn", "values": [0]}}]);
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "main", "image": "i"},
        {"name": "watch", "image": "i", "restartPolicy": "Never", "restartPolicyRules": rules}]});
    node.create("p", spec).await;
    node.wait_for_phase("p", "Running").await;
    node.script.fail_next("remove_container", "the disk is slow");
    node.script.exit("watch", 1);
    node.wait_for_event("p", "FailedSync").await;
    node.stop_kubelet().await;
    node.start_kubelet().await;
    let status = node.wait_for("p", "running again", |status| restarts(status) == 1).await;
    assert!(status.container_statuses.unwrap().iter().all(|status| status.restart_count == 1));
    node.stop().await;
}
