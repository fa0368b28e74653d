//! Pseudo-terminals.

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Sets a terminal's size in characters.
///
/// # Errors
/// The kernel's answer.
pub fn resize(master: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}

/// The other end of an open `ptmx`, reached without a path, so that nobody can put another file in its place.
///
/// # Errors
/// The kernel's answer; [`io::ErrorKind::InvalidData`] if `master` is no `ptmx` (character device 5:2).
pub fn open_peer(master: impl AsFd) -> io::Result<OwnedFd> {
    let status = rustix::fs::fstat(master.as_fd())?;
    let is_ptmx = (rustix::fs::major(status.st_rdev), rustix::fs::minor(status.st_rdev)) == (5, 2);
    if !is_ptmx
        || rustix::fs::FileType::from_raw_mode(status.st_mode) != rustix::fs::FileType::CharacterDevice
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "ptmx is not the kernel's terminal multiplexer",
        ));
    }
    unlockpt(master.as_fd())?;
    Ok(ioctl_tiocgptpeer(master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?)
}
