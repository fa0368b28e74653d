//! Keeps one certificate fresh: asks for the first and, in the last third of its life, for the next, for ever.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use rcgen::KeyPair;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::pair::Pair;
use super::request::{Name, RequestError, Template, obtain};
use super::store::PairStore;
use crate::clock::Clock;

/// How long a request is waited for until another is made, as upstream.
const PATIENCE: Duration = Duration::from_mins(15);
/// The longest sleep at a time: the clock may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_mins(10);
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// One certificate that is kept fresh.
#[derive(Clone)]
pub struct Renewal {
    /// Where it is kept.
    pub store: PairStore,
    /// What it is.
    pub template: Template,
    /// The API, as the node.
    pub client: Client,
    /// The time.
    pub clock: Clock,
}

impl std::fmt::Debug for Renewal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewal").field("template", &self.template).finish_non_exhaustive()
    }
}

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("nobody answered within {} minutes", PATIENCE.as_secs() / 60)]
    Unanswered,
    #[error("write {}: {cause}", .path.display())]
    Write { path: std::path::PathBuf, cause: std::io::Error },
}

impl Renewal {
    /// The pair in use, where it is good now and what would be asked for, and when it was written.
    pub fn current(&self) -> Option<(Pair, Timestamp)> {
        let now = self.clock.now();
        self.store.current().filter(|(pair, _)| pair.is_valid_at(now) && self.template.fits(pair))
    }

    /// Keeps the certificate fresh until `shutdown`; `told` has the pair in use, at each time.
    pub async fn run(self, told: watch::Sender<Option<Arc<Pair>>>, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(Box::pin(self.keep(&told, &shutdown))).await;
    }

    async fn keep(&self, told: &watch::Sender<Option<Arc<Pair>>>, shutdown: &CancellationToken) {
        let mut current = self.current();
        let mut wait = FIRST_WAIT;
        loop {
            if let Some((pair, written)) = current.take() {
                let due = pair.plan_renewal(written, rand::random());
                tracing::info!(store = ?self.store.current_path(), %due, "the certificate is used until it is renewed");
                told.send_replace(Some(Arc::new(pair)));
                self.sleep_until(due).await;
            }
            match self.renew(shutdown).await {
                Ok(pair) => {
                    current = Some((pair, self.clock.now()));
                    wait = FIRST_WAIT;
                }
                Err(error) => {
                    tracing::warn!(%error, ?wait, "the certificate is not renewed; it is tried again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }

    async fn renew(&self, shutdown: &CancellationToken) -> Result<Pair, RenewalError> {
        let key = KeyPair::generate().map_err(RequestError::from)?;
        let asked = obtain(&self.client, &self.template, &key, Name::Any, shutdown);
        let pair = tokio::time::timeout(PATIENCE, asked).await.map_err(|_| RenewalError::Unanswered)??;
        let path = self.store.current_path();
        self.store.update(&pair, self.clock.now()).map_err(|cause| RenewalError::Write { path, cause })?;
        Ok(pair)
    }

    async fn sleep_until(&self, due: Timestamp) {
        while let Ok(left) = Duration::try_from(due.duration_since(self.clock.now())) {
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
        }
    }
}
