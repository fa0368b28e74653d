//! Trust bundles of the cluster, from an API server that serves their kind and from one that does not.

use std::convert::Infallible;
use std::error::Error;
use std::sync::{Arc, Mutex};

use apiserver::ApiService;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body as HttpBody, Bytes, Frame};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::ServiceExt as _;

use crate::line::Far;
use crate::node::{Node, until};
use crate::script::Script;

type Answer = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

const PATH: &str = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";

/// The collection as a server with the beta API has it: it is listed, and watched with initial events.
#[derive(Clone, Debug, Default)]
pub(crate) struct Collection(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    bundles: Vec<Value>,
    watchers: Vec<mpsc::UnboundedSender<String>>,
}

impl Collection {
    /// A client of `api` that finds the collection too.
    pub(crate) fn client(&self, api: Far<ApiService>) -> Client {
        let collection = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (collection, api) = (collection.clone(), api.clone());
            async move {
                if request.uri().path() == PATH {
                    return Ok(collection.answer(request.uri().query().unwrap_or_default()));
                }
                api.oneshot(request).await.map(|answer| answer.map(boxed))
            }
        });
        Client::new(service, "default")
    }

    fn answer(&self, query: &str) -> Response<Answer> {
        let mut state = self.0.lock().unwrap();
        if !query.contains("watch=true") {
            let list = json!({"metadata": {"resourceVersion": "1"}, "items": state.bundles});
            return Response::new(boxed(Full::from(list.to_string())));
        }
        let (events, lines) = mpsc::unbounded_channel();
        for bundle in &state.bundles {
            events.send(line("ADDED", bundle)).unwrap();
        }
        let end = json!({"kind": "ClusterTrustBundle", "apiVersion": "certificates.k8s.io/v1beta1",
            "metadata": {"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}}, "spec": {"trustBundle": ""}});
        events.send(line("BOOKMARK", &end)).unwrap();
        state.watchers.push(events);
        let frames =
            UnboundedReceiverStream::new(lines).map(|line| Ok::<_, Infallible>(Frame::data(line.into())));
        Response::new(boxed(StreamBody::new(frames)))
    }

    /// Stores a bundle and tells all watchers.
    fn put(&self, name: &str, anchors: &str) {
        let mut state = self.0.lock().unwrap();
        let bundle = json!({"kind": "ClusterTrustBundle", "apiVersion": "certificates.k8s.io/v1beta1",
            "metadata": {"name": name, "resourceVersion": "2"}, "spec": {"trustBundle": anchors}});
        state.watchers.retain(|watcher| watcher.send(line("ADDED", &bundle)).is_ok());
        state.bundles.push(bundle);
    }
}

fn boxed<B>(body: B) -> Answer
where
    B: HttpBody<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    body.map_err(Into::into).boxed_unsync()
}

fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

fn spec(optional: bool) -> Value {
    let source = json!({"clusterTrustBundle": {"name": "roots", "path": "ca.pem", "optional": optional}});
    json!({"volumes": [{"name": "v", "projected": {"sources": [source]}}],
        "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]})
}

fn certificate(body: &str) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trust_bundle_is_projected_and_followed() {
    let collection = Collection::default();
    let mut node = Node::prepare(Script::new()).await;
    node.beta = Some(collection.clone());
    let node = node.started().await;
    let pod = node.create("p", spec(false)).await;
    let event = node.wait_for_event("p", "FailedMount").await;
    let told = "MountVolume.SetUp failed for volume \"v\" : clustertrustbundle.certificates.k8s.io \"roots\" not found";
    assert_eq!(event.message.as_deref(), Some(told));
    collection.put("roots", &certificate("AAAA"));
    node.wait_for_phase("p", "Running").await;
    let file = node.pod_dir(&pod).join("volumes/kubernetes.io~projected/v/ca.pem");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), certificate("AAAA"));
    collection.put("roots", &(certificate("BBBB") + &certificate("AAAA")));
    let both = certificate("AAAA") + &certificate("BBBB");
    until("the new certificate shows", async || std::fs::read_to_string(&file).unwrap() == both).await;
    assert_eq!(node.script.count("create_container"), 1, "the container runs on");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_beta_api_a_trust_bundle_is_refused_in_a_sentence_unless_it_is_optional() {
    let node = Node::start().await;
    node.create("must", spec(false)).await;
    let pod = node.create("may", spec(true)).await;
    let event = node.wait_for_event("must", "FailedMount").await;
    let told = event.message.unwrap();
    assert!(
        told.contains(
            "the API server does not serve ClusterTrustBundles (certificates.k8s.io/v1beta1) to this node"
        ),
        "{told}"
    );
    node.wait_for_phase("may", "Running").await;
    let file = node.pod_dir(&pod).join("volumes/kubernetes.io~projected/v/ca.pem");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "");
    node.stop().await;
}
