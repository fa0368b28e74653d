//! Exec over WebSocket.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use stream::ExitStatus;
use stream::remotecommand::{RemoteCommand, TerminalSize, client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::server::Server;

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const PATIENCE: Duration = Duration::from_secs(20);

/// Copies standard input to both outputs and ends with code 7.
async fn tee(mut command: RemoteCommand) {
    let (mut stdin, mut stdout, mut stderr) =
        (command.stdin.take().unwrap(), command.stdout.take().unwrap(), command.stderr.take().unwrap());
    let mut buffer = vec![0; 8192];
    loop {
        let length = stdin.read(&mut buffer).await.unwrap();
        if length == 0 {
            break;
        }
        stdout.write_all(&buffer[..length]).await.unwrap();
        stderr.write_all(&buffer[..length]).await.unwrap();
    }
    command.exit.send(ExitStatus::of_code(7)).await;
}

async fn open(server: &Server, protocols: &'static str) -> client::Client {
    client::connect(server.connect().await, server.request("/exec"), protocols, &server.sessions)
        .await
        .unwrap()
}

#[tokio::test]
async fn streams_half_close_and_exit_code_go_round() {
    let server = Server::start(tee).await;
    let mut client = open(&server, V5).await;
    assert_eq!(client.protocol, V5);
    client.stdin.write_all(b"hello").await.unwrap();
    client.stdin.shutdown().await.unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    let (stdout, stderr) = (client.stdout.read_to_string(&mut out), client.stderr.read_to_string(&mut err));
    let (_, _) = timeout(PATIENCE, async { tokio::try_join!(stdout, stderr) }).await.unwrap().unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("hello", "hello"));
    assert_eq!(client.wait().await, ExitStatus::Code(7));
    server.sessions.close().await;
}

#[tokio::test]
async fn the_status_follows_all_output_even_when_outputs_stay_open() {
    let server = Server::start(|mut command: RemoteCommand| async move {
        let mut stdout = command.stdout.take().unwrap();
        stdout.write_all(&vec![b'x'; 300_000]).await.unwrap();
        command.exit.send(ExitStatus::Success).await;
        // A child that keeps the output open does not keep the session open.
        assert!(stdout.write_all(b"late").await.is_err());
    })
    .await;
    let mut client = open(&server, V4).await;
    let mut out = Vec::new();
    timeout(PATIENCE, client.stdout.read_to_end(&mut out)).await.unwrap().unwrap();
    assert_eq!(out.len(), 300_000);
    assert_eq!(client.wait().await, ExitStatus::Success);
}

#[tokio::test]
async fn a_session_that_the_server_drops_tells_so() {
    let server = Server::start(|command: RemoteCommand| async move { drop(command) }).await;
    let client = open(&server, V5).await;
    let status = timeout(PATIENCE, client.wait()).await.unwrap();
    assert_eq!(status, ExitStatus::Failed("the server ended the session without an exit status".to_owned()));
}

#[tokio::test]
async fn terminal_sizes_arrive() {
    let server = Server::start(|mut command: RemoteCommand| async move {
        assert!(command.stderr.is_none(), "a terminal has one output");
        let size = command.resize.next().await.unwrap();
        let mut stdout = command.stdout.take().unwrap();
        stdout.write_all(format!("{}x{}", size.width, size.height).as_bytes()).await.unwrap();
        command.exit.send(ExitStatus::Success).await;
    })
    .await;
    let request = server.request("/exec?tty=1");
    let mut client = client::connect(server.connect().await, request, V5, &server.sessions).await.unwrap();
    client.resize(TerminalSize { width: 120, height: 40 }).await.unwrap();
    let mut out = String::new();
    timeout(PATIENCE, client.stdout.read_to_string(&mut out)).await.unwrap().unwrap();
    assert_eq!(out, "120x40");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_input_and_breaks_output() {
    let (tell, told) = tokio::sync::oneshot::channel();
    let tell = std::sync::Mutex::new(Some(tell));
    let server = Server::start(move |mut command: RemoteCommand| {
        let tell = tell.lock().unwrap().take().unwrap();
        async move {
            let (mut stdin, mut stdout) = (command.stdin.take().unwrap(), command.stdout.take().unwrap());
            command.exit.gone().await;
            assert_eq!(stdin.read(&mut [0; 8]).await.unwrap(), 0);
            assert!(stdout.write_all(b"x").await.is_err());
            tell.send(()).unwrap();
        }
    })
    .await;
    let mut request = server.request("/exec");
    let headers = request.headers_mut();
    for (name, value) in [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", V4),
    ] {
        headers.insert(name, value.parse().unwrap());
    }
    let (socket, _) = tokio_tungstenite::client_async(request, server.connect().await).await.unwrap();
    drop(socket);
    timeout(PATIENCE, told).await.unwrap().unwrap();
}

#[tokio::test]
async fn pings_are_answered_while_a_command_runs() {
    let server = Server::start(|command: RemoteCommand| async move { command.exit.gone().await }).await;
    let mut request = server.request("/exec");
    for (name, value) in [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", V5),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let (mut socket, _) = tokio_tungstenite::client_async(request, server.connect().await).await.unwrap();
    socket.send(Message::Ping("are you there".into())).await.unwrap();
    let pong = async {
        loop {
            match socket.next().await.unwrap().unwrap() {
                Message::Pong(bytes) => return bytes,
                // The greeting: an empty message on standard output.
                Message::Binary(bytes) => assert_eq!(bytes[..], [1]),
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(timeout(PATIENCE, pong).await.unwrap(), "are you there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_data_goes_through_a_slow_reader_in_bounded_memory() {
    const TOTAL: usize = 64 << 20;
    let written = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = std::sync::Arc::clone(&written);
    let server = Server::start(move |mut command: RemoteCommand| {
        let written = std::sync::Arc::clone(&seen);
        async move {
            let mut stdout = command.stdout.take().unwrap();
            let block = vec![7; 1 << 20];
            for _ in 0..TOTAL >> 20 {
                stdout.write_all(&block).await.unwrap();
                written.fetch_add(block.len(), std::sync::atomic::Ordering::SeqCst);
            }
            command.exit.send(ExitStatus::Success).await;
        }
    })
    .await;
    let mut client = open(&server, V5).await;
    let mut read = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = timeout(PATIENCE, client.stdout.read(&mut buffer)).await.unwrap().unwrap();
        if length == 0 {
            break;
        }
        read += length;
        let ahead = written.load(std::sync::atomic::Ordering::SeqCst).saturating_sub(read);
        // The kernel's socket buffers hold some megabytes of it, the session less than one.
        assert!(ahead < 16 << 20, "{ahead} bytes are held somewhere");
    }
    assert_eq!(read, TOTAL);
    assert_eq!(client.wait().await, ExitStatus::Success);
}

#[tokio::test]
async fn shutdown_tells_clients_and_joins_all_tasks() {
    let server = Server::start(|command: RemoteCommand| async move { command.exit.gone().await }).await;
    let ours = stream::Sessions::default();
    let client = client::connect(server.connect().await, server.request("/exec"), V5, &ours).await.unwrap();
    timeout(PATIENCE, server.sessions.close()).await.unwrap();
    assert_eq!(server.sessions.count(), 0);
    let status = timeout(PATIENCE, client.wait()).await.unwrap();
    assert_eq!(status, ExitStatus::Failed("the node's software is stopping".to_owned()));
}
