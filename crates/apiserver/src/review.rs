//! Questions that are answered and never stored: who am I, may I, what may I, and whose token is this.

use std::sync::Arc;

use api::rbac::Rule;
use api::status::Status;
use serde_json::{Map, Value, json};

use crate::authn::Tokens;
use crate::authz::{Attributes, Target};
use crate::identity::Identity;
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
        "selfsubjectaccessreviews" => access_review(server, user, &spec)?,
        "selfsubjectrulesreviews" => rules_review(server, user, &spec)?,
        "localsubjectaccessreviews" => {
            let named = spec.pointer("/resourceAttributes/namespace").and_then(Value::as_str);
            if named != Some(info.namespace.as_str()) {
                return Err(Status::bad_request(format!(
                    "spec.resourceAttributes.namespace must match namespace: {}",
                    info.namespace
                )));
            }
            access_review(server, &subject(&spec)?, &spec)?
        }
        _ => access_review(server, &subject(&spec)?, &spec)?,
    };
    meta::set(&mut review, "creationTimestamp", None);
    meta::as_map(&mut review).insert("status".to_owned(), status);
    Ok(review)
}

/// `UserInfo`, as reviews and the audit log show a user.
pub(crate) fn user_info(user: &Identity) -> Value {
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
    let tokens = Tokens { server };
    Ok(match tokens.check(token, &audiences) {
        Ok(known) => {
            let common: Vec<_> =
                known.audiences.into_iter().filter(|audience| audiences.contains(audience)).collect();
            json!({"authenticated": true, "user": user_info(&known.user), "audiences": common})
        }
        Err(error) => json!({"user": {}, "error": error.to_string()}),
    })
}

/// The user that a review of another subject names.
fn subject(spec: &Value) -> Result<Identity, Status> {
    let text = |name| spec.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (user, groups) = (text("user"), strings(spec, "groups"));
    if user.is_empty() && groups.is_empty() {
        return Err(Status::bad_request("at least one of user or group must be specified"));
    }
    Ok(Identity { user, uid: text("uid"), groups, extra: Vec::new() })
}

fn strings(object: &Value, name: &str) -> Vec<String> {
    let list = object.get(name).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn access_review(server: &Server, user: &Identity, spec: &Value) -> Result<Value, Status> {
    let (resource, path) = (spec.get("resourceAttributes"), spec.get("nonResourceAttributes"));
    let (what, is_resource) = match (resource, path) {
        (Some(what), None) => (what, true),
        (None, Some(what)) => (what, false),
        _ => {
            return Err(Status::bad_request(
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ));
        }
    };
    let field = |name| what.get(name).and_then(Value::as_str).unwrap_or_default();
    let fields = selected_fields(what);
    let target = if is_resource {
        Target::Resource {
            group: field("group"),
            resource: field("resource"),
            subresource: field("subresource"),
            namespace: field("namespace"),
            name: field("name"),
            fields: &fields,
        }
    } else {
        Target::Path(field("path"))
    };
    let question = Attributes { user, verb: field("verb"), target };
    Ok(match server.authorizer.allows(&server.cache, &question) {
        Some(reason) if reason.is_empty() => json!({"allowed": true}),
        Some(reason) => json!({"allowed": true, "reason": reason}),
        None => json!({"allowed": false}),
    })
}

/// The field selector that a review asks about, as a request would write it.
fn selected_fields(what: &Value) -> String {
    let selector = what.get("fieldSelector").unwrap_or(&Value::Null);
    let raw = selector.get("rawSelector").and_then(Value::as_str).unwrap_or_default();
    let terms = selector.get("requirements").and_then(Value::as_array).into_iter().flatten();
    let equal = terms.filter(|term| term.get("operator").and_then(Value::as_str) == Some("In"));
    let written = equal.filter_map(|term| {
        let values = strings(term, "values");
        let [value] = values.as_slice() else { return None };
        Some(format!("{}={value}", term.get("key").and_then(Value::as_str)?))
    });
    let all: Vec<String> = written.chain((!raw.is_empty()).then(|| raw.to_owned())).collect();
    all.join(",")
}

fn rules_review(server: &Server, user: &Identity, spec: &Value) -> Result<Value, Status> {
    let namespace = spec.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (rules, is_all) = server.authorizer.rules_of(&server.cache, user, namespace);
    let (resources, paths): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| rule.paths.is_empty());
    let written = |rules: Vec<&Rule>| rules.into_iter().map(Rule::to_value).collect::<Vec<_>>();
    let status = json!({"resourceRules": written(resources), "nonResourceRules": written(paths),
        "incomplete": !is_all});
    let why = "node authorizer does not support user rule resolution";
    Ok(if is_all { status } else { with(status, "evaluationError", why) })
}

fn with(mut status: Value, name: &str, text: &str) -> Value {
    meta::as_map(&mut status).insert(name.to_owned(), text.into());
    status
}
