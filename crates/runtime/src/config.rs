//! What a runtime is started with.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use image::ImageStore;
use network::PodNetwork;

use crate::crash::CrashHook;

pub use cri::v1::CgroupDriver;

/// Everything a [`crate::Runtime`] needs.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Records, writable layers and volumes of containers, e.g. `/var/lib/kakoi/containers`.
    pub state_dir: PathBuf,
    /// Run directories of the shims, e.g. `/run/kakoi`.
    pub run_dir: PathBuf,
    /// The cgroup that shims are born in, e.g. `/kakoi`; never the daemon's own.
    pub cgroup_parent: String,
    /// Which driver clients are told of. What a sandbox's parent is decides for itself: a slice's name, or a path.
    pub cgroup_driver: CgroupDriver,
    /// The bus of the service manager.
    pub bus: systemd::Bus,
    /// The version reported to clients.
    pub version: String,
    /// Images and their layers.
    pub images: Arc<ImageStore>,
    /// The Pod network; without one only Pods on the node's network can run.
    pub network: Option<PodNetwork>,
    /// OCI runtimes beside the built-in handler; see [`crate::handlers`].
    pub handlers: Vec<crate::HandlerConfig>,
    /// A directory for [the stage](shim::stage) of OCI runtimes, usually `/run/kakoi/stage`: it stays empty, several
    /// instances can have the same one, and everybody must be able to enter it.
    pub stage_dir: PathBuf,
    /// The static `kakoi-shim` program.
    pub shim: Cow<'static, [u8]>,
    /// Further directories whose filesystems must support ID-mapped mounts before user namespaces are
    /// advertised, e.g. `/var/lib/kubelet/pods`. Those that don't exist are passed over.
    pub probe_dirs: Vec<PathBuf>,
    /// Where `passwd`, `subuid` and `subgid` of the node lie, usually `/etc`.
    pub etc: PathBuf,
    /// Failures to act out, for tests.
    pub crash: CrashHook,
}
