//! Giving back what a Pod held, removing its last traces, and collecting what restarts leave behind.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use cri::v1;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::{Desired, Next, Worker, blocking};
use crate::fault::CrashPoint;
use crate::logs::tail_for_message;
use crate::object::cache::PodObjects;
use crate::pod::ephemeral::find;
use crate::pod::label;
use crate::pod::observed::{ContainerRecord, Observed, Stage as Run};
use crate::runtime::CriError;
use crate::runtime::observe::forget;
use crate::volume::mount::{remove_tree, unmount_below};

/// Longest termination message in bytes.
const MESSAGE_LIMIT: usize = 4096;

impl Worker {
    /// After this nothing of the Pod is left but its object, its logs and its directory.
    ///
    /// The order is what makes reuse of host IDs safe: the final status is known to the API before the records that
    /// it was made from go, and the IDs are freed only when nothing on the node carries them any more.
    pub(super) async fn clean_up(&mut self, desired: &Desired, observed: &Observed) -> Next {
        self.publish(&desired.pod, observed);
        if !desired.is_gone {
            let mut input = self.input.clone();
            tokio::select! {
                () = self.publisher.flush() => {}
                _ = input.wait_for(|desired| desired.is_gone) => {}
            }
        }
        match self.give_back(observed).await {
            Ok(()) => {
                self.is_clean = true;
                self.prepared = None;
                self.failures_in_a_row = 0;
                self.objects = PodObjects::default();
                Next::Again
            }
            Err(problem) => {
                tracing::warn!(pod = %self.uid, problem, "the Pod's end is not complete; it is tried again");
                self.retry()
            }
        }
    }

    async fn give_back(&self, observed: &Observed) -> Result<(), String> {
        for sandbox in &observed.sandboxes {
            let id = &sandbox.id;
            let text = |error| format!("remove sandbox {id}: {error}");
            self.shared.cri.stop_pod_sandbox(id).await.map_err(text)?;
            self.shared.cri.remove_pod_sandbox(id).await.map_err(text)?;
        }
        for record in &observed.containers {
            let text = |error| format!("remove container {}: {error}", record.id);
            self.shared.cri.remove_container(&record.id).await.map_err(text)?;
            forget(&self.shared.ended, &record.id);
        }
        self.shared.reached(CrashPoint::SandboxesRemoved);
        let places = self.shared.places.of(&self.uid);
        self.shared
            .csi
            .unpublish(&places)
            .await
            .map_err(|error| format!("take back CSI volumes: {error}"))?;
        let (shared, uid) = (std::sync::Arc::clone(&self.shared), self.uid.clone());
        let done = blocking(move || {
            let places = shared.places.of(&uid);
            remove_contents(places.root()).map_err(|error| format!("remove volumes: {error}"))?;
            shared.reached(CrashPoint::VolumesRemoved);
            shared.cgroups.remove(&uid).map_err(|error| error.to_string())?;
            shared.reached(CrashPoint::CgroupRemoved);
            shared.ids.release(&uid).map_err(|error| error.to_string())?;
            shared.reached(CrashPoint::IdsFreed);
            Ok(())
        });
        done.await.map_err(|error| error.to_string())?
    }

    /// Removes the Pod's logs and directory. The directory goes last: by it a daemon that was killed in between finds
    /// what is left to do.
    pub(super) async fn remove(&mut self, desired: &Desired) -> Next {
        let (shared, uid) = (std::sync::Arc::clone(&self.shared), self.uid.clone());
        let pod = std::sync::Arc::clone(&desired.pod);
        let done = blocking(move || {
            remove_logs(shared.places.logs(), &pod, uid.as_str())?;
            shared.reached(CrashPoint::LogsRemoved);
            remove_tree(shared.places.of(&uid).root())?;
            shared.reached(CrashPoint::DirectoryRemoved);
            Ok::<_, io::Error>(())
        });
        match done.await {
            Ok(Ok(())) => {
                self.shared.ids.forget(&self.uid);
                self.shared.puller.forget_pod(self.uid.as_str());
                self.is_removed = true;
                Next::Again
            }
            Ok(Err(error)) => {
                tracing::warn!(pod = %self.uid, %error, "the Pod's directories are not removed; it is tried again");
                self.retry()
            }
            Err(error) => {
                tracing::warn!(pod = %self.uid, %error, "the Pod's directories are not removed; it is tried again");
                self.retry()
            }
        }
    }

    /// Keeps each container's newest record and the one before it (for `--previous`); removes older ones with their
    /// logs, and sandboxes that nothing belongs to any more.
    pub(super) async fn collect(&self, pod: &Pod, observed: &Observed) {
        let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
        let mut kept = Vec::new();
        for record in &observed.containers {
            let count = seen.entry(&record.name).or_default();
            *count += 1;
            if *count <= 2 || matches!(record.stage, Run::Running | Run::Unknown) {
                kept.push(record.sandbox_id.as_str());
                continue;
            }
            if let Err(error) = self.remove_record(pod, record).await {
                tracing::debug!(container = record.id, %error, "old record not removed");
            }
        }
        for sandbox in observed.sandboxes.iter().skip(1) {
            if !sandbox.is_ready && !kept.contains(&sandbox.id.as_str()) {
                let _ = self.shared.cri.stop_pod_sandbox(&sandbox.id).await;
                let _ = self.shared.cri.remove_pod_sandbox(&sandbox.id).await;
            }
        }
    }

    /// Removes a run of a container from the runtime, with its log and its termination message.
    pub(super) async fn remove_record(&self, pod: &Pod, record: &ContainerRecord) -> Result<(), CriError> {
        self.shared.cri.remove_container(&record.id).await?;
        forget(&self.shared.ended, &record.id);
        let directory = self.shared.places.pod_logs(pod).join(&record.name);
        let count = record.restart_count;
        let message = self.shared.places.of(&self.uid).termination_message(&record.name, count);
        let removed = blocking(move || {
            let _ = std::fs::remove_file(message);
            crate::logs::remove_run(&directory, count);
        });
        if let Err(error) = removed.await {
            tracing::debug!(container = record.id, %error, "the log of an old run is left");
        }
        Ok(())
    }

    /// Adds the termination messages that containers wrote (or the ends of their logs) to their records.
    pub(super) async fn with_messages(&self, pod: &Pod, mut observed: Observed) -> Observed {
        let wanted: Vec<(usize, Source)> = observed
            .containers
            .iter()
            .enumerate()
            .filter(|(_, record)| record.stage == Run::Exited)
            .map(|(index, record)| (index, self.message_source(pod, record)))
            .collect();
        if wanted.is_empty() {
            return observed;
        }
        let read = blocking(move || {
            wanted.into_iter().map(|(index, source)| (index, source.read())).collect::<Vec<_>>()
        });
        for (index, message) in read.await.unwrap_or_default() {
            if let (Some(record), Some(message)) = (observed.containers.get_mut(index), message) {
                record.message = message;
            }
        }
        observed
    }

    fn message_source(&self, pod: &Pod, record: &ContainerRecord) -> Source {
        let container = find(pod, &record.name);
        let falls_back =
            container.is_some_and(|container| wants_log_message(&container)) && record.exit_code != 0;
        let file = format!("{}.log", record.restart_count);
        Source {
            file: self.shared.places.of(&self.uid).termination_message(&record.name, record.restart_count),
            log: falls_back.then(|| self.shared.places.pod_logs(pod).join(&record.name).join(file)),
        }
    }
}

fn wants_log_message(container: &Container) -> bool {
    container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError")
}

/// Where a termination message is found.
struct Source {
    file: std::path::PathBuf,
    log: Option<std::path::PathBuf>,
}

impl Source {
    fn read(self) -> Option<String> {
        let mut bytes = Vec::new();
        if let Ok(file) = std::fs::File::open(&self.file) {
            let limit = u64::try_from(MESSAGE_LIMIT).unwrap_or(u64::MAX);
            let _ = io::Read::read_to_end(&mut io::Read::take(file, limit), &mut bytes);
        }
        if bytes.is_empty() {
            bytes = tail_for_message(&self.log?);
        }
        Some(String::from_utf8_lossy(&bytes).into_owned()).filter(|text| !text.is_empty())
    }
}

/// Removes what the node agent made for the Pod, but for the ID space's record.
fn remove_contents(root: &Path) -> io::Result<()> {
    unmount_below(root)?;
    for name in ["volumes", "volume-subpaths", "containers", "etc-hosts"] {
        remove_tree(&root.join(name))?;
    }
    Ok(())
}

/// The Pod's log directory; of an orphan only the UID is known.
fn remove_logs(logs: &Path, pod: &Pod, uid: &str) -> io::Result<()> {
    let meta = &pod.metadata;
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    remove_tree(&logs.join(format!("{}_{}_{uid}", part(&meta.namespace), part(&meta.name))))?;
    let entries = match std::fs::read_dir(logs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(&format!("_{uid}")) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// The Pod that a sandbox was made for, as far as the runtime remembers it.
pub(crate) fn pod_of_sandbox(sandbox: &v1::PodSandbox) -> Option<Pod> {
    let metadata = sandbox.metadata.as_ref()?;
    let text = |label: &str, known: &String| {
        Some(known.clone()).filter(|known| !known.is_empty()).or_else(|| sandbox.labels.get(label).cloned())
    };
    let mut pod = Pod::default();
    pod.metadata.name = text(label::POD_NAME, &metadata.name);
    pod.metadata.namespace = text(label::POD_NAMESPACE, &metadata.namespace);
    pod.metadata.uid = text(label::POD_UID, &metadata.uid);
    pod.spec = Some(k8s_openapi::api::core::v1::PodSpec {
        termination_grace_period_seconds: Some(1),
        ..Default::default()
    });
    Some(pod)
}
