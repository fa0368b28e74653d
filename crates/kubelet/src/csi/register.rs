//! Follows the plugins' directory: a driver that puts its socket there is asked what it is and told that it is known;
//! one whose socket goes is forgotten. `CSINode` says the same to the cluster.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Error};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::driver::{Driver, connect};
use super::error::CsiError;
use super::registration::registration_client::RegistrationClient;
use super::registration::{InfoRequest, PluginInfo, RegistrationStatus};
use super::{Csi, text};
use crate::logs::watch::Watch;

/// How soon a plugin that does not answer yet is asked again; a socket is there before somebody listens.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long a plugin may take to say what it is.
const DEADLINE: Duration = Duration::from_secs(10);

/// A socket as it was found; a new one at the same path has another inode or time.
type Seen = BTreeMap<PathBuf, (u64, i64)>;

/// What was registered, by socket: the inode and the driver's name.
type Known = BTreeMap<PathBuf, ((u64, i64), String)>;

impl Csi {
    /// Follows the plugins' directory until `shutdown`; calls `changed` when a driver comes or goes.
    pub(crate) async fn follow(&self, changed: impl Fn(), shutdown: CancellationToken) {
        let directory = self.registrations();
        match open(&directory) {
            Ok(watch) => {
                shutdown.run_until_cancelled(self.follow_within(&directory, &watch, changed)).await;
            }
            Err(error) => {
                let directory = directory.display();
                tracing::warn!(%directory, %error, "CSI drivers are not known: the directory cannot be watched");
            }
        }
    }

    async fn follow_within(&self, directory: &Path, watch: &Watch, changed: impl Fn()) {
        let mut known = Known::new();
        let mut wait = FIRST_WAIT;
        loop {
            let is_complete = self.settle(&look(directory), &mut known, &changed).await;
            let pause = if is_complete { None } else { Some(wait) };
            wait = if is_complete { FIRST_WAIT } else { (wait * 2).min(LONGEST_WAIT) };
            let again = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                answer = watch.changed() => if let Err(error) = answer {
                    tracing::error!(%error, "CSI drivers are not followed any more");
                    return;
                },
                () = again => {}
            }
        }
    }

    /// Registers what is new and forgets what is gone; `false` when a plugin must be asked again.
    async fn settle(&self, seen: &Seen, known: &mut Known, changed: &impl Fn()) -> bool {
        let is_gone = |path: &PathBuf, one: &(u64, i64)| seen.get(path) != Some(one);
        let gone: Vec<PathBuf> = known
            .iter()
            .filter(|(path, (one, _))| is_gone(path, one))
            .map(|(path, _)| path.clone())
            .collect();
        let mut is_complete = true;
        for path in gone {
            let Some((_, name)) = known.remove(&path) else { continue };
            tracing::info!(driver = name, "a CSI driver has gone");
            self.drivers.send_modify(|drivers| drop(drivers.remove(&name)));
            is_complete &= self.tell_cluster(&name, None).await;
            changed();
        }
        for (path, one) in seen {
            if known.contains_key(path) {
                continue;
            }
            match self.register(path).await {
                Ok(name) => {
                    known.insert(path.clone(), (*one, name));
                    changed();
                }
                Err(error) => {
                    tracing::warn!(socket = %path.display(), %error, "a plugin is not registered; it is asked again");
                    is_complete = false;
                }
            }
        }
        is_complete
    }

    async fn register(&self, socket: &Path) -> Result<String, CsiError> {
        let mut client = RegistrationClient::new(connect(socket).await?);
        let wrong = |status: &tonic::Status| CsiError::call("GetInfo", &text(socket), status);
        let info = tokio::time::timeout(DEADLINE, client.get_info(InfoRequest {})).await;
        let info = info.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer within 10 s")));
        let info = info.map_err(|status| wrong(&status))?.into_inner();
        let registered = self.take(socket, &info).await;
        let error = registered.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let status = RegistrationStatus { plugin_registered: registered.is_ok(), error };
        let told = tokio::time::timeout(DEADLINE, client.notify_registration_status(status)).await;
        if !matches!(told, Ok(Ok(_))) {
            tracing::debug!(plugin = info.name, "the plugin did not take notice of its registration");
        }
        registered?;
        Ok(info.name)
    }

    /// Takes a driver in, once it and the cluster know of each other.
    async fn take(&self, socket: &Path, info: &PluginInfo) -> Result<(), CsiError> {
        if let Some(refusal) = refusal(info) {
            let path = socket.to_owned();
            return Err(CsiError::Connect { path, message: refusal });
        }
        let endpoint = if info.endpoint.is_empty() { socket } else { Path::new(&info.endpoint) };
        let driver = Arc::new(Driver::ask(&info.name, endpoint).await?);
        if !self.tell_cluster(&info.name, Some(&driver)).await {
            let message = "the cluster cannot be told of the driver yet (CSINode)".to_owned();
            return Err(CsiError::Connect { path: socket.to_owned(), message });
        }
        tracing::info!(driver = info.name, node = driver.node_id, "a CSI driver is registered");
        self.drivers.send_modify(|drivers| drop(drivers.insert(info.name.clone(), driver)));
        Ok(())
    }

    /// Writes or removes the driver's entry in `CSINode`; `false` when that must be tried again.
    async fn tell_cluster(&self, name: &str, driver: Option<&Driver>) -> bool {
        match self.write_csi_node(name, driver).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(driver = name, %error, "CSINode is not written; it is tried again");
                false
            }
        }
    }

    async fn write_csi_node(&self, name: &str, driver: Option<&Driver>) -> Result<(), Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let objects: Api<CSINode> = Api::all(self.client.clone());
        if let Some(labels) = driver.map(|driver| &driver.topology).filter(|labels| !labels.is_empty()) {
            let labels = json!({"metadata": {"labels": labels}});
            nodes.patch(&self.node_name, &PatchParams::default(), &Patch::Merge(labels)).await?;
        }
        match objects.get_opt(&self.node_name).await? {
            Some(mut object) => {
                if !set_driver(&mut object.spec, name, driver) {
                    return Ok(());
                }
                objects.replace(&self.node_name, &PostParams::default(), &object).await.map(drop)
            }
            None if driver.is_none() => Ok(()),
            None => {
                let mut object = owned_by(&nodes.get(&self.node_name).await?);
                set_driver(&mut object.spec, name, driver);
                objects.create(&PostParams::default(), &object).await.map(drop)
            }
        }
    }
}

fn open(directory: &Path) -> std::io::Result<Watch> {
    std::fs::create_dir_all(directory)?;
    let watch = Watch::new()?;
    watch.add(directory)?;
    Ok(watch)
}

/// The sockets in the directory.
fn look(directory: &Path) -> Seen {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let sockets = entries.filter_map(|entry| {
        let meta = entry.metadata().ok().filter(|meta| meta.file_type().is_socket())?;
        Some((entry.path(), (meta.ino(), meta.ctime_nsec())))
    });
    sockets.collect()
}

/// Why a plugin can't be a driver here.
fn refusal(info: &PluginInfo) -> Option<String> {
    if info.r#type != "CSIPlugin" {
        return Some(format!("plugins of type {} are not served by this node", info.r#type));
    }
    let is_v1 = |version: &String| {
        let version = version.trim_start_matches('v');
        version == "1" || version.starts_with("1.")
    };
    if info.supported_versions.iter().any(is_v1) {
        return None;
    }
    Some(format!(
        "the driver {} speaks none of the CSI versions 1.x: {:?}",
        info.name, info.supported_versions
    ))
}

/// A `CSINode` of this Node, without drivers yet.
fn owned_by(node: &Node) -> CSINode {
    let mut object = CSINode::default();
    object.metadata.name.clone_from(&node.metadata.name);
    object.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    }]);
    object
}

/// Puts the driver's entry in, or takes it out; `false` when nothing changes.
fn set_driver(spec: &mut CSINodeSpec, name: &str, driver: Option<&Driver>) -> bool {
    let entry = driver.map(|driver| CSINodeDriver {
        name: name.to_owned(),
        node_id: driver.node_id.clone(),
        topology_keys: Some(driver.topology.keys().cloned().collect()),
        allocatable: (driver.most_volumes > 0)
            .then(|| VolumeNodeResources { count: i32::try_from(driver.most_volumes).ok() }),
    });
    let before = spec.drivers.clone();
    spec.drivers.retain(|one| one.name != name);
    spec.drivers.extend(entry);
    spec.drivers != before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_csi_drivers_of_version_1_are_taken() {
        let info = |r#type: &str, version: &str| PluginInfo {
            r#type: r#type.to_owned(),
            name: "d".to_owned(),
            endpoint: String::new(),
            supported_versions: vec![version.to_owned()],
        };
        assert_eq!(refusal(&info("CSIPlugin", "1.0.0")), None);
        assert_eq!(refusal(&info("CSIPlugin", "v1")), None);
        assert!(refusal(&info("CSIPlugin", "0.3.0")).unwrap().contains("0.3.0"));
        assert!(refusal(&info("DevicePlugin", "v1")).unwrap().contains("DevicePlugin"));
    }

    #[test]
    fn sockets_alone_are_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("d.sock")).unwrap();
        let seen: Vec<PathBuf> = look(directory.path()).into_keys().collect();
        assert_eq!(seen, [directory.path().join("d.sock")]);
    }
}
