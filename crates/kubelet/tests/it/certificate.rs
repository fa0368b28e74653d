//! The node's certificates: whatever instant the kubelet is killed at, the first is asked for once; and the next comes
//! before the end of the one in use.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use kubelet::Clock;
use kubelet::certificate::{
    Bootstrap, BootstrapError, Pair, PairStore, Renewal, RequestError, Step, Template,
};
use rcgen::{CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::node::{Node, until};
use crate::script::Script;

/// What approves and signs: the cluster's part, in the test's hand.
struct Signer {
    requests: Api<CertificateSigningRequest>,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    fn new(client: &Client) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self { requests: Api::all(client.clone()), issuer: Issuer::new(params, key) }
    }

    async fn all(&self) -> Vec<CertificateSigningRequest> {
        self.requests.list(&ListParams::default()).await.unwrap().items
    }

    async fn decide(&self, name: &str, type_: &str) {
        let condition = json!({"type": type_, "status": "True", "reason": "Test", "message": "in the test"});
        self.write("approval", name, &json!({"status": {"conditions": [condition]}})).await;
    }

    async fn write(&self, subresource: &str, name: &str, patch: &Value) {
        let patch = Patch::Merge(patch);
        self.requests.patch_subresource(subresource, name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Approves and signs each request that waits; the certificates are good for so many seconds.
    async fn sign_waiting(&self, seconds: u64) {
        for request in self.all().await {
            let status = request.status.unwrap_or_default();
            if status.certificate.is_some() || status.conditions.is_some() {
                continue;
            }
            let name = request.metadata.name.unwrap();
            self.decide(&name, "Approved").await;
            let pem = String::from_utf8(request.spec.request.0).unwrap();
            let mut asked = CertificateSigningRequestParams::from_pem(&pem).unwrap();
            let now = rcgen::date_time_ymd(1970, 1, 1)
                + Duration::from_secs(Timestamp::now().as_second().try_into().unwrap());
            asked.params.not_before = now - Duration::from_mins(5);
            asked.params.not_after = now + Duration::from_secs(seconds);
            let signed = asked.signed_by(&self.issuer).unwrap().pem();
            self.write("status", &name, &json!({"status": {"certificate": STANDARD.encode(signed)}})).await;
        }
    }

    /// Does so for ever.
    async fn sign_all(&self, seconds: u64) {
        loop {
            self.sign_waiting(seconds).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn bootstrap(node: &Node, steps: fn(Step) -> io::Result<()>) -> Bootstrap {
    Bootstrap {
        client: node.admin.clone(),
        template: Template::client("node"),
        store: store(node),
        clock: Clock::system(),
        steps,
    }
}

fn store(node: &Node) -> PairStore {
    PairStore::client(&node.directory.path().join("pki"))
}

fn killed<T>() -> io::Result<T> {
    Err(io::Error::other("killed"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_killed_at_any_step_of_its_bootstrap_goes_on_with_the_same_request() {
    let kills: [fn(Step) -> io::Result<()>; 3] = [
        |step| if step == Step::KeyWritten { killed() } else { Ok(()) },
        |step| if step == Step::Issued { killed() } else { Ok(()) },
        |step| if step == Step::PairWritten { killed() } else { Ok(()) },
    ];
    for (number, kill) in kills.into_iter().enumerate() {
        let node = Node::without_kubelet(Script::new(), true).await;
        let (signer, stop) = (Signer::new(&node.admin), CancellationToken::new());
        let work = async {
            let error = bootstrap(&node, kill).run(&stop).await.unwrap_err();
            assert!(error.to_string().contains("killed"), "{error}");
            bootstrap(&node, |_| Ok(())).run(&stop).await.unwrap();
        };
        tokio::select! { () = work => {}, () = signer.sign_all(600) => {} }
        assert_eq!(signer.all().await.len(), 1, "kill {number}: one request, whoever waited for it");
        assert!(store(&node).current().unwrap().0.is_valid_at(Timestamp::now()));
        let files = std::fs::read_dir(node.directory.path().join("pki")).unwrap();
        assert!(files.flatten().all(|file| !file.file_name().to_string_lossy().contains(".tmp")));
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_killed_while_it_waits_takes_the_answer_that_came_meanwhile() {
    let node = Node::without_kubelet(Script::new(), true).await;
    let (signer, stop) = (Signer::new(&node.admin), CancellationToken::new());
    let first = bootstrap(&node, |_| Ok(()));
    let asked = until("it has asked", async || !signer.all().await.is_empty());
    tokio::select! { _ = first.run(&stop) => panic!("nobody has answered"), () = asked => {} }
    signer.sign_waiting(600).await;
    bootstrap(&node, |_| Ok(())).run(&stop).await.unwrap();
    assert_eq!(signer.all().await.len(), 1);
    assert!(store(&node).current().is_some());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_request_is_the_end_and_the_next_start_asks_with_another_key() {
    let node = Node::without_kubelet(Script::new(), true).await;
    let (signer, stop) = (Signer::new(&node.admin), CancellationToken::new());
    let first = bootstrap(&node, |_| Ok(()));
    let deny = async {
        until("it has asked", async || !signer.all().await.is_empty()).await;
        signer.decide(signer.all().await[0].metadata.name.as_deref().unwrap(), "Denied").await;
    };
    let (ended, ()) = tokio::join!(first.run(&stop), deny);
    assert!(
        matches!(&ended, Err(BootstrapError::Request(RequestError::Denied { why, .. })) if why.contains("in the test"))
    );
    let again = bootstrap(&node, |_| Ok(()));
    tokio::select! { done = again.run(&stop) => done.unwrap(), () = signer.sign_all(600) => {} }
    assert_eq!(signer.all().await.len(), 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_followed_by_the_next_before_its_end() {
    let node = Node::without_kubelet(Script::new(), true).await;
    let (signer, stop) = (Signer::new(&node.admin), CancellationToken::new());
    let renewal = Renewal {
        store: store(&node),
        template: Template::client("node"),
        client: node.admin.clone(),
        clock: Clock::system(),
    };
    let (told, mut pairs) = tokio::sync::watch::channel(None);
    let keeping = tokio::spawn(renewal.run(told, stop.clone()));
    let follow = async {
        let mut seen: Vec<Arc<Pair>> = Vec::new();
        while seen.len() < 2 {
            pairs.changed().await.unwrap();
            let pair = pairs.borrow_and_update().clone().unwrap();
            assert!(seen.last().is_none_or(|last| last.is_valid_at(Timestamp::now())), "it came too late");
            assert_eq!(store(&node).current().unwrap().0.pem(), pair.pem());
            seen.push(pair);
        }
    };
    tokio::select! { () = follow => {}, () = signer.sign_all(8) => {} }
    stop.cancel();
    keeping.await.unwrap();
    node.stop().await;
}
