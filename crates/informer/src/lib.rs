//! Watches of the API: first all objects (`WatchList`), then each change, for ever. Objects are projected while they
//! are read, so that a consumer keeps only what it needs of them.
//!
//! A connection that ends is resumed from the last revision seen; one that the server calls too old starts over.
//! The consumer gets an [`Update::Snapshot`] then, and must treat what it does not contain as gone.

mod store;
mod stream;
mod typed;

use std::time::Duration;

use kube::{Client, Error};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use store::Store;
pub use typed::Typed;

use stream::{Connection, Ended};

/// What identifies an object and its state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The namespace; empty for cluster-wide objects.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The UID.
    pub uid: String,
    /// The resource version.
    pub revision: String,
}

impl Meta {
    /// Reads the metadata of an object.
    pub fn of(object: &Value) -> Self {
        let text = |name: &str| {
            let value = object.get("metadata").and_then(|m| m.get(name)).and_then(Value::as_str);
            value.unwrap_or_default().to_owned()
        };
        Self {
            namespace: text("namespace"),
            name: text("name"),
            uid: text("uid"),
            revision: text("resourceVersion"),
        }
    }

    /// `namespace/name`, or the name alone.
    pub fn key(&self) -> String {
        if self.namespace.is_empty() {
            self.name.clone()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }
}

/// Something that can be watched, or a projection of it.
pub trait Object: DeserializeOwned + Clone + Send + 'static {
    /// What identifies it.
    fn meta(&self) -> &Meta;
}

/// What is watched.
#[derive(Clone, Debug)]
pub struct Target {
    /// Path of the collection, such as `/api/v1/pods`.
    pub path: String,
    /// Only objects whose fields match; empty for all.
    pub fields: String,
    /// Only objects whose labels match; empty for all.
    pub labels: String,
}

impl Target {
    /// All objects of a collection.
    pub fn all(path: impl Into<String>) -> Self {
        Self { path: path.into(), fields: String::new(), labels: String::new() }
    }

    /// Those of which fields match a selector.
    #[must_use]
    pub fn with_fields(mut self, fields: impl Into<String>) -> Self {
        self.fields = fields.into();
        self
    }
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update<K> {
    /// All objects that there are now.
    Snapshot(Vec<K>),
    /// One was added or changed.
    Applied(K),
    /// One is gone; this was its last state.
    Deleted(K),
}

/// Where a watch stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nothing is known: ask for all objects and then changes, in one stream.
    Start,
    /// The server does not stream lists: list, then watch.
    List,
    /// Everything up to this revision was told.
    From(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    No,
    Backoff,
}

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What follows the end of a connection: the next state, and whether to wait before it.
fn step(state: State, ended: &Ended, reached: Option<String>) -> Option<(State, Pause)> {
    let resumed = reached.map(State::From);
    match ended {
        Ended::NoConsumer => None,
        Ended::Closed => Some((resumed.unwrap_or(state), Pause::No)),
        Ended::Expired => Some((State::Start, Pause::No)),
        Ended::NoWatchList => Some((State::List, Pause::No)),
        Ended::Failed(_) => Some((resumed.unwrap_or(state), Pause::Backoff)),
    }
}

/// Watches `target` until `shutdown`, or until nobody listens to `out` any more.
pub async fn watch<K: Object>(
    client: Client,
    target: Target,
    out: mpsc::Sender<Update<K>>,
    shutdown: CancellationToken,
) {
    let mut state = State::Start;
    let mut wait = FIRST_WAIT;
    loop {
        let mut connection = Connection::new(&client, &target, &out);
        let Some(ended) = shutdown.run_until_cancelled(connection.run(&state)).await else { return };
        let reached = connection.into_reached();
        if reached.is_some() {
            wait = FIRST_WAIT;
        }
        if let Ended::Failed(error) = &ended {
            tracing::warn!(path = target.path, fields = target.fields, %error, ?wait, "watch failed; it is resumed");
        }
        let Some((next, pause)) = step(state, &ended, reached) else { return };
        state = next;
        // A server that closes at once without having told anything must not be hammered either.
        let pause = if pause == Pause::Backoff || wait > FIRST_WAIT { wait } else { Duration::ZERO };
        wait = (wait * 2).min(LONGEST_WAIT);
        if shutdown.run_until_cancelled(tokio::time::sleep(jittered(pause))).await.is_none() {
            return;
        }
    }
}

/// Up to a quarter longer, so that not all watches come back at the same time.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(1.0 + rand::random::<f64>() / 4.0)
}

/// A failed request as the end of a connection.
fn failed(error: Error) -> Ended {
    match error {
        Error::Api(status) if status.code == 410 => Ended::Expired,
        other => Ended::Failed(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api_error(code: u16) -> Error {
        Error::Api(kube::core::Status::failure("m", "r").with_code(code).boxed())
    }

    #[test]
    fn each_end_leads_to_its_state() {
        let at = |revision: &str| State::From(revision.into());
        let reached = || Some("9".to_owned());
        for (state, ended, reached, expected) in [
            (State::Start, Ended::Closed, None, Some((State::Start, Pause::No))),
            (State::Start, Ended::Closed, reached(), Some((at("9"), Pause::No))),
            (at("5"), Ended::Closed, None, Some((at("5"), Pause::No))),
            (at("5"), Ended::Failed(api_error(500)), reached(), Some((at("9"), Pause::Backoff))),
            (at("5"), Ended::Failed(api_error(500)), None, Some((at("5"), Pause::Backoff))),
            (at("5"), failed(api_error(410)), reached(), Some((State::Start, Pause::No))),
            (State::Start, Ended::NoWatchList, None, Some((State::List, Pause::No))),
            (at("5"), Ended::NoConsumer, None, None),
        ] {
            let told = format!("{state:?} {ended:?}");
            assert_eq!(step(state, &ended, reached), expected, "{told}");
        }
    }
}
