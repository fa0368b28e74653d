//! A node for a test: the API server, the scripted runtime, and the node agent between them, which can be restarted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use apiserver::{ApiServer, ApiServerConfig, Identity};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event, Namespace, NodeAddress, Pod, PodStatus};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use kubelet::idspace::{IdSpaceConfig, MachineFiles};
use kubelet::{
    ApiService, CgroupDriver, CgroupRoots, Clock, ClusterDns, EvictionSettings, Faults, KubeletConfig,
    LogLimits, NoFaults, ServerTls, ServingCertificate, ShutdownConfig, ShutdownSettings, Signal, Threshold,
    VolumeProbe,
};
use serde_json::{Value, json};
use systemd::Bus;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::bundle::Collection;
use crate::line::{Far, Line};
use crate::script::{Script, Time};

/// How long a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a node agent in a process of its own shows to the API server.
pub(crate) const TOKEN: &str = "the-nodes-own-token";

/// Every path can be mapped but those that contain this.
struct AllBut(Option<&'static str>);

impl VolumeProbe for AllBut {
    fn can_map(&self, path: &std::path::Path) -> std::io::Result<bool> {
        Ok(self.0.is_none_or(|part| !path.to_string_lossy().contains(part)))
    }
}

/// What node agents of a test differ in.
pub(crate) struct Settings<'a> {
    /// Everything lies below it.
    pub(crate) directory: &'a Path,
    pub(crate) cgroup: &'a str,
    pub(crate) tls: ServerTls,
    pub(crate) clock: Clock,
    pub(crate) faults: Arc<dyn Faults>,
}

impl Settings<'_> {
    pub(crate) fn config(self, client: Client, cri: cri::Connection, listener: TcpListener) -> KubeletConfig {
        let ids = ids(self.directory, "test", self.faults);
        KubeletConfig {
            client,
            cri,
            node_name: "node".into(),
            addresses: vec![NodeAddress { type_: "InternalIP".into(), address: "127.0.0.1".into() }],
            labels: [("node-role.kubernetes.io/control-plane".to_owned(), String::new())].into(),
            pod_cidrs: Vec::new(),
            max_pods: 110,
            kubelet_version: "v1.36.0".into(),
            kubelet_dir: self.directory.join("kubelet"),
            static_pod_path: Some(self.directory.join("manifests")),
            pod_logs_dir: self.directory.join("logs"),
            cgroups: CgroupRoots {
                cgroupfs: self.cgroup.to_owned(),
                systemd: "/kubelet_test".into(),
                driver: CgroupDriver::Cgroupfs,
            },
            listener,
            tls: self.tls,
            api_service: ApiService { host: "10.96.0.1".into(), port: 443 },
            cluster_dns: ClusterDns { servers: Vec::new(), domain: "cluster.local".into() },
            resolv_conf: "/etc/resolv.conf".into(),
            is_userns_on: true,
            userns_policy: userns::policy::Policy::OptIn,
            is_seccomp_default: true,
            allowed_sysctls: vec!["net.core.*".into()],
            ids,
            probe: Arc::new(AllBut(None)),
            configz: json!({"maxPods": 110}),
            eviction: no_eviction(),
            shutdown: ShutdownConfig {
                settings: ShutdownSettings::default(),
                bus: Bus::at("unix:path=/none"),
                logind_conf_dir: self.directory.join("logind.conf.d"),
            },
            log_limits: LogLimits { max_size: 1000, max_files: 3 },
            clock: self.clock,
        }
    }
}

/// Nothing of what the machine has left ends a Pod: a test says it where that is what it is about.
fn no_eviction() -> EvictionSettings {
    let mut settings = EvictionSettings::default();
    for signal in Signal::ALL {
        settings.hard.set(signal, Threshold::Amount(0));
    }
    settings
}

/// The ID space of an instance below `directory`, on a machine that has given nothing away.
pub(crate) fn ids(directory: &Path, instance: &str, faults: Arc<dyn Faults>) -> IdSpaceConfig {
    let path = |name: &str| directory.join(name);
    for name in ["etc", "run", "proc"] {
        std::fs::create_dir_all(path(name)).unwrap();
    }
    for file in ["passwd", "group", "subuid", "subgid"] {
        std::fs::write(path("etc").join(file), "").unwrap();
    }
    IdSpaceConfig {
        pods_dir: path("kubelet").join("pods"),
        claims_dir: path("ids"),
        instance: instance.into(),
        root: directory.to_owned(),
        cursor_file: path("cursor"),
        ids_per_pod: 65_536,
        max_pods: 110,
        // No process but the test's own counts: the machine may run other Pods.
        machine: MachineFiles {
            etc: path("etc"),
            run: path("run"),
            proc: path("proc"),
            ..MachineFiles::default()
        },
        faults,
    }
}

pub(crate) struct Node {
    server: Option<ApiServer>,
    pub(crate) admin: Client,
    pub(crate) script: Script,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) cgroup: String,
    pub(crate) is_userns_on: bool,
    /// The node's policy for user namespaces, from the next start of the node agent on.
    pub(crate) policy: userns::policy::Policy,
    /// When Pods are ended, from the next start of the node agent on.
    pub(crate) eviction: EvictionSettings,
    /// The node agent's way to the API server.
    pub(crate) line: Line,
    /// Graceful shutdown: the settings and the bus with logind.
    pub(crate) graceful: Option<(ShutdownSettings, Bus)>,
    /// A beta API that the API server does not serve by itself.
    pub(crate) beta: Option<Collection>,
    /// Paths with this in them cannot be ID-mapped.
    pub(crate) unmappable: Option<&'static str>,
    /// Seconds by which the node agent's clock is ahead, and who is told when it is set.
    ahead: Arc<AtomicI64>,
    sets: watch::Sender<()>,
    /// The time by tokio's clock: a test can let it pass.
    time: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    kubelet: Option<(JoinHandle<()>, CancellationToken)>,
    pub(crate) shutdown: CancellationToken,
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::start_with(Script::new(), true).await
    }

    /// A node whose node agent is not started yet.
    pub(crate) async fn prepare(script: Script) -> Self {
        Self::without_kubelet(script, true).await
    }

    /// The node with its node agent.
    pub(crate) async fn started(mut self) -> Self {
        self.start_kubelet().await;
        self
    }

    pub(crate) async fn start_with(script: Script, is_userns_on: bool) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests mount and make cgroups: run them as root");
        let mut node = Self::without_kubelet(script, is_userns_on).await;
        node.start_kubelet().await;
        node
    }

    pub(crate) async fn without_kubelet(script: Script, is_userns_on: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let tokens = directory.path().join("tokens.csv");
        std::fs::write(&tokens, format!("{TOKEN},system:node:node,node,\"system:nodes\"\n")).unwrap();
        let config = ApiServerConfig {
            secure_listen: "127.0.0.1:0".parse().unwrap(),
            advertise: vec!["127.0.0.1".parse().unwrap()],
            names: Vec::new(),
            service_ip: "10.96.0.1".parse().unwrap(),
            feature_gates: api::feature::Gates::default(),
            userns_policy: userns::policy::Policy::OptIn,
            ids_per_pod: 65_536,
            admin_kubeconfig: directory.path().join("admin.kubeconfig"),
            access: apiserver::AccessConfig { token_file: Some(tokens), ..Default::default() },
            state_dir: directory.path().join("state"),
        };
        let server = apiserver::start(config, shutdown.clone()).await.unwrap();
        let admin = Client::new(server.service_for(Identity::admin()), "default");
        let account = json!({"metadata": {"name": "default"}});
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
            Api::namespaced(admin.clone(), "default");
        accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await.unwrap();
        let (begun, started) = (Timestamp::now(), tokio::time::Instant::now());
        let time = Arc::new(move || begun + SignedDuration::try_from(started.elapsed()).unwrap());
        let script = Script { time: Time(Arc::clone(&time) as _), ..script };
        let cgroup = format!("/kubelet-test-{}-{:x}", std::process::id(), rand::random::<u32>());
        let server = Some(server);
        let policy = userns::policy::Policy::OptIn;
        Self {
            server,
            admin,
            script,
            directory,
            cgroup,
            is_userns_on,
            policy,
            eviction: no_eviction(),
            line: Line::new(),
            graceful: None,
            beta: None,
            unmappable: None,
            ahead: Arc::default(),
            sets: watch::Sender::new(()),
            time,
            kubelet: None,
            shutdown,
        }
    }

    /// Starts the node agent over the runtime as it is now.
    pub(crate) async fn start_kubelet(&mut self) {
        let stop = self.shutdown.child_token();
        let runtime = cri::routes(self.script.clone(), self.script.clone()).into();
        let listener = kubelet::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let config = self.config(runtime, listener);
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let token = stop.clone();
        let task = tokio::spawn(async move {
            kubelet::run(config, Some(ready), token).await.unwrap();
        });
        is_ready.await.unwrap();
        self.kubelet = Some((task, stop));
    }

    /// Stops the node agent; the runtime's books stay.
    pub(crate) async fn stop_kubelet(&mut self) {
        if let Some((task, stop)) = self.kubelet.take() {
            stop.cancel();
            tokio::time::timeout(PATIENCE, task).await.expect("the node agent ends").unwrap();
        }
    }

    fn config(&self, runtime: cri::Connection, listener: TcpListener) -> KubeletConfig {
        let server = self.server.as_ref().unwrap();
        let settings = Settings {
            directory: self.directory.path(),
            cgroup: &self.cgroup,
            tls: self.tls(),
            clock: self.clock(),
            faults: Arc::new(NoFaults),
        };
        let far = Far { service: server.service_for(Identity::node("node")), line: self.line.clone() };
        let client = match &self.beta {
            Some(collection) => collection.client(far),
            None => Client::new(far, "default"),
        };
        KubeletConfig {
            is_userns_on: self.is_userns_on,
            userns_policy: self.policy,
            eviction: self.eviction.clone(),
            shutdown: self.shutdown_config(),
            probe: Arc::new(AllBut(self.unmappable)),
            ..settings.config(client, runtime, listener)
        }
    }

    /// A serving certificate of the cluster's CA.
    pub(crate) fn tls(&self) -> ServerTls {
        let server = self.server.as_ref().unwrap();
        let addresses = ["127.0.0.1".parse().unwrap()];
        let serving =
            server.issue_serving_certificate("system:node:node", &["node".to_owned()], &addresses).unwrap();
        ServerTls {
            serving: ServingCertificate::Fixed {
                certificate: serving.certificate_pem.clone().into_bytes(),
                key: serving.key_pem.clone().into_bytes(),
            },
            client_ca: server.ca_pem().as_bytes().to_vec(),
        }
    }

    /// Where logind reads drop-ins from.
    pub(crate) fn logind_conf_dir(&self) -> PathBuf {
        self.directory.path().join("logind.conf.d")
    }

    fn shutdown_config(&self) -> ShutdownConfig {
        let (settings, bus) = self
            .graceful
            .clone()
            .unwrap_or_else(|| (ShutdownSettings::default(), Bus::at("unix:path=/none")));
        ShutdownConfig { settings, bus, logind_conf_dir: self.logind_conf_dir() }
    }

    fn clock(&self) -> Clock {
        let (time, ahead) = (Arc::clone(&self.time), Arc::clone(&self.ahead));
        let read = move || time() + SignedDuration::from_secs(ahead.load(Ordering::SeqCst));
        Clock::from_fn(read, self.sets.subscribe())
    }

    /// The time now, which nobody has set.
    pub(crate) fn now(&self) -> Timestamp {
        (self.time)()
    }

    /// Sets the node agent's clock, while it runs, so many days ahead.
    pub(crate) fn set_clock(&self, days: i64) {
        self.set_clock_hours(days * 24);
    }

    /// Sets the node agent's clock, while it runs, so many hours ahead.
    pub(crate) fn set_clock_hours(&self, hours: i64) {
        self.ahead.store(hours * 3600, Ordering::SeqCst);
        self.sets.send_replace(());
    }

    pub(crate) fn kubelet_dir(&self) -> PathBuf {
        self.directory.path().join("kubelet")
    }

    pub(crate) fn pod_dir(&self, pod: &Pod) -> PathBuf {
        self.kubelet_dir().join("pods").join(pod.metadata.uid.as_deref().unwrap())
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.admin.clone(), "default")
    }

    /// Creates a Pod bound to the node; its spec is completed.
    pub(crate) async fn create(&self, name: &str, mut spec: Value) -> Pod {
        spec["nodeName"] = json!("node");
        spec["automountServiceAccountToken"] = json!(false);
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{"name": "c", "image": "image:1"}]);
        }
        let pod = json!({"metadata": {"name": name}, "spec": spec});
        self.pods().create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap()
    }

    /// Chooses a policy for the Pods' namespace.
    pub(crate) async fn label_namespace(&self, policy: &str) {
        let namespaces: Api<Namespace> = Api::all(self.admin.clone());
        let patch = json!({"metadata": {"labels": {"kakoi.dev/user-namespaces": policy}}});
        namespaces.patch("default", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    pub(crate) async fn status(&self, name: &str) -> PodStatus {
        self.pods().get_opt(name).await.unwrap().and_then(|pod| pod.status).unwrap_or_default()
    }

    /// Waits until the Pod's status is as wanted.
    pub(crate) async fn wait_for(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&PodStatus) -> bool,
    ) -> PodStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(name).await;
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{name} is not {what}: {status:#?}\n{:#?}", self.script);
            a_moment(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn wait_for_phase(&self, name: &str, phase: &str) -> PodStatus {
        self.wait_for(name, phase, |status| status.phase.as_deref() == Some(phase)).await
    }

    pub(crate) async fn wait_until_gone(&self, name: &str) {
        until(&format!("{name} is gone"), async || self.pods().get_opt(name).await.unwrap().is_none()).await;
    }

    /// Waits for an event of the Pod and returns its message.
    pub(crate) async fn wait_for_event(&self, name: &str, reason: &str) -> Event {
        let deadline = Instant::now() + PATIENCE;
        let api: Api<Event> = Api::namespaced(self.admin.clone(), "default");
        loop {
            let params = ListParams::default().fields(&format!("involvedObject.name={name}"));
            let events = api.list(&params).await.unwrap().items;
            if let Some(event) = events.iter().find(|event| event.reason.as_deref() == Some(reason)) {
                return event.clone();
            }
            let seen: Vec<_> = events.iter().map(|event| (&event.reason, &event.message)).collect();
            assert!(Instant::now() < deadline, "no event {reason}: {seen:?}");
            a_moment(Duration::from_millis(20)).await;
        }
    }

    /// Whether the API has such an event of the Pod.
    pub(crate) async fn has_event(&self, name: &str, reason: &str) -> bool {
        let api: Api<Event> = Api::namespaced(self.admin.clone(), "default");
        let params = ListParams::default().fields(&format!("involvedObject.name={name}"));
        let events = api.list(&params).await.unwrap().items;
        events.iter().any(|event| event.reason.as_deref() == Some(reason))
    }

    /// Stops everything and removes what was made.
    pub(crate) async fn stop(mut self) {
        self.stop_kubelet().await;
        self.shutdown.cancel();
        if let Some(server) = self.server.take() {
            server.join().await;
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let root = self.directory.path().display().to_string();
        for point in table.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if point.starts_with(&root) {
                let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
            }
        }
        if let Ok(layout) = sys::cgroup::Layout::detect() {
            let _ = sys::cgroup::remove(&layout, &self.cgroup, Duration::from_secs(1));
        }
    }
}

/// A moment of real time within a wait that has a deadline, however tokio's clock goes.
pub(crate) async fn a_moment(moment: Duration) {
    tokio::task::spawn_blocking(move || std::thread::park_timeout(moment)).await.unwrap();
}

/// Waits until `holds`.
pub(crate) async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "it never came true that {what}");
        a_moment(Duration::from_millis(20)).await;
    }
}

/// The reason why the Pod's first container waits.
pub(crate) fn waiting(status: &PodStatus) -> Option<&str> {
    let first = status.container_statuses.as_ref()?.first()?;
    first.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

/// How often the Pod's first container was restarted.
pub(crate) fn restarts(status: &PodStatus) -> i32 {
    status.container_statuses.as_ref().and_then(|list| list.first()).map_or(-1, |first| first.restart_count)
}
