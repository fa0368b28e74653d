//! logind as a test plays it: it hands out delay locks, sees when they are let go of, and announces shutdowns. Beside it
//! the one call of the service manager that makes logind read its configuration again.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use zbus::{Connection, fdo};

use super::PrivateBus;

const PATH: &str = "/org/freedesktop/login1";

/// logind and its configuration directory.
#[derive(Debug)]
pub struct FakeLogin {
    connections: [Connection; 2],
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    delay: Mutex<u64>,
    is_preparing: Mutex<bool>,
    /// Where drop-ins are read from when it is told to; `None` for one that reads nothing.
    conf_dir: Option<PathBuf>,
    /// Delay locks taken so far, and those that are held.
    locks: watch::Sender<(u32, u32)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Manager(Arc<State>);

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> fdo::Result<zbus::OwnedFd> {
        if *lock(&self.0.is_preparing) {
            return Err(fdo::Error::Failed("the operation is already running".to_owned()));
        }
        if (what, mode) != ("shutdown", "delay") || who.is_empty() || why.is_empty() {
            return Err(fdo::Error::InvalidArgs(format!("{what} {mode}")));
        }
        let (reader, writer) = io::pipe().map_err(|error| fdo::Error::IOError(error.to_string()))?;
        self.0.watch(reader.into()).map_err(|error| fdo::Error::IOError(error.to_string()))?;
        Ok(OwnedFd::from(writer).into())
    }

    #[zbus(property(emits_changed_signal = "const"), name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> u64 {
        *lock(&self.0.delay)
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn preparing_for_shutdown(&self) -> bool {
        *lock(&self.0.is_preparing)
    }
}

struct ServiceManager(Arc<State>);

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl ServiceManager {
    fn kill_unit(&self, unit: &str, who: &str, signal: i32) -> fdo::Result<()> {
        if (unit, who, signal) != ("systemd-logind.service", "all", 1) {
            return Err(fdo::Error::InvalidArgs(format!("{unit} {who} {signal}")));
        }
        self.0.read_configuration();
        Ok(())
    }
}

impl State {
    /// Counts a lock until its other end is closed.
    fn watch(self: &Arc<Self>, reader: OwnedFd) -> io::Result<()> {
        let reader = pipe::Receiver::from_owned_fd(reader)?;
        self.locks.send_modify(|(taken, held)| (*taken, *held) = (*taken + 1, *held + 1));
        let state = Arc::clone(self);
        tokio::spawn(async move {
            // Nothing is ever written: it is ready when the last writer is gone.
            let _ = reader.ready(Interest::READABLE).await;
            state.locks.send_modify(|(_, held)| *held -= 1);
        });
        Ok(())
    }

    fn read_configuration(&self) {
        let Some(directory) = &self.conf_dir else { return };
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let seconds = text.lines().filter_map(|line| line.strip_prefix("InhibitDelayMaxSec="));
            if let Some(seconds) = seconds.filter_map(|value| value.parse::<u64>().ok()).next_back() {
                *lock(&self.delay) = seconds * 1_000_000;
            }
        }
    }
}

impl FakeLogin {
    /// A logind that lets locks hold a shutdown back for `delay` microseconds, until a drop-in in `conf_dir` says more.
    ///
    /// # Errors
    /// When the bus is gone or has a logind.
    pub async fn start(bus: &PrivateBus, delay: u64, conf_dir: Option<PathBuf>) -> zbus::Result<Self> {
        let state = Arc::new(State {
            delay: Mutex::new(delay),
            is_preparing: Mutex::new(false),
            conf_dir,
            locks: watch::Sender::default(),
        });
        let login = bus.connect_as("org.freedesktop.login1").await?;
        login.object_server().at(PATH, Manager(Arc::clone(&state))).await?;
        let systemd = bus.connect_as("org.freedesktop.systemd1").await?;
        systemd.object_server().at("/org/freedesktop/systemd1", ServiceManager(Arc::clone(&state))).await?;
        Ok(Self { connections: [login, systemd], state })
    }

    /// Announces a shutdown, or that it was given up.
    ///
    /// # Errors
    /// When the bus is gone.
    pub async fn announce(&self, begins: bool) -> zbus::Result<()> {
        *lock(&self.state.is_preparing) = begins;
        let [login, _] = &self.connections;
        let none: Option<&str> = None;
        login
            .emit_signal(none, PATH, "org.freedesktop.login1.Manager", "PrepareForShutdown", &(begins,))
            .await
    }

    /// Is in the middle of a shutdown, which was announced before.
    pub fn prepare_silently(&self) {
        *lock(&self.state.is_preparing) = true;
    }

    /// Waits until so many locks have been taken in all, and so many of them are held.
    pub async fn wait_for_locks(&self, taken: u32, held: u32) {
        // The sender is ours: it does not end.
        let _ = self.state.locks.subscribe().wait_for(|locks| *locks == (taken, held)).await;
    }

    /// Locks that are held now.
    pub fn held(&self) -> u32 {
        self.state.locks.borrow().1
    }
}
