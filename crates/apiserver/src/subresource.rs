//! Subresources that write something of their own: binding, eviction, finalize and token.

use std::sync::Arc;

use api::codec::{Expected, MediaType};
use api::disruption::{self, Verdict};
use api::kind::{self, Kind};
use api::status::Status;
use api::validation::{FieldErrors, Path};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::body;
use crate::delete::{self, Deleted};
use crate::request::RequestInfo;
use crate::server::Server;
use crate::token::{Claims, Kubernetes, Reference};
use crate::write::{Part, Write, Written};
use crate::{meta, view};

/// The shortest life of a token, in seconds.
const TOKEN_MIN: i64 = 600;
/// The longest life of a token, in seconds.
const TOKEN_MAX: i64 = 1 << 32;
/// The life of a token that names none, in seconds.
const TOKEN_DEFAULT: i64 = 3600;
/// The life of a token whose holder may not read it again: a year; it warns after the time that was asked.
const TOKEN_EXTENDED: i64 = 365 * 24 * 3600;

/// The body of a subresource that has a kind of its own.
fn decode(write: &Write<'_>, media: MediaType, bytes: &Bytes) -> Result<Value, Status> {
    let subresource = write.kind.subresource(&write.info.subresource);
    let (name, (group, version), type_name) = match subresource {
        Some(sub) => {
            (sub.kind, sub.group_version.unwrap_or((write.kind.group, write.kind.version)), sub.type_name)
        }
        None => (write.kind.kind, (write.kind.group, write.kind.version), write.kind.type_name),
    };
    let root = body::type_named(type_name)?;
    let also = subresource.map_or(&[][..], |sub| sub.also);
    let expected = Expected { group, version, kind: name, also };
    let mut object = body::decode(media, bytes, root, expected, write.validation)?.object;
    api::default::apply(root, &mut object);
    let said = meta::text(&object, "name");
    if !said.is_empty() && !write.info.name.is_empty() && said != write.info.name {
        return Err(Status::bad_request(format!(
            "the name in the URL ({}) does not match the name in the object ({said})",
            write.info.name
        )));
    }
    Ok(object)
}

/// `POST pods/x/binding` and `POST bindings`: gives a Pod its node.
pub(crate) async fn bind(write: &Write<'_>, media: MediaType, bytes: &Bytes) -> Result<Status, Status> {
    let binding = decode(write, media, bytes)?;
    let target = binding.get("target").cloned().unwrap_or_default();
    check_target(&target, &write.info.name)?;
    let uid = meta::text(&binding, "uid").to_owned();
    let pods = write.kind;
    write
        .change_freely(|pod| {
            if !uid.is_empty() && uid != meta::text(pod, "uid") {
                let why = format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    meta::text(pod, "uid")
                );
                return Err(Status::conflict(write.kind, &write.info.name, &why));
            }
            let mut bound = pod.clone();
            kind::pod::bind(&mut bound, &binding, write.now)
                .map_err(|why| Status::conflict_below(pods, "binding", &write.info.name, &why))?;
            Ok(bound)
        })
        .await?;
    Ok(Status::success(201))
}

fn check_target(target: &Value, name: &str) -> Result<(), Status> {
    let text = |field| target.get(field).and_then(Value::as_str).unwrap_or_default();
    let mut errors = FieldErrors::new();
    let path = Path::new("target");
    if !matches!(text("kind"), "" | "Node") {
        errors.not_supported(&path.child("kind"), text("kind"), &["Node", "<empty>"]);
    }
    if text("name").is_empty() {
        errors.required(&path.child("name"), "");
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid_kind("", "Binding", name, &errors)) }
}

/// `POST pods/x/eviction`: deletes a Pod as its eviction asks, when its disruption budget lets it go.
pub(crate) async fn evict(write: &Write<'_>, media: MediaType, bytes: &Bytes) -> Result<Status, Status> {
    let eviction = decode(write, media, bytes)?;
    let options = eviction.get("deleteOptions").cloned().unwrap_or_else(|| json!({}));
    let options = delete::Options::from_value(&options, write.dry_run)?;
    let write = Write { dry_run: options.dry_run, ..write.clone() };
    let pod = view::value(write.kind, &*write.current()?);
    if !disruption::is_free(&pod) {
        spend_budget(&write, &pod).await?;
        if !write.dry_run {
            write.change_freely(|pod| Ok(disruption::targeted(pod, write.now))).await?;
        }
    }
    match delete::delete(&write, &options).await? {
        Deleted::Gone(_) | Deleted::Pending(_) => Ok(Status::success(201)),
    }
}

/// Takes one disruption from the Pod's budget, if it has one.
async fn spend_budget(write: &Write<'_>, pod: &Value) -> Result<(), Status> {
    let Some(kind) = kind::find("policy", "v1", "poddisruptionbudgets") else { return Ok(()) };
    let Some(table) = write.server.cache.table(kind) else { return Ok(()) };
    let prefix = format!("{}/", write.info.namespace);
    let all: Vec<Value> =
        write.server.cache.snapshot(table).range(&prefix, None).map(|object| object.value()).collect();
    let name = match disruption::budgets_of(&all, pod).as_slice() {
        [] => return Ok(()),
        [only] => meta::text(only, "name").to_owned(),
        _ => {
            return Err(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let info = RequestInfo {
        verb: "update",
        name,
        namespace: write.info.namespace.clone(),
        ..RequestInfo::default()
    };
    let of_budget = Write { kind, info: &info, ..write.clone() };
    // Two evictions can't spend the same disruption: the second one finds another budget and asks again.
    of_budget
        .change_freely(|budget| match disruption::ask(budget, pod, write.now) {
            Verdict::Free => Ok(budget.clone()),
            Verdict::Granted(taken) => Ok(*taken),
            Verdict::Later { why, after } => {
                let told = "Cannot evict pod as it would violate the pod's disruption budget.";
                Err(Status::too_many_requests(told, after).with_cause("DisruptionBudget", why, ""))
            }
            Verdict::Never(why) => Err(Status::forbidden(kind, &info.name, &why)),
        })
        .await?;
    Ok(())
}

/// `GET x/scale`.
pub(crate) fn scale(write: &Write<'_>) -> Result<Value, Status> {
    let object = view::value(write.kind, &*write.current()?);
    kind::scale::of(write.kind, &object).ok_or_else(Status::unknown_path)
}

/// `PUT x/scale`.
pub(crate) async fn replace_scale(
    write: &Write<'_>,
    media: MediaType,
    bytes: &Bytes,
) -> Result<Written, Status> {
    let scale = decode(write, media, bytes)?;
    rescale(write, |_| Ok((scale.clone(), Vec::new()))).await
}

/// Writes the number of the Scale that `make` makes of the old one, and answers the Scale after it.
pub(crate) async fn rescale(
    write: &Write<'_>,
    make: impl Fn(&Value) -> Result<(Value, Vec<String>), Status>,
) -> Result<Written, Status> {
    let written = write
        .change(Part::Main, |old| {
            let before = kind::scale::of(write.kind, old).ok_or_else(Status::unknown_path)?;
            let (scale, warnings) = make(&before)?;
            let errors = kind::scale::validate(&scale);
            if !errors.is_empty() {
                return Err(Status::invalid_kind("autoscaling", "Scale", &write.info.name, &errors));
            }
            let mut object = old.clone();
            kind::scale::write(write.kind, &mut object, &scale);
            for field in ["uid", "resourceVersion"] {
                let said = meta::text(&scale, field);
                meta::set(&mut object, field, (!said.is_empty()).then(|| said.into()));
            }
            Ok((object, warnings))
        })
        .await?;
    let scale = kind::scale::of(write.kind, &written.object).ok_or_else(Status::unknown_path)?;
    Ok(Written { object: scale, ..written })
}

/// `POST serviceaccounts/x/token`: signs a token for a service account.
pub(crate) fn request_token(write: &Write<'_>, media: MediaType, bytes: &Bytes) -> Result<Value, Status> {
    let account = view::value(write.kind, &*write.current()?);
    let mut request = decode(write, media, bytes)?;
    let spec = request.get("spec").cloned().unwrap_or_default();
    let seconds = spec.get("expirationSeconds").and_then(Value::as_i64).unwrap_or(TOKEN_DEFAULT);
    check_lifetime(seconds)?;
    let server = write.server;
    let mut audiences: Vec<String> = spec.get("audiences").map(texts).unwrap_or_default();
    if audiences.is_empty() {
        audiences.clone_from(&server.audiences);
    }
    let namespace = &write.info.namespace;
    let bound = match spec.get("boundObjectRef").filter(|reference| reference.is_object()) {
        Some(reference) => bound_object(write, reference)?,
        None => Bound::default(),
    };
    check_node_token(write, bound.pod.as_ref())?;
    let now = write.now.as_second();
    let is_extended =
        bound.pod.is_some() && seconds == api::admission::TOKEN_SECONDS && audiences == server.audiences;
    let claims = Claims {
        aud: audiences.clone(),
        exp: now + if is_extended { TOKEN_EXTENDED } else { seconds },
        iat: now,
        iss: server.signer.issuer().to_owned(),
        jti: uuid::Uuid::new_v4().to_string(),
        kubernetes: Kubernetes {
            namespace: namespace.clone(),
            node: bound.node,
            pod: bound.pod,
            secret: bound.secret,
            serviceaccount: reference_to(&account),
            warnafter: is_extended.then_some(now + seconds),
        },
        nbf: now,
        sub: format!("system:serviceaccount:{namespace}:{}", meta::text(&account, "name")),
    };
    let token = server.signer.sign(&claims).map_err(|_| Status::internal("signing the token failed"))?;
    let expires = write.now + jiff::SignedDuration::from_secs(seconds);
    let spec = meta::map_at(&mut request, "spec");
    spec.insert("audiences".to_owned(), audiences.into());
    spec.insert("expirationSeconds".to_owned(), seconds.into());
    let fields = meta::as_map(&mut request);
    fields.insert(
        "metadata".to_owned(),
        json!({"name": meta::text(&account, "name"), "namespace": namespace,
            "creationTimestamp": api::time::format_seconds(write.now)}),
    );
    fields.insert(
        "status".to_owned(),
        json!({"token": token, "expirationTimestamp": api::time::format_seconds(expires)}),
    );
    Ok(request)
}

/// A kubelet gets tokens for the Pods on its own node alone.
fn check_node_token(write: &Write<'_>, pod: Option<&Reference>) -> Result<(), Status> {
    let Some(node) = write.user.node_name() else { return Ok(()) };
    let forbidden = |why: &str| Status::forbidden(write.kind, &write.info.name, why);
    let pod = pod.ok_or_else(|| forbidden("node requested token not bound to a pod"))?;
    let found = kind::find("", "v1", "pods")
        .and_then(|kind| find_bound(write.server, kind, &write.info.namespace, &pod.name));
    let is_own = found
        .is_some_and(|found| found.value().pointer("/spec/nodeName").and_then(Value::as_str) == Some(node));
    if is_own {
        Ok(())
    } else {
        Err(forbidden("node requested token bound to a pod scheduled on a different node"))
    }
}

fn check_lifetime(seconds: i64) -> Result<(), Status> {
    let mut errors = FieldErrors::new();
    let path = Path::new("spec").child("expirationSeconds");
    if seconds < TOKEN_MIN {
        errors.invalid(&path, seconds, "may not specify a duration less than 10 minutes");
    }
    if seconds > TOKEN_MAX {
        errors.invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds");
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid_kind("authentication.k8s.io", "TokenRequest", "", &errors))
    }
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn reference_to(object: &Value) -> Reference {
    Reference { name: meta::text(object, "name").to_owned(), uid: meta::text(object, "uid").to_owned() }
}

/// What a token is bound to.
#[derive(Debug, Default)]
struct Bound {
    node: Option<Reference>,
    pod: Option<Reference>,
    secret: Option<Reference>,
}

fn bound_object(write: &Write<'_>, reference: &Value) -> Result<Bound, Status> {
    let text = |field| reference.get(field).and_then(Value::as_str).unwrap_or_default();
    let (kind_name, name, uid) = (text("kind"), text("name"), text("uid"));
    let kind = match (kind_name, text("apiVersion")) {
        ("Pod" | "Secret" | "Node", "v1") => kind::find_kind("", "v1", kind_name),
        _ => None,
    };
    let Some(kind) = kind else {
        let mut errors = FieldErrors::new();
        let why = format!(
            "cannot bind token for serviceaccount to object of type {}, Kind={kind_name}",
            text("apiVersion")
        );
        errors.invalid(&Path::new("spec").child("boundObjectRef"), reference.clone(), why);
        return Err(Status::invalid_kind("authentication.k8s.io", "TokenRequest", "", &errors));
    };
    let found = find_bound(write.server, kind, &write.info.namespace, name);
    let found = found.ok_or_else(|| Status::not_found(kind, name))?;
    let object = found.value();
    if !uid.is_empty() && uid != meta::text(&object, "uid") {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(kind, name, &why));
    }
    if kind_name == "Pod"
        && object.pointer("/spec/serviceAccountName").and_then(Value::as_str) != Some(&write.info.name)
    {
        let account = object.pointer("/spec/serviceAccountName").and_then(Value::as_str).unwrap_or_default();
        return Err(Status::bad_request(format!(
            "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name \"{account}\"",
            write.info.name
        )));
    }
    let reference = Some(reference_to(&object));
    Ok(match kind_name {
        "Pod" => Bound { pod: reference, node: node_of(write.server, &object), secret: None },
        "Secret" => Bound { secret: reference, ..Bound::default() },
        _ => Bound { node: reference, ..Bound::default() },
    })
}

fn find_bound(
    server: &Server,
    kind: &Kind,
    namespace: &str,
    name: &str,
) -> Option<Arc<crate::cache::Object>> {
    server.cache.get(kind, &meta::key(kind.namespaced, namespace, name))
}

/// The node of a Pod; its UID is empty when the Node object isn't there.
fn node_of(server: &Server, pod: &Value) -> Option<Reference> {
    let name = pod.pointer("/spec/nodeName").and_then(Value::as_str).filter(|name| !name.is_empty())?;
    let node = server.cache.get(kind::find("", "v1", "nodes")?, name);
    let uid = node.map(|node| meta::text(&node.value(), "uid").to_owned()).unwrap_or_default();
    Some(Reference { name: name.to_owned(), uid })
}
