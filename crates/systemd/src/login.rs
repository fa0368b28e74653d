//! logind: a lock that delays a shutdown, and the notice that one has been asked for.
//!
//! Source: `org.freedesktop.login1(5)` and "Inhibitor Locks" of systemd. A delay lock holds a shutdown back until it is
//! let go of, but never longer than `InhibitDelayMaxSec` of `logind.conf(5)`, 5 s by default.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt as _;
use zbus::proxy::SignalStream;

use crate::bus::{Bus, BusError, Place};
use crate::unit::MANAGER;

const LOGIN: Place = Place {
    service: "org.freedesktop.login1",
    path: "/org/freedesktop/login1",
    interface: "org.freedesktop.login1.Manager",
};
const SIGHUP: i32 = 1;

/// As upstream's kubelet names its file, so that one replaces the other.
const DROP_IN: &str = "99-kubelet.conf";

/// logind on a bus.
#[derive(Clone, Debug)]
pub struct Login(Bus);

/// Holds a shutdown back until it is dropped.
#[derive(Debug)]
pub struct DelayLock(#[expect(dead_code, reason = "held for what its end means")] zbus::OwnedFd);

impl Login {
    /// logind on `bus`.
    pub fn new(bus: Bus) -> Self {
        Self(bus)
    }

    /// How long all delay locks together hold a shutdown back at most.
    ///
    /// # Errors
    /// When there is no bus or no logind.
    pub async fn longest_delay(&self) -> Result<Duration, BusError> {
        let login = self.0.object(LOGIN).await?;
        let read = login.get_property("InhibitDelayMaxUSec").await;
        read.map(Duration::from_micros).map_err(LOGIN.failed("read InhibitDelayMaxUSec"))
    }

    /// Whether a shutdown has been asked for and is only held back.
    ///
    /// # Errors
    /// When there is no bus or no logind.
    pub async fn is_preparing(&self) -> Result<bool, BusError> {
        let login = self.0.object(LOGIN).await?;
        login.get_property("PreparingForShutdown").await.map_err(LOGIN.failed("read PreparingForShutdown"))
    }

    /// Takes a lock that delays the next shutdown.
    ///
    /// # Errors
    /// When there is no bus or no logind, or a shutdown has begun.
    pub async fn delay_shutdown(&self, who: &str, why: &str) -> Result<DelayLock, BusError> {
        let login = self.0.object(LOGIN).await?;
        let taken = login.call("Inhibit", &("shutdown", who, why, "delay")).await;
        taken.map(DelayLock).map_err(LOGIN.failed("delay shutdowns"))
    }

    /// Has logind read its configuration again.
    ///
    /// # Errors
    /// When there is no bus, no service manager or no logind.
    pub async fn reload(&self) -> Result<(), BusError> {
        let manager = self.0.object(MANAGER).await?;
        let sent = manager.call("KillUnit", &("systemd-logind.service", "all", SIGHUP)).await;
        sent.map_err(MANAGER.failed("have logind read its configuration again"))
    }

    /// Notices from now on.
    ///
    /// # Errors
    /// When there is no bus.
    pub async fn follow(&self) -> Result<ShutdownNotices, BusError> {
        let login = self.0.object(LOGIN).await?;
        let signals = login.receive_signal("PrepareForShutdown").await;
        signals.map(ShutdownNotices).map_err(LOGIN.failed("be told of shutdowns"))
    }
}

/// What logind says about shutdowns.
#[derive(Debug)]
pub struct ShutdownNotices(SignalStream<'static>);

impl ShutdownNotices {
    /// The next notice: `true` for a shutdown that has been asked for, `false` for one that was given up. `None` when the
    /// connection to the bus has ended.
    pub async fn next(&mut self) -> Option<bool> {
        loop {
            let message = self.0.next().await?;
            match message.body().deserialize() {
                Ok(begins) => return Some(begins),
                Err(error) => {
                    tracing::warn!(%error, "logind said something of a shutdown that is not understood");
                }
            }
        }
    }
}

/// Writes the part of logind's configuration that lets locks delay a shutdown so long, rounded up to seconds, into
/// `directory`, usually `/etc/systemd/logind.conf.d`. Returns the file, to be told.
///
/// # Errors
/// What the filesystem said; the file is the old one or the new one whenever this ends.
pub fn override_delay(directory: &Path, delay: Duration) -> io::Result<PathBuf> {
    let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
    let text =
        format!("# The kubelet's shutdownGracePeriod needs this.\n[Login]\nInhibitDelayMaxSec={seconds}\n");
    let (path, new) = (directory.join(DROP_IN), directory.join(".99-kubelet.new"));
    fs::create_dir_all(directory)?;
    fs::write(&new, text)?;
    fs::rename(&new, &path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drop_in_is_in_whole_seconds_and_replaces_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let conf = directory.path().join("systemd/logind.conf.d");
        for (delay, line) in [(30_000, "InhibitDelayMaxSec=30"), (1_500, "InhibitDelayMaxSec=2")] {
            let path = override_delay(&conf, Duration::from_millis(delay)).unwrap();
            assert_eq!(path, conf.join("99-kubelet.conf"));
            assert!(fs::read_to_string(path).unwrap().lines().any(|found| found == line), "{line}");
        }
        assert_eq!(fs::read_dir(conf).unwrap().count(), 1);
    }
}
