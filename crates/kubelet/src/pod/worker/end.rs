//! Ending a Pod: SIGTERM, the grace, SIGKILL, the sandbox, and then the API's object.

use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Error};

use super::{Desired, Next, Worker};
use crate::event::Kind;
use crate::fault::CrashPoint;
use crate::pod::ephemeral::find;
use crate::pod::observed::{ContainerRecord, Observed};
use crate::pod::plan::{Kill, crash_key};
use crate::pod::restart::is_sidecar;
use crate::pod::restart_all::RestartAll;
use crate::runtime::CriError;

impl Worker {
    /// Ends all containers and stops the sandboxes. A shorter grace that arrives meanwhile counts at once.
    pub(super) async fn kill(&mut self, desired: &Desired, observed: &Observed) -> Next {
        let pod = &*desired.pod;
        self.shared.ids.terminate(&self.uid);
        self.publish(pod, observed);
        for record in observed.live() {
            if self.told.insert(format!("killing/{}", record.id)) {
                let text = format!("Stopping container {}", record.name);
                self.tell_container(pod, &record.name, Kind::Normal, "Killing", text);
            }
        }
        let grace = desired.grace();
        let mut input = self.input.clone();
        let hurried = async {
            let is_shorter = |desired: &Desired| desired.must_end() && desired.grace() < grace;
            let is_lost = input.wait_for(is_shorter).await.is_err();
            if is_lost {
                std::future::pending::<()>().await;
            }
        };
        let result = tokio::select! {
            result = self.end_all(pod, observed, grace) => result,
            () = hurried => return Next::Again,
        };
        match result {
            Ok(()) => Next::Again,
            Err(error) => {
                let text = format!("error killing pod: {error}");
                self.shared.events.pod(pod, Kind::Warning, "FailedKillPod", text);
                self.retry()
            }
        }
    }

    /// Main containers together, then sidecars in reverse order, then the sandboxes.
    async fn end_all(&self, pod: &Pod, observed: &Observed, grace: Duration) -> Result<(), CriError> {
        let begun = tokio::time::Instant::now();
        let is_side = |record: &&ContainerRecord| {
            find(pod, &record.name).is_some_and(|container| is_sidecar(&container))
        };
        let mut failed = None;
        let main = observed.live().filter(|record| !is_side(record));
        for result in
            join_all(main.map(|record| self.stop(pod, observed, (&record.name, &record.id), grace))).await
        {
            let error = result.err();
            failed = failed.or(error);
        }
        let mut sides: Vec<&ContainerRecord> = observed.live().filter(is_side).collect();
        sides.sort_by_key(|record| std::cmp::Reverse(position(pod, &record.name)));
        for record in sides {
            let left = grace.saturating_sub(begun.elapsed());
            failed = failed.or(self.stop(pod, observed, (&record.name, &record.id), left).await.err());
        }
        for sandbox in &observed.sandboxes {
            failed = failed.or(self.shared.cri.stop_pod_sandbox(&sandbox.id).await.err());
        }
        self.shared.reached(CrashPoint::SandboxesStopped);
        failed.map_or(Ok(()), Err)
    }

    /// Stops one container of a Pod that goes on.
    pub(super) async fn stop_one(&self, desired: &Desired, observed: &Observed, kill: &Kill) {
        self.tell_container(&desired.pod, &kill.name, Kind::Normal, "Killing", kill.message.clone());
        if let Err(error) = self.stop(&desired.pod, observed, (&kill.name, &kill.id), desired.grace()).await {
            tracing::warn!(pod = %self.uid, container = kill.name, %error, "container not stopped; it is tried again");
        }
    }

    /// Takes a step of a restart of all containers.
    pub(super) async fn restart_all(&mut self, pod: &Pod, observed: &Observed, step: &RestartAll) -> Next {
        let done = match step {
            RestartAll::Wait(delayed) => {
                return Next::Wait(self.next_wake(pod, std::slice::from_ref(delayed)));
            }
            RestartAll::Kill(kills) => self.kill_at_once(pod, kills).await,
            RestartAll::Clear { records, ended } => {
                let now = self.shared.clock.now();
                for (name, ended_at) in ended {
                    let Some(container) = find(pod, name) else { continue };
                    self.crashes.lengthen(&crash_key(&container), *ended_at, now);
                }
                self.clear(pod, observed, records).await
            }
        };
        match done {
            Ok(()) => Next::Again,
            Err(error) => {
                let text = format!("error restarting all containers: {error}");
                self.shared.events.pod(pod, Kind::Warning, "FailedSync", text);
                self.retry()
            }
        }
    }

    async fn kill_at_once(&self, pod: &Pod, kills: &[Kill]) -> Result<(), CriError> {
        let stops = kills.iter().map(|kill| {
            self.tell_container(pod, &kill.name, Kind::Normal, "Killing", kill.message.clone());
            self.shared.cri.stop_container(&kill.id, Duration::ZERO)
        });
        join_all(stops).await.into_iter().find(Result::is_err).unwrap_or(Ok(()))
    }

    async fn clear(&mut self, pod: &Pod, observed: &Observed, ids: &[String]) -> Result<(), CriError> {
        for id in ids {
            let Some(record) = observed.containers.iter().find(|record| record.id == *id) else { continue };
            self.remove_record(pod, record).await?;
            self.waiting.remove(&record.name);
        }
        Ok(())
    }

    /// Deletes the API's object, now that the Pod's end is complete and known.
    pub(super) async fn delete(&mut self, desired: &Desired) -> Next {
        self.publisher.flush().await;
        let meta = &desired.pod.metadata;
        let api: Api<Pod> =
            Api::namespaced(self.shared.client.clone(), meta.namespace.as_deref().unwrap_or_default());
        let params = DeleteParams::default()
            .grace_period(0)
            .preconditions(Preconditions { uid: meta.uid.clone(), resource_version: None });
        match api.delete(meta.name.as_deref().unwrap_or_default(), &params).await {
            Ok(answer) => {
                // Finalizers may keep the object; then its removal comes by the watch.
                let stays = answer
                    .left()
                    .is_some_and(|pod| pod.metadata.finalizers.is_some_and(|list| !list.is_empty()));
                self.is_deleted = !stays;
                self.shared.reached(CrashPoint::ObjectDeleted);
                if stays { Next::Wait(None) } else { Next::Again }
            }
            Err(Error::Api(status)) if matches!(status.code, 404 | 409) => {
                self.is_deleted = true;
                Next::Again
            }
            Err(error) => {
                tracing::warn!(pod = %self.uid, %error, "the Pod's object is not deleted; it is tried again");
                self.retry()
            }
        }
    }
}

fn position(pod: &Pod, name: &str) -> usize {
    let mut inits = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    inits.position(|init| init.name == name).unwrap_or_default()
}
