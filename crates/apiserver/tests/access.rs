//! Who may do what: no route without permission, roles and bindings as upstream has them, kubelets and their Pods.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod common;

use api::kind::{Kind, kinds};
use apiserver::Identity;
use common::client::World;
use common::connection::{self, Http2};
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// What no answer may hold: the content of the one secret.
const CONTENT: &str = "bm90IGZvciB5b3U=";
/// The reviews of oneself, open to whoever is known.
const OPEN_TO_USERS: [&str; 3] =
    ["selfsubjectreviews", "selfsubjectaccessreviews", "selfsubjectrulesreviews"];
/// Open to everyone.
const OPEN: [&str; 5] = ["/healthz", "/livez", "/readyz", "/version", "/version/"];

/// The paths of a kind, of its objects and of everything below them.
fn paths_of(kind: &Kind) -> Vec<String> {
    let root = if kind.group.is_empty() {
        "/api/v1".to_owned()
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    let all = format!("{root}/{}", kind.plural);
    let here =
        if kind.namespaced { format!("{root}/namespaces/default/{}", kind.plural) } else { all.clone() };
    let one = format!("{here}/secret-name");
    let mut paths = vec![
        format!("{all}?watch=true&timeoutSeconds=1"),
        format!("{here}?watch=1&timeoutSeconds=1"),
        format!("{here}?fieldSelector=metadata.name%3Dsecret-name"),
        format!("{one}?watch=true&timeoutSeconds=1"),
        format!("{root}/watch/{}", kind.plural),
        format!("{root}//{}/", kind.plural),
    ];
    paths.extend(kind.subresources.iter().map(|below| format!("{one}/{}", below.name)));
    paths.extend(["status", "scale", "proxy/x", "nothing"].map(|name| format!("{one}/{name}")));
    paths.extend([all, here, one]);
    paths.sort();
    paths.dedup();
    paths
}

/// The paths that are no resource's: documents, metrics, what a client may try.
fn other_paths() -> Vec<String> {
    let mut paths: Vec<String> = [
        "/",
        "/api",
        "/api/",
        "/api/v1",
        "/apis",
        "/openapi/v2",
        "/openapi/v3",
        "/openapi/v3/api/v1",
        "/metrics",
        "/openid/v1/jwks",
        "/.well-known/openid-configuration",
        "/kakoi/snapshot",
        "/healthz/ping",
        "/readyz/store",
        "/livez/nothing",
        "/logs",
        "/debug/pprof",
        "/api/v1/nothing",
        "/api/v2/secrets",
        "/apis/example.com/v1/things",
        "/api/v1/../v1/namespaces/default/secrets/secret-name",
        "/API/v1/secrets",
        "/api/v1/%73ecrets",
        "//api/v1/namespaces/default/secrets",
        "/api/v1/namespaces/default%2fsecrets/secret-name",
        "/api/v1/namespaces/%64efault/secrets/secret-name",
        "/healthz/../api/v1/secrets",
        "/version/../api/v1/secrets",
    ]
    .map(str::to_owned)
    .into();
    paths.extend(kinds().iter().filter(|kind| !kind.group.is_empty()).flat_map(|kind| {
        [format!("/apis/{}", kind.group), format!("/apis/{}/{}", kind.group, kind.version)]
    }));
    paths.sort();
    paths.dedup();
    paths
}

const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

async fn world_with_a_secret() -> World {
    let world = World::new().await;
    let secret = json!({"metadata": {"name": "secret-name"}, "data": {"k": CONTENT}});
    world.admin.make("/api/v1/namespaces/default/secrets", secret).await;
    world
}

#[tokio::test]
async fn no_route_answers_who_has_no_role() {
    let world = world_with_a_secret().await;
    let stranger = world.user("stranger");
    let nobody = world.client(Identity::anonymous());
    let mut asked = 0;
    for (kind, uri) in kinds().iter().flat_map(|kind| paths_of(kind).into_iter().map(move |uri| (kind, uri)))
    {
        let path = uri.split('?').next().unwrap().trim_end_matches('/');
        let is_review = OPEN_TO_USERS.contains(&kind.plural) && !path.contains("/watch/");
        for method in METHODS {
            for (client, is_known) in [(&stranger, true), (&nobody, false)] {
                let response = client.send(method.clone(), &uri, &[], "{}").await;
                let names_it = path.ends_with(kind.plural) || path.ends_with("secret-name");
                let is_open = is_known && is_review && names_it && method == Method::POST;
                assert_eq!(response.status() == StatusCode::FORBIDDEN, !is_open, "{method} {uri}");
                assert!(!String::from_utf8_lossy(response.body()).contains(CONTENT), "{method} {uri}");
                if !is_open {
                    let said: Value = serde_json::from_slice(response.body()).unwrap();
                    assert_eq!(
                        (&said["kind"], &said["reason"]),
                        (&json!("Status"), &json!("Forbidden")),
                        "{method} {uri}"
                    );
                }
                asked += 1;
            }
        }
    }
    assert!(asked > 10_000, "{asked}");
    for path in other_paths() {
        for method in METHODS {
            let response = nobody.send(method.clone(), &path, &[], "{}").await;
            assert_eq!(response.status(), StatusCode::FORBIDDEN, "{method} {path}");
            assert!(!String::from_utf8_lossy(response.body()).contains(CONTENT), "{method} {path}");
        }
    }
    for path in OPEN {
        assert_eq!(nobody.send(Method::GET, path, &[], "").await.status(), StatusCode::OK, "{path}");
        assert_eq!(nobody.send(Method::POST, path, &[], "").await.status(), StatusCode::FORBIDDEN, "{path}");
    }
    for path in ["/metrics", "/kakoi/snapshot", "/readyz/ping", "/logs", "/"] {
        assert_eq!(stranger.get(path).await.0, StatusCode::FORBIDDEN, "{path}");
    }
    assert_eq!(stranger.get("/api/v1").await.0, StatusCode::OK, "discovery is for whoever is known");
}

#[tokio::test]
async fn over_the_wire_no_certificate_and_no_forged_token_opens_a_route() {
    let world = world_with_a_secret().await;
    let foreign = World::new().await;
    // A token of another server's, which is good there.
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    foreign.admin.make(accounts, json!({"metadata": {"name": "default"}})).await;
    let made = foreign.admin.make(&format!("{accounts}/default/token"), json!({"spec": {}})).await;
    let token = made["status"]["token"].as_str().unwrap().to_owned();
    let mut nobody = Http2::new(&world, None).await;
    let headers = [
        (None, StatusCode::FORBIDDEN),
        (Some("Basic YWRtaW46YWRtaW4=".to_owned()), StatusCode::FORBIDDEN),
        (Some(format!("Bearer {token}")), StatusCode::UNAUTHORIZED),
        (Some("Bearer abcdef.0123456789abcdef".to_owned()), StatusCode::UNAUTHORIZED),
        (Some("Bearer e30.e30.e30".to_owned()), StatusCode::UNAUTHORIZED),
    ];
    for uri in kinds().iter().flat_map(paths_of).chain(other_paths()) {
        for (header, code) in &headers {
            let mut request = Request::builder().uri(&uri);
            if let Some(header) = header {
                request = request.header("authorization", header);
            }
            let response = nobody.send(request.body("").unwrap()).await;
            assert_eq!(response.status(), *code, "{uri} {header:?}");
            assert!(!String::from_utf8_lossy(response.body()).contains(CONTENT), "{uri}");
        }
    }
    // Whoever is nobody speaks for nobody.
    let request = Request::builder().uri("/api/v1/secrets").header("impersonate-user", "admin");
    let request = request.header("impersonate-group", "system:masters").body("").unwrap();
    assert_eq!(nobody.send(request).await.status(), StatusCode::FORBIDDEN);
    let mut admin = Http2::new(&world, Some(&connection::admin(&world))).await;
    let secrets = admin.send(Request::builder().uri("/api/v1/secrets").body("").unwrap()).await;
    assert!(
        String::from_utf8_lossy(secrets.body()).contains(CONTENT),
        "the admin's certificate does open it"
    );
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

/// As with kube-apiserver: the order is the server's, and a long list costs the least that is safe.
#[tokio::test]
async fn aes_with_128_bits_is_agreed_on_with_who_would_take_256_first() {
    let world = World::new().await;
    let stream = connection::connect(&world, None).await;
    let suite = stream.get_ref().1.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
}
