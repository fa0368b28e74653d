//! What the processes of a launch tell the shim over one socket, until `execve` closes it.

use crate::protocol::{Failure, FailureKind};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One report.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// PID of the process that will become the program.
    Pid(i32),
    /// PID of an OCI runtime that the launcher has started and waits for.
    Runtime(i32),
    /// Something could not be had in full.
    Warning(String),
    /// The terminal's master comes with this message.
    Terminal,
    /// The next thing is `execve`.
    Executing,
    /// It will not run.
    Failed(Failure),
}

/// Sends a report; the socket keeps message boundaries.
pub(crate) fn send(socket: impl AsFd, report: &Report, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(report).map_err(io::Error::other)?;
    sys::socket::send(socket, &text, fds).map(drop)
}

/// Receives a report; `None` when all senders are gone.
pub(crate) fn receive(socket: impl AsFd) -> io::Result<Option<(Report, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; 64 << 10];
    let mut fds = Vec::new();
    let length = sys::socket::receive(socket, &mut buffer, &mut fds)?;
    if length == 0 {
        return Ok(None);
    }
    let text = buffer.get(..length).unwrap_or_default();
    let report =
        serde_json::from_slice(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((report, fds)))
}

/// A socket pair with message boundaries.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// A failure before `execve`: what was tried, and what the system said.
pub(crate) fn setup(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Failure {
    move |error| failure(format!("cannot {what}: {error}"))
}

/// A failure before `execve`.
pub(crate) fn failure(message: impl Into<String>) -> Failure {
    Failure { kind: FailureKind::Setup, message: message.into() }
}
