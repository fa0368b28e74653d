//! Pipes, sockets and terminals as async streams.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A non-blocking descriptor.
#[derive(Debug)]
pub(crate) struct Descriptor(AsyncFd<OwnedFd>);

impl Descriptor {
    /// Takes a pipe's end, a socket or a terminal's master.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        #[expect(
            deprecated,
            reason = "what replaces it is `unsafe` for types that may give another descriptor each time; std's doesn't"
        )]
        let registered = AsyncFd::new(fd)?;
        Ok(Self(registered))
    }

    /// The descriptor itself.
    pub(crate) fn get(&self) -> &OwnedFd {
        self.0.get_ref()
    }
}

impl AsyncRead for Descriptor {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let read =
                guard.try_io(|fd| match rustix::io::read(fd.get_ref(), buffer.initialize_unfilled()) {
                    // The master of a terminal says EIO when nobody has the other side open: the end.
                    Err(Errno::IO) => Ok(0),
                    other => Ok(other?),
                });
            if let Ok(read) = read {
                buffer.advance(read?);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Descriptor {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(written) = guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_goes_into_a_pipe_comes_out() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (mut read, mut write) = (Descriptor::new(read).unwrap(), Descriptor::new(write).unwrap());
        let sent = vec![7_u8; 1 << 20];
        let copy = sent.clone();
        let writer = tokio::spawn(async move { write.write_all(&copy).await });
        let mut received = Vec::new();
        read.read_to_end(&mut received).await.unwrap();
        writer.await.unwrap().unwrap();
        assert!(received == sent);
    }
}
