//! The daemon that the tests talk to: this test program again, run as one "test" that serves until it is ended.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use image::{ImageStore, ImageStoreConfig};
use network::{NetworkConfig, PodNetwork};
use runtime::{CrashHook, CrashPoint, HandlerConfig, Runtime, RuntimeConfig};
use tokio_util::sync::CancellationToken;

/// The directory that the daemon lives in.
pub(crate) const DIRECTORY: &str = "KAKOI_TEST_DIRECTORY";
/// The point at which it kills itself.
pub(crate) const CRASH: &str = "KAKOI_TEST_CRASH";
/// The point at which it fails.
pub(crate) const FAIL: &str = "KAKOI_TEST_FAIL";

/// The daemon's socket.
pub(crate) fn socket(directory: &Path) -> PathBuf {
    directory.join("run/cri.sock")
}

/// The instance's name, which is different for each test directory.
pub(crate) fn instance(directory: &Path) -> String {
    let name = directory.file_name().unwrap().to_str().unwrap();
    format!("kakoi-{}", name.trim_start_matches('.').to_lowercase())
}

/// Not a test: what [`crate::machine::Machine`] starts as the daemon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the other tests as their daemon"]
async fn daemon() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    tracing_subscriber::fmt().with_env_filter("info").with_writer(std::io::stderr).init();
    let shutdown = CancellationToken::new();
    let runtime = Runtime::start(config(&directory).await, shutdown).await.unwrap();
    runtime.listen(&socket(&directory)).await.unwrap();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    terminate.recv().await;
    if directory.join("down").exists() {
        runtime.stop_all(std::time::Duration::ZERO).await.unwrap();
    }
    runtime.shutdown().await;
}

async fn config(directory: &Path) -> RuntimeConfig {
    let images =
        ImageStore::open(ImageStoreConfig::new(directory.join("images"), directory.join("certs.d"))).unwrap();
    let instance = instance(directory);
    let network = PodNetwork::open(NetworkConfig {
        instance: instance.clone(),
        bridge: "kktest0".to_owned(),
        table: "kakoi-test".to_owned(),
        pod_cidrs: "10.233.0.0/24".parse().unwrap(),
        api: None,
        state_dir: directory.join("network"),
        machine_dir: directory.join("machine"),
    });
    RuntimeConfig {
        state_dir: directory.join("containers"),
        run_dir: directory.join("run"),
        cgroup_parent: format!("/{instance}"),
        cgroup_driver: runtime::CgroupDriver::Cgroupfs,
        bus: systemd::Bus::system(),
        version: "test".to_owned(),
        images,
        network: Some(network.await.unwrap()),
        handlers: handlers(directory),
        stage_dir: directory.join("stage"),
        shim: Cow::Borrowed(runtime::SHIM),
        probe_dirs: Vec::new(),
        etc: directory.join("etc"),
        crash: crash_hook(),
    }
}

/// The directory with programs that are handlers of their names; where it exists, runc and crun are handlers too.
pub(crate) fn handlers_dir(directory: &Path) -> PathBuf {
    directory.join("handlers")
}

fn handlers(directory: &Path) -> Vec<HandlerConfig> {
    let Ok(programs) = std::fs::read_dir(handlers_dir(directory)) else { return Vec::new() };
    let configured = programs.flatten().map(|program| HandlerConfig {
        name: program.file_name().into_string().unwrap(),
        program: program.path(),
    });
    runtime::handlers(configured.collect(), std::ffi::OsStr::new("")).unwrap()
}

fn crash_hook() -> CrashHook {
    let named = |variable: &str| {
        let name = std::env::var(variable).ok()?;
        CrashPoint::ALL.into_iter().find(|point| format!("{point:?}") == name)
    };
    let (crash, fail) = (named(CRASH), named(FAIL));
    CrashHook::new(move |point| {
        if crash == Some(point) {
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
        }
        if fail == Some(point) { Err(std::io::Error::other("as the test asked")) } else { Ok(()) }
    })
}
