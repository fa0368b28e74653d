//! Pseudo-terminals.

use std::io;
use std::os::fd::AsFd;

/// Sets a terminal's size.
///
/// # Errors
/// The kernel's answer.
pub fn resize(master: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}
