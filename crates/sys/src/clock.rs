//! Whether somebody keeps the kernel's clock right.

use std::io;

/// Whether the clock is synchronised: the kernel was told so by a time service, and not too long ago.
///
/// # Errors
/// What `adjtimex(2)` said.
pub fn is_synchronised() -> io::Result<bool> {
    // SAFETY: all bytes zero are a valid `timex`, and with no modes set the kernel only reads.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `state` is a `timex` of ours that outlives the call.
    let answer = unsafe { libc::adjtimex(&raw mut state) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(answer != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_clock_can_be_asked() {
        super::is_synchronised().unwrap();
    }
}
