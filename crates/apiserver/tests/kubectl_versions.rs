//! One session with each of three `kubectl`s: that of Debian 12 (1.20, which speaks SPDY and OpenAPI v2 alone), the one that
//! is installed (1.32 where it was recorded), and that of Debian sid (1.36). What they say is held as text in `golden/`;
//! `UPDATE_GOLDEN=1` writes it anew. `hack/prepare.sh test` fetches the two that are not installed.
//!
//! Of a version that no text is held of, each step must end as it does with the one of which there is a text.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod common;
#[path = "kubectl_streams/kubelet.rs"]
mod kubelet;
#[path = "kubectl_versions/session.rs"]
mod session;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use base64::Engine as _;
use common::Cluster;
use common::golden::{golden, path, steady};
use session::{STEPS, Step};

/// Seconds that a step may take; one that is ended then shows `exit 124`.
const LIMIT: u32 = 40;

/// Where `hack/prepare.sh` puts what it fetches.
fn fetched(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    target.join("kubectl").join(name)
}

/// A `kubectl`.
struct Program {
    path: PathBuf,
    /// `1.36.4`
    version: String,
    minor: u32,
}

impl Program {
    fn new(path: PathBuf) -> Self {
        let said = Command::new(&path).args(["version", "--client", "-o", "json"]).output();
        let said =
            said.unwrap_or_else(|error| panic!("{}: {error}; run hack/prepare.sh test", path.display()));
        let said: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
        let version =
            said["clientVersion"]["gitVersion"].as_str().unwrap().trim_start_matches('v').to_owned();
        let minor = version.split('.').nth(1).unwrap().parse().unwrap();
        Self { path, version, minor }
    }
}

/// A cluster with one node, whose kubelet is played, and three Pods on it.
fn cluster(program: &Program) -> Cluster {
    let mut cluster = Cluster::start();
    kubelet::start(&cluster);
    cluster.kubectl.clone_from(&program.path);
    cluster
}

/// A request for a certificate as `kubectl create -f` takes it.
fn request() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::default();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "jane");
    let request = parameters.serialize_request(&key).unwrap().pem().unwrap();
    base64::engine::general_purpose::STANDARD.encode(request)
}

/// What a step showed.
struct Shown {
    line: &'static str,
    text: String,
    code: i32,
}

/// Types every step that the version has.
fn play(cluster: &Cluster, minor: u32) -> Vec<Shown> {
    let request = request();
    let play_one = |step: &Step| {
        let mut command = cluster.limited(LIMIT, &[]);
        command.args(step.arguments()).env("KUBE_EDITOR", "sed -i s/blue/green/");
        let said = common::run(&mut command, &session::input(step, &request));
        let text = format!("{}{}", steady(&said.out), steady(&said.err));
        Shown { line: step.line, text, code: said.code }
    };
    STEPS.iter().filter(|step| step.minors.contains(&minor)).map(play_one).collect()
}

fn write_out(minor: u32, shown: &[Shown]) -> String {
    let mut text = format!("# kubectl 1.{minor}\n");
    for Shown { line, text: said, code } in shown {
        write!(text, "\n$ kubectl {line}\n{said}").unwrap();
        if *code != 0 {
            writeln!(text, "exit {code}").unwrap();
        }
    }
    text
}

/// How each step of a held text ended.
fn endings(held: &str) -> Vec<i32> {
    let code = |step: &str| {
        let last = step.trim_end().lines().next_back().unwrap_or_default();
        last.strip_prefix("exit ").map_or(0, |code| code.parse().unwrap())
    };
    held.split("\n$ kubectl ").skip(1).map(code).collect()
}

/// Plays the session, and holds it against the text of a version.
fn hold(program: &Program, recorded: u32) {
    let cluster = cluster(program);
    let shown = play(&cluster, program.minor);
    let name = format!("kubectl_1_{recorded}.txt");
    if program.minor == recorded {
        return golden(&name, &write_out(recorded, &shown));
    }
    // Written past the capture of the test's output: whoever reads the log must see what was compared.
    let note = format!(
        "kubectl {} ran; texts are held of 1.{recorded}: endings alone are compared\n",
        program.version
    );
    std::io::stderr().write_all(note.as_bytes()).unwrap();
    let held = std::fs::read_to_string(path(&name)).unwrap();
    let both = STEPS.iter().filter(|step| step.minors.contains(&recorded)).zip(endings(&held));
    let mut held = both.filter(|(step, _)| step.minors.contains(&program.minor));
    for now in shown.iter().filter(|now| has(now.line, recorded)) {
        let (step, code) = held.next().unwrap();
        assert_eq!((now.line, now.code), (step.line, code), "{}", now.text);
    }
}

/// Whether a version has a step.
fn has(line: &str, minor: u32) -> bool {
    STEPS.iter().any(|step| step.line == line && step.minors.contains(&minor))
}

/// A `kubectl` that goes on, and the lines that it says.
struct Running(Child, BufReader<std::process::ChildStdout>);

impl Running {
    fn new(cluster: &Cluster, arguments: &[&str]) -> Self {
        let mut child = cluster.spawn(arguments);
        let out = child.stdout.take().unwrap();
        Self(child, BufReader::new(out))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The server's version; what goes on until it is ended: a watch, a forwarded port, a proxy; and files that are copied.
fn go_on(program: &Program) {
    let cluster = cluster(program);
    let versions = cluster.ok(&["version"]);
    let server = versions.lines().find(|line| line.starts_with("Server Version: ")).unwrap();
    assert!(server.contains("v1.36."), "{versions}");
    let mut watching = Running::new(&cluster, &["get", "configmaps", "-w", "--no-headers"]);
    cluster.ok(&["create", "configmap", "seen"]);
    assert!(watching.line().starts_with("seen   0"), "a watch");
    cluster.ok(&["delete", "configmap", "seen"]);
    assert!(watching.line().starts_with("seen   0"), "a watch sees what goes");

    let forwarding = Running::new(&cluster, &["port-forward", "pod/shell", ":80"]).forwarded();
    assert_eq!(forwarding, ["hello to 80\n"; 2]);

    let mut proxy = Running::new(&cluster, &["proxy", "--port=0"]);
    let address = proxy.line().rsplit(' ').next().unwrap().to_owned();
    let mut connection = TcpStream::connect(address).unwrap();
    connection.write_all(b"GET /api/v1/namespaces/default HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK") && answer.contains("\"name\":\"default\""), "{answer}");
    copy(&cluster);
}

impl Running {
    /// What two connections through a forwarded port are told.
    fn forwarded(mut self) -> [String; 2] {
        let address: SocketAddr = self.line().split_whitespace().nth(2).unwrap().parse().unwrap();
        [(); 2].map(|()| {
            let mut connection = TcpStream::connect(address).unwrap();
            connection.write_all(b"hello").unwrap();
            let mut answer = String::new();
            connection.read_to_string(&mut answer).unwrap();
            answer
        })
    }
}

/// Copies a mebibyte into a Pod and back; the played kubelet's containers see the files of this machine.
fn copy(cluster: &Cluster) {
    let file = |name: &str| cluster.directory.path().join(name);
    let bytes: Vec<u8> = (0..262_144_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(file("sent"), &bytes).unwrap();
    cluster.ok(&["cp", file("sent").to_str().unwrap(), &format!("shell:{}", file("inside").display())]);
    cluster.ok(&["cp", &format!("shell:{}", file("inside").display()), file("back").to_str().unwrap()]);
    assert!(std::fs::read(file("back")).unwrap() == bytes, "what comes back is what went");
}

/// The `kubectl` of a Debian release, which `hack/prepare.sh test` fetched.
fn debian(release: &str) -> Program {
    Program::new(fetched(release).join("usr/bin/kubectl"))
}

/// The `kubectl` of sid, or why there is none.
fn sid() -> Result<Program, String> {
    std::fs::read_to_string(fetched("sid.missing")).map_or_else(|_| Ok(debian("sid")), Err)
}

#[test]
fn a_session_with_debian_12s_kubectl_reads_as_it_did() {
    hold(&debian("bookworm"), 20);
}

#[test]
fn a_session_with_the_installed_kubectl_reads_as_it_did() {
    hold(&Program::new(PathBuf::from("kubectl")), 32);
}

#[test]
fn a_session_with_sids_kubectl_reads_as_it_did() {
    match sid() {
        Ok(program) => hold(&program, 36),
        Err(why) => std::io::stderr().write_all(format!("left out: {why}").as_bytes()).unwrap(),
    }
}

#[test]
fn watches_forwarded_ports_proxies_and_copies_work_with_debian_12s_kubectl() {
    go_on(&debian("bookworm"));
}

#[test]
fn watches_forwarded_ports_proxies_and_copies_work_with_sids_kubectl() {
    match sid() {
        Ok(program) => go_on(&program),
        Err(why) => std::io::stderr().write_all(format!("left out: {why}").as_bytes()).unwrap(),
    }
}
