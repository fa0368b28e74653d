//! Seccomp.
use std::io;

/// Installs a compiled program.
///
/// # Errors
/// The kernel's answer.
pub fn install(program: &[u8]) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        length: libc::c_ushort,
        filter: *const u8,
    }
    let length = u16::try_from(program.len() / 8).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = Program { length, filter: program.as_ptr() };
    // SAFETY: SECCOMP_SET_MODE_FILTER reads `length` instructions of 8 bytes from `filter`.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, 1, 0, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
