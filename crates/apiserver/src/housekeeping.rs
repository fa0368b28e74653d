//! What the server does by the clock: forgets old history, old Events, and renews its certificate before it ends.
//! Nothing waits for any of this.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use api::kind;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;
use store::{Expect, Op};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::cache::Object;
use crate::server::Server;

/// How often the work is looked for.
const EVERY: Duration = Duration::from_mins(1);
/// How long the store's history is kept.
const HISTORY: Duration = Duration::from_mins(5);
/// How long an Event is kept after it was last seen.
const EVENT_LIFE: SignedDuration = SignedDuration::from_hours(1);
/// How often certificates are looked at.
const CERTIFICATES: Duration = Duration::from_hours(24);

/// Works until the shutdown. `renew` looks at the certificates.
pub(crate) async fn run(server: Arc<Server>, renew: impl Fn() + Send) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut past: VecDeque<(Instant, u64)> = VecDeque::new();
    let mut renewed = Instant::now();
    loop {
        tokio::select! {
            now = ticks.tick() => {
                expire_events(&server).await;
                compact(&server, &mut past, now).await;
                if now.duration_since(renewed) >= CERTIFICATES {
                    renewed = now;
                    renew();
                }
            }
            () = server.shutdown.cancelled() => return,
        }
    }
}

/// Forgets the history before what was the newest revision [`HISTORY`] ago.
async fn compact(server: &Server, past: &mut VecDeque<(Instant, u64)>, now: Instant) {
    past.push_back((now, server.cache.revision()));
    let mut to = None;
    while let Some((at, revision)) = past.front().copied()
        && now.duration_since(at) >= HISTORY
    {
        to = Some(revision);
        past.pop_front();
    }
    if let Some(revision) = to.filter(|revision| *revision > server.cache.store().floor())
        && let Err(error) = server.cache.store().compact(revision).await
    {
        tracing::warn!(%error, "old history could not be forgotten");
    }
}

async fn expire_events(server: &Server) {
    let Some(table) = kind::find("", "v1", "events").and_then(|kind| server.cache.table(kind)) else {
        return;
    };
    let now = Timestamp::now();
    let snapshot = server.cache.snapshot(table);
    for event in
        snapshot.objects.values().filter(|event| now.duration_since(last_seen(event, now)) > EVENT_LIFE)
    {
        // One that has been seen again in the meantime has another revision, and stays.
        let expect = Expect::Revision(event.revision());
        server.cache.commit(table, event.key(), expect, Op::Delete).await.ok();
    }
}

/// The times in an Event; the rest is not read.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Times {
    last_timestamp: Value,
    event_time: Value,
    series: Option<Series>,
    metadata: Made,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Series {
    last_observed_time: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Made {
    creation_timestamp: Value,
}

/// When an Event was last written, by what it says; what is in the future counts as now.
fn last_seen(event: &Object, now: Timestamp) -> Timestamp {
    // An Event whose times can't be read is as old as one that has none.
    let times: Times = serde_json::from_slice(event.json()).unwrap_or_default();
    let repeated = times.series.unwrap_or_default().last_observed_time;
    let times = [times.last_timestamp, times.event_time, repeated, times.metadata.creation_timestamp];
    let last = times.iter().filter_map(|time| api::time::of(Some(time))).max();
    last.map_or(Timestamp::UNIX_EPOCH, |last| last.min(now))
}
