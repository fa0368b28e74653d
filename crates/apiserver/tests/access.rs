//! Who may do what: no route without permission, roles and bindings as upstream has them, kubelets and their Pods.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod common;

use api::kind::{Kind, kinds};
use apiserver::Identity;
use common::client::World;
use http::{Method, StatusCode};
use serde_json::{Value, json};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// The paths of a kind and of everything below it, each with the methods that it serves.
fn routes_of(kind: &Kind) -> Vec<(Method, String)> {
    let root = if kind.group.is_empty() {
        "/api/v1".to_owned()
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    let all = format!("{root}/{}", kind.plural);
    let here =
        if kind.namespaced { format!("{root}/namespaces/default/{}", kind.plural) } else { all.clone() };
    let one = format!("{here}/secret-name");
    let method = |verb: &str| match verb {
        "create" => Method::POST,
        "update" => Method::PUT,
        "patch" => Method::PATCH,
        "delete" | "deletecollection" => Method::DELETE,
        _ => Method::GET,
    };
    let mut routes = Vec::new();
    for verb in kind.verbs {
        let paths = match *verb {
            "list" => vec![all.clone(), here.clone()],
            "watch" => {
                vec![format!("{all}?watch=true&timeoutSeconds=1"), format!("{here}?watch=1&timeoutSeconds=1")]
            }
            "create" | "deletecollection" => vec![here.clone()],
            _ => vec![one.clone()],
        };
        routes.extend(paths.into_iter().map(|path| (method(verb), path)));
    }
    for below in kind.subresources {
        routes.extend(below.verbs.iter().map(|verb| (method(verb), format!("{one}/{}", below.name))));
    }
    routes
}

#[tokio::test]
async fn no_route_answers_who_has_no_role() {
    let world = World::new().await;
    let secret = json!({"metadata": {"name": "secret-name"}, "stringData": {"k": "v"}});
    world.admin.make("/api/v1/namespaces/default/secrets", secret).await;
    let stranger = world.user("stranger");
    let nobody = world.client(Identity::anonymous());
    let open_to_users = ["selfsubjectreviews", "selfsubjectaccessreviews", "selfsubjectrulesreviews"];
    let mut asked = 0;
    for kind in kinds() {
        for (method, uri) in routes_of(kind) {
            for (client, is_known) in [(&stranger, true), (&nobody, false)] {
                let response = client.send(method.clone(), &uri, &[], "{}").await;
                let is_open = is_known && open_to_users.contains(&kind.plural);
                assert_eq!(response.status() == StatusCode::FORBIDDEN, !is_open, "{method} {uri}");
                if !is_open {
                    let said: Value = serde_json::from_slice(response.body()).unwrap();
                    assert_eq!(
                        (&said["kind"], &said["reason"]),
                        (&json!("Status"), &json!("Forbidden")),
                        "{uri}"
                    );
                }
                asked += 1;
            }
        }
    }
    assert!(asked > 1000, "{asked}");
    for path in [
        "/api/v1/nothing",
        "/apis/example.com/v1/things",
        "/metrics",
        "/readyz/ping",
        "/logs",
        "/debug/pprof",
        "/kakoi/snapshot",
        "/",
    ] {
        for client in [&stranger, &nobody] {
            assert_eq!(client.get(path).await.0, StatusCode::FORBIDDEN, "{path}");
        }
    }
    for path in ["/api", "/apis", "/openapi/v3", "/openid/v1/jwks", "/api/v1"] {
        assert_eq!(nobody.get(path).await.0, StatusCode::FORBIDDEN, "{path}");
    }
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(nobody.send(Method::GET, path, &[], "").await.status(), StatusCode::OK, "{path}");
    }
    assert_eq!(stranger.get("/api/v1").await.0, StatusCode::OK);
}

fn role(name: &str, rules: &Value) -> Value {
    json!({"metadata": {"name": name}, "rules": rules})
}

fn bind(name: &str, kind: &str, role: &str, user: &str) -> Value {
    json!({"metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]})
}

#[tokio::test]
async fn a_binding_counts_from_its_acknowledgement_to_its_deletion() {
    let world = World::new().await;
    let jane = world.user("jane");
    let pods = "/api/v1/namespaces/default/pods";
    let here = format!("{RBAC}/namespaces/default");
    assert_eq!(jane.get(pods).await.0, StatusCode::FORBIDDEN);
    let read = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]);
    world.admin.make(&format!("{here}/roles"), role("read", &read)).await;
    world.admin.make(&format!("{here}/rolebindings"), bind("read", "Role", "read", "jane")).await;
    assert_eq!(jane.get(pods).await.0, StatusCode::OK);
    assert_eq!(jane.get("/api/v1/pods").await.0, StatusCode::FORBIDDEN, "another scope");
    assert_eq!(jane.get("/api/v1/namespaces/kube-system/pods").await.0, StatusCode::FORBIDDEN);
    assert_eq!(jane.get(&format!("{pods}?watch=true&timeoutSeconds=1")).await.0, StatusCode::FORBIDDEN);
    let review = json!({"spec": {"user": "jane", "resourceAttributes": {"namespace": "default", "verb": "list", "resource": "pods"}}});
    let said = world.admin.make("/apis/authorization.k8s.io/v1/subjectaccessreviews", review).await;
    assert_eq!(
        said["status"],
        json!({"allowed": true, "reason": "RBAC: allowed by RoleBinding \"read/default\" of Role \"read\" to User \"jane\""})
    );
    let rules = json!({"spec": {"namespace": "default"}});
    let said = jane.make("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", rules).await;
    assert!(
        said["status"]["resourceRules"]
            .as_array()
            .unwrap()
            .iter()
            .any(|rule| rule["resources"] == json!(["pods"])),
        "{said}"
    );
    world.admin.ask(Method::DELETE, &format!("{here}/rolebindings/read"), Value::Null).await;
    assert_eq!(jane.get(pods).await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn nobody_grants_what_they_do_not_have() {
    let world = World::new().await;
    let roles = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings", "clusterroles"], "verbs": ["create", "update", "patch", "get"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
    world.admin.make(&format!("{RBAC}/clusterroles"), role("granter", &roles)).await;
    world
        .admin
        .make(&format!("{RBAC}/clusterrolebindings"), bind("granter", "ClusterRole", "granter", "gina"))
        .await;
    let gina = world.user("gina");
    let here = format!("{RBAC}/namespaces/default");
    let secrets = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]);
    let (code, refused) = gina.ask(Method::POST, &format!("{here}/roles"), role("more", &secrets)).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(
        refused["message"],
        "roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"gina\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\"]}"
    );
    let pods = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
    gina.make(&format!("{here}/roles"), role("same", &pods)).await;
    let (code, _) =
        gina.patch(&format!("{here}/roles/same"), "merge-patch+json", &json!({"rules": secrets})).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    let (code, refused) = gina
        .ask(
            Method::POST,
            &format!("{here}/rolebindings"),
            bind("admin", "ClusterRole", "cluster-admin", "gina"),
        )
        .await;
    assert_eq!(code, StatusCode::FORBIDDEN, "{refused}");
    gina.make(&format!("{here}/rolebindings"), bind("same", "Role", "same", "joe")).await;
    let bindable = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "resourceNames": ["view"], "verbs": ["bind"]}]);
    world.admin.make(&format!("{RBAC}/clusterroles"), role("binder", &bindable)).await;
    world
        .admin
        .make(&format!("{RBAC}/clusterrolebindings"), bind("binder", "ClusterRole", "binder", "gina"))
        .await;
    gina.make(&format!("{here}/rolebindings"), bind("view", "ClusterRole", "view", "joe")).await;
    assert_eq!(world.user("joe").get("/api/v1/namespaces/default/configmaps").await.0, StatusCode::OK);
    assert_eq!(world.user("joe").get("/api/v1/namespaces/default/secrets").await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn an_aggregated_role_follows_its_parts() {
    let world = World::new().await;
    let mut part =
        role("part", &json!([{"apiGroups": ["example.com"], "resources": ["things"], "verbs": ["get"]}]));
    part["metadata"]["labels"] = json!({"rbac.authorization.k8s.io/aggregate-to-view": "true"});
    world.admin.make(&format!("{RBAC}/clusterroles"), part).await;
    let watch =
        format!("{RBAC}/clusterroles?watch=true&fieldSelector=metadata.name%3Dadmin&timeoutSeconds=5");
    let has = |role: &Value| role["rules"].to_string().contains("example.com");
    // The role is there at once or in the watch; the watch ends when it is.
    let (_, admin) = world.admin.get(&format!("{RBAC}/clusterroles/admin")).await;
    if !has(&admin) {
        let lines = world.admin.send(Method::GET, &watch, &[], "").await;
        let last = lines.body().split(|b| *b == b'\n').rfind(|line| !line.is_empty()).unwrap();
        assert!(has(&serde_json::from_slice::<Value>(last).unwrap()["object"]));
    }
}

#[tokio::test]
async fn somebody_who_may_impersonates_and_nobody_else() {
    let world = World::new().await;
    let rules = json!([{"apiGroups": [""], "resources": ["users"], "resourceNames": ["jane"], "verbs": ["impersonate"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["userextras/scopes"], "verbs": ["impersonate"]}]);
    world.admin.make(&format!("{RBAC}/clusterroles"), role("act", &rules)).await;
    world.admin.make(&format!("{RBAC}/clusterrolebindings"), bind("act", "ClusterRole", "act", "bob")).await;
    let bob = world.user("bob");
    let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let as_jane = [("impersonate-user", "jane"), ("impersonate-extra-scopes", "view")];
    let said = bob.send(Method::POST, whoami, &as_jane, "{}").await;
    let said: Value = serde_json::from_slice(said.body()).unwrap();
    assert_eq!(
        said["status"]["userInfo"],
        json!({"username": "jane", "groups": ["system:authenticated"], "extra": {"scopes": ["view"]}})
    );
    for headers in [
        vec![("impersonate-user", "root")],
        vec![("impersonate-user", "jane"), ("impersonate-group", "system:masters")],
        vec![("impersonate-user", "jane"), ("impersonate-uid", "1")],
        vec![("impersonate-user", "system:serviceaccount:kube-system:default")],
    ] {
        assert_eq!(
            bob.send(Method::POST, whoami, &headers, "{}").await.status(),
            StatusCode::FORBIDDEN,
            "{headers:?}"
        );
    }
}

#[tokio::test]
async fn a_kubelet_reads_what_its_pods_use_and_nothing_else() {
    let world = World::new().await;
    let here = "/api/v1/namespaces/default";
    world.admin.make(&format!("{here}/serviceaccounts"), json!({"metadata": {"name": "default"}})).await;
    for name in ["mine", "pulled", "other"] {
        world.admin.make(&format!("{here}/secrets"), json!({"metadata": {"name": name}})).await;
    }
    world.admin.make(&format!("{here}/configmaps"), json!({"metadata": {"name": "env"}})).await;
    let node = world.client(Identity::node("one"));
    let neighbour = world.client(Identity::node("two"));
    let reads =
        async |client: &common::client::Client, path: &str| client.get(&format!("{here}/{path}")).await.0;
    assert_eq!(reads(&node, "secrets/mine").await, StatusCode::FORBIDDEN, "before any Pod uses it");
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "one", "imagePullSecrets": [{"name": "pulled"}],
        "volumes": [{"name": "v", "projected": {"sources": [{"secret": {"name": "mine"}}]}}],
        "containers": [{"name": "c", "image": "i", "envFrom": [{"configMapRef": {"name": "env"}}]}]}});
    world.admin.make(&format!("{here}/pods"), pod).await;
    for path in [
        "secrets/mine",
        "secrets/pulled",
        "configmaps/env",
        "pods/p",
        "configmaps?fieldSelector=metadata.name%3Denv",
    ] {
        assert_eq!(reads(&node, path).await, StatusCode::OK, "{path}");
        assert_eq!(reads(&neighbour, path).await, StatusCode::FORBIDDEN, "{path}");
    }
    for path in
        ["secrets/other", "secrets", "configmaps", "pods", "secrets?fieldSelector=metadata.name%3Dother"]
    {
        assert_eq!(reads(&node, path).await, StatusCode::FORBIDDEN, "{path}");
    }
    let (code, list) = node.get("/api/v1/pods?fieldSelector=spec.nodeName%3Done").await;
    assert_eq!((code, list["items"].as_array().unwrap().len()), (StatusCode::OK, 1));
    assert_eq!(node.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dtwo").await.0, StatusCode::FORBIDDEN);
    let token = json!({"spec": {}});
    let unbound =
        node.ask(Method::POST, &format!("{here}/serviceaccounts/default/token"), token.clone()).await;
    assert_eq!(unbound.0, StatusCode::FORBIDDEN, "a kubelet's token is bound to a Pod");
    let foreign = neighbour.ask(Method::POST, &format!("{here}/serviceaccounts/default/token"), token).await;
    assert_eq!(foreign.0, StatusCode::FORBIDDEN);
    assert_eq!(
        world.admin.ask(Method::DELETE, &format!("{here}/pods/p"), json!({"gracePeriodSeconds": 0})).await.0,
        StatusCode::OK
    );
    assert_eq!(reads(&node, "secrets/mine").await, StatusCode::FORBIDDEN, "after its Pod is gone");
}
