//! A Pod's host name and its `/etc/hosts`.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{HostAlias, Pod};

/// Longest host name that the kernel takes.
const MAX_HOST_NAME: usize = 63;

/// A Pod's host name and, with a subdomain, its domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostName {
    pub(crate) name: String,
    pub(crate) domain: String,
}

impl HostName {
    /// The name the kernel is told: the full one under `setHostnameAsFQDN`.
    pub(crate) fn for_kernel(&self, pod: &Pod) -> String {
        let wants_full = pod.spec.as_ref().is_some_and(|spec| spec.set_hostname_as_fqdn == Some(true));
        if wants_full && !self.domain.is_empty() {
            format!("{}.{}", self.name, self.domain)
        } else {
            self.name.clone()
        }
    }
}

/// The Pod's host name: `hostnameOverride`, `hostname`, or the Pod's name cut to what the kernel takes.
pub(crate) fn plan_host_name(pod: &Pod, cluster_domain: &str) -> HostName {
    let spec = pod.spec.as_ref();
    let set = |text: Option<&String>| text.filter(|text| !text.is_empty()).cloned();
    if let Some(name) = set(spec.and_then(|spec| spec.hostname_override.as_ref())) {
        return HostName { name, domain: String::new() };
    }
    let own = set(spec.and_then(|spec| spec.hostname.as_ref())).or_else(|| pod.metadata.name.clone());
    let mut name = own.unwrap_or_default();
    name.truncate(MAX_HOST_NAME);
    let name = name.trim_end_matches(['-', '.']).to_owned();
    let domain = match set(spec.and_then(|spec| spec.subdomain.as_ref())) {
        Some(subdomain) => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            format!("{subdomain}.{namespace}.svc.{cluster_domain}")
        }
        None => String::new(),
    };
    HostName { name, domain }
}

/// The file for a Pod with its own network.
pub(crate) fn plan_hosts(ips: &[String], host: &HostName, aliases: &[HostAlias]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        // Writing into a String cannot fail.
        let _ = if host.domain.is_empty() {
            writeln!(text, "{ip}\t{}", host.name)
        } else {
            writeln!(text, "{ip}\t{name}.{domain}\t{name}", name = host.name, domain = host.domain)
        };
    }
    text + &plan_aliases(aliases)
}

/// The file for a Pod in the node's network: the node's own.
pub(crate) fn plan_node_hosts(node_file: &str, aliases: &[HostAlias]) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{node_file}{}", plan_aliases(aliases))
}

fn plan_aliases(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        let _ = writeln!(text, "{}\t{names}", alias.ip);
    }
    text
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "ns"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn the_host_name_is_the_pods_unless_the_spec_says_otherwise() {
        let plan = |spec| plan_host_name(&pod(spec), "cluster.local");
        assert_eq!(plan(json!({"containers": []})), HostName { name: "web-0".into(), domain: String::new() });
        let full = json!({"containers": [], "hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true});
        let host = plan(full.clone());
        assert_eq!(host, HostName { name: "h".into(), domain: "s.ns.svc.cluster.local".into() });
        assert_eq!(host.for_kernel(&pod(full)), "h.s.ns.svc.cluster.local");
        let mut long = pod(json!({"containers": []}));
        long.metadata.name = Some(format!("{}-{}", "a".repeat(62), "b".repeat(20)));
        assert_eq!(plan_host_name(&long, "cluster.local").name, "a".repeat(62));
        assert_eq!(plan(json!({"containers": [], "hostnameOverride": "x.y"})).name, "x.y");
    }

    #[test]
    fn the_file_lists_the_pod_and_the_aliases() {
        let host = HostName { name: "h".into(), domain: "s.ns.svc.cluster.local".into() };
        let alias = HostAlias { hostnames: Some(vec!["a".into(), "b".into()]), ip: "192.0.2.9".into() };
        let text = plan_hosts(&["10.0.0.5".into()], &host, std::slice::from_ref(&alias));
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with(
            "10.0.0.5\th.s.ns.svc.cluster.local\th\n\n# Entries added by HostAliases.\n192.0.2.9\ta\tb\n"
        ));
        let node = plan_node_hosts("127.0.0.1 localhost\n", &[]);
        assert_eq!(node, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n");
    }
}
