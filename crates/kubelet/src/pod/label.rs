//! Labels and annotations by which sandboxes and containers are found again, named as upstream names them, so that
//! other tools (and another kubelet over the same runtime) recognise them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::plan::spec_hash;

pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub(crate) const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
pub(crate) const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub(crate) const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub(crate) const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

fn identity(pod: &Pod) -> BTreeMap<String, String> {
    let meta = &pod.metadata;
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    BTreeMap::from([
        (POD_NAME.to_owned(), part(&meta.name)),
        (POD_NAMESPACE.to_owned(), part(&meta.namespace)),
        (POD_UID.to_owned(), part(&meta.uid)),
    ])
}

/// Labels of a sandbox: the Pod's own, and its identity.
pub(crate) fn sandbox_labels(pod: &Pod) -> BTreeMap<String, String> {
    let mut labels = pod.metadata.labels.clone().unwrap_or_default();
    labels.extend(identity(pod));
    labels
}

/// Annotations of a sandbox: the Pod's own.
pub(crate) fn sandbox_annotations(pod: &Pod) -> BTreeMap<String, String> {
    let mut annotations = pod.metadata.annotations.clone().unwrap_or_default();
    // A static Pod says so itself.
    annotations.entry("kubernetes.io/config.source".to_owned()).or_insert_with(|| "api".to_owned());
    annotations
}

/// Labels of a container.
pub(crate) fn container_labels(pod: &Pod, container: &Container) -> BTreeMap<String, String> {
    let mut labels = identity(pod);
    labels.insert(CONTAINER_NAME.to_owned(), container.name.clone());
    labels
}

/// Annotations of a container: what a restarted kubelet must know of it.
pub(crate) fn container_annotations(
    pod: &Pod,
    container: &Container,
    restart_count: i32,
) -> BTreeMap<String, String> {
    let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let mut annotations = BTreeMap::from([
        (CONTAINER_HASH.to_owned(), spec_hash(container)),
        (RESTART_COUNT.to_owned(), restart_count.to_string()),
        (MESSAGE_PATH.to_owned(), message_path(container).to_owned()),
        (MESSAGE_POLICY.to_owned(), container.termination_message_policy.clone().unwrap_or_default()),
    ]);
    if let Some(grace) = grace {
        annotations.insert(GRACE.to_owned(), grace.to_string());
    }
    annotations
}

/// Where a container writes its termination message.
pub(crate) fn message_path(container: &Container) -> &str {
    let path = container.termination_message_path.as_deref().filter(|path| !path.is_empty());
    path.unwrap_or("/dev/termination-log")
}
