//! Debian's containerd for a test: with a configuration, state and sockets of its own, in a [`Node`]'s namespaces.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::images::image_mirror;
use crate::node::Node;

/// A containerd that serves CRI. Dropped, it is ended with all that it runs.
#[derive(Debug)]
pub struct Containerd<'a> {
    node: &'a Node,
    root: PathBuf,
    daemon: Option<Child>,
}

impl<'a> Containerd<'a> {
    /// Starts it and gives it `busybox` and a pause image.
    ///
    /// # Panics
    /// When it is not installed, or does not start.
    pub fn start(node: &'a Node) -> Self {
        let root = node.root().join("containerd");
        fs::create_dir_all(root.join("cni")).expect("containerd's root can be made");
        fs::write(root.join("config.toml"), config(&root)).expect("its configuration can be written");
        fs::write(root.join("cni/net.conflist"), network(&root)).expect("its network can be written");
        // Its shims' sockets have a place that no setting moves.
        node.shell("mkdir -p /run/containerd && mount -t tmpfs tmpfs /run/containerd").ok();
        let mut containerd = Self { node, root, daemon: None };
        containerd.spawn();
        containerd.import("busybox", &image_mirror().join("busybox"));
        let pause = containerd.root.join("pause");
        make_pause(&image_mirror().join("busybox"), &pause);
        containerd.import("pause", &pause);
        containerd
    }

    /// Whether a containerd was named that makes user namespaces, by `KAKOI_CONTAINERD` (`hack/containerd/fetch.sh`).
    pub fn is_newer() -> bool {
        newer().is_some()
    }

    /// Where it serves CRI.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The socket on which it serves CRI.
    pub fn socket(&self) -> PathBuf {
        self.root.join("containerd.sock")
    }

    fn spawn(&mut self) {
        let log = File::options().append(true).create(true).open(self.root.join("log"));
        let log = log.expect("the log can be opened");
        let mut command = self.node.inside(Path::new("containerd"));
        if let Some(directory) = newer() {
            command = self.node.inside(&directory.join("bin/containerd"));
            // It looks there for its shim, and the shim for runc.
            let usual = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{usual}", directory.join("bin").display()));
        }
        command.arg("--config").arg(self.root.join("config.toml")).stdin(Stdio::null()).stdout(Stdio::null());
        self.daemon = Some(command.stderr(log).spawn().expect("Debian's package `containerd` is installed"));
        let line = self.ctr("version");
        self.node.until("containerd", Duration::from_secs(30), |node| node.shell(&line).code == 0);
    }

    /// Ends the daemon without a word and starts it again: what it runs goes on.
    ///
    /// # Panics
    /// When it does not run.
    pub fn restart(&mut self) {
        let mut daemon = self.daemon.take().expect("containerd runs");
        daemon.kill().expect("a child can be killed");
        daemon.wait().expect("a child can be reaped");
        self.spawn();
    }

    fn ctr(&self, arguments: &str) -> String {
        format!("ctr -a {} -n k8s.io {arguments}", self.socket().display())
    }

    fn import(&self, name: &str, layout: &Path) {
        let archive = self.root.join("image.tar");
        let import = self.ctr(&format!("images import --base-name docker.io/library/{name}"));
        let line = format!("tar -C {} -cf {1} . && {import} {1}", layout.display(), archive.display());
        self.node.shell(&line).ok();
    }
}

/// A directory with a newer containerd and runc than Debian's stable ones.
fn newer() -> Option<PathBuf> {
    std::env::var_os("KAKOI_CONTAINERD").map(PathBuf::from)
}

fn config(root: &Path) -> String {
    format!(
        r#"version = 2
root = "{0}/lib"
state = "{0}/run"
[grpc]
  address = "{0}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{0}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:latest"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{0}/cni"
"#,
        root.display()
    )
}

fn network(root: &Path) -> String {
    let addresses = json!({"type": "host-local", "dataDir": root.join("addresses"),
        "ranges": [[{"subnet": "10.199.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]});
    let bridge =
        json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "ipam": addresses});
    json!({"cniVersion": "0.4.0", "name": "net", "plugins": [bridge]}).to_string()
}

/// `busybox` with another program: one that sleeps.
fn make_pause(busybox: &Path, pause: &Path) {
    let read = |path: PathBuf| -> Value {
        let text = fs::read(path).expect("the image's layout can be read");
        serde_json::from_slice(&text).expect("an image is described in JSON")
    };
    let blob = |root: &Path, digest: Option<&Value>| {
        let digest = digest
            .and_then(Value::as_str)
            .expect("a digest is text")
            .trim_start_matches("sha256:")
            .to_owned();
        root.join("blobs/sha256").join(digest)
    };
    let put = |content: &Value| {
        let bytes = content.to_string().into_bytes();
        let hex = Sha256::digest(&bytes).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        fs::write(pause.join("blobs/sha256").join(&hex), &bytes).expect("a blob can be written");
        (json!(format!("sha256:{hex}")), json!(bytes.len()))
    };
    let copied = std::process::Command::new("cp").arg("-r").arg(busybox).arg(pause).status();
    assert!(copied.is_ok_and(|status| status.success()), "the image can be copied");
    let mut index = read(pause.join("index.json"));
    let set = |object: &mut Value, at: &str, (digest, size): (Value, Value)| {
        let object = object.pointer_mut(at).and_then(Value::as_object_mut).expect("an image is described so");
        object.insert("digest".to_owned(), digest);
        object.insert("size".to_owned(), size);
    };
    let mut manifest = read(blob(pause, index.pointer("/manifests/0/digest")));
    let mut config = read(blob(pause, manifest.pointer("/config/digest")));
    *config.pointer_mut("/config/Cmd").expect("the image has a command") = json!(["sleep", "infinity"]);
    set(&mut manifest, "/config", put(&config));
    set(&mut index, "/manifests/0", put(&manifest));
    fs::write(pause.join("index.json"), index.to_string()).expect("the index can be written");
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        let tasks = self.ctr("tasks ls -q");
        let kill = self.ctr("tasks kill -a -s SIGKILL");
        let _ = self.node.shell(&format!("for task in $({tasks}); do {kill} $task; done"));
        // A shim names its daemon's socket.
        let socket = self.socket().display().to_string();
        let shims = format!("grep -l -a -- '-address.{socket}' /proc/[0-9]*/cmdline | cut -d/ -f3");
        let _ = self.node.shell(&format!(
            "for pid in $({shims}); do grep -q containerd-shim /proc/$pid/comm && kill -9 $pid; done"
        ));
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let _ = self.node.shell(&format!("umount -R -l {0}/run; umount -R -l {0}/lib", self.root.display()));
    }
}
