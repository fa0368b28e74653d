//! Ephemeral containers (`kubectl debug`) as containers like any other. They start in whatever state the Pod is, run
//! once, and count for nothing else of it.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

use super::observed::{ContainerRecord, Observed};

/// The container that an ephemeral one is, but for whom it targets.
pub(crate) fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let EphemeralContainer {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        restart_policy,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        target_container_name: _,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    } = ephemeral.clone();
    Container {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        restart_policy,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    }
}

/// The ephemeral containers of a spec.
pub(crate) fn ephemeral_containers(spec: &PodSpec) -> impl Iterator<Item = &EphemeralContainer> {
    spec.ephemeral_containers.iter().flatten()
}

/// A container of any of the spec's lists.
pub(crate) fn find<'a>(pod: &'a Pod, name: &str) -> Option<Cow<'a, Container>> {
    let spec = pod.spec.as_ref()?;
    let mut lasting = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    if let Some(container) = lasting.find(|container| container.name == name) {
        return Some(Cow::Borrowed(container));
    }
    let found = ephemeral_containers(spec).find(|ephemeral| ephemeral.name == name)?;
    Some(Cow::Owned(as_container(found)))
}

/// The container whose processes an ephemeral one is to see.
///
/// # Errors
/// When it targets a container that does not run; the sentence is for the Pod's user.
pub(crate) fn target<'a>(
    pod: &Pod,
    name: &str,
    observed: &'a Observed,
) -> Result<Option<&'a ContainerRecord>, String> {
    let mut ephemerals = pod.spec.iter().flat_map(ephemeral_containers);
    let found = ephemerals.find(|ephemeral| ephemeral.name == name);
    let Some(wanted) = found.and_then(|ephemeral| ephemeral.target_container_name.clone()) else {
        return Ok(None);
    };
    if wanted.is_empty() {
        return Ok(None);
    }
    let mut history = observed.containers.iter().filter(|record| record.name == wanted);
    let running = history.next().filter(|record| record.is_running());
    running.map(Some).ok_or_else(|| {
        format!("unable to find target container {wanted}: it does not run; start {name} again once it does")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::observed::{Stage, fixture};
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(
            json!({"spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}],
            "ephemeralContainers": [
                {"name": "e", "image": "busybox", "tty": true, "stdin": true, "targetContainerName": "c"},
                {"name": "free"}]}}),
        )
        .unwrap()
    }

    #[test]
    fn containers_of_all_three_lists_are_found() {
        let pod = pod();
        for name in ["c", "i", "e"] {
            assert_eq!(find(&pod, name).unwrap().name, name);
        }
        let container = find(&pod, "e").unwrap();
        assert_eq!((container.image.as_deref(), container.tty), (Some("busybox"), Some(true)));
        assert!(find(&pod, "x").is_none());
    }

    #[test]
    fn a_target_must_run() {
        let running = Observed::new(vec![], vec![fixture::container("c", 0, Stage::Running, 0)]);
        assert_eq!(target(&pod(), "e", &running).unwrap().unwrap().id, "c-0");
        assert_eq!(target(&pod(), "free", &running), Ok(None));
        assert_eq!(target(&pod(), "c", &running), Ok(None));
        let ended = Observed::new(vec![], vec![fixture::container("c", 0, Stage::Exited, 0)]);
        assert!(target(&pod(), "e", &ended).unwrap_err().contains("target container c"));
    }
}
