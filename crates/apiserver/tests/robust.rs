//! Bad input of every kind over the wire: each is refused in a sentence, and the server goes on.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod common;

use common::client::World;
use http::{Method, StatusCode};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// The largest body that is read, in bytes.
const LARGEST: usize = 3 * 1024 * 1024;
const JSON_PATCH: &[(&str, &str)] = &[("content-type", "application/json-patch+json")];

#[tokio::test]
async fn a_json_patch_has_ten_thousand_operations_and_no_more() {
    let world = World::new().await;
    world.admin.make(MAPS, json!({"metadata": {"name": "c"}, "data": {"k": "v"}})).await;
    let uri = format!("{MAPS}/c");
    let operations = |count: usize| {
        let one = json!({"op": "replace", "path": "/data/k", "value": "w"});
        Value::Array(vec![one; count]).to_string()
    };
    let most = world.admin.send(Method::PATCH, &uri, JSON_PATCH, operations(10_000)).await;
    assert_eq!(most.status(), StatusCode::OK, "{:?}", most.body());
    let more = world.admin.send(Method::PATCH, &uri, JSON_PATCH, operations(10_001)).await;
    assert_eq!(more.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(
        String::from_utf8_lossy(more.body())
            .contains("The allowed maximum operations in a JSON patch is 10000, got 10001")
    );
    // Copies that double the document stop at its size, not at the machine's memory.
    let mut doubling = vec![json!({"op": "add", "path": "/data/a", "value": "x".repeat(1000)})];
    doubling.extend((0..64).map(|at| json!({"op": "copy", "from": "/data", "path": format!("/data/n{at}")})));
    let refused = world.admin.send(Method::PATCH, &uri, JSON_PATCH, Value::Array(doubling).to_string()).await;
    assert!(refused.status().is_client_error(), "{:?}", refused.status());
}

#[tokio::test]
async fn deep_nesting_is_refused_by_every_reader() {
    let world = World::new().await;
    world.admin.make(MAPS, json!({"metadata": {"name": "c"}})).await;
    let deep = |open: &str, close: &str, inner: &str| {
        format!("{}{inner}{}", open.repeat(50_000), close.repeat(50_000))
    };
    let bodies = [
        ("application/json", deep("[", "]", "")),
        ("application/json", deep("{\"a\":", "}", "1")),
        ("application/yaml", deep("[", "]", "")),
        ("application/yaml", deep("{a: ", "}", "1")),
    ];
    for (media, body) in bodies {
        let response = world.admin.send(Method::POST, MAPS, &[("content-type", media)], body).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{media}");
    }
    for media in ["json-patch+json", "merge-patch+json", "strategic-merge-patch+json", "apply-patch+yaml"] {
        let media = format!("application/{media}");
        let uri = format!("{MAPS}/c?fieldManager=m");
        let body = deep("{\"data\":", "}", "1");
        let response = world.admin.send(Method::PATCH, &uri, &[("content-type", media.as_str())], body).await;
        assert!(response.status().is_client_error(), "{media}: {:?}", response.status());
    }
    assert_eq!(world.admin.get(&format!("{MAPS}/c")).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_body_of_three_megabytes_is_read_and_a_larger_one_is_not() {
    let world = World::new().await;
    let object = |size| json!({"metadata": {"name": "big"}, "data": {"k": "x".repeat(size)}}).to_string();
    let read = world.admin.send(Method::POST, MAPS, &[], object(LARGEST - 200)).await;
    assert_eq!(read.status(), StatusCode::UNPROCESSABLE_ENTITY, "it is read, and its rules refuse it");
    world.admin.make(MAPS, json!({"metadata": {"name": "big"}})).await;
    let one = format!("{MAPS}/big");
    let patches = ["json-patch+json", "merge-patch+json", "strategic-merge-patch+json", "apply-patch+yaml"];
    let mut requests = vec![
        (Method::POST, MAPS.to_owned(), "json"),
        (Method::POST, MAPS.to_owned(), "yaml"),
        (Method::POST, MAPS.to_owned(), "vnd.kubernetes.protobuf"),
        (Method::PUT, one.clone(), "json"),
        (Method::DELETE, one.clone(), "json"),
        (Method::DELETE, MAPS.to_owned(), "json"),
        (Method::PUT, "/api/v1/nodes/n/status".to_owned(), "json"),
        (Method::POST, "/api/v1/namespaces/default/pods/p/eviction".to_owned(), "json"),
        (Method::POST, "/api/v1/namespaces/default/bindings".to_owned(), "json"),
        (Method::PUT, "/apis/apps/v1/namespaces/default/deployments/d/scale".to_owned(), "json"),
        (Method::POST, "/api/v1/namespaces/default/serviceaccounts/a/token".to_owned(), "json"),
        (Method::POST, "/apis/authentication.k8s.io/v1/tokenreviews".to_owned(), "json"),
    ];
    requests.extend(patches.map(|media| (Method::PATCH, format!("{one}?fieldManager=m"), media)));
    let body = bytes::Bytes::from(object(LARGEST + 1));
    for (method, uri, media) in requests {
        let media = format!("application/{media}");
        let headers = [("content-type", media.as_str())];
        let response = world.admin.send(method.clone(), &uri, &headers, body.clone()).await;
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE, "{method} {uri} {media}");
        let said: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(said["message"], "Request entity too large: limit is 3145728", "{method} {uri} {media}");
    }
    assert_eq!(world.admin.get(&one).await.0, StatusCode::OK, "nothing of it was done");
}

/// Whatever stands in the query, the answer is a list or a refusal.
#[test]
fn selectors_and_tokens_of_any_kind_are_answered() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(async {
        let world = World::new().await;
        for name in ["a", "b", "c"] {
            world.admin.make(MAPS, json!({"metadata": {"name": name, "labels": {"x": name}}})).await;
        }
        world
    });
    let any =
        prop_oneof!["[ -~]{0,40}", "\\PC{0,20}", "[a-c!=,() ]{0,20}(in|notin|exists)?[a-c!=,() ]{0,20}"];
    let encoded = |text: &str| text.bytes().fold(String::new(), |uri, byte| uri + &format!("%{byte:02x}"));
    let mut runner = TestRunner::new(Config { cases: 400, ..Config::default() });
    let parameters = [
        "labelSelector",
        "fieldSelector",
        "continue",
        "resourceVersion",
        "limit",
        "timeoutSeconds",
        "resourceVersionMatch",
    ];
    runner
        .run(&(any, 0..parameters.len()), |(text, at)| {
            let uri = format!("{MAPS}?{}={}", parameters[at], encoded(&text));
            let response = runtime.block_on(world.admin.send(Method::GET, &uri, &[], ""));
            prop_assert!(
                response.status().as_u16() < 500 || response.status().as_u16() == 504,
                "{} {:?}",
                uri,
                response
            );
            let value: Value = serde_json::from_slice(response.body()).unwrap();
            prop_assert!(value["kind"] == "ConfigMapList" || value["kind"] == "Status");
            Ok(())
        })
        .unwrap();
}

/// A token of three random parts, or a good one with something changed, lets nobody in.
#[test]
fn a_token_that_is_not_quite_right_is_none() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (world, good) = runtime.block_on(async {
        let world = World::new().await;
        world
            .admin
            .make("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}}))
            .await;
        let uri = "/api/v1/namespaces/default/serviceaccounts/default/token";
        let made = world.admin.make(uri, json!({"spec": {}})).await;
        (world, made["status"]["token"].as_str().unwrap().to_owned())
    });
    let review = |token: &str| {
        let body = json!({"spec": {"token": token}});
        let uri = "/apis/authentication.k8s.io/v1/tokenreviews";
        runtime.block_on(world.admin.ask(Method::POST, uri, body))
    };
    assert_eq!(review(&good).1["status"]["authenticated"], true);
    let mut runner = TestRunner::new(Config { cases: 300, ..Config::default() });
    let random = prop_oneof!["[A-Za-z0-9_-]{1,40}\\.[A-Za-z0-9_-]{1,40}\\.[A-Za-z0-9_-]{0,90}", "\\PC{1,40}"];
    runner
        .run(&(random, any::<prop::sample::Index>(), any::<u8>()), |(random, at, byte)| {
            let mut bytes = good.clone().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] =
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."[usize::from(byte) % 65];
            let changed = String::from_utf8(bytes).unwrap();
            for token in [random, changed] {
                let (code, answer) = review(&token);
                let is_in = answer["status"]["authenticated"] == true;
                prop_assert!(code.is_success() && (!is_in || token == good), "{} {}", token, answer);
            }
            Ok(())
        })
        .unwrap();
}
