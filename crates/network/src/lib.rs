//! The Pod network: a bridge, a veth pair for each Pod, addresses, masquerading and host ports; or CNI plugins in its
//! place.
//!
//! Links go by rtnetlink, rules as text through `nft`; both are worked out as data first. What each sandbox has is
//! a small file written before the kernel is touched, so that an attachment can be redone or undone whenever the
//! program dies. It starts no program but `nft` (and plugins, where there are any) and never waits for a Pod.

mod address;
mod cni;
mod error;
mod firewall;
mod forwarding;
mod guard;
mod link;
mod netlink;
mod nfnetlink;
mod nft;
mod node;
mod pod;
mod port;
pub mod probe;
mod record;
mod ruleset;

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use cni::Plugins;
use node::Node;

pub use address::{Cidr, Family, PodCidrs};
pub use cni::CniConfig;
pub use error::{CidrError, NetworkError};
pub use port::{PortMapping, Protocol};
pub use ruleset::ApiService;

/// What a Pod network needs to know.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// The instance's name, unique on the machine.
    pub instance: String,
    /// The bridge's name, at most 15 bytes, unique on the machine.
    pub bridge: String,
    /// The name of the nftables tables (families `ip`, `ip6` and `bridge`), unique on the machine.
    pub table: String,
    /// The ranges of Pod addresses; the first address of each is the bridge's.
    pub pod_cidrs: PodCidrs,
    /// Where Pods find the API server; `None` when it is not on this node.
    pub api: Option<ApiService>,
    /// Where this instance's records are, for example `/var/lib/kakoi/network`.
    pub state_dir: PathBuf,
    /// A directory that all instances on the machine share and a reboot empties, for example `/run/kakoi/network`.
    pub machine_dir: PathBuf,
}

/// The addresses of a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodAddresses {
    /// The first is the Pod's `status.podIP`.
    pub ips: Vec<IpAddr>,
}

/// A sandbox, and the Pod that it is of; only plugins want to know the Pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SandboxName<'a> {
    /// The sandbox's identifier.
    pub id: &'a str,
    /// The Pod's namespace.
    pub namespace: &'a str,
    /// The Pod's name.
    pub name: &'a str,
    /// The Pod's UID.
    pub uid: &'a str,
}

impl<'a> From<&'a str> for SandboxName<'a> {
    fn from(id: &'a str) -> Self {
        Self { id, ..Self::default() }
    }
}

impl<'a> From<&'a String> for SandboxName<'a> {
    fn from(id: &'a String) -> Self {
        id.as_str().into()
    }
}

/// The Pod network of one node. Clones are handles to the same.
#[derive(Debug, Clone)]
pub struct PodNetwork {
    by: By,
}

/// Who connects Pods.
#[derive(Debug, Clone)]
enum By {
    /// This crate.
    Bridge(Arc<Node>),
    /// CNI plugins.
    Plugins(Arc<Plugins>),
}

impl PodNetwork {
    /// Makes the bridge and the rules, or takes over those of an earlier run.
    ///
    /// # Errors
    /// When the range overlaps a route of the machine, `nft` is not installed, or the kernel refuses.
    pub async fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        let node = blocking(move || Node::open(config)).await?;
        Ok(Self { by: By::Bridge(Arc::new(node)) })
    }

    /// Leaves the network to CNI plugins. Their configuration is read whenever a sandbox is connected, so that it may
    /// come later; [`PodNetwork::probe`] tells whether it is there.
    ///
    /// # Errors
    /// When the directory for records can't be made.
    pub async fn with_plugins(config: CniConfig) -> Result<Self, NetworkError> {
        let plugins = blocking(move || Plugins::open(config)).await?;
        Ok(Self { by: By::Plugins(Arc::new(plugins)) })
    }

    /// Whether sandboxes can be connected; changes nothing.
    ///
    /// # Errors
    /// What is missing: plugins' configuration, or a plugin.
    pub async fn probe(&self) -> Result<(), NetworkError> {
        match &self.by {
            By::Bridge(_) => Ok(()),
            By::Plugins(plugins) => plugins.probe().await,
        }
    }

    /// Connects a sandbox's network namespace: link `eth0`, an address of each range, the default routes, the
    /// loopback, host ports. A sandbox that is connected already keeps its addresses. Sandboxes are connected side by side.
    ///
    /// # Errors
    /// When no address or bridge port is free, another sandbox has a host port, the kernel refuses, or a plugin fails;
    /// nothing of the attempt stays then.
    pub async fn attach<'a>(
        &self,
        sandbox: impl Into<SandboxName<'a>>,
        netns: BorrowedFd<'_>,
        ports: &[PortMapping],
    ) -> Result<PodAddresses, NetworkError> {
        let sandbox = sandbox.into();
        let node = match &self.by {
            By::Bridge(node) => Arc::clone(node),
            By::Plugins(plugins) => {
                return Ok(PodAddresses { ips: plugins.attach(&sandbox, netns, ports).await? });
            }
        };
        let netns: OwnedFd = netns
            .try_clone_to_owned()
            .map_err(NetworkError::kernel("duplicate a network namespace's descriptor"))?;
        let (id, ports) = (sandbox.id.to_owned(), ports.to_vec());
        let ips = blocking(move || node.attach(&id, netns.as_fd(), &ports)).await?;
        Ok(PodAddresses { ips })
    }

    /// Disconnects a sandbox and frees what it had. It need not be connected, nor its namespace exist.
    ///
    /// # Errors
    /// When the kernel, `nft` or a plugin refuses; what could not be undone stays recorded, so that it can be tried
    /// again.
    pub async fn detach(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        match &self.by {
            By::Plugins(plugins) => plugins.detach(sandbox_id).await,
            By::Bridge(node) => {
                let (node, id) = (Arc::clone(node), sandbox_id.to_owned());
                blocking(move || node.detach(&id)).await
            }
        }
    }

    /// Whether the network is the built-in one, which disconnects a sandbox whose namespace goes at the same time.
    pub fn is_built_in(&self) -> bool {
        matches!(self.by, By::Bridge(_))
    }

    /// The addresses of a sandbox that is connected.
    pub fn addresses(&self, sandbox_id: &str) -> Option<PodAddresses> {
        let ips = match &self.by {
            By::Bridge(node) => node.addresses_of(sandbox_id)?,
            By::Plugins(plugins) => plugins.addresses(sandbox_id)?,
        };
        Some(PodAddresses { ips })
    }

    /// Disconnects every sandbox that is not in `live`, removes links that belong to none, and puts back rules that
    /// others have removed or that a firewall started since has made needed. Plugins are asked whether the others are
    /// as they made them.
    ///
    /// # Errors
    /// The first of what went wrong; the rest is done nevertheless.
    pub async fn reconcile(&self, live: &[String]) -> Result<(), NetworkError> {
        match &self.by {
            By::Plugins(plugins) => plugins.reconcile(live).await,
            By::Bridge(node) => {
                let (node, live) = (Arc::clone(node), live.iter().cloned().collect());
                blocking(move || node.reconcile(&live)).await
            }
        }
    }

    /// Removes all of it from the machine: links, rules, records; forwarding is as it was found. Of a network of
    /// plugins that is every sandbox's part; what else plugins have made is theirs.
    ///
    /// # Errors
    /// The first of what went wrong; the rest is done nevertheless.
    pub async fn teardown(&self) -> Result<(), NetworkError> {
        match &self.by {
            By::Plugins(plugins) => plugins.reconcile(&[]).await,
            By::Bridge(node) => {
                let node = Arc::clone(node);
                blocking(move || node.teardown()).await
            }
        }
    }
}

/// Runs `work` on a thread that may block. It runs to its end even when the caller is cancelled.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(NetworkError::Stopping),
        },
    }
}

/// The name of the bridge's end of a sandbox's veth pair.
fn host_link(bridge: &str, sandbox_id: &str) -> String {
    format!("veth{:010x}", fnv64(&[bridge, "/", sandbox_id]) >> 24)
}

/// FNV-1a: the same on every machine and in every version of the program.
fn fnv64(texts: &[&str]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What the bridge's end of a pair is called for people, and for a node whose records were lost.
fn alias(sandbox_id: &str, addresses: &[IpAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    format!("kakoi {sandbox_id} {}", addresses.join(","))
}

/// The sandbox and addresses that an alias tells.
fn from_alias(alias: &str) -> Option<(String, Vec<IpAddr>)> {
    let (id, addresses) = alias.strip_prefix("kakoi ")?.split_once(' ')?;
    let addresses = addresses.split(',').map(|address| address.parse().ok()).collect::<Option<_>>()?;
    Some((id.to_owned(), addresses))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit_the_kernel_and_differ_by_instance() {
        let id = "3f2c9d1b7a";
        assert_eq!(host_link("kakoi0", id).len(), 14);
        assert_ne!(host_link("kakoi0", id), host_link("kk01234567", id));
    }

    #[test]
    fn an_alias_tells_sandbox_and_addresses() {
        let addresses: Vec<IpAddr> = vec!["10.85.0.9".parse().unwrap(), "fd85::9".parse().unwrap()];
        assert_eq!(alias("abc", &addresses), "kakoi abc 10.85.0.9,fd85::9");
        assert_eq!(from_alias(&alias("abc", &addresses)), Some(("abc".to_owned(), addresses)));
        assert_eq!(from_alias("uplink to the office"), None);
    }
}
