//! Requests that speak for somebody else (`Impersonate-User` and its like): whoever sends them must be allowed to
//! impersonate that user, each group, the UID and each extra value.

use std::sync::Arc;

use api::status::Status;
use http::HeaderMap;

use crate::authz::{self, Attributes, Target};
use crate::identity::{AUTHENTICATED, Identity, UNAUTHENTICATED};
use crate::server::Server;

const EXTRA: &str = "impersonate-extra-";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Whom the headers name; `None` when they name nobody.
pub(crate) fn named(headers: &HeaderMap) -> Result<Option<Identity>, Status> {
    let texts = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter();
        values.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
    };
    let text = |name: &str| texts(name).into_iter().next().unwrap_or_default();
    let user = text("impersonate-user");
    let (groups, uid) = (texts("impersonate-group"), text("impersonate-uid"));
    let keys: Vec<&str> =
        headers.keys().map(http::HeaderName::as_str).filter(|name| name.starts_with(EXTRA)).collect();
    let extra: Vec<(String, Vec<String>)> = keys
        .into_iter()
        .map(|name| {
            let key = name.strip_prefix(EXTRA).unwrap_or_default();
            (crate::request::decode(key, false), texts(name))
        })
        .collect();
    if !user.is_empty() {
        return Ok(Some(Identity { user, uid, groups, extra }));
    }
    if groups.is_empty() && uid.is_empty() && extra.is_empty() {
        return Ok(None);
    }
    Err(Status::bad_request("requested groups, uid or extra without impersonating a user"))
}

/// The user whom a request speaks for.
pub(crate) fn impersonated(
    server: &Server,
    user: &Arc<Identity>,
    headers: &HeaderMap,
) -> Result<Option<Arc<Identity>>, Status> {
    let Some(mut wanted) = named(headers)? else { return Ok(None) };
    let account = authz::service_account(&wanted.user);
    let ask = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let target = Target::Resource { group, resource, subresource, namespace, name, fields: "" };
        let question = Attributes { user, verb: "impersonate", target };
        if server.authorizer.allows(&server.cache, &question).is_some() {
            return Ok(());
        }
        let dot = if group.is_empty() { "" } else { "." };
        let why = authz::denial(&question);
        let quoted = api::validation::quote(name);
        let message = format!("{resource}{dot}{group} {quoted} is forbidden: {why}");
        Err(Status::forbidden_resource(group, resource, name, &message))
    };
    match account {
        Some((namespace, name)) => ask("", "serviceaccounts", "", namespace, name)?,
        None => ask("", "users", "", "", &wanted.user)?,
    }
    for group in &wanted.groups {
        ask("", "groups", "", "", group)?;
    }
    if !wanted.uid.is_empty() {
        ask(AUTHENTICATION, "uids", "", "", &wanted.uid)?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            ask(AUTHENTICATION, "userextras", key, "", value)?;
        }
    }
    if let Some((namespace, _)) = account.filter(|_| wanted.groups.is_empty()) {
        let of_namespace = format!("system:serviceaccounts:{namespace}");
        wanted.groups.extend(["system:serviceaccounts".to_owned(), of_namespace]);
    }
    let known = if wanted.user == "system:anonymous" { UNAUTHENTICATED } else { AUTHENTICATED };
    if !wanted.groups.iter().any(|group| group == known) {
        wanted.groups.push(known.to_owned());
    }
    Ok(Some(Arc::new(wanted)))
}
