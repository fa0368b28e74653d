//! `kakoi runtime` for a test: the container runtime as a program of its own, in a [`Node`]'s namespaces.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::node::{Node, Ran, instance, kakoi, run};

/// A container runtime without a kubelet. Dropped, it is ended with all that it runs.
#[derive(Debug)]
pub struct Runtime<'a> {
    node: &'a Node,
    root: PathBuf,
    flags: Vec<String>,
    daemon: Option<Child>,
}

impl<'a> Runtime<'a> {
    /// Starts it and gives it `busybox`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(node: &'a Node) -> Self {
        Self::start_with(node, &[])
    }

    /// Starts it with more flags and gives it `busybox`.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_with(node: &'a Node, flags: &[&str]) -> Self {
        let root = node.root().join("runtime");
        let settings = root.join("etc/kakoi");
        fs::create_dir_all(&settings).expect("the runtime's root can be made");
        let mirrors = node.root().join("etc/kakoi/certs.d");
        std::os::unix::fs::symlink(mirrors, settings.join("certs.d")).expect("the mirrors can be named");
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut runtime = Self { node, root, flags, daemon: None };
        runtime.spawn();
        runtime.wait();
        let mut pull = node.inside(&kakoi());
        pull.args(["image", "pull", "busybox", "--root"]).arg(&runtime.root);
        run(pull, "kakoi image pull busybox", "").ok();
        runtime
    }

    /// The socket on which it serves CRI.
    pub fn socket(&self) -> PathBuf {
        self.root.join("run/kakoi/kakoi.sock")
    }

    /// The instance's name, as it names cgroups.
    pub fn instance(&self) -> String {
        instance(&self.root)
    }

    /// Starts the daemon (again) and waits for nothing.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn spawn(&mut self) {
        let log = File::options().append(true).create(true).open(self.root.join("log"));
        let mut command = self.node.inside(&kakoi());
        command.args(["runtime", "--listen", &format!("unix://{}", self.socket().display()), "--root"]);
        command
            .arg(&self.root)
            .args(&self.flags)
            .env("KAKOI_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = command.stderr(log.expect("the log can be opened")).spawn();
        self.daemon = Some(child.expect("kakoi can be run"));
    }

    /// Waits until it serves CRI.
    ///
    /// # Panics
    /// When it does not within 30 seconds.
    pub fn wait(&self) {
        let socket = self.socket();
        self.node.until("`kakoi runtime`", Duration::from_secs(30), |_| UnixStream::connect(&socket).is_ok());
    }

    /// Ends all that it runs, and the daemon (`kakoi down`).
    pub fn down(&mut self) -> Ran {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let mut down = self.node.inside(&kakoi());
        down.args(["down", "--grace-period", "0", "--root"]).arg(&self.root);
        run(down, "kakoi down", "")
    }

    /// The daemon's PID.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("the runtime runs").id()
    }

    /// Ends the daemon as the kernel would, without a word.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        let mut daemon = self.daemon.take().expect("the runtime runs");
        daemon.kill().and_then(|()| daemon.wait()).expect("a child can be ended");
    }
}

impl Drop for Runtime<'_> {
    fn drop(&mut self) {
        let _ = self.down();
    }
}
