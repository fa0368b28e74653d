//! One repository at one host: manifests and blobs over the registry's HTTP interface, with credentials when
//! they are asked for, redirects followed without them, and what broke off taken up where it broke.
//! Source: OCI distribution specification.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

use super::NetworkConfig;
use super::auth::{self, Challenge};
use super::hosts::Endpoint;
use super::http_client::{Exchange, HttpClient};
use crate::digest::Digest;
use crate::error::AttemptError;
use crate::manifest::{ACCEPTED, Descriptor, MAX_DOCUMENT};
use crate::pull::RegistryAuth;
use crate::reference::Reference;
use crate::source::{BlobStream, Fetched};

const MAX_REDIRECTS: usize = 10;
/// Most bytes of an error's explanation or of a token.
const MAX_ANSWER: usize = 64 << 10;
/// Longest time that a registry may tell to wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(20);
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A repository at a host.
pub(crate) struct Repository {
    endpoint: Endpoint,
    name: String,
    auth: Option<RegistryAuth>,
    network: NetworkConfig,
    http: HttpClient,
    authorization: tokio::sync::Mutex<Option<HeaderValue>>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Repository({}/{})", self.endpoint.origin(), self.name)
    }
}

type Answer = http::Response<Incoming>;

impl Repository {
    pub(super) fn new(
        endpoint: Endpoint,
        reference: &Reference,
        auth: Option<RegistryAuth>,
        network: NetworkConfig,
        http: HttpClient,
    ) -> Self {
        let authorization = match &auth {
            Some(RegistryAuth::RegistryToken(token)) => auth::bearer(token),
            _ => None,
        };
        Self {
            endpoint,
            name: reference.repository().to_owned(),
            auth,
            network,
            http,
            authorization: tokio::sync::Mutex::new(authorization),
        }
    }

    /// `https://registry.example`, for messages.
    pub(crate) fn place(&self) -> String {
        self.endpoint.origin()
    }

    /// What a tag means now, without fetching it.
    pub(crate) async fn head(&self, reference: &Reference) -> Result<Option<Digest>, AttemptError> {
        let uri = self.uri("manifests", reference.identifier())?;
        let answer = self.get(Method::HEAD, &uri, &accept_manifests()).await?;
        let said = answer.headers().get(CONTENT_DIGEST).and_then(|value| value.to_str().ok());
        Ok(said.and_then(|digest| digest.parse().ok()))
    }

    /// A manifest by tag or digest.
    pub(crate) async fn manifest(
        &self,
        identifier: &str,
        digest: Option<&Digest>,
    ) -> Result<Fetched, AttemptError> {
        let uri = self.uri("manifests", identifier)?;
        self.document(&uri, &accept_manifests(), digest).await
    }

    /// A configuration, whole.
    pub(crate) async fn small_blob(&self, wanted: &Descriptor) -> Result<Fetched, AttemptError> {
        let uri = self.uri("blobs", wanted.digest.as_str())?;
        self.document(&uri, &HeaderMap::new(), Some(&wanted.digest)).await
    }

    async fn document(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        expected: Option<&Digest>,
    ) -> Result<Fetched, AttemptError> {
        let mut failures = 0;
        loop {
            let answer = self.get(Method::GET, uri, headers).await?;
            let text = |name| answer.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
            let media_type = text(CONTENT_TYPE).unwrap_or_default();
            let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
            let read = Limited::new(answer.into_body(), usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX))
                .collect();
            let error = match tokio::time::timeout(self.network.response_timeout, read).await {
                Ok(Ok(body)) => {
                    let bytes = body.to_bytes();
                    let digest = expected.cloned().unwrap_or_else(|| Digest::of(&bytes));
                    return Fetched { bytes, media_type, digest }.verified();
                }
                Ok(Err(error)) => AttemptError::Broken(error.to_string()),
                Err(_) => self.silence("within its answer", self.network.response_timeout),
            };
            failures += 1;
            self.pause(failures, error, None).await?;
        }
    }

    /// A blob's bytes. What breaks off is asked for again from where it broke.
    pub(crate) async fn blob(self: &Arc<Self>, wanted: &Descriptor) -> Result<BlobStream, AttemptError> {
        let uri = self.uri("blobs", wanted.digest.as_str())?;
        let body = self.get(Method::GET, &uri, &HeaderMap::new()).await?.into_body();
        let reading = Reading {
            repository: Arc::clone(self),
            uri,
            size: wanted.size,
            offset: 0,
            failures: 0,
            resumptions: 0,
            body: Some(body),
            skip: 0,
        };
        let chunks = stream::unfold(Some(reading), |reading| async move {
            let mut reading = reading?;
            match reading.next().await {
                Ok(Some(chunk)) => Some((Ok(chunk), Some(reading))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(chunks.boxed())
    }

    fn uri(&self, kind: &str, identifier: &str) -> Result<Uri, AttemptError> {
        let Endpoint { path, mirrored, .. } = &self.endpoint;
        let origin = self.endpoint.origin();
        let query = mirrored.as_ref().map(|registry| format!("?ns={registry}")).unwrap_or_default();
        let text = format!("{origin}{path}/{}/{kind}/{identifier}{query}", self.name);
        text.parse().map_err(|_| AttemptError::Status(format!("`{text}` is not a URL")))
    }

    /// Asks until there is a useful answer, or an error that asking again does not cure.
    async fn get(&self, method: Method, uri: &Uri, headers: &HeaderMap) -> Result<Answer, AttemptError> {
        let mut failures = 0;
        loop {
            let (error, wait) = match self.get_authorized(&method, uri, headers).await {
                Ok(answer) if answer.status().is_success() => return Ok(answer),
                Ok(answer) if is_passing(answer.status()) => {
                    let wait = retry_after(answer.headers());
                    (self.refusal(answer).await, wait)
                }
                Ok(answer) => return Err(self.refusal(answer).await),
                Err(error @ AttemptError::Broken(_)) => (error, None),
                Err(error) => return Err(error),
            };
            failures += 1;
            self.pause(failures, error, wait).await?;
        }
    }

    /// Waits before another try; gives the error back when there were enough.
    async fn pause(
        &self,
        failures: u32,
        error: AttemptError,
        wait: Option<Duration>,
    ) -> Result<(), AttemptError> {
        if failures > self.network.retries {
            return Err(error);
        }
        let doubled = self.network.backoff.saturating_mul(1 << failures.min(8));
        let wait = wait.unwrap_or(doubled).min(MAX_RETRY_AFTER);
        tracing::debug!(place = %self.place(), %error, ?wait, "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Asks with the credentials that are known; when they are refused, gets others, once.
    async fn get_authorized(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Answer, AttemptError> {
        let used = self.authorization.lock().await.clone();
        let answer = self.follow(method, uri, headers, used.as_ref()).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let challenge = auth::challenge_of(answer.headers());
        let renewed = {
            let mut authorization = self.authorization.lock().await;
            // Another request of this pull may have got new credentials meanwhile.
            if *authorization == used {
                *authorization = self.authorize(challenge.as_ref()).await?;
            }
            authorization.clone()
        };
        match renewed {
            Some(renewed) if used.as_ref() != Some(&renewed) => {
                self.follow(method, uri, headers, Some(&renewed)).await
            }
            _ => Ok(answer),
        }
    }

    async fn authorize(&self, challenge: Option<&Challenge>) -> Result<Option<HeaderValue>, AttemptError> {
        let auth = self.auth.as_ref().filter(|_| self.is_trusted());
        match challenge {
            None => Ok(None),
            Some(Challenge::Basic) => Ok(auth::basic(auth)),
            Some(bearer) => self.fetch_token(bearer, auth).await.map(|token| auth::bearer(&token)),
        }
    }

    /// Credentials are for the registry; a mirror gets them only where nobody can listen.
    fn is_trusted(&self) -> bool {
        self.endpoint.mirrored.is_none() || self.endpoint.is_https || self.endpoint.is_loopback()
    }

    async fn fetch_token(
        &self,
        challenge: &Challenge,
        auth: Option<&RegistryAuth>,
    ) -> Result<String, AttemptError> {
        let request = auth::plan_token(challenge, auth, &self.name, self.endpoint.is_https)
            .map_err(AttemptError::Unauthorized)?;
        let uri: Uri = request.uri.parse().map_err(|_| {
            AttemptError::Unauthorized(format!("its token server `{}` is not a URL", request.uri))
        })?;
        let mut headers = HeaderMap::new();
        if let Some(mut value) = request.authorization.and_then(|text| HeaderValue::from_str(&text).ok()) {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let method = if request.form.is_some() { Method::POST } else { Method::GET };
        if request.form.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        }
        let body = Bytes::from(request.form.unwrap_or_default());
        let answer = self.exchange(Exchange { method, uri: uri.clone(), headers, body }).await?;
        let status = answer.status();
        let body = read_answer(answer, self.network.response_timeout).await;
        let server = uri.authority().map(ToString::to_string).unwrap_or_default();
        match auth::token_of(&body) {
            Some(token) if status.is_success() => Ok(token),
            _ => Err(AttemptError::Unauthorized(format!(
                "the token server {server} answered {}",
                described(status, &body)
            ))),
        }
    }

    /// Follows redirects. Credentials and configured headers go to the host itself only.
    async fn follow(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, AttemptError> {
        let mut to = uri.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut sent = headers.clone();
            if to.authority() == uri.authority() && to.scheme() == uri.scheme() {
                sent.extend(self.endpoint.headers.iter().filter_map(|(name, value)| {
                    Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
                }));
                sent.extend(authorization.map(|value| (AUTHORIZATION, value.clone())));
            }
            let exchange =
                Exchange { method: method.clone(), uri: to.clone(), headers: sent, body: Bytes::new() };
            let answer = self.exchange(exchange).await?;
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
            to = redirected(&to, answer.headers())?;
        }
        Err(AttemptError::Status(format!("more than {MAX_REDIRECTS} redirects")))
    }

    async fn exchange(&self, exchange: Exchange) -> Result<Answer, AttemptError> {
        let limit = self.network.connect_timeout + self.network.response_timeout;
        let (address, limit) = match exchange.uri.authority() {
            Some(authority) => (authority.to_string(), limit),
            None => (self.endpoint.authority.clone(), limit),
        };
        match tokio::time::timeout(limit, self.http.send(exchange, self.network.response_timeout)).await {
            Ok(answer) => answer,
            Err(_) => {
                Err(AttemptError::Timeout(format!("no answer from {address} within {}", seconds(limit))))
            }
        }
    }

    fn silence(&self, when: &str, limit: Duration) -> AttemptError {
        AttemptError::Timeout(format!(
            "{} fell silent {when} for {}",
            self.endpoint.authority,
            seconds(limit)
        ))
    }

    async fn refusal(&self, answer: Answer) -> AttemptError {
        let status = answer.status();
        let body = read_answer(answer, self.network.response_timeout).await;
        let text = described(status, &body);
        match status {
            StatusCode::NOT_FOUND => AttemptError::NotFound(text),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => AttemptError::Unauthorized(text),
            _ => AttemptError::Status(text),
        }
    }
}

/// A blob that is being read.
struct Reading {
    repository: Arc<Repository>,
    uri: Uri,
    size: u64,
    offset: u64,
    failures: u32,
    resumptions: u32,
    body: Option<Incoming>,
    /// Bytes at the beginning that are known already, when the host does not serve ranges.
    skip: u64,
}

/// However slowly a host serves, it is not asked more often than this for one blob.
const MAX_RESUMPTIONS: u32 = 64;

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, AttemptError> {
        loop {
            let Some(body) = &mut self.body else {
                self.resume().await?;
                continue;
            };
            let idle = self.repository.network.idle_timeout;
            let error = match tokio::time::timeout(idle, body.frame()).await {
                Ok(Some(Ok(frame))) => match frame.into_data().ok().and_then(|data| self.take(data)) {
                    Some(chunk) => return Ok(Some(chunk)),
                    None => continue,
                },
                Ok(None) if self.offset >= self.size => return Ok(None),
                Ok(None) => {
                    AttemptError::Broken(format!("it ended after {} of {} bytes", self.offset, self.size))
                }
                Ok(Some(Err(error))) => AttemptError::Broken(super::http_client::chain(&error)),
                Err(_) => self.repository.silence("within a layer", idle),
            };
            self.body = None;
            self.failures += 1;
            self.resumptions += 1;
            if self.resumptions > MAX_RESUMPTIONS {
                return Err(error);
            }
            self.repository.pause(self.failures, error, None).await?;
        }
    }

    fn take(&mut self, mut data: Bytes) -> Option<Bytes> {
        let known = usize::try_from(self.skip).unwrap_or(usize::MAX).min(data.len());
        self.skip -= known as u64;
        bytes::Buf::advance(&mut data, known);
        if data.is_empty() {
            return None;
        }
        self.failures = 0;
        self.offset += data.len() as u64;
        Some(data)
    }

    async fn resume(&mut self) -> Result<(), AttemptError> {
        let mut headers = HeaderMap::new();
        if let Ok(range) = HeaderValue::try_from(format!("bytes={}-", self.offset)) {
            headers.insert(RANGE, range);
        }
        let answer = self.repository.get(Method::GET, &self.uri, &headers).await?;
        let from = if answer.status() == StatusCode::PARTIAL_CONTENT {
            range_start(answer.headers()).unwrap_or(self.offset)
        } else {
            0
        };
        self.skip = self.offset.checked_sub(from).ok_or_else(|| {
            AttemptError::Broken("it answered with another range than asked for".to_owned())
        })?;
        self.body = Some(answer.into_body());
        Ok(())
    }
}

fn accept_manifests() -> HeaderMap {
    std::iter::once((ACCEPT, HeaderValue::from_static(ACCEPTED))).collect()
}

/// Whether a status is likely to be another one soon.
fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

fn range_start(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

fn redirected(from: &Uri, headers: &HeaderMap) -> Result<Uri, AttemptError> {
    let refused = |reason: &str| AttemptError::Status(format!("a redirect {reason}"));
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| refused("without a location"))?;
    let absolute = if location.starts_with('/') && !location.starts_with("//") {
        let (scheme, authority) = (from.scheme_str().unwrap_or("https"), from.authority());
        format!("{scheme}://{}{location}", authority.map_or("", http::uri::Authority::as_str))
    } else {
        location.to_owned()
    };
    let to: Uri = absolute.parse().map_err(|_| refused("to something that is not a URL"))?;
    match (from.scheme_str(), to.scheme_str()) {
        (Some("https"), Some("http")) => Err(refused("from https to http, which is not followed")),
        (_, Some("http" | "https")) if to.authority().is_some() => Ok(to),
        _ => Err(refused("to something that is neither http nor https")),
    }
}

async fn read_answer(answer: Answer, limit: Duration) -> Bytes {
    let read = Limited::new(answer.into_body(), MAX_ANSWER).collect();
    match tokio::time::timeout(limit, read).await {
        Ok(Ok(body)) => body.to_bytes(),
        _ => Bytes::new(),
    }
}

#[derive(serde::Deserialize)]
struct Refusals {
    errors: Vec<Refusal>,
}

#[derive(serde::Deserialize)]
struct Refusal {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// A status with the registry's own words for it: `404 Not Found: manifest unknown`.
fn described(status: StatusCode, body: &[u8]) -> String {
    let refusals: Option<Refusals> = serde_json::from_slice(body).ok();
    let told = refusals.and_then(|refusals| refusals.errors.into_iter().next()).map(|refusal| {
        let code = refusal.code.to_lowercase().replace('_', " ");
        if refusal.message.is_empty() || refusal.message.to_lowercase() == code {
            code
        } else {
            format!("{code}: {}", refusal.message)
        }
    });
    // A stranger's words: printable and short.
    let told: String = told.unwrap_or_default().chars().filter(|c| !c.is_control()).take(300).collect();
    if told.is_empty() { status.to_string() } else { format!("{status}: {told}") }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}
