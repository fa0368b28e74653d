//! The cluster's `ClusterTrustBundle`s: watched all together while a Pod of the node projects one, and what a projection
//! of them holds. Whether the API has the kind is asked first: it is a beta one, which servers need not serve.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use informer::{Target, Typed, Update};
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use kube::api::ListParams;
use kube::core::Request;
use kube::{Client, Error};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::cache::Known;

const PATH: &str = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
/// When an API that does not serve the kind, or does not answer, is asked again.
const ASK_AGAIN: Duration = Duration::from_mins(1);
/// Characters of a line of PEM.
const LINE: usize = 64;

/// All bundles by name.
pub(crate) type Bundles = BTreeMap<String, Arc<ClusterTrustBundle>>;

/// Why a projection has no trust anchors.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum BundleError {
    #[error(
        "the API server does not serve ClusterTrustBundles (certificates.k8s.io/v1beta1) to this node; turn that API on, project a ConfigMap with the certificates, or set `optional: true`"
    )]
    NotServed,
    #[error("clustertrustbundle.certificates.k8s.io \"{0}\" not found")]
    NotFound(String),
    #[error("combination of signerName and labelSelector matched zero ClusterTrustBundles")]
    NothingMatches,
    #[error("clustertrustbundle.certificates.k8s.io \"{name}\" holds no certificates in PEM: {said}")]
    NotPem { name: String, said: String },
}

/// Follows the bundles until `stop`. Absent means that the API does not have the kind, or not for this node.
pub(super) async fn follow_bundles(
    client: Client,
    state: watch::Sender<Known<Bundles>>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        match is_served(&client).await {
            Ok(true) => return follow(client, state, stop).await,
            Ok(false) => drop(state.send_replace(Known::Absent)),
            Err(error) => tracing::warn!(%error, "the API is asked for ClusterTrustBundles again"),
        }
        let _ = stop.run_until_cancelled(tokio::time::sleep(ASK_AGAIN)).await;
    }
}

async fn is_served(client: &Client) -> Result<bool, Error> {
    let request = Request::new(PATH).list(&ListParams::default().limit(1)).map_err(Error::BuildRequest)?;
    match client.request::<Value>(request).await {
        Ok(_) => Ok(true),
        Err(Error::Api(status)) if matches!(status.code, 403 | 404) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn follow(client: Client, state: watch::Sender<Known<Bundles>>, stop: CancellationToken) {
    let (updates, mut changes) = mpsc::channel::<Update<Typed<ClusterTrustBundle>>>(8);
    let watching = informer::watch(client, Target::all(PATH), updates, stop);
    let taking = async {
        let mut bundles = Bundles::new();
        while let Some(update) = changes.recv().await {
            take(&mut bundles, update);
            state.send_replace(Known::Present(Arc::new(bundles.clone())));
        }
    };
    tokio::join!(watching, taking);
}

fn take(bundles: &mut Bundles, update: Update<Typed<ClusterTrustBundle>>) {
    let name = |bundle: &ClusterTrustBundle| bundle.metadata.name.clone().unwrap_or_default();
    match update.into_objects() {
        Update::Snapshot(all) => {
            *bundles = all.into_iter().map(|bundle| (name(&bundle), Arc::new(bundle))).collect();
        }
        Update::Applied(bundle) => drop(bundles.insert(name(&bundle), Arc::new(bundle))),
        Update::Deleted(bundle) => drop(bundles.remove(&name(&bundle))),
    }
}

/// The certificates that a projection selects, each once and in one order, as PEM without comments. `bundles` is `None`
/// when the API does not have the kind. Nothing selected is an empty file for an optional projection.
pub(crate) fn trust_anchors(
    bundles: Option<&Bundles>,
    projection: &ClusterTrustBundleProjection,
) -> Result<String, BundleError> {
    match select(bundles, projection).and_then(|found| certificates(&found)) {
        Ok(certificates) => Ok(certificates.iter().map(|der| pem(der)).collect()),
        Err(BundleError::NotPem { name, said }) => Err(BundleError::NotPem { name, said }),
        Err(_) if projection.optional == Some(true) => Ok(String::new()),
        Err(error) => Err(error),
    }
}

fn select<'a>(
    bundles: Option<&'a Bundles>,
    projection: &ClusterTrustBundleProjection,
) -> Result<Vec<&'a ClusterTrustBundle>, BundleError> {
    let bundles = bundles.ok_or(BundleError::NotServed)?;
    if let Some(name) = &projection.name {
        let found = bundles.get(name).ok_or_else(|| BundleError::NotFound(name.clone()))?;
        return Ok(vec![found]);
    }
    let selector =
        projection.label_selector.as_ref().and_then(|selector| serde_json::to_value(selector).ok());
    // An absent selector matches nothing, an empty one everything.
    let selector = api::selector::LabelSelector::from_object(selector.as_ref());
    let found = bundles.values().filter(|bundle| {
        let labels = bundle.metadata.labels.as_ref();
        let has_labels = selector.as_ref().is_some_and(|selector| {
            let value = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
            selector.requirements().iter().all(|wanted| wanted.matches_value(value(&wanted.key)))
        });
        has_labels && bundle.spec.signer_name == projection.signer_name
    });
    let found: Vec<&ClusterTrustBundle> = found.map(AsRef::as_ref).collect();
    if found.is_empty() { Err(BundleError::NothingMatches) } else { Ok(found) }
}

fn certificates(bundles: &[&ClusterTrustBundle]) -> Result<BTreeSet<Vec<u8>>, BundleError> {
    let mut all = BTreeSet::new();
    for bundle in bundles {
        for read in CertificateDer::pem_slice_iter(bundle.spec.trust_bundle.as_bytes()) {
            let certificate = read.map_err(|error| BundleError::NotPem {
                name: bundle.metadata.name.clone().unwrap_or_default(),
                said: error.to_string(),
            })?;
            all.insert(certificate.to_vec());
        }
    }
    Ok(all)
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines = text.as_bytes().chunks(LINE).flat_map(|line| [String::from_utf8_lossy(line), "\n".into()]);
    let body: String = lines.collect();
    format!("-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn anchor(byte: u8) -> String {
        pem(&[byte; 50])
    }

    fn bundles() -> Bundles {
        let bundle = |name: &str, signer: Option<&str>, label: &str, anchors: String| {
            let object = json!({"metadata": {"name": name, "labels": {"stage": label}},
                "spec": {"signerName": signer, "trustBundle": anchors}});
            (name.to_owned(), Arc::new(serde_json::from_value(object).unwrap()))
        };
        let signer = Some("example.com/s");
        Bundles::from([
            bundle("plain", None, "live", format!("a comment\n{}", anchor(3))),
            bundle("example.com:s:old", signer, "old", anchor(2)),
            bundle("example.com:s:live", signer, "live", anchor(2) + &anchor(1)),
            bundle("broken", None, "live", "-----BEGIN CERTIFICATE-----\nnever ends".into()),
        ])
    }

    fn project(projection: Value) -> Result<String, String> {
        let projection = serde_json::from_value(projection).unwrap();
        trust_anchors(Some(&bundles()), &projection).map_err(|error| error.to_string())
    }

    #[test]
    fn bundles_are_chosen_by_name_or_by_signer_and_labels() {
        assert_eq!(project(json!({"name": "plain", "path": "p"})), Ok(anchor(3)));
        let by_signer = |selector| {
            project(json!({"signerName": "example.com/s", "labelSelector": selector, "path": "p"}))
        };
        assert_eq!(by_signer(json!({})), Ok(anchor(1) + &anchor(2)), "each certificate once");
        assert_eq!(by_signer(json!({"matchLabels": {"stage": "old"}})), Ok(anchor(2)));
        let nothing =
            Err("combination of signerName and labelSelector matched zero ClusterTrustBundles".to_owned());
        assert_eq!(by_signer(json!({"matchLabels": {"stage": "new"}})), nothing);
        assert_eq!(
            project(json!({"signerName": "example.com/s", "path": "p"})),
            nothing,
            "no selector, no bundle"
        );
    }

    #[test]
    fn what_is_not_there_is_an_error_unless_it_is_optional() {
        let text = project(json!({"name": "none", "path": "p"})).unwrap_err();
        assert_eq!(text, "clustertrustbundle.certificates.k8s.io \"none\" not found");
        assert_eq!(project(json!({"name": "none", "path": "p", "optional": true})), Ok(String::new()));
        let broken = project(json!({"name": "broken", "path": "p", "optional": true})).unwrap_err();
        assert!(
            broken.starts_with("clustertrustbundle.certificates.k8s.io \"broken\" holds no certificates"),
            "{broken}"
        );
        let projection = serde_json::from_value(json!({"name": "plain", "path": "p"})).unwrap();
        assert_eq!(trust_anchors(None, &projection), Err(BundleError::NotServed));
    }
}
