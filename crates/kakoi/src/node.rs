//! The parts of a node that `up`, `down` and `runtime` share: images, Pod network, container runtime.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{ImageStore, ImageStoreConfig, StoreError};
use network::{ApiService, CniConfig, NetworkConfig, NetworkError, PodCidrs, PodNetwork};
use runtime::{CrashHook, HandlerConfig, HandlerError, Runtime, RuntimeConfig};
use tokio_util::sync::CancellationToken;

use crate::cgroup::CgroupDriver;
use crate::config::Config;
use crate::places::Places;
use crate::version;

/// Where Pods find the API server (`KUBERNETES_SERVICE_HOST` and `_PORT`); the network leads it to the node.
pub(crate) const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 1), 443);

/// Why a part can't start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    #[error(transparent)]
    Images(#[from] StoreError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Runtime(#[from] runtime::StartError),
    #[error("can't note the Pods' range in {}: {cause}", .path.display())]
    Range { path: PathBuf, cause: io::Error },
    #[error("can't note the CNI plugins' directories in {}: {cause}", .path.display())]
    Plugins { path: PathBuf, cause: io::Error },
}

/// Where `up` notes the Pods' ranges for `down`, which is not given `up`'s flags.
fn range_note(places: &Places) -> PathBuf {
    places.run().join("pod-cidr")
}

/// Notes the Pods' ranges of a node that starts.
pub(crate) fn note_range(places: &Places, cidrs: PodCidrs) -> Result<(), NodeError> {
    let path = range_note(places);
    fs::write(&path, format!("{cidrs}\n")).map_err(|cause| NodeError::Range { path, cause })
}

/// The ranges of the node that runs or ran last; `None` after a reboot, when there is nothing to take down either.
fn noted_range(places: &Places) -> Option<PodCidrs> {
    fs::read_to_string(range_note(places)).ok()?.trim().parse().ok()
}

/// Opens the instance's images.
pub(crate) fn open_images(places: &Places) -> Result<Arc<ImageStore>, StoreError> {
    ImageStore::open(ImageStoreConfig::new(places.state().join("images"), places.registries()))
}

/// Opens the Pod network. `api_port` is the API server's, where it runs on this node.
pub(crate) async fn open_network(
    places: &Places,
    cidrs: PodCidrs,
    api_port: Option<u16>,
) -> Result<PodNetwork, NetworkError> {
    PodNetwork::open(NetworkConfig {
        instance: places.instance(),
        bridge: places.bridge(),
        table: places.instance(),
        pod_cidrs: cidrs,
        api: api_port.map(|port| ApiService { address: SERVICE, port }),
        state_dir: places.state().join("network"),
        machine_dir: "/run/kakoi/network".into(),
    })
    .await
}

/// Leaves the Pod network to the CNI plugins that are configured in `conf`.
pub(crate) async fn open_plugins(
    places: &Places,
    conf: &Path,
    bins: &[PathBuf],
) -> Result<PodNetwork, NetworkError> {
    // Where upstream's runtimes look, and where Debian puts them.
    let usual = ["/opt/cni/bin", "/usr/lib/cni"].map(PathBuf::from);
    PodNetwork::with_plugins(CniConfig {
        conf_dir: conf.to_owned(),
        bin_dirs: if bins.is_empty() { usual.to_vec() } else { bins.to_vec() },
        state_dir: places.state().join("network"),
        netns_dir: "/run/netns".into(),
    })
    .await
}

/// Where `runtime` notes the plugins' directories for `down`, which needs them after a reboot too.
fn plugins_note(places: &Places) -> PathBuf {
    places.state().join("cni-directories.json")
}

/// Notes which plugins the node that starts has, if any.
pub(crate) fn note_plugins(places: &Places, plugins: Option<(&Path, &[PathBuf])>) -> Result<(), NodeError> {
    let path = plugins_note(places);
    let noted = match plugins {
        Some(directories) => {
            let text = serde_json::to_vec(&directories).map_err(io::Error::from);
            text.and_then(|text| fs::create_dir_all(places.state()).and_then(|()| fs::write(&path, text)))
        }
        None => fs::remove_file(&path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        }),
    };
    noted.map_err(|cause| NodeError::Plugins { path, cause })
}

/// Opens the network that the node which ran last had.
pub(crate) async fn reopen_network(places: &Places, otherwise: PodCidrs) -> Result<PodNetwork, NodeError> {
    let noted = fs::read(plugins_note(places)).ok();
    let directories: Option<(PathBuf, Vec<PathBuf>)> =
        noted.and_then(|text| serde_json::from_slice(&text).ok());
    Ok(match directories {
        Some((conf, bins)) => open_plugins(places, &conf, &bins).await?,
        None => open_network(places, noted_range(places).unwrap_or(otherwise), None).await?,
    })
}

/// The OCI runtimes that are runtime handlers of this node.
pub(crate) fn handlers(config: &Config) -> Result<Vec<HandlerConfig>, HandlerError> {
    runtime::handlers(config.handlers.clone(), &std::env::var_os("PATH").unwrap_or_default())
}

/// Starts the container runtime; it takes over the Pods that an earlier one left.
pub(crate) async fn start_runtime(
    places: &Places,
    (images, network, handlers): (Arc<ImageStore>, PodNetwork, Vec<HandlerConfig>),
    driver: CgroupDriver,
    shutdown: CancellationToken,
) -> Result<Runtime, runtime::StartError> {
    let config = RuntimeConfig {
        state_dir: places.state().join("containers"),
        run_dir: places.run(),
        cgroup_parent: format!("/{}", places.instance()),
        cgroup_driver: driver.of_runtime(),
        bus: systemd::Bus::system(),
        version: version::KAKOI.to_owned(),
        images,
        network: Some(network),
        handlers,
        stage_dir: "/run/kakoi/stage".into(),
        shim: Cow::Borrowed(runtime::SHIM),
        probe_dirs: vec![places.kubelet().join("pods")],
        etc: "/etc".into(),
        crash: CrashHook::default(),
    };
    Runtime::start(config, shutdown).await
}
