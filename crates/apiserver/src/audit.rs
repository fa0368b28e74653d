//! The audit log: one JSON line for each request, who asked for what, whether they might, and what the answer was. It
//! holds no bodies (upstream's level `Metadata`), so no secret gets into it. Off unless the configuration names a file.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use http::{StatusCode, Uri};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::identity::Identity;
use crate::request::RequestInfo;
use crate::review::user_info;

/// The file can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("the audit log {} cannot be opened: {source}; name another with --audit-log-path", path.display())]
pub struct AuditError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: std::io::Error,
}

/// Where the address of a client is, in a request's extensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// The log; nothing is written without a file.
#[derive(Debug, Default)]
pub(crate) struct AuditLog(Option<File>);

/// What is known of a request when it has been answered.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    /// Who is asked for: the impersonated user, if there is one.
    pub(crate) user: Option<Arc<Identity>>,
    /// Who really asks, when that is another.
    pub(crate) speaker: Option<Arc<Identity>>,
    /// Why it is allowed; `None` when it isn't.
    pub(crate) allowed: Option<String>,
    pub(crate) peer: Option<IpAddr>,
}

/// Annotations that the steps of a request leave for its line, by upstream's names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Notes {
    pub(crate) fn add(&self, name: &'static str, text: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, text);
    }

    fn write_to(&self, annotations: &mut Map<String, Value>) {
        let notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        annotations.extend(notes.iter().map(|(name, text)| ((*name).to_owned(), text.as_str().into())));
    }
}

/// One request and its answer.
pub(crate) struct Entry<'a> {
    pub(crate) id: &'a str,
    pub(crate) uri: &'a Uri,
    pub(crate) info: &'a RequestInfo,
    pub(crate) trail: &'a Trail,
    pub(crate) code: StatusCode,
    pub(crate) received: Timestamp,
}

impl AuditLog {
    /// Opens the log, to be continued.
    pub(crate) fn open(path: &Path) -> Result<Self, AuditError> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        file.map(|file| Self(Some(file))).map_err(|source| AuditError { path: path.to_owned(), source })
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Writes a line. One that can't be written is told in the program's own log.
    pub(crate) fn write(&self, entry: &Entry<'_>) {
        let Some(mut file) = self.0.as_ref() else { return };
        let mut line = entry.to_value().to_string();
        line.push('\n');
        // Appended in one call, lines of several requests don't mix.
        if let Err(error) = file.write_all(line.as_bytes()) {
            tracing::error!(%error, request = entry.id, "a line of the audit log was not written");
        }
    }
}

impl Entry<'_> {
    fn to_value(&self) -> Value {
        let Self { id, uri, info, trail, code, received } = self;
        let stage = if info.is_long_running() { "ResponseStarted" } else { "ResponseComplete" };
        let uri = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let mut event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": id, "stage": stage,
            "requestURI": uri, "verb": info.verb, "userAgent": info.user_agent,
            "responseStatus": {"metadata": {}, "code": code.as_u16()},
            "requestReceivedTimestamp": api::time::format_micros(*received),
            "stageTimestamp": api::time::format_micros(Timestamp::now()),
        });
        let fields = crate::meta::as_map(&mut event);
        if let Some(user) = &trail.user {
            let speaker = trail.speaker.as_ref().unwrap_or(user);
            fields.insert("user".to_owned(), user_info(speaker));
            if trail.speaker.is_some() {
                fields.insert("impersonatedUser".to_owned(), user_info(user));
            }
            let decision = if trail.allowed.is_some() { "allow" } else { "forbid" };
            let reason = trail.allowed.as_deref().unwrap_or_default();
            let mut said =
                json!({"authorization.k8s.io/decision": decision, "authorization.k8s.io/reason": reason});
            info.notes.write_to(crate::meta::as_map(&mut said));
            fields.insert("annotations".to_owned(), said);
        }
        if let Some(peer) = trail.peer {
            fields.insert("sourceIPs".to_owned(), json!([peer.to_string()]));
        }
        if info.is_resource {
            fields.insert("objectRef".to_owned(), reference(info));
        }
        event
    }
}

fn reference(info: &RequestInfo) -> Value {
    let fields = [
        ("resource", &info.resource),
        ("namespace", &info.namespace),
        ("name", &info.name),
        ("apiGroup", &info.group),
        ("apiVersion", &info.version),
        ("subresource", &info.subresource),
    ];
    let present = fields.into_iter().filter(|(_, value)| !value.is_empty());
    Value::Object(
        present.map(|(name, value)| (name.to_owned(), value.as_str().into())).collect::<Map<_, _>>(),
    )
}
