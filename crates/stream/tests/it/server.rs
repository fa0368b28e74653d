//! A server like the runtime's: `/exec` runs a pretended command, `/forward` connects to a local port.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use stream::remotecommand::{RemoteCommand, Streams};
use stream::{Sessions, portforward, remotecommand};
use tokio::net::{TcpListener, TcpStream};

/// What a command does with its streams.
pub type Command = Arc<dyn Fn(RemoteCommand) -> futures::future::BoxFuture<'static, ()> + Send + Sync>;

/// A listening server; its tasks end with the test's runtime.
pub struct Server {
    pub address: SocketAddr,
    pub sessions: Sessions,
}

impl Server {
    pub async fn start<F>(command: impl Fn(RemoteCommand) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let command: Command = Arc::new(move |session| Box::pin(command(session)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, sessions) = (listener.local_addr().unwrap(), Sessions::default());
        let owner = sessions.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (command, sessions) = (Arc::clone(&command), owner.clone());
                let service = service_fn(move |request| {
                    let answer = answer(request, Arc::clone(&command), &sessions);
                    async move { Ok::<_, std::convert::Infallible>(answer) }
                });
                let http = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(connection), service);
                tokio::spawn(http.with_upgrades());
            }
        });
        Self { address, sessions }
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub fn request(&self, path: &str) -> Request<()> {
        Request::builder()
            .uri(format!("ws://{}{path}", self.address))
            .header("host", self.address.to_string())
            .body(())
            .unwrap()
    }
}

fn answer(mut request: Request<Incoming>, command: Command, sessions: &Sessions) -> Response<Full<Bytes>> {
    let tty = request.uri().query().is_some_and(|query| query.contains("tty=1"));
    let response = match path_in_pod(request.uri().path()) {
        "/exec" => {
            let streams = Streams { stdin: true, stdout: true, stderr: true, tty };
            remotecommand::accept(&mut request, streams, sessions).map(|(response, pending)| {
                tokio::spawn(async move {
                    if let Ok(session) = pending.establish().await {
                        command(session).await;
                    }
                });
                response
            })
        }
        "/forward" => portforward::accept(&mut request, sessions).map(|(response, pending)| {
            tokio::spawn(async move {
                let mut forwards = pending.establish().await.unwrap();
                while let Some(forward) = forwards.next().await {
                    tokio::spawn(async move {
                        match TcpStream::connect(("127.0.0.1", forward.port)).await {
                            Ok(target) => forward.relay(target).await,
                            Err(error) => {
                                let message = format!("cannot connect to port {}: {error}", forward.port);
                                forward.fail(&message).await;
                            }
                        }
                    });
                }
            });
            response
        }),
        path => Ok(object(path).map_or_else(|| not_found(&request), |object| json_response(&object))),
    };
    response.unwrap_or_else(stream::Refusal::into_response)
}

/// The paths of a real API server lead to the same places.
fn path_in_pod(path: &str) -> &str {
    match path.strip_prefix("/api/v1/namespaces/default/pods/shell") {
        Some("") => "/pod",
        Some("/portforward") => "/forward",
        Some(rest) => rest,
        None => path,
    }
}

/// As much of the API as `kubectl exec` and `kubectl port-forward` look at.
fn object(path: &str) -> Option<serde_json::Value> {
    Some(match path {
        "/api" => json!({ "kind": "APIVersions", "versions": ["v1"] }),
        "/apis" => json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] }),
        "/api/v1" => json!({ "kind": "APIResourceList", "groupVersion": "v1", "resources": [
            { "name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get"] },
        ] }),
        "/pod" => json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "shell", "namespace": "default" },
            "spec": { "containers": [{ "name": "shell", "ports": [] }] }, "status": { "phase": "Running" },
        }),
        _ => return None,
    })
}

fn json_response(object: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(object.to_string()));
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    response
}

fn not_found(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let host = request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
    let authorization = request.headers().contains_key("authorization");
    let text = format!("no {} at {host}, authorization: {authorization}", request.uri());
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response.headers_mut().insert("x-kind", "pod".parse().unwrap());
    response
}
