//! Rows of certificate requests and role bindings.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::text::{self, NONE};
use super::{Column, age_cell, name_cell};
use crate::access::{Access, spec, status};
use crate::time;

/// The columns of a `CertificateSigningRequest`.
pub(crate) const SIGNING_REQUEST: &[Column] = &[
    Column::NAME,
    Column::AGE,
    Column::text("SignerName", "Who shall sign it."),
    Column::text("Requestor", "Who asks."),
    Column::text("RequestedDuration", "How long the certificate shall be valid."),
    Column::text("Condition", "How the request stands."),
];

/// The columns of a `RoleBinding` and a `ClusterRoleBinding`.
pub(crate) const BINDING: &[Column] = &[
    Column::NAME,
    Column::text("Role", "The role that is given."),
    Column::AGE,
    Column::wide("Users", "The users who get it."),
    Column::wide("Groups", "The groups that get it."),
    Column::wide("ServiceAccounts", "The service accounts that get it."),
];

pub(crate) fn signing_request(object: &Value, now: Timestamp) -> Vec<Value> {
    let duration = spec(object).int("expirationSeconds").map(SignedDuration::from_secs);
    vec![
        name_cell(object),
        age_cell(object, now),
        text::or(spec(object).text("signerName"), NONE).into(),
        spec(object).text("username").into(),
        duration.map_or_else(|| NONE.to_owned(), time::human_duration).into(),
        state(object).into(),
    ]
}

fn state(request: &Value) -> String {
    let has = |wanted: &str| status(request).list("conditions").iter().any(|c| c.text("type") == wanted);
    let decision = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    };
    let failed = if has("Failed") { ",Failed" } else { "" };
    let issued = if status(request).text("certificate").is_empty() { "" } else { ",Issued" };
    format!("{decision}{failed}{issued}")
}

pub(crate) fn binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let none = Value::Null;
    let role = object.field("roleRef").unwrap_or(&none);
    let subjects = |kind: &str| {
        let subjects = object.list("subjects").iter().filter(|subject| subject.text("kind") == kind);
        let names = subjects.map(|subject| match kind {
            "ServiceAccount" => format!("{}/{}", subject.text("namespace"), subject.text("name")),
            _ => subject.text("name").to_owned(),
        });
        names.collect::<Vec<_>>().join(", ")
    };
    vec![
        name_cell(object),
        format!("{}/{}", role.text("kind"), role.text("name")).into(),
        age_cell(object, now),
        subjects("User").into(),
        subjects("Group").into(),
        subjects("ServiceAccount").into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_request_shows_how_it_stands() {
        let request = |status: Value| json!({"spec": {"signerName": "a/b", "username": "u", "expirationSeconds": 3600}, "status": status});
        let row = signing_request(&request(json!({})), Timestamp::UNIX_EPOCH);
        assert_eq!(row[2..], ["a/b", "u", "60m", "Pending"].map(Value::from));
        let issued = request(json!({"conditions": [{"type": "Approved"}], "certificate": "eA=="}));
        assert_eq!(state(&issued), "Approved,Issued");
        assert_eq!(
            state(&request(json!({"conditions": [{"type": "Denied"}, {"type": "Failed"}]}))),
            "Denied,Failed"
        );
    }

    #[test]
    fn a_binding_sorts_its_subjects_by_kind() {
        let object = json!({"roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [
            {"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"},
            {"kind": "User", "name": "v"}]});
        let row = binding(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(row[1], "ClusterRole/view");
        assert_eq!(row[3..], ["u, v", "", "n/s"].map(Value::from));
    }
}
