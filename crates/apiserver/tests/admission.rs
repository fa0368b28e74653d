//! What the server adds to or forbids in a write beside the kind's own rules: one case a step of the list.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod common;

use common::client::World;
use http::{Method, StatusCode};
use serde_json::{Value, json};

const HERE: &str = "/api/v1/namespaces/default";

fn pod(name: &str, more: &Value) -> Value {
    let mut pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for (key, value) in more.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

async fn world() -> World {
    let world = World::new().await;
    world.admin.make(&format!("{HERE}/serviceaccounts"), json!({"metadata": {"name": "default"}})).await;
    world
}

#[tokio::test]
async fn a_limit_range_fills_in_and_refuses() {
    let world = world().await;
    let pods = format!("{HERE}/pods");
    let range = json!({"metadata": {"name": "r"}, "spec": {"limits": [
        {"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "2"}}]}});
    world.admin.make(&format!("{HERE}/limitranges"), range).await;
    let made = world.admin.make(&pods, pod("p", &json!({}))).await;
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}})
    );
    let greedy = json!({"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "3"}}}]});
    let (code, refused) = world.admin.ask(Method::POST, &pods, pod("q", &greedy)).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(
        refused["message"],
        "pods \"q\" is forbidden: maximum cpu usage per Container is 2, but limit is 3"
    );
}

#[tokio::test]
async fn a_class_gives_a_pod_its_priority() {
    let world = world().await;
    let pods = format!("{HERE}/pods");
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let class = json!({"metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never"});
    world.admin.make(classes, class).await;
    let made = world.admin.make(&pods, pod("p", &json!({"priorityClassName": "high"}))).await;
    assert_eq!(
        (&made["spec"]["priority"], &made["spec"]["preemptionPolicy"]),
        (&json!(1000), &json!("Never"))
    );
    let critical = pod("s", &json!({"priorityClassName": "system-node-critical"}));
    assert_eq!(world.admin.make(&pods, critical).await["spec"]["priority"], 2_000_001_000);
    let (code, refused) =
        world.admin.ask(Method::POST, &pods, pod("q", &json!({"priorityClassName": "ghost"}))).await;
    assert_eq!(
        (code, &refused["message"]),
        (
            StatusCode::FORBIDDEN,
            &json!("pods \"q\" is forbidden: no PriorityClass with name ghost was found")
        )
    );
    let all = json!({"metadata": {"name": "all"}, "value": 7, "globalDefault": true});
    world.admin.make(classes, all).await;
    let made = world.admin.make(&pods, pod("d", &json!({}))).await;
    assert_eq!((&made["spec"]["priority"], &made["spec"]["priorityClassName"]), (&json!(7), &json!("all")));
}

#[tokio::test]
async fn a_runtime_class_must_be_there_and_adds_its_overhead() {
    let world = world().await;
    let pods = format!("{HERE}/pods");
    let (code, refused) =
        world.admin.ask(Method::POST, &pods, pod("p", &json!({"runtimeClassName": "vm"}))).await;
    assert_eq!(
        (code, &refused["message"]),
        (
            StatusCode::FORBIDDEN,
            &json!("pods \"p\" is forbidden: pod rejected: RuntimeClass \"vm\" not found")
        )
    );
    let class = json!({"metadata": {"name": "vm"}, "handler": "vm", "overhead": {"podFixed": {"cpu": "250m"}},
        "scheduling": {"nodeSelector": {"vm": "yes"}}});
    world.admin.make("/apis/node.k8s.io/v1/runtimeclasses", class).await;
    let made = world.admin.make(&pods, pod("p", &json!({"runtimeClassName": "vm"}))).await;
    assert_eq!(
        (&made["spec"]["overhead"], &made["spec"]["nodeSelector"]),
        (&json!({"cpu": "250m"}), &json!({"vm": "yes"}))
    );
}

#[tokio::test]
async fn a_claim_gets_the_default_class() {
    let world = world().await;
    let class = json!({"metadata": {"name": "fast", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "x.example.com"});
    world.admin.make("/apis/storage.k8s.io/v1/storageclasses", class).await;
    let claim = |name: &str| json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let claims = format!("{HERE}/persistentvolumeclaims");
    assert_eq!(world.admin.make(&claims, claim("a")).await["spec"]["storageClassName"], "fast");
    let mut none = claim("b");
    none["spec"]["storageClassName"] = "".into();
    assert_eq!(world.admin.make(&claims, none).await["spec"]["storageClassName"], "");
}

#[tokio::test]
async fn sixteen_writers_take_no_more_than_the_quota_grants() {
    let world = world().await;
    let quota =
        json!({"metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "5", "count/secrets": "1"}}});
    world.admin.make(&format!("{HERE}/resourcequotas"), quota).await;
    let maps = format!("{HERE}/configmaps");
    let writes = (0..16).map(|at| {
        let (admin, maps) = (world.admin.clone(), maps.clone());
        tokio::spawn(async move {
            admin.ask(Method::POST, &maps, json!({"metadata": {"name": format!("m{at}")}})).await
        })
    });
    let answers: Vec<_> =
        futures::future::join_all(writes.collect::<Vec<_>>()).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.iter().filter(|(code, _)| *code == StatusCode::CREATED).count(), 5);
    let refused = answers.iter().find(|(code, _)| *code == StatusCode::FORBIDDEN).unwrap();
    assert!(
        refused.1["message"].as_str().unwrap().ends_with("is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=5, limited: configmaps=5"),
        "{refused:?}"
    );
    let (_, shown) = world.admin.get(&format!("{HERE}/resourcequotas/q")).await;
    assert_eq!(
        shown["status"],
        json!({"hard": {"configmaps": "5", "count/secrets": "1"}, "used": {"configmaps": "5", "count/secrets": "0"}})
    );
    let (code, _) = world
        .admin
        .ask(
            Method::DELETE,
            &format!(
                "{maps}/{}",
                answers.iter().find(|a| a.0 == StatusCode::CREATED).unwrap().1["metadata"]["name"]
                    .as_str()
                    .unwrap()
            ),
            Value::Null,
        )
        .await;
    assert_eq!(code, StatusCode::OK);
    world.admin.make(&maps, json!({"metadata": {"name": "again"}})).await;
    let (code, _) = world
        .admin
        .ask(Method::POST, &format!("{maps}?dryRun=All"), json!({"metadata": {"name": "dry"}}))
        .await;
    assert_eq!(code, StatusCode::FORBIDDEN, "a dry run asks the quota too");
}

#[tokio::test]
async fn every_request_is_a_line_of_the_audit_log_and_no_secret_is() {
    let world =
        World::with(|config| config.access.audit_log = Some(config.state_dir.join("audit.log"))).await;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"k": "hidden"}});
    world.admin.make(&format!("{HERE}/secrets"), secret).await;
    world.user("eve").get(&format!("{HERE}/secrets/s")).await;
    let headers = [("impersonate-user", "joe"), ("user-agent", "test/1")];
    world.admin.send(Method::GET, &format!("{HERE}/secrets/s"), &headers, "").await;
    let text = std::fs::read_to_string(world.directory.path().join("audit.log")).unwrap();
    assert!(!text.contains("hidden"));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seen: Vec<_> = lines
        .iter()
        .map(|line| {
            (
                line["verb"].as_str().unwrap(),
                line["user"]["username"].as_str().unwrap(),
                line["responseStatus"]["code"].as_u64().unwrap(),
                line["annotations"]["authorization.k8s.io/decision"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("create", "kubernetes-admin", 201, "allow"),
            ("get", "eve", 403, "forbid"),
            ("get", "kubernetes-admin", 403, "forbid")
        ]
    );
    assert_eq!(lines[2]["impersonatedUser"]["username"], "joe");
    assert_eq!(
        lines[0]["objectRef"],
        json!({"resource": "secrets", "namespace": "default", "apiVersion": "v1"})
    );
}

#[tokio::test]
async fn what_a_namespace_audits_is_in_the_audit_log() {
    let world =
        World::with(|config| config.access.audit_log = Some(config.state_dir.join("audit.log"))).await;
    let labels = json!({"pod-security.kubernetes.io/audit": "baseline"});
    world.admin.make("/api/v1/namespaces", json!({"metadata": {"name": "seen", "labels": labels}})).await;
    world
        .admin
        .make("/api/v1/namespaces/seen/serviceaccounts", json!({"metadata": {"name": "default"}}))
        .await;
    for (name, host_pid) in [("open", true), ("plain", false)] {
        let spec = json!({"hostPID": host_pid, "containers": [{"name": "c", "image": "i"}]});
        world
            .admin
            .make("/api/v1/namespaces/seen/pods", json!({"metadata": {"name": name}, "spec": spec}))
            .await;
    }
    let text = std::fs::read_to_string(world.directory.path().join("audit.log")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let notes = lines.filter(|line| line["objectRef"]["resource"] == "pods").map(|line| {
        let note = |name: &str| line["annotations"][format!("pod-security.kubernetes.io/{name}")].clone();
        (note("enforce-policy"), note("audit-violations"))
    });
    let violates = "would violate PodSecurity \"baseline:latest\": host namespaces (hostPID=true)";
    let expected = [json!(violates), Value::Null].map(|violates| (json!("privileged:latest"), violates));
    assert_eq!(notes.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn an_eviction_asks_the_pods_budget() {
    let world = world().await;
    for name in ["a", "b"] {
        let mut pod = pod(name, &json!({"nodeName": "one"}));
        pod["metadata"]["labels"] = json!({"app": "web"});
        world.admin.make(&format!("{HERE}/pods"), pod).await;
        let ready =
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        world.admin.patch(&format!("{HERE}/pods/{name}/status"), "merge-patch+json", &ready).await;
    }
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "web"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    world.admin.make(budgets, budget).await;
    let evict = async |name: &str| {
        let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        world.admin.ask(Method::POST, &format!("{HERE}/pods/{name}/eviction"), body).await
    };
    let (code, early) = evict("a").await;
    assert_eq!(code, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        early["details"]["causes"][0]["message"],
        "The disruption budget web is still being processed by the server."
    );
    let counted = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2}});
    let (code, said) =
        world.admin.patch(&format!("{budgets}/web/status"), "merge-patch+json", &counted).await;
    assert_eq!(code, StatusCode::OK, "{said}");
    let (first, second) = tokio::join!(evict("a"), evict("b"));
    let codes = [first.0, second.0];
    assert!(
        codes.contains(&StatusCode::CREATED) && codes.contains(&StatusCode::TOO_MANY_REQUESTS),
        "{first:?} {second:?}"
    );
    let (_, after) = world.admin.get(&format!("{budgets}/web")).await;
    assert_eq!(after["status"]["disruptionsAllowed"], 0);
    assert_eq!(after["status"]["disruptedPods"].as_object().unwrap().len(), 1);
}
