//! The cases of conformance about what the controllers of the API do: namespaces, quotas, owners, budgets, accounts,
//! endpoints, volumes.

use serde_json::{Value, json};

use crate::cluster::pod;
use crate::steps::World;

const NAMESPACES: &str = "/api/v1/namespaces";

fn with_labels(mut object: Value, labels: Value) -> Value {
    object["metadata"]["labels"] = labels;
    object
}

/// A namespace takes a finalizer, which stays until it is taken away.
pub(crate) async fn a_namespace_takes_a_finalizer(world: &World) {
    let path = format!("{NAMESPACES}/{}/finalize", world.namespace);
    let mut namespace = world.get(&format!("{NAMESPACES}/{}", world.namespace)).await;
    namespace["spec"]["finalizers"].as_array_mut().unwrap().push("e2e.example.com/fake".into());
    let updated = world.ask("PUT", &path, namespace).await.is(200);
    assert_eq!(updated["spec"]["finalizers"], json!(["kubernetes", "e2e.example.com/fake"]));
    let mut namespace = updated;
    namespace["spec"]["finalizers"] = json!(["kubernetes"]);
    let updated = world.ask("PUT", &path, namespace).await.is(200);
    assert_eq!(updated["spec"]["finalizers"], json!(["kubernetes"]));
}

/// A namespace is updated and patched, and its status by its own path.
pub(crate) async fn a_namespace_and_its_status_change(world: &World) {
    let path = format!("{NAMESPACES}/{}", world.namespace);
    let mut namespace = world.get(&path).await;
    assert_eq!(namespace["status"]["phase"], "Active");
    namespace["metadata"]["labels"]["updated"] = "yes".into();
    let updated = world.ask("PUT", &path, namespace).await.is(200);
    assert_eq!(updated["metadata"]["labels"]["updated"], "yes");
    let patched = world.merge(&path, json!({"metadata": {"labels": {"patched": "yes"}}})).await.is(200);
    assert_eq!(patched["metadata"]["labels"]["patched"], "yes");
    let condition =
        |kind: &str| json!({"type": kind, "status": "True", "reason": "E2E", "message": "Set by a test"});
    let status = format!("{path}/status");
    let patched =
        world.merge(&status, json!({"status": {"conditions": [condition("StatusPatch")]}})).await.is(200);
    assert_eq!(patched["status"]["conditions"][0]["type"], "StatusPatch");
    let mut namespace = world.get(&status).await;
    namespace["status"]["conditions"].as_array_mut().unwrap().push(condition("StatusUpdate"));
    let updated = world.ask("PUT", &status, namespace).await.is(200);
    assert_eq!(updated["status"]["conditions"][1]["type"], "StatusUpdate");
}

/// Pods and Services go with their namespace, and one of the same name begins without them.
pub(crate) async fn a_namespace_goes_with_its_contents(world: &World) {
    let one = format!("{}-going", world.namespace);
    world.make(NAMESPACES, json!({"metadata": {"name": one}})).await;
    let accounts = format!("{NAMESPACES}/{one}/serviceaccounts");
    world.cluster.wait("the account", &accounts, "default", |found| found.is_some()).await;
    world.make(&format!("{NAMESPACES}/{one}/pods"), pod("p", "")).await;
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    world.make(&format!("{NAMESPACES}/{one}/services"), service).await;
    world.ask("DELETE", &format!("{NAMESPACES}/{one}"), Value::Null).await.is(200);
    world.cluster.wait("the namespace is gone", NAMESPACES, &one, |found| found.is_none()).await;
    world.make(NAMESPACES, json!({"metadata": {"name": one}})).await;
    for plural in ["pods", "services"] {
        let list = world.get(&format!("{NAMESPACES}/{one}/{plural}")).await;
        assert_eq!(list["items"], json!([]), "{plural}");
    }
}

async fn account(world: &World) {
    world
        .cluster
        .wait("the account", &world.core("serviceaccounts"), "default", |found| found.is_some())
        .await;
}

/// Waits until a quota says that so much is used.
async fn used(world: &World, quota: &str, resource: &'static str, wanted: &'static str) {
    let is_so =
        |found: Option<&Value>| found.is_some_and(|found| found["status"]["used"][resource] == wanted);
    world.cluster.wait(&format!("{resource}: {wanted}"), &world.core("resourcequotas"), quota, is_so).await;
}

async fn make_quota(world: &World, name: &str, hard: Value, more: Value) {
    let mut quota = json!({"metadata": {"name": name}, "spec": more});
    quota["spec"]["hard"] = hard.clone();
    world.make(&world.core("resourcequotas"), quota).await;
    let is_so = |found: Option<&Value>| {
        found.is_some_and(|found| found["status"]["hard"] == hard && found["status"]["used"].is_object())
    };
    world.cluster.wait("the quota's status", &world.core("resourcequotas"), name, is_so).await;
}

/// A quota's own status says what it grants, and what there is of it.
pub(crate) async fn a_quota_is_calculated(world: &World) {
    make_quota(world, "q", json!({"pods": "5", "resourcequotas": "1", "services": "10"}), json!({})).await;
    used(world, "q", "resourcequotas", "1").await;
    used(world, "q", "pods", "0").await;
}

/// A quota is changed, and what it grants with it; then it is deleted.
pub(crate) async fn a_quota_changes(world: &World) {
    make_quota(world, "q", json!({"cpu": "1", "memory": "500Mi"}), json!({})).await;
    let path = format!("{}/q", world.core("resourcequotas"));
    let mut quota = world.get(&path).await;
    quota["spec"]["hard"] = json!({"cpu": "2", "memory": "1Gi"});
    world.ask("PUT", &path, quota).await.is(200);
    let is_so = |found: Option<&Value>| {
        found.is_some_and(|found| found["status"]["hard"] == json!({"cpu": "2", "memory": "1Gi"}))
    };
    world.cluster.wait("what it grants follows", &world.core("resourcequotas"), "q", is_so).await;
    let status = json!({"metadata": {"annotations": {"patched": "yes"}}, "spec": {"hard": {"cpu": "9"}}});
    let patched = world.merge(&format!("{path}/status"), status).await.is(200);
    assert_eq!(
        (&patched["metadata"]["annotations"]["patched"], &patched["spec"]["hard"]["cpu"]),
        (&json!("yes"), &json!("2"))
    );
    world.ask("DELETE", &path, Value::Null).await.is(200);
    world.ask("GET", &path, Value::Null).await.is(404);
}

/// Objects of each counted kind are counted while they live.
pub(crate) async fn a_quota_counts_objects(world: &World) {
    account(world).await;
    let template =
        json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let apps = format!("/apis/apps/v1/namespaces/{}/replicasets", world.namespace);
    let counted: [(&'static str, String, Value); 4] = [
        ("secrets", world.core("secrets"), json!({})),
        ("services", world.core("services"), json!({"spec": {"ports": [{"port": 80}]}})),
        (
            "replicationcontrollers",
            world.core("replicationcontrollers"),
            json!({"spec": {"replicas": 0, "selector": {"app": "a"}, "template": template}}),
        ),
        (
            "count/replicasets.apps",
            apps,
            json!({"spec": {"replicas": 0, "selector": {"matchLabels": {"app": "a"}}, "template": template}}),
        ),
    ];
    let hard: serde_json::Map<String, Value> =
        counted.iter().map(|(name, ..)| ((*name).to_owned(), "1".into())).collect();
    make_quota(world, "q", hard.into(), json!({})).await;
    for (resource, path, mut object) in counted {
        used(world, "q", resource, "0").await;
        object["metadata"] = json!({"name": "counted"});
        world.make(&path, object.clone()).await;
        used(world, "q", resource, "1").await;
        object["metadata"] = json!({"name": "one-too-many"});
        let refused = world.ask("POST", &path, object).await.is(403);
        assert!(refused["message"].as_str().unwrap().contains("exceeded quota: q"), "{refused}");
        world.ask("DELETE", &format!("{path}/counted"), Value::Null).await.is(200);
        used(world, "q", resource, "0").await;
    }
}

/// A `ConfigMap` counts, and so does the one that the namespace was made with.
pub(crate) async fn a_quota_counts_configmaps(world: &World) {
    let maps = world.core("configmaps");
    world.cluster.wait("the authority", &maps, "kube-root-ca.crt", |found| found.is_some()).await;
    make_quota(world, "q", json!({"configmaps": "5"}), json!({})).await;
    used(world, "q", "configmaps", "1").await;
    world.make(&maps, json!({"metadata": {"name": "m"}})).await;
    used(world, "q", "configmaps", "2").await;
    world.ask("DELETE", &format!("{maps}/m"), Value::Null).await.is(200);
    used(world, "q", "configmaps", "1").await;
}

fn asking(name: &str, cpu: &str, more: &Value) -> Value {
    let mut pod = pod(name, "");
    if !cpu.is_empty() {
        pod["spec"]["containers"][0]["resources"] =
            json!({"requests": {"cpu": cpu, "memory": "252Mi"}, "limits": {"cpu": cpu, "memory": "252Mi"}});
    }
    for (key, value) in more.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

/// What a Pod asks for counts while it is there; a second one that asks for too much is refused, and so is a change.
pub(crate) async fn a_quota_follows_a_pods_life(world: &World) {
    account(world).await;
    make_quota(world, "q", json!({"pods": "5", "requests.cpu": "1", "requests.memory": "500Mi"}), json!({}))
        .await;
    let pods = world.core("pods");
    world.make(&pods, asking("p", "500m", &json!({}))).await;
    used(world, "q", "pods", "1").await;
    used(world, "q", "requests.cpu", "500m").await;
    world.ask("POST", &pods, asking("large", "600m", &json!({}))).await.is(403);
    let more = json!({"spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m"}}}]}});
    world.merge(&format!("{pods}/p"), more).await.is(422);
    world.ask("DELETE", &format!("{pods}/p"), json!({"gracePeriodSeconds": 0})).await.is(200);
    used(world, "q", "pods", "0").await;
    used(world, "q", "requests.cpu", "0").await;
}

/// A quota with a scope counts the Pods of that scope alone.
pub(crate) async fn quotas_have_scopes(world: &World) {
    account(world).await;
    let scopes = ["BestEffort", "NotBestEffort", "Terminating", "NotTerminating"];
    for scope in scopes {
        make_quota(world, &scope.to_lowercase(), json!({"pods": "5"}), json!({"scopes": [scope]})).await;
    }
    let pods = world.core("pods");
    let ends = json!({"activeDeadlineSeconds": 3600});
    for (cpu, more, counted) in
        [("", json!({}), ["besteffort", "notterminating"]), ("500m", ends, ["notbesteffort", "terminating"])]
    {
        world.make(&pods, asking("p", cpu, &more)).await;
        for scope in scopes {
            let scope = scope.to_lowercase();
            used(world, &scope, "pods", if counted.contains(&scope.as_str()) { "1" } else { "0" }).await;
        }
        world.ask("DELETE", &format!("{pods}/p"), json!({"gracePeriodSeconds": 0})).await.is(200);
        for scope in counted {
            used(world, scope, "pods", "0").await;
        }
    }
}

fn owned_by(owner: &Value) -> Value {
    json!({"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"], "blockOwnerDeletion": true})
}

/// Pods that own one another in a circle all go with one of them.
pub(crate) async fn a_circle_of_owners_blocks_nothing(world: &World) {
    account(world).await;
    let pods = world.core("pods");
    let mut made = Vec::new();
    for name in ["pod1", "pod2", "pod3"] {
        made.push(world.make(&pods, pod(name, "")).await);
    }
    for (owned, owner) in [(0, 2), (1, 0), (2, 1)] {
        let owners = json!({"metadata": {"ownerReferences": [owned_by(&made[owner])]}});
        world.merge(&format!("{pods}/pod{}", owned + 1), owners).await.is(200);
    }
    let foreground = json!({"propagationPolicy": "Foreground", "gracePeriodSeconds": 0});
    world.ask("DELETE", &format!("{pods}/pod1"), foreground).await.is(200);
    for name in ["pod1", "pod2", "pod3"] {
        world.cluster.wait(&format!("{name} is gone"), &pods, name, |found| found.is_none()).await;
    }
}

fn controller(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": 0, "selector": {"app": name}, "template": {
        "metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

/// Of an owner that waits for its dependents to go, those stay that another owner has too.
pub(crate) async fn what_another_one_owns_stays(world: &World) {
    account(world).await;
    let controllers = world.core("replicationcontrollers");
    let going = world.make(&controllers, controller("going")).await;
    let staying = world.make(&controllers, controller("staying")).await;
    let pods = world.core("pods");
    for (name, owners) in
        [("shared", json!([owned_by(&going), owned_by(&staying)])), ("own", json!([owned_by(&going)]))]
    {
        let mut pod = pod(name, "");
        pod["metadata"]["ownerReferences"] = owners;
        world.make(&pods, pod).await;
    }
    world
        .ask("DELETE", &format!("{controllers}/going"), json!({"propagationPolicy": "Foreground"}))
        .await
        .is(200);
    world.cluster.wait("the owner is gone", &controllers, "going", |found| found.is_none()).await;
    world.ask("GET", &format!("{pods}/own"), Value::Null).await.is(404);
    let shared = world.get(&format!("{pods}/shared")).await;
    assert_eq!(shared["metadata"]["deletionTimestamp"], Value::Null);
    let owners = &shared["metadata"]["ownerReferences"];
    assert_eq!((owners.as_array().unwrap().len(), &owners[0]["name"]), (1, &json!("staying")));
}

/// Dependents go before an owner in the foreground, after it in the background, and stay where they are orphaned.
pub(crate) async fn dependents_follow_the_policy(world: &World) {
    account(world).await;
    let (controllers, pods) = (world.core("replicationcontrollers"), world.core("pods"));
    for policy in ["Foreground", "Background", "Orphan"] {
        let owner = world.make(&controllers, controller("owner")).await;
        let mut dependent = pod("dependent", "");
        dependent["metadata"]["ownerReferences"] = json!([owned_by(&owner)]);
        world.make(&pods, dependent).await;
        world
            .ask("DELETE", &format!("{controllers}/owner"), json!({"propagationPolicy": policy}))
            .await
            .is(200);
        world
            .cluster
            .wait(&format!("{policy}: the owner goes"), &controllers, "owner", |found| found.is_none())
            .await;
        if policy == "Orphan" {
            let stays = world.get(&format!("{pods}/dependent")).await;
            assert_eq!(stays["metadata"]["ownerReferences"], Value::Null, "{policy}");
            world.ask("DELETE", &format!("{pods}/dependent"), json!({"gracePeriodSeconds": 0})).await.is(200);
        }
        world
            .cluster
            .wait(&format!("{policy}: the Pod goes"), &pods, "dependent", |found| found.is_none())
            .await;
    }
}

/// A namespace's copy of the root certificate is made, made again, and put right.
pub(crate) async fn the_root_certificate_is_in_every_namespace(world: &World) {
    let maps = world.core("configmaps");
    let path = format!("{maps}/kube-root-ca.crt");
    let pem = world.cluster.ca_pem().to_owned();
    let is_there = |found: Option<&Value>| found.is_some_and(|found| found["data"] == json!({"ca.crt": pem}));
    world.cluster.wait("it is made", &maps, "kube-root-ca.crt", is_there).await;
    world.ask("DELETE", &path, Value::Null).await.is(200);
    world.cluster.wait("it is made again", &maps, "kube-root-ca.crt", is_there).await;
    world.merge(&path, json!({"data": {"ca.crt": ""}})).await.is(200);
    world.cluster.wait("it is put right", &maps, "kube-root-ca.crt", is_there).await;
}

/// A Pod gets a token unless its own spec, or its account where the spec says nothing, says no.
pub(crate) async fn tokens_are_mounted_unless_refused(world: &World) {
    for (name, account) in [("unset", Value::Null), ("yes", json!(true)), ("no", json!(false))] {
        let object = json!({"metadata": {"name": name}, "automountServiceAccountToken": account});
        world.make(&world.core("serviceaccounts"), object).await;
        for (number, spec) in [Value::Null, json!(true), json!(false)].into_iter().enumerate() {
            let wanted = spec.as_bool().or(account.as_bool()).unwrap_or(true);
            let mut pod = pod(&format!("{name}-{number}"), "");
            pod["spec"]["serviceAccountName"] = name.into();
            pod["spec"]["automountServiceAccountToken"] = spec;
            let made = world.make(&world.core("pods"), pod).await;
            let mounts =
                made["spec"]["containers"][0]["volumeMounts"].as_array().cloned().unwrap_or_default();
            let is_mounted = mounts
                .iter()
                .any(|mount| mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount");
            assert_eq!(is_mounted, wanted, "{name}-{number}");
        }
    }
}

/// The issuer's documents agree with the token's own claims.
pub(crate) async fn the_issuer_is_discovered(world: &World) {
    account(world).await;
    let document = world.get("/.well-known/openid-configuration").await;
    let path = format!("{}/default/token", world.core("serviceaccounts"));
    let review = world.make(&path, json!({"spec": {"expirationSeconds": 600}})).await;
    let token = review["status"]["token"].as_str().unwrap();
    let part = |number: usize| -> Value {
        let text = token.split('.').nth(number).unwrap();
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, text).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    assert_eq!(part(1)["iss"], document["issuer"]);
    let keys = world.get("/openid/v1/jwks").await;
    let ids: Vec<&Value> = keys["keys"].as_array().unwrap().iter().map(|key| &key["kid"]).collect();
    assert!(ids.contains(&&part(0)["kid"]), "{keys}");
    assert!(document["jwks_uri"].as_str().unwrap().ends_with("/openid/v1/jwks"), "{document}");
}

/// Runs a Pod as a kubelet would tell of it.
async fn run(world: &World, name: &str, ip: &str) {
    world.make(&world.core("pods"), with_labels(pod(name, "node"), json!({"app": "guarded"}))).await;
    let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True"}]}});
    world.merge(&format!("{}/{name}/status", world.core("pods")), status).await.is(200);
}

/// A budget says how many may go, refuses an eviction beyond, and lets it pass when it is changed.
pub(crate) async fn a_budget_blocks_an_eviction(world: &World) {
    account(world).await;
    let budgets = format!("/apis/policy/v1/namespaces/{}/poddisruptionbudgets", world.namespace);
    run(world, "p", "10.9.0.1").await;
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "guarded"}}}});
    world.make(&budgets, budget).await;
    let allows = |wanted: i64| {
        move |found: Option<&Value>| {
            found.is_some_and(|found| {
                found["status"]["currentHealthy"] == 1 && found["status"]["disruptionsAllowed"] == wanted
            })
        }
    };
    world.cluster.wait("none may go", &budgets, "b", allows(0)).await;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let evict =
        async || world.ask("POST", &format!("{}/p/eviction", world.core("pods")), eviction.clone()).await;
    let refused = evict().await.is(429);
    assert_eq!(refused["details"]["causes"][0]["reason"], "DisruptionBudget", "{refused}");
    world.merge(&format!("{budgets}/b"), json!({"spec": {"minAvailable": 0}})).await.is(200);
    world.cluster.wait("one may go", &budgets, "b", allows(1)).await;
    evict().await.is(201);
}

/// The API's own Service is in the list of all, and its endpoints are the server's.
pub(crate) async fn the_api_has_a_service(world: &World) {
    let all = world.get("/api/v1/services").await;
    let is_it =
        |one: &&Value| one["metadata"]["name"] == "kubernetes" && one["metadata"]["namespace"] == "default";
    assert!(all["items"].as_array().unwrap().iter().find(is_it).is_some());
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name%3Dkubernetes";
    let endpoints = world.get("/api/v1/namespaces/default/endpoints/kubernetes").await;
    let slices = world.get(slices).await;
    assert_eq!(
        endpoints["subsets"][0]["addresses"][0]["ip"],
        slices["items"][0]["endpoints"][0]["addresses"][0]
    );
}

/// A Service's endpoints are made, follow its Pods, and go with it.
pub(crate) async fn endpoints_follow_a_service(world: &World) {
    account(world).await;
    run(world, "p", "10.9.0.2").await;
    let service =
        json!({"metadata": {"name": "s"}, "spec": {"selector": {"app": "guarded"}, "ports": [{"port": 80}]}});
    world.make(&world.core("services"), service).await;
    let has = |found: Option<&Value>| {
        found.is_some_and(|found| found["subsets"][0]["addresses"][0]["ip"] == "10.9.0.2")
    };
    world.cluster.wait("its endpoints", &world.core("endpoints"), "s", has).await;
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", world.namespace);
    let slice = world.get(&format!("{slices}?labelSelector=kubernetes.io/service-name%3Ds")).await;
    let name = slice["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    world.ask("DELETE", &format!("{}/s", world.core("services")), Value::Null).await.is(200);
    world.cluster.wait("the endpoints go", &world.core("endpoints"), "s", |found| found.is_none()).await;
    world.cluster.wait("the slice goes", &slices, &name, |found| found.is_none()).await;
}

/// Endpoints that somebody makes are mirrored into a slice, changed with them, and gone with them.
pub(crate) async fn endpoints_are_mirrored(world: &World) {
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"name": "web", "port": 80}]}});
    world.make(&world.core("services"), service).await;
    let subsets = |ip: &str| json!([{"addresses": [{"ip": ip}], "ports": [{"name": "web", "port": 80}]}]);
    let endpoints = world.core("endpoints");
    world.make(&endpoints, json!({"metadata": {"name": "s"}, "subsets": subsets("10.1.2.3")})).await;
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", world.namespace);
    let mirrored = async |wanted: Value| {
        let mut events =
            world.watch(&format!("{slices}?watch=true&labelSelector=kubernetes.io/service-name%3Ds")).await;
        let look = async || {
            let list = world.get(&format!("{slices}?labelSelector=kubernetes.io/service-name%3Ds")).await;
            let items = list["items"].as_array().unwrap();
            json!(items.iter().map(|slice| slice["endpoints"][0]["addresses"].clone()).collect::<Vec<_>>())
        };
        while look().await != wanted {
            crate::cluster::within("a change of the slices", futures::StreamExt::next(&mut events)).await;
        }
    };
    mirrored(json!([["10.1.2.3"]])).await;
    world.merge(&format!("{endpoints}/s"), json!({"subsets": subsets("10.2.3.4")})).await.is(200);
    mirrored(json!([["10.2.3.4"]])).await;
    world.ask("DELETE", &format!("{endpoints}/s"), Value::Null).await.is(200);
    mirrored(json!([])).await;
}

/// The defaults of a `LimitRange` are in Pods that ask for nothing, and what is outside of it is refused.
pub(crate) async fn a_limit_range_has_defaults(world: &World) {
    account(world).await;
    let limits = json!([{"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"},
        "min": {"cpu": "50m"}, "max": {"cpu": "500m"}}]);
    world
        .make(&world.core("limitranges"), json!({"metadata": {"name": "l"}, "spec": {"limits": limits}}))
        .await;
    let made = world.make(&world.core("pods"), pod("p", "")).await;
    let resources = &made["spec"]["containers"][0]["resources"];
    assert_eq!(resources, &json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}}));
    for cpu in ["10m", "600m"] {
        world.ask("POST", &world.core("pods"), asking("out", cpu, &json!({}))).await.is(403);
    }
}

/// Volumes and claims are made, patched and deleted, and their status is written by its own path.
pub(crate) async fn volumes_and_claims_live(world: &World) {
    let class = format!("class-{}", world.namespace);
    let volume = json!({"metadata": {"name": class}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
        "capacity": {"storage": "1Gi"}, "persistentVolumeReclaimPolicy": "Retain",
        "csi": {"driver": "example.com", "volumeHandle": "v"}}});
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
        "volumeName": class, "resources": {"requests": {"storage": "1Gi"}}}});
    let (volumes, claims) = ("/api/v1/persistentvolumes", world.core("persistentvolumeclaims"));
    world.make(volumes, volume).await;
    world.make(&claims, claim).await;
    let is_bound = |found: Option<&Value>| found.is_some_and(|found| found["status"]["phase"] == "Bound");
    world.cluster.wait("the claim is bound", &claims, "c", is_bound).await;
    let one = format!("{claims}/c");
    let condition = json!({"type": "Tested", "status": "True", "reason": "E2E", "message": "m"});
    let patched =
        world.merge(&format!("{one}/status"), json!({"status": {"conditions": [condition]}})).await.is(200);
    assert_eq!(patched["status"]["conditions"][0]["type"], "Tested", "{patched}");
    let status = format!("{volumes}/{class}/status");
    let patched = world.merge(&status, json!({"status": {"reason": "E2E", "message": "m"}})).await.is(200);
    assert_eq!(patched["status"]["message"], "m");
    let patched = world.merge(&one, json!({"metadata": {"labels": {"c": "patched"}}})).await.is(200);
    assert_eq!(patched["metadata"]["labels"]["c"], "patched");
    world.ask("DELETE", &one, Value::Null).await.is(200);
    world.cluster.wait("the claim goes", &claims, "c", |found| found.is_none()).await;
    world.ask("DELETE", &format!("{volumes}/{class}"), Value::Null).await.is(200);
    world.cluster.wait("the volume goes", volumes, &class, |found| found.is_none()).await;
}

/// A Pod's volume of a CSI driver is kept as it was asked for.
pub(crate) async fn a_pods_csi_volume_is_kept(world: &World) {
    account(world).await;
    let pods = world.core("pods");
    let csi = json!({"driver": "e2e.example.com", "readOnly": true, "volumeAttributes": {"a": "b"}});
    let mut object = with_labels(pod("p", ""), json!({"csi": "inline"}));
    object["spec"]["volumes"] = json!([{"name": "v", "csi": csi}]);
    object["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    world.make(&pods, object).await;
    assert_eq!(world.get(&format!("{pods}/p")).await["spec"]["volumes"][0]["csi"], csi);
    world
        .ask("DELETE", &format!("{pods}?labelSelector=csi%3Dinline"), json!({"gracePeriodSeconds": 0}))
        .await
        .is(200);
    world.cluster.wait("the Pod goes", &pods, "p", |found| found.is_none()).await;
}
