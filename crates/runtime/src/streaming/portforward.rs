//! Connections to ports of a sandbox: made in its network namespace, to its own loopback addresses.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::LinkNameSpaceType;
use stream::portforward::{Forward, Forwards};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use crate::core::{Core, blocking};
use crate::error::{Error, Result};

/// How long a connection to a port of the Pod may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Serves a client's connections until it goes.
pub(super) async fn serve(core: Arc<Core>, sandbox: String, mut forwards: Forwards) {
    let relays = TaskTracker::new();
    while let Some(forward) = forwards.next().await {
        let (core, sandbox) = (Arc::clone(&core), sandbox.clone());
        relays.spawn(async move { relay(&core, &sandbox, forward).await });
    }
    relays.close();
    relays.wait().await;
}

async fn relay(core: &Arc<Core>, sandbox: &str, forward: Forward) {
    match connect(core, sandbox, forward.port).await {
        Ok(connection) => forward.relay(connection).await,
        Err(error) => {
            let message = format!("connect to port {} of the Pod: {error}", forward.port);
            forward.fail(&message).await;
        }
    }
}

/// Connects to the sandbox's `127.0.0.1`, else to its `::1`.
async fn connect(core: &Arc<Core>, sandbox: &str, port: u16) -> Result<TcpStream> {
    let shim = core.table.sandbox(sandbox)?.live_shim()?;
    let netns =
        blocking(move || shim.netns().map_err(|error| Error::failed("reach the sandbox's network", error)))
            .await?;
    let v4 = attempt(&netns, SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await;
    let Err(refused) = v4 else { return v4.map_err(|error| Error::failed("connect", error)) };
    let v6 = attempt(&netns, SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await;
    v6.map_err(|_| Error::failed(format!("127.0.0.1:{port}"), refused))
}

async fn attempt(netns: &OwnedFd, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket_in(netns.try_clone()?, address.is_ipv6()).await?;
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    tokio::time::timeout(CONNECT, socket.connect(address))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A socket of another network namespace. A socket stays where it was made, so a thread that goes there, makes one
/// and ends is enough.
async fn socket_in(netns: OwnedFd, is_v6: bool) -> io::Result<OwnedFd> {
    let (sender, receiver) = oneshot::channel();
    let make = move || {
        let made = (|| {
            rustix::thread::move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            let family = if is_v6 { AddressFamily::INET6 } else { AddressFamily::INET };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
        })();
        // The request may have been given up.
        let _ = sender.send(made);
    };
    let thread = std::thread::Builder::new().name("pod-socket".to_owned()).spawn(make)?;
    let socket = receiver.await.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
    // It has sent its answer, so it is at its end.
    let _ = thread.join();
    socket
}
