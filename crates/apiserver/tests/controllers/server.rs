//! An API server in a process of its own, which is killed, and a relay whose address stays when the server's does not.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use apiserver::STORE_FILE;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::model::Log;

const DIRECTORY: &str = "KAKOI_TEST_API_DIRECTORY";
const LISTENING: &str = "listening ";

/// What the process does that is killed.
pub(crate) fn serve_until_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let config = crate::common::config(PathBuf::from(directory));
        let server = apiserver::start(config, CancellationToken::new()).await.unwrap();
        std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{LISTENING}{}\n", server.address()))
            .unwrap();
        // Its input ends when the test is gone.
        let _ =
            tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await;
    });
}

/// The process of a server.
struct Process {
    child: Child,
    /// It ends when it cannot say that it has been running for over a minute.
    _says: Lines<BufReader<ChildStdout>>,
}

/// The server that is killed.
pub(crate) struct Server {
    directory: tempfile::TempDir,
    process: Process,
    /// Where clients find it.
    address: SocketAddr,
    /// Where it is now; `None` while it is dead.
    target: watch::Sender<Option<SocketAddr>>,
    log: Log,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (process, at) = spawn(&directory).await;
        let (target, is_at) = watch::channel(Some(at));
        tokio::spawn(relay(listener, is_at));
        Self { directory, process, address, target, log: Log::default() }
    }

    /// Tells whether the server is there.
    pub(crate) fn target(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.target.subscribe()
    }

    pub(crate) async fn client(&self) -> kube::Client {
        let kubeconfig = Kubeconfig::read_from(self.directory.path().join("admin.kubeconfig")).unwrap();
        let options = KubeConfigOptions::default();
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        config.cluster_url = format!("https://{}", self.address).parse().unwrap();
        kube::Client::try_from(config).unwrap()
    }

    pub(crate) async fn kill_and_restart(&mut self) {
        self.kill().await;
        let (process, at) = spawn(&self.directory).await;
        self.process = process;
        self.target.send_replace(Some(at));
    }

    /// Kills it for good, and gives all changes that were ever made.
    pub(crate) async fn end(mut self) -> Log {
        self.kill().await;
        self.log
    }

    async fn kill(&mut self) {
        self.process.child.kill().await.unwrap();
        self.target.send_replace(None);
        self.log.read(&self.directory.path().join(STORE_FILE)).await;
    }
}

/// Starts the process, and waits until it serves.
async fn spawn(directory: &tempfile::TempDir) -> (Process, SocketAddr) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "an_api_server_until_killed", "--ignored", "--nocapture"])
        .env(DIRECTORY, directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    loop {
        let line = lines.next_line().await.unwrap().unwrap();
        if let Some((_, address)) = line.split_once(LISTENING) {
            return (Process { child, _says: lines }, address.parse().unwrap());
        }
    }
}

/// Carries connections to wherever the server is. They break when it goes; while it is away, new ones do at once.
async fn relay(listener: TcpListener, target: watch::Receiver<Option<SocketAddr>>) {
    while let Ok((mut near, _)) = listener.accept().await {
        let mut target = target.clone();
        let Some(at) = *target.borrow_and_update() else { continue };
        tokio::spawn(async move {
            let Ok(mut far) = TcpStream::connect(at).await else { return };
            tokio::select! {
                _ = copy_bidirectional(&mut near, &mut far) => {}
                _ = target.changed() => {}
            }
        });
    }
}
