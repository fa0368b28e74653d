//! The container runtime behind CRI: each call with its deadline, errors as the runtime worded them.

pub(crate) mod event;
pub(crate) mod observe;

use std::collections::BTreeMap;
use std::time::Duration;

use cri::{Connection, ImageClient, RuntimeClient, v1};
use tonic::{Code, Request, Status};
use tracing::Instrument as _;

use crate::cgroup::CgroupDriver;

/// How long ordinary calls may take; as upstream's `runtimeRequestTimeout`.
const DEADLINE: Duration = Duration::from_mins(2);
/// Making a sandbox may wait for the network.
const SANDBOX_DEADLINE: Duration = Duration::from_mins(4);

/// A CRI call that failed: the runtime's own sentence.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CriError {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl From<Status> for CriError {
    fn from(status: Status) -> Self {
        Self { code: status.code(), message: status.message().to_owned() }
    }
}

impl CriError {
    /// The object that the call was about does not exist (any more).
    pub(crate) fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }
}

type Answer<T> = Result<T, CriError>;

/// Clients of both CRI services; clones share the connection.
#[derive(Clone, Debug)]
pub(crate) struct Cri {
    runtime: RuntimeClient,
    images: ImageClient,
}

fn timed<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// Awaits a call and cuts it off shortly after its deadline, should the runtime not.
async fn call<T>(
    name: &'static str,
    deadline: Duration,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Answer<T> {
    let step = tracing::debug_span!(target: "path", "kubelet: CRI call", of = name);
    match tokio::time::timeout(deadline + Duration::from_secs(2), answer.instrument(step)).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(CriError {
            code: Code::DeadlineExceeded,
            message: format!("the runtime has not answered within {} s", deadline.as_secs()),
        }),
    }
}

macro_rules! simple_calls {
    ($($(#[$doc:meta])* $client:ident.$name:ident($request:ty) -> $response:ty;)*) => {
        $($(#[$doc])*
        pub(crate) async fn $name(&self, request: $request) -> Answer<$response> {
            call(stringify!($name), DEADLINE, self.$client.clone().$name(timed(request, DEADLINE))).await
        })*
    };
}

impl Cri {
    /// The runtime's cgroup driver; `None` where it does not say (before CRI of Kubernetes 1.28).
    pub(crate) async fn cgroup_driver(&self) -> Answer<Option<CgroupDriver>> {
        let request = timed(v1::RuntimeConfigRequest::default(), DEADLINE);
        let asked = call("runtime_config", DEADLINE, self.runtime.clone().runtime_config(request)).await;
        let said = match asked {
            Err(error) if error.code == Code::Unimplemented => return Ok(None),
            other => other?.linux,
        };
        Ok(said.map(|linux| match linux.cgroup_driver() {
            v1::CgroupDriver::Systemd => CgroupDriver::Systemd,
            v1::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
        }))
    }

    pub(crate) fn new(connection: Connection) -> Self {
        Self { runtime: cri::runtime_client(connection.clone()), images: cri::image_client(connection) }
    }

    simple_calls! {
        runtime.version(v1::VersionRequest) -> v1::VersionResponse;
        runtime.status(v1::StatusRequest) -> v1::StatusResponse;
        runtime.list_pod_sandbox(v1::ListPodSandboxRequest) -> v1::ListPodSandboxResponse;
        runtime.pod_sandbox_status(v1::PodSandboxStatusRequest) -> v1::PodSandboxStatusResponse;
        runtime.list_containers(v1::ListContainersRequest) -> v1::ListContainersResponse;
        runtime.container_status(v1::ContainerStatusRequest) -> v1::ContainerStatusResponse;
        runtime.create_container(v1::CreateContainerRequest) -> v1::CreateContainerResponse;
        runtime.start_container(v1::StartContainerRequest) -> v1::StartContainerResponse;
        runtime.reopen_container_log(v1::ReopenContainerLogRequest) -> v1::ReopenContainerLogResponse;
        runtime.container_stats(v1::ContainerStatsRequest) -> v1::ContainerStatsResponse;
        runtime.update_container_resources(v1::UpdateContainerResourcesRequest) -> v1::UpdateContainerResourcesResponse;
        runtime.exec_sync(v1::ExecSyncRequest) -> v1::ExecSyncResponse;
        runtime.exec(v1::ExecRequest) -> v1::ExecResponse;
        runtime.attach(v1::AttachRequest) -> v1::AttachResponse;
        runtime.port_forward(v1::PortForwardRequest) -> v1::PortForwardResponse;
        images.list_images(v1::ListImagesRequest) -> v1::ListImagesResponse;
        runtime.list_container_stats(v1::ListContainerStatsRequest) -> v1::ListContainerStatsResponse;
        images.remove_image(v1::RemoveImageRequest) -> v1::RemoveImageResponse;
        images.image_status(v1::ImageStatusRequest) -> v1::ImageStatusResponse;
    }

    /// Makes and starts a sandbox.
    pub(crate) async fn run_pod_sandbox(
        &self,
        config: v1::PodSandboxConfig,
        runtime_handler: &str,
    ) -> Answer<String> {
        let request =
            v1::RunPodSandboxRequest { config: Some(config), runtime_handler: runtime_handler.to_owned() };
        let mut client = self.runtime.clone();
        let answer = Box::pin(client.run_pod_sandbox(timed(request, SANDBOX_DEADLINE)));
        Ok(call("run_pod_sandbox", SANDBOX_DEADLINE, answer).await?.pod_sandbox_id)
    }

    /// Stops a sandbox; one that is gone is fine.
    pub(crate) async fn stop_pod_sandbox(&self, id: &str) -> Answer<()> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        absent_is_fine(
            call(
                "stop_pod_sandbox",
                DEADLINE,
                self.runtime.clone().stop_pod_sandbox(timed(request, DEADLINE)),
            )
            .await,
        )
    }

    /// Removes a stopped sandbox with its containers; one that is gone is fine.
    pub(crate) async fn remove_pod_sandbox(&self, id: &str) -> Answer<()> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        absent_is_fine(
            call(
                "remove_pod_sandbox",
                DEADLINE,
                self.runtime.clone().remove_pod_sandbox(timed(request, DEADLINE)),
            )
            .await,
        )
    }

    /// Stops a container: SIGTERM now, SIGKILL after `grace`. One that is gone is fine.
    pub(crate) async fn stop_container(&self, id: &str, grace: Duration) -> Answer<()> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout };
        let deadline = DEADLINE.saturating_add(grace);
        absent_is_fine(
            call("stop_container", deadline, self.runtime.clone().stop_container(timed(request, deadline)))
                .await,
        )
    }

    /// Removes a container; one that is gone is fine.
    pub(crate) async fn remove_container(&self, id: &str) -> Answer<()> {
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        absent_is_fine(
            call(
                "remove_container",
                DEADLINE,
                self.runtime.clone().remove_container(timed(request, DEADLINE)),
            )
            .await,
        )
    }

    /// Pulls an image. No deadline: the caller cancels.
    pub(crate) async fn pull_image(&self, request: v1::PullImageRequest) -> Answer<String> {
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    /// The stream of container events.
    pub(crate) async fn container_events(&self) -> Answer<tonic::Streaming<v1::ContainerEventResponse>> {
        Ok(self.runtime.clone().get_container_events(v1::GetEventsRequest {}).await?.into_inner())
    }
}

/// The process that verbose status names: `pid` by itself, or inside the JSON text `info`.
pub(crate) fn pid_of(info: &BTreeMap<String, String>) -> Option<u32> {
    let nested = || {
        let info: serde_json::Value = serde_json::from_str(info.get("info")?).ok()?;
        info.get("pid").map(ToString::to_string)
    };
    let text = info.get("pid").cloned().or_else(nested)?;
    text.trim().parse().ok().filter(|pid| *pid > 0)
}

fn absent_is_fine<T>(answer: Answer<T>) -> Answer<()> {
    match answer {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}
