//! Counters of a sandbox's network interfaces, read in its network namespace.

use std::os::fd::AsFd as _;

use rustix::thread::LinkNameSpaceType;

use crate::error::{Error, Result};
use crate::state::Sandbox;

/// What has gone through an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) received: Traffic,
    pub(crate) sent: Traffic,
}

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
    pub(crate) errors: u64,
    pub(crate) dropped: u64,
}

/// The interfaces but the loopback one; none when the sandbox has no network of its own or has ended. Blocks.
pub(crate) fn interfaces(sandbox: &Sandbox) -> Result<Vec<Interface>> {
    let record = sandbox.record();
    let Some(shim) = sandbox.shim().filter(|_| crate::sandbox::uses_pod_network(&record)) else {
        return Ok(Vec::new());
    };
    let failed = |error: &dyn std::fmt::Display| Error::failed("read the sandbox's network counters", error);
    let netns = shim.netns().map_err(|error| failed(&error))?;
    // A thread of its own: a namespace that a thread has entered it can't always leave.
    let read = move || {
        rustix::thread::move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        std::fs::read_to_string("/proc/thread-self/net/dev")
    };
    let text = std::thread::scope(|scope| scope.spawn(read).join());
    let text = text.unwrap_or_else(|_| Err(std::io::Error::other("the thread panicked")));
    Ok(parse(&text.map_err(|error| failed(&error))?))
}

/// `  eth0: 1296 16 0 0 0 0 0 0 1116 14 0 0 0 0 0 0`, after two lines of headings.
fn parse(text: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, counts) = line.split_once(':')?;
        let counts: Vec<u64> = counts.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let traffic = |from: usize| {
            let at = |index: usize| counts.get(from + index).copied().unwrap_or(0);
            Traffic { bytes: at(0), packets: at(1), errors: at(2), dropped: at(3) }
        };
        let name = name.trim().to_owned();
        (name != "lo").then(|| Interface { name, received: traffic(0), sent: traffic(8) })
    };
    text.lines().skip(2).filter_map(interface).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read_without_the_loopback() {
        let text = "Inter-|   Receive      |  Transmit\n face |bytes packets ...\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 1296 16 1 2 0 0 0 0 1116 14 3 4 0 0 0 0\n";
        let received = Traffic { bytes: 1296, packets: 16, errors: 1, dropped: 2 };
        let sent = Traffic { bytes: 1116, packets: 14, errors: 3, dropped: 4 };
        assert_eq!(parse(text), [Interface { name: "eth0".into(), received, sent }]);
    }
}
