//! Service account tokens for projected volumes: asked of the API bound to the Pod, renewed well before they expire.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::Pod;
use kube::core::Request;
use kube::{Client, Error};

use crate::volume::payload::{TokenRequestKey, Tokens, token_requests};

/// Longest time that a token is used before it is renewed.
const LONGEST_USE: SignedDuration = SignedDuration::from_hours(24);

/// Longest wait for the API to renew a token that still serves.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
struct Held {
    token: String,
    /// When it came, by the same clock: that clock set back says nothing of when to renew it.
    since: Timestamp,
    renew_at: Timestamp,
}

impl Held {
    fn is_due(&self, now: Timestamp) -> bool {
        self.renew_at <= now || now < self.since
    }
}

/// The tokens of one Pod.
#[derive(Debug, Default)]
pub(crate) struct PodTokens {
    held: BTreeMap<TokenRequestKey, Held>,
}

/// A token that the API refuses.
#[derive(Debug, thiserror::Error)]
#[error("failed to fetch token: {0}")]
pub(crate) struct TokenError(#[from] Error);

impl PodTokens {
    /// All tokens that the Pod's volumes need; those due are asked for. One that cannot be renewed is used on.
    pub(crate) async fn fetch(
        &mut self,
        client: &Client,
        pod: &Pod,
        now: Timestamp,
    ) -> Result<Tokens, TokenError> {
        for key in token_requests(pod) {
            let wanted = Wanted { audience: &key.audience, seconds: Some(key.expiration_seconds) };
            let Some(held) = self.held.get_mut(&key) else {
                let answer = request(client, pod, wanted).await?;
                self.held.insert(key, hold(answer, now));
                continue;
            };
            if !held.is_due(now) {
                continue;
            }
            let problem = match tokio::time::timeout(PATIENCE, request(client, pod, wanted)).await {
                Ok(Ok(answer)) => {
                    *held = hold(answer, now);
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("the API has not answered within {} s", PATIENCE.as_secs()),
            };
            tracing::warn!(pod = pod.metadata.name, problem, "token not renewed; the old one is used on");
            held.since = now;
            held.renew_at = now.saturating_add(SignedDuration::from_secs(60)).unwrap_or(now);
        }
        Ok(self.held.iter().map(|(key, held)| (key.clone(), held.token.clone())).collect())
    }

    /// Whether a token is due.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        self.held.values().any(|held| held.is_due(now))
    }

    /// When the next token is due.
    pub(crate) fn next_renewal(&self) -> Option<Timestamp> {
        self.held.values().map(|held| held.renew_at).min()
    }
}

/// Renewed after four fifths of the token's life, at the latest after a day.
fn hold(answer: TokenRequest, now: Timestamp) -> Held {
    let status = answer.status.unwrap_or_default();
    let life = status.expiration_timestamp.map(|time| time.0.duration_since(now)).unwrap_or_default();
    let use_for = (life * 4 / 5).min(LONGEST_USE).max(SignedDuration::from_secs(1));
    Held {
        token: status.token.unwrap_or_default(),
        since: now,
        renew_at: now.saturating_add(use_for).unwrap_or(Timestamp::MAX),
    }
}

/// For whom a token is, and how long it lasts, in seconds; the API's own audience and time where nothing is said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) audience: &'a str,
    pub(crate) seconds: Option<i64>,
}

/// Asks for a token of the Pod's service account, bound to the Pod.
pub(crate) async fn request(
    client: &Client,
    pod: &Pod,
    wanted: Wanted<'_>,
) -> Result<TokenRequest, TokenError> {
    let meta = &pod.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let account =
        pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
    let body = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(wanted.audience.to_owned())
                .filter(|text| !text.is_empty())
                .map(|text| vec![text]),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
            }),
            expiration_seconds: wanted.seconds,
        }),
        ..TokenRequest::default()
    };
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
    let data = serde_json::to_vec(&body).map_err(Error::SerdeError)?;
    let request = Request::new(path)
        .create_subresource("token", account, &kube::api::PostParams::default(), data)
        .map_err(Error::BuildRequest)?;
    Ok(client.request(request).await?)
}
