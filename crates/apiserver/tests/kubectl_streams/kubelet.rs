//! A kubelet that is played by the test: it answers with what it was asked.

use std::convert::Infallible;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use stream::remotecommand::{self, Streams};
use stream::{ExitStatus, Sessions, portforward};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::common::Cluster;

/// A kubelet that answers with what it was asked.
#[derive(Debug, Clone)]
struct Kubelet {
    sessions: Sessions,
    asked: Arc<Mutex<Vec<String>>>,
    user: String,
}

impl Kubelet {
    fn answer(self, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
        let uri = request.uri().path_and_query().unwrap().to_string();
        self.asked.lock().unwrap().push(format!("{} {uri}", self.user));
        let query = request.uri().query().unwrap_or_default().to_owned();
        match uri.split('/').nth(1).unwrap() {
            "containerLogs" if uri.contains("/waiting/") => {
                let text = "container \"shell\" in pod \"waiting\" is waiting to start: ContainerCreating";
                Response::builder().status(StatusCode::BAD_REQUEST).body(text.into()).unwrap()
            }
            "containerLogs" => Response::new(Full::from(format!("one\ntwo\n{query}\n"))),
            "exec" | "attach" => {
                let has = |name: &str| query.split('&').any(|pair| pair == format!("{name}=1"));
                let streams = Streams {
                    stdin: has("input"),
                    stdout: has("output"),
                    stderr: has("error"),
                    tty: has("tty"),
                };
                match remotecommand::accept(&mut request, streams, &self.sessions) {
                    Ok((response, pending)) => {
                        tokio::spawn(echo(pending, query));
                        response
                    }
                    Err(refusal) => refusal.into_response(),
                }
            }
            "portForward" => match portforward::accept(&mut request, &self.sessions) {
                Ok((response, pending)) => {
                    tokio::spawn(async move {
                        let mut forwards = pending.establish().await.unwrap();
                        while let Some(forward) = forwards.next().await {
                            let port = forward.port;
                            let (mut ours, theirs) = tokio::io::duplex(1024);
                            tokio::spawn(forward.relay(theirs));
                            tokio::spawn(async move {
                                let mut line = [0; 5];
                                ours.read_exact(&mut line).await.unwrap();
                                let answer = format!("{} to {port}\n", String::from_utf8_lossy(&line));
                                ours.write_all(answer.as_bytes()).await.unwrap();
                            });
                        }
                    });
                    response
                }
                Err(refusal) => refusal.into_response(),
            },
            _ => Response::builder().status(StatusCode::NOT_FOUND).body(Full::default()).unwrap(),
        }
    }
}

/// Runs `tar` and `test`, which `kubectl cp` asks for, and `true`; of other commands it says what was asked, copies
/// standard input to standard output, and ends with 3.
async fn echo(pending: remotecommand::Pending, query: String) {
    let mut session = pending.establish().await.unwrap();
    let mut out = session.stdout.take().unwrap();
    let words: Vec<String> = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("command="))
        .map(|word| word.replace("%2F", "/"))
        .collect();
    if let Some(program) = words.first().filter(|word| matches!(word.as_str(), "tar" | "test" | "true")) {
        let mut input = Vec::new();
        if let Some(mut stdin) = session.stdin.take() {
            stdin.read_to_end(&mut input).await.unwrap();
        }
        let (program, arguments) = (program.clone(), words[1..].to_vec());
        let ran = tokio::task::spawn_blocking(move || run(&program, &arguments, &input)).await.unwrap();
        out.write_all(&ran.stdout).await.unwrap();
        out.shutdown().await.unwrap();
        session.exit.send(ExitStatus::of_code(ran.status.code().unwrap())).await;
        return;
    }
    out.write_all(format!("{query}\n").as_bytes()).await.unwrap();
    if let Some(mut input) = session.stdin.take() {
        tokio::io::copy(&mut input, &mut out).await.unwrap();
    }
    out.shutdown().await.unwrap();
    session.exit.send(ExitStatus::of_code(3)).await;
}

/// Runs a program of the machine as if it were the container's.
fn run(program: &str, arguments: &[String], input: &[u8]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, kubelet: Kubelet) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, mut kubelet) = (acceptor.clone(), kubelet.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
            let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).unwrap();
            kubelet.user =
                certificate.subject().iter_common_name().next().unwrap().as_str().unwrap().to_owned();
            let service = service_fn(move |request| {
                let kubelet = kubelet.clone();
                async move { Ok::<_, Infallible>(kubelet.answer(request)) }
            });
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            connection.with_upgrades().await.ok();
        });
    }
}

/// Starts the kubelet of a node, which it makes with two Pods on it.
pub(crate) fn start(cluster: &Cluster) -> Arc<Mutex<Vec<String>>> {
    let server = cluster.server.as_ref().unwrap();
    let addresses = ["127.0.0.1".parse().unwrap()];
    let pair = server.issue_serving_certificate("system:node:one", &["one".to_owned()], &addresses).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(server.ca_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .unwrap();
    let chain = vec![CertificateDer::from_pem_slice(pair.certificate_pem.as_bytes()).unwrap()];
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap())
        .unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let kubelet = Kubelet {
        sessions: Sessions::new(CancellationToken::new()),
        asked: asked.clone(),
        user: String::new(),
    };
    let listener = cluster.runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    cluster.runtime.spawn(serve(listener, TlsAcceptor::from(Arc::new(config)), kubelet));

    cluster.ok_with(
        &["apply", "-f", "-"],
        "{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"one\"}}",
    );
    let status = format!(
        r#"{{"status":{{"addresses":[{{"type":"InternalIP","address":"127.0.0.1"}}],"daemonEndpoints":{{"kubeletEndpoint":{{"Port":{port}}}}},
        "capacity":{{"cpu":"2","memory":"4Gi","pods":"110"}},"allocatable":{{"cpu":"2","memory":"3Gi","pods":"110"}}}}}}"#
    );
    cluster.ok(&["patch", "node", "one", "--subresource=status", "--type=merge", "-p", &status]);
    for (name, containers) in [("shell", vec!["shell"]), ("waiting", vec!["shell"]), ("two", vec!["a", "b"])]
    {
        let containers: Vec<_> =
            containers.iter().map(|name| serde_json::json!({"name": name, "image": "debian"})).collect();
        let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"nodeName": "one", "containers": containers}});
        cluster.ok_with(&["apply", "-f", "-"], &pod.to_string());
        let running = r#"{"status":{"phase":"Running"}}"#;
        cluster.ok(&["patch", "pod", name, "--subresource=status", "--type=merge", "-p", running]);
    }
    asked
}
