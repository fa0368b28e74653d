//! Exec, attach and port-forward through the streaming server.

use std::time::Duration;

use cri::v1::*;
use stream::remotecommand::{TerminalSize, client};
use stream::{ExitStatus, Sessions, portforward};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

use crate::machine::{Machine, PATIENCE, container, fenced_options, node_options, on_a_machine};

async fn dial(url: &str) -> (TcpStream, http::Request<()>) {
    let uri: http::Uri = url.parse().unwrap();
    let authority = uri.authority().unwrap().to_string();
    assert!(authority.starts_with("127.0.0.1:"), "the streaming server is on the loopback interface: {url}");
    let connection = TcpStream::connect(&authority).await.unwrap();
    let request = http::Request::builder()
        .uri(format!("ws://{authority}{}", uri.path()))
        .header("host", authority)
        .body(())
        .unwrap();
    (connection, request)
}

pub(crate) async fn connect(url: &str, sessions: &Sessions) -> client::Client {
    let (connection, request) = dial(url).await;
    client::connect(connection, request, "v5.channel.k8s.io", sessions).await.unwrap()
}

pub(crate) async fn read_until(input: &mut stream::Input, text: &str) -> String {
    let mut seen = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&seen).contains(text) {
            let mut buffer = [0; 1024];
            let length = input.read(&mut buffer).await.unwrap();
            assert!(length > 0, "the stream ended: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&buffer[..length]);
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("waited in vain");
    String::from_utf8_lossy(&seen).into_owned()
}

async fn sleeper(machine: &mut Machine) -> String {
    let sandbox = machine.run_sandbox(machine.fenced_config("pod", 1)).await;
    machine.run_container(&sandbox, container("c", fenced_options(1), &["sleep", "1000"])).await
}

#[test]
fn exec_carries_input_output_errors_and_the_exit_code() {
    on_a_machine("streams::exec_carries_input_output_errors_and_the_exit_code", |mut machine| async move {
        let id = sleeper(&mut machine).await;
        let sessions = Sessions::default();
        let request = ExecRequest {
            container_id: id,
            cmd: ["sh", "-c", "cat; echo err >&2; exit 5"].map(str::to_owned).into(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        let url = machine.runtime.exec(request).await.unwrap().into_inner().url;
        let mut client = connect(&url, &sessions).await;
        client.stdin.write_all(b"through").await.unwrap();
        client.stdin.shutdown().await.unwrap();
        let (mut out, mut err) = (String::new(), String::new());
        client.stdout.read_to_string(&mut out).await.unwrap();
        client.stderr.read_to_string(&mut err).await.unwrap();
        assert_eq!((out.as_str(), err.as_str()), ("through", "err\n"));
        assert_eq!(client.wait().await, ExitStatus::Code(5));
        let (again, request) = dial(&url).await;
        assert!(
            client::connect(again, request, "v5.channel.k8s.io", &sessions).await.is_err(),
            "good once only"
        );
        sessions.close().await;
        machine.down();
    });
}

#[test]
fn g03_exec_with_a_terminal_has_the_clients_size() {
    on_a_machine("streams::g03_exec_with_a_terminal_has_the_clients_size", |mut machine| async move {
        let id = sleeper(&mut machine).await;
        let sessions = Sessions::default();
        let cmd = ["sh"].map(str::to_owned).into();
        let request =
            ExecRequest { container_id: id, cmd, stdin: true, stdout: true, stderr: false, tty: true };
        let url = machine.runtime.exec(request).await.unwrap().into_inner().url;
        let mut client = connect(&url, &sessions).await;
        client.resize(TerminalSize { width: 91, height: 37 }).await.unwrap();
        client
            .stdin
            .write_all(b"tty; stat -c own%u-%g $(tty); echo x > /dev/stdout; echo re-$TERM-ady\n")
            .await
            .unwrap();
        let text = read_until(&mut client.stdout, "re-xterm-ady").await;
        assert!(text.contains("/dev/pts/0") && text.contains("own0-5"), "{text}");
        client.stdin.write_all(b"exit 9\n").await.unwrap();
        let mut rest = String::new();
        client.stdout.read_to_string(&mut rest).await.unwrap();
        assert_eq!(client.wait().await, ExitStatus::Code(9));
        sessions.close().await;
        machine.down();
    });
}

#[test]
fn attach_reaches_the_containers_own_process() {
    on_a_machine("streams::attach_reaches_the_containers_own_process", |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.fenced_config("pod", 1)).await;
        let mut config =
            container("c", fenced_options(1), &["sh", "-c", "read a; echo got-$a; read b; exit 4"]);
        config.stdin = true;
        let id = machine.run_container(&sandbox, config).await;
        let sessions = Sessions::default();
        let request =
            AttachRequest { container_id: id.clone(), stdin: true, stdout: true, stderr: true, tty: false };
        let url = machine.runtime.attach(request).await.unwrap().into_inner().url;
        let mut client = connect(&url, &sessions).await;
        client.stdin.write_all(b"word\n").await.unwrap();
        read_until(&mut client.stdout, "got-word").await;
        client.stdin.write_all(b"\n").await.unwrap();
        assert_eq!(machine.wait_exited(&id).await.exit_code, 4);
        assert!(machine.log(&id).await.contains("got-word"));
        drop(client);
        sessions.close().await;
        machine.down();
    });
}

#[test]
fn port_forward_reaches_a_port_of_the_pods_loopback() {
    on_a_machine("streams::port_forward_reaches_a_port_of_the_pods_loopback", |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.fenced_config("pod", 1)).await;
        let listen = ["sh", "-c", "echo up; while :; do echo served | nc -l -p 8080; done"];
        machine.run_container(&sandbox, container("c", fenced_options(1), &listen)).await;
        let sessions = Sessions::default();
        let request = PortForwardRequest { pod_sandbox_id: sandbox, port: vec![8080] };
        let url = machine.runtime.port_forward(request).await.unwrap().into_inner().url;
        let (connection, request) = dial(&url).await;
        let mut client = portforward::client::connect(connection, request, &sessions).await.unwrap();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            // The server in the Pod may not listen yet.
            let mut forwarded = client.forward(8080).await.unwrap();
            let mut text = String::new();
            forwarded.input.read_to_string(&mut text).await.unwrap();
            forwarded.output.shutdown().await.unwrap();
            if text == "served\n" {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "the port gives {text:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut refused = client.forward(9).await.unwrap();
        assert!(refused.error().await.unwrap().contains("port 9"));
        client.close().await;
        sessions.close().await;
        machine.down();
    });
}

#[test]
fn exec_sync_ends_a_command_that_takes_too_long() {
    on_a_machine("streams::exec_sync_ends_a_command_that_takes_too_long", |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.sandbox_config("pod")).await;
        let id = machine.run_container(&sandbox, container("c", node_options(), &["sleep", "1000"])).await;
        let cmd = ["sleep", "777"].map(str::to_owned).into();
        let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 1 };
        let error = machine.runtime.exec_sync(request).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        let gone = machine.exec(&id, &["sh", "-c", "ps | grep -c '[s]leep 777' || true"]).await;
        assert_eq!(gone, "0\n");
        let missing = machine.try_exec(&id, &["no-such-program"]).await.unwrap_err();
        assert!(missing.message().contains("no-such-program"), "{missing}");
        machine.down();
    });
}
