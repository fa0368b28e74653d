//! Debian's `docker-registry`: what a real one answers.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use image::{PullErrorKind, RegistryAuth};

use crate::support::{Image, Node, Tar};
use crate::tls::Authority;

/// A registry on a loopback port with its own storage; ended when dropped.
pub(crate) struct RealRegistry {
    child: Child,
    pub(crate) address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl RealRegistry {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| String::new()).await
    }

    /// Starts one with more settings: YAML below `http` and after it, given the registry's directory.
    pub(crate) async fn start_with(settings: impl Fn(&Path) -> String) -> Self {
        // The port is free when asked for; should another take it meanwhile, the next try has another.
        for _ in 0..10 {
            if let Some(registry) = Self::try_start(&settings).await {
                return registry;
            }
        }
        panic!("docker-registry does not start: is it installed (apt-get install docker-registry)?");
    }

    async fn try_start(more: impl Fn(&Path) -> String) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let settings = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: {address}\n{}",
            dir.path().join("data").display(),
            more(dir.path())
        );
        std::fs::write(dir.path().join("config.yml"), settings).unwrap();
        let mut child = Command::new("docker-registry")
            .args(["serve".as_ref(), dir.path().join("config.yml").as_os_str()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry can be run: apt-get install docker-registry");
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                return Some(Self { child, address, _dir: dir });
            }
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let _ = child.kill();
        let _ = child.wait();
        None
    }

    pub(crate) async fn push(&self, name: &str, tag: &str, image: &Image) {
        let base = format!("http://{}/v2/{name}", self.address);
        for (digest, bytes) in &image.blobs {
            let location = self.send("POST", &format!("{base}/blobs/uploads/"), "", Vec::new()).await;
            let separator = if location.contains('?') { '&' } else { '?' };
            let url = format!("{location}{separator}digest={digest}");
            self.send("PUT", &url, "application/octet-stream", bytes.clone()).await;
        }
        let url = format!("{base}/manifests/{tag}");
        self.send("PUT", &url, image::OCI_MANIFEST, image.manifest.clone()).await;
    }

    async fn send(&self, method: &str, url: &str, kind: &str, body: Vec<u8>) -> String {
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<bytes::Bytes>>();
        let request = http::Request::builder().method(method).uri(url).header("content-type", kind);
        let answer = client.request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
        let (head, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        assert!(
            head.status.is_success(),
            "{method} {url}: {} {}",
            head.status,
            String::from_utf8_lossy(&body)
        );
        let location = head.headers.get("location").and_then(|value| value.to_str().ok()).unwrap_or_default();
        location.to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_registry_serves_as_a_mirror_of_docker_io() {
    let node = Node::new();
    let registry = RealRegistry::start().await;
    let image = Image::of(&[Tar::new().file("etc", "1").finish(), Tar::new().file("bin", "2").finish()]);
    registry.push("library/nginx", "latest", &image).await;
    node.hosts("docker.io", &format!("server = \"http://{}\"\n", registry.address));
    let record = node.pull("nginx").await.unwrap();
    assert_eq!(record.repo_digests, [format!("docker.io/library/nginx@{}", image.digest())]);
    assert_eq!(record.id, image.config.as_str());
    assert_eq!(node.pull("nginx").await.unwrap(), record);
    assert_eq!(node.pull(&record.repo_digests[0]).await.unwrap().id, record.id);
    let missing = node.store.pull("nginx:1.99", None, |_| {}).await.unwrap_err();
    assert_eq!(missing.kind(), image::PullErrorKind::NotFound);
    assert!(missing.to_string().contains("manifest unknown"), "{missing}");
    let unknown = node.store.pull("docker.io/no/such", None, |_| {}).await.unwrap_err();
    assert_eq!(unknown.kind(), image::PullErrorKind::NotFound);
    let direct = format!("{}/library/nginx", registry.address);
    assert_eq!(node.pull(&direct).await.unwrap().id, record.id);
}

/// `htpasswd -B`: the user `node` with the password `a-password-of-the-test`.
const HTPASSWD: &str = "node:$2b$05$abcdefghijklmnopqrstuucJN1xUTuNbvk10ocK89fJt/kt8RDCH6";

#[tokio::test(flavor = "multi_thread")]
async fn a_real_registry_behind_tls_wants_its_authority_the_password_and_no_other() {
    let node = Node::new();
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    let registry = RealRegistry::start_with(|dir| {
        let files = [("tls.crt", certificate.pem()), ("tls.key", key.serialize_pem()), ("users", HTPASSWD.to_owned())];
        for (name, text) in files {
            std::fs::write(dir.join(name), text).unwrap();
        }
        let dir = dir.display();
        format!(
            "  tls: {{certificate: {dir}/tls.crt, key: {dir}/tls.key}}\nauth: {{htpasswd: {{realm: test, path: {dir}/users}}}}\n"
        )
    })
    .await;
    let host = format!("localhost:{}", registry.address.port());
    let reference = format!("{host}/app/none");
    let pull =
        async |auth: Option<RegistryAuth>| node.store.pull(&reference, auth, |_| {}).await.unwrap_err();
    let user = |password: &str| {
        Some(RegistryAuth::Basic { username: "node".to_owned(), password: password.to_owned() })
    };

    node.hosts(&host, &format!("server = \"https://{host}\"\n"));
    let stranger = pull(user("a-password-of-the-test")).await.to_string();
    assert!(stranger.contains("UnknownIssuer"), "{stranger}");

    node.hosts(&host, &format!("server = \"https://{host}\"\nca = \"ca.crt\"\n"));
    std::fs::write(node.path().join("certs.d").join(&host).join("ca.crt"), authority.pem()).unwrap();
    assert_eq!(pull(None).await.kind(), PullErrorKind::Unauthorized);
    assert_eq!(pull(user("another")).await.kind(), PullErrorKind::Unauthorized);
    // Known, it is told what nobody else is: that there is no such image.
    assert_eq!(pull(user("a-password-of-the-test")).await.kind(), PullErrorKind::NotFound);

    node.hosts(&host, &format!("server = \"https://{host}\"\nskip_verify = true\n"));
    assert_eq!(pull(user("a-password-of-the-test")).await.kind(), PullErrorKind::NotFound);
}
