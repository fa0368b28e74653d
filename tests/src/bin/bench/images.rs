//! An image of 40,000 files: its pull from a registry on the loopback, by `kakoi runtime` and by Debian's containerd in
//! turn, and the first Pod of an ID map on it, for which nothing is copied.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cri::ImageClient;
use cri::v1::{ImageSpec, PullImageRequest, RemoveImageRequest};
use tests::{Containerd, Node, Runtime, image_mirror};

use crate::cri::{FIRST, Peer, is_installed, sockets};
use crate::{inside, quiet, report};

/// How often it is pulled by each. A pull takes seconds.
const PULLS: usize = 5;
/// Pods, each with an ID map that none had before.
const PODS: usize = 30;
/// Layers, directories in each, files in each of those, and the length of a file in bytes: 203 MB.
const LAYERS: usize = 4;
const DIRECTORIES: usize = 100;
const FILES: usize = 100;
const LENGTH: usize = 5_080;

/// Where the registry listens in the node's network.
const REGISTRY: &str = "127.0.0.1:5000";
const IMAGE: &str = "127.0.0.1:5000/library/files:latest";

/// Measures it, beside containerd where that is installed.
pub(crate) fn measure() {
    let node = Node::prepare(quiet());
    let registry = Registry::start(&node);
    make_image(&node);
    let ours = Runtime::start(&node);
    let theirs = is_installed("containerd").then(|| Containerd::start(&node));
    let socket = theirs.as_ref().map(|theirs| theirs.socket().display().to_string());
    let own = ours.socket().display().to_string();
    let words: Vec<&str> = ["inside-images", &own].into_iter().chain(socket.as_deref()).collect();
    inside(&node, &words);
    drop(registry);
}

/// Debian's `docker-registry`.
struct Registry(Child);

impl Registry {
    fn start(node: &Node) -> Self {
        let (root, place) = (node.root().join("registry"), node.root().join("registry.yml"));
        let settings = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {REGISTRY}}}\n",
            root.display()
        );
        fs::write(&place, settings).expect("the registry can be configured");
        let mirrors = node.root().join("etc/kakoi/certs.d").join(REGISTRY);
        fs::create_dir_all(&mirrors).expect("the registry can be named");
        fs::write(mirrors.join("hosts.toml"), format!("server = \"http://{REGISTRY}\"\n"))
            .expect("the registry can be named");
        let mut command = node.inside(Path::new("docker-registry"));
        command.arg("serve").arg(place).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = Self(command.spawn().expect("Debian's package `docker-registry` is installed"));
        let ask = format!("curl -sf http://{REGISTRY}/v2/");
        node.until("the registry", Duration::from_secs(30), |node| node.shell(&ask).code == 0);
        child
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `busybox`'s layer and the files above it, packed and pushed as every image of the tests.
fn make_image(node: &Node) {
    let work = node.root().join("files");
    let layout = work.join("layout");
    let mut arguments = vec!["layout".to_owned(), "--out".to_owned(), layout.display().to_string()];
    let mut layers = vec![busybox(&work)];
    layers.extend((0..LAYERS).map(|layer| archive(&work, layer)));
    for layer in layers {
        arguments.extend(["--layer".to_owned(), layer]);
    }
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    arguments.extend(["--cmd", "sh", "--env", path].map(str::to_owned));
    pack(node, &arguments);
    let from = layout.display().to_string();
    pack(node, &["push".to_owned(), "--from".to_owned(), from, format!("{REGISTRY}/library/files")]);
    fs::remove_dir_all(work).expect("what the image was made of can be removed");
}

/// The tar archive of `busybox`'s one layer.
fn busybox(work: &Path) -> String {
    fs::create_dir_all(work).expect("a directory can be made");
    let blobs = image_mirror().join("busybox/blobs/sha256");
    let layers = fs::read_dir(blobs).expect("busybox is there").flatten();
    let largest = layers.max_by_key(|blob| blob.metadata().map_or(0, |blob| blob.len()));
    let largest = largest.expect("busybox has a layer").path();
    let target = work.join("busybox.tar");
    shell(&format!("gzip -dc {} > {}", largest.display(), target.display()));
    target.display().to_string()
}

/// The tar archive of one layer: text that shrinks by half, and is another in each file.
fn archive(work: &Path, layer: usize) -> String {
    let root = work.join(format!("layer{layer}"));
    let mut state = 1_u64 + u64::try_from(layer).unwrap_or_default();
    for directory in 0..DIRECTORIES {
        let directory = root.join(format!("srv/{layer}/{directory}"));
        fs::create_dir_all(&directory).expect("a directory can be made");
        for file in 0..FILES {
            fs::write(directory.join(file.to_string()), text(&mut state)).expect("a file can be written");
        }
    }
    let target = work.join(format!("layer{layer}.tar"));
    let options = "--sort=name --mtime=@0 --numeric-owner --owner=0 --group=0";
    shell(&format!("tar -cf {} {options} -C {} .", target.display(), root.display()));
    target.display().to_string()
}

/// A linear congruential sequence in hexadecimal digits.
fn text(state: &mut u64) -> String {
    let mut text = String::with_capacity(LENGTH + 16);
    while text.len() < LENGTH {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Writing to a String cannot fail.
        let _ = write!(text, "{state:016x}");
    }
    text.truncate(LENGTH);
    text
}

fn shell(line: &str) {
    let status = Command::new("sh").args(["-ec", line]).status().expect("sh can be run");
    assert!(status.success(), "{line}");
}

/// The packer of the tests' images, in the node's network. It is built beside this program.
fn pack(node: &Node, arguments: &[String]) {
    let mut build = Command::new(env!("CARGO"));
    build
        .args(["build", "--quiet", "-p", "image", "--example", "pack"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo can be run").success(), "the packer can be built");
    let own = std::env::current_exe().expect("this program has a path");
    let output = node.inside(&own.with_file_name("examples/pack")).args(arguments).output();
    let output = output.expect("the packer can be run");
    assert!(output.status.success(), "pack {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// One runtime's images.
struct Puller {
    name: &'static str,
    images: ImageClient,
    times: Vec<Duration>,
}

impl Puller {
    async fn new(name: &'static str, socket: &Path) -> Self {
        let channel = cri::connect_unix(socket).await.expect("the runtime serves CRI");
        Self { name, images: cri::image_client(channel), times: Vec::new() }
    }

    async fn pull(&mut self) -> Duration {
        let begin = Instant::now();
        let request = PullImageRequest { image: Some(image()), ..PullImageRequest::default() };
        self.images.pull_image(request).await.expect("the image can be pulled");
        begin.elapsed()
    }

    async fn remove(&mut self) {
        let request = RemoveImageRequest { image: Some(image()) };
        self.images.remove_image(request).await.expect("the image can be removed");
    }
}

fn image() -> ImageSpec {
    ImageSpec { image: IMAGE.to_owned(), ..ImageSpec::default() }
}

/// The pulls in turn, then the Pods.
pub(crate) async fn calls(arguments: &[String]) {
    let (ours, theirs) = sockets(arguments);
    let mut pullers = vec![Puller::new("kakoi", &ours).await];
    if let Some(socket) = theirs {
        pullers.push(Puller::new("containerd", &socket).await);
    }
    for _ in 0..PULLS {
        for puller in &mut pullers {
            let took = puller.pull().await;
            puller.times.push(took);
            puller.remove().await;
        }
    }
    for puller in &mut pullers {
        let what = format!("pull and unpack 40,000 files: {}", puller.name);
        let bound = if puller.name == "kakoi" { "4 s" } else { "none" };
        report(&what, bound, &mut puller.times);
    }
    if let Some(puller) = pullers.first_mut() {
        puller.pull().await;
    }
    for (what, name, first) in [("40,000 files", IMAGE, 3 * FIRST), ("busybox", "busybox", 3 * FIRST + 100)] {
        let mut peer = Peer::new("image", &ours, true, first).await;
        peer.image = name;
        let mut times = Vec::new();
        for _ in 0..PODS {
            times.push(peer.first_of_its_map().await);
        }
        report(&format!("first Pod of an ID map, {what}"), "none", &mut times);
    }
}
