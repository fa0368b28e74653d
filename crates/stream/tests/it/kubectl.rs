//! The real `kubectl` against this crate's server.

use std::process::Stdio;
use std::time::Duration;

use stream::ExitStatus;
use stream::remotecommand::RemoteCommand;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::server::Server;

const PATIENCE: Duration = Duration::from_mins(1);

fn kubectl(server: &Server, environment: (&str, &str), arguments: &[&str]) -> Child {
    let at = format!("--server=http://{}", server.address);
    let mut command = Command::new("kubectl");
    // The cache knows servers by their address, which the next run may have again.
    let cache = concat!("--cache-dir=", env!("CARGO_TARGET_TMPDIR"), "/kubectl");
    command.args(["--kubeconfig=/dev/null", "--namespace=default", cache, &at]).args(arguments);
    command.env(environment.0, environment.1).kill_on_drop(true);
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    spawned.unwrap_or_else(|error| panic!("cannot run `kubectl`, which this test needs: {error}"))
}

/// Copies input to output until the half-close, says something on standard error, and fails with code 3.
async fn cat(mut command: RemoteCommand) {
    let (mut stdin, mut stdout) = (command.stdin.take().unwrap(), command.stdout.take().unwrap());
    tokio::io::copy(&mut stdin, &mut stdout).await.unwrap();
    command.stderr.take().unwrap().write_all(b"done\n").await.unwrap();
    command.exit.send(ExitStatus::Code(3)).await;
}

async fn exec(environment: (&str, &str)) {
    let server = Server::start(cat).await;
    let mut child = kubectl(&server, environment, &["exec", "-i", "shell", "--", "cat"]);
    let sent: Vec<u8> =
        (0..3_000_000_u32).map(|number| number.to_le_bytes()[0] ^ number.to_le_bytes()[1]).collect();
    let (mut stdin, bytes) = (child.stdin.take().unwrap(), sent.clone());
    let writer = tokio::spawn(async move {
        // When it fails, what kubectl says tells more.
        let _ = stdin.write_all(&bytes).await;
        let _ = stdin.shutdown().await;
    });
    let output = timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    writer.await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.stdout == sent, "{} bytes came back: {stderr}", output.stdout.len());
    assert!(stderr.starts_with("done\n") && stderr.contains("exit code 3"), "{stderr}");
    assert_eq!(output.status.code(), Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_over_websocket_carries_both_ways_and_the_exit_code() {
    exec(("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "true")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_over_spdy_carries_both_ways_and_the_exit_code() {
    exec(("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn port_forward_carries_many_connections_and_tells_errors() {
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = target.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = target.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = connection.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let server = Server::start(async |_| unreachable!()).await;
    let mut child = kubectl(
        &server,
        ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "true"),
        &["port-forward", "shell", &format!(":{port}"), &format!(":{closed}")],
    );
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
    let (mut open_at, mut closed_at) = (None, None);
    while open_at.is_none() || closed_at.is_none() {
        // Forwarding from 127.0.0.1:40123 -> 8080
        let line = timeout(PATIENCE, lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap_or_else(|| panic!("kubectl ended"));
        if let Some((local, remote)) =
            line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split_once(" -> "))
        {
            let local: u16 = local.parse().unwrap();
            *(if remote == port.to_string() { &mut open_at } else { &mut closed_at }) = Some(local);
        }
    }
    for round in 0..5_u8 {
        let mut connection = TcpStream::connect(("127.0.0.1", open_at.unwrap())).await.unwrap();
        let sent = vec![round; 1 << 20];
        let (mut read, mut write) = connection.split();
        let mut received = Vec::new();
        let up = async {
            write.write_all(&sent).await?;
            write.shutdown().await
        };
        timeout(PATIENCE, async { tokio::try_join!(up, read.read_to_end(&mut received)) })
            .await
            .unwrap()
            .unwrap();
        assert!(received == sent, "{} bytes", received.len());
    }
    let mut refused = TcpStream::connect(("127.0.0.1", closed_at.unwrap())).await.unwrap();
    let _ = timeout(PATIENCE, refused.read(&mut [0; 1])).await.unwrap();
    let error = timeout(PATIENCE, errors.next_line()).await.unwrap().unwrap().unwrap();
    assert!(error.contains(&format!("cannot connect to port {closed}: Connection refused")), "{error}");
    child.kill().await.unwrap();
}
