//! `kakoi apiserver` as a program of its own on a root of its own.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use rustix::process::{Pid, Signal, kill_process};

use super::client::Target;
use crate::number;

/// A server that is not ready after this has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A root with the server that runs on it. Dropped, both are gone.
pub(crate) struct Server {
    root: PathBuf,
    port: u16,
    child: Child,
    target: Option<Target>,
}

impl Server {
    /// A server with nothing in it, ready.
    pub(crate) async fn start() -> Self {
        // Not below the temporary directory: what is in memory costs nothing to sync.
        let root = PathBuf::from(format!("/var/tmp/kakoi-bench-{}", std::process::id()));
        std::fs::create_dir_all(&root).expect("a root can be made");
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let port = free.expect("a port is free").port();
        let child = spawn(&root, port);
        let mut server = Self { root, port, child, target: None };
        server.until_ready().await;
        server
    }

    /// Starts it again on the same root; tells how long it took until it was ready.
    pub(crate) async fn restart(&mut self) -> Duration {
        let begin = Instant::now();
        self.child = spawn(&self.root, self.port);
        self.until_ready().await;
        begin.elapsed()
    }

    async fn until_ready(&mut self) {
        let begin = Instant::now();
        while !self.is_ready().await {
            assert!(begin.elapsed() < PATIENCE, "the API server did not get ready");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn is_ready(&mut self) -> bool {
        let kubeconfig = self.root.join("var/lib/kakoi/admin.kubeconfig");
        if self.target.is_none() && kubeconfig.exists() {
            self.target = Some(Target::read(&kubeconfig, self.port).await);
        }
        let Some(target) = &self.target else { return false };
        let Some(mut connection) = target.try_connect().await else { return false };
        let answer = connection.open(Method::GET, "/readyz", &[], Bytes::new()).await;
        answer.is_some_and(|answer| answer.status().is_success())
    }

    /// Who can be asked.
    pub(crate) fn target(&self) -> Target {
        self.target.clone().expect("it was ready once")
    }

    /// A place for files beside the server's own.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn end(&mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("it runs");
        assert!(self.child.wait().expect("it is ours").success(), "the API server ended badly");
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is ours");
    }

    /// Resident now, in kB.
    pub(crate) fn resident(&self) -> u64 {
        number(&format!("/proc/{}/status", self.child.id()), "VmRSS")
    }

    /// The CPU time that it has used.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        // After the name: state is the first field, utime and stime the 12th and 13th; in hundredths of a second.
        let ticks = rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
        Duration::from_millis(ticks.sum::<u64>() * 10)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended can't be killed, and need not be.
        self.child.kill().ok();
        self.child.wait().ok();
        std::fs::remove_dir_all(&self.root).ok();
    }
}

fn spawn(root: &std::path::Path, port: u16) -> Child {
    let mut command = Command::new(tests::kakoi());
    command.arg("apiserver").arg("--root").arg(root).args(["--bind-address", "127.0.0.1"]);
    command.args(["--secure-port", &port.to_string()]).env("KAKOI_LOG", "warn");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("kakoi can be started")
}
