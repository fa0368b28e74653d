//! The parts of a node that `up`, `down` and `runtime` share: images, Pod network, container runtime.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;

use image::{ImageStore, ImageStoreConfig, StoreError};
use network::{ApiService, Cidr, NetworkConfig, NetworkError, PodNetwork};
use runtime::{CrashHook, Runtime, RuntimeConfig};
use tokio_util::sync::CancellationToken;

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
}

/// Where `up` notes the Pods' range for `down`, which is not given `up`'s flags.
fn range_note(places: &Places) -> PathBuf {
    places.run().join("pod-cidr")
}

/// Notes the Pods' range of a node that starts.
pub(crate) fn note_range(places: &Places, cidr: Cidr) -> Result<(), NodeError> {
    let path = range_note(places);
    fs::write(&path, format!("{cidr}\n")).map_err(|cause| NodeError::Range { path, cause })
}

/// The range of the node that runs or ran last; `None` after a reboot, when there is nothing to take down either.
pub(crate) fn noted_range(places: &Places) -> Option<Cidr> {
    fs::read_to_string(range_note(places)).ok()?.trim().parse().ok()
}

/// Opens the instance's images.
pub(crate) fn open_images(places: &Places) -> Result<Arc<ImageStore>, StoreError> {
    ImageStore::open(ImageStoreConfig::new(places.state().join("images"), places.registries()))
}

/// Opens the Pod network. `api_port` is the API server's, where it runs on this node.
pub(crate) async fn open_network(
    places: &Places,
    cidr: Cidr,
    api_port: Option<u16>,
) -> Result<PodNetwork, NetworkError> {
    PodNetwork::open(NetworkConfig {
        instance: places.instance(),
        bridge: places.bridge(),
        table: places.instance(),
        pod_cidr: cidr,
        api: api_port.map(|port| ApiService { address: SERVICE, port }),
        state_dir: places.state().join("network"),
        machine_dir: "/run/kakoi/network".into(),
    })
    .await
}

/// Starts the container runtime; it takes over the Pods that an earlier one left.
pub(crate) async fn start_runtime(
    places: &Places,
    images: Arc<ImageStore>,
    network: PodNetwork,
    shutdown: CancellationToken,
) -> Result<Runtime, runtime::StartError> {
    let config = RuntimeConfig {
        state_dir: places.state().join("containers"),
        run_dir: places.run(),
        cgroup_parent: format!("/{}", places.instance()),
        version: version::KAKOI.to_owned(),
        images,
        network: Some(network),
        shim: Cow::Borrowed(runtime::SHIM),
        probe_dirs: vec![places.kubelet().join("pods")],
        etc: "/etc".into(),
        crash: CrashHook::default(),
    };
    Runtime::start(config, shutdown).await
}
