//! The node's object and status as the API shows them, from the machine, the runtime and the configuration. Pure.

use std::collections::BTreeMap;

use api::declared::{GUARANTEED_CPU_RESIZE, RESTART_ALL_CONTAINERS, USER_NAMESPACES_HOST_NETWORK};
use cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSystemInfo,
};

use super::machine::{Machine, Pressure, architecture};
use crate::clock::api_time;
use crate::shared::RuntimeInfo;

/// Images that a node names at most.
const MAX_IMAGES: usize = 50;

/// Everything a node's status is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeInput<'a> {
    pub(crate) name: &'a str,
    pub(crate) addresses: &'a [NodeAddress],
    pub(crate) port: u16,
    pub(crate) kubelet_version: &'a str,
    pub(crate) max_pods: u32,
    pub(crate) labels: &'a BTreeMap<String, String>,
    pub(crate) pod_cidrs: &'a [String],
    pub(crate) machine: &'a Machine,
    pub(crate) pressure: Pressure,
    /// The machine is about to be turned off.
    pub(crate) is_shutting_down: bool,
    pub(crate) runtime: &'a RuntimeInfo,
    pub(crate) images: &'a [v1::Image],
    pub(crate) before: &'a [NodeCondition],
    pub(crate) now: Timestamp,
}

/// The labels that every node has, and the configured ones.
pub(crate) fn plan_labels(input: NodeInput<'_>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        ("kubernetes.io/hostname".to_owned(), input.name.to_owned()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), architecture().to_owned()),
        ("beta.kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("beta.kubernetes.io/arch".to_owned(), architecture().to_owned()),
    ]);
    labels.extend(input.labels.clone());
    labels
}

/// The object with which a new node is registered.
pub(crate) fn plan_node(input: NodeInput<'_>) -> Node {
    let mut node = Node::default();
    node.metadata.name = Some(input.name.to_owned());
    node.metadata.labels = Some(plan_labels(input));
    node.spec = Some(NodeSpec {
        pod_cidr: input.pod_cidrs.first().cloned(),
        pod_cidrs: Some(input.pod_cidrs.to_vec()).filter(|cidrs| !cidrs.is_empty()),
        ..NodeSpec::default()
    });
    node.status = Some(plan_status(input));
    node
}

/// The features that this node declares (KEP-5328), in alphabetical order: those that it really has.
pub(crate) fn declared_features(runtime: &RuntimeInfo) -> Vec<&'static str> {
    let by_runtime = runtime.features.user_namespaces_host_network.then_some(USER_NAMESPACES_HOST_NETWORK);
    let mut features = vec![GUARANTEED_CPU_RESIZE, RESTART_ALL_CONTAINERS];
    features.extend(by_runtime);
    features
}

/// The node's status.
pub(crate) fn plan_status(input: NodeInput<'_>) -> NodeStatus {
    let machine = input.machine;
    NodeStatus {
        addresses: Some(input.addresses.to_vec()),
        capacity: Some(machine.capacity(input.max_pods)),
        allocatable: Some(machine.allocatable(input.max_pods)),
        conditions: Some(plan_conditions(input)),
        declared_features: Some(declared_features(input.runtime).into_iter().map(str::to_owned).collect()),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(input.port) }),
        }),
        images: Some(plan_images(input.images)),
        node_info: Some(NodeSystemInfo {
            architecture: architecture().to_owned(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: format!("{}://{}", input.runtime.name, input.runtime.version),
            kernel_version: machine.kernel.clone(),
            kubelet_version: input.kubelet_version.to_owned(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: machine.os_image.clone(),
            system_uuid: machine.system_uuid.clone(),
            ..NodeSystemInfo::default()
        }),
        runtime_handlers: Some(input.runtime.handlers.iter().map(handler).collect()),
        features: Some(NodeFeatures {
            supplemental_groups_policy: Some(input.runtime.features.supplemental_groups_policy),
        }),
        ..NodeStatus::default()
    }
}

fn handler(handler: &v1::RuntimeHandler) -> NodeRuntimeHandler {
    let features = handler.features.as_ref().map(|features| NodeRuntimeHandlerFeatures {
        recursive_read_only_mounts: Some(features.recursive_read_only_mounts),
        user_namespaces: Some(features.user_namespaces),
    });
    NodeRuntimeHandler { name: Some(handler.name.clone()), features }
}

/// The largest images, each with its names.
fn plan_images(images: &[v1::Image]) -> Vec<ContainerImage> {
    let mut images: Vec<&v1::Image> = images.iter().collect();
    images.sort_by_key(|image| std::cmp::Reverse(image.size));
    let named = images.into_iter().map(|image| ContainerImage {
        names: Some(image.repo_digests.iter().chain(&image.repo_tags).cloned().collect()),
        size_bytes: Some(i64::try_from(image.size).unwrap_or(i64::MAX)),
    });
    named
        .filter(|image| image.names.as_ref().is_some_and(|names| !names.is_empty()))
        .take(MAX_IMAGES)
        .collect()
}

fn plan_conditions(input: NodeInput<'_>) -> Vec<NodeCondition> {
    let pressure = input.pressure;
    let of = |has_pressure: bool, yes: (&'static str, &'static str), no: (&'static str, &'static str)| {
        let (reason, message) = if has_pressure { yes } else { no };
        (has_pressure, reason, message.to_owned())
    };
    let memory = of(
        pressure.memory,
        ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
        ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    );
    let disk = of(
        pressure.disk,
        ("KubeletHasDiskPressure", "kubelet has disk pressure"),
        ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    );
    let pids = of(
        pressure.pids,
        ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
        ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    );
    let ready = match problems(input) {
        None => (true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        Some(problem) => (false, "KubeletNotReady", problem),
    };
    let fenced = user_namespaces(input.runtime).map(|claim| ("kakoi.dev/UserNamespaces", claim));
    [("MemoryPressure", memory), ("DiskPressure", disk), ("PIDPressure", pids), ("Ready", ready)]
        .into_iter()
        .chain(fenced)
        .map(|(type_, claim)| condition(input, type_, claim))
        .collect()
}

/// Why the node is not ready; several reasons read as upstream's.
fn problems(input: NodeInput<'_>) -> Option<String> {
    let runtime = (!input.runtime.is_ready).then_some(input.runtime.problem.as_str());
    let shutdown = input.is_shutting_down.then_some("node is shutting down");
    match (runtime, shutdown) {
        (Some(runtime), Some(shutdown)) => Some(format!("[{runtime}, {shutdown}]")),
        (one, other) => one.or(other).map(str::to_owned),
    }
}

/// Whether the default runtime handler makes user namespaces, and what it lacks; nothing while it says nothing.
fn user_namespaces(runtime: &RuntimeInfo) -> Option<(bool, &'static str, String)> {
    let default = runtime.handlers.iter().find(|handler| handler.name.is_empty())?;
    let has = default.features.as_ref().is_some_and(|features| features.user_namespaces);
    Some(match (has, runtime.userns_problem.as_str()) {
        (true, _) => (
            true,
            "Supported",
            "Pods can have user namespaces, and ID-mapped volumes on this kernel".to_owned(),
        ),
        (false, "") => (false, "Missing", "the container runtime reports no user namespaces".to_owned()),
        (false, problem) => (false, "Missing", problem.to_owned()),
    })
}

fn condition(
    input: NodeInput<'_>,
    type_: &str,
    (holds, reason, message): (bool, &str, String),
) -> NodeCondition {
    let status = if holds { "True" } else { "False" };
    let before = input.before.iter().find(|condition| condition.type_ == type_);
    let same = before.filter(|before| before.status == status);
    NodeCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_heartbeat_time: Some(api_time(input.now)),
        last_transition_time: same
            .and_then(|before| before.last_transition_time.clone())
            .or_else(|| Some(api_time(input.now))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    fn input<'a>(
        runtime: &'a RuntimeInfo,
        machine: &'a Machine,
        before: &'a [NodeCondition],
    ) -> NodeInput<'a> {
        static LABELS: BTreeMap<String, String> = BTreeMap::new();
        static CIDRS: LazyLock<[String; 2]> = LazyLock::new(|| ["10.85.0.0/16".into(), "fd85::/64".into()]);
        NodeInput {
            name: "node",
            addresses: &[],
            port: 10250,
            kubelet_version: "v1.36.2",
            max_pods: 110,
            labels: &LABELS,
            pod_cidrs: &*CIDRS,
            machine,
            pressure: Pressure::default(),
            is_shutting_down: false,
            runtime,
            images: &[],
            before,
            now: Timestamp::UNIX_EPOCH,
        }
    }

    fn ready(status: &NodeStatus) -> &NodeCondition {
        status.conditions.as_ref().unwrap().iter().find(|condition| condition.type_ == "Ready").unwrap()
    }

    #[test]
    fn a_node_is_ready_when_its_runtime_is() {
        let features = v1::RuntimeHandlerFeatures { user_namespaces: true, ..Default::default() };
        let runtime = RuntimeInfo {
            name: "kakoi".into(),
            version: "0.1.0".into(),
            is_ready: true,
            handlers: vec![v1::RuntimeHandler { name: String::new(), features: Some(features) }],
            ..RuntimeInfo::default()
        };
        let machine = Machine::default();
        let node = plan_node(input(&runtime, &machine, &[]));
        let status = node.status.unwrap();
        assert_eq!(status.node_info.as_ref().unwrap().container_runtime_version, "kakoi://0.1.0");
        assert_eq!(ready(&status).status, "True");
        let handlers = status.runtime_handlers.unwrap();
        assert_eq!(handlers[0].features.as_ref().unwrap().user_namespaces, Some(true));
        assert_eq!(node.metadata.labels.unwrap()["kubernetes.io/hostname"], "node");
        let spec = node.spec.unwrap();
        assert_eq!(spec.pod_cidr.as_deref(), Some("10.85.0.0/16"));
        assert_eq!(spec.pod_cidrs.unwrap(), ["10.85.0.0/16", "fd85::/64"]);
    }

    #[test]
    fn a_node_declares_the_features_that_it_has_in_order() {
        let features = |host_network| {
            let features =
                v1::RuntimeFeatures { user_namespaces_host_network: host_network, ..Default::default() };
            let runtime = RuntimeInfo { features, ..RuntimeInfo::default() };
            plan_status(input(&runtime, &Machine::default(), &[])).declared_features.unwrap()
        };
        let own = ["GuaranteedQoSPodCPUResize", "RestartAllContainersOnContainerExits"];
        assert_eq!(features(false), own);
        assert_eq!(features(true)[2], "UserNamespacesHostNetworkSupport");
        assert!(features(true).is_sorted());
    }

    #[test]
    fn g08_a_node_that_makes_no_user_namespaces_says_why() {
        let problem = "cannot create a user namespace: this kernel is built without CONFIG_USER_NS";
        let runtime = RuntimeInfo {
            is_ready: true,
            handlers: vec![v1::RuntimeHandler { name: String::new(), features: None }],
            userns_problem: problem.into(),
            ..RuntimeInfo::default()
        };
        let machine = Machine::default();
        let status = plan_status(input(&runtime, &machine, &[]));
        assert_eq!(ready(&status).status, "True", "Pods with the node's IDs run");
        let features = status.runtime_handlers.unwrap()[0].features.clone();
        assert_ne!(features.and_then(|features| features.user_namespaces), Some(true));
        let conditions = status.conditions.unwrap();
        let fenced = conditions.iter().find(|known| known.type_ == "kakoi.dev/UserNamespaces").unwrap();
        assert_eq!((fenced.status.as_str(), fenced.message.as_deref()), ("False", Some(problem)));
    }

    #[test]
    fn a_node_says_why_it_is_not_ready() {
        let runtime = RuntimeInfo { problem: "container runtime is down".into(), ..RuntimeInfo::default() };
        let machine = Machine::default();
        let status = plan_status(input(&runtime, &machine, &[]));
        assert_eq!(ready(&status).message.as_deref(), Some("container runtime is down"));
        assert_eq!(ready(&status).reason.as_deref(), Some("KubeletNotReady"));
        let ending = NodeInput { is_shutting_down: true, ..input(&runtime, &machine, &[]) };
        let message = ready(&plan_status(ending)).message.clone();
        assert_eq!(message.as_deref(), Some("[container runtime is down, node is shutting down]"));
        let up = RuntimeInfo { is_ready: true, ..RuntimeInfo::default() };
        let message = ready(&plan_status(NodeInput { runtime: &up, ..ending })).message.clone();
        assert_eq!(message.as_deref(), Some("node is shutting down"));
    }
}
