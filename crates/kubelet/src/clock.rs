//! The clock that is passed in: everything that decides by time gets `now` from here, so tests can hold it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// A source of the current time, shared by the node agent's parts.
#[derive(Clone)]
pub struct Clock {
    read: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Told when the clock is set; the system tells of its own.
    sets: Option<watch::Receiver<()>>,
}

impl Clock {
    /// The system's wall clock.
    pub fn system() -> Self {
        Self { read: Arc::new(Timestamp::now), sets: None }
    }

    /// A clock that answers with what `read` returns and is set when `sets` says so, for tests.
    pub fn from_fn(read: impl Fn() -> Timestamp + Send + Sync + 'static, sets: watch::Receiver<()>) -> Self {
        Self { read: Arc::new(read), sets: Some(sets) }
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        (self.read)()
    }

    /// Calls `told` each time that the clock was set, by a person, by NTP, or because the machine has slept: what was
    /// worked out from the time before counts no more. Never ends.
    pub(crate) async fn follow_sets(&self, told: impl Fn()) {
        let Some(mut sets) = self.sets.clone() else {
            if let Err(error) = follow_system(&told).await {
                tracing::warn!(%error, "the kernel does not tell when the clock is set: waits go on as they were");
            }
            std::future::pending::<()>().await;
            return;
        };
        while sets.changed().await.is_ok() {
            told();
        }
        std::future::pending::<()>().await;
    }
}

/// A timer on the wall clock is cancelled when that is set: `timerfd_create(2)`, `TFD_TIMER_CANCEL_ON_SET`.
#[expect(
    deprecated,
    reason = "an owned descriptor is I/O safe; the replacement is `unsafe`, which stays out of here"
)]
async fn follow_system(told: &impl Fn()) -> io::Result<()> {
    let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    arm(&timer)?;
    let timer = AsyncFd::new(timer)?;
    loop {
        let mut ready = timer.readable().await?;
        match rustix::io::read(timer.get_ref(), &mut [0; 8]) {
            Err(rustix::io::Errno::CANCELED) => {
                arm(timer.get_ref())?;
                told();
            }
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            other => drop(other?),
        }
    }
}

/// Arms the timer for a time that never comes.
fn arm(timer: &OwnedFd) -> io::Result<()> {
    let never = Timespec { tv_sec: i64::from(i32::MAX) << 8, tv_nsec: 0 };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    let once = Itimerspec { it_interval: Timespec::default(), it_value: never };
    timerfd_settime(timer, flags, &once)?;
    Ok(())
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// `at` cut to whole seconds, as API objects carry it.
pub(crate) fn api_time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// A CRI time (nanoseconds since the epoch) as a timestamp; zero and values out of range mean "not yet".
pub(crate) fn from_nanoseconds(nanoseconds: i64) -> Option<Timestamp> {
    if nanoseconds <= 0 {
        return None;
    }
    Timestamp::from_nanosecond(i128::from(nanoseconds)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clock_that_nobody_sets_is_followed_in_silence() {
        let follow = follow_system(&|| unreachable!("nobody has set the clock"));
        let ended = tokio::time::timeout(std::time::Duration::from_millis(50), follow).await;
        assert!(ended.is_err(), "the kernel makes the timer: {ended:?}");
    }
}
