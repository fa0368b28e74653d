//! A small CSI driver: volumes are directories of the node, or filesystems of the kind that an inline volume names.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kubelet::csi::registration::registration_server::{Registration, RegistrationServer};
use kubelet::csi::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use kubelet::csi::v1;
use kubelet::csi::v1::node_server::{Node as Service, NodeServer};
use kubelet::csi::v1::node_service_capability::{Rpc, Type, rpc};
use tests::Kept;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// The driver's name.
pub(crate) const NAME: &str = "disk.kakoi.dev";

type Answer<T> = Result<Response<T>, Status>;

/// What the driver was asked.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Stage(v1::NodeStageVolumeRequest),
    Publish(v1::NodePublishVolumeRequest),
    Unpublish(String),
    Unstage(String),
}

#[derive(Clone)]
struct Disk {
    node: Arc<Kept>,
    endpoint: PathBuf,
    data: PathBuf,
    calls: Arc<Mutex<Vec<Call>>>,
}

/// The driver, served until this is dropped.
pub(crate) struct Driver {
    data: PathBuf,
    calls: Arc<Mutex<Vec<Call>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Driver {
    /// Serves the driver and puts its socket into the node's plugins directory.
    pub(crate) fn start(node: &Arc<Kept>) -> Self {
        let (data, calls) = (node.root().join("disk"), Arc::default());
        let endpoint = node.root().join("disk.sock");
        let disk = Disk { node: Arc::clone(node), endpoint, data: data.clone(), calls: Arc::clone(&calls) };
        let socket = node.root().join("var/lib/kubelet/plugins_registry/disk.sock");
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || serve(&disk, &socket, stopped));
        Self { data, calls, stop: Some(stop), thread: Some(thread) }
    }

    /// Where a volume's files are.
    pub(crate) fn volume(&self, handle: &str) -> PathBuf {
        self.data.join(handle)
    }

    /// All that it was asked until now.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(disk: &Disk, socket: &Path, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listen = |path: &Path| {
            let _ = std::fs::remove_file(path);
            UnixListenerStream::new(UnixListener::bind(path).unwrap())
        };
        let plugin = listen(&disk.endpoint);
        let registration = listen(socket);
        let node = Server::builder().add_service(NodeServer::new(disk.clone())).serve_with_incoming(plugin);
        let known = Server::builder().add_service(RegistrationServer::new(disk.clone()));
        tokio::select! {
            _ = node => {}
            _ = known.serve_with_incoming(registration) => {}
            _ = stopped => {}
        }
    });
    let _ = std::fs::remove_file(socket);
}

impl Disk {
    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }

    fn run(&self, line: &str) -> Result<(), Status> {
        let ran = self.node.shell(line);
        if ran.code == 0 { Ok(()) } else { Err(Status::internal(ran.stderr)) }
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
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl Service for Disk {
    async fn node_get_info(&self, _: Request<v1::NodeGetInfoRequest>) -> Answer<v1::NodeGetInfoResponse> {
        let node_id = "the-node-as-the-driver-calls-it".into();
        let topology = v1::Topology { segments: [("disk.kakoi.dev/rack".to_owned(), "7".to_owned())].into() };
        Ok(Response::new(v1::NodeGetInfoResponse {
            node_id,
            max_volumes_per_node: 8,
            accessible_topology: Some(topology),
        }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<v1::NodeGetCapabilitiesRequest>,
    ) -> Answer<v1::NodeGetCapabilitiesResponse> {
        let stages = Type::Rpc(Rpc { r#type: rpc::Type::StageUnstageVolume.into() });
        let capabilities = vec![v1::NodeServiceCapability { r#type: Some(stages) }];
        Ok(Response::new(v1::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_stage_volume(
        &self,
        request: Request<v1::NodeStageVolumeRequest>,
    ) -> Answer<v1::NodeStageVolumeResponse> {
        let request = request.into_inner();
        let (from, to) = (self.data.join(&request.volume_id), request.staging_target_path.clone());
        self.run(&format!("mkdir -p {0} && mountpoint -q {to} || mount --bind {0} {to}", from.display()))?;
        self.note(Call::Stage(request));
        Ok(Response::new(v1::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<v1::NodeUnstageVolumeRequest>,
    ) -> Answer<v1::NodeUnstageVolumeResponse> {
        let request = request.into_inner();
        let at = &request.staging_target_path;
        self.run(&format!("! mountpoint -q {at} || umount {at}"))?;
        self.note(Call::Unstage(request.volume_id));
        Ok(Response::new(v1::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<v1::NodePublishVolumeRequest>,
    ) -> Answer<v1::NodePublishVolumeResponse> {
        let request = request.into_inner();
        let (from, to) = (&request.staging_target_path, &request.target_path);
        if from.is_empty() {
            let kind = request.volume_context.get("filesystem").map_or("tmpfs", String::as_str);
            self.run(&format!("mkdir -p {to} && mount -t {kind} {kind} {to}"))?;
        } else {
            self.run(&format!("mkdir -p {to} && mount --bind {from} {to}"))?;
        }
        self.note(Call::Publish(request));
        Ok(Response::new(v1::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<v1::NodeUnpublishVolumeRequest>,
    ) -> Answer<v1::NodeUnpublishVolumeResponse> {
        let request = request.into_inner();
        let at = &request.target_path;
        self.run(&format!("! mountpoint -q {at} || umount {at}; [ ! -d {at} ] || rmdir {at}"))?;
        self.note(Call::Unpublish(request.volume_id));
        Ok(Response::new(v1::NodeUnpublishVolumeResponse {}))
    }
}
