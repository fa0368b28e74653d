//! One of the two runtimes, and what a step asks of it.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, ImageSpec, LinuxContainerConfig, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, ListPodSandboxRequest, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StopPodSandboxRequest,
};
use cri::{ImageClient, RuntimeClient};
use tonic::{Response, Status};

/// How long a container may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A runtime and its clients.
pub(crate) struct Side {
    pub(crate) runtime: RuntimeClient,
    pub(crate) images: ImageClient,
    logs: PathBuf,
    pods: u32,
}

/// A sandbox with what it was made of.
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) config: PodSandboxConfig,
}

impl Side {
    pub(crate) async fn connect(socket: &Path, logs: PathBuf) -> Self {
        let channel = cri::connect_unix(socket).await.unwrap();
        let (runtime, images) = (cri::runtime_client(channel.clone()), cri::image_client(channel));
        Self { runtime, images, logs, pods: 0 }
    }

    /// What a sandbox is asked for with: the Pod network, a PID namespace for each container, a log directory.
    pub(crate) fn sandbox(&mut self, name: &str) -> PodSandboxConfig {
        self.pods += 1;
        let log_directory = self.logs.join(format!("{name}-{}", self.pods));
        std::fs::create_dir_all(&log_directory).unwrap();
        let namespaces =
            NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() };
        let security = LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces),
            ..LinuxSandboxSecurityContext::default()
        };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("{name}-{}", self.pods),
                namespace: "suite".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: log_directory.display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(security),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    pub(crate) async fn try_run(&mut self, config: &PodSandboxConfig) -> Result<String, Status> {
        let request =
            RunPodSandboxRequest { config: Some(config.clone()), ..RunPodSandboxRequest::default() };
        Ok(self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub(crate) async fn run(&mut self, config: PodSandboxConfig) -> Pod {
        Pod { id: self.try_run(&config).await.unwrap(), config }
    }

    /// A sandbox like any other.
    pub(crate) async fn pod(&mut self, name: &str) -> Pod {
        let config = self.sandbox(name);
        self.run(config).await
    }

    pub(crate) async fn try_create(&mut self, pod: &Pod, config: ContainerConfig) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(self.runtime.create_container(request).await?.into_inner().container_id)
    }

    pub(crate) async fn try_start(&mut self, id: &str) -> Result<(), Status> {
        self.runtime.start_container(StartContainerRequest { container_id: id.to_owned() }).await.map(drop)
    }

    pub(crate) async fn start(&mut self, pod: &Pod, config: ContainerConfig) -> String {
        let id = self.try_create(pod, config).await.unwrap();
        self.try_start(&id).await.unwrap();
        id
    }

    /// A container that only sleeps, in a Pod of its own.
    pub(crate) async fn sleeper(&mut self, name: &str) -> (Pod, String) {
        let pod = self.pod(name).await;
        let id = self.start(&pod, container("c", "exec sleep 1000")).await;
        (pod, id)
    }

    pub(crate) async fn status(&mut self, id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    pub(crate) async fn ended(&mut self, id: &str) -> ContainerStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(id).await;
            if status.state() == ContainerState::ContainerExited {
                return status;
            }
            assert!(Instant::now() < deadline, "the container does not end: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs a shell line in a container: its code and both streams, or how it was refused.
    pub(crate) async fn exec(&mut self, id: &str, line: &str) -> String {
        self.exec_within(id, line, 20).await
    }

    pub(crate) async fn exec_within(&mut self, id: &str, line: &str, timeout: i64) -> String {
        let cmd = ["sh", "-c", line].map(str::to_owned).to_vec();
        let request = ExecSyncRequest { container_id: id.to_owned(), cmd, timeout };
        match self.runtime.exec_sync(request).await.map(Response::into_inner) {
            Ok(ran) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
                let (out, err) = (text(&ran.stdout), text(&ran.stderr));
                match (ran.exit_code, err.as_str()) {
                    (0, "") => out,
                    (code, _) => format!("{out}; code {code}; stderr {err}"),
                }
            }
            Err(status) => format!("refused: {:?}", status.code()),
        }
    }

    /// Runs one container to its end: how it ended, and its log without times.
    pub(crate) async fn outcome(&mut self, config: ContainerConfig) -> String {
        let pod = self.pod("outcome").await;
        let id = match self.try_create(&pod, config).await {
            Ok(id) => id,
            Err(status) => return format!("not made: {:?}", status.code()),
        };
        let started = self.try_start(&id).await;
        let status = self.ended(&id).await;
        let log = Path::new(&pod.config.log_directory).join("c.log");
        let log = std::fs::read_to_string(log).unwrap_or_default();
        let mut lines: Vec<&str> =
            log.lines().filter_map(|line| line.split_once(' ')).map(|(_, rest)| rest).collect();
        // The order between the streams is not promised.
        lines.sort_by_key(|line| line.starts_with("stderr"));
        let refused = started.err().map_or_else(String::new, |status| format!("{:?} ", status.code()));
        format!("{refused}{} {} {lines:?}", status.exit_code, status.reason)
    }

    /// Ends what a step has left.
    pub(crate) async fn clean(&mut self) {
        let listed = self.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
        for pod in listed.into_inner().items {
            let stop = StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            self.runtime.stop_pod_sandbox(stop).await.unwrap();
            self.runtime
                .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod.id })
                .await
                .unwrap();
        }
    }
}

/// A container of `busybox` that runs a shell line and logs to `NAME.log`.
pub(crate) fn container(name: &str, line: &str) -> ContainerConfig {
    let namespaces = NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() };
    let security = LinuxContainerSecurityContext {
        namespace_options: Some(namespaces),
        ..LinuxContainerSecurityContext::default()
    };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(ImageSpec { image: "busybox".to_owned(), ..ImageSpec::default() }),
        command: ["sh", "-c", line].map(str::to_owned).to_vec(),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            security_context: Some(security),
            ..LinuxContainerConfig::default()
        }),
        ..ContainerConfig::default()
    }
}

/// The security context of [`container`].
pub(crate) fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

/// `ok` with what was answered, or the code of the refusal: messages are each runtime's own.
pub(crate) fn told<T: Debug>(answer: Result<T, Status>) -> String {
    match answer {
        Ok(value) => format!("ok {value:?}"),
        Err(status) => format!("refused: {:?}", status.code()),
    }
}

/// The same where what was answered is not to be compared.
pub(crate) fn done<T>(answer: Result<T, Status>) -> String {
    told(answer.map(drop))
}
