//! Connections to kubelets, and requests that a kubelet answers: log, exec, attach and port-forward. The server finds the Pod's node, speaks to its
//! kubelet with its own client certificate and then passes bytes; it knows none of the protocols.

use std::sync::Arc;
use std::time::Duration;

use api::access::Access as _;
use api::kind;
use api::status::Status;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use rustls_pki_types::ServerName;
use serde_json::Value;
use stream::Sessions;
use stream::proxy::{self, Destination};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::body::RequestBody;
use crate::meta;
use crate::request::{Query, RequestInfo, encode};
use crate::response::{ResponseBody, text};
use crate::server::Server;

/// How long a kubelet may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How much of a kubelet's error is read, in bytes.
const ERROR_LIMIT: usize = 64 * 1024;
/// Where a kubelet listens whose Node doesn't say.
const DEFAULT_PORT: u16 = 10250;

/// Speaks to kubelets.
pub(crate) struct Kubelets {
    connector: TlsConnector,
    /// Takes any certificate and shows none.
    trusting: TlsConnector,
    sessions: Sessions,
}

impl std::fmt::Debug for Kubelets {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Kubelets").field("sessions", &self.sessions.count()).finish_non_exhaustive()
    }
}

impl Kubelets {
    pub(crate) fn new(config: Arc<rustls::ClientConfig>, sessions: Sessions) -> Self {
        let trusting = Arc::new(crate::tls::trusting_config());
        Self { connector: TlsConnector::from(config), trusting: TlsConnector::from(trusting), sessions }
    }

    /// Ends what is passed on and waits for it.
    pub(crate) async fn close(&self) {
        self.sessions.close().await;
    }

    /// Passes a request for a Pod's subresource on to its kubelet.
    pub(crate) async fn proxy(
        &self,
        server: &Server,
        info: &RequestInfo,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Status> {
        let pods = kind::find("", "v1", "pods").ok_or_else(Status::unknown_path)?;
        let key = meta::key(true, &info.namespace, &info.name);
        let pod = server.cache.get(pods, &key).ok_or_else(|| Status::not_found(pods, &info.name))?.value();
        let is_log = info.subresource == "log";
        let path = path(&pod, info)?;
        let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
        if node.is_empty() {
            return if is_log {
                Ok(text(StatusCode::OK, ""))
            } else {
                Err(Status::bad_request(format!("pod {} does not have a host assigned", info.name)))
            };
        }
        let (host, port) = address(server, node)?;
        let connection = self.connect(&host, port, Backend::Kubelet).await?;
        let destination = Destination {
            path_and_query: path
                .parse::<PathAndQuery>()
                .map_err(|error| Status::bad_request(error.to_string()))?,
            host: host_header(&host, port)?,
        };
        let answer = proxy::forward(request, connection, &destination, &self.sessions)
            .await
            .map_err(|error| Status::internal(format!("error dialing backend: {error}")))?;
        if is_log && answer.status().as_u16() >= 400 {
            return Err(refusal(answer).await);
        }
        Ok(answer.map(|body| body.map_err(Into::into).boxed_unsync()))
    }

    /// Connects to a kubelet, or to what a proxied request is for.
    pub(crate) async fn connect(
        &self,
        host: &str,
        port: u16,
        backend: Backend,
    ) -> Result<Box<dyn Connection>, Status> {
        let failed = |error: String| {
            Status::internal(format!("error dialing backend: dial tcp {host}:{port}: {error}"))
        };
        let connect = async {
            let stream = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
            stream.set_nodelay(true).map_err(|error| error.to_string())?;
            let connector = match backend {
                Backend::Plain => return Ok(Box::new(stream) as Box<dyn Connection>),
                Backend::Kubelet => &self.connector,
                Backend::AnyTls => &self.trusting,
            };
            let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
            let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        };
        match tokio::time::timeout(CONNECT, connect).await {
            Ok(connected) => connected.map_err(|error: String| failed(format!("connect: {error}"))),
            Err(_) => Err(failed("i/o timeout".to_owned())),
        }
    }
}

/// How the other side is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// A kubelet: its certificate is of our CA, and it gets ours.
    Kubelet,
    /// Plain HTTP.
    Plain,
    /// HTTPS with whatever certificate, as upstream's proxy does: it is reached by its address, and gets none of ours.
    AnyTls,
}

/// A connection, with TLS or without.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// `host:port` as the header says it.
pub(crate) fn host_header(host: &str, port: u16) -> Result<HeaderValue, Status> {
    let text = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    HeaderValue::from_str(&text).map_err(|error| Status::internal(error.to_string()))
}

/// Where the kubelet of a node listens.
pub(crate) fn address(server: &Server, node: &str) -> Result<(String, u16), Status> {
    let nodes = kind::find("", "v1", "nodes").ok_or_else(Status::unknown_path)?;
    let object = server.cache.get(nodes, node).ok_or_else(|| Status::not_found(nodes, node))?.value();
    let status = object.get("status").cloned().unwrap_or_default();
    let found = ["InternalIP", "Hostname", "ExternalIP"].iter().find_map(|wanted| {
        let mut addresses = status.list("addresses").iter();
        addresses
            .find(|address| address.text("type") == *wanted)
            .map(|address| address.text("address").to_owned())
    });
    let host = found.ok_or_else(|| {
        Status::internal(format!("no preferred addresses found; known addresses: [] (node {node} has not said where its kubelet listens)"))
    })?;
    let port = status.pointer("/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
    Ok((
        host,
        port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0).unwrap_or(DEFAULT_PORT),
    ))
}

/// The kubelet's path for a request.
fn path(pod: &Value, info: &RequestInfo) -> Result<String, Status> {
    let (namespace, name, query) = (encode(&info.namespace), encode(&info.name), &info.query);
    Ok(match info.subresource.as_str() {
        "portforward" => {
            let ports: Vec<_> = query.all("ports").map(|port| format!("port={}", encode(port))).collect();
            with_query(format!("/portForward/{namespace}/{name}"), &ports)
        }
        "log" => {
            let container = encode(&container(pod, info)?);
            with_query(format!("/containerLogs/{namespace}/{name}/{container}"), &log_query(query))
        }
        verb => {
            let container = encode(&container(pod, info)?);
            with_query(format!("/{verb}/{namespace}/{name}/{container}"), &command_query(query))
        }
    })
}

fn with_query(path: String, query: &[String]) -> String {
    if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
}

fn log_query(query: &Query) -> Vec<String> {
    let flags = ["follow", "previous", "timestamps"]
        .iter()
        .filter(|name| query.flag(name))
        .map(|name| format!("{name}=true"));
    let values = ["sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"]
        .iter()
        .filter(|name| !query.get(name).is_empty())
        .map(|name| format!("{name}={}", encode(query.get(name))));
    flags.chain(values).collect()
}

fn command_query(query: &Query) -> Vec<String> {
    let streams = [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];
    let streams =
        streams.iter().filter(|(ours, _)| query.flag(ours)).map(|(_, theirs)| format!("{theirs}=1"));
    streams.chain(query.all("command").map(|word| format!("command={}", encode(word)))).collect()
}

/// The container that a request means.
fn container(pod: &Value, info: &RequestInfo) -> Result<String, Status> {
    let names = |list: &str| -> Vec<String> {
        let containers = pod.get("spec").map(|spec| spec.list(list)).unwrap_or_default();
        containers.iter().map(|container| container.text("name").to_owned()).collect()
    };
    let (main, init, ephemeral) =
        (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let asked = info.query.get("container");
    if !asked.is_empty() {
        let is_known = [&main, &init, &ephemeral].iter().any(|list| list.iter().any(|name| name == asked));
        return if is_known {
            Ok(asked.to_owned())
        } else {
            Err(Status::bad_request(format!("container {asked} is not valid for pod {}", info.name)))
        };
    }
    if let [only] = main.as_slice() {
        return Ok(only.clone());
    }
    let mut why = format!("a container name must be specified for pod {}", info.name);
    if !main.is_empty() {
        why = format!("{why}, choose one of: [{}]", main.join(" "));
    }
    if !init.is_empty() {
        why = format!("{why} or one of the init containers: [{}]", init.join(" "));
    }
    if !ephemeral.is_empty() {
        why = format!("{why} or one of the ephemeral containers: [{}]", ephemeral.join(" "));
    }
    Err(Status::bad_request(why))
}

/// A kubelet's refusal to give a log, in the API's form.
async fn refusal(answer: Response<proxy::Body>) -> Status {
    let code = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), ERROR_LIMIT).collect().await;
    let text =
        body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()).unwrap_or_default();
    match code {
        400 => Status::bad_request(text),
        404 => Status::not_found_text(text),
        _ => Status::internal(text),
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;

    fn ask(pod: &Value, uri: &str) -> Result<String, String> {
        let info = RequestInfo::parse(&Method::GET, &uri.parse().unwrap());
        path(pod, &info).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn requests_become_the_kubelets_paths() {
        let pod = json!({"spec": {"containers": [{"name": "one"}]}});
        let base = "/api/v1/namespaces/a/pods/p";
        assert_eq!(
            ask(&pod, &format!("{base}/exec?command=ls&command=-l%20a&stdin=true&stdout=true&tty=false")),
            Ok("/exec/a/p/one?input=1&output=1&command=ls&command=-l%20a".to_owned())
        );
        assert_eq!(
            ask(
                &pod,
                &format!(
                    "{base}/log?follow=true&tailLines=3&container=one&insecureSkipTLSVerifyBackend=true"
                )
            ),
            Ok("/containerLogs/a/p/one?follow=true&tailLines=3".to_owned())
        );
        assert_eq!(ask(&pod, &format!("{base}/portforward")), Ok("/portForward/a/p".to_owned()));
    }

    #[test]
    fn an_unclear_container_is_refused_in_upstreams_words() {
        let pod = json!({"spec": {"containers": [{"name": "one"}, {"name": "two"}], "initContainers": [{"name": "init"}]}});
        let base = "/api/v1/namespaces/a/pods/p/log";
        assert_eq!(
            ask(&pod, base),
            Err("a container name must be specified for pod p, choose one of: [one two] or one of the init containers: [init]".to_owned())
        );
        assert_eq!(
            ask(&pod, &format!("{base}?container=x")),
            Err("container x is not valid for pod p".to_owned())
        );
        assert_eq!(ask(&pod, &format!("{base}?container=init")), Ok("/containerLogs/a/p/init".to_owned()));
    }
}
