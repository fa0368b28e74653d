//! Controllers as others write them, with kube: informers of each way to list, and controllers that apply on the server
//! side, while objects churn and the API server is killed again and again.
//!
//! The model is the log in the server's store. Each informer must be told that log, as its selector shows it, from where
//! its list ends, each change once; a watch that broke off goes on without a new list. Each acknowledged write must be in
//! the log, and each controller must have acted on the last state of every object.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

#[path = "controllers/client.rs"]
mod client;
mod common;
#[path = "controllers/model.rs"]
mod model;
#[path = "controllers/server.rs"]
mod server;

use std::future::Future;
use std::time::Duration;

use client::{Writers, control, has_come_to_rest, inform};
use kube::runtime::watcher::Config;
use model::{check, has_write};
use server::Server;

/// How often the server is killed; `KAKOI_SOAK_CHURN` asks for more.
const KILLS: usize = 5;
/// Acknowledged writes between two kills.
const WRITES: usize = 120;
/// The controllers, each with a field of its own in every copy.
const MANAGERS: [&str; 2] = ["one", "two"];
/// For each thing that is waited for. After many errors kube's controllers wait up to a minute before each new try.
const PATIENCE: Duration = Duration::from_mins(5);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Not a test of its own: the process that the test below kills.
#[test]
#[ignore = "run by informers_and_controllers_miss_nothing_while_the_server_is_killed in a process of its own"]
fn an_api_server_until_killed() {
    server::serve_until_killed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn informers_and_controllers_miss_nothing_while_the_server_is_killed() {
    let kills = std::env::var("KAKOI_SOAK_CHURN").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS);
    let mut server = within("the first start", Server::start()).await;
    let client = server.client().await;
    let configs = [
        ("", Config::default()),
        ("", Config::default().streaming_lists()),
        ("", Config::default().page_size(2)),
        ("1", Config::default().labels("l in (1,end)").streaming_lists()),
    ];
    let informers =
        configs.map(|(label, config)| (label, tokio::spawn(inform(client.clone(), config, server.target()))));
    let controllers = MANAGERS.map(|manager| tokio::spawn(control(client.clone(), manager)));
    let mut writers = Writers::start(&client, &server);
    for round in 1..=kills {
        within("writes", writers.until(round * WRITES)).await;
        within("a kill and a start", server.kill_and_restart()).await;
    }
    within("writes", writers.until((kills + 1) * WRITES)).await;
    let acknowledged = within("the last writes", writers.stop(&client)).await;
    within("the controllers' rest", has_come_to_rest(&client, &MANAGERS)).await;
    let mut told = Vec::new();
    for (label, informer) in informers {
        told.push((label, within("the last event", informer).await.unwrap()));
    }
    controllers.iter().for_each(tokio::task::JoinHandle::abort);

    let log = within("the log", server.end()).await;
    for (name, revision) in &acknowledged {
        assert!(has_write(&log, name, *revision), "{name} at {revision} was acknowledged and is lost");
    }
    for (number, (label, told)) in told.iter().enumerate() {
        check(&format!("informer {number}"), told, &log, label);
    }
}
