//! Entry points for fuzzing: sessions over connections whose handshake is over.

use tokio::io::{AsyncRead, AsyncWrite};

use crate::Sessions;
use crate::remotecommand::{self, EstablishError, RemoteCommand};

/// How the client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `v4.channel.k8s.io` over WebSocket.
    WebSocketV4,
    /// `v5.channel.k8s.io` over WebSocket.
    WebSocketV5,
    /// `v4.channel.k8s.io` over SPDY/3.1.
    Spdy,
}

/// Serves an `exec` with a terminal over `connection`.
///
/// # Errors
/// When a SPDY client does not open its streams.
pub async fn serve<S>(
    protocol: Protocol,
    connection: S,
    sessions: &Sessions,
) -> Result<RemoteCommand, EstablishError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    remotecommand::serve(protocol, connection, sessions).await
}
