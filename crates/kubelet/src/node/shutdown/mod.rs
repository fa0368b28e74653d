//! Graceful shutdown of the node (KEP-2000, KEP-2712): logind is held back while Pods end in their order.
//!
//! A machine without D-Bus or logind works as any other; its Pods end with it, and that is said once.

mod plan;
mod state;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use systemd::{Bus, BusError, DelayLock, Login, ShutdownNotices};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::event::Kind;
use crate::pod::status::phase::Phase;
use crate::pod::worker::Ending;
use crate::shared::Shared;
use crate::uid::PodUid;
pub(crate) use plan::refusal;
use plan::{Group, failure, plan_shutdown};
pub use plan::{ShutdownPeriod, ShutdownSettings};
pub(crate) use state::ShutdownState;

/// Waits between two tries to reach logind.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// How long logind may take to follow its configuration. It tells nobody when it has.
const RELOAD: Duration = Duration::from_secs(5);
const RELOAD_STEP: Duration = Duration::from_millis(50);

/// What a graceful shutdown needs.
#[derive(Clone, Debug)]
pub struct ShutdownConfig {
    /// Which Pods get how long.
    pub settings: ShutdownSettings,
    /// Where logind is.
    pub bus: Bus,
    /// Where logind reads drop-ins from, usually `/etc/systemd/logind.conf.d`.
    pub logind_conf_dir: PathBuf,
}

/// Follows logind until `shutdown`; `told` says whether the node is about to be turned off.
pub(crate) async fn follow_shutdown(
    shared: Arc<Shared>,
    config: ShutdownConfig,
    told: watch::Sender<bool>,
    shutdown: CancellationToken,
) {
    shared.metrics.note_shutdown(ShutdownState::load(shared.places.kubelet()));
    if config.settings.is_off() {
        return;
    }
    let mut follower = Follower { login: Login::new(config.bus.clone()), shared, config, told, lock: None };
    shutdown.run_until_cancelled(follower.run()).await;
}

struct Follower {
    shared: Arc<Shared>,
    config: ShutdownConfig,
    login: Login,
    told: watch::Sender<bool>,
    /// Held while the node is up. It outlives the connection that it was taken over.
    lock: Option<DelayLock>,
}

impl Follower {
    async fn run(&mut self) {
        let (mut wait, mut said) = (FIRST_WAIT, String::new());
        loop {
            match Box::pin(self.follow()).await {
                Ok(()) => (wait, said) = (FIRST_WAIT, String::new()),
                Err(error) => {
                    let text = error.to_string();
                    if text != said {
                        let text = text.as_str();
                        tracing::warn!(
                            error = text,
                            "a shutdown of this machine would end its Pods without their shutdownGracePeriod; logind is tried again"
                        );
                    }
                    said = text;
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Takes the lock and does what logind announces, until the connection ends.
    async fn follow(&mut self) -> Result<(), BusError> {
        // Before anything is asked: an announcement in between is not missed.
        let mut notices = self.login.follow().await?;
        let settings = self.config.settings.within(self.make_room().await?);
        let is_done = *self.told.borrow();
        if !self.login.is_preparing().await? {
            self.take_lock().await?;
        } else if !is_done {
            // Announced before this node agent was there.
            self.begin(&settings, &mut notices).await;
        }
        while let Some(begins) = notices.next().await {
            if begins {
                self.begin(&settings, &mut notices).await;
            } else {
                self.give_up();
            }
            if !*self.told.borrow() {
                self.take_lock().await?;
            }
        }
        Ok(())
    }

    async fn take_lock(&mut self) -> Result<(), BusError> {
        let why = "Kubelet needs time to handle node shutdown";
        // The new one before the old one goes: there is no moment without.
        self.lock = Some(self.login.delay_shutdown("kubelet", why).await?);
        self.told.send_if_modified(|known| std::mem::replace(known, false));
        tracing::info!(grace = ?self.config.settings.requested(), "a shutdown of this machine waits for its Pods");
        Ok(())
    }

    /// Has logind wait as long as the settings ask. Returns how long it does.
    async fn make_room(&self) -> Result<Duration, BusError> {
        let requested = self.config.settings.requested();
        let allowed = self.login.longest_delay().await?;
        if allowed >= requested {
            return Ok(allowed);
        }
        match systemd::override_delay(&self.config.logind_conf_dir, requested) {
            Ok(path) => {
                let path = path.display();
                tracing::info!(?allowed, ?requested, %path, "logind lets nobody delay a shutdown so long; raised");
                self.login.reload().await?;
            }
            Err(error) => {
                let directory = self.config.logind_conf_dir.display();
                tracing::warn!(%error, %directory, "InhibitDelayMaxSec of logind cannot be raised");
            }
        }
        let allowed = self.longer_delay(requested).await?;
        if allowed < requested {
            tracing::warn!(
                ?allowed,
                ?requested,
                "logind does not wait longer: Pods get less than their shutdownGracePeriod, each group its part; set InhibitDelayMaxSec in logind.conf"
            );
        }
        Ok(allowed)
    }

    /// What logind allows, once it allows `requested` or has had time to.
    async fn longer_delay(&self, requested: Duration) -> Result<Duration, BusError> {
        let deadline = Instant::now() + RELOAD;
        loop {
            let allowed = self.login.longest_delay().await?;
            if allowed >= requested || Instant::now() >= deadline {
                return Ok(allowed);
            }
            tokio::time::sleep(RELOAD_STEP).await;
        }
    }

    /// The machine is about to be turned off: ends the Pods and lets it go on. Returns early when it is given up.
    async fn begin(&mut self, settings: &ShutdownSettings, notices: &mut ShutdownNotices) {
        self.say("Shutdown manager detected shutdown event");
        self.told.send_replace(true);
        let start_time = Some(self.shared.clock.now());
        self.note(ShutdownState { start_time, end_time: None });
        let is_given_up = tokio::select! {
            () = end_pods(&self.shared, settings) => false,
            () = given_up(notices) => true,
        };
        if is_given_up {
            self.give_up();
            return;
        }
        self.note(ShutdownState { start_time, end_time: Some(self.shared.clock.now()) });
        tracing::info!("all Pods have ended or had their time; the shutdown goes on");
        self.lock = None;
    }

    /// The machine stays on.
    fn give_up(&mut self) {
        self.say("Shutdown manager detected shutdown cancellation");
        self.told.send_replace(false);
    }

    fn say(&self, text: &str) {
        tracing::info!("{text}");
        self.shared.events.node(Kind::Normal, "NodeShutdown", text);
    }

    fn note(&self, state: ShutdownState) {
        self.shared.metrics.note_shutdown(state);
        if let Err(error) = state.store(self.shared.places.kubelet()) {
            tracing::warn!(%error, "the times of the shutdown are not kept");
        }
    }
}

/// Waits until the shutdown is given up; for ever once the connection has ended.
async fn given_up(notices: &mut ShutdownNotices) {
    loop {
        match notices.next().await {
            Some(false) => return,
            Some(true) => {}
            None => std::future::pending().await,
        }
    }
}

/// Ends all Pods, group by group; each has its time and no more.
async fn end_pods(shared: &Shared, settings: &ShutdownSettings) {
    // A node agent that has just started does not know its Pods yet.
    let mut seen = shared.pods_seen.subscribe();
    let known = tokio::time::timeout(settings.requested(), seen.wait_for(|seen| *seen));
    // Without the API nothing is known, and nothing can be done.
    drop(known.await);
    for group in plan_shutdown(settings, &active(shared)) {
        tracing::info!(priority = group.priority, grace = ?group.grace, pods = group.pods.len(), "Pods end");
        let ends = join_all(end_group(shared, &group));
        if tokio::time::timeout(group.grace, ends).await.is_err() {
            tracing::warn!(priority = group.priority, "Pods have not ended in their time");
        }
    }
}

/// Tells a group's Pods to end. Each future ends when its Pod has, with its volumes, and the API knows.
fn end_group(shared: &Shared, group: &Group) -> Vec<impl Future<Output = ()>> {
    let uid = |pod: &Pod| pod.metadata.uid.as_deref().and_then(|uid| PodUid::parse(uid).ok());
    let pods = group.pods.iter().filter_map(|(pod, grace)| Some((uid(pod)?, *grace)));
    pods.map(|(uid, grace)| {
        shared.registry.end(&uid, Ending { failure: failure(), grace });
        let settled = shared.registry.settled(&uid);
        async move {
            if let Some(mut settled) = settled {
                // An error: nothing is left of the Pod.
                drop(settled.wait_for(|settled| *settled).await);
            }
        }
    })
    .collect()
}

/// Pods of which something may run.
fn active(shared: &Shared) -> Vec<Arc<Pod>> {
    let is_active = |pod: &Arc<Pod>| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        Phase::stored_terminal(phase).is_none()
    };
    shared.registry.pods().into_iter().filter(is_active).collect()
}
