//! A server in the test's process on a free port of the loopback interface, and the real `kubectl` speaking to it.

#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends at its first surprise")]

pub(crate) mod client;
pub(crate) mod connection;
pub(crate) mod golden;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use apiserver::{ApiServer, ApiServerConfig};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// A running server. Dropping it stops it and removes its files.
pub(crate) struct Cluster {
    pub(crate) server: Option<ApiServer>,
    pub(crate) runtime: Runtime,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) shutdown: CancellationToken,
    /// The program that speaks to it.
    pub(crate) kubectl: PathBuf,
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) code: i32,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| {})
    }

    pub(crate) fn start_with(change: impl FnOnce(&mut ApiServerConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let shutdown = CancellationToken::new();
        let mut config = config(directory.path().to_owned());
        change(&mut config);
        let server = runtime.block_on(apiserver::start(config, shutdown.clone())).unwrap();
        let kubectl = PathBuf::from("kubectl");
        let cluster = Self { server: Some(server), runtime, directory, shutdown, kubectl };
        cluster.make_accounts();
        cluster
    }

    /// What the controllers do in a whole node: the account that Pods need.
    fn make_accounts(&self) {
        for namespace in ["default", "kube-system"] {
            self.kubectl(&["create", "serviceaccount", "default", "-n", namespace]);
        }
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("admin.kubeconfig")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        self.prepare(&mut command, arguments);
        command
    }

    /// The same for a command that is ended, with code 124, when it takes longer.
    pub(crate) fn limited(&self, seconds: u32, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.arg(seconds.to_string()).arg(&self.kubectl);
        self.prepare(&mut command, arguments);
        command
    }

    fn prepare(&self, command: &mut Command, arguments: &[&str]) {
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(arguments)
            .env("HOME", self.directory.path())
            .env("KUBECACHEDIR", self.directory.path().join("cache"))
            .env("TZ", "UTC")
            .env_remove("KUBECONFIG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }

    /// Runs `kubectl` with a text on its standard input.
    pub(crate) fn kubectl_with(&self, arguments: &[&str], input: &str) -> Said {
        run(&mut self.command(arguments), input)
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Said {
        self.kubectl_with(arguments, "")
    }

    /// Runs `kubectl`, which must succeed, and gives its output.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with(arguments, "")
    }

    pub(crate) fn ok_with(&self, arguments: &[&str], input: &str) -> String {
        let said = self.kubectl_with(arguments, input);
        assert_eq!(said.code, 0, "kubectl {arguments:?}: {said:#?}");
        said.out
    }

    /// Runs `kubectl`, which must fail, and gives what it says.
    pub(crate) fn fails(&self, arguments: &[&str], input: &str) -> String {
        let said = self.kubectl_with(arguments, input);
        assert_ne!(said.code, 0, "kubectl {arguments:?}: {said:#?}");
        said.err
    }

    /// Starts `kubectl` and leaves it running.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().unwrap()
    }
}

pub(crate) fn config(directory: PathBuf) -> ApiServerConfig {
    ApiServerConfig {
        secure_listen: "127.0.0.1:0".parse().unwrap(),
        advertise: vec!["127.0.0.1".parse().unwrap()],
        names: vec!["testnode".to_owned()],
        service_ip: "10.96.0.1".parse().unwrap(),
        feature_gates: api::feature::Gates::default(),
        userns_policy: userns::policy::Policy::OptIn,
        ids_per_pod: 65_536,
        admin_kubeconfig: directory.join("admin.kubeconfig"),
        access: apiserver::AccessConfig::default(),
        state_dir: directory,
    }
}

/// Runs a command with a text on its standard input.
pub(crate) fn run(command: &mut Command, input: &str) -> Said {
    let mut child = command.spawn().expect("these tests need kubectl on the PATH");
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    said(&child.wait_with_output().unwrap())
}

fn said(output: &Output) -> Said {
    Said {
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code().unwrap_or(-1),
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.join());
        }
    }
}
