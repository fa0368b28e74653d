//! Sixteen writers: of the bare store and through HTTP, in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use serde_json::json;
use store::{Durability, Expect, Op, Storage as _, Store, StoreOptions, Write};

use super::client::Connection;
use super::server::Server;
use super::{PATH, PODS, pod};

/// Writers at a time.
const WRITERS: usize = 16;
/// How long each side writes in one round, and how many rounds there are.
const ROUND: (Duration, usize) = (Duration::from_secs(2), 5);
/// Acknowledged writes after which the server is killed.
const BEFORE_KILL: usize = 64;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Writes a second of both, and their ratio: of each round, since the disk of a shared machine is another one in the next.
pub(crate) async fn compare(server: &Server) {
    let store =
        Store::open(&server.beside("bare.redb"), &StoreOptions::default()).expect("a store can be made");
    let mut connections = connect(server).await;
    let sample = connections.first_mut().expect("there are writers").post(MAPS, map("sample")).await;
    let next = Arc::new(AtomicUsize::new(0));
    let (mut rounds, mut cpu) = (Vec::new(), Duration::ZERO);
    for _ in 0..ROUND.1 {
        let bare = bare(&store, &sample, &next).await;
        let before = server.cpu();
        let http = through_http(&connections, &next).await;
        cpu += server.cpu().saturating_sub(before);
        rounds.push((http / bare, bare, http));
    }
    let written: f64 = rounds.iter().map(|(_, _, http)| http * ROUND.0.as_secs_f64()).sum();
    rounds.sort_by(|left, right| left.0.total_cmp(&right.0));
    let (ratio, bare, http) = rounds.get(ROUND.1 / 2).copied().unwrap_or_default();
    println!("{:<55} {bare:>8.0} writes/s", format!("{WRITERS} writers of the bare store"));
    println!("{:<55} {http:>8.0} writes/s", format!("{WRITERS} writers through HTTP"));
    let (least, most) = (rounds.first().map_or(0.0, |r| r.0), rounds.last().map_or(0.0, |r| r.0));
    println!(
        "{:<55} {:>8.0} % of the bare store's rate, {:.0} to {:.0} in {} rounds (bound 60 %)",
        "  … which is",
        ratio * 1e2,
        least * 1e2,
        most * 1e2,
        ROUND.1
    );
    println!("{:<55} {:>8.2} ms of CPU, mean", "  … each, in the server", cpu.as_secs_f64() * 1e3 / written);
    store.close().await;
}

async fn connect(server: &Server) -> Vec<Connection> {
    let target = server.target();
    let mut connections = Vec::new();
    for _ in 0..WRITERS {
        connections.push(target.connect().await);
    }
    connections
}

fn map(name: &str) -> Bytes {
    json!({"metadata": {"name": name}, "data": {"text": "x".repeat(512)}}).to_string().into()
}

async fn bare(store: &Arc<Store>, value: &Bytes, next: &Arc<AtomicUsize>) -> f64 {
    let writers = (0..WRITERS).map(|_| {
        let (store, value, next) = (store.clone(), value.clone(), next.clone());
        move || {
            let key = format!("configmaps/default/{}", next.fetch_add(1, Ordering::Relaxed));
            let op = Op::Put(value.clone());
            let write = Write { key, expect: Expect::Absent, op, durability: Durability::Synced };
            let store = store.clone();
            async move { store.commit(write).await.map(drop).expect("the store writes") }
        }
    });
    rate(writers).await
}

async fn through_http(connections: &[Connection], next: &Arc<AtomicUsize>) -> f64 {
    let writers = connections.iter().map(|connection| {
        let (connection, next) = (connection.clone(), next.clone());
        move || {
            let mut connection = connection.clone();
            let body = map(&format!("map-{}", next.fetch_add(1, Ordering::Relaxed)));
            async move { drop(connection.post(MAPS, body).await) }
        }
    });
    rate(writers).await
}

/// Lets each writer write again and again until the round is over; tells how many writes a second that was.
async fn rate<W, F>(writers: impl Iterator<Item = W>) -> f64
where
    W: Fn() -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let begin = Instant::now();
    let running: Vec<_> = writers
        .map(|write| {
            tokio::spawn(async move {
                let mut done = 0_u32;
                while begin.elapsed() < ROUND.0 {
                    write().await;
                    done += 1;
                }
                done
            })
        })
        .collect();
    let mut done = 0;
    for writer in running {
        done += writer.await.expect("a writer ends well");
    }
    f64::from(done) / begin.elapsed().as_secs_f64()
}

/// Makes the Pods, and first what the controllers would have made.
pub(crate) async fn fill(server: &Server) {
    let account = json!({"metadata": {"name": "default"}}).to_string();
    let mut admin = server.target().connect().await;
    admin.post("/api/v1/namespaces/default/serviceaccounts", account.into()).await;
    let next = Arc::new(AtomicUsize::new(0));
    let begin = Instant::now();
    let running: Vec<_> = connect(server)
        .await
        .into_iter()
        .map(|mut connection| {
            let next = next.clone();
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= PODS {
                        return;
                    }
                    connection.post(PATH, pod(&format!("pod-{number}")).to_string().into()).await;
                }
            })
        })
        .collect();
    for writer in running {
        writer.await.expect("a writer ends well");
    }
    let rate = f64::from(u32::try_from(PODS).unwrap_or(u32::MAX)) / begin.elapsed().as_secs_f64();
    println!("{:<55} {rate:>8.0} writes/s", format!("{PODS} Pods of 4 KB made by {WRITERS} writers"));
}

/// Kills the server while writers change objects.
pub(crate) async fn kill_under(server: &mut Server) {
    let done = Arc::new(AtomicUsize::new(0));
    let (enough, mut is_enough) = tokio::sync::mpsc::channel(WRITERS);
    for (number, mut connection) in connect(server).await.into_iter().enumerate() {
        let (done, enough) = (done.clone(), enough.clone());
        tokio::spawn(async move {
            let path = format!("{PATH}/pod-{number}");
            let headers = [("content-type", "application/merge-patch+json")];
            loop {
                let count = done.fetch_add(1, Ordering::Relaxed);
                let body = json!({"metadata": {"labels": {"count": count.to_string()}}}).to_string();
                if connection.open(Method::PATCH, &path, &headers, body.into()).await.is_none() {
                    return;
                }
                if count >= BEFORE_KILL {
                    enough.send(()).await.ok();
                }
            }
        });
    }
    is_enough.recv().await.expect("the writers write");
    server.kill();
}
