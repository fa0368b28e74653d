//! The ways a CRI client reaches a CRI server: a Unix socket, or a call of the server's routes for one process that is
//! both. Both carry the same gRPC messages, so nothing above can tell them apart.

use std::io;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, StdError, http};
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tower::Service;

use crate::deadline::Deadlines;
use crate::v1::image_service_server::{ImageService, ImageServiceServer};
use crate::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};

/// Largest message in either direction, in bytes (16 MiB, as the kubelet and the known runtimes have it).
pub const MESSAGE_LIMIT: usize = 16 * 1024 * 1024;

/// How long a client waits for a connection to a Unix socket.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a CRI socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another server answers there.
    #[error("listen on {path}: another CRI server answers there; stop it or choose another socket")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path is something else than a socket.
    #[error("listen on {path}: the path exists and is no socket; move it away or choose another socket")]
    NotASocket {
        /// What is in the way.
        path: PathBuf,
    },
    /// The system refused.
    #[error("listen on {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a CRI socket cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error("connect to the CRI socket {path}: {source}; is the runtime running and is this its endpoint?")]
pub struct ConnectError {
    path: PathBuf,
    source: tonic::transport::Error,
}

/// Why a CRI server ended before it was told to.
#[derive(Debug, thiserror::Error)]
#[error("serve CRI: {0}")]
pub struct ServeError(#[from] tonic::transport::Error);

/// Opens a Unix socket at `path` (mode 0600), in place of one that nobody answers.
///
/// # Errors
/// When another server answers there, something else lies there, or the system refuses.
pub async fn bind_unix(path: &Path) -> Result<UnixListener, BindError> {
    let io_error = |source| BindError::Io { path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(io_error)?;
    }
    remove_dead_socket(path).await?;
    let listener = UnixListener::bind(path).map_err(io_error)?;
    rustix::fs::chmod(path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
        .map_err(|error| io_error(error.into()))?;
    Ok(listener)
}

async fn remove_dead_socket(path: &Path) -> Result<(), BindError> {
    use std::os::unix::fs::FileTypeExt as _;

    let io_error = |source| BindError::Io { path: path.to_owned(), source };
    let kind = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(io_error)?.file_type(),
    };
    if !kind.is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(BindError::InUse { path: path.to_owned() });
    }
    std::fs::remove_file(path).map_err(io_error)
}

/// Connects to the gRPC server at the Unix socket `path`: a CRI runtime or a node's plugin. The channel reconnects by
/// itself later.
///
/// # Errors
/// When nobody answers within 5 seconds.
pub async fn connect_unix(path: &Path) -> Result<Channel, ConnectError> {
    let connected = endpoint().connect_with_connector(connector(path)).await;
    connected.map_err(|source| ConnectError { path: path.to_owned(), source })
}

/// A channel to the CRI server at the Unix socket `path` that connects with the first call, and anew when the server
/// was away: calls fail while nobody answers there.
pub fn connect_unix_lazily(path: &Path) -> Channel {
    endpoint().connect_with_connector_lazy(connector(path))
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://localhost").connect_timeout(CONNECT_TIMEOUT)
}

fn connector(
    path: &Path,
) -> impl Service<Uri, Response = TokioIo<UnixStream>, Error = io::Error, Future: Send> + Send + use<> {
    let socket = path.to_owned();
    tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    })
}

/// A client's way to a CRI server; clones share it. Made from a [`Channel`], or from the [`Routes`] of a server in this
/// process: then a call is the server's own future, with no connection between that would have to be framed and read.
#[derive(Clone, Debug)]
pub struct Connection(Way);

#[derive(Clone, Debug)]
enum Way {
    Channel(Channel),
    Routes(Routes),
}

impl From<Channel> for Connection {
    fn from(channel: Channel) -> Self {
        Self(Way::Channel(channel))
    }
}

impl From<Routes> for Connection {
    fn from(routes: Routes) -> Self {
        Self(Way::Routes(routes.prepare()))
    }
}

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Body>;
    type Error = StdError;
    type Future = BoxFuture<Self::Response, StdError>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        match &mut self.0 {
            Way::Channel(channel) => channel.poll_ready(context).map_err(Into::into),
            Way::Routes(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match &mut self.0 {
            Way::Channel(channel) => {
                let answer = channel.call(request);
                Box::pin(async move { Ok(answer.await?) })
            }
            Way::Routes(routes) => {
                let answer = routes.call(request);
                Box::pin(async move { answer.await.map_err(|error| match error {}) })
            }
        }
    }
}

/// The two services of CRI, to be served together; more can be added.
pub fn routes(runtime: impl RuntimeService, image: impl ImageService) -> Routes {
    let runtime = RuntimeServiceServer::new(runtime)
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    let image = ImageServiceServer::new(image)
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    Routes::new(runtime).add_service(image)
}

/// Serves on every connection of `incoming` until `shutdown`, then lets calls in flight end. A call whose client's deadline
/// comes is answered with `DeadlineExceeded`.
///
/// # Errors
/// When the transport fails as a whole; a broken connection ends alone.
pub async fn serve<S, C>(routes: Routes, incoming: S, shutdown: CancellationToken) -> Result<(), ServeError>
where
    S: Stream<Item = io::Result<C>>,
    C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    C::ConnectInfo: Clone + Send + Sync + 'static,
{
    let server = Server::builder().layer(Deadlines).add_routes(routes);
    Ok(server.serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned()).await?)
}
