//! A small CSI driver in the test's process: each volume is a tmpfs of its own, staged once and bound for each Pod.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kubelet::csi::registration::registration_server::{Registration, RegistrationServer};
use kubelet::csi::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use kubelet::csi::v1;
use kubelet::csi::v1::node_server::{Node as Service, NodeServer};
pub(super) use kubelet::csi::v1::node_service_capability::rpc::Type as Can;
use kubelet::csi::v1::node_service_capability::{Rpc, Type, rpc};
pub(super) use kubelet::csi::v1::volume_capability::AccessType as Access;
use rustix::mount::{MountFlags, UnmountFlags};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// The driver's name.
pub(super) const NAME: &str = "disk.kakoi.dev";

type Answer<T> = Result<Response<T>, Status>;

/// What the driver was asked.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Stage(v1::NodeStageVolumeRequest),
    Publish(v1::NodePublishVolumeRequest),
    Unpublish,
    Unstage,
}

#[derive(Clone)]
struct Disk {
    endpoint: PathBuf,
    can: Option<Can>,
    calls: Arc<Mutex<Vec<Call>>>,
    failure: Arc<Mutex<Option<String>>>,
    holds: watch::Receiver<bool>,
    registered: watch::Sender<bool>,
}

/// The driver, served until this is dropped.
pub(super) struct Driver {
    disk: Disk,
    hold: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Driver {
    /// Serves the driver and puts its socket into the node agent's plugins directory.
    pub(super) fn start(kubelet_dir: &Path, can: Option<Can>) -> Self {
        let (hold, holds) = watch::channel(false);
        let endpoint = kubelet_dir.join("disk.sock");
        let registered = watch::Sender::new(false);
        let disk = Disk { endpoint, can, calls: Arc::default(), failure: Arc::default(), holds, registered };
        let listen = |path: &Path| UnixListenerStream::new(UnixListener::bind(path).unwrap());
        let plugin = listen(&disk.endpoint);
        let registration = listen(&kubelet_dir.join("plugins_registry/disk.sock"));
        let mut tasks = JoinSet::new();
        let node = Server::builder().add_service(NodeServer::new(disk.clone()));
        tasks.spawn(async move { node.serve_with_incoming(plugin).await.unwrap() });
        let known = Server::builder().add_service(RegistrationServer::new(disk.clone()));
        tasks.spawn(async move { known.serve_with_incoming(registration).await.unwrap() });
        Self { disk, hold, _tasks: tasks }
    }

    /// Waits until the node agent has told the driver that it is known.
    pub(super) async fn registered(&self) {
        self.disk.registered.subscribe().wait_for(|registered| *registered).await.unwrap();
    }

    /// All that it was asked until now.
    pub(super) fn calls(&self) -> Vec<Call> {
        self.disk.calls.lock().unwrap().clone()
    }

    /// The kinds of what it was asked.
    pub(super) fn kinds(&self) -> Vec<&'static str> {
        let kind = |call: &Call| match call {
            Call::Stage(_) => "stage",
            Call::Publish(_) => "publish",
            Call::Unpublish => "unpublish",
            Call::Unstage => "unstage",
        };
        self.disk.calls.lock().unwrap().iter().map(kind).collect()
    }

    /// From now on no publication is answered.
    pub(super) fn hold_publish(&self) {
        self.hold.send_replace(true);
    }

    pub(super) fn release_publish(&self) {
        self.hold.send_replace(false);
    }

    /// The next publication fails.
    pub(super) fn fail_publish(&self, message: &str) {
        *self.disk.failure.lock().unwrap() = Some(message.to_owned());
    }
}

impl Disk {
    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }
}

fn is_mounted(path: &str) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == Some(path))
}

fn unmount(path: &str) {
    while is_mounted(path) {
        rustix::mount::unmount(path, UnmountFlags::empty()).unwrap();
    }
}

#[tonic::async_trait]
impl Registration for Disk {
    async fn get_info(&self, _: Request<InfoRequest>) -> Answer<PluginInfo> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: NAME.into(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        status: Request<RegistrationStatus>,
    ) -> Answer<RegistrationStatusResponse> {
        assert!(status.get_ref().plugin_registered, "{:?}", status.get_ref());
        self.registered.send_replace(true);
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl Service for Disk {
    async fn node_get_info(&self, _: Request<v1::NodeGetInfoRequest>) -> Answer<v1::NodeGetInfoResponse> {
        Ok(Response::new(v1::NodeGetInfoResponse { node_id: "n".into(), ..Default::default() }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<v1::NodeGetCapabilitiesRequest>,
    ) -> Answer<v1::NodeGetCapabilitiesResponse> {
        let can = [Some(rpc::Type::StageUnstageVolume), self.can].into_iter().flatten();
        let capabilities =
            can.map(|can| v1::NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: can.into() })) });
        Ok(Response::new(v1::NodeGetCapabilitiesResponse { capabilities: capabilities.collect() }))
    }

    async fn node_stage_volume(
        &self,
        request: Request<v1::NodeStageVolumeRequest>,
    ) -> Answer<v1::NodeStageVolumeResponse> {
        let request = request.into_inner();
        let at = request.staging_target_path.as_str();
        if !is_mounted(at) {
            rustix::mount::mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).unwrap();
        }
        self.note(Call::Stage(request));
        Ok(Response::new(v1::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<v1::NodeUnstageVolumeRequest>,
    ) -> Answer<v1::NodeUnstageVolumeResponse> {
        unmount(&request.into_inner().staging_target_path);
        self.note(Call::Unstage);
        Ok(Response::new(v1::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<v1::NodePublishVolumeRequest>,
    ) -> Answer<v1::NodePublishVolumeResponse> {
        self.holds.clone().wait_for(|holds| !holds).await.unwrap();
        if let Some(message) = self.failure.lock().unwrap().take() {
            return Err(Status::internal(message));
        }
        let request = request.into_inner();
        let at = request.target_path.as_str();
        std::fs::create_dir_all(at).unwrap();
        if !is_mounted(at) {
            rustix::mount::mount_bind(request.staging_target_path.as_str(), at).unwrap();
        }
        self.note(Call::Publish(request));
        Ok(Response::new(v1::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<v1::NodeUnpublishVolumeRequest>,
    ) -> Answer<v1::NodeUnpublishVolumeResponse> {
        let at = request.into_inner().target_path;
        unmount(&at);
        let _ = std::fs::remove_dir(&at);
        self.note(Call::Unpublish);
        Ok(Response::new(v1::NodeUnpublishVolumeResponse {}))
    }
}
