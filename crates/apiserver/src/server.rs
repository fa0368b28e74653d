//! One request from its head to its answer: who asks, what for, may they, and then the handler. The same way for
//! listeners and for the roles in this process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::feature::Gates;
use api::kind::{self, Kind};
use api::status::Status;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::allocation::Allocator;
use crate::audit::{AuditLog, Entry, Peer, Trail};
use crate::authn::{StaticTokens, Tokens};
use crate::authz::Authorizer;
use crate::body::{self, RequestBody};
use crate::cache::Cache;
use crate::delete::Deleted;
use crate::document::Documents;
use crate::identity::{Identity, RequestIdentity};
use crate::kubelet::Kubelets;
use crate::limit::Limits;
use crate::metrics::Metrics;
use crate::request::RequestInfo;
use crate::response::{self, Accepted, Offer, ResponseBody, negotiate};
use crate::stall::Leave;
use crate::token::Signer;
use crate::watch::Watch;
use crate::write::{Part, Write, Written};
use crate::{
    authz, component, compress, delete, document, health, impersonate, list, patch, proxy, review, snapshot,
    subresource, view,
};

/// How long a request may take whose length is not the client's choice; upstream's default.
const PATIENCE: Duration = Duration::from_mins(1);

/// Everything that a request needs.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) cache: Arc<Cache>,
    pub(crate) signer: Signer,
    /// The tokens of the file that the configuration names.
    pub(crate) static_tokens: StaticTokens,
    pub(crate) authorizer: Authorizer,
    /// The audiences of tokens for this server.
    pub(crate) audiences: Vec<String>,
    pub(crate) gates: Gates,
    /// What absent `hostUsers` means, unless a namespace says otherwise.
    pub(crate) userns_policy: userns::policy::Policy,
    pub(crate) ids_per_pod: u32,
    /// `host:port` as clients should know the server.
    pub(crate) public_address: String,
    pub(crate) allocator: Allocator,
    pub(crate) documents: Documents,
    pub(crate) kubelets: Kubelets,
    /// Owns what goes on over upgraded connections.
    pub(crate) sessions: stream::Sessions,
    pub(crate) limits: Limits,
    pub(crate) audit: AuditLog,
    pub(crate) quota_locks: crate::admission::quota::Locks,
    pub(crate) metrics: Metrics,
    /// One snapshot is taken at a time.
    pub(crate) snapshots: Arc<tokio::sync::Semaphore>,
    /// Ends watches and upgraded connections.
    pub(crate) shutdown: CancellationToken,
}

/// A request on its way.
struct Call<'a> {
    server: &'a Arc<Server>,
    user: &'a Arc<Identity>,
    info: &'a RequestInfo,
}

impl Server {
    /// Answers a request. Never fails: what goes wrong is said in the answer.
    pub(crate) async fn serve(self: &Arc<Self>, request: Request<RequestBody>) -> Response<ResponseBody> {
        let begun = Instant::now();
        let mut info = RequestInfo::parse(request.method(), request.uri());
        info.user_agent = text_of(request.headers().get(USER_AGENT)).to_owned();
        let gzip = compress::is_accepted(request.headers()) && !info.is_long_running();
        let audit = uuid::Uuid::new_v4().to_string();
        let step = tracing::debug_span!(target: "path", "api: request", of = step_of(&info));
        let (uri, received) = (request.uri().clone(), Timestamp::now());
        let mut trail =
            Trail { peer: request.extensions().get().map(|Peer(peer)| *peer), ..Trail::default() };
        let answer = self.answer(request, &info, &mut trail).instrument(step);
        let answer = if info.is_long_running() {
            answer.await
        } else {
            let late = "request did not complete within the allotted timeout";
            tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(Status::timeout(late, 0)))
        };
        let answer = answer.unwrap_or_else(|status| response::status(&status));
        let mut answer = compress::compress(gzip, answer);
        let headers = answer.headers_mut();
        if let Ok(mut id) = HeaderValue::from_str(&audit) {
            // No answer has it again: to remember it would cost HTTP/2's compression more than to send it.
            id.set_sensitive(true);
            headers.insert("audit-id", id);
        }
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
        // There is one flow and one level; clients only show these.
        headers.insert("x-kubernetes-pf-flowschema-uid", HeaderValue::from_static("kakoi-all"));
        headers.insert("x-kubernetes-pf-prioritylevel-uid", HeaderValue::from_static("kakoi-one"));
        self.metrics.observe(&info, answer.status(), begun.elapsed());
        if self.audit.is_on() {
            let (trail, code) = (&trail, answer.status());
            self.audit.write(&Entry { id: &audit, uri: &uri, info: &info, trail, code, received });
        }
        answer
    }

    async fn answer(
        self: &Arc<Self>,
        request: Request<RequestBody>,
        info: &RequestInfo,
        trail: &mut Trail,
    ) -> Result<Response<ResponseBody>, Status> {
        let user = self.authenticate(&request, trail)?;
        let _permit = self.limits.admit(info)?;
        trail.allowed = self.authorizer.allows(&self.cache, &authz::question(&user, info));
        if trail.allowed.is_none() {
            return Err(authz::forbidden(&user, info));
        }
        if info.is_unhurried()
            && let Some(leave) = request.extensions().get::<Leave>()
        {
            leave.give();
        }
        let call = Call { server: self, user: &user, info };
        if info.is_resource { call.resource(request).boxed().await } else { call.other(&request) }
    }

    fn authenticate(
        &self,
        request: &Request<RequestBody>,
        trail: &mut Trail,
    ) -> Result<Arc<Identity>, Status> {
        let tokens = Tokens { server: self };
        let user = match request.extensions().get::<RequestIdentity>() {
            Some(RequestIdentity(identity)) => identity.clone(),
            None => tokens.of_headers(request.headers())?.unwrap_or_else(|| Arc::new(Identity::anonymous())),
        };
        trail.user = Some(user.clone());
        let Some(other) = impersonate::impersonated(self, &user, request.headers())? else { return Ok(user) };
        trail.speaker = trail.user.replace(other.clone());
        Ok(other)
    }
}

impl Call<'_> {
    /// Health, metrics, documents and snapshots.
    fn other(&self, request: &Request<RequestBody>) -> Result<Response<ResponseBody>, Status> {
        let path = self.info.path.as_str();
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        if path == snapshot::PATH {
            let is_get = *request.method() == Method::GET;
            return if is_get { snapshot::answer(self.server) } else { Err(Status::method_not_allowed()) };
        }
        let answer = health::answer(self.server, self.info)
            .map(Ok)
            .or_else(|| document::answer(self.server, path, request.headers()))
            .ok_or_else(Status::unknown_path)?;
        if is_read { answer } else { Err(Status::method_not_allowed()) }
    }

    async fn resource(&self, request: Request<RequestBody>) -> Result<Response<ResponseBody>, Status> {
        let info = self.info;
        let kind = kind::find(&info.group, &info.version, &info.resource).ok_or_else(Status::unknown_path)?;
        self.check_path(kind, request.method())?;
        if !info.subresource.is_empty() {
            return self.subresource(kind, request).await;
        }
        if !kind.is_stored() && info.verb == "create" {
            return self.answer_only(kind, request).await;
        }
        let accepted = negotiate(request.headers(), info.query.get("includeObject"), Offer::All)?;
        if !kind.is_stored() {
            let bytes = component::answer(self.server, kind, info, accepted.form)?;
            return Ok(response::json_bytes(StatusCode::OK, accepted, bytes));
        }
        match info.verb {
            "get" => self.get(kind, accepted),
            "list" => {
                let items = list::list(&self.server.cache, kind, info, accepted.form)?;
                Ok(response::json_pieces(StatusCode::OK, accepted, items))
            }
            "watch" => self.watch(kind, accepted, request),
            _ => self.write(kind, accepted, request).await,
        }
    }

    /// Whether the path and the method make sense for the kind.
    fn check_path(&self, kind: &Kind, method: &Method) -> Result<(), Status> {
        let info = self.info;
        let is_own_namespace = kind.kind == "Namespace" && info.namespace == info.name;
        let has_rest = !info.rest.is_empty() && info.subresource != "proxy";
        if (!kind.namespaced && !info.namespace.is_empty() && !is_own_namespace) || has_rest {
            return Err(Status::unknown_path());
        }
        if !info.subresource.is_empty() {
            let subresource = kind.subresource(&info.subresource).ok_or_else(Status::unknown_path)?;
            let verb = if info.verb == "get" { "get" } else { info.verb };
            let is_served =
                subresource.verbs.contains(&verb) && !(kind.namespaced && info.namespace.is_empty());
            return if is_served { Ok(()) } else { Err(Status::method_not_allowed()) };
        }
        let names_one = matches!(info.verb, "get" | "update" | "patch" | "delete");
        let needs_namespace = names_one || matches!(info.verb, "create" | "deletecollection");
        let is_placed = !kind.namespaced || !info.namespace.is_empty() || !needs_namespace;
        let is_named_right = info.verb != "create" || info.name.is_empty();
        if method == Method::HEAD && !matches!(info.verb, "get" | "list") {
            return Err(Status::method_not_allowed());
        }
        if kind.has_verb(info.verb) && is_placed && is_named_right {
            Ok(())
        } else {
            Err(Status::method_not_allowed())
        }
    }

    fn get(&self, kind: &'static Kind, accepted: Accepted) -> Result<Response<ResponseBody>, Status> {
        let key = crate::meta::key(kind.namespaced, &self.info.namespace, &self.info.name);
        let version = self.info.query.get("resourceVersion");
        if !matches!(version, "" | "0") {
            let (wanted, newest) = (list::parse_version(version)?, self.server.cache.revision());
            if wanted > newest {
                return Err(Status::too_large_resource_version(wanted, newest));
            }
        }
        let object =
            self.server.cache.get(kind, &key).ok_or_else(|| Status::not_found(kind, &self.info.name))?;
        let bytes = match accepted.form {
            response::Form::Object => view::bytes(kind, &object),
            _ => response::to_bytes(&view::in_form(kind, view::value(kind, &object), accepted.form)),
        };
        Ok(response::json_bytes(StatusCode::OK, accepted, bytes))
    }

    /// A watch: lines in the answer's body, or messages of a WebSocket.
    fn watch(
        &self,
        kind: &'static Kind,
        accepted: Accepted,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Status> {
        let server = self.server;
        let watch =
            Watch::new(server.cache.clone(), kind, self.info, accepted.form, server.shutdown.clone())?;
        let metric = server.metrics.watching();
        let lines = futures::stream::unfold((watch, metric), |(mut watch, metric)| async move {
            let line = watch.next().await?;
            Some((line, (watch, metric)))
        });
        if stream::feed::is_asked(request.headers()) {
            return Ok(stream::feed::serve(request, lines.boxed(), &server.sessions)
                .unwrap_or_else(stream::Refusal::into_response)
                .map(|body| body.map_err(|never| match never {}).boxed_unsync()));
        }
        let frames = lines.map(|line| Ok::<_, crate::BoxError>(Frame::data(line)));
        let mut response = Response::new(StreamBody::new(frames.boxed()).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }

    /// Kinds that are never stored: reviews and bindings.
    async fn answer_only(
        &self,
        kind: &'static Kind,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Status> {
        let accepted = negotiate(request.headers(), "", Offer::Objects)?;
        let media = body::media_type(request.headers())?;
        let bytes = body::read(request.into_body()).await?;
        if kind.kind == "Binding" {
            let pods = kind::find("", "v1", "pods").ok_or_else(Status::unknown_path)?;
            return self.bind_by_name(pods, media, &bytes).await;
        }
        let root = body::type_named(kind.type_name)?;
        let validation = body::FieldValidation::of(&self.info.query);
        let decoded = body::decode(media, &bytes, root, body::expected(kind), validation)?;
        let answer = review::answer(self.server, self.user, self.info, decoded.object)?;
        let mut response = response::json(StatusCode::CREATED, accepted, &answer);
        response::warn(&mut response, &decoded.warnings);
        Ok(response)
    }

    /// `POST bindings`: the Pod is named by the body.
    async fn bind_by_name(
        &self,
        pods: &'static Kind,
        media: api::codec::MediaType,
        bytes: &Bytes,
    ) -> Result<Response<ResponseBody>, Status> {
        let root = body::type_named("core.v1.Binding")?;
        let expected = api::codec::Expected { group: "", version: "v1", kind: "Binding", also: &[] };
        let decoded = body::decode(media, bytes, root, expected, body::FieldValidation::Ignore)?;
        let info = RequestInfo {
            name: crate::meta::text(&decoded.object, "name").to_owned(),
            resource: "pods".to_owned(),
            subresource: "binding".to_owned(),
            ..self.info.clone()
        };
        let write = Write::new(self.server, self.user, pods, &info)?;
        let status = subresource::bind(&write, media, bytes).await?;
        Ok(response::json(StatusCode::CREATED, Accepted::JSON, &status.to_value()))
    }

    async fn write(
        &self,
        kind: &'static Kind,
        accepted: Accepted,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Status> {
        let write = Write::new(self.server, self.user, kind, self.info)?;
        let (parts, body) = request.into_parts();
        let headers = &parts.headers;
        // The media type is refused before the body is read.
        let media = match self.info.verb {
            "create" | "update" => Some(body::media_type(headers)?),
            _ => None,
        };
        let bytes = body::read(body).await?;
        let part = Part::of(kind, &self.info.subresource).ok_or_else(Status::unknown_path)?;
        match (self.info.verb, media) {
            ("create", Some(media)) => Ok(written(kind, accepted, write.create(media, &bytes).await?)),
            ("update", Some(media)) => Ok(written(kind, accepted, write.replace(media, &bytes, part).await?)),
            ("patch", _) => Ok(written(kind, accepted, patch::patch(&write, headers, &bytes, part).await?)),
            ("delete", _) => {
                let options = delete::Options::parse(&write, headers, &bytes)?;
                let write = Write { dry_run: options.dry_run, ..write.clone() };
                let deleted = delete::delete(&write, &options).await?;
                Ok(removed(kind, accepted, deleted))
            }
            ("deletecollection", _) => {
                let options = delete::Options::parse(&write, headers, &bytes)?;
                let write = Write { dry_run: options.dry_run, ..write.clone() };
                let deleted = delete::delete_collection(&write, &options).await?;
                Ok(response::json(
                    StatusCode::OK,
                    Accepted { form: response::Form::Object, ..accepted },
                    &deleted,
                ))
            }
            _ => Err(Status::method_not_allowed()),
        }
    }

    async fn subresource(
        &self,
        kind: &'static Kind,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Status> {
        let info = self.info;
        match (kind.kind, info.subresource.as_str()) {
            ("Pod", "exec" | "attach" | "portforward" | "log") => {
                self.server.kubelets.proxy(self.server, info, request).await
            }
            (_, "proxy") => proxy::pass(self.server, kind, info, request).await,
            (_, "scale") => self.scale(kind, request).await,
            (_, name) if Part::of(kind, name).is_some() => {
                let accepted = negotiate(request.headers(), info.query.get("includeObject"), Offer::All)?;
                if info.verb == "get" {
                    self.get(kind, accepted)
                } else {
                    self.write(kind, accepted, request).await
                }
            }
            _ => self.own_subresource(kind, request).await,
        }
    }

    /// How many there are and shall be of what an object stands for.
    async fn scale(
        &self,
        kind: &'static Kind,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Status> {
        let accepted = negotiate(request.headers(), "", Offer::Objects)?;
        let write = Write::new(self.server, self.user, kind, self.info)?;
        if self.info.verb == "get" {
            return Ok(response::json(StatusCode::OK, accepted, &subresource::scale(&write)?));
        }
        let (parts, body) = request.into_parts();
        let done = if self.info.verb == "patch" {
            patch::patch_scale(&write, &parts.headers, &body::read(body).await?).await?
        } else {
            let media = body::media_type(&parts.headers)?;
            subresource::replace_scale(&write, media, &body::read(body).await?).await?
        };
        let mut response = response::json(StatusCode::OK, accepted, &done.object);
        response::warn(&mut response, &done.warnings);
        Ok(response)
    }

    async fn own_subresource(
        &self,
        kind: &'static Kind,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Status> {
        let accepted = negotiate(request.headers(), "", Offer::Objects)?;
        let media = body::media_type(request.headers())?;
        let write = Write::new(self.server, self.user, kind, self.info)?;
        let bytes = body::read(request.into_body()).await?;
        let created = |status: &Status| response::json(StatusCode::CREATED, accepted, &status.to_value());
        match (kind.kind, self.info.subresource.as_str()) {
            ("Pod", "binding") => Ok(created(&subresource::bind(&write, media, &bytes).await?)),
            ("Pod", "eviction") => Ok(created(&subresource::evict(&write, media, &bytes).await?)),
            ("ServiceAccount", "token") => {
                let answer = subresource::request_token(&write, media, &bytes)?;
                Ok(response::json(StatusCode::CREATED, accepted, &answer))
            }
            (_, name) => Err(Status::method_not_supported(kind, name)),
        }
    }
}

fn text_of(header: Option<&HeaderValue>) -> &str {
    header.and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// A request in the list of steps, such as `patch pods/status`.
fn step_of(info: &RequestInfo) -> String {
    format!("{} {}", info.verb, info.resource_path())
}

/// The answer to a write: the object, and what there is to warn of.
fn written(kind: &Kind, accepted: Accepted, written: Written) -> Response<ResponseBody> {
    let code = if written.is_new { StatusCode::CREATED } else { StatusCode::OK };
    let object = view::in_form(kind, written.object, accepted.form);
    let mut response = response::json(code, accepted, &object);
    response::warn(&mut response, &written.warnings);
    response
}

fn removed(kind: &Kind, accepted: Accepted, deleted: Deleted) -> Response<ResponseBody> {
    let object = match deleted {
        Deleted::Gone(object) if !matches!(kind.kind, "Pod" | "ServiceAccount") => {
            let name = crate::meta::text(&object, "name");
            let status = Status::success(200).about(kind, name).with_uid(crate::meta::text(&object, "uid"));
            return response::json(
                StatusCode::OK,
                Accepted { form: response::Form::Object, ..accepted },
                &status.to_value(),
            );
        }
        Deleted::Gone(object) | Deleted::Pending(object) => object,
    };
    response::json(StatusCode::OK, accepted, &view::in_form(kind, object, accepted.form))
}
