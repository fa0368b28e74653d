//! The cases of conformance about the machinery that all kinds share: watches, pages, discovery, forms, validation, reviews.

use futures::StreamExt as _;
use kube::api::WatchEvent;
use serde_json::{Value, json};

use crate::steps::{Asked, World, name};

fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

fn map(name: &str, label: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"watch": label}}, "data": {"mutation": "0"}})
}

async fn mutate(world: &World, path: &str, mutation: &str) -> Value {
    world.merge(path, json!({"data": {"mutation": mutation}})).await.is(200)
}

/// The next event as `ADDED`, `MODIFIED` or `DELETED`, name, and mutation.
async fn next(events: &mut Asked) -> (&'static str, String, String) {
    let (kind, object) = match events.next().await.unwrap().unwrap() {
        WatchEvent::Added(object) => ("ADDED", object),
        WatchEvent::Modified(object) => ("MODIFIED", object),
        WatchEvent::Deleted(object) => ("DELETED", object),
        event => panic!("{event:?}"),
    };
    (kind, name(&object), object["data"]["mutation"].as_str().unwrap_or_default().to_owned())
}

fn told(kind: &'static str, name: &str, mutation: &str) -> (&'static str, String, String) {
    (kind, name.to_owned(), mutation.to_owned())
}

/// A watch that ended is opened again where it was.
pub(crate) async fn a_watch_is_restarted(world: &World) {
    let maps = world.core("configmaps");
    let made = world.make(&maps, map("m", "a")).await;
    let path = format!("{maps}?watch=true&labelSelector=watch%3Da&resourceVersion=");
    let mut first = world.watch(&format!("{path}{}", version(&made))).await;
    let seen = mutate(world, &format!("{maps}/m"), "1").await;
    assert_eq!(next(&mut first).await, told("MODIFIED", "m", "1"));
    drop(first);
    mutate(world, &format!("{maps}/m"), "2").await;
    world.ask("DELETE", &format!("{maps}/m"), Value::Null).await.is(200);
    let mut second = world.watch(&format!("{path}{}", version(&seen))).await;
    assert_eq!(next(&mut second).await, told("MODIFIED", "m", "2"));
    assert_eq!(next(&mut second).await, told("DELETED", "m", "2"));
}

/// A watch from a version in the past tells what came after it, and nothing else.
pub(crate) async fn a_watch_starts_at_a_version(world: &World) {
    let maps = world.core("configmaps");
    world.make(&maps, map("m", "a")).await;
    let from = mutate(world, &format!("{maps}/m"), "1").await;
    mutate(world, &format!("{maps}/m"), "2").await;
    world.ask("DELETE", &format!("{maps}/m"), Value::Null).await.is(200);
    let path = format!("{maps}?watch=true&labelSelector=watch%3Da&resourceVersion={}", version(&from));
    let mut events = world.watch(&path).await;
    assert_eq!(next(&mut events).await, told("MODIFIED", "m", "2"));
    assert_eq!(next(&mut events).await, told("DELETED", "m", "2"));
}

/// Watchers with different selectors are told of what they select, and of nothing else.
pub(crate) async fn watchers_see_what_they_select(world: &World) {
    let maps = world.core("configmaps");
    let from = version(&world.get(&maps).await);
    let path = |selector: &str| format!("{maps}?watch=true&resourceVersion={from}&labelSelector={selector}");
    let mut a = world.watch(&path("watch%3Da")).await;
    let mut b = world.watch(&path("watch%3Db")).await;
    let mut both = world.watch(&path("watch%20in%20(a,b)")).await;
    world.make(&maps, map("one", "a")).await;
    mutate(world, &format!("{maps}/one"), "1").await;
    world.make(&maps, map("two", "b")).await;
    for one in ["one", "two"] {
        world.ask("DELETE", &format!("{maps}/{one}"), Value::Null).await.is(200);
    }
    let [made, changed, gone] =
        [told("ADDED", "one", "0"), told("MODIFIED", "one", "1"), told("DELETED", "one", "1")];
    let [other, other_gone] = [told("ADDED", "two", "0"), told("DELETED", "two", "0")];
    for wanted in [&made, &changed, &gone] {
        assert_eq!(next(&mut a).await, *wanted);
    }
    for wanted in [&other, &other_gone] {
        assert_eq!(next(&mut b).await, *wanted);
    }
    for wanted in [&made, &changed, &other, &gone, &other_gone] {
        assert_eq!(next(&mut both).await, *wanted);
    }
}

/// An object that no longer matches is told as deleted, and as added when it matches again.
pub(crate) async fn a_changed_label_is_a_deletion(world: &World) {
    let maps = world.core("configmaps");
    let made = world.make(&maps, map("m", "in")).await;
    let path = format!("{maps}?watch=true&labelSelector=watch%3Din&resourceVersion={}", version(&made));
    let mut events = world.watch(&path).await;
    let one = format!("{maps}/m");
    let relabel = async |label: &str| {
        world.merge(&one, json!({"metadata": {"labels": {"watch": label}}})).await.is(200)
    };
    mutate(world, &one, "1").await;
    relabel("out").await;
    mutate(world, &one, "2").await;
    relabel("in").await;
    world.ask("DELETE", &one, Value::Null).await.is(200);
    assert_eq!(next(&mut events).await, told("MODIFIED", "m", "1"));
    assert_eq!(next(&mut events).await, told("DELETED", "m", "1"));
    assert_eq!(next(&mut events).await, told("ADDED", "m", "2"));
    assert_eq!(next(&mut events).await, told("DELETED", "m", "2"));
}

/// Watches that start at each event of a first one see the rest in the same order.
pub(crate) async fn watches_agree_on_the_order(world: &World) {
    let maps = world.core("configmaps");
    let from = version(&world.get(&maps).await);
    let path = |from: &str| format!("{maps}?watch=true&resourceVersion={from}");
    for number in 0..10 {
        world.make(&maps, map(&format!("m{number}"), "a")).await;
        mutate(world, &format!("{maps}/m{}", number / 2), &format!("{number}")).await;
    }
    let mut versions = Vec::new();
    let mut events = world.watch(&path(&from)).await;
    while versions.len() < 20 {
        let (WatchEvent::Added(object) | WatchEvent::Modified(object)) =
            events.next().await.unwrap().unwrap()
        else {
            panic!("only what is made and changed is told")
        };
        versions.push(version(&object));
    }
    for (place, from) in versions.iter().enumerate() {
        let mut events = world.watch(&path(from)).await;
        for wanted in &versions[place + 1..] {
            let (WatchEvent::Added(object) | WatchEvent::Modified(object)) =
                events.next().await.unwrap().unwrap()
            else {
                panic!("only what is made and changed is told")
            };
            assert_eq!(version(&object), *wanted);
        }
    }
}

/// A long list comes in pieces of one version, each with how many remain.
pub(crate) async fn lists_come_in_chunks(world: &World) {
    let templates = world.core("podtemplates");
    let pods = json!({"spec": {"containers": [{"name": "c", "image": "i"}]}});
    for number in 0..40 {
        let template = json!({"metadata": {"name": format!("template-{number:04}")}, "template": pods});
        world.make(&templates, template).await;
    }
    let (mut token, mut found, mut first_version) = (String::new(), 0, None);
    loop {
        let chunk = world.get(&format!("{templates}?limit=17&continue={token}")).await;
        let items = chunk["items"].as_array().unwrap();
        assert!(items.len() <= 17);
        for item in items {
            assert_eq!(name(item), format!("template-{found:04}"));
            found += 1;
        }
        assert_eq!(first_version.get_or_insert_with(|| version(&chunk)), &version(&chunk));
        assert_eq!(chunk["metadata"]["remainingItemCount"].as_u64().unwrap_or(0), 40 - found);
        token.clear();
        token.push_str(chunk["metadata"]["continue"].as_str().unwrap_or_default());
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(found, 40);
    assert_eq!(world.get(&templates).await["items"].as_array().unwrap().len(), 40);
}

/// What has no rows has no Table.
pub(crate) async fn a_review_is_no_table(world: &World) {
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let review =
        json!({"spec": {"resourceAttributes": {"namespace": "default", "verb": "list", "resource": "pods"}}});
    let media = ("application/json", "application/json;as=Table;v=v1;g=meta.k8s.io");
    world.send("POST", path, media, &review).await.is(406);
}

/// Each group has a list of resources for each version, of that version, with at least one resource.
pub(crate) async fn each_group_has_resources(world: &World) {
    for group in world.get("/apis").await["groups"].as_array().unwrap() {
        for version in group["versions"].as_array().unwrap() {
            let api = version["groupVersion"].as_str().unwrap();
            let resources = world.get(&format!("/apis/{api}")).await;
            assert_eq!(resources["groupVersion"], api);
            assert!(!resources["resources"].as_array().unwrap().is_empty(), "{api}");
        }
    }
}

/// The version that a group prefers is one that it has.
pub(crate) async fn each_group_prefers_a_version(world: &World) {
    for group in world.get("/apis").await["groups"].as_array().unwrap() {
        let found = world.get(&format!("/apis/{}", name_of(group))).await;
        assert_eq!(found["preferredVersion"], group["preferredVersion"]);
        assert!(found["versions"].as_array().unwrap().contains(&found["preferredVersion"]), "{found}");
    }
}

fn name_of(group: &Value) -> &str {
    group["name"].as_str().unwrap()
}

/// The aggregated documents have everything that is built in.
pub(crate) async fn discovery_is_aggregated(world: &World) {
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let mut found = Vec::new();
    for path in ["/api", "/apis"] {
        let document = world.send("GET", path, ("application/json", accept), &Value::Null).await.is(200);
        assert_eq!(document["kind"], "APIGroupDiscoveryList");
        for group in document["items"].as_array().unwrap() {
            for version in group["versions"].as_array().unwrap() {
                let resources = version["resources"].as_array().unwrap().iter();
                found.extend(resources.map(|one| {
                    format!("{}/{}", name_of_version(group, version), one["resource"].as_str().unwrap())
                }));
            }
        }
    }
    for wanted in [
        "v1/namespaces",
        "v1/pods",
        "apps/v1/deployments",
        "batch/v1/jobs",
        "rbac.authorization.k8s.io/v1/roles",
        "storage.k8s.io/v1/storageclasses",
        "apiextensions.k8s.io/v1/customresourcedefinitions",
    ] {
        assert!(found.iter().any(|one| one == wanted), "{wanted}: {found:?}");
    }
}

fn name_of_version(group: &Value, version: &Value) -> String {
    let version = version["version"].as_str().unwrap();
    match group["metadata"]["name"].as_str() {
        Some(group) if !group.is_empty() => format!("{group}/{version}"),
        _ => version.to_owned(),
    }
}

/// Major and minor are numbers.
pub(crate) async fn the_version_is_numbers(world: &World) {
    let found = world.get("/version").await;
    for part in ["major", "minor"] {
        found[part].as_str().unwrap().parse::<u32>().unwrap();
    }
}

/// Unknown and repeated fields of an object are refused where that is asked, and named.
pub(crate) async fn unknown_and_repeated_fields_are_named(world: &World) {
    let path = format!("/apis/apps/v1/namespaces/{}/deployments?fieldValidation=Strict", world.namespace);
    let text = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"unknownField":"x","replicas":1,
        "replicas":2,"selector":{"matchLabels":{"app":"a"}},"template":{"metadata":{"labels":{"app":"a"}},
        "spec":{"containers":[{"name":"c","image":"i"}]}}}}"#;
    let request =
        http::Request::post(&path).header("content-type", "application/json").body(text.into()).unwrap();
    let refused = world.cluster.admin.request::<Value>(request).await.unwrap_err().to_string();
    for part in
        ["strict decoding error", "unknown field \"spec.unknownField\"", "duplicate field \"spec.replicas\""]
    {
        assert!(refused.contains(part), "{refused}");
    }
}

/// Unknown fields of the metadata too.
pub(crate) async fn unknown_metadata_is_named(world: &World) {
    let path = format!("{}?fieldValidation=Strict", world.core("configmaps"));
    let refused =
        world.ask("POST", &path, json!({"metadata": {"name": "m", "unknownMeta": "x"}})).await.is(400);
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("unknown field \"metadata.unknownMeta\""), "{message}");
}

/// Keys that are empty are refused.
pub(crate) async fn empty_keys_are_refused(world: &World) {
    for plural in ["configmaps", "secrets"] {
        let object = json!({"metadata": {"name": "empty"}, "data": {"": "dmFsdWU="}});
        world.ask("POST", &world.core(plural), object).await.is(422);
    }
}

/// What is immutable keeps its data, and its metadata may change.
pub(crate) async fn what_is_immutable_stays(world: &World) {
    for plural in ["configmaps", "secrets"] {
        let path = format!("{}/immutable", world.core(plural));
        let object = json!({"metadata": {"name": "immutable"}, "data": {"a": "MQ=="}});
        world.make(&world.core(plural), object).await;
        world.merge(&path, json!({"data": {"a": "Mg=="}})).await.is(200);
        world.merge(&path, json!({"immutable": true})).await.is(200);
        world.merge(&path, json!({"data": {"a": "Mw=="}})).await.is(422);
        world.merge(&path, json!({"immutable": false})).await.is(422);
        world.merge(&path, json!({"metadata": {"labels": {"a": "b"}}})).await.is(200);
        world.ask("DELETE", &path, Value::Null).await.is(200);
    }
}

/// Both reviews of another's access say what that one's own requests are answered.
pub(crate) async fn reviews_say_what_requests_are_answered(world: &World) {
    let user = format!("system:serviceaccount:{}:default", world.namespace);
    let asked = |verb: &str| {
        let what = json!({"namespace": world.namespace, "verb": verb, "resource": "configmaps"});
        json!({"metadata": {"namespace": world.namespace}, "spec": {"user": user, "resourceAttributes": what}})
    };
    let role = json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]});
    let binding = json!({"metadata": {"name": "r"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": world.namespace}]});
    let roles = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}", world.namespace);
    world.make(&format!("{roles}/roles"), role).await;
    world.make(&format!("{roles}/rolebindings"), binding).await;
    let local =
        format!("/apis/authorization.k8s.io/v1/namespaces/{}/localsubjectaccessreviews", world.namespace);
    for (verb, allowed, method, path) in
        [("list", true, "GET", world.core("configmaps")), ("create", false, "POST", world.core("configmaps"))]
    {
        for reviews in ["/apis/authorization.k8s.io/v1/subjectaccessreviews", &local] {
            let review = world.make(reviews, asked(verb)).await;
            assert_eq!(review["status"]["allowed"], allowed, "{review}");
        }
        let request = http::Request::builder().method(method).uri(path).header("impersonate-user", &user);
        let request =
            request.header("content-type", "application/json").body(br#"{"metadata":{"name":"x"}}"#.to_vec());
        let answer = world.cluster.admin.request::<Value>(request.unwrap()).await;
        assert_eq!(answer.is_ok(), allowed, "{answer:?}");
    }
}

/// A request for a certificate is approved and its status is written, each by its own path.
pub(crate) async fn a_request_for_a_certificate_is_approved(world: &World) {
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pem);
    let object = json!({"metadata": {"name": "conformance"}, "spec": {"request": text, "signerName": "example.com/s",
        "usages": ["digital signature", "key encipherment", "client auth"], "expirationSeconds": 3600}});
    world.make(requests, object).await;
    let one = format!("{requests}/conformance");
    let approval = format!("{one}/approval");
    let condition =
        |kind: &str| json!([{"type": kind, "status": "True", "reason": "Tested", "message": "by a test"}]);
    let mut found = world.get(&approval).await;
    found["status"]["conditions"] = condition("Approved");
    let approved = world.ask("PUT", &approval, found).await.is(200);
    assert_eq!(approved["status"]["conditions"][0]["type"], "Approved");
    let mut found = world.get(&format!("{one}/status")).await;
    found["status"]["conditions"].as_array_mut().unwrap().push(condition("StatusUpdate")[0].clone());
    let updated = world.ask("PUT", &format!("{one}/status"), found).await.is(200);
    assert_eq!(updated["status"]["conditions"][1]["type"], "StatusUpdate");
    world.ask("DELETE", &one, Value::Null).await.is(200);
    world.ask("GET", &one, Value::Null).await.is(404);
}
