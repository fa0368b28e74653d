//! One attempt of a probe, or one run of a lifecycle hook: a command in the container, an HTTP request, a connection.

use std::time::Duration;

use bytes::Bytes;
use cri::v1;
use http::Request;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::tls::client_config;
use crate::runtime::Cri;

/// Bytes of an answer or of a command's output that messages show.
const SHOWN: usize = 10 * 1024;

/// What an attempt found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    Failure(String),
}

impl Outcome {
    pub(crate) fn is_success(&self) -> bool {
        *self == Self::Success
    }
}

/// What an attempt is made with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt<'a> {
    pub(crate) cri: &'a Cri,
    pub(crate) container: &'a Container,
    pub(crate) container_id: &'a str,
    pub(crate) pod_ip: &'a str,
    pub(crate) timeout: Duration,
}

impl Attempt<'_> {
    /// Makes the probe's one attempt within its timeout.
    pub(crate) async fn probe(self, probe: &Probe) -> Outcome {
        let work = async {
            if let Some(exec) = &probe.exec {
                self.exec(exec.command.as_deref().unwrap_or_default()).await
            } else if let Some(get) = &probe.http_get {
                self.http(get).await
            } else if let Some(tcp) = &probe.tcp_socket {
                self.tcp(tcp.host.as_deref(), &tcp.port).await
            } else if let Some(grpc) = &probe.grpc {
                let address = shown_address(self.pod_ip, grpc.port);
                super::grpc::check(&address, grpc.service.as_deref().unwrap_or_default()).await
            } else {
                Err("the probe has no handler".to_owned())
            }
        };
        // The runtime ends a command at the timeout itself; it gets a little longer to say so.
        match tokio::time::timeout(self.timeout + Duration::from_millis(500), work).await {
            Ok(Ok(())) => Outcome::Success,
            Ok(Err(text)) => Outcome::Failure(text),
            Err(_) => Outcome::Failure(format!("no answer within {} s", self.timeout.as_secs())),
        }
    }

    async fn exec(self, command: &[String]) -> Result<(), String> {
        let request = v1::ExecSyncRequest {
            container_id: self.container_id.to_owned(),
            cmd: command.to_vec(),
            timeout: i64::try_from(self.timeout.as_secs()).unwrap_or(i64::MAX),
        };
        let answer = self.cri.exec_sync(request).await.map_err(|error| error.message)?;
        if answer.exit_code == 0 {
            return Ok(());
        }
        let output: Vec<u8> = answer.stdout.into_iter().chain(answer.stderr).take(SHOWN).collect();
        Err(String::from_utf8_lossy(&output).into_owned())
    }

    async fn tcp(self, host: Option<&str>, port: &IntOrString) -> Result<(), String> {
        self.connect(host, port).await.map(drop)
    }

    async fn connect(self, host: Option<&str>, port: &IntOrString) -> Result<TcpStream, String> {
        let host = host.filter(|host| !host.is_empty()).unwrap_or(self.pod_ip);
        let port = port_number(self.container, port)?;
        let shown = shown_address(host, port);
        TcpStream::connect((host, port)).await.map_err(|error| format!("dial tcp {shown}: connect: {error}"))
    }

    async fn http(self, get: &HTTPGetAction) -> Result<(), String> {
        let connection = self.connect(get.host.as_deref(), &get.port).await?;
        let host = get.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(self.pod_ip);
        let status = if get.scheme.as_deref() == Some("HTTPS") {
            let config = client_config().map_err(|error| error.to_string())?;
            let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
            let connector = tokio_rustls::TlsConnector::from(config);
            let tls = connector.connect(name, connection).await.map_err(|error| error.to_string())?;
            self.ask(tls, get, host).await?
        } else {
            self.ask(connection, get, host).await?
        };
        if (200..400).contains(&status) {
            return Ok(());
        }
        Err(format!("HTTP probe failed with statuscode: {status}"))
    }

    async fn ask<S>(self, connection: S, get: &HTTPGetAction, host: &str) -> Result<u16, String>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let text = |error: hyper::Error| format!("Get {:?}: {error}", get.path.as_deref().unwrap_or("/"));
        let (mut sender, driver) =
            hyper::client::conn::http1::handshake(TokioIo::new(connection)).await.map_err(text)?;
        let request = request(self.container, get, host)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(text)?;
            let status = response.status().as_u16();
            // A body that is cut off or too long does not matter.
            let _ = Limited::new(response.into_body(), SHOWN).collect().await;
            Ok(status)
        };
        let (mut exchange, mut driver) = (std::pin::pin!(exchange), std::pin::pin!(driver));
        // A server may close as soon as it has answered: the answer counts all the same.
        tokio::select! {
            biased;
            status = &mut exchange => status,
            _ = &mut driver => exchange.await,
        }
    }
}

/// `host:port`, with an IPv6 address in brackets.
fn shown_address(host: &str, port: impl std::fmt::Display) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn request(container: &Container, get: &HTTPGetAction, host: &str) -> Result<Request<Empty<Bytes>>, String> {
    let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let port = port_number(container, &get.port)?;
    let mut builder = Request::get(path);
    let headers = get.http_headers.iter().flatten();
    let own: Vec<_> = headers.map(|header| (header.name.as_str(), header.value.as_str())).collect();
    let has = |name: &str| own.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
    if !has("host") {
        builder = builder.header("Host", shown_address(host, port));
    }
    if !has("user-agent") {
        builder = builder.header("User-Agent", "kube-probe/1.36");
    }
    if !has("accept") {
        builder = builder.header("Accept", "*/*");
    }
    for (name, value) in own {
        builder = builder.header(name, value);
    }
    builder.body(Empty::new()).map_err(|error| error.to_string())
}

/// A port by number, or by the name of one of the container's.
fn port_number(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let found = match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_deref() == Some(name));
            let named = named.and_then(|port| u16::try_from(port.container_port).ok());
            named.or_else(|| name.parse().ok())
        }
    };
    found.filter(|port| *port > 0).ok_or_else(|| format!("the port {port:?} is none of the container's"))
}

/// Runs a lifecycle hook once; the error is what went wrong.
pub(crate) async fn attempt_hook(attempt: Attempt<'_>, hook: &LifecycleHandler) -> Result<(), String> {
    let work = async {
        if let Some(exec) = &hook.exec {
            attempt.exec(exec.command.as_deref().unwrap_or_default()).await
        } else if let Some(get) = &hook.http_get {
            attempt.http(get).await
        } else if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or_default())).await;
            Ok(())
        } else {
            Ok(())
        }
    };
    match tokio::time::timeout(attempt.timeout, work).await {
        Ok(result) => result,
        Err(_) => Err(format!("it took longer than {} s", attempt.timeout.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A server that answers each connection with one status line.
    async fn server(answer: &'static str) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = connection.read(&mut request).await;
                let _ = connection.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    async fn outcome(probe: serde_json::Value) -> Outcome {
        let nobody = cri::connect_unix_lazily("/nonexistent/cri.sock".as_ref());
        let container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 1}]}));
        let container: Container = container.unwrap();
        let attempt = Attempt {
            cri: &Cri::new(nobody.into()),
            container: &container,
            container_id: "id",
            pod_ip: "127.0.0.1",
            timeout: Duration::from_secs(5),
        };
        attempt.probe(&serde_json::from_value(probe).unwrap()).await
    }

    #[tokio::test]
    async fn http_answers_below_400_are_good() {
        let good = server("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(outcome(json!({"httpGet": {"path": "x", "port": good}})).await, Outcome::Success);
        let bad = server("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(
            outcome(json!({"httpGet": {"port": bad}})).await,
            Outcome::Failure("HTTP probe failed with statuscode: 503".into())
        );
        assert_eq!(outcome(json!({"tcpSocket": {"port": bad}})).await, Outcome::Success);
    }

    #[tokio::test]
    async fn what_does_not_answer_fails_with_its_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let Outcome::Failure(text) = outcome(json!({"tcpSocket": {"port": port}})).await else { panic!() };
        assert!(text.starts_with(&format!("dial tcp 127.0.0.1:{port}: connect: ")), "{text}");
        let Outcome::Failure(text) = outcome(json!({"tcpSocket": {"port": "none"}})).await else { panic!() };
        assert!(text.contains("none of the container's"), "{text}");
    }
}
