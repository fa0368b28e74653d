//! One driver of the node: what it said of itself, and its calls with their deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use tonic::Request;
use tonic::transport::Channel;

use super::error::CsiError;
use super::v1::node_client::NodeClient;
use super::v1::node_service_capability::{Rpc, Type, rpc};
use super::{text, v1};

/// How long a call may take, as upstream's `csiTimeout`.
const DEADLINE: Duration = Duration::from_mins(2);

/// A driver that has made itself known.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    pub(super) name: String,
    /// What the driver calls this node.
    pub(super) node_id: String,
    /// Zero: no limit is known.
    pub(super) most_volumes: i64,
    pub(super) topology: BTreeMap<String, String>,
    can: BTreeSet<i32>,
    node: NodeClient<Channel>,
}

/// Connects to a plugin's Unix socket.
pub(super) async fn connect(path: &Path) -> Result<Channel, CsiError> {
    let connected = cri::connect_unix(path).await;
    connected.map_err(|error| CsiError::Connect { path: path.to_owned(), message: cause(&error) })
}

/// The innermost cause of an error: what the system said.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

/// A call that is cut off at its deadline, should the driver not answer.
async fn call<T>(
    method: &'static str,
    driver: &str,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, CsiError> {
    let answer = tokio::time::timeout(DEADLINE + Duration::from_secs(2), answer);
    let answer = answer.await.unwrap_or_else(|_| {
        Err(tonic::Status::deadline_exceeded(format!("no answer within {} s", DEADLINE.as_secs())))
    });
    Ok(answer.map_err(|status| CsiError::call(method, driver, &status))?.into_inner())
}

impl Driver {
    /// Asks the driver at `socket` what it is on this node.
    pub(super) async fn ask(name: &str, socket: &Path) -> Result<Self, CsiError> {
        let mut node = NodeClient::new(connect(socket).await?);
        let info = node.node_get_info(timed(v1::NodeGetInfoRequest {}));
        let info = call("NodeGetInfo", name, info).await?;
        let can = node.node_get_capabilities(timed(v1::NodeGetCapabilitiesRequest {}));
        let can = call("NodeGetCapabilities", name, can).await?.capabilities;
        let can = can.into_iter().filter_map(|can| can.r#type.map(|Type::Rpc(Rpc { r#type })| r#type));
        Ok(Self {
            name: name.to_owned(),
            node_id: info.node_id,
            most_volumes: info.max_volumes_per_node,
            topology: info.accessible_topology.map(|topology| topology.segments).unwrap_or_default(),
            can: can.collect(),
            node,
        })
    }

    /// Whether volumes are mounted once for the node before they are for Pods.
    pub(super) fn can_stage(&self) -> bool {
        self.can.contains(&(rpc::Type::StageUnstageVolume as i32))
    }

    /// Whether the driver gives volumes to the Pod's `fsGroup` itself.
    pub(super) fn can_give_to_group(&self) -> bool {
        self.can.contains(&(rpc::Type::VolumeMountGroup as i32))
    }

    /// Whether the driver tells one writer of a node from several.
    pub(super) fn can_tell_writers(&self) -> bool {
        self.can.contains(&(rpc::Type::SingleNodeMultiWriter as i32))
    }

    pub(super) async fn stage(&self, request: v1::NodeStageVolumeRequest) -> Result<(), CsiError> {
        let mut node = self.node.clone();
        call("NodeStageVolume", &self.name, node.node_stage_volume(timed(request))).await.map(drop)
    }

    pub(super) async fn unstage(&self, handle: &str, staging: &Path) -> Result<(), CsiError> {
        let staging_target_path = text(staging);
        let request = v1::NodeUnstageVolumeRequest { volume_id: handle.to_owned(), staging_target_path };
        let mut node = self.node.clone();
        call("NodeUnstageVolume", &self.name, node.node_unstage_volume(timed(request))).await.map(drop)
    }

    pub(super) async fn publish(&self, request: v1::NodePublishVolumeRequest) -> Result<(), CsiError> {
        let mut node = self.node.clone();
        call("NodePublishVolume", &self.name, node.node_publish_volume(timed(request))).await.map(drop)
    }

    pub(super) async fn unpublish(&self, handle: &str, target: &Path) -> Result<(), CsiError> {
        let request =
            v1::NodeUnpublishVolumeRequest { volume_id: handle.to_owned(), target_path: text(target) };
        let mut node = self.node.clone();
        call("NodeUnpublishVolume", &self.name, node.node_unpublish_volume(timed(request))).await.map(drop)
    }
}
