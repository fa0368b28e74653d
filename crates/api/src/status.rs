//! `metav1.Status`: the answer to a request that failed, or that has nothing else to say, with Kubernetes' reasons,
//! codes and texts. Only what a client may see; the inner cause is logged elsewhere.

use serde_json::{Map, Value};

use crate::kind::Kind;
use crate::validation::{FieldErrors, quote};

/// Text of the 404 for a path that no resource serves.
pub const UNKNOWN_PATH: &str = "the server could not find the requested resource";

/// One entry of `details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable, such as `FieldValueInvalid`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// The field in dotted form; may be empty.
    pub field: String,
}

/// A `metav1.Status` in the making.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    code: u16,
    reason: &'static str,
    message: String,
    details: Box<Details>,
}

/// What is in `details` and the metadata; boxed, because a `Status` is the error of every handler.
#[derive(Clone, Debug, Default, PartialEq)]
struct Details {
    name: String,
    group: String,
    kind: String,
    uid: String,
    causes: Vec<Cause>,
    retry_after_seconds: u32,
    continue_token: String,
    is_shown: bool,
}

impl Status {
    fn failure(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Box::default() }
    }

    /// A success; what `DELETE` answers for an object that is gone.
    pub fn success(code: u16) -> Self {
        Self::failure(code, "", "")
    }

    /// Says in `details` which resource is meant, by its plural name.
    #[must_use]
    pub fn about(mut self, kind: &Kind, name: &str) -> Self {
        self.details.is_shown = true;
        name.clone_into(&mut self.details.name);
        kind.group.clone_into(&mut self.details.group);
        kind.plural.clone_into(&mut self.details.kind);
        self
    }

    /// Adds the object's UID to `details`.
    #[must_use]
    pub fn with_uid(mut self, uid: &str) -> Self {
        self.details.is_shown = true;
        uid.clone_into(&mut self.details.uid);
        self
    }

    /// Adds a cause to `details`.
    #[must_use]
    pub fn with_cause(mut self, reason: &'static str, message: impl Into<String>, field: &str) -> Self {
        self.details.is_shown = true;
        self.details.causes.push(Cause { reason, message: message.into(), field: field.to_owned() });
        self
    }

    /// Asks the client to come back after so many seconds.
    #[must_use]
    pub const fn with_retry_after(mut self, seconds: u32) -> Self {
        self.details.is_shown = true;
        self.details.retry_after_seconds = seconds;
        self
    }

    /// Offers a token with which an expired list can go on from newer objects.
    #[must_use]
    pub fn with_continue(mut self, token: &str) -> Self {
        token.clone_into(&mut self.details.continue_token);
        self
    }

    /// 404: no object of that name.
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::failure(404, "NotFound", format!("{} {} not found", kind.resource(), quote(name)))
            .about(kind, name)
    }

    /// 404 in the words of another server.
    pub fn not_found_text(message: impl Into<String>) -> Self {
        Self::failure(404, "NotFound", message)
    }

    /// 404: no resource is served at that path.
    pub fn unknown_path() -> Self {
        let mut status = Self::failure(404, "NotFound", UNKNOWN_PATH);
        status.details.is_shown = true;
        status
    }

    /// 409: an object of that name is there.
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        Self::failure(409, "AlreadyExists", format!("{} {} already exists", kind.resource(), quote(name)))
            .about(kind, name)
    }

    /// 409: an object of that name is there, and on its way out.
    pub fn already_exists_deleting(kind: &Kind, name: &str) -> Self {
        let mut status = Self::already_exists(kind, name);
        status.message = format!("object is being deleted: {}", status.message);
        status
    }

    /// 409: `generateName` found no free name in eight tries.
    pub fn generate_name_conflict(kind: &Kind, name: &str) -> Self {
        let message = format!(
            "{} {} already exists, the server was not able to generate a unique name for the object",
            kind.resource(),
            quote(name)
        );
        Self::failure(409, "AlreadyExists", message).about(kind, name).with_retry_after(1)
    }

    /// 409 with a reason of its own.
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {}: {why}", kind.resource(), quote(name));
        Self::failure(409, "Conflict", message).about(kind, name)
    }

    /// 409 on a subresource, such as `pods/binding`.
    pub fn conflict_below(kind: &Kind, subresource: &str, name: &str, why: &str) -> Self {
        let mut status = Self::conflict(kind, name, why);
        status.message = format!(
            "Operation cannot be fulfilled on {}/{subresource} {}: {why}",
            kind.resource(),
            quote(name)
        );
        status.details.kind = format!("{}/{subresource}", kind.plural);
        status
    }

    /// 409: the object has another resource version than the request says.
    pub fn modified(kind: &Kind, name: &str) -> Self {
        Self::conflict(
            kind,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409: a precondition of a deletion does not hold. Here `details.kind` is the kind, as upstream has it.
    pub fn precondition_failed(kind: &Kind, name: &str, what: &str, wanted: &str, found: &str) -> Self {
        let why =
            format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
        let mut status = Self::conflict(kind, name, &why);
        kind.kind.clone_into(&mut status.details.kind);
        status.message =
            format!("Operation cannot be fulfilled on {} {}: {why}", kind.group_kind(), quote(name));
        status
    }

    /// 409: an object is not applied, because others own its fields; the causes say which.
    pub fn apply_conflict(message: impl Into<String>) -> Self {
        Self::failure(409, "Conflict", message)
    }

    /// 500 with the text alone, as upstream answers errors that it has no reason for.
    pub fn plain(message: impl Into<String>) -> Self {
        Self::failure(500, "", message)
    }

    /// 422: fields are refused.
    pub fn invalid(kind: &Kind, name: &str, errors: &FieldErrors) -> Self {
        Self::invalid_kind(kind.group, kind.kind, name, errors)
    }

    /// 422 for a kind that is no resource, such as `DeleteOptions` or `ListOptions` of `meta.k8s.io`.
    pub fn invalid_kind(group: &str, kind: &str, name: &str, errors: &FieldErrors) -> Self {
        let full = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let mut message = format!("{full} {} is invalid", quote(name));
        if !errors.is_empty() {
            message = format!("{message}: {errors}");
        }
        let mut status = Self::failure(422, "Invalid", message);
        status.details.is_shown = true;
        name.clone_into(&mut status.details.name);
        group.clone_into(&mut status.details.group);
        kind.clone_into(&mut status.details.kind);
        status.details.causes = errors
            .iter()
            .map(|e| Cause { reason: e.kind.reason(), message: e.body(), field: e.field.clone() })
            .collect();
        status
    }

    /// 422 without fields: a JSON patch that does not apply.
    pub fn unprocessable() -> Self {
        let mut status =
            Self::failure(422, "Invalid", "the server rejected our request due to an error in our request");
        status.details.is_shown = true;
        status
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::failure(401, "Unauthorized", "Unauthorized")
    }

    /// 403; with an empty name the whole resource is meant.
    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {why}", kind.resource())
        } else {
            format!("{} {} is forbidden: {why}", kind.resource(), quote(name))
        };
        Self::failure(403, "Forbidden", message).about(kind, name)
    }

    /// 403 for a resource that this server does not know; `message` is the whole text.
    pub fn forbidden_resource(group: &str, resource: &str, name: &str, message: &str) -> Self {
        let mut status = Self::failure(403, "Forbidden", message);
        status.details.is_shown = true;
        name.clone_into(&mut status.details.name);
        group.clone_into(&mut status.details.group);
        resource.clone_into(&mut status.details.kind);
        status
    }

    /// 403 for a path that belongs to no resource.
    pub fn forbidden_path(why: &str) -> Self {
        let mut status = Self::failure(403, "Forbidden", format!("forbidden: {why}"));
        status.details.is_shown = true;
        status
    }

    /// 410: the resource version or continue token is older than what is kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(410, "Expired", message)
    }

    /// 410.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::failure(410, "Gone", message)
    }

    /// 504: a resource version that is not there yet.
    pub fn too_large_resource_version(asked: u64, current: u64) -> Self {
        Self::timeout(format!("Too large resource version: {asked}, current: {current}"), 1).with_cause(
            "ResourceVersionTooLarge",
            "Too large resource version",
            "",
        )
    }

    /// 504.
    pub fn timeout(message: impl AsRef<str>, retry_after_seconds: u32) -> Self {
        Self::failure(504, "Timeout", format!("Timeout: {}", message.as_ref()))
            .with_retry_after(retry_after_seconds)
    }

    /// 500: the object changed under the server's hands too often.
    pub fn server_timeout(kind: &Kind, operation: &str, retry_after_seconds: u32) -> Self {
        let message = format!(
            "The {operation} operation against {} could not be completed at this time, please try again.",
            kind.resource()
        );
        Self::failure(500, "ServerTimeout", message)
            .about(kind, operation)
            .with_retry_after(retry_after_seconds)
    }

    /// 415: a body of a type that is not understood.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::failure(415, "UnsupportedMediaType", message)
    }

    /// 406: the client accepts nothing that can be made.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        Self::failure(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {}", accepted.join(", ")),
        )
    }

    /// 405 for a verb that this resource does not have.
    pub fn method_not_supported(kind: &Kind, action: &str) -> Self {
        let message = format!("{action} is not supported on resources of kind {}", quote(&kind.resource()));
        Self::failure(405, "MethodNotAllowed", message).about(kind, "")
    }

    /// 405 for a method that the path does not have.
    pub fn method_not_allowed() -> Self {
        let mut status = Self::failure(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        );
        status.details.is_shown = true;
        status
    }

    /// 413.
    pub fn too_large(message: &str) -> Self {
        Self::failure(413, "RequestEntityTooLarge", format!("Request entity too large: {message}"))
    }

    /// 429.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::failure(429, "TooManyRequests", message).with_retry_after(retry_after_seconds)
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::failure(503, "ServiceUnavailable", message)
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        let message = message.into();
        Self::failure(500, "InternalError", format!("Internal error occurred: {message}"))
            .with_cause("", message, "")
    }

    /// The HTTP code.
    pub const fn code(&self) -> u16 {
        self.code
    }

    /// The machine-readable reason; empty for success.
    pub const fn reason(&self) -> &'static str {
        self.reason
    }

    /// The text for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Seconds for a `Retry-After` header, if there should be one.
    pub fn retry_after(&self) -> Option<u32> {
        (self.details.retry_after_seconds > 0).then_some(self.details.retry_after_seconds)
    }

    /// The object as it goes over the wire.
    pub fn to_value(&self) -> Value {
        let mut object = Map::new();
        object.insert("kind".into(), "Status".into());
        object.insert("apiVersion".into(), "v1".into());
        let mut metadata = Map::new();
        put(&mut metadata, "continue", &self.details.continue_token);
        object.insert("metadata".into(), Value::Object(metadata));
        object.insert("status".into(), if self.code < 400 { "Success" } else { "Failure" }.into());
        put(&mut object, "message", &self.message);
        put(&mut object, "reason", self.reason);
        if self.details.is_shown {
            object.insert("details".into(), self.details());
        }
        if self.code >= 400 {
            object.insert("code".into(), self.code.into());
        }
        Value::Object(object)
    }

    fn details(&self) -> Value {
        let mut details = Map::new();
        put(&mut details, "name", &self.details.name);
        put(&mut details, "group", &self.details.group);
        put(&mut details, "kind", &self.details.kind);
        put(&mut details, "uid", &self.details.uid);
        if !self.details.causes.is_empty() {
            let causes = self.details.causes.iter().map(cause_value).collect();
            details.insert("causes".into(), Value::Array(causes));
        }
        if self.details.retry_after_seconds > 0 {
            details.insert("retryAfterSeconds".into(), self.details.retry_after_seconds.into());
        }
        Value::Object(details)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

fn put(object: &mut Map<String, Value>, key: &str, value: &str) {
    if !value.is_empty() {
        object.insert(key.to_owned(), value.into());
    }
}

fn cause_value(cause: &Cause) -> Value {
    let mut object = Map::new();
    put(&mut object, "reason", cause.reason);
    put(&mut object, "message", &cause.message);
    put(&mut object, "field", &cause.field);
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::find;
    use crate::validation::Path;
    use serde_json::json;

    fn pods() -> &'static Kind {
        find("", "v1", "pods").unwrap()
    }

    #[test]
    fn not_found_names_the_plural() {
        assert_eq!(
            Status::not_found(pods(), "nope").to_value(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "pods \"nope\" not found", "reason": "NotFound",
                "details": {"name": "nope", "kind": "pods"}, "code": 404})
        );
    }

    #[test]
    fn a_kind_of_a_group_is_written_with_it() {
        let leases = find("coordination.k8s.io", "v1", "leases").unwrap();
        let status = Status::already_exists(leases, "x");
        assert_eq!(status.message(), "leases.coordination.k8s.io \"x\" already exists");
        assert_eq!(status.to_value()["details"]["group"], "coordination.k8s.io");
    }

    #[test]
    fn an_invalid_object_lists_its_causes() {
        let mut errors = FieldErrors::new();
        errors.required(&Path::new("spec").child("containers"), "");
        let status = Status::invalid(pods(), "p", &errors);
        assert_eq!(status.code(), 422);
        assert_eq!(status.message(), "Pod \"p\" is invalid: spec.containers: Required value");
        assert_eq!(
            status.to_value()["details"],
            json!({"name": "p", "kind": "Pod",
                "causes": [{"reason": "FieldValueRequired", "message": "Required value", "field": "spec.containers"}]})
        );
    }

    #[test]
    fn texts_of_the_measured_server() {
        assert_eq!(
            Status::modified(find("", "v1", "configmaps").unwrap(), "cmx").message(),
            "Operation cannot be fulfilled on configmaps \"cmx\": the object has been modified; please apply your changes to the latest version and try again"
        );
        let status = Status::too_large_resource_version(99_999_999, 242);
        assert_eq!(status.message(), "Timeout: Too large resource version: 99999999, current: 242");
        assert_eq!((status.code(), status.retry_after()), (504, Some(1)));
        let anonymous =
            "User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" at the cluster scope";
        assert_eq!(
            Status::forbidden(pods(), "", anonymous).message(),
            format!("pods is forbidden: {anonymous}")
        );
    }

    #[test]
    fn a_deleted_object_is_answered_with_success() {
        assert_eq!(
            Status::success(200).about(pods(), "p").with_uid("u").to_value(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": {"name": "p", "kind": "pods", "uid": "u"}})
        );
    }
}
