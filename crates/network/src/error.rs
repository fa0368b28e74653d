//! What can go wrong with the Pod network, in words for the person who must act.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::address::{Cidr, Family};
use crate::port::{PortMapping, Protocol};

/// An operation on the Pod network failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The range for Pods is in use on this machine already.
    #[error(
        "cannot use {cidr} for Pods: it overlaps the route {route} (dev {device}) of this machine; choose another range with `--pod-cidr`"
    )]
    Overlap {
        /// The range asked for.
        cidr: Cidr,
        /// The route in the way.
        route: Cidr,
        /// The link it goes out on.
        device: String,
    },
    /// A link with the bridge's name exists and is something else.
    #[error(
        "cannot use {bridge} as the Pods' bridge: a link with this name exists and is no bridge; remove it with `ip link del {bridge}`"
    )]
    NotABridge {
        /// The link's name.
        bridge: String,
    },
    /// The kernel takes no more ports on the bridge.
    #[error(
        "cannot connect sandbox {sandbox} to {bridge}: a Linux bridge has at most 1023 ports; this node can run no more Pods with a network of their own"
    )]
    BridgeFull {
        /// The sandbox.
        sandbox: String,
        /// The bridge.
        bridge: String,
    },
    /// Every address of the range is in use.
    #[error(
        "no free address for sandbox {sandbox}: all of {cidr} is in use; delete Pods or choose a larger range with `--pod-cidr`"
    )]
    NoAddress {
        /// The sandbox.
        sandbox: String,
        /// The range.
        cidr: Cidr,
    },
    /// Two sandboxes want the same port of the node.
    #[error("cannot map host port {port}/{protocol} for sandbox {sandbox}: sandbox {holder} has it")]
    PortTaken {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The sandbox that asked.
        sandbox: String,
        /// The sandbox that has it.
        holder: String,
    },
    /// A port is asked for on an address of a family of which the Pod has none.
    #[error(
        "cannot map host port {port} on {host_ip} for sandbox {sandbox}: its Pod has no {family} address; leave `hostIP` out or give the node a range of that family with `--pod-cidr`"
    )]
    PortFamily {
        /// The port.
        port: u16,
        /// The node's address.
        host_ip: IpAddr,
        /// The family that the Pod lacks.
        family: Family,
        /// The sandbox.
        sandbox: String,
    },
    /// The kernel has no IPv6.
    #[error(
        "cannot give Pods addresses of {cidr}: this kernel has no IPv6 (/proc/sys/net/ipv6 is missing; started with `ipv6.disable=1`?); leave the range out of `--pod-cidr`"
    )]
    NoIpv6 {
        /// The range.
        cidr: Cidr,
    },
    /// A sandbox identifier that cannot be a file name.
    #[error("{id:?} is no sandbox identifier: use 1 to 128 letters, digits, `-`, `_` and `.`")]
    Identifier {
        /// What was given.
        id: String,
    },
    /// The kernel refused a change of links, addresses or routes.
    #[error("cannot {what}: {source}")]
    Kernel {
        /// What was tried, on what.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of the network's state could not be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No network of plugins is configured.
    #[error(
        "no CNI network is configured: {} has no `.conflist`, `.conf` or `.json` file; install a network there",
        dir.display()
    )]
    CniMissing {
        /// Where one was looked for.
        dir: PathBuf,
    },
    /// The configuration of plugins is unusable.
    #[error("the CNI configuration {}: {reason}", path.display())]
    CniConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A plugin's program is missing.
    #[error("the CNI plugin `{plugin}` is in none of {}; install it there", dirs.join(", "))]
    CniNotInstalled {
        /// The plugin.
        plugin: String,
        /// Where it was looked for.
        dirs: Vec<String>,
    },
    /// Host ports are asked for, and no plugin opens any.
    #[error(
        "cannot map host ports for sandbox {sandbox}: no plugin of the CNI network `{network}` has the capability `portMappings`; add `portmap` to it"
    )]
    CniPorts {
        /// The network.
        network: String,
        /// The sandbox.
        sandbox: String,
    },
    /// A plugin failed.
    #[error("the CNI plugin `{plugin}` failed at {verb} for sandbox {sandbox}: {message}")]
    CniPlugin {
        /// The plugin.
        plugin: String,
        /// What it was to do.
        verb: &'static str,
        /// For which sandbox.
        sandbox: String,
        /// What it said.
        message: String,
    },
    /// A plugin does not take sandboxes, or did not clean up.
    #[error("the CNI plugin `{plugin}` failed at {verb}: {message}")]
    CniNetwork {
        /// The plugin.
        plugin: String,
        /// What it was to do.
        verb: &'static str,
        /// What it said.
        message: String,
    },
    /// The program `nft` is not installed.
    #[error("cannot run `nft`: it is not installed; install the package `nftables`")]
    NftMissing,
    /// `nft` could not be run.
    #[error("cannot run `nft`: {0}")]
    NftStart(#[source] io::Error),
    /// `nft` refused the rules.
    #[error("`nft` refused {what}: {message}")]
    NftRefused {
        /// What was to be changed.
        what: String,
        /// Its first words.
        message: String,
    },
    /// The work was cut off because the program ends.
    #[error("the network operation was cut off: the program is stopping")]
    Stopping,
}

impl NetworkError {
    pub(crate) fn kernel(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Kernel { what, source }
    }

    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    pub(crate) fn taken(port: &PortMapping, sandbox: &str, holder: &str) -> Self {
        let (sandbox, holder) = (sandbox.to_owned(), holder.to_owned());
        Self::PortTaken { port: port.host_port, protocol: port.protocol, sandbox, holder }
    }
}

/// The first error of a removal that goes on whatever fails.
#[derive(Debug, Default)]
pub(crate) struct First(Option<NetworkError>);

impl First {
    /// Keeps the first error and tells the others.
    pub(crate) fn note<T: Default>(&mut self, outcome: Result<T, NetworkError>) -> T {
        outcome.unwrap_or_else(|error| {
            if self.0.is_some() {
                tracing::warn!(%error, "another part of the network could not be removed");
            } else {
                self.0 = Some(error);
            }
            T::default()
        })
    }

    pub(crate) fn into_result(self) -> Result<(), NetworkError> {
        self.0.map_or(Ok(()), Err)
    }
}

/// A text tells no range of addresses for Pods.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// It is not of the form `10.85.0.0/16` or `fd85::/64`.
    #[error("{text:?} is no range of addresses: write it like `10.85.0.0/16` or `fd85::/64`")]
    Syntax {
        /// The text.
        text: String,
    },
    /// Its address has bits beyond the prefix.
    #[error("{address}/{prefix} has bits set beyond its prefix: did you mean {network}/{prefix}?")]
    HostBits {
        /// The address as written.
        address: IpAddr,
        /// The network that it lies in.
        network: IpAddr,
        /// The prefix length.
        prefix: u8,
    },
    /// It has no room for Pods, or is larger than any site's range.
    #[error("/{prefix} is no prefix for Pods: use /{shortest} to /{longest}")]
    Prefix {
        /// The prefix length.
        prefix: u8,
        /// The shortest that is taken of this family.
        shortest: u8,
        /// The longest.
        longest: u8,
    },
    /// Two ranges are of the same family.
    #[error("{first} and {second} are of one family: give one range of IPv4 and one of IPv6")]
    Family {
        /// The first range.
        first: Cidr,
        /// The second.
        second: Cidr,
    },
}
