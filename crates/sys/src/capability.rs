//! Capabilities: names, numbers, and the five sets of a thread.

use std::io;

/// Names without `CAP_`, at the index of their number (capabilities(7), Linux 5.9).
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// `CAP_SYS_ADMIN`
pub const SYS_ADMIN: u64 = 1 << 21;

/// What the field's runtimes give a container that asks for nothing (containerd's and CRI-O's common set).
pub const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The bit of a capability; with or without `CAP_`, in any case.
pub fn mask_of(name: &str) -> Option<u64> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    NAMES.iter().position(|known| *known == name).map(|number| 1 << number)
}

/// The bits of [`DEFAULT`].
pub fn default_mask() -> u64 {
    DEFAULT.iter().filter_map(|name| mask_of(name)).fold(0, |mask, bit| mask | bit)
}

/// Every capability that this kernel knows.
pub fn all_mask() -> u64 {
    let known = |number: &u64| {
        // SAFETY: PR_CAPBSET_READ takes a number and no memory.
        unsafe { libc::prctl(libc::PR_CAPBSET_READ, *number, 0, 0, 0) >= 0 }
    };
    (0..64).take_while(known).fold(0, |mask, number| mask | 1 << number)
}

/// This thread's effective set.
///
/// # Errors
/// The kernel's answer.
pub fn effective() -> io::Result<u64> {
    Ok(get()?.0)
}

/// This thread's permitted set.
///
/// # Errors
/// The kernel's answer.
pub fn permitted() -> io::Result<u64> {
    Ok(get()?.1)
}

/// The names in a mask, without `CAP_`.
pub fn names(mask: u64) -> Vec<&'static str> {
    let is_set = |(number, _): &(usize, &&str)| mask & (1 << number) != 0;
    NAMES.iter().enumerate().filter(is_set).map(|(_, name)| *name).collect()
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

fn get() -> io::Result<(u64, u64, u64)> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: a version-3 header and the two data structures that it calls for.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let [low, high] = data;
    let join = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    Ok((
        join(low.effective, high.effective),
        join(low.permitted, high.permitted),
        join(low.inheritable, high.inheritable),
    ))
}

/// Sets this thread's effective, permitted and inheritable sets.
///
/// # Errors
/// The kernel's answer.
pub fn set(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |mask: u64, shift: u32| u32::try_from((mask >> shift) & 0xffff_ffff).unwrap_or(0);
    let data = [0, 32].map(|shift| Data {
        effective: half(effective, shift),
        permitted: half(permitted, shift),
        inheritable: half(inheritable, shift),
    });
    // SAFETY: a version-3 header and the two data structures that it calls for; the kernel only reads them.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes every permitted capability effective again, as `setresuid` away from 0 with `PR_SET_KEEPCAPS` leaves only permitted ones.
///
/// # Errors
/// The kernel's answer.
pub fn raise_permitted() -> io::Result<()> {
    let (_, permitted, inheritable) = get()?;
    set(permitted, permitted, inheritable)
}

/// Drops everything outside `keep` from the bounding set.
///
/// # Errors
/// The kernel's answer; needs `CAP_SETPCAP`.
pub fn limit_bounding(keep: u64) -> io::Result<()> {
    for number in (0_u64..64).filter(|number| keep & (1 << number) == 0) {
        match prctl(libc::PR_CAPBSET_DROP, number, 0) {
            // The kernel knows none from here on.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            dropped => dropped?,
        }
    }
    Ok(())
}

/// Sets the ambient set; its capabilities must be permitted and inheritable.
///
/// # Errors
/// The kernel's answer.
pub fn set_ambient(mask: u64) -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    for number in (0_u64..64).filter(|number| mask & (1 << number) != 0) {
        prctl(libc::PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)?;
    }
    Ok(())
}

const PR_CAP_AMBIENT_RAISE: u64 = 2;
const PR_CAP_AMBIENT_CLEAR_ALL: u64 = 4;

fn prctl(option: i32, first: u64, second: u64) -> io::Result<()> {
    // SAFETY: the options used here take numbers and no memory.
    let result = unsafe { libc::prctl(option, first, second, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_and_without_prefix() {
        assert_eq!(mask_of("CAP_SYS_ADMIN"), Some(SYS_ADMIN));
        assert_eq!(mask_of("sys_admin"), Some(SYS_ADMIN));
        assert_eq!(mask_of("SYS_EVERYTHING"), None);
    }

    #[test]
    fn the_default_set_is_the_one_everyone_knows() {
        assert_eq!(default_mask(), 0xa804_25fb);
    }
}
