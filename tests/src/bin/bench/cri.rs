//! CRI's calls, of `kakoi runtime` with a user namespace and without, and of Debian's containerd with runc: in turn, in
//! one run, so that the ratios hold on a noisy machine.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use cri::RuntimeClient;
use cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, IdMapping, ImageSpec,
    LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    ListContainersRequest, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    RemovePodSandboxRequest, RunPodSandboxRequest, SecurityProfile, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest, UserNamespace,
};
use futures::{StreamExt as _, stream};
use tests::{Containerd, Node, Runtime};
use tonic::transport::Channel;

use crate::{inside, percentile, quiet, report, size};

/// Pods of each kind that are started and ended one after another.
const ROUNDS: usize = 30;
/// Pods that are started at once, and how many of them at a time.
const MANY: (usize, usize) = (50, 8);
/// Sandboxes, and containers in each, that a restart finds again.
pub(crate) const KEPT: (usize, usize) = (20, 10);
/// IDs of a Pod.
const BLOCK: u32 = 65_536;
/// The first Pod's block: far above what distributions give away.
pub(crate) const FIRST: u32 = 20_000;
/// The block before the first of the Pods whose processor time is measured.
const COST: u32 = 50_000;
/// Ends at once when it is told to, as a good server does.
const PROGRAM: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";

/// The calls that are timed, in the order in which a Pod sees them.
const CALLS: [&str; 5] = [
    "RunPodSandbox",
    "CreateContainer, StartContainer",
    "ExecSync",
    "StopContainer",
    "Stop- and RemovePodSandbox",
];

/// Restarts with many containers.
const RESTARTS: usize = 10;

/// Measures the calls, memory, and a restart with many containers.
pub(crate) fn measure() {
    let node = Node::prepare(quiet());
    let mut ours = Runtime::start(&node);
    size("kakoi runtime, idle, resident", ours.pid(), "VmRSS", "30 MB");
    let theirs = is_installed("containerd").then(|| Containerd::start(&node));
    let socket = theirs.as_ref().map(|theirs| theirs.socket().display().to_string());
    let own = ours.socket().display().to_string();
    let words: Vec<&str> = ["inside-cri", &own].into_iter().chain(socket.as_deref()).collect();
    inside(&node, &words);
    inside(&node, &["inside-cri-cost", &own, &ours.pid().to_string(), &ours.instance()]);
    inside(&node, &["inside-cri-fill", &own]);
    size(&format!("  with {} containers", KEPT.0 * KEPT.1), ours.pid(), "VmRSS", "none");
    let mut times: Vec<Duration> = (0..RESTARTS)
        .map(|_| {
            ours.kill();
            let begin = Instant::now();
            ours.spawn();
            inside(&node, &["inside-cri-found", &own]);
            begin.elapsed()
        })
        .collect();
    let what = format!("SIGKILL to {} containers listed", KEPT.0 * KEPT.1);
    report(&what, "1 s", &mut times);
}

pub(crate) fn is_installed(program: &str) -> bool {
    let found = std::process::Command::new(program).arg("--version").stdout(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

/// One runtime as it is asked for Pods.
pub(crate) struct Peer {
    name: &'static str,
    pub(crate) image: &'static str,
    has_user_namespace: bool,
    runtime: RuntimeClient,
    blocks: u32,
    times: [Vec<Duration>; CALLS.len()],
}

impl Peer {
    pub(crate) async fn new(name: &'static str, socket: &Path, has_user_namespace: bool, first: u32) -> Self {
        let channel = cri::connect_unix(socket).await.expect("the runtime serves CRI");
        let runtime = cri::runtime_client(channel);
        Self { name, image: "busybox", has_user_namespace, runtime, blocks: first, times: Default::default() }
    }

    /// A Pod that no other has the IDs of.
    fn sandbox(&mut self) -> PodSandboxConfig {
        self.blocks += 1;
        let name = format!("{}-{}", self.name.replace([' ', ','], "-"), self.blocks);
        let map = vec![IdMapping { host_id: self.blocks * BLOCK, container_id: 0, length: BLOCK }];
        let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: map.clone(), gids: map };
        let namespaces = NamespaceOption {
            pid: NamespaceMode::Container.into(),
            userns_options: self.has_user_namespace.then_some(users),
            ..NamespaceOption::default()
        };
        let security = LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces),
            seccomp: Some(SecurityProfile::default()),
            ..LinuxSandboxSecurityContext::default()
        };
        let linux =
            LinuxPodSandboxConfig { security_context: Some(security), ..LinuxPodSandboxConfig::default() };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.clone(),
                uid: name,
                namespace: "bench".to_owned(),
                attempt: 0,
            }),
            hostname: "pod".to_owned(),
            linux: Some(linux),
            ..PodSandboxConfig::default()
        }
    }

    async fn run_sandbox(&mut self, config: PodSandboxConfig) -> String {
        let request = RunPodSandboxRequest { config: Some(config), ..RunPodSandboxRequest::default() };
        let made = self.runtime.run_pod_sandbox(request).await;
        made.expect("the sandbox can be made").into_inner().pod_sandbox_id
    }

    async fn run_container(&mut self, sandbox: &str, name: String, of: &PodSandboxConfig) -> String {
        let security = LinuxContainerSecurityContext {
            namespace_options: of
                .linux
                .as_ref()
                .and_then(|linux| linux.security_context.as_ref()?.namespace_options.clone()),
            seccomp: Some(SecurityProfile::default()),
            ..LinuxContainerSecurityContext::default()
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name, attempt: 0 }),
            image: Some(ImageSpec { image: self.image.to_owned(), ..ImageSpec::default() }),
            command: ["sh", "-c", PROGRAM].map(str::to_owned).to_vec(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(security),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(of.clone()),
        };
        let made = self.runtime.create_container(request).await.expect("the container can be made");
        let container_id = made.into_inner().container_id;
        let start = StartContainerRequest { container_id: container_id.clone() };
        self.runtime.start_container(start).await.expect("the container starts");
        container_id
    }

    /// One Pod's life, each call timed.
    async fn live(&mut self) -> [Duration; CALLS.len()] {
        let config = self.sandbox();
        let mut clock = Clock::start();
        let sandbox = self.run_sandbox(config.clone()).await;
        let ran = clock.lap();
        let container_id = self.run_container(&sandbox, "c".to_owned(), &config).await;
        let started = clock.lap();
        let exec =
            ExecSyncRequest { container_id: container_id.clone(), cmd: vec!["true".to_owned()], timeout: 10 };
        self.runtime.exec_sync(exec).await.expect("a command can be run");
        let executed = clock.lap();
        let stop = StopContainerRequest { container_id, timeout: 10 };
        self.runtime.stop_container(stop).await.expect("the container can be stopped");
        let stopped = clock.lap();
        self.end(sandbox).await;
        [ran, started, executed, stopped, clock.lap()]
    }

    /// How long it takes until a Pod is up whose ID map no other had; it is ended then.
    pub(crate) async fn first_of_its_map(&mut self) -> Duration {
        let config = self.sandbox();
        let mut clock = Clock::start();
        let sandbox = self.run_sandbox(config.clone()).await;
        self.run_container(&sandbox, "c".to_owned(), &config).await;
        let up = clock.lap();
        self.end(sandbox).await;
        up
    }

    async fn end(&mut self, pod_sandbox_id: String) {
        let stop = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        self.runtime.stop_pod_sandbox(stop).await.expect("the sandbox can be stopped");
        let remove = RemovePodSandboxRequest { pod_sandbox_id };
        self.runtime.remove_pod_sandbox(remove).await.expect("the sandbox can be removed");
    }

    /// Many Pods, some at a time: how many a second are up.
    async fn many(&mut self) -> f64 {
        let (count, at_once) = MANY;
        let configs: Vec<PodSandboxConfig> = (0..count).map(|_| self.sandbox()).collect();
        let begin = Instant::now();
        let starts = stream::iter(configs).map(|config| {
            let mut one = self.again();
            async move {
                let sandbox = one.run_sandbox(config.clone()).await;
                one.run_container(&sandbox, "c".to_owned(), &config).await;
                sandbox
            }
        });
        let sandboxes: Vec<String> = starts.buffer_unordered(at_once).collect().await;
        let rate = f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / begin.elapsed().as_secs_f64();
        for sandbox in sandboxes {
            self.end(sandbox).await;
        }
        rate
    }

    fn again(&self) -> Self {
        let Self { name, image, has_user_namespace, blocks, .. } = *self;
        let runtime = self.runtime.clone();
        Self { name, image, has_user_namespace, runtime, blocks, times: Default::default() }
    }
}

/// A stopwatch that is read and set back at once.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut self.0, now))
    }
}

/// The sockets that a run is given: ours, and perhaps containerd's.
pub(crate) fn sockets(arguments: &[String]) -> (PathBuf, Option<PathBuf>) {
    let mut paths = arguments.iter().map(PathBuf::from);
    (paths.next().expect("a socket"), paths.next())
}

/// Every call of every peer, in turn.
pub(crate) async fn calls(arguments: &[String]) {
    let (ours, theirs) = sockets(arguments);
    let mut peers = vec![
        Peer::new("kakoi, user namespace", &ours, true, FIRST).await,
        Peer::new("kakoi, the node's IDs", &ours, false, 0).await,
    ];
    if let Some(socket) = theirs {
        peers.push(Peer::new("containerd and runc, the node's IDs", &socket, false, 0).await);
    }
    for peer in &mut peers {
        peer.live().await;
    }
    for _ in 0..ROUNDS {
        for peer in &mut peers {
            let lived = peer.live().await;
            peer.times.iter_mut().zip(lived).for_each(|(times, took)| times.push(took));
        }
    }
    for (index, call) in CALLS.iter().enumerate() {
        for peer in &mut peers {
            if let Some(times) = peer.times.get_mut(index) {
                report(&format!("{call}: {}", peer.name), "none", times);
            }
        }
    }
    compare(&mut peers);
    for peer in &mut peers {
        let rate = peer.many().await;
        println!(
            "{:<55} {rate:>8.1} Pods/s",
            format!("{} Pods, {} at a time: {}", MANY.0, MANY.1, peer.name)
        );
    }
}

/// How often the last peer's median fits into the first one's, for a Pod that comes up and for each call after.
fn compare(peers: &mut [Peer]) {
    let [ours, .., theirs] = peers else { return };
    if theirs.name.starts_with("kakoi") {
        return;
    }
    let up = |peer: &mut Peer| {
        let [sandbox, container, ..] = &mut peer.times;
        percentile(sandbox, 50) + percentile(container, 50)
    };
    println!("{:<55} {:>8.1} times theirs is ours", "a Pod up", up(theirs) / up(ours));
    for (index, call) in CALLS.iter().enumerate().skip(2) {
        let median = |peer: &mut Peer| peer.times.get_mut(index).map_or(0.0, |times| percentile(times, 50));
        println!("{call:<55} {:>8.1} times theirs is ours", median(theirs) / median(ours));
    }
}

/// What Pods cost until they are up: the processor time of the daemon, of their shims and of what these start.
pub(crate) async fn cost(arguments: &[String]) {
    let [socket, daemon, instance] = arguments else { panic!("a socket, a PID and an instance") };
    let daemon = daemon.parse().expect("a PID is a number");
    for (has_user_namespace, what) in [(true, "in a user namespace"), (false, "with the node's IDs")] {
        let mut peer = Peer::new("cost", Path::new(socket), has_user_namespace, COST).await;
        peer.first_of_its_map().await;
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let config = peer.sandbox();
            let before = tests::processor_time(daemon, instance);
            let sandbox = peer.run_sandbox(config.clone()).await;
            peer.run_container(&sandbox, "c".to_owned(), &config).await;
            times.push(tests::processor_time(daemon, instance).saturating_sub(before));
            peer.end(sandbox).await;
        }
        let bound = if has_user_namespace { "15 ms" } else { "none" };
        report(&format!("processor time until a Pod {what} is up"), bound, &mut times);
    }
}

/// Starts the containers that a restart must find again.
pub(crate) async fn fill(arguments: &[String]) {
    let (ours, _) = sockets(arguments);
    let mut peer = Peer::new("kept", &ours, true, 2 * FIRST).await;
    for _ in 0..KEPT.0 {
        let config = peer.sandbox();
        let sandbox = peer.run_sandbox(config.clone()).await;
        for number in 0..KEPT.1 {
            peer.run_container(&sandbox, format!("c{number}"), &config).await;
        }
    }
}

/// Waits until the runtime listens.
async fn connect(socket: &Path) -> Channel {
    loop {
        if let Ok(channel) = cri::connect_unix(socket).await {
            return channel;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until the runtime answers, and sees that all of them run.
pub(crate) async fn found(arguments: &[String]) {
    let (ours, _) = sockets(arguments);
    let mut runtime = cri::runtime_client(connect(&ours).await);
    let listed = runtime.list_containers(ListContainersRequest::default()).await;
    let listed = listed.expect("the runtime answers").into_inner().containers;
    let running = cri::v1::ContainerState::ContainerRunning;
    let count = listed.iter().filter(|container| container.state() == running).count();
    assert_eq!(count, KEPT.0 * KEPT.1, "every container runs on");
}
