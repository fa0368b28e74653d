//! A node of its own for a test, and the `kubectl` that drives it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::images::{image_mirror, project};
use crate::machine::{Leftovers, leftovers};

/// Below this the tests' nodes have their roots; a directory's name begins with its test process's PID.
/// `KAKOI_TEST_ROOTS` names another place: on a disk that is nearly full (less than 10 % free) a node takes no Pods.
fn roots() -> PathBuf {
    std::env::var_os("KAKOI_TEST_ROOTS").map_or_else(|| "/var/tmp/kakoi-tests".into(), PathBuf::from)
}

/// What the daemon logs: all but what each of many requests says.
const LOG: &str = "debug,path=info,h2=info,hyper=info,hyper_util=info,tower=info,rustls=info";

/// How a test's node differs from any other.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// Further flags of `kakoi up`.
    pub flags: Vec<String>,
    /// Leaves the sub-ID files empty, as on a fresh machine, instead of giving the node a pool of its own. The
    /// test must hold the [`crate::ExactLock`].
    pub is_exact: bool,
}

/// What a command printed and how it ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    line: String,
}

impl Ran {
    fn new(line: String, output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        Self { code, stdout: text(&output.stdout), stderr: text(&output.stderr), line }
    }

    /// The standard output of a command that must succeed.
    ///
    /// # Panics
    /// When it failed; the text has all that it printed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == 0, "`{}` ended with {}:\n{}{}", self.line, self.code, self.stdout, self.stderr);
        self.stdout
    }

    /// The standard error of a command that must fail.
    ///
    /// # Panics
    /// When it succeeded.
    #[track_caller]
    pub fn refused(self) -> String {
        assert!(self.code != 0, "`{}` should have been refused, but printed:\n{}", self.line, self.stdout);
        self.stderr
    }
}

/// A node in a network namespace and a mount namespace of its own. Dropped, it is taken down and removed.
#[derive(Debug)]
pub struct Node {
    root: PathBuf,
    number: u32,
    holder: Child,
    daemon: Option<Child>,
    options: NodeOptions,
    log: String,
}

impl Node {
    /// Starts a node and waits until it is Ready.
    ///
    /// # Panics
    /// When it does not get Ready within a minute; the text has the daemon's log.
    pub fn start() -> Self {
        Self::start_with(NodeOptions::default())
    }

    /// Starts a node with options of its own and waits until it is Ready.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_with(options: NodeOptions) -> Self {
        let mut node = Self::prepare(options);
        node.up();
        node
    }

    /// Makes the node's directories and namespaces without starting the daemon.
    ///
    /// # Panics
    /// When the machine does not let it, for want of root.
    pub fn prepare(options: NodeOptions) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        assert!(rustix::process::geteuid().is_root(), "these tests make namespaces and need root");
        remove_abandoned();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = roots().join(format!("{}-{number}", std::process::id()));
        fs::create_dir_all(&root).expect("the node's root can be made");
        let holder = hold_namespaces(&root, &etc_files(number, options.is_exact), options.is_exact);
        let node = Self { root, number, holder, daemon: None, options, log: LOG.to_owned() };
        node.mirror_images();
        node
    }

    fn mirror_images(&self) {
        let dir = self.root.join("etc/kakoi/certs.d/docker.io");
        fs::create_dir_all(&dir).expect("the registries' directory can be made");
        let text = format!(
            "server = \"https://registry-1.docker.io\"\n\n[host.\"oci:{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
            image_mirror().display()
        );
        fs::write(dir.join("hosts.toml"), text).expect("hosts.toml can be written");
    }

    /// The node's root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Starts the daemon and waits until the node is Ready.
    ///
    /// # Panics
    /// When it does not get Ready within a minute; the text has the daemon's log.
    #[track_caller]
    pub fn up(&mut self) {
        self.spawn_daemon();
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let ready = self.kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=20s"]);
            if ready.code == 0 {
                return;
            }
            let ended = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().ok().flatten());
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "the node is not Ready: {}\n{}",
                ready.stderr,
                self.log()
            );
            wait_a_moment();
        }
    }

    /// Starts the daemon without waiting for anything.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn spawn_daemon(&mut self) {
        let log =
            File::options().append(true).create(true).open(self.log_path()).expect("the log can be opened");
        let mut command = self.inside(&kakoi());
        command
            .arg("up")
            .arg("--root")
            .arg(&self.root)
            .args(["--node-name", "node"])
            .args(&self.options.flags);
        let stderr = log.try_clone().expect("a descriptor can be copied");
        command.stdin(Stdio::null()).stdout(log).stderr(stderr);
        command.env("KAKOI_LOG", &self.log);
        self.daemon = Some(command.spawn().expect("the daemon can be started"));
    }

    /// Gives the daemon other flags from its next start on.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.options.flags = flags.iter().map(ToString::to_string).collect();
    }

    /// Writes the configuration that the daemon reads at its next start.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn configure(&self, yaml: &str) {
        fs::write(self.root.join("etc/kakoi/config.yaml"), yaml).expect("the configuration can be written");
    }

    /// Has the daemon log what this says (`KAKOI_LOG`), from its next start on.
    pub fn set_log(&mut self, filter: &str) {
        filter.clone_into(&mut self.log);
    }

    /// The daemon's PID.
    ///
    /// # Panics
    /// When it does not run.
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon runs").id()
    }

    /// Ends the daemon as the kernel would, without a word.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        daemon.kill().expect("the daemon can be killed");
        daemon.wait().expect("the daemon can be reaped");
    }

    /// Waits until the daemon has ended by itself, and answers its exit code.
    ///
    /// # Panics
    /// When it does not run, or not end within `limit`.
    #[track_caller]
    pub fn wait_daemon(&mut self, limit: Duration) -> Option<i32> {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        self.until("the daemon's end", limit, |_| daemon.try_wait().is_ok_and(|ended| ended.is_some()));
        daemon.wait().expect("the daemon can be reaped").code()
    }

    /// Stops the Pods and the daemon with `kakoi down`.
    #[track_caller]
    pub fn down(&mut self) -> Ran {
        let ran = self.kakoi(&["down", "--grace-period", "0"]);
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.wait();
        }
        ran
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// A command inside the node's namespaces.
    pub fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.holder.id().to_string(), "-n", "-m", "--"]).arg(program);
        command.env("HOME", &self.root).env("KUBECONFIG", self.kubeconfig()).current_dir("/");
        command
    }

    fn kubeconfig(&self) -> PathBuf {
        self.root.join("var/lib/kakoi/admin.kubeconfig")
    }

    /// Runs `kubectl`.
    pub fn kubectl(&self, arguments: &[&str]) -> Ran {
        self.kubectl_with(arguments, "")
    }

    /// Runs `kubectl` with `input` on its standard input.
    ///
    /// # Panics
    /// When it can't be run.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Ran {
        let mut command = self.inside(Path::new("kubectl"));
        command.args(arguments);
        run(command, &format!("kubectl {}", arguments.join(" ")), input)
    }

    /// Runs `kakoi` with this node's root.
    pub fn kakoi(&self, arguments: &[&str]) -> Ran {
        let mut command = self.inside(&kakoi());
        command.args(arguments).arg("--root").arg(&self.root);
        run(command, &format!("kakoi {}", arguments.join(" ")), "")
    }

    /// Runs a shell line inside the node's namespaces.
    pub fn shell(&self, line: &str) -> Ran {
        let mut command = self.inside(Path::new("bash"));
        command.args(["-c", line]);
        run(command, line, "")
    }

    /// Applies a manifest.
    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        self.kubectl_with(&["apply", "-f", "-"], manifest).ok()
    }

    /// Waits until the Pods are Ready, for at most a minute.
    ///
    /// # Panics
    /// When one does not get Ready; the text describes it and has the daemon's log.
    #[track_caller]
    pub fn ready(&self, pods: &[&str]) {
        let names: Vec<String> = pods.iter().map(|pod| format!("pod/{pod}")).collect();
        let mut arguments = vec!["wait", "--for=condition=Ready", "--timeout=60s"];
        arguments.extend(names.iter().map(String::as_str));
        let ran = self.kubectl(&arguments);
        if ran.code != 0 {
            let described = self.kubectl(&["describe", "pod"]).stdout;
            panic!("{}\n{described}\n{}", ran.stderr, tail(&self.log(), 60));
        }
    }

    /// Waits until a JSON path of an object has a value, for at most a minute.
    ///
    /// # Panics
    /// When it does not get it; the text describes the object and has the daemon's log.
    #[track_caller]
    pub fn wait_for(&self, object: &str, path: &str, value: &str) {
        let condition = format!("--for=jsonpath={{{path}}}={value}");
        let ran = self.kubectl(&["wait", object, &condition, "--timeout=60s"]);
        if ran.code != 0 {
            let described = self.kubectl(&["describe", object]).stdout;
            panic!("{}\n{described}\n{}", ran.stderr, tail(&self.log(), 60));
        }
    }

    /// Waits until `probe` is true, for at most `limit`.
    ///
    /// # Panics
    /// When it stays false; `what` says what was waited for.
    #[track_caller]
    pub fn until(&self, what: &str, limit: Duration, mut probe: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + limit;
        while !probe(self) {
            assert!(Instant::now() < deadline, "waited {limit:?} for {what}\n{}", tail(&self.log(), 60));
            wait_a_moment();
        }
    }

    /// Waits until `probe` finds nothing, for at most `limit`.
    ///
    /// # Panics
    /// When it still finds something, with that.
    #[track_caller]
    pub fn until_none(&self, limit: Duration, mut probe: impl FnMut(&Self) -> Vec<String>) {
        let deadline = Instant::now() + limit;
        loop {
            let found = probe(self);
            if found.is_empty() {
                return;
            }
            let log = tail(&self.log(), 60);
            assert!(Instant::now() < deadline, "left after {limit:?}: {found:#?}\n{log}");
            wait_a_moment();
        }
    }

    /// An object as JSON.
    ///
    /// # Panics
    /// When there is no such object.
    #[track_caller]
    pub fn get(&self, object: &str) -> Value {
        let text = self.kubectl(&["get", object, "-o", "json"]).ok();
        serde_json::from_str(&text).expect("kubectl prints JSON")
    }

    /// A command in a Pod's first container.
    #[track_caller]
    pub fn exec(&self, pod: &str, command: &[&str]) -> Ran {
        let mut arguments = vec!["exec", pod, "--"];
        arguments.extend(command);
        self.kubectl(&arguments)
    }

    /// The Pod's UID.
    #[track_caller]
    pub fn uid(&self, pod: &str) -> String {
        self.kubectl(&["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"]).ok()
    }

    /// The Pod's record of its mapping, as it stands on disk.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn record(&self, pod: &str) -> String {
        let path = self.root.join("var/lib/kubelet/pods").join(self.uid(pod)).join("userns");
        fs::read_to_string(path).expect("the Pod has a record")
    }

    /// The Pod's first host ID, from its record.
    ///
    /// # Panics
    /// When there is no record.
    #[track_caller]
    pub fn first_id(&self, pod: &str) -> u64 {
        let record: Value = serde_json::from_str(&self.record(pod)).expect("the record is JSON");
        record.pointer("/uidMappings/0/hostId").and_then(Value::as_u64).expect("the record has a host ID")
    }

    /// The host IDs of the Pod, from its record.
    #[track_caller]
    pub fn range(&self, pod: &str) -> std::ops::Range<u64> {
        let first = self.first_id(pod);
        first..first + 65_536
    }

    /// The instance's name, as it names cgroups and claims.
    ///
    /// # Panics
    /// When `kakoi` can't be run.
    pub fn instance(&self) -> String {
        instance(&self.root)
    }

    /// What the node has left on the machine and in its own network namespace.
    pub fn leftovers(&self) -> Leftovers {
        let mut found = leftovers(&self.root, &self.instance());
        let holder = format!("{}:", self.holder.id());
        found.processes.retain(|process| !process.starts_with(&holder));
        found
    }

    /// What is left in the node's own network namespace: links but for the loopback and the uplink, and tables.
    pub fn network_leftovers(&self) -> String {
        self.shell("ip -o link | grep -vE '^[0-9]+: (lo|uplink|faraway)[:@]'; nft list tables").stdout
    }

    /// The node's number within its test process.
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.down();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// The program under test: `KAKOI_BINARY`, or the debug build that `make e2e` makes before the tests.
pub fn kakoi() -> PathBuf {
    let named = std::env::var_os("KAKOI_BINARY").map(PathBuf::from);
    named.unwrap_or_else(|| project().join("target/debug/kakoi"))
}

/// Runs a command to its end, with `input` on its standard input; `line` names it when it fails.
///
/// # Panics
/// When it can't be run.
pub fn run(mut command: Command, line: &str, input: &str) -> Ran {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("`{line}` can't be run: {e}"));
    let mut stdin = child.stdin.take().expect("its standard input is a pipe");
    // A command that does not read its input is free not to.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("a child can be waited for");
    Ran::new(line.to_owned(), &output)
}

/// Lets 50 ms pass inside a wait that has a deadline.
fn wait_a_moment() {
    std::thread::park_timeout(Duration::from_millis(50));
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all.iter().skip(all.len().saturating_sub(lines)).fold(String::new(), |mut out, line| {
        let _ = writeln!(out, "{line}");
        out
    })
}

/// The sub-ID files of a node: empty, or a pool of 64 blocks of its own.
fn etc_files(number: u32, is_exact: bool) -> Vec<(&'static str, String)> {
    if is_exact {
        return vec![("subuid", String::new()), ("subgid", String::new())];
    }
    // One of 400 slots of 128 blocks, far above what distributions give away.
    let slot = u64::from((std::process::id() * 8 + number) % 400);
    let first = (4_000 + slot * 128) * 65_536;
    let line = format!("kubelet:{first}:{}\n", 128 * 65_536);
    vec![("subuid", line.clone()), ("subgid", line)]
}

/// A process that holds a network and a mount namespace with an `/etc` of its own, and ends with this thread.
fn hold_namespaces(root: &Path, files: &[(&str, String)], is_exact: bool) -> Child {
    let etc = root.join("machine");
    for dir in ["upper", "work"] {
        fs::create_dir_all(etc.join(dir)).expect("the node's own /etc can be made");
    }
    for (name, text) in files {
        fs::write(etc.join("upper").join(name), text).expect("a sub-ID file can be written");
    }
    let mut passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    passwd.push_str("kubelet:x:64999:64999::/nonexistent:/bin/false\n");
    fs::write(etc.join("upper/passwd"), passwd).expect("passwd can be written");
    let address = Ipv4Addr::new(192, 0, 2, 10);
    // Claims that a killed run left behind would move the first Pod; what runs is still found in /proc.
    let register = if is_exact { "mkdir -p /run/kakoi; mount -t tmpfs tmpfs /run/kakoi;" } else { "" };
    let script = format!(
        "set -e; {register} mount -t overlay overlay -o lowerdir=/etc,upperdir={0}/upper,workdir={0}/work /etc; \
         ip link set lo up; ip link add uplink type veth peer name faraway; ip link set faraway up; ip addr add {address}/24 dev uplink; \
         ip link set uplink up; ip route add default via 192.0.2.1; echo ready; exec sleep infinity",
        etc.display()
    );
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "--propagation", "private"]);
    command.args(["bash", "-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut holder = command.spawn().expect("util-linux's `setpriv` and `unshare` are installed");
    let mut ready = [0; 6];
    let stdout = holder.stdout.as_mut().expect("its standard output is a pipe");
    std::io::Read::read_exact(stdout, &mut ready).expect("the node's namespaces can be made");
    holder
}

/// Takes down what killed test runs have left behind.
fn remove_abandoned() {
    for entry in fs::read_dir(roots()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let alive = name.split('-').next().is_some_and(|pid| Path::new("/proc").join(pid).exists());
        if !alive {
            let _ = Command::new("unshare")
                .arg("--net")
                .arg(kakoi())
                .args(["down", "--grace-period", "0", "--root"])
                .arg(entry.path())
                .output();
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The name of the instance whose root this is.
pub(crate) fn instance(root: &Path) -> String {
    let bytes = root.as_os_str().as_encoded_bytes();
    let mix = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    format!("kakoi-{:08x}", bytes.iter().fold(0x811c_9dc5_u32, mix))
}
