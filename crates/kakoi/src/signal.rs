//! SIGTERM and SIGINT: both mean "end, and leave the Pods running".

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Waits for either. The handlers are in place when this returns.
pub(crate) fn ended() -> io::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
