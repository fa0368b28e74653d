//! exec, attach and port-forward: the runtime names a URL of its streaming server, and the connection is joined to it
//! byte for byte.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::stream::proxy::{Destination, forward};
use cri::v1;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, StatusCode, Uri};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use tokio::net::TcpStream;

use super::query::Query;
use super::{Answer, Failure, Server};
use crate::pod::label;

impl Server {
    pub(super) async fn exec(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        request: Request<Incoming>,
    ) -> Answer {
        let container_id = self.running_container(namespace, pod, container).await?;
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let streams = Streams::of(&query)?;
        let cmd = query.all("command");
        if cmd.is_empty() {
            return Err(Failure::bad("you must specify at least one command to be executed"));
        }
        let Streams { stdin, stdout, stderr, tty } = streams;
        let answer =
            self.shared.cri.exec(v1::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr }).await?;
        self.join(request, &answer.url).await
    }

    pub(super) async fn attach(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        request: Request<Incoming>,
    ) -> Answer {
        let container_id = self.running_container(namespace, pod, container).await?;
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let Streams { stdin, stdout, stderr, tty } = Streams::of(&query)?;
        let answer =
            self.shared.cri.attach(v1::AttachRequest { container_id, stdin, tty, stdout, stderr }).await?;
        self.join(request, &answer.url).await
    }

    pub(super) async fn port_forward(
        &self,
        namespace: &str,
        pod: &str,
        request: Request<Incoming>,
    ) -> Answer {
        let found = self.pod(namespace, pod)?;
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let ports = query
            .all("port")
            .iter()
            .flat_map(|list| list.split(','))
            .filter_map(|port| port.parse().ok())
            .collect();
        let filter = v1::PodSandboxFilter {
            state: Some(v1::PodSandboxStateValue { state: v1::PodSandboxState::SandboxReady.into() }),
            label_selector: by_uid(&found),
            ..Default::default()
        };
        let listed =
            self.shared.cri.list_pod_sandbox(v1::ListPodSandboxRequest { filter: Some(filter) }).await?;
        let sandbox = listed.items.into_iter().max_by_key(|sandbox| sandbox.created_at);
        let sandbox =
            sandbox.ok_or_else(|| Failure::not_found(format!("pod {pod} has no running sandbox")))?;
        let ask = v1::PortForwardRequest { pod_sandbox_id: sandbox.id, port: ports };
        let answer = self.shared.cri.port_forward(ask).await?;
        self.join(request, &answer.url).await
    }

    /// The Pod of this name on this node.
    pub(super) fn pod(&self, namespace: &str, name: &str) -> Result<Arc<Pod>, Failure> {
        let found = self.shared.registry.find(namespace, name);
        found.ok_or_else(|| Failure::not_found(format!("pod {name:?} not found in namespace {namespace:?}")))
    }

    async fn running_container(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<String, Failure> {
        let found = self.pod(namespace, pod)?;
        let mut labels = by_uid(&found);
        labels.insert(label::CONTAINER_NAME.to_owned(), container.to_owned());
        let filter = v1::ContainerFilter {
            state: Some(v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning.into() }),
            label_selector: labels,
            ..Default::default()
        };
        let listed =
            self.shared.cri.list_containers(v1::ListContainersRequest { filter: Some(filter) }).await?;
        let newest = listed.containers.into_iter().max_by_key(|container| container.created_at);
        newest
            .map(|container| container.id)
            .ok_or_else(|| Failure::not_found(format!("container not found ({container:?})")))
    }

    /// Passes the request on to the runtime's streaming server and joins the connections.
    async fn join(&self, request: Request<Incoming>, url: &str) -> Answer {
        let broken = |error: &dyn std::fmt::Display| {
            Failure::new(StatusCode::BAD_GATEWAY, format!("the runtime's streaming server at {url}: {error}"))
        };
        let uri: Uri = url.parse().map_err(|error| broken(&error))?;
        let authority = uri.authority().ok_or_else(|| broken(&"the URL names no server"))?;
        let port = authority.port_u16().unwrap_or(80);
        let path_and_query = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let host = HeaderValue::from_str(authority.as_str()).map_err(|error| broken(&error))?;
        let address = (authority.host().trim_matches(['[', ']']), port);
        let connection = TcpStream::connect(address).await.map_err(|error| broken(&error))?;
        let _ = connection.set_nodelay(true);
        let destination = Destination { path_and_query, host };
        forward(request, connection, &destination, &self.sessions).await.map_err(|error| broken(&error))
    }
}

pub(super) fn by_uid(pod: &Pod) -> BTreeMap<String, String> {
    BTreeMap::from([(label::POD_UID.to_owned(), pod.metadata.uid.clone().unwrap_or_default())])
}

/// The streams that a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "CRI's own fields")]
struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Streams {
    fn of(query: &Query) -> Result<Self, Failure> {
        let is = |old: &str, new: &str| query.is_set(old) || query.is_set(new);
        let tty = query.is_set("tty");
        // With a terminal, stderr is part of stdout.
        let stderr = is("error", "stderr") && !tty;
        let streams = Self { stdin: is("input", "stdin"), stdout: is("output", "stdout"), stderr, tty };
        if !(streams.stdin || streams.stdout || streams.stderr) {
            return Err(Failure::bad("you must specify at least 1 of stdin, stdout, stderr"));
        }
        Ok(streams)
    }
}
