//! Looks up what the runtime holds: of one Pod for its worker, of all Pods at start.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use cri::v1;

use super::{Cri, CriError};
use crate::clock::from_nanoseconds;
use crate::pod::container::signal_name;
use crate::pod::credential::shown_name;
use crate::pod::label;
use crate::pod::observed::{ContainerRecord, LinuxUser, Observed, Sandbox, Stage};
use crate::uid::PodUid;

/// Statuses of containers that have ended; they do not change any more.
#[derive(Debug, Default)]
pub(crate) struct EndedContainers(Mutex<HashMap<String, ContainerRecord>>);

impl EndedContainers {
    fn get(&self, id: &str) -> Option<ContainerRecord> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn put(&self, record: &ContainerRecord) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(record.id.clone(), record.clone());
    }
}

/// Everything the runtime holds of the Pod.
pub(crate) async fn observe_pod(
    cri: &Cri,
    uid: &PodUid,
    ended: &EndedContainers,
) -> Result<Observed, CriError> {
    let selector = BTreeMap::from([(label::POD_UID.to_owned(), uid.as_str().to_owned())]);
    let sandbox_filter = v1::PodSandboxFilter { label_selector: selector.clone(), ..Default::default() };
    let container_filter = v1::ContainerFilter { label_selector: selector, ..Default::default() };
    let (sandboxes, containers) = tokio::try_join!(
        cri.list_pod_sandbox(v1::ListPodSandboxRequest { filter: Some(sandbox_filter) }),
        cri.list_containers(v1::ListContainersRequest { filter: Some(container_filter) }),
    )?;
    let sandboxes = futures::future::try_join_all(sandboxes.items.iter().map(|item| sandbox(cri, item)));
    let containers =
        futures::future::try_join_all(containers.containers.iter().map(|item| container(cri, item, ended)));
    let (sandboxes, containers) = tokio::try_join!(sandboxes, containers)?;
    Ok(Observed::new(sandboxes.into_iter().flatten().collect(), containers.into_iter().flatten().collect()))
}

async fn sandbox(cri: &Cri, item: &v1::PodSandbox) -> Result<Option<Sandbox>, CriError> {
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: item.id.clone(), verbose: false };
    match cri.pod_sandbox_status(request).await {
        Ok(answer) => Ok(answer.status.as_ref().map(sandbox_of)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn sandbox_of(status: &v1::PodSandboxStatus) -> Sandbox {
    let network = status.network.as_ref();
    let first = network.map(|network| network.ip.clone()).filter(|ip| !ip.is_empty());
    let more = network.iter().flat_map(|network| &network.additional_ips).map(|ip| ip.ip.clone());
    let options = status.linux.as_ref().and_then(|linux| linux.namespaces.as_ref());
    let options = options.and_then(|namespaces| namespaces.options.as_ref());
    Sandbox {
        id: status.id.clone(),
        attempt: status.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
        is_ready: status.state() == v1::PodSandboxState::SandboxReady,
        created_at: from_nanoseconds(status.created_at),
        ips: first.into_iter().chain(more).collect(),
        uses_host_network: options.is_some_and(|options| options.network() == v1::NamespaceMode::Node),
    }
}

async fn container(
    cri: &Cri,
    item: &v1::Container,
    ended: &EndedContainers,
) -> Result<Option<ContainerRecord>, CriError> {
    if let Some(known) = ended.get(&item.id) {
        return Ok(Some(known));
    }
    let request = v1::ContainerStatusRequest { container_id: item.id.clone(), verbose: false };
    let status = match cri.container_status(request).await {
        Ok(answer) => answer.status,
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error),
    };
    let record = status.map(|status| record_of(&item.pod_sandbox_id, &status));
    if let Some(record) = record.as_ref().filter(|record| record.stage == Stage::Exited) {
        ended.put(record);
    }
    Ok(record)
}

/// One container's record from its status.
pub(crate) fn record_of(sandbox_id: &str, status: &v1::ContainerStatus) -> ContainerRecord {
    let metadata = status.metadata.clone().unwrap_or_default();
    let annotated = status.annotations.get(label::RESTART_COUNT).and_then(|count| count.parse().ok());
    let stage = match status.state() {
        v1::ContainerState::ContainerCreated => Stage::Created,
        v1::ContainerState::ContainerRunning => Stage::Running,
        v1::ContainerState::ContainerExited => Stage::Exited,
        v1::ContainerState::ContainerUnknown => Stage::Unknown,
    };
    let user = status.user.as_ref().and_then(|user| user.linux.as_ref()).map(|user| LinuxUser {
        uid: user.uid,
        gid: user.gid,
        supplemental_groups: user.supplemental_groups.clone(),
    });
    let signal = status.stop_signal();
    ContainerRecord {
        id: status.id.clone(),
        name: metadata.name,
        sandbox_id: sandbox_id.to_owned(),
        restart_count: annotated.unwrap_or_else(|| i32::try_from(metadata.attempt).unwrap_or_default()),
        stage,
        created_at: from_nanoseconds(status.created_at),
        started_at: from_nanoseconds(status.started_at),
        finished_at: from_nanoseconds(status.finished_at),
        exit_code: status.exit_code,
        reason: status.reason.clone(),
        message: status.message.clone(),
        image: status.image.as_ref().map(image_name).unwrap_or_default(),
        image_id: if status.image_ref.is_empty() {
            status.image_id.clone()
        } else {
            status.image_ref.clone()
        },
        spec_hash: status.annotations.get(label::CONTAINER_HASH).cloned(),
        log_path: status.log_path.clone(),
        user,
        stop_signal: (signal != v1::Signal::RuntimeDefault).then(|| signal_name(signal)),
    }
}

/// The image as users know it: what they wrote, in full, where the runtime answers with an ID.
fn image_name(image: &v1::ImageSpec) -> String {
    let written = &image.user_specified_image;
    let is_id = image.image.starts_with("sha256:") || !image.image.contains(['/', ':', '.']);
    if is_id && !written.is_empty() { shown_name(written) } else { image.image.clone() }
}

/// Forgets ended containers that the runtime has removed.
pub(crate) fn forget(ended: &EndedContainers, id: &str) {
    ended.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
}
