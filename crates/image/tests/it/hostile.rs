//! A registry that misbehaves on purpose: each fault ends in the right answer or in a sentence that names it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION, RANGE, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use image::{ImageStore, NetworkConfig, PullErrorKind, RegistryAuth};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::{Image, Node, Tar, config};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;
type Behaviour = Arc<dyn Fn(&Request<Incoming>) -> Option<Response<Body>> + Send + Sync>;

/// Serves one image; what `behaviour` answers goes first.
struct Registry {
    address: SocketAddr,
    server: JoinHandle<()>,
    /// Requests as `METHOD path`, in order.
    log: Arc<Mutex<Vec<String>>>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn full(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).body(body).unwrap()
}

fn with(mut response: Response<Body>, name: http::HeaderName, value: &str) -> Response<Body> {
    response.headers_mut().insert(name, value.parse().unwrap());
    response
}

fn serve(image: &Image, request: &Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    let Some((_, name)) = path.rsplit_once('/') else { return full(StatusCode::NOT_FOUND, "") };
    if path.contains("/manifests/") {
        let known = name == "latest" || name == image.digest().as_str();
        if !known {
            return full(
                StatusCode::NOT_FOUND,
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
            );
        }
        let answer = full(StatusCode::OK, image.manifest.clone());
        let answer =
            with(answer, http::HeaderName::from_static("docker-content-digest"), image.digest().as_str());
        return with(answer, CONTENT_TYPE, image::OCI_MANIFEST);
    }
    match name.parse().ok().and_then(|digest| image.blobs.get(&digest)) {
        Some(blob) => range_of(blob, request),
        None => full(StatusCode::NOT_FOUND, r#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#),
    }
}

fn range_of(blob: &[u8], request: &Request<Incoming>) -> Response<Body> {
    let range = request.headers().get(RANGE).and_then(|value| value.to_str().ok());
    let start: Option<usize> =
        range.and_then(|text| text.strip_prefix("bytes=")?.trim_end_matches('-').parse().ok());
    match start {
        None => full(StatusCode::OK, blob.to_vec()),
        Some(start) => {
            let answer = full(StatusCode::PARTIAL_CONTENT, blob[start..].to_vec());
            let said = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
            with(answer, http::header::CONTENT_RANGE, &said)
        }
    }
}

/// An answer that ends in the middle: `sent` bytes of a larger whole, then an error or silence.
fn broken_off(blob: &[u8], sent: usize, goes_silent: bool) -> Response<Body> {
    let first = stream::iter([Ok(Frame::data(Bytes::copy_from_slice(&blob[..sent])))]);
    let body: Body = if goes_silent {
        BodyExt::boxed_unsync(StreamBody::new(first.chain(stream::pending().boxed())))
    } else {
        let end = stream::once(async { Err(std::io::Error::other("broken off on purpose")) });
        BodyExt::boxed_unsync(StreamBody::new(first.chain(end.boxed())))
    };
    let answer = Response::new(body);
    with(answer, CONTENT_LENGTH, &blob.len().to_string())
}

impl Registry {
    async fn start(image: Image, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let (image, kept) = (Arc::new(image), Arc::clone(&log));
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let (image, behaviour, log) = (Arc::clone(&image), Arc::clone(&behaviour), Arc::clone(&kept));
                connections.spawn(async move {
                    let answer = service_fn(|request: Request<Incoming>| {
                        log.lock().unwrap().push(format!("{} {}", request.method(), request.uri().path()));
                        let answer = behaviour(&request).unwrap_or_else(|| serve(&image, &request));
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    // Broken connections are what some tests are about.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(connection), answer)
                        .await;
                });
            }
        });
        Self { address, server, log }
    }

    fn reference(&self) -> String {
        format!("{}/team/app", self.address)
    }

    fn asked(&self, part: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(part)).count()
    }
}

fn image() -> Image {
    // Nearly random, so that the compressed layer is long enough to break in the middle.
    let text: String = (0..1000_u32).map(|n| image::Digest::of(&n.to_le_bytes()).hex().to_owned()).collect();
    Image::of(&[Tar::new().file("one", &text).finish(), Tar::new().file("two", "2").finish()])
}

fn nothing_special() -> Behaviour {
    Arc::new(|_| None)
}

fn is_layer(request: &Request<Incoming>, image: &Image) -> bool {
    request.uri().path().ends_with(image.layers[0].as_str())
}

/// Does something on the first `times` requests that fit.
fn at_first(
    times: usize,
    fits: impl Fn(&Request<Incoming>) -> bool + Send + Sync + 'static,
    answer: impl Fn(&Request<Incoming>) -> Response<Body> + Send + Sync + 'static,
) -> Behaviour {
    let count = AtomicUsize::new(0);
    Arc::new(move |request| {
        (fits(request) && count.fetch_add(1, Ordering::SeqCst) < times).then(|| answer(request))
    })
}

type Pulled = (Node, Registry, Result<image::ImageRecord, Arc<image::PullError>>);

async fn pull_from(behaviour: Behaviour) -> Pulled {
    pull_within(crate::support::fast(), behaviour).await
}

async fn pull_within(network: NetworkConfig, behaviour: Behaviour) -> Pulled {
    let node = Node::with(network);
    let registry = Registry::start(image(), behaviour).await;
    let pulled = node.store.pull(&registry.reference(), None, |_| {}).await;
    (node, registry, pulled)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_registry_is_asked_once_and_later_only_whether_the_tag_moved() {
    let (node, registry, pulled) = pull_from(nothing_special()).await;
    let record = pulled.unwrap();
    assert_eq!(record.repo_tags, [format!("{}:latest", registry.reference())]);
    let before = registry.asked("");
    assert_eq!(before, 4, "{:?}", registry.log);
    let again = node.store.pull(&registry.reference(), None, |_| {}).await.unwrap();
    assert_eq!((again, registry.asked("")), (record, before + 1));
    assert_eq!(registry.asked("HEAD"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_image_is_not_found_in_the_registrys_words() {
    let node = Node::new();
    let registry = Registry::start(image(), nothing_special()).await;
    let error = node.store.pull(&format!("{}:nope", registry.reference()), None, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::NotFound);
    let text = error.to_string();
    assert!(text.contains("404 Not Found: manifest unknown"), "{text}");
    assert!(text.contains("check the image's name and tag"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listening_is_connection_refused() {
    let node = Node::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = node.store.pull(&format!("{address}/a"), None, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Unavailable);
    assert!(error.to_string().contains(&format!("connection refused by {address}")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_with_another_content_is_refused_with_both_digests() {
    let image = image();
    let layer = image.layers[0].clone();
    let mut wrong = image.blobs[&layer].clone();
    // The last bytes are gzip's own check: the archive is whole, only the digest can tell.
    let at = wrong.len() - 6;
    wrong[at] ^= 1;
    let (node, _registry, pulled) = pull_from(Arc::new(move |request| {
        is_layer(request, &image).then(|| full(StatusCode::OK, wrong.clone()))
    }))
    .await;
    let error = pulled.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Corrupt);
    assert!(error.to_string().contains(&format!("wrong digest: expected {layer}, got sha256:")), "{error}");
    assert_eq!(node.leftovers().0, 0);
    assert!(node.store.list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_and_a_configuration_are_verified_too() {
    let node = Node::new();
    let good = image();
    let digest = good.digest();
    let config = good.config.clone();
    let registry = Registry::start(
        good,
        Arc::new(move |request| {
            let path = request.uri().path();
            let is_wrong = path.ends_with(config.as_str()) || path.ends_with(digest.as_str());
            is_wrong.then(|| full(StatusCode::OK, "{}"))
        }),
    )
    .await;
    let by_digest = format!("{}@{}", registry.reference(), image().digest());
    for reference in [by_digest, registry.reference()] {
        let error = node.store.pull(&reference, None, |_| {}).await.unwrap_err();
        assert!(error.to_string().contains("wrong digest: expected sha256:"), "{error}");
        assert_eq!(error.kind(), PullErrorKind::Corrupt);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_bytes_than_promised_are_not_taken() {
    let image = image();
    let mut longer = image.blobs[&image.layers[0]].clone();
    longer.extend_from_slice(&[0; 4096]);
    let (_node, _registry, pulled) = pull_from(Arc::new(move |request| {
        is_layer(request, &image).then(|| full(StatusCode::OK, longer.clone()))
    }))
    .await;
    let error = pulled.unwrap_err().to_string();
    assert!(error.contains("wrong size: expected"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_goes_on_where_it_broke() {
    let image = image();
    let blob = image.blobs[&image.layers[0]].clone();
    let faults = at_first(
        3,
        move |request| is_layer(request, &image),
        move |request| {
            let range = request.headers().get(RANGE).map(|value| value.to_str().unwrap().to_owned());
            let start: usize = range.map_or(0, |text| text[6..].trim_end_matches('-').parse().unwrap());
            let answer = broken_off(&blob[start..], 1000, start == 1000);
            let said = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
            let answer = with(answer, http::header::CONTENT_RANGE, &said);
            if start == 0 { answer } else { partial(answer) }
        },
    );
    let (_node, registry, pulled) = pull_within(crate::support::impatient(), faults).await;
    assert!(pulled.is_ok(), "{pulled:?}");
    assert_eq!(registry.asked("/blobs/"), 3 + 3, "{:?}", registry.log);
}

fn partial(mut answer: Response<Body>) -> Response<Body> {
    *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_ranges_sends_all_again_and_the_known_part_is_skipped() {
    let image = image();
    let blob = image.blobs[&image.layers[0]].clone();
    let whole = blob.clone();
    let first = AtomicUsize::new(0);
    let (_node, _registry, pulled) = pull_from(Arc::new(move |request| {
        if !is_layer(request, &image) {
            return None;
        }
        let is_first = first.fetch_add(1, Ordering::SeqCst) == 0;
        Some(if is_first { broken_off(&blob, 5000, false) } else { full(StatusCode::OK, whole.clone()) })
    }))
    .await;
    assert!(pulled.is_ok(), "{pulled:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_always_ends_early_is_given_up() {
    let image = image();
    let blob = image.blobs[&image.layers[0]].clone();
    let (node, _registry, pulled) =
        pull_from(Arc::new(move |request| is_layer(request, &image).then(|| broken_off(&blob, 0, false))))
            .await;
    let error = pulled.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Unavailable);
    assert!(error.to_string().contains("the connection broke"), "{error}");
    assert_eq!(node.leftovers().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_a_timeout_and_does_not_take_long() {
    let started = Instant::now();
    let node = Node::with(crate::support::impatient());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let holding = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(listener.accept().await.unwrap());
        }
    });
    let error = node.store.pull(&format!("{address}/a"), None, |_| {}).await.unwrap_err();
    holding.abort();
    assert_eq!(error.kind(), PullErrorKind::Unavailable);
    assert!(error.to_string().contains(&format!("timeout: no answer from {address}")), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_registries_are_asked_again_and_permanent_refusals_are_not() {
    for status in
        [StatusCode::TOO_MANY_REQUESTS, StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE]
    {
        let busy = at_first(2, |_| true, move |_| with(full(status, ""), http::header::RETRY_AFTER, "0"));
        let (_node, _registry, pulled) = pull_from(busy).await;
        assert!(pulled.is_ok(), "{pulled:?}");
    }
    let limit = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"pull rate limit\u0007 reached"}]}"#;
    let (_node, registry, pulled) =
        pull_from(Arc::new(move |_| Some(full(StatusCode::TOO_MANY_REQUESTS, limit)))).await;
    let error = pulled.unwrap_err().to_string();
    assert!(error.contains("429 Too Many Requests: toomanyrequests: pull rate limit reached"), "{error:?}");
    assert_eq!(registry.asked("GET"), 5, "one try and four more");
    let (_node, registry, pulled) = pull_from(Arc::new(|_| Some(full(StatusCode::FORBIDDEN, "")))).await;
    assert_eq!(pulled.unwrap_err().kind(), PullErrorKind::Unauthorized);
    assert_eq!(registry.asked("GET"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_followed_without_the_credentials() {
    let seen: Arc<Mutex<BTreeMap<String, bool>>> = Arc::default();
    let (image, kept) = (image(), Arc::clone(&seen));
    let cdn = Registry::start(
        image.clone(),
        Arc::new(move |request| {
            let has = request.headers().contains_key(AUTHORIZATION);
            kept.lock().unwrap().insert(request.uri().path().to_owned(), has);
            None
        }),
    )
    .await;
    let to = cdn.address;
    let node = Node::new();
    let registry = Registry::start(
        image,
        Arc::new(move |request| {
            if !request.headers().contains_key(AUTHORIZATION) {
                return Some(with(full(StatusCode::UNAUTHORIZED, ""), WWW_AUTHENTICATE, "Basic realm=\"x\""));
            }
            let path = request.uri().path();
            let moved =
                || with(full(StatusCode::TEMPORARY_REDIRECT, ""), LOCATION, &format!("http://{to}{path}"));
            path.contains("/blobs/").then(moved)
        }),
    )
    .await;
    let auth = RegistryAuth::Basic { username: "u".to_owned(), password: "p".to_owned() };
    node.store.pull(&registry.reference(), Some(auth), |_| {}).await.unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!((seen.len(), seen.values().any(|has| *has)), (3, false), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_redirects_end() {
    let (_node, _registry, pulled) = pull_from(Arc::new(|request| {
        Some(with(full(StatusCode::FOUND, ""), LOCATION, request.uri().path()))
    }))
    .await;
    let error = pulled.unwrap_err().to_string();
    assert!(error.contains("more than 10 redirects"), "{error}");
}

/// Answers only with the token that its own token server gives to the right user.
fn token_registry(address: &Arc<Mutex<Option<SocketAddr>>>, wanted: Option<&'static str>) -> Behaviour {
    let address = Arc::clone(address);
    Arc::new(move |request| {
        let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        if request.uri().path() == "/token" {
            let query = request.uri().query().unwrap_or_default();
            let is_scoped = query.contains("scope=repository%3Ateam%2Fapp%3Apull");
            if authorization != wanted || !is_scoped {
                let denied =
                    r#"{"errors":[{"code":"UNAUTHORIZED","message":"incorrect username or password"}]}"#;
                return Some(full(StatusCode::UNAUTHORIZED, denied));
            }
            return Some(full(StatusCode::OK, r#"{"token":"secret","expires_in":60}"#));
        }
        let realm =
            address.lock().unwrap().map(|address| format!("http://{address}/token")).unwrap_or_default();
        let challenge = format!(r#"Bearer realm="{realm}",service="s",scope="repository:team/app:pull""#);
        (authorization != Some("Bearer secret"))
            .then(|| with(full(StatusCode::UNAUTHORIZED, ""), WWW_AUTHENTICATE, &challenge))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_once_for_a_pull_with_or_without_a_user() {
    let user = RegistryAuth::Basic { username: "u".to_owned(), password: "p".to_owned() };
    for (auth, wanted) in [(None, None), (Some(user), Some("Basic dTpw"))] {
        let node = Node::new();
        let address = Arc::default();
        let registry = Registry::start(image(), token_registry(&address, wanted)).await;
        *address.lock().unwrap() = Some(registry.address);
        let pulled = node.store.pull(&registry.reference(), auth, |_| {}).await;
        assert!(pulled.is_ok(), "{pulled:?}");
        assert_eq!(registry.asked("/token"), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_unauthorized_and_is_not_tried_twice() {
    let node = Node::new();
    let address = Arc::default();
    let registry = Registry::start(image(), token_registry(&address, Some("Basic dTpw"))).await;
    *address.lock().unwrap() = Some(registry.address);
    let error = node.store.pull(&registry.reference(), None, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Unauthorized);
    let text = error.to_string();
    assert!(text.contains("401 Unauthorized: unauthorized: incorrect username or password"), "{text}");
    assert!(text.contains("imagePullSecrets"), "{text}");
    assert_eq!(registry.asked("/token"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_fails_is_passed_over_and_told_which_registry_is_meant() {
    let node = Node::new();
    let image = image();
    let layer = image.layers[0].clone();
    let asked_for: Arc<Mutex<String>> = Arc::default();
    let kept = Arc::clone(&asked_for);
    let mirror = Registry::start(
        image.clone(),
        Arc::new(move |request| {
            request.uri().query().unwrap_or_default().clone_into(&mut kept.lock().unwrap());
            // The mirror's copy of one layer is damaged: the server's is taken.
            request.uri().path().ends_with(layer.as_str()).then(|| full(StatusCode::OK, "damaged"))
        }),
    )
    .await;
    let server = Registry::start(image, nothing_special()).await;
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://127.0.0.1:1\"]\n[host.\"http://{}\"]\n",
        server.address, mirror.address
    );
    node.hosts("registry.example", &text);
    let record = node.pull("registry.example/team/app").await.unwrap();
    assert_eq!(record.repo_tags, ["registry.example/team/app:latest"]);
    assert_eq!(*asked_for.lock().unwrap(), "ns=registry.example");
    assert_eq!(server.log.lock().unwrap().len(), 1, "only the damaged layer");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_places_that_were_tried_are_named() {
    let node = Node::new();
    let server = Registry::start(image(), nothing_special()).await;
    let text = format!(
        "server = \"http://{}\"\n[host.\"oci:/nowhere\"]\n[host.\"http://127.0.0.1:1\"]\n",
        server.address
    );
    node.hosts("registry.example", &text);
    let error = node.store.pull("registry.example/team/app:2", None, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::NotFound);
    let expected = format!(
        "pulling `registry.example/team/app:2`: oci:/nowhere: not found: no OCI layout for \
         `registry.example/team/app`; http://127.0.0.1:1: connection refused by 127.0.0.1:1; \
         http://{}: not found: 404 Not Found: manifest unknown (check the image's name and tag)",
        server.address
    );
    assert_eq!(error.to_string(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_askers_are_one_pull_and_it_stops_when_nobody_waits() {
    let node = Node::new();
    let registry = Registry::start(image(), nothing_special()).await;
    let reference = registry.reference();
    let pulls = (0..20).map(|_| node.store.pull(&reference, None, |_| {}));
    let pulled = futures::future::join_all(pulls).await;
    assert!(pulled.iter().all(Result::is_ok));
    assert_eq!(registry.asked("GET"), 4, "{:?}", registry.log);

    let image = image();
    let blob = image.blobs[&image.layers[0]].clone();
    let node = Node::new();
    let slow: Behaviour =
        Arc::new(move |request| is_layer(request, &image).then(|| broken_off(&blob, 4000, true)));
    let registry = Registry::start(crate::hostile::image(), slow).await;
    let reference = registry.reference();
    let (sender, mut progress) = tokio::sync::mpsc::unbounded_channel();
    let report = move |now: image::Progress| sender.send(now).unwrap_or_default();
    let pull = node.store.pull(&reference, None, report);
    let begun = async { while progress.recv().await.is_some_and(|now| now.bytes_done < 4000) {} };
    tokio::select! {
        pulled = pull => panic!("{pulled:?}"),
        () = begun => {}
    }
    node.store.close().await;
    assert_eq!(node.leftovers().0, 0, "a dropped pull leaves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_asked_for_the_whole_url_and_loopback_is_not_proxied() {
    let image = image();
    let proxy = Registry::start(image, nothing_special()).await;
    let hosts = Arc::clone(&proxy.log);
    let node = Node::new();
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path());
    settings.network = NetworkConfig {
        proxies: image::Proxies {
            http: format!("http://user:word@{}", proxy.address),
            https: format!("http://{}", proxy.address),
            none_for: "direct.example".to_owned(),
        },
        ..crate::support::fast()
    };
    settings.certs_dir = node.path().join("certs.d");
    node.hosts("registry.example", "server = \"http://registry.example:81\"\n");
    node.hosts("direct.example", "server = \"http://direct.example:81\"\n");
    let store = ImageStore::open(settings).unwrap();
    let pulled = store.pull("registry.example/team/app", None, |_| {}).await;
    assert!(pulled.is_ok(), "{pulled:?}");
    assert_eq!(hosts.lock().unwrap().len(), 4);
    let error = store.pull("direct.example/team/app", None, |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("cannot connect to direct.example:81"), "{error}");
    let error = store.pull("tls.example/team/app", None, |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("through the proxy http://"), "{error}");
    assert_eq!(proxy.asked("CONNECT"), 1, "{:?}", proxy.log);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_and_host_reach_the_registry_as_they_should() {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = Arc::clone(&seen);
    let (_node, registry, pulled) = pull_from(Arc::new(move |request| {
        let host = request.headers().get(HOST).unwrap().to_str().unwrap().to_owned();
        kept.lock().unwrap().push(host);
        (request.method() != Method::GET).then(|| full(StatusCode::METHOD_NOT_ALLOWED, ""))
    }))
    .await;
    pulled.unwrap();
    let host = registry.address.to_string();
    assert!(seen.lock().unwrap().iter().all(|seen| *seen == host));
}
