//! What `/proc` says of a container's processes: files, sockets, limits. What ends meanwhile is left out.

use std::fs;
use std::path::PathBuf;

/// Counts over processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) files: u64,
    /// Those of the files that are sockets.
    pub(super) sockets: u64,
}

fn of(pid: i32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// Open files and sockets.
pub(super) fn open(pids: &[i32]) -> Open {
    let files = pids.iter().flat_map(|pid| fs::read_dir(of(*pid, "fd")).into_iter().flatten().flatten());
    files.fold(Open::default(), |open, file| {
        let is_socket =
            fs::read_link(file.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
        Open { files: open.files + 1, sockets: open.sockets + u64::from(is_socket) }
    })
}

/// The soft limit on open files; `u64::MAX` is unlimited.
pub(super) fn open_files_limit(pid: i32) -> Option<u64> {
    parse_limit(&fs::read_to_string(of(pid, "limits")).ok()?, "Max open files")
}

/// `Max open files            1024                 524288               files`
fn parse_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_files_and_a_limit() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let (_a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        let open = open(&[pid, i32::MAX]);
        assert!(open.sockets >= 2 && open.files > open.sockets, "{open:?}");
        assert!(open_files_limit(pid).is_some_and(|limit| limit > 0));
    }

    #[test]
    fn limits_are_numbers_or_unlimited() {
        let text = "Limit  Soft  Hard\nMax open files            1024    4096   files\nMax locked memory  unlimited  unlimited  bytes\n";
        assert_eq!(parse_limit(text, "Max open files"), Some(1024));
        assert_eq!(parse_limit(text, "Max locked memory"), Some(u64::MAX));
        assert_eq!(parse_limit(text, "Max stack size"), None);
    }
}
