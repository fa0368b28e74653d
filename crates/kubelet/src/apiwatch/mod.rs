//! Watches of the API as one explicit state machine: first all objects (WatchList), then each change, for ever.
//!
//! A connection that ends is resumed from the last revision seen; one that the server calls too old starts over.
//! The consumer gets a [`Update::Snapshot`] then, and must treat what it does not contain as gone.

pub(crate) mod cache;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::{ObjectMeta, Request};
use kube::{Client, Error};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Objects that can be watched: they have metadata.
pub(crate) trait Object: DeserializeOwned + Clone + std::fmt::Debug + Send + 'static {
    fn meta(&self) -> &ObjectMeta;
}

impl<K> Object for K
where
    K: k8s_openapi::Metadata<Ty = ObjectMeta> + DeserializeOwned + Clone + std::fmt::Debug + Send + 'static,
{
    fn meta(&self) -> &ObjectMeta {
        self.metadata()
    }
}

/// What is watched.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Path of the collection, e.g. `/api/v1/pods`.
    pub(crate) path: String,
    /// Only objects whose fields match.
    pub(crate) fields: String,
}

/// What a watch tells.
#[derive(Clone, Debug)]
pub(crate) enum Update<K> {
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
    /// The server does not know such streams: list, then watch.
    List,
    /// Everything up to this revision was told.
    From(String),
}

/// How one connection ended.
#[derive(Debug)]
enum Ended {
    /// The server closed it, as it does from time to time.
    Closed,
    /// The revision is too old.
    Expired,
    /// The server does not stream lists.
    NoWatchList,
    /// Anything else.
    Failed(Error),
    /// Nobody listens any more.
    NoConsumer,
}

/// What follows an end: the next state, and whether to wait first.
fn step(state: State, ended: &Ended, reached: Option<String>) -> Option<(State, Wait)> {
    let resumed = reached.map(State::From);
    match ended {
        Ended::NoConsumer => None,
        Ended::Closed => Some((resumed.unwrap_or(state), Wait::No)),
        Ended::Expired => Some((State::Start, Wait::No)),
        Ended::NoWatchList => Some((State::List, Wait::No)),
        Ended::Failed(_) => Some((resumed.unwrap_or(state), Wait::Longer)),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    No,
    Longer,
}

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Watches `target` until `shutdown` and sends what happens to `out`.
pub(crate) async fn watch<K: Object>(
    client: Client,
    target: Target,
    out: mpsc::Sender<Update<K>>,
    shutdown: CancellationToken,
) {
    let mut state = State::Start;
    let mut wait = FIRST_WAIT;
    loop {
        let mut connection = Connection { client: &client, target: &target, out: &out, reached: None };
        let Some(ended) = shutdown.run_until_cancelled(connection.run(&state)).await else { return };
        let reached = connection.reached.take();
        if reached.is_some() {
            wait = FIRST_WAIT;
        }
        if let Ended::Failed(error) = &ended {
            tracing::warn!(path = target.path, fields = target.fields, %error, ?wait, "watch failed; it is resumed");
        }
        let Some((next, pause)) = step(state, &ended, reached) else { return };
        state = next;
        // A server that closes at once must not be hammered either.
        let pause = if pause == Wait::Longer || wait > FIRST_WAIT { wait } else { Duration::ZERO };
        wait = (wait * 2).min(LONGEST_WAIT);
        if shutdown.run_until_cancelled(tokio::time::sleep(jittered(pause))).await.is_none() {
            return;
        }
    }
}

fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(1.0 + rand::random::<f64>() / 4.0)
}

struct Connection<'a, K> {
    client: &'a Client,
    target: &'a Target,
    out: &'a mpsc::Sender<Update<K>>,
    reached: Option<String>,
}

#[derive(Deserialize)]
struct List<K> {
    metadata: kube::core::ListMeta,
    items: Vec<K>,
}

impl<K: Object> Connection<'_, K> {
    async fn run(&mut self, state: &State) -> Ended {
        match state {
            State::Start => self.stream("", true).await,
            State::List => match self.list().await {
                Ok(revision) => self.stream(&revision, false).await,
                Err(ended) => ended,
            },
            State::From(revision) => self.stream(revision, false).await,
        }
    }

    async fn list(&mut self) -> Result<String, Ended> {
        let params = ListParams::default().fields(&self.target.fields);
        let request =
            Request::new(&self.target.path).list(&params).map_err(|e| failed(Error::BuildRequest(e)))?;
        let list: List<K> = self.client.request(request).await.map_err(failed)?;
        let revision = list.metadata.resource_version.unwrap_or_default();
        self.send(Update::Snapshot(list.items)).await?;
        self.reached = Some(revision.clone());
        Ok(revision)
    }

    async fn stream(&mut self, revision: &str, is_initial: bool) -> Ended {
        let mut params = WatchParams::default().fields(&self.target.fields);
        params.send_initial_events = is_initial;
        let request = match Request::new(&self.target.path).watch(&params, revision) {
            Ok(request) => request,
            Err(error) => return failed(Error::BuildRequest(error)),
        };
        let stream = match self.client.request_events::<K>(request).await {
            Ok(stream) => stream,
            Err(Error::Api(status)) if is_initial && matches!(status.code, 400 | 422) => {
                return Ended::NoWatchList;
            }
            Err(error) => return failed(error),
        };
        let mut initial = is_initial.then(BTreeMap::new);
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            let result = match event {
                Ok(event) => self.take(event, &mut initial).await,
                Err(error) => Err(failed(error)),
            };
            if let Err(ended) = result {
                return ended;
            }
        }
        Ended::Closed
    }

    /// One event; while the initial ones come they are gathered.
    async fn take(
        &mut self,
        event: WatchEvent<K>,
        initial: &mut Option<BTreeMap<String, K>>,
    ) -> Result<(), Ended> {
        let (update, revision) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                if let Some(gathered) = initial {
                    gathered.insert(key(&object), object);
                    return Ok(());
                }
                let revision = object.meta().resource_version.clone();
                (Update::Applied(object), revision)
            }
            WatchEvent::Deleted(object) => {
                if let Some(gathered) = initial {
                    gathered.remove(&key(&object));
                    return Ok(());
                }
                let revision = object.meta().resource_version.clone();
                (Update::Deleted(object), revision)
            }
            WatchEvent::Bookmark(bookmark) => {
                let is_end = bookmark.metadata.annotations.get("k8s.io/initial-events-end");
                if is_end.is_some_and(|value| value == "true")
                    && let Some(gathered) = initial.take()
                {
                    self.send(Update::Snapshot(gathered.into_values().collect())).await?;
                }
                if initial.is_none() {
                    self.reached = Some(bookmark.metadata.resource_version);
                }
                return Ok(());
            }
            WatchEvent::Error(status) => return Err(failed(Error::Api(status))),
        };
        self.send(update).await?;
        self.reached = revision.or_else(|| self.reached.take());
        Ok(())
    }

    async fn send(&self, update: Update<K>) -> Result<(), Ended> {
        self.out.send(update).await.map_err(|_| Ended::NoConsumer)
    }
}

fn key<K: Object>(object: &K) -> String {
    let meta = object.meta();
    format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

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
            (State::Start, Ended::Closed, None, Some((State::Start, Wait::No))),
            (State::Start, Ended::Closed, reached(), Some((at("9"), Wait::No))),
            (at("5"), Ended::Closed, None, Some((at("5"), Wait::No))),
            (at("5"), Ended::Failed(api_error(500)), reached(), Some((at("9"), Wait::Longer))),
            (at("5"), Ended::Failed(api_error(500)), None, Some((at("5"), Wait::Longer))),
            (at("5"), failed(api_error(410)), reached(), Some((State::Start, Wait::No))),
            (State::Start, Ended::NoWatchList, None, Some((State::List, Wait::No))),
            (at("5"), Ended::NoConsumer, None, None),
        ] {
            let told = format!("{state:?} {ended:?}");
            assert_eq!(step(state, &ended, reached), expected, "{told}");
        }
    }
}
