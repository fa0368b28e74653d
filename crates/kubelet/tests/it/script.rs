//! A container runtime that runs nothing: it keeps CRI's books, does as the test says, and fails when told to.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use cri::v1;
use cri::v1::image_service_server::ImageService;
use cri::v1::runtime_service_server::RuntimeService;
use jiff::Timestamp;
use tokio::sync::{Notify, broadcast};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use crate::node::until;

type Answer<T> = Result<Response<T>, Status>;
type Events = Pin<Box<dyn Stream<Item = Result<v1::ContainerEventResponse, Status>> + Send>>;

/// A sandbox in the books.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) config: v1::PodSandboxConfig,
    pub(crate) is_ready: bool,
    created_at: i64,
    ip: String,
}

/// A container in the books.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) sandbox: String,
    pub(crate) config: v1::ContainerConfig,
    pub(crate) state: v1::ContainerState,
    created_at: i64,
    started_at: i64,
    finished_at: i64,
    exit_code: i32,
}

#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) sandboxes: BTreeMap<String, Sandbox>,
    pub(crate) containers: BTreeMap<String, Container>,
    pub(crate) images: BTreeSet<String>,
    /// Numeric users that images declare.
    pub(crate) image_users: BTreeMap<String, i64>,
    /// Names of the calls that change something, in order.
    pub(crate) calls: Vec<String>,
    /// Commands that fail in containers.
    pub(crate) failing: BTreeSet<String>,
    /// What resizes asked for.
    pub(crate) updates: Vec<v1::LinuxContainerResources>,
    /// Containers, by name, whose stop waits until the test lets them go.
    held: BTreeMap<String, Arc<Notify>>,
    faults: HashMap<&'static str, VecDeque<Status>>,
    next: u32,
}

/// The runtime; clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) books: Arc<Mutex<Books>>,
    pub(crate) events: Arc<Mutex<Option<broadcast::Sender<v1::ContainerEventResponse>>>>,
    /// Pulls wait for this while `holds_pulls`.
    pub(crate) release: Arc<Notify>,
    pub(crate) holds_pulls: Arc<std::sync::atomic::AtomicBool>,
    pub(crate) has_userns: bool,
    pub(crate) has_events: bool,
    /// The process that verbose status names.
    pub(crate) pid: Option<u32>,
    pub(crate) time: Time,
}

/// What the runtime's clock says.
#[derive(Clone)]
pub(crate) struct Time(pub(crate) Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl std::fmt::Debug for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", (self.0)())
    }
}

impl Script {
    pub(crate) fn new() -> Self {
        Self {
            books: Arc::default(),
            events: Arc::new(Mutex::new(Some(broadcast::channel(256).0))),
            release: Arc::default(),
            holds_pulls: Arc::default(),
            has_userns: true,
            has_events: true,
            pid: None,
            time: Time(Arc::new(Timestamp::now)),
        }
    }

    fn now(&self) -> i64 {
        i64::try_from((self.time.0)().as_nanosecond()).unwrap()
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }

    /// The next call of `method` fails with this sentence.
    pub(crate) fn fail_next(&self, method: &'static str, message: &str) {
        self.books().faults.entry(method).or_default().push_back(Status::unknown(message));
    }

    /// Containers of this name do not stop until they are let go of.
    pub(crate) fn hold(&self, name: &str) {
        self.books().held.insert(name.to_owned(), Arc::default());
    }

    pub(crate) fn let_go(&self, name: &str) {
        if let Some(held) = self.books().held.remove(name) {
            held.notify_one();
        }
    }

    /// Ends the newest run of a container.
    pub(crate) fn exit(&self, name: &str, exit_code: i32) {
        let id = {
            let mut books = self.books();
            let running = books.containers.values_mut().filter(|container| {
                name_of(container) == name && container.state == v1::ContainerState::ContainerRunning
            });
            let container = running.last().expect("such a container runs");
            container.state = v1::ContainerState::ContainerExited;
            container.exit_code = exit_code;
            container.finished_at = self.now();
            container.id.clone()
        };
        self.tell(&id);
    }

    /// All runs of a container that the books still have, the oldest first.
    pub(crate) fn runs(&self, name: &str) -> Vec<Container> {
        let books = self.books();
        books.containers.values().filter(|container| name_of(container) == name).cloned().collect()
    }

    /// Waits until a container was started for the `count`th time, and returns that run.
    pub(crate) async fn wait_for_run(&self, name: &str, count: usize) -> Container {
        let is_running =
            |run: &Container| run.state != v1::ContainerState::ContainerCreated && run.started_at > 0;
        until(&format!("{name} runs for the {count}. time"), async || {
            self.runs(name).get(count - 1).is_some_and(is_running)
        })
        .await;
        self.runs(name).swap_remove(count - 1)
    }

    async fn until_let_go(&self, container: &str) {
        let held = {
            let books = self.books();
            books.containers.get(container).and_then(|container| books.held.get(name_of(container)).cloned())
        };
        if let Some(held) = held {
            held.notified().await;
        }
    }

    /// The sandbox and all in it die, as when their supervisor is killed.
    pub(crate) fn lose_sandbox(&self) {
        let mut ids = Vec::new();
        {
            let mut books = self.books();
            for sandbox in books.sandboxes.values_mut() {
                sandbox.is_ready = false;
                ids.push(sandbox.id.clone());
            }
            for container in books.containers.values_mut() {
                end(container, 137, self.now());
            }
        }
        for id in &ids {
            self.tell(id);
        }
    }

    /// All event streams end; further ones are served.
    pub(crate) fn break_events(&self) {
        *self.events.lock().unwrap() = Some(broadcast::channel(256).0);
    }

    /// How often a call was made.
    pub(crate) fn count(&self, call: &str) -> usize {
        self.books().calls.iter().filter(|made| *made == call).count()
    }

    fn note(&self, method: &'static str) -> Result<MutexGuard<'_, Books>, Status> {
        let mut books = self.books();
        books.calls.push(method.to_owned());
        match books.faults.get_mut(method).and_then(VecDeque::pop_front) {
            Some(fault) => Err(fault),
            None => Ok(books),
        }
    }

    fn tell(&self, id: &str) {
        let metadata = {
            let books = self.books();
            let sandbox = books.containers.get(id).map_or(id, |container| container.sandbox.as_str());
            books.sandboxes.get(sandbox).and_then(|sandbox| sandbox.config.metadata.clone())
        };
        let event = v1::ContainerEventResponse {
            container_id: id.to_owned(),
            pod_sandbox_status: Some(v1::PodSandboxStatus { metadata, ..Default::default() }),
            ..Default::default()
        };
        if let Some(events) = self.events.lock().unwrap().as_ref() {
            let _ = events.send(event);
        }
    }
}

fn end(container: &mut Container, exit_code: i32, at: i64) {
    if container.state == v1::ContainerState::ContainerRunning {
        container.state = v1::ContainerState::ContainerExited;
        container.exit_code = exit_code;
        container.finished_at = at;
    }
}

fn name_of(container: &Container) -> &str {
    &container.config.metadata.as_ref().unwrap().name
}

fn matches(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

impl Sandbox {
    fn state(&self) -> v1::PodSandboxState {
        if self.is_ready { v1::PodSandboxState::SandboxReady } else { v1::PodSandboxState::SandboxNotready }
    }
}

impl Container {
    /// The value of a variable.
    pub(crate) fn env(&self, name: &str) -> Option<String> {
        let found = self.config.envs.iter().find(|env| env.key == name);
        found.map(|env| String::from_utf8(env.value.clone()).unwrap())
    }

    fn status(&self) -> v1::ContainerStatus {
        let reason = match (self.state, self.exit_code) {
            (v1::ContainerState::ContainerExited, 0) => "Completed",
            (v1::ContainerState::ContainerExited, _) => "Error",
            _ => "",
        };
        v1::ContainerStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state.into(),
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            exit_code: self.exit_code,
            image: self.config.image.clone(),
            image_ref: "registry.test/image@sha256:0".into(),
            reason: reason.into(),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            ..Default::default()
        }
    }
}

#[tonic::async_trait]
impl RuntimeService for Script {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            runtime_name: "script".into(),
            runtime_version: "1".into(),
            ..Default::default()
        }))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        let condition =
            |name: &str| v1::RuntimeCondition { r#type: name.into(), status: true, ..Default::default() };
        let features = v1::RuntimeHandlerFeatures { user_namespaces: self.has_userns, ..Default::default() };
        Ok(Response::new(v1::StatusResponse {
            status: Some(v1::RuntimeStatus {
                conditions: vec![condition("RuntimeReady"), condition("NetworkReady")],
            }),
            runtime_handlers: vec![v1::RuntimeHandler { name: String::new(), features: Some(features) }],
            ..Default::default()
        }))
    }

    async fn get_container_events(&self, _: Request<v1::GetEventsRequest>) -> Answer<Events> {
        if !self.has_events {
            return Err(Status::unimplemented("no events here"));
        }
        let receiver = self.events.lock().unwrap().as_ref().unwrap().subscribe();
        let events = BroadcastStream::new(receiver).filter_map(|event| event.ok().map(Ok));
        Ok(Response::new(Box::pin(events)))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        let id = {
            let mut books = self.note("run_pod_sandbox")?;
            books.next += 1;
            let id = format!("sandbox-{}", books.next);
            let config = request.into_inner().config.unwrap();
            let ip = format!("10.99.0.{}", books.next);
            let sandbox = Sandbox { id: id.clone(), config, is_ready: true, created_at: self.now(), ip };
            books.sandboxes.insert(id.clone(), sandbox);
            id
        };
        self.tell(&id);
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        {
            let mut books = self.note("stop_pod_sandbox")?;
            if let Some(sandbox) = books.sandboxes.get_mut(&id) {
                sandbox.is_ready = false;
            }
            books
                .containers
                .values_mut()
                .filter(|container| container.sandbox == id)
                .for_each(|c| end(c, 137, self.now()));
        }
        self.tell(&id);
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut books = self.note("remove_pod_sandbox")?;
        books.sandboxes.remove(&id);
        books.containers.retain(|_, container| container.sandbox != id);
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let books = self.books();
        let fitting = books
            .sandboxes
            .values()
            .filter(|sandbox| matches(&sandbox.config.labels, &filter.label_selector));
        let items = fitting.map(|sandbox| v1::PodSandbox {
            id: sandbox.id.clone(),
            metadata: sandbox.config.metadata.clone(),
            state: sandbox.state().into(),
            created_at: sandbox.created_at,
            labels: sandbox.config.labels.clone(),
            ..Default::default()
        });
        Ok(Response::new(v1::ListPodSandboxResponse { items: items.collect() }))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let books = self.books();
        let sandbox = books.sandboxes.get(&id).ok_or_else(|| Status::not_found("no such sandbox"))?;
        let linux = sandbox.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = linux.and_then(|context| context.namespace_options.clone());
        let status = v1::PodSandboxStatus {
            id,
            metadata: sandbox.config.metadata.clone(),
            state: sandbox.state().into(),
            created_at: sandbox.created_at,
            network: Some(v1::PodSandboxNetworkStatus { ip: sandbox.ip.clone(), additional_ips: vec![] }),
            linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options }) }),
            ..Default::default()
        };
        Ok(Response::new(v1::PodSandboxStatusResponse { status: Some(status), ..Default::default() }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let mut books = self.note("create_container")?;
        // As the runtimes: what saw the sandbox just before it was lost gets no container in it.
        let sandbox = books.sandboxes.get(&request.pod_sandbox_id);
        if sandbox.is_some_and(|sandbox| !sandbox.is_ready) {
            return Err(Status::failed_precondition("the sandbox is not ready"));
        }
        books.next += 1;
        let id = format!("container-{:04}", books.next);
        let container = Container {
            id: id.clone(),
            sandbox: request.pod_sandbox_id,
            config: request.config.unwrap(),
            state: v1::ContainerState::ContainerCreated,
            created_at: self.now(),
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
        };
        books.containers.insert(id.clone(), container);
        Ok(Response::new(v1::CreateContainerResponse { container_id: id }))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        let id = request.into_inner().container_id;
        {
            let mut books = self.books();
            let container = books.containers.get_mut(&id).unwrap();
            container.started_at = self.now();
            container.state = v1::ContainerState::ContainerRunning;
        }
        let outcome = self.note("start_container").map(drop);
        if outcome.is_err() {
            end(self.books().containers.get_mut(&id).unwrap(), 128, self.now());
        }
        self.tell(&id);
        outcome?;
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        let request = request.into_inner();
        {
            let mut books = self.note("stop_container")?;
            books.calls.push(format!("stop_container {}", request.timeout));
        }
        self.until_let_go(&request.container_id).await;
        {
            let mut books = self.books();
            if let Some(container) = books.containers.get_mut(&request.container_id) {
                end(container, 143, self.now());
            }
        }
        self.tell(&request.container_id);
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        self.note("remove_container")?.containers.remove(&request.into_inner().container_id);
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let wanted = filter.state.map(|state| state.state());
        let books = self.books();
        let fitting = books.containers.values().filter(|container| {
            matches(&container.config.labels, &filter.label_selector)
                && wanted.is_none_or(|wanted| wanted == container.state)
        });
        let containers = fitting.map(|container| v1::Container {
            id: container.id.clone(),
            pod_sandbox_id: container.sandbox.clone(),
            metadata: container.config.metadata.clone(),
            state: container.state.into(),
            created_at: container.created_at,
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
            ..Default::default()
        });
        Ok(Response::new(v1::ListContainersResponse { containers: containers.collect() }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let id = request.into_inner().container_id;
        let books = self.books();
        let container = books.containers.get(&id).ok_or_else(|| Status::not_found("no such container"))?;
        Ok(Response::new(v1::ContainerStatusResponse {
            status: Some(container.status()),
            info: self.pid.iter().map(|pid| ("info".to_owned(), format!("{{\"pid\":{pid}}}"))).collect(),
        }))
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        let request = request.into_inner();
        let mut books = self.books();
        books.calls.push(format!("exec {}", request.cmd.join(" ")));
        let fails = books.failing.contains(&request.cmd.join(" "));
        let stderr = if fails { b"no".to_vec() } else { Vec::new() };
        Ok(Response::new(v1::ExecSyncResponse { exit_code: i32::from(fails), stderr, ..Default::default() }))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        let mut books = self.note("update_container_resources")?;
        books.updates.extend(request.into_inner().linux);
        Ok(Response::new(v1::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        _: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        drop(self.note("reopen_container_log")?);
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }
}

#[tonic::async_trait]
impl ImageService for Script {
    async fn list_images(&self, _: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        Ok(Response::new(v1::ListImagesResponse::default()))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let books = self.books();
        let uid = books.image_users.get(&name).map(|uid| v1::Int64Value { value: *uid });
        let known = books.images.contains(&name);
        let image = known.then(|| v1::Image { id: format!("sha256:{name}"), uid, ..Default::default() });
        Ok(Response::new(v1::ImageStatusResponse { image, ..Default::default() }))
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        drop(self.note("pull_image")?);
        if self.holds_pulls.load(std::sync::atomic::Ordering::SeqCst) {
            self.release.notified().await;
        }
        let name = request.into_inner().image.unwrap_or_default().image;
        self.books().images.insert(name.clone());
        Ok(Response::new(v1::PullImageResponse { image_ref: name }))
    }
}
