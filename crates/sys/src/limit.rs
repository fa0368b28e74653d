//! Resource limits and the OOM score: what the machine does not allow is set as near as it does, and said.

use std::io;

/// A limit that was set lower than asked for, as a sentence.
pub type Warning = String;

/// Sets a resource limit of this process; `u64::MAX` is unlimited. Without `CAP_SYS_RESOURCE` the hard limit can't be
/// raised: then both are cut to it.
///
/// # Errors
/// The kernel's answer (`EINVAL` for an unknown resource).
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<Option<Warning>> {
    match prlimit(resource, soft, hard) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
        result => return result.map(|()| None),
    }
    let (_, ceiling) = get_rlimit(resource)?;
    prlimit(resource, soft.min(ceiling), hard.min(ceiling))?;
    Ok(Some(format!(
        "{} is limited to {ceiling} and not to {hard} as asked: this machine does not let its root raise it (CAP_SYS_RESOURCE)",
        rlimit_name(resource)
    )))
}

/// Raises the soft limit to the hard one.
///
/// # Errors
/// The kernel's answer.
pub fn raise_soft_limit(resource: u32) -> io::Result<()> {
    let (_, hard) = get_rlimit(resource)?;
    prlimit(resource, hard, hard)
}

/// This process's soft and hard limit.
///
/// # Errors
/// The kernel's answer.
pub fn get_rlimit(resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = [0_u64; 2];
    // SAFETY: `limit` has the layout of struct rlimit64, which the kernel fills.
    let result = unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, std::ptr::null::<u64>(), limit.as_mut_ptr())
    };
    let [soft, hard] = limit;
    if result == 0 { Ok((soft, hard)) } else { Err(io::Error::last_os_error()) }
}

fn prlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = [soft, hard];
    // SAFETY: `limit` has the layout of struct rlimit64, which the kernel reads.
    let result = unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, limit.as_ptr(), std::ptr::null_mut::<u64>())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Names at the index of their number (getrlimit(2)).
const RLIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// `RLIMIT_NPROC`, `RLIMIT_MEMLOCK`, `RLIMIT_MSGQUEUE`, `RLIMIT_SIGPENDING`: the kernel freezes a creator's soft limits
/// of these into a new user namespace.
pub const FROZEN_INTO_USER_NAMESPACES: [u32; 4] = [6, 8, 12, 11];

/// `RLIMIT_NOFILE` for 7.
pub fn rlimit_name(resource: u32) -> String {
    let name = usize::try_from(resource).ok().and_then(|index| RLIMITS.get(index));
    name.map_or_else(|| format!("resource limit {resource}"), |name| format!("RLIMIT_{name}"))
}

/// The number of `RLIMIT_NOFILE`, `nofile` or `NOFILE`.
pub fn rlimit_number(name: &str) -> Option<u32> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("RLIMIT_").unwrap_or(&name);
    RLIMITS.iter().position(|known| *known == name).and_then(|index| u32::try_from(index).ok())
}

/// Sets this process's `oom_score_adj`. Without `CAP_SYS_RESOURCE` it can't go below its present lowest value: then it
/// goes as low as it can, which is found by halving.
///
/// # Errors
/// What `/proc` said.
pub fn set_oom_score_adj(wanted: i32) -> io::Result<Option<Warning>> {
    let write = |value: i32| std::fs::write("/proc/self/oom_score_adj", value.to_string());
    match write(wanted) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {}
        result => return result.map(|()| None),
    }
    let text = std::fs::read_to_string("/proc/self/oom_score_adj")?;
    // Invariant: `low` is refused, `high` is allowed.
    let (mut low, mut high) = (wanted, text.trim().parse().unwrap_or(0).max(wanted + 1));
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if write(middle).is_ok() { high = middle } else { low = middle }
    }
    write(high)?;
    Ok(Some(format!(
        "oom_score_adj is {high} and not {wanted} as asked: this machine does not let its root lower it (CAP_SYS_RESOURCE)"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        assert_eq!(rlimit_number("RLIMIT_NOFILE"), Some(7));
        assert_eq!(rlimit_name(7), "RLIMIT_NOFILE");
        assert_eq!(rlimit_number("nproc"), Some(6));
    }
}
