//! A second machine of a test's cluster: a container runtime and `kakoi kubelet`, each a process of its own, joined to a
//! [`Node`]'s API server with a kubeconfig, as a person joins one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::node::{Node, Ran, kakoi, run};

/// The node agent's name in the API.
pub const WORKER: &str = "worker";

/// What the kubeconfig shows to the API server.
const TOKEN: &str = "the-workers-own-token";

/// A node agent alone, over a runtime alone. Dropped, both are ended and its Pods with them.
#[derive(Debug)]
pub struct Agent<'a> {
    node: &'a Node,
    root: PathBuf,
    endpoint: String,
    joining: Joining,
    runtime: Option<Child>,
    kubelet: Option<Child>,
}

/// How the node agent joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joining {
    /// With a kubeconfig and a serving certificate that somebody made for it.
    Made,
    /// With a bootstrap token: it asks for its certificates.
    Bootstrap,
}

/// Has the API server know the worker, from its next start on.
///
/// # Panics
/// When the node's files can't be written.
pub fn admit_worker(node: &Node) {
    let file = node.root().join("tokens.csv");
    let line = format!("{TOKEN},system:node:{WORKER},worker,\"system:nodes\"\n");
    fs::write(&file, line).expect("the tokens can be written");
    node.configure(&format!("tokenAuthFile: {}\n", file.display()));
}

impl<'a> Agent<'a> {
    /// Joins a node of `admit_worker` with `kakoi runtime` as its runtime. Nothing runs yet.
    ///
    /// # Panics
    /// When its files can't be made.
    pub fn new(node: &'a Node) -> Self {
        let root = node.root().join(WORKER);
        let endpoint = format!("unix://{}", root.join("run/kakoi/kakoi.sock").display());
        Self::over(node, &endpoint)
    }

    /// Joins a node over whatever serves CRI at `endpoint`, as [`Self::new`]. Nothing runs yet.
    ///
    /// # Panics
    /// When its files can't be made.
    pub fn over(node: &'a Node, endpoint: &str) -> Self {
        let agent = Self::prepare(node, endpoint, Joining::Made);
        agent.write_kubeconfig("kubeconfig", TOKEN);
        agent.issue_certificate();
        agent.configure("");
        agent
    }

    /// Joins a node with `kakoi runtime` as its runtime and a bootstrap token alone, which must be of this Secret's
    /// user. Nothing runs yet.
    ///
    /// # Panics
    /// When its files can't be made.
    pub fn bootstrapping(node: &'a Node, token: &str) -> Self {
        let endpoint = format!("unix://{}", node.root().join(WORKER).join("run/kakoi/kakoi.sock").display());
        let agent = Self::prepare(node, &endpoint, Joining::Bootstrap);
        agent.write_kubeconfig("bootstrap-kubeconfig", token);
        agent.configure("rotateCertificates: true\nserverTLSBootstrap: true\n");
        agent
    }

    fn prepare(node: &'a Node, endpoint: &str, joining: Joining) -> Self {
        let root = node.root().join(WORKER);
        let registries = root.join("etc/kakoi/certs.d");
        fs::create_dir_all(&registries).expect("the worker's root can be made");
        let own = node.root().join("etc/kakoi/certs.d/docker.io");
        std::os::unix::fs::symlink(own, registries.join("docker.io")).expect("the mirror can be named");
        Self { node, root, endpoint: endpoint.to_owned(), joining, runtime: None, kubelet: None }
    }

    /// Its root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn write_kubeconfig(&self, name: &str, token: &str) {
        let view = |path: &str| {
            let path = format!("jsonpath={{.clusters[0].cluster.{path}}}");
            self.node.kubectl(&["config", "view", "--raw", "-o", &path]).ok()
        };
        let (server, ca) = (view("server"), view("certificate-authority-data"));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{ name: c, cluster: {{ server: \"{server}\", certificate-authority-data: {ca} }} }}]\n\
             users: [{{ name: c, user: {{ token: {token} }} }}]\n\
             contexts: [{{ name: c, context: {{ cluster: c, user: c }} }}]\n"
        );
        fs::write(self.root.join(name), text).expect("the kubeconfig can be written");
    }

    /// A serving certificate of the cluster's CA: the API server speaks to no other kubelet.
    fn issue_certificate(&self) {
        let line = format!(
            "cd {root} && openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout serving.key \
             -subj /O=system:nodes/CN=system:node:{WORKER} -out serving.csr && \
             printf 'subjectAltName=DNS:{WORKER},IP:192.0.2.10' > serving.ext && \
             openssl x509 -req -in serving.csr -CA {pki}/ca.crt -CAkey {pki}/ca.key -CAcreateserial -days 2 \
             -extfile serving.ext -out serving.crt",
            root = self.root.display(),
            pki = self.node.root().join("var/lib/kakoi/pki").display(),
        );
        self.node.shell(&line).ok();
    }

    /// Writes its `KubeletConfiguration` with these further fields.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn configure(&self, fields: &str) {
        let serving = match self.joining {
            Joining::Bootstrap => String::new(),
            Joining::Made => format!(
                "tlsCertFile: {root}/serving.crt\ntlsPrivateKeyFile: {root}/serving.key\n",
                root = self.root.display()
            ),
        };
        let text = format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 60\n{serving}\
             staticPodPath: {root}/manifests\n\
             authentication: {{ x509: {{ clientCAFile: {ca} }} }}\n{fields}",
            root = self.root.display(),
            ca = self.node.root().join("var/lib/kakoi/pki/ca.crt").display(),
        );
        fs::write(self.root.join("kubelet.yaml"), text).expect("the configuration can be written");
    }

    /// Starts `kakoi runtime`.
    pub fn start_runtime(&mut self) {
        let mut command = self.node.inside(&kakoi());
        command.args(["runtime", "--listen", &self.endpoint, "--root"]).arg(&self.root);
        self.runtime = Some(self.spawn(command, "runtime.log"));
    }

    /// Starts `kakoi kubelet`.
    pub fn start_kubelet(&mut self) {
        let mut command = self.node.inside(&kakoi());
        command.arg("kubelet").arg("--root").arg(&self.root);
        command.arg("--kubeconfig").arg(self.root.join("kubeconfig"));
        if self.joining == Joining::Bootstrap {
            command.arg("--bootstrap-kubeconfig").arg(self.root.join("bootstrap-kubeconfig"));
        }
        command.arg("--config").arg(self.root.join("kubelet.yaml"));
        command.args(["--container-runtime-endpoint", &self.endpoint, "--hostname-override", WORKER]);
        self.kubelet = Some(self.spawn(command, "kubelet.log"));
    }

    fn spawn(&self, mut command: Command, log: &str) -> Child {
        let log = File::options().append(true).create(true).open(self.root.join(log));
        let log = log.expect("the log can be opened");
        let stderr = log.try_clone().expect("a descriptor can be copied");
        command.env("KAKOI_LOG", "info,kubelet=debug").stdin(Stdio::null()).stdout(log).stderr(stderr);
        command.spawn().expect("the process can be started")
    }

    /// Ends the kubelet as the kernel would, without a word.
    pub fn kill_kubelet(&mut self) {
        end(self.kubelet.take());
    }

    /// Ends the runtime as the kernel would, without a word.
    pub fn kill_runtime(&mut self) {
        end(self.runtime.take());
    }

    /// The kubelet's PID.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kubelet_pid(&self) -> u32 {
        self.kubelet.as_ref().expect("the kubelet runs").id()
    }

    /// Waits until the Node is Ready.
    ///
    /// # Panics
    /// When it does not get Ready within a minute; the text has the kubelet's log.
    #[track_caller]
    pub fn ready(&self) {
        let object = format!("node/{WORKER}");
        let condition = "--for=condition=Ready";
        let made = self.node.kubectl(&["wait", "--for=create", &object, "--timeout=60s"]);
        let ran = self.node.kubectl(&["wait", condition, &object, "--timeout=60s"]);
        assert!(made.code == 0 && ran.code == 0, "{}{}\n{}", made.stderr, ran.stderr, self.log());
    }

    /// What the kubelet has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.root.join("kubelet.log")).unwrap_or_default()
    }

    /// Runs `kakoi` with the worker's root.
    pub fn kakoi(&self, arguments: &[&str]) -> Ran {
        let mut command = self.node.inside(&kakoi());
        command.args(arguments).arg("--root").arg(&self.root);
        run(command, &format!("kakoi {}", arguments.join(" ")), "")
    }
}

fn end(child: Option<Child>) {
    let mut child = child.expect("the process runs");
    child.kill().expect("a child can be killed");
    child.wait().expect("a child can be reaped");
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        for child in [&mut self.kubelet, &mut self.runtime].into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = self.kakoi(&["down", "--grace-period", "0"]);
    }
}
