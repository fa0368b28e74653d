//! The runtime's container events wake Pod workers. Nothing is read from an event but whose Pod it is: the worker looks.
//!
//! A runtime that serves no events is listed each second instead, and the log says so once.

use std::time::Duration;

use cri::v1;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::{Cri, CriError};
use crate::pod::label;

/// Whom an event wakes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// The worker of this Pod UID.
    Pod(String),
    /// Everybody: events may have been missed.
    All,
}

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How often a runtime without events is looked at, as upstream's relist period.
const RELIST: Duration = Duration::from_secs(1);

/// Follows events until `shutdown` and calls `wake` for each.
pub(crate) async fn follow_events(cri: Cri, wake: impl Fn(Wake), shutdown: CancellationToken) {
    let mut wait = FIRST_WAIT;
    loop {
        let Some(ended) = shutdown.run_until_cancelled(follow_once(&cri, &wake, &mut wait)).await else {
            return;
        };
        match ended {
            Err(error) if error.code == Code::Unimplemented => {
                tracing::warn!("the runtime serves no container events: it is looked at each second instead");
                shutdown.run_until_cancelled(relist(&wake)).await;
                return;
            }
            Err(error) => tracing::warn!(%error, ?wait, "container events ended; they are followed again"),
            Ok(()) => tracing::debug!("container events ended; they are followed again"),
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

async fn follow_once(cri: &Cri, wake: &impl Fn(Wake), wait: &mut Duration) -> Result<(), CriError> {
    let mut events = cri.container_events().await?;
    *wait = FIRST_WAIT;
    wake(Wake::All);
    while let Some(event) = events.next().await {
        wake(whom(&event?));
    }
    Ok(())
}

async fn relist(wake: &impl Fn(Wake)) {
    let mut ticks = tokio::time::interval(RELIST);
    loop {
        ticks.tick().await;
        wake(Wake::All);
    }
}

/// The Pod an event is about; everybody when it does not say.
fn whom(event: &v1::ContainerEventResponse) -> Wake {
    let of_sandbox = event.pod_sandbox_status.as_ref().and_then(|status| status.metadata.as_ref());
    let of_sandbox = of_sandbox.map(|metadata| metadata.uid.clone()).filter(|uid| !uid.is_empty());
    let of_container =
        || event.containers_statuses.iter().find_map(|status| status.labels.get(label::POD_UID).cloned());
    of_sandbox.or_else(of_container).map_or(Wake::All, Wake::Pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_wakes_its_pod_or_everybody() {
        let mut event = v1::ContainerEventResponse::default();
        assert_eq!(whom(&event), Wake::All);
        let metadata = v1::PodSandboxMetadata { uid: "u".into(), ..Default::default() };
        event.pod_sandbox_status =
            Some(v1::PodSandboxStatus { metadata: Some(metadata), ..Default::default() });
        assert_eq!(whom(&event), Wake::Pod("u".into()));
    }
}
