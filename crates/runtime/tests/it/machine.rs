//! A machine for one test: namespaces, a directory, a daemon and clients; and the proof that nothing is left of it.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cri::v1::security_profile::ProfileType;
use cri::v1::*;
use cri::{ImageClient, RuntimeClient};

use crate::{daemon, image};

/// Set in the child that runs inside the namespaces.
const INSIDE: &str = "KAKOI_TEST_INSIDE";

/// How long anything may take here.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// The host IDs that these tests map; far from what a node gives out.
pub(crate) const BASE: u32 = 3_000_000_000;

/// Runs a test in a network and mount namespace of its own, with a daemon, and checks that nothing is left after.
pub(crate) fn on_a_machine<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Machine) -> F) {
    if std::env::var_os(INSIDE).is_none() {
        return run_again_inside(name);
    }
    let run = |arguments: &[&str]| {
        let done = Command::new(arguments[0]).args(&arguments[1..]).status().unwrap();
        assert!(done.success(), "{arguments:?}");
    };
    run(&["ip", "link", "set", "lo", "up"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let machine = Machine::start().await;
        let left = machine.remains();
        tokio::time::timeout(PATIENCE * 3, test(machine)).await.expect("the test takes too long");
        left.assert_gone();
    });
}

fn run_again_inside(name: &str) {
    assert!(rustix::process::geteuid().is_root(), "these tests make namespaces and mounts: run them as root");
    let output = Command::new("timeout")
        .args(["--signal=KILL", "150", "unshare"])
        .args(["--net", "--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "no test is named {name}:\n{text}");
}

/// A daemon with its directory and clients.
pub(crate) struct Machine {
    pub(crate) directory: tempfile::TempDir,
    daemon: Option<Child>,
    pub(crate) runtime: RuntimeClient,
    pub(crate) images: ImageClient,
}

impl Machine {
    async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("kakoitest").tempdir().unwrap();
        // For the stage of OCI runtimes, which a Pod's root must reach.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let certs = directory.path().join("certs.d/docker.io");
        let mirror = directory.path().join("mirror");
        std::fs::create_dir_all(&certs).unwrap();
        image::write(&mirror);
        std::fs::write(certs.join("hosts.toml"), format!("server = \"oci:{}\"\n", mirror.display())).unwrap();
        let (daemon, channel) = spawn(directory.path(), &[]).await;
        let mut machine = Self {
            directory,
            daemon: Some(daemon),
            runtime: cri::runtime_client(channel.clone()),
            images: cri::image_client(channel),
        };
        machine.pull("busybox").await;
        machine
    }

    pub(crate) async fn pull(&mut self, name: &str) -> String {
        let image = Some(ImageSpec { image: name.into(), ..Default::default() });
        let request = PullImageRequest { image, ..Default::default() };
        self.images.pull_image(request).await.unwrap().into_inner().image_ref
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// SIGKILLs the daemon and starts another.
    pub(crate) async fn crash_and_restart(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        self.restart(&[]).await;
    }

    /// Starts another daemon after the present one has ended (by itself, or here).
    pub(crate) async fn restart(&mut self, environment: &[(&str, &str)]) {
        if let Some(mut daemon) = self.daemon.take() {
            terminate(&mut daemon);
        }
        let (daemon, channel) = spawn(self.path(), environment).await;
        self.daemon = Some(daemon);
        self.runtime = cri::runtime_client(channel.clone());
        self.images = cri::image_client(channel);
    }

    /// Waits until the daemon has ended by itself.
    pub(crate) fn wait_for_crash(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        wait_until("the daemon kills itself", || daemon.try_wait().unwrap().is_some());
    }

    /// Ends every Pod and the daemon.
    pub(crate) fn down(mut self) {
        std::fs::write(self.path().join("down"), "").unwrap();
        terminate(&mut self.daemon.take().unwrap());
    }

    /// What must not exist when the test is over.
    fn remains(&self) -> Remains {
        Remains { group: daemon::instance(self.path()), mounts: mounts(), links: links() }
    }

    pub(crate) async fn run_sandbox(&mut self, config: PodSandboxConfig) -> String {
        self.try_run_sandbox(config, "").await.unwrap()
    }

    pub(crate) async fn try_run_sandbox(
        &mut self,
        config: PodSandboxConfig,
        runtime_handler: &str,
    ) -> Result<String, tonic::Status> {
        let runtime_handler = runtime_handler.to_owned();
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler };
        Ok(self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    /// Starts the daemon again with runc, crun and these scripts as handlers.
    pub(crate) async fn restart_with_handlers(&mut self, scripts: &[(&str, &str)]) {
        let directory = daemon::handlers_dir(self.path());
        std::fs::create_dir_all(&directory).unwrap();
        for (name, script) in scripts {
            let path = directory.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        self.restart(&[]).await;
    }

    /// Makes and starts a container.
    pub(crate) async fn run_container(&mut self, sandbox: &str, config: ContainerConfig) -> String {
        let id = self.create_container(sandbox, config).await.unwrap();
        self.runtime.start_container(StartContainerRequest { container_id: id.clone() }).await.unwrap();
        id
    }

    pub(crate) async fn create_container(
        &mut self,
        sandbox: &str,
        config: ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: None,
        };
        Ok(self.runtime.create_container(request).await?.into_inner().container_id)
    }

    /// Runs a command and answers what it wrote to its output.
    pub(crate) async fn exec(&mut self, container: &str, command: &[&str]) -> String {
        let output = self.try_exec(container, command).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.exit_code, 0, "{command:?}: {text}{errors}");
        text
    }

    pub(crate) async fn try_exec(
        &mut self,
        container: &str,
        command: &[&str],
    ) -> Result<ExecSyncResponse, tonic::Status> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 20,
        };
        Ok(self.runtime.exec_sync(request).await?.into_inner())
    }

    pub(crate) async fn status(&mut self, container: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        self.runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    /// Waits until a container has ended.
    pub(crate) async fn wait_exited(&mut self, container: &str) -> ContainerStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(container).await;
            if status.state() == ContainerState::ContainerExited {
                return status;
            }
            assert!(Instant::now() < deadline, "the container does not end: {status:?}");
            tokio::task::yield_now().await;
        }
    }

    /// The PID of a container's first process.
    pub(crate) async fn pid(&mut self, container: &str) -> i64 {
        let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
        let info = self.runtime.container_status(request).await.unwrap().into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        info["pid"].as_i64().expect("the container runs")
    }

    pub(crate) async fn log(&mut self, container: &str) -> String {
        let path = self.status(container).await.log_path;
        std::fs::read_to_string(path).unwrap_or_default()
    }

    pub(crate) fn sandbox_config(&self, name: &str) -> PodSandboxConfig {
        let context = LinuxSandboxSecurityContext {
            namespace_options: Some(node_options()),
            ..LinuxSandboxSecurityContext::default()
        };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                namespace: "test".into(),
                uid: format!("{name}-uid"),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self.path().join("logs").join(name).to_string_lossy().into_owned(),
            dns_config: Some(DnsConfig { servers: vec!["10.96.0.10".into()], ..DnsConfig::default() }),
            linux: Some(LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() }),
            ..PodSandboxConfig::default()
        }
    }

    /// A sandbox in a user namespace of its own; `number` keeps the tests' Pods apart.
    pub(crate) fn fenced_config(&self, name: &str, number: u32) -> PodSandboxConfig {
        let mut config = self.sandbox_config(name);
        let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        context.namespace_options = Some(fenced_options(number));
        config
    }
}

impl Drop for Machine {
    /// A test that failed must not leave Pods and a daemon that holds its output open.
    fn drop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        let _ = std::fs::write(self.path().join("down"), "");
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&daemon),
            rustix::process::Signal::TERM,
        );
        let deadline = Instant::now() + PATIENCE / 6;
        while matches!(daemon.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let _ = daemon.kill();
        let _ = daemon.wait();
    }
}

/// One range of IDs.
pub(crate) fn block(number: u32) -> IdMapping {
    IdMapping { host_id: BASE + number * 65_536, container_id: 0, length: 65_536 }
}

pub(crate) fn node_options() -> NamespaceOption {
    let user = UserNamespace { mode: NamespaceMode::Node.into(), ..Default::default() };
    NamespaceOption {
        pid: NamespaceMode::Container.into(),
        userns_options: Some(user),
        ..NamespaceOption::default()
    }
}

pub(crate) fn fenced_options(number: u32) -> NamespaceOption {
    mapped_options(vec![block(number)])
}

pub(crate) fn mapped_options(lines: Vec<IdMapping>) -> NamespaceOption {
    let user = UserNamespace { mode: NamespaceMode::Pod.into(), uids: lines.clone(), gids: lines };
    NamespaceOption {
        pid: NamespaceMode::Container.into(),
        userns_options: Some(user),
        ..NamespaceOption::default()
    }
}

/// A container that runs `command`, with what a kubelet sends.
pub(crate) fn container(name: &str, options: NamespaceOption, command: &[&str]) -> ContainerConfig {
    let security = LinuxContainerSecurityContext {
        namespace_options: Some(options),
        masked_paths: ["/proc/kcore", "/proc/keys", "/sys/firmware"].map(str::to_owned).into(),
        readonly_paths: ["/proc/sys", "/proc/sysrq-trigger"].map(str::to_owned).into(),
        seccomp: Some(SecurityProfile {
            profile_type: ProfileType::RuntimeDefault.into(),
            ..Default::default()
        }),
        ..LinuxContainerSecurityContext::default()
    };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: "busybox".into(), ..ImageSpec::default() }),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}.log"),
        labels: BTreeMap::from([("name".into(), name.into())]),
        linux: Some(LinuxContainerConfig { resources: None, security_context: Some(security) }),
        ..ContainerConfig::default()
    }
}

async fn spawn(directory: &Path, environment: &[(&str, &str)]) -> (Child, tonic::transport::Channel) {
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "daemon::daemon", "--ignored", "--nocapture", "--test-threads=1"])
        .env(daemon::DIRECTORY, directory)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(channel) = cri::connect_unix(&daemon::socket(directory)).await {
            return (daemon, channel);
        }
        assert!(daemon.try_wait().unwrap().is_none(), "the daemon ended at its start");
        assert!(Instant::now() < deadline, "the daemon does not listen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn terminate(daemon: &mut Child) {
    let pid = rustix::process::Pid::from_child(daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    wait_until("the daemon ends", || daemon.try_wait().unwrap().is_some());
}

/// Waits for a condition with a deadline.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// What a test may leave nothing of.
pub(crate) struct Remains {
    group: String,
    mounts: Vec<String>,
    links: Vec<String>,
}

impl Remains {
    fn assert_gone(&self) {
        let shims = self.processes();
        assert!(shims.is_empty(), "processes are left: {shims:?}");
        // A mount of the machine's may go meanwhile, here too, with the directory that it was on.
        let mut left = mounts();
        for mount in &self.mounts {
            if let Some(known) = left.iter().position(|one| one == mount) {
                left.swap_remove(known);
            }
        }
        assert!(left.is_empty(), "mounts are left: {left:?}");
        assert_eq!(links(), self.links, "links are left");
        let groups = groups(&self.group);
        let kept = |group: &&PathBuf| group.components().count() > 1;
        let left: Vec<_> = groups.iter().filter(kept).collect();
        assert!(left.is_empty(), "cgroups are left: {left:?}");
    }

    /// Processes whose cgroup is the instance's.
    fn processes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let group = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // A shim that outlived its daemon has init as its parent, and some machines' init never looks.
            if stat.contains(") Z ") {
                continue;
            }
            if group.contains(&format!("/{}/", self.group)) {
                let command = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
                found.push(format!("{} {command}", entry.file_name().display()));
            }
        }
        found
    }
}

/// The mounts of this namespace.
pub(crate) fn mounts() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().map(|line| line.split(' ').nth(4).unwrap().to_owned()).collect()
}

fn links() -> Vec<String> {
    let mut links: Vec<String> = std::fs::read_to_string("/proc/net/dev")
        .unwrap()
        .lines()
        .skip(2)
        .map(|line| line.split(':').next().unwrap().trim().to_owned())
        .collect();
    links.sort();
    links
}

/// The instance's groups, relative to their hierarchy.
fn groups(instance: &str) -> Vec<PathBuf> {
    let layout = sys::cgroup::Layout::detect().unwrap();
    let mut found = Vec::new();
    let mut waiting = layout.directories(instance);
    while let Some(directory) = waiting.pop() {
        let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().unwrap().is_dir()).map(|entry| entry.path());
        waiting.extend(below);
        if directory.exists() {
            found.push(directory);
        }
    }
    found
}
