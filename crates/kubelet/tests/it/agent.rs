//! The node agent as a process of its own: this test program again, run as one "test" that serves until it is killed.
//!
//! The API server and the scripted runtime stay with the test, which reaches it by TLS and a Unix socket.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kubelet::{Clock, CrashPoint, Faults, ServerTls, ServingCertificate};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::node::{Node, Settings, TOKEN, until};

const DIRECTORY: &str = "KAKOI_TEST_DIRECTORY";
const CGROUP: &str = "KAKOI_TEST_CGROUP";
/// Which point kills it, and at which time that it gets there from now on.
const ARMED: &str = "armed";
/// The points that it has come to.
const REACHED: &str = "reached";

/// Not a test: what [`Agent::start`] starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by other tests as their node agent"]
async fn agent() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    // A test that is killed leaves no node agent behind.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    let read = |name: &str| fs::read(directory.join(name)).unwrap();
    let settings = Settings {
        directory: &directory,
        cgroup: &std::env::var(CGROUP).unwrap(),
        tls: ServerTls {
            serving: ServingCertificate::Fixed { certificate: read("serving.crt"), key: read("serving.key") },
            client_ca: read("ca.crt"),
        },
        clock: Clock::system(),
        faults: Arc::new(Killer::new(&directory)),
    };
    let mut kubeconfig = Kubeconfig::read_from(directory.join("admin.kubeconfig")).unwrap();
    for user in &mut kubeconfig.auth_infos {
        user.auth_info =
            Some(kube::config::AuthInfo { token: Some(TOKEN.to_owned().into()), ..Default::default() });
    }
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let cri = cri::connect_unix_lazily(&directory.join("cri.sock"));
    let listener = kubelet::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    kubelet::run(settings.config(client, cri.into(), listener), None, CancellationToken::new())
        .await
        .unwrap();
}

/// Kills the process at a point, as the kernel would.
#[derive(Debug)]
struct Killer {
    directory: PathBuf,
    /// The points that it has come to since the test chose one.
    seen: Mutex<(String, usize)>,
    log: Mutex<File>,
}

impl Killer {
    fn new(directory: &Path) -> Self {
        let log = File::options().append(true).create(true).open(directory.join(REACHED)).unwrap();
        Self { directory: directory.to_owned(), seen: Mutex::default(), log: Mutex::new(log) }
    }
}

impl Faults for Killer {
    fn at(&self, point: CrashPoint) -> std::io::Result<()> {
        writeln!(self.log.lock().unwrap(), "{point:?}")?;
        let armed = fs::read_to_string(self.directory.join(ARMED)).unwrap_or_default();
        let Some((name, time)) = armed.split_once(' ').filter(|(name, _)| *name == format!("{point:?}"))
        else {
            return Ok(());
        };
        let mut seen = self.seen.lock().unwrap();
        if seen.0 != armed {
            *seen = (armed.clone(), 0);
        }
        seen.1 += 1;
        if seen.1.to_string() == time {
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
            unreachable!("killed at {name}");
        }
        Ok(())
    }
}

/// The node agent of a [`Node`] that has none in the test's process.
pub(crate) struct Agent {
    child: Child,
    directory: PathBuf,
    cgroup: String,
}

impl Agent {
    /// Serves the node's runtime on a socket and starts the node agent over it.
    pub(crate) async fn start(node: &Node) -> Self {
        let directory = node.directory.path().to_owned();
        let socket = cri::bind_unix(&directory.join("cri.sock")).await.unwrap();
        let routes = cri::routes(node.script.clone(), node.script.clone());
        tokio::spawn(cri::serve(routes, UnixListenerStream::new(socket), node.shutdown.child_token()));
        let ServerTls { serving: ServingCertificate::Fixed { certificate, key }, client_ca } = node.tls()
        else {
            unreachable!("the test's certificates are fixed");
        };
        for (name, text) in [("serving.crt", certificate), ("serving.key", key), ("ca.crt", client_ca)] {
            fs::write(directory.join(name), text).unwrap();
        }
        let child = spawn(&directory, &node.cgroup);
        Self { child, directory, cgroup: node.cgroup.clone() }
    }

    /// Starts it again after it was killed.
    pub(crate) fn restart(&mut self) {
        let _ = fs::remove_file(self.directory.join(ARMED));
        let _ = fs::remove_file(self.directory.join(REACHED));
        self.child = spawn(&self.directory, &self.cgroup);
    }

    /// Has it killed when it comes to `point` for the `time`th time from now on.
    pub(crate) fn arm(&self, point: CrashPoint, time: usize) {
        fs::write(self.directory.join("armed.new"), format!("{point:?} {time}")).unwrap();
        fs::rename(self.directory.join("armed.new"), self.directory.join(ARMED)).unwrap();
    }

    /// Waits until it has come to `point` since it was started.
    pub(crate) async fn reached(&self, point: CrashPoint) {
        let reached = self.directory.join(REACHED);
        let name = format!("{point:?}");
        until(&format!("the node agent is at {name}"), async || {
            fs::read_to_string(&reached).unwrap_or_default().lines().any(|line| line == name)
        })
        .await;
    }

    /// Whether it was killed.
    pub(crate) fn is_dead(&mut self) -> bool {
        let ended = self.child.try_wait().unwrap();
        assert!(
            ended.is_none_or(|status| status.signal() == Some(9)),
            "it ended by itself: {ended:?}\n{}",
            self.log()
        );
        ended.is_some()
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.join("agent.log")).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(directory: &Path, cgroup: &str) -> Child {
    let log = File::options().append(true).create(true).open(directory.join("agent.log")).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "agent::agent", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(CGROUP, cgroup)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}
