//! One connection of a watch.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::{ListMeta, Request};
use kube::{Client, Error};
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::{Object, State, Target, Update, failed};

/// The annotation of the bookmark after the last initial object.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// How one connection ended.
#[derive(Debug)]
pub(crate) enum Ended {
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

pub(crate) struct Connection<'a, K> {
    client: &'a Client,
    target: &'a Target,
    out: &'a mpsc::Sender<Update<K>>,
    reached: Option<String>,
}

#[derive(Deserialize)]
struct List<K> {
    metadata: ListMeta,
    items: Vec<K>,
}

impl<'a, K: Object> Connection<'a, K> {
    pub(crate) const fn new(
        client: &'a Client,
        target: &'a Target,
        out: &'a mpsc::Sender<Update<K>>,
    ) -> Self {
        Self { client, target, out, reached: None }
    }

    /// The last revision that was told, if any was.
    pub(crate) fn into_reached(self) -> Option<String> {
        self.reached
    }

    pub(crate) async fn run(&mut self, state: &State) -> Ended {
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
        let params = ListParams::default().fields(&self.target.fields).labels(&self.target.labels);
        let request =
            Request::new(&self.target.path).list(&params).map_err(|e| failed(Error::BuildRequest(e)))?;
        let list: List<K> = self.client.request(request).await.map_err(failed)?;
        let revision = list.metadata.resource_version.unwrap_or_default();
        self.send(Update::Snapshot(list.items)).await?;
        self.reached = Some(revision.clone());
        Ok(revision)
    }

    async fn stream(&mut self, revision: &str, is_initial: bool) -> Ended {
        let mut params = WatchParams::default().fields(&self.target.fields).labels(&self.target.labels);
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
            let taken = match event {
                Ok(event) => self.take(event, &mut initial).await,
                Err(error) => Err(failed(error)),
            };
            if let Err(ended) = taken {
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
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => match initial {
                Some(gathered) => {
                    gathered.insert(object.meta().key(), object);
                    Ok(())
                }
                None => self.tell(object, Update::Applied).await,
            },
            WatchEvent::Deleted(object) => match initial {
                Some(gathered) => {
                    gathered.remove(&object.meta().key());
                    Ok(())
                }
                None => self.tell(object, Update::Deleted).await,
            },
            WatchEvent::Bookmark(bookmark) => {
                let end = bookmark.metadata.annotations.get(INITIAL_EVENTS_END);
                if end.is_some_and(|value| value == "true")
                    && let Some(gathered) = initial.take()
                {
                    self.send(Update::Snapshot(gathered.into_values().collect())).await?;
                }
                if initial.is_none() {
                    self.reached = Some(bookmark.metadata.resource_version);
                }
                Ok(())
            }
            WatchEvent::Error(status) => Err(failed(Error::Api(status))),
        }
    }

    async fn tell(&mut self, object: K, update: impl FnOnce(K) -> Update<K>) -> Result<(), Ended> {
        let revision = object.meta().revision.clone();
        self.send(update(object)).await?;
        self.reached = Some(revision);
        Ok(())
    }

    async fn send(&self, update: Update<K>) -> Result<(), Ended> {
        self.out.send(update).await.map_err(|_| Ended::NoConsumer)
    }
}
