//! The node's first client certificate, asked for with a bootstrap token. The key is on disk before anybody hears of
//! it and the request is named after it, so that a kubelet that was killed goes on with the request that it made.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use kube::Client;
use rcgen::KeyPair;
use tokio_util::sync::CancellationToken;

use super::request::{Name, RequestError, Template, obtain};
use super::store::{PairStore, remove_if_there, write_private};
use crate::clock::Clock;

const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// An instant at which a kill must do no harm, for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The key is on disk; nobody was asked.
    KeyWritten,
    /// The certificate has come; it is not on disk.
    Issued,
    /// The certificate is on disk; the key of the request is still there.
    PairWritten,
}

/// What is needed to get the first certificate.
pub struct Bootstrap {
    /// The API, as the bootstrap token's user.
    pub client: Client,
    /// What is asked for.
    pub template: Template,
    /// Where it is kept.
    pub store: PairStore,
    /// The time.
    pub clock: Clock,
    /// Called at each [`Step`]; an error ends everything there.
    pub steps: fn(Step) -> io::Result<()>,
}

impl std::fmt::Debug for Bootstrap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bootstrap").field("template", &self.template).finish_non_exhaustive()
    }
}

/// Why there is no first certificate.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// A file.
    #[error("{action} {}: {cause}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The request has a definite no, or the kubelet is asked to end.
    #[error(transparent)]
    Request(RequestError),
}

impl Bootstrap {
    /// Asks until there is a certificate. What may pass (no API server, no right yet) is waited for.
    ///
    /// # Errors
    /// When the request is denied or failed, a file cannot be written, or at `shutdown`.
    pub async fn run(&self, shutdown: &CancellationToken) -> Result<(), BootstrapError> {
        let mut wait = FIRST_WAIT;
        loop {
            match self.attempt(shutdown).await {
                Err(BootstrapError::Request(error)) if is_passing(&error) => {
                    tracing::warn!(%error, ?wait, "there is no certificate yet; it is asked for again");
                    if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                        return Err(BootstrapError::Request(error));
                    }
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
                other => return other,
            }
        }
    }

    async fn attempt(&self, shutdown: &CancellationToken) -> Result<(), BootstrapError> {
        let key_path = self.store.pending_key();
        let failed = |action, path: PathBuf| move |cause| BootstrapError::Io { action, path, cause };
        let key = self.pending_key().map_err(failed("write", key_path.clone()))?;
        self.at(Step::KeyWritten)?;
        let name = Name::Known(self.template.name_for(&key));
        let pair = match obtain(&self.client, &self.template, &key, name, shutdown).await {
            Ok(pair) => pair,
            Err(error) => {
                if is_answered(&error) {
                    remove_if_there(&key_path).map_err(failed("remove", key_path))?;
                }
                return Err(BootstrapError::Request(error));
            }
        };
        self.at(Step::Issued)?;
        let stored = self.store.update(&pair, self.clock.now());
        stored.map_err(failed("write", self.store.current_path()))?;
        self.at(Step::PairWritten)?;
        remove_if_there(&key_path).map_err(failed("remove", key_path))
    }

    /// The key of the request that was made last, or a new one; one that cannot be read is replaced.
    fn pending_key(&self) -> io::Result<KeyPair> {
        let path = self.store.pending_key();
        let kept = fs::read_to_string(&path).ok().and_then(|pem| KeyPair::from_pem(&pem).ok());
        if let Some(key) = kept {
            return Ok(key);
        }
        let key = KeyPair::generate().map_err(io::Error::other)?;
        write_private(&path, key.serialize_pem().as_bytes())?;
        Ok(key)
    }

    fn at(&self, step: Step) -> Result<(), BootstrapError> {
        let path = self.store.pending_key();
        (self.steps)(step).map_err(|cause| BootstrapError::Io { action: "go on with", path, cause })
    }
}

/// Whether asking again may help.
const fn is_passing(error: &RequestError) -> bool {
    matches!(error, RequestError::Send(_) | RequestError::Gone(_) | RequestError::Unusable { .. })
}

/// Whether the request's key has served: whoever asks again needs another.
const fn is_answered(error: &RequestError) -> bool {
    matches!(error, RequestError::Denied { .. } | RequestError::Failed { .. } | RequestError::Unusable { .. })
}
