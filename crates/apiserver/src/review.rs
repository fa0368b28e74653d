//! Questions that are answered and never stored: who am I, may I, what may I, and whose token is this.

use std::sync::Arc;

use api::status::Status;
use serde_json::{Map, Value, json};

use crate::authn::Tokens;
use crate::authz::{self, Attributes, Target};
use crate::identity::{AUTHENTICATED, Identity, MASTERS};
use crate::meta;
use crate::request::RequestInfo;
use crate::server::Server;

/// Answers a review: the request's object with its status filled in.
pub(crate) fn answer(
    server: &Server,
    user: &Arc<Identity>,
    info: &RequestInfo,
    mut review: Value,
) -> Result<Value, Status> {
    let spec = review.get("spec").cloned().unwrap_or_default();
    let status = match info.resource.as_str() {
        "selfsubjectreviews" => json!({"userInfo": user_info(user)}),
        "tokenreviews" => token_review(server, &spec)?,
        "selfsubjectaccessreviews" => access_review(user, &spec)?,
        "selfsubjectrulesreviews" => rules_review(user, &spec)?,
        "localsubjectaccessreviews" => {
            let named = spec.pointer("/resourceAttributes/namespace").and_then(Value::as_str);
            if named != Some(info.namespace.as_str()) {
                return Err(Status::bad_request(format!(
                    "spec.resourceAttributes.namespace must match namespace: {}",
                    info.namespace
                )));
            }
            access_review(&subject(&spec), &spec)?
        }
        _ => access_review(&subject(&spec), &spec)?,
    };
    meta::set(&mut review, "creationTimestamp", None);
    meta::as_map(&mut review).insert("status".to_owned(), status);
    Ok(review)
}

fn user_info(user: &Identity) -> Value {
    let mut info = Map::new();
    info.insert("username".to_owned(), user.user.as_str().into());
    if !user.uid.is_empty() {
        info.insert("uid".to_owned(), user.uid.as_str().into());
    }
    info.insert("groups".to_owned(), user.groups.clone().into());
    if !user.extra.is_empty() {
        let extra: Map<String, Value> =
            user.extra.iter().map(|(name, values)| (name.clone(), values.clone().into())).collect();
        info.insert("extra".to_owned(), extra.into());
    }
    Value::Object(info)
}

fn token_review(server: &Server, spec: &Value) -> Result<Value, Status> {
    let token = spec.get("token").and_then(Value::as_str).unwrap_or_default();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let asked: Vec<String> = strings(spec, "audiences");
    let audiences = if asked.is_empty() { server.audiences.clone() } else { asked };
    let tokens = Tokens { signer: &server.signer, cache: &server.cache, audiences: &server.audiences };
    Ok(match tokens.check(token, &audiences) {
        Ok((user, claims)) => {
            let common: Vec<_> =
                claims.aud.into_iter().filter(|audience| audiences.contains(audience)).collect();
            json!({"authenticated": true, "user": user_info(&user), "audiences": common})
        }
        Err(error) => json!({"user": {}, "error": error.to_string()}),
    })
}

/// The user that a review of another subject names.
fn subject(spec: &Value) -> Identity {
    let text = |name| spec.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    Identity { user: text("user"), uid: text("uid"), groups: strings(spec, "groups"), extra: Vec::new() }
}

fn strings(object: &Value, name: &str) -> Vec<String> {
    let list = object.get(name).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn access_review(user: &Identity, spec: &Value) -> Result<Value, Status> {
    let text = |object: &'_ Value, name: &str| {
        object.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let allowed = match (spec.get("resourceAttributes"), spec.get("nonResourceAttributes")) {
        (Some(what), None) => {
            let field = |name| text(what, name);
            let (group, resource, subresource) = (field("group"), field("resource"), field("subresource"));
            let (namespace, name, verb) = (field("namespace"), field("name"), field("verb"));
            let target = Target::Resource {
                group: &group,
                resource: &resource,
                subresource: &subresource,
                namespace: &namespace,
                name: &name,
            };
            authz::is_allowed(&Attributes { user, verb: &verb, target })
        }
        (None, Some(what)) => {
            let (path, verb) = (text(what, "path"), text(what, "verb"));
            authz::is_allowed(&Attributes { user, verb: &verb, target: Target::Path(&path) })
        }
        _ => {
            return Err(Status::bad_request(
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ));
        }
    };
    Ok(json!({"allowed": allowed}))
}

fn rules_review(user: &Identity, spec: &Value) -> Result<Value, Status> {
    if spec.get("namespace").and_then(Value::as_str).unwrap_or_default().is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let mut resources: Vec<Value> = authz::rules_of(user)
        .map(|rule| json!({"verbs": rule.verbs, "apiGroups": [rule.group], "resources": rule.resources}))
        .collect();
    let mut paths: Vec<Value> = Vec::new();
    let readable: Vec<&str> = authz::paths_of(user).collect();
    if !readable.is_empty() {
        paths.push(json!({"verbs": ["get"], "nonResourceURLs": readable}));
    }
    if user.is_in(MASTERS) {
        resources.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        paths.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    Ok(json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false}))
}

/// The user whom a request with `Impersonate-…` headers speaks for; only those who may do everything can.
pub(crate) fn impersonated(
    user: &Arc<Identity>,
    headers: &http::HeaderMap,
) -> Result<Option<Arc<Identity>>, Status> {
    let text =
        |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let name = text("impersonate-user");
    let groups: Vec<String> = headers
        .get_all("impersonate-group")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .map(str::to_owned)
        .collect();
    if name.is_empty() {
        return if groups.is_empty() {
            Ok(None)
        } else {
            Err(Status::bad_request("requested [{Group}] without impersonating a user"))
        };
    }
    if !user.is_in(MASTERS) {
        let why = format!(
            "User {} cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
            api::validation::quote(&user.user)
        );
        let message = format!("users \"{name}\" is forbidden: {why}");
        return Err(Status::forbidden_resource("", "users", &name, &message));
    }
    let mut groups = groups;
    if let Some((namespace, _)) =
        name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
    {
        groups.push("system:serviceaccounts".to_owned());
        groups.push(format!("system:serviceaccounts:{namespace}"));
    }
    let known = if name == "system:anonymous" { crate::identity::UNAUTHENTICATED } else { AUTHENTICATED };
    if !groups.iter().any(|group| group == known) {
        groups.push(known.to_owned());
    }
    Ok(Some(Arc::new(Identity { user: name, uid: text("impersonate-uid"), groups, extra: Vec::new() })))
}
