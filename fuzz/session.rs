//! Feeds bytes to one end of a session as a client would, and waits until the session is over.
//! A session that does not end when its client is gone is a finding.

use std::time::Duration;

use stream::Sessions;
use stream::fuzz::{Protocol, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// Longer than anything but a hang takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes that the connection holds before the writer waits.
const CONNECTION: usize = 64 << 10;

/// Runs one session over `bytes`, and answers how many bytes of standard input came out of it.
///
/// # Panics
/// When the session goes on although its client has closed the connection.
pub fn run(protocol: Protocol, bytes: &[u8]) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime without I/O needs nothing from the system");
    let over = async {
        let sessions = Sessions::new(CancellationToken::new());
        let (client, server) = tokio::io::duplex(CONNECTION);
        let (mut from_server, mut to_server) = tokio::io::split(client);
        let talk = async move {
            // The server may have hung up already.
            let _ = to_server.write_all(bytes).await;
            let _ = to_server.shutdown().await;
        };
        let listen = async move {
            let _ = tokio::io::copy(&mut from_server, &mut tokio::io::sink()).await;
        };
        let (received, (), ()) = tokio::join!(input(protocol, server, &sessions), talk, listen);
        sessions.close().await;
        received
    };
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, over).await.expect("the client is gone and the session goes on")
    })
}

async fn input(protocol: Protocol, connection: tokio::io::DuplexStream, sessions: &Sessions) -> usize {
    let Ok(mut command) = serve(protocol, connection, sessions).await else { return 0 };
    let mut received = Vec::new();
    if let Some(stdin) = &mut command.stdin {
        // A connection that breaks off is as good an end as any.
        let _ = stdin.read_to_end(&mut received).await;
    }
    received.len()
}
