//! Why a driver's volume is not there, in the words that its Pod shows.

use std::path::PathBuf;

use tonic::{Code, Status};

/// What stands in the way of a CSI volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CsiError {
    #[error(
        "driver name {0} not found in the list of registered CSI drivers; run the driver's node plugin on this node"
    )]
    NoDriver(String),
    #[error(
        "the driver {driver} does not serve inline volumes: its CSIDriver must list Ephemeral in volumeLifecycleModes; use a PersistentVolumeClaim"
    )]
    NotInline { driver: String },
    #[error(
        "the volume is not attached to this node: {state}; the driver {driver} wants that (CSIDriver attachRequired), and the cluster's attach controller with the driver's attacher does it"
    )]
    NotAttached { driver: String, state: String },
    #[error("read the Secret {namespace}/{name} for the driver: {cause}")]
    Secret { namespace: String, name: String, cause: kube::Error },
    #[error("{action}: {cause}")]
    Api { action: &'static str, cause: kube::Error },
    #[error("get a token of the Pod's service account for the driver {driver}: {cause}")]
    Token { driver: String, cause: crate::token::TokenError },
    #[error("{method} of the driver {driver}: rpc error: code = {code:?} desc = {message}")]
    Call { method: &'static str, driver: String, code: Code, message: String },
    #[error("connect to the plugin at {path}: {message}", path = .path.display())]
    Connect { path: PathBuf, message: String },
    #[error("{action} {path}: {source}", path = .path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("a step broke off: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl CsiError {
    pub(super) fn call(method: &'static str, driver: &str, status: &Status) -> Self {
        let message = status.message().to_owned();
        Self::Call { method, driver: driver.to_owned(), code: status.code(), message }
    }

    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
