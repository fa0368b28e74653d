//! The control plane without a node: API server, controllers and scheduler as programs of their own, driven by the real
//! `kubectl`; and snapshots of what is stored. Nothing here needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends at its first surprise")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::{Ran, run};

/// An instance's root and the API server on it. Dropped, everything is ended and removed.
struct Plane {
    root: PathBuf,
    server: Option<Running>,
}

/// A program that runs, and what it has said to standard error.
struct Running {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Running {
    /// Starts `kakoi` and waits until it says that it is ready: `ready` begins a line, or stands in one.
    fn start(arguments: &[&str], ready: &str) -> Self {
        let mut command = Command::new(tests::kakoi());
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kakoi can be started");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = Arc::new(Mutex::new(String::new()));
        let keep = |said: &Mutex<String>, line: &str| said.lock().unwrap().extend([line, "\n"]);
        loop {
            let Some(Ok(line)) = lines.next() else {
                panic!("kakoi {arguments:?} ended: {}", said.lock().unwrap());
            };
            keep(&said, &line);
            if line.contains(ready) {
                break;
            }
        }
        let rest = said.clone();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| keep(&rest, &line)));
        Self { child, said }
    }

    /// Asks it to end, and waits until it has.
    fn end(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("it can be asked");
        assert!(self.child.wait().unwrap().success(), "{}", self.said.lock().unwrap());
        self.said.lock().unwrap().clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended can't be killed, and need not be.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Plane {
    fn start(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("kakoi-control-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        let mut plane = Self { root, server: None };
        plane.up();
        plane
    }

    fn up(&mut self) {
        let root = self.root.to_str().unwrap().to_owned();
        let arguments = ["apiserver", "--root", &root, "--bind-address", "127.0.0.1", "--secure-port", "0"];
        self.server = Some(Running::start(&arguments, "export KUBECONFIG="));
    }

    fn down(&mut self) {
        self.server.take().unwrap().end();
    }

    fn state(&self, file: &str) -> String {
        self.root.join("var/lib/kakoi").join(file).to_str().unwrap().to_owned()
    }

    fn kubectl_with(&self, arguments: &[&str], input: &str) -> Ran {
        let mut command = Command::new("kubectl");
        command.args(arguments).env("KUBECONFIG", self.state("admin.kubeconfig")).env("HOME", &self.root);
        run(command, &format!("kubectl {}", arguments.join(" ")), input)
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        self.kubectl_with(arguments, "").ok()
    }

    fn snapshot(&self, verb: &str, file: &Path) -> Ran {
        let mut command = Command::new(tests::kakoi());
        command.args(["snapshot", verb]).arg(file).arg("--root").arg(&self.root);
        run(command, &format!("kakoi snapshot {verb}"), "")
    }

    fn revision(&self) -> u64 {
        let list: Value = serde_json::from_str(&self.ok(&["get", "--raw", "/api/v1/namespaces"])).unwrap();
        list.pointer("/metadata/resourceVersion").unwrap().as_str().unwrap().parse().unwrap()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.server = None;
        std::fs::remove_dir_all(&self.root).ok();
    }
}

const NODE: &str = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "by-hand"}}"#;
const POD: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
    "spec": {"containers": [{"name": "c", "image": "busybox"}], "tolerations": [{"operator": "Exists"}]}}"#;
const STATUS: &str = r#"{"status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
    "conditions": [{"type": "Ready", "status": "True"}]}}"#;

#[test]
fn api_server_controllers_and_scheduler_run_as_programs_of_their_own() {
    let plane = Plane::start("roles");
    let controllers = plane.state("controller-manager.kubeconfig");
    let controllers =
        Running::start(&["controller-manager", "--kubeconfig", &controllers], "the controllers run");
    let scheduler = plane.state("scheduler.kubeconfig");
    let scheduler = Running::start(&["scheduler", "--kubeconfig", &scheduler], "the scheduler runs");

    plane.ok(&["create", "namespace", "team"]);
    plane.ok(&["wait", "--for=create", "serviceaccount/default", "-n", "team", "--timeout=30s"]);
    plane.ok(&["wait", "--for=create", "configmap/kube-root-ca.crt", "-n", "team", "--timeout=30s"]);
    let given =
        plane.ok(&["get", "configmap", "kube-root-ca.crt", "-n", "team", "-o", "jsonpath={.data.ca\\.crt}"]);
    assert_eq!(given, std::fs::read_to_string(plane.state("pki/ca.crt")).unwrap());

    plane.kubectl_with(&["create", "-f", "-"], NODE).ok();
    plane.ok(&["patch", "node", "by-hand", "--subresource=status", "--type=merge", "-p", STATUS]);
    plane.kubectl_with(&["create", "-n", "team", "-f", "-"], POD).ok();
    plane.ok(&["wait", "pod/p", "-n", "team", "--for=jsonpath={.spec.nodeName}=by-hand", "--timeout=30s"]);
    // Nobody runs the Pod, so nobody would say that it has ended.
    plane.ok(&["delete", "pod", "p", "-n", "team", "--force", "--grace-period=0"]);
    plane.ok(&["delete", "namespace", "team", "--timeout=60s"]);

    let who = |kubeconfig: &str| plane.ok(&["auth", "whoami", "--kubeconfig", &plane.state(kubeconfig)]);
    assert!(who("scheduler.kubeconfig").contains("system:kube-scheduler"));
    assert!(who("controller-manager.kubeconfig").contains("system:kube-controller-manager"));
    controllers.end();
    scheduler.end();
    let said = plane.kubectl_with(&["get", "--raw", "/readyz"], "").ok();
    assert_eq!(said, "ok");
}

#[test]
fn a_second_server_on_a_root_is_refused_in_a_sentence() {
    let plane = Plane::start("second");
    let mut command = Command::new(tests::kakoi());
    command.args(["apiserver", "--secure-port", "0", "--root"]).arg(&plane.root);
    let said = run(command, "kakoi apiserver", "").refused();
    assert!(said.contains("kakoi already runs on the root") && said.contains("PID"), "{said}");
}

#[test]
fn what_was_saved_comes_back_and_watchers_are_told_to_list_anew() {
    let mut plane = Plane::start("snapshot");
    let file = plane.root.join("saved");
    plane.ok(&["create", "configmap", "kept", "--from-literal=a=early"]);
    plane.ok(&["create", "secret", "generic", "hidden", "--from-literal=a=b"]);
    let saved = plane.snapshot("save", &file).ok();
    let entries = |text: &str| text.split_whitespace().nth(1).unwrap().to_owned();
    plane.ok(&["delete", "secret", "hidden"]);
    plane.ok(&["create", "configmap", "late"]);
    plane.kubectl_with(&["patch", "configmap", "kept", "-p", r#"{"data": {"a": "late"}}"#], "").ok();
    let last = plane.revision();

    let refused = plane.snapshot("restore", &file).refused();
    assert!(refused.contains("another process has it open; stop that process"), "{refused}");
    plane.down();
    let off = plane.root.join("off");
    let offline = plane.snapshot("save", &off).ok();
    assert_ne!(entries(&saved), "0");
    assert_eq!(entries(&saved), entries(&offline), "one object more, one less");

    let whole = std::fs::read(&file).unwrap();
    let cut = plane.root.join("cut");
    std::fs::write(&cut, whole.get(..whole.len() / 2).unwrap()).unwrap();
    let refused = plane.snapshot("restore", &cut).refused();
    assert!(refused.contains("it ends in the middle"), "{refused}");
    std::fs::File::create(&cut).unwrap().write_all(b"{}").unwrap();
    let refused = plane.snapshot("restore", &cut).refused();
    assert!(refused.contains("it is no snapshot of kakoi"), "{refused}");

    let restored = plane.snapshot("restore", &file);
    assert!(restored.stderr.contains("store.redb.replaced"), "{}", restored.stderr);
    assert!(restored.ok().contains("revisions go on from"));
    plane.up();
    assert_eq!(plane.ok(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]), "early");
    plane.ok(&["get", "secret", "hidden"]);
    assert!(plane.kubectl_with(&["get", "configmap", "late"], "").refused().contains("NotFound"));
    assert!(plane.revision() > last);
    let watch = format!("/api/v1/configmaps?watch=true&timeoutSeconds=5&resourceVersion={last}");
    let told = plane.kubectl_with(&["get", "--raw", &watch], "");
    let told = format!("{}{}", told.stdout, told.stderr);
    assert!(told.contains("too old resource version"), "{told}");
}

#[test]
fn only_who_may_do_everything_gets_a_snapshot() {
    let plane = Plane::start("rights");
    let path = "/kakoi/snapshot";
    let said =
        plane.kubectl_with(&["get", "--raw", path, "--as", "jane", "--as-group", "system:authenticated"], "");
    assert!(said.refused().contains("Forbidden"));
    let said = plane.kubectl_with(&["get", "--raw", path, "--as", "system:kube-controller-manager"], "");
    assert!(said.refused().contains("Forbidden"));
    assert!(plane.ok(&["get", "--raw", "/"]).contains(path));
}
