//! `runtime.v1.RuntimeService`.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use cri::v1::runtime_service_server::RuntimeService;
#[allow(clippy::wildcard_imports, reason = "a service names most messages of its package")]
use cri::v1::*;
use stream::remotecommand::Streams;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::{RuntimeServer, list};
use crate::core::now;
use crate::error::{Error, Result as Outcome};
use crate::record::ContainerPhase;
use crate::streaming::{self, Ticket};
use crate::{container, metrics, sandbox, stats};

type Answer<T> = Result<Response<T>, Status>;

/// The name under which the runtime is known (`kubectl get node -o wide` shows it).
const NAME: &str = "kakoi";

/// The version of the kubelet's runtime API that `Version` answers, unchanged since 2016.
const KUBELET_API: &str = "0.1.0";

fn done<T: Default>(outcome: Outcome<()>) -> Answer<T> {
    outcome?;
    Ok(Response::new(T::default()))
}

#[tonic::async_trait]
impl RuntimeService for RuntimeServer {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(VersionResponse {
            version: KUBELET_API.to_owned(),
            runtime_name: NAME.to_owned(),
            runtime_version: self.0.config.version.clone(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        crate::handler::probed(&self.0).await?;
        Ok(Response::new(self.describe(request.into_inner().verbose).await))
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        let linux = LinuxRuntimeConfiguration { cgroup_driver: self.0.config.cgroup_driver.into() };
        Ok(Response::new(RuntimeConfigResponse { linux: Some(linux) }))
    }

    /// The Pod network has its range from its own configuration, so the kubelet's is only noted.
    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let network = request.into_inner().runtime_config.and_then(|config| config.network_config);
        tracing::debug!(
            pod_cidr = network.map(|network| network.pod_cidr),
            "the kubelet told its Pods' range"
        );
        Ok(Response::new(UpdateRuntimeConfigResponse {}))
    }

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Answer<Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>> {
        let lagged =
            |_| Status::data_loss("the listener was too slow and lost events; list the containers again");
        let events = BroadcastStream::new(self.0.events.subscribe()).map(move |event| event.map_err(lagged));
        let shutdown = self.0.shutdown.clone();
        let ended = Box::pin(async move { shutdown.cancelled().await });
        Ok(Response::new(Box::pin(futures::StreamExt::take_until(events, ended))))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let verb = sandbox::run(Arc::clone(&self.0), request.into_inner());
        let pod_sandbox_id = self.0.complete(verb).await?;
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let verb = sandbox::stop(Arc::clone(&self.0), self.sandbox_id(request.into_inner().pod_sandbox_id));
        done(self.0.complete(verb).await)
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let verb = sandbox::remove(Arc::clone(&self.0), self.sandbox_id(request.into_inner().pod_sandbox_id));
        done(self.0.complete(verb).await)
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let request = request.into_inner();
        let sandbox = self.0.table.sandbox(&self.sandbox_id(request.pod_sandbox_id))?;
        let record = sandbox.record();
        let mut info = BTreeMap::new();
        if request.verbose {
            let pid = sandbox.shim().map(|shim| shim.pid());
            let detail = serde_json::json!({ "pid": pid, "record": *record, "addresses": record.addresses });
            info.insert("info".to_owned(), detail.to_string());
        }
        let containers = self.0.table.containers_of(&sandbox.id);
        let status = |container: &Arc<crate::state::Container>| {
            container::status::status(&container.record(), Some(&sandbox))
        };
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(sandbox::status::status(&record)),
            info,
            containers_statuses: containers.iter().map(status).collect(),
            timestamp: now(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        let items = self.sandboxes(request.into_inner().filter);
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> list::Answer<StreamPodSandboxesResponse> {
        let items = self.sandboxes(request.into_inner().filter);
        Ok(list::stream(items, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        let mut request = request.into_inner();
        request.pod_sandbox_id = self.sandbox_id(request.pod_sandbox_id);
        let verb = sandbox::update_resources(Arc::clone(&self.0), request);
        done(self.0.complete(verb).await)
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let mut request = request.into_inner();
        request.pod_sandbox_id = self.sandbox_id(request.pod_sandbox_id);
        let verb = container::create(Arc::clone(&self.0), request);
        let container_id = self.0.complete(verb).await?;
        Ok(Response::new(CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let verb =
            container::start(Arc::clone(&self.0), self.container_id(request.into_inner().container_id));
        done(self.0.complete(verb).await)
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let request = request.into_inner();
        let verb =
            container::stop(Arc::clone(&self.0), self.container_id(request.container_id), request.timeout);
        done(self.0.complete(verb).await)
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let verb =
            container::remove(Arc::clone(&self.0), self.container_id(request.into_inner().container_id));
        done(self.0.complete(verb).await)
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        let containers = self.containers(request.into_inner().filter);
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> list::Answer<StreamContainersResponse> {
        let containers = self.containers(request.into_inner().filter);
        Ok(list::stream(containers, |containers| StreamContainersResponse { containers }))
    }

    /// Refused: a process can't be restored into the namespaces of a Pod with a user namespace (criu#2651).
    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        Err(Status::unimplemented(
            "containers can't be checkpointed by this runtime: CRIU can't restore a process into the namespaces of a \
             Pod that has a user namespace",
        ))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.0.table.container(&self.container_id(request.container_id))?;
        let record = container.record();
        let sandbox = self.0.table.find_sandbox(&container.sandbox);
        let mut info = BTreeMap::new();
        if request.verbose {
            let pid = match record.phase {
                ContainerPhase::Running { pid, .. } => Some(pid),
                _ => None,
            };
            let detail = serde_json::json!({ "pid": pid, "sandboxID": record.sandbox, "record": *record });
            info.insert("info".to_owned(), detail.to_string());
        }
        let status = Some(container::status::status(&record, sandbox.as_deref()));
        Ok(Response::new(ContainerStatusResponse { status, info }))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let wanted = request.linux.ok_or_else(|| Error::missing("linux"))?;
        let id = self.container_id(request.container_id);
        let verb = container::update_resources(Arc::clone(&self.0), id, wanted);
        done(self.0.complete(verb).await)
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        let verb =
            container::reopen_log(Arc::clone(&self.0), self.container_id(request.into_inner().container_id));
        done(self.0.complete(verb).await)
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let mut request = request.into_inner();
        request.container_id = self.container_id(request.container_id);
        let verb = streaming::exec_sync(Arc::clone(&self.0), request);
        let output = self.0.complete(verb).await?;
        Ok(Response::new(ExecSyncResponse {
            stdout: output.stdout,
            stderr: output.stderr,
            exit_code: output.code,
        }))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let request = request.into_inner();
        let container = self.running(request.container_id)?;
        if request.cmd.is_empty() {
            return Err(Error::missing("cmd").into());
        }
        let ExecRequest { stdin, stdout, stderr, tty, .. } = request;
        let streams = asked(Streams { stdin, stdout, stderr, tty })?;
        let ticket = Ticket::Exec { container: container.id.clone(), command: request.cmd, streams };
        Ok(Response::new(ExecResponse { url: self.0.streaming.offer(ticket)? }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let AttachRequest { container_id, stdin, stdout, stderr, .. } = request.into_inner();
        let container = self.running(container_id)?;
        // A terminal has one stream, whatever is asked for: the container was made with it.
        let tty = container.record().config.tty;
        let streams = asked(Streams { stdin, stdout, stderr: stderr && !tty, tty })?;
        let ticket = Ticket::Attach { container: container.id.clone(), streams };
        Ok(Response::new(AttachResponse { url: self.0.streaming.offer(ticket)? }))
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        let sandbox = self.sandbox_id(request.into_inner().pod_sandbox_id);
        self.0.table.sandbox(&sandbox)?.live_shim()?;
        Ok(Response::new(PortForwardResponse {
            url: self.0.streaming.offer(Ticket::PortForward { sandbox })?,
        }))
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        let stats =
            stats::container(Arc::clone(&self.0), self.container_id(request.into_inner().container_id))
                .await?;
        Ok(Response::new(ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let stats = stats::containers(Arc::clone(&self.0), request.into_inner().filter).await?;
        Ok(Response::new(ListContainerStatsResponse { stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        let stats =
            stats::sandbox(Arc::clone(&self.0), self.sandbox_id(request.into_inner().pod_sandbox_id)).await?;
        Ok(Response::new(PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let stats = stats::sandboxes(Arc::clone(&self.0), request.into_inner().filter).await?;
        Ok(Response::new(ListPodSandboxStatsResponse { stats }))
    }

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> list::Answer<StreamContainerStatsResponse> {
        let stats = stats::containers(Arc::clone(&self.0), request.into_inner().filter).await?;
        Ok(list::stream(stats, |container_stats| StreamContainerStatsResponse { container_stats }))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> list::Answer<StreamPodSandboxStatsResponse> {
        let stats = stats::sandboxes(Arc::clone(&self.0), request.into_inner().filter).await?;
        Ok(list::stream(stats, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        Ok(Response::new(ListMetricDescriptorsResponse { descriptors: metrics::descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        let pod_metrics = metrics::all(Arc::clone(&self.0)).await?;
        Ok(Response::new(ListPodSandboxMetricsResponse { pod_metrics }))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> list::Answer<StreamPodSandboxMetricsResponse> {
        let metrics = metrics::all(Arc::clone(&self.0)).await?;
        Ok(list::stream(metrics, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics,
        }))
    }
}

impl RuntimeServer {
    /// The whole ID of the sandbox that a request means.
    fn sandbox_id(&self, text: String) -> String {
        self.0.table.whole_sandbox_id(text)
    }

    /// The whole ID of the container that a request means.
    fn container_id(&self, text: String) -> String {
        self.0.table.whole_container_id(text)
    }

    fn sandboxes(&self, filter: Option<PodSandboxFilter>) -> Vec<PodSandbox> {
        let mut filter = filter.unwrap_or_default();
        filter.id = self.sandbox_id(filter.id);
        let wanted = self.0.table.sandboxes_where(|record| sandbox::status::matches(record, &filter));
        wanted.iter().map(|sandbox| sandbox::status::item(&sandbox.record())).collect()
    }

    fn containers(&self, filter: Option<ContainerFilter>) -> Vec<Container> {
        let mut filter = filter.unwrap_or_default();
        filter.id = self.container_id(filter.id);
        filter.pod_sandbox_id = self.sandbox_id(filter.pod_sandbox_id);
        let wanted = self.0.table.containers_where(|record| container::status::matches(record, &filter));
        wanted.iter().map(|container| container::status::item(&container.record())).collect()
    }

    fn running(&self, id: String) -> Outcome<Arc<crate::state::Container>> {
        let container = self.0.table.container(&self.container_id(id))?;
        if container.is_running() {
            return Ok(container);
        }
        Err(Error::WrongState(format!("the container {} does not run", container.id)))
    }

    async fn network_condition(&self) -> RuntimeCondition {
        let (status, reason, message) = match &self.0.config.network {
            None => {
                (false, "NetworkNotConfigured", "the runtime was started without a Pod network".to_owned())
            }
            Some(network) => match network.probe().await {
                Ok(()) => (true, "", String::new()),
                Err(error) => (false, "NetworkPluginNotReady", error.to_string()),
            },
        };
        RuntimeCondition { r#type: "NetworkReady".to_owned(), status, reason: reason.to_owned(), message }
    }

    /// The built-in handler and the others; what the node itself lacks, none of them has.
    fn handlers(&self) -> Vec<RuntimeHandler> {
        let on_node = self.0.features.user_namespaces;
        let handler = |name: &str, recursive_read_only_mounts, user_namespaces| RuntimeHandler {
            name: name.to_owned(),
            features: Some(RuntimeHandlerFeatures { recursive_read_only_mounts, user_namespaces }),
        };
        let others = self.0.handlers.all().iter().map(|other| {
            let features = other.features();
            handler(&other.name, features.recursive_read_only, features.user_namespaces && on_node)
        });
        std::iter::once(handler("", true, on_node)).chain(others).collect()
    }

    async fn describe(&self, verbose: bool) -> StatusResponse {
        let features = &self.0.features;
        let ready =
            |name: &str| RuntimeCondition { r#type: name.to_owned(), status: true, ..Default::default() };
        let network = self.network_condition().await;
        let mut info = BTreeMap::new();
        if verbose {
            let detail = serde_json::json!({
                "userNamespaces": { "supported": features.user_namespaces, "reason": features.reason },
                "notes": features.notes,
                "handlers": self.0.handlers.all().iter().map(detail_of).collect::<Vec<_>>(),
                "stateDir": self.0.config.state_dir,
                "cgroupParent": self.0.config.cgroup_parent,
            });
            info.insert("config".to_owned(), detail.to_string());
        }
        StatusResponse {
            status: Some(RuntimeStatus { conditions: vec![ready("RuntimeReady"), network] }),
            info,
            runtime_handlers: self.handlers(),
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: features.user_namespaces,
            }),
        }
    }
}

/// A handler for people.
fn detail_of(handler: &crate::handler::Handler) -> serde_json::Value {
    let features = handler.features();
    serde_json::json!({
        "name": handler.name,
        "program": handler.program,
        "version": features.version,
        "userNamespaces": { "supported": features.user_namespaces, "reason": features.reason },
    })
}

/// The streams of a session, if the request may have them (CRI, `ExecRequest` and `AttachRequest`).
fn asked(streams: Streams) -> Outcome<Streams> {
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(Error::Invalid("a session needs one of stdin, stdout and stderr".to_owned()));
    }
    if streams.tty && streams.stderr {
        return Err(Error::Invalid("a terminal has no stderr of its own: ask for stdout alone".to_owned()));
    }
    Ok(streams)
}
