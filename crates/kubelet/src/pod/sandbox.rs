//! The sandbox of a Pod as the runtime is asked for it. Pure.

use std::path::Path;

use cri::v1;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::dns::Resolver;
use super::hosts::HostName;
use super::label;
use super::resource::{Amount, CgroupValues, cgroup_values, overhead, pod_amount};
use super::restart::is_sidecar;
use super::security::{NodeSecurity, plan_sandbox_security};
use crate::cgroup::Tree;
use crate::userns::PodUserns;

/// What a sandbox is planned from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SandboxInput<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) attempt: u32,
    pub(crate) userns: &'a PodUserns,
    pub(crate) resolver: &'a Resolver,
    pub(crate) host: &'a HostName,
    pub(crate) log_directory: &'a Path,
    /// Where Pods' cgroups lie.
    pub(crate) cgroups: &'a Tree,
    pub(crate) node: &'a NodeSecurity,
}

/// Plans the sandbox.
pub(crate) fn plan_sandbox(input: SandboxInput<'_>) -> v1::PodSandboxConfig {
    let pod = input.pod;
    let meta = &pod.metadata;
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    let host_network = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: part(&meta.name),
            uid: part(&meta.uid),
            namespace: part(&meta.namespace),
            attempt: input.attempt,
        }),
        hostname: if host_network { String::new() } else { input.host.for_kernel(pod) },
        log_directory: input.log_directory.display().to_string(),
        dns_config: Some(input.resolver.clone().into()),
        port_mappings: if host_network { Vec::new() } else { port_mappings(pod) },
        labels: label::sandbox_labels(pod),
        annotations: label::sandbox_annotations(pod),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: input.cgroups.parent_for_runtime(pod),
            security_context: Some(plan_sandbox_security(pod, input.userns, input.node)),
            sysctls: sysctls(pod),
            overhead: Some(overhead(pod))
                .filter(|over| *over != Amount::default())
                .map(|over| cri_resources(cgroup_values(over))),
            resources: Some(cri_resources(cgroup_values(pod_amount(pod)))),
        }),
        windows: None,
    }
}

/// Cgroup values in CRI's form.
pub(crate) fn cri_resources(values: CgroupValues) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_shares: values.cpu_shares,
        cpu_quota: values.cpu_quota,
        cpu_period: values.cpu_period,
        memory_limit_in_bytes: values.memory_limit,
        ..Default::default()
    }
}

fn sysctls(pod: &Pod) -> std::collections::BTreeMap<String, String> {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let list = context.iter().flat_map(|context| context.sysctls.iter().flatten());
    list.map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value.clone())).collect()
}

fn port_mappings(pod: &Pod) -> Vec<v1::PortMapping> {
    let spec = pod.spec.iter();
    let containers = spec.flat_map(|spec| {
        spec.init_containers.iter().flatten().filter(|init| is_sidecar(init)).chain(&spec.containers)
    });
    containers.flat_map(container_ports).collect()
}

fn container_ports(container: &Container) -> impl Iterator<Item = v1::PortMapping> {
    container.ports.iter().flatten().map(|port| v1::PortMapping {
        protocol: match port.protocol.as_deref() {
            Some("UDP") => v1::Protocol::Udp,
            Some("SCTP") => v1::Protocol::Sctp,
            _ => v1::Protocol::Tcp,
        }
        .into(),
        container_port: port.container_port,
        host_port: port.host_port.unwrap_or(0),
        host_ip: port.host_ip.clone().unwrap_or_default(),
    })
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]
mod tests {
    use serde_json::json;
    use userns::{IdMappings, IdRange};

    use super::*;
    use crate::cgroup::CgroupDriver;
    use crate::pod::hosts::plan_host_name;

    fn plan(spec: serde_json::Value, userns: &PodUserns) -> v1::PodSandboxConfig {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"run": "p"}}, "spec": spec}))
        .unwrap();
        plan_sandbox(SandboxInput {
            pod: &pod,
            attempt: 2,
            userns,
            resolver: &Resolver::default(),
            host: &plan_host_name(&pod, "cluster.local"),
            log_directory: Path::new("/var/log/pods/n_p_u"),
            cgroups: &Tree { root: "/kakoi".into(), driver: CgroupDriver::Cgroupfs },
            node: &NodeSecurity::default(),
        })
    }

    #[test]
    fn the_runtime_is_told_who_the_pod_is_and_which_ids_it_has() {
        let own = PodUserns::Own(IdMappings::of(IdRange::new(131_072, 65_536).unwrap()));
        let config = plan(
            json!({"hostUsers": false, "containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}]}],
                "securityContext": {"sysctls": [{"name": "net/ipv4/tcp_syncookies", "value": "1"}]}}),
            &own,
        );
        let metadata = config.metadata.unwrap();
        assert_eq!((metadata.name.as_str(), metadata.uid.as_str(), metadata.attempt), ("p", "u", 2));
        assert_eq!(config.hostname, "p");
        assert_eq!(config.labels[label::POD_UID], "u");
        assert_eq!(config.labels["run"], "p");
        assert_eq!(config.port_mappings[0].host_port, 8080);
        let linux = config.linux.unwrap();
        assert_eq!(linux.cgroup_parent, "/kakoi/besteffort/podu");
        assert_eq!(linux.sysctls["net.ipv4.tcp_syncookies"], "1");
        let options = linux.security_context.unwrap().namespace_options.unwrap();
        let userns = options.userns_options.unwrap();
        assert_eq!(userns.mode(), v1::NamespaceMode::Pod);
        assert_eq!(userns.uids, [v1::IdMapping { host_id: 131_072, container_id: 0, length: 65_536 }]);
        assert_eq!(userns.uids, userns.gids);
    }

    #[test]
    fn a_pod_in_the_nodes_network_has_no_host_name_and_no_ports() {
        let config = plan(
            json!({"hostNetwork": true, "containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}),
            &PodUserns::Unspoken,
        );
        assert_eq!(config.hostname, "");
        assert!(config.port_mappings.is_empty());
        let options = config.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
        assert_eq!(options.network(), v1::NamespaceMode::Node);
        assert_eq!(options.userns_options, None);
    }
}
