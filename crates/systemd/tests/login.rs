//! logind over a real `dbus-daemon`, with a logind that the test plays.

#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

use std::time::Duration;

use systemd::testing::{FakeLogin, PrivateBus};
use systemd::{Bus, Login};

const SECOND: u64 = 1_000_000;

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap()
}

#[tokio::test]
async fn a_lock_is_held_until_it_is_dropped_and_notices_come_as_they_are_sent() {
    let directory = tempfile::tempdir().unwrap();
    let bus = PrivateBus::start(directory.path()).unwrap();
    let logind = FakeLogin::start(&bus, 5 * SECOND, None).await.unwrap();
    let login = Login::new(bus.bus());
    assert_eq!(login.longest_delay().await.unwrap(), Duration::from_secs(5));
    let mut notices = login.follow().await.unwrap();
    let lock = login.delay_shutdown("kubelet", "Pods are ended").await.unwrap();
    within(logind.wait_for_locks(1, 1)).await;
    logind.announce(true).await.unwrap();
    assert_eq!(within(notices.next()).await, Some(true));
    assert!(login.is_preparing().await.unwrap());
    login.delay_shutdown("kubelet", "too late").await.unwrap_err();
    drop(lock);
    within(logind.wait_for_locks(1, 0)).await;
    logind.announce(false).await.unwrap();
    assert_eq!(within(notices.next()).await, Some(false));
}

#[tokio::test]
async fn without_a_bus_or_a_logind_the_error_says_which_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let nowhere = Bus::at(format!("unix:path={}/none", directory.path().display()));
    let text = Login::new(nowhere).longest_delay().await.unwrap_err().to_string();
    assert!(text.contains("cannot connect to the message bus unix:path=") && text.contains("dbus"), "{text}");
    let bus = PrivateBus::start(directory.path()).unwrap();
    let text = Login::new(bus.bus()).longest_delay().await.unwrap_err().to_string();
    assert!(text.contains("org.freedesktop.login1") && text.contains("InhibitDelayMaxUSec"), "{text}");
}

#[tokio::test]
async fn a_bus_that_was_restarted_is_connected_to_anew() {
    let directory = tempfile::tempdir().unwrap();
    let first = PrivateBus::start(directory.path()).unwrap();
    let login = Login::new(first.bus());
    let logind = FakeLogin::start(&first, 5 * SECOND, None).await.unwrap();
    let mut notices = login.follow().await.unwrap();
    drop(logind);
    drop(first);
    assert_eq!(within(notices.next()).await, None, "the end of the bus is seen");
    let second = PrivateBus::start(directory.path()).unwrap();
    let _logind = FakeLogin::start(&second, 7 * SECOND, None).await.unwrap();
    assert_eq!(login.longest_delay().await.unwrap(), Duration::from_secs(7));
}
