//! The node agent: Pod workers, ID ranges, volumes, status, its HTTPS server.

pub mod certificate;
mod cgroup;
mod clock;
mod config;
pub mod csi;
mod env;
mod event;
mod fault;
mod fence;
mod huge;
pub mod idspace;
mod logs;
mod manifest;
mod metrics;
mod node;
mod object;
mod places;
mod pod;
mod pods;
mod probe;
mod quantity;
mod registry;
mod run;
mod runtime;
mod server;
mod shared;
mod token;
mod uid;
mod usage;
mod userns;
mod volume;

pub use crate::userns::IdAllocator;
pub use cgroup::{CgroupDriver, CgroupRoots};
pub use clock::Clock;
pub use config::KubeletConfig;
pub use env::ApiService;
pub use fault::{CrashPoint, Faults, NoFaults};
pub use logs::rotate::LogLimits;
pub use node::eviction::{EvictionSettings, Signal, SoftThreshold, Threshold, Thresholds};
pub use node::shutdown::{ShutdownConfig, ShutdownPeriod, ShutdownSettings};
pub use pod::dns::ClusterDns;
pub use run::{RunError, listen, run};
pub use server::auth::{ServerTls, ServingCertificate, TlsError};
pub use uid::{BadPodUid, PodUid};
pub use volume::setup::VolumeProbe;

/// Unmounts the volumes of all Pods below `kubelet_dir`. The caller knows that no container of them runs.
///
/// # Errors
/// When the mount table can't be read or the kernel keeps a mount.
pub fn unmount_volumes(kubelet_dir: &std::path::Path) -> std::io::Result<()> {
    volume::mount::unmount_below(&kubelet_dir.join("pods"))
}
