//! `resolv.conf` of a Pod, planned from its `dnsPolicy`, its `dnsConfig` and the node's own file.
//!
//! Source: "DNS for Services and Pods"; limits and fall-backs as upstream's kubelet applies them.

use std::path::{Path, PathBuf};

use cri::v1;
use k8s_openapi::api::core::v1::Pod;

/// Name servers that a resolver uses at most.
const MAX_SERVERS: usize = 3;
/// Search domains at most, and their length together.
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;

/// The cluster's DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterDns {
    /// Addresses of the DNS service; empty when the cluster has none.
    pub servers: Vec<String>,
    /// The cluster's domain, usually `cluster.local`.
    pub domain: String,
}

/// The lines of a `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    pub(crate) servers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

/// A planned resolver, and whether the Pod should be told that the cluster has no DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DnsPlan {
    pub(crate) resolver: Resolver,
    pub(crate) is_cluster_dns_missing: bool,
}

/// The sentence for the event `MissingClusterDNS`.
pub(crate) const MISSING_CLUSTER_DNS: &str = "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy.";

/// Reads a `resolv.conf`: the last `search`, all `nameserver` and `options`.
pub(crate) fn parse_resolver(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => resolver.servers.extend(words.next().map(str::to_owned)),
            Some("search") => resolver.searches = words.map(str::to_owned).collect(),
            Some("options") => resolver.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    resolver
}

/// The node's file that names real servers: systemd-resolved's own list where `/etc/resolv.conf` is its stub.
pub(crate) fn node_resolver_file(etc: &Path, text: &str) -> PathBuf {
    let resolver = parse_resolver(text);
    let is_stub = !resolver.servers.is_empty()
        && resolver.servers.iter().all(|server| server == "127.0.0.53" || server == "127.0.0.54");
    let real = Path::new("/run/systemd/resolve/resolv.conf");
    if is_stub && real.exists() { real.to_owned() } else { etc.to_owned() }
}

/// Plans the resolver of a Pod.
pub(crate) fn plan_dns(pod: &Pod, node: &Resolver, cluster: &ClusterDns) -> DnsPlan {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|spec| spec.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let host_network = spec.is_some_and(|spec| spec.host_network == Some(true));
    let wants_cluster = policy == "ClusterFirstWithHostNet" || policy == "ClusterFirst" && !host_network;
    let is_cluster_dns_missing = wants_cluster && cluster.servers.is_empty();
    let mut resolver = match policy {
        "None" => Resolver::default(),
        _ if wants_cluster && !is_cluster_dns_missing => cluster_resolver(pod, node, cluster),
        _ => node.clone(),
    };
    add_own(pod, &mut resolver);
    resolver.servers.truncate(MAX_SERVERS);
    limit_searches(&mut resolver.searches);
    DnsPlan { resolver, is_cluster_dns_missing }
}

fn cluster_resolver(pod: &Pod, node: &Resolver, cluster: &ClusterDns) -> Resolver {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let domain = &cluster.domain;
    let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    append_new(&mut searches, &node.searches);
    Resolver { servers: cluster.servers.clone(), searches, options: vec!["ndots:5".to_owned()] }
}

/// Adds the Pod's `dnsConfig`; an option of the same name replaces.
fn add_own(pod: &Pod, resolver: &mut Resolver) {
    let Some(own) = pod.spec.as_ref().and_then(|spec| spec.dns_config.as_ref()) else { return };
    append_new(&mut resolver.servers, own.nameservers.as_deref().unwrap_or_default());
    append_new(&mut resolver.searches, own.searches.as_deref().unwrap_or_default());
    for option in own.options.iter().flatten() {
        let Some(name) = &option.name else { continue };
        let value = option.value.as_ref().filter(|value| !value.is_empty());
        let text = value.map_or_else(|| name.clone(), |value| format!("{name}:{value}"));
        resolver.options.retain(|known| known.split(':').next() != Some(name.as_str()));
        resolver.options.push(text);
    }
}

fn append_new(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn limit_searches(searches: &mut Vec<String>) {
    searches.truncate(MAX_SEARCHES);
    while searches.iter().map(|search| search.len() + 1).sum::<usize>() > MAX_SEARCH_CHARACTERS + 1 {
        searches.pop();
    }
}

impl From<Resolver> for v1::DnsConfig {
    fn from(resolver: Resolver) -> Self {
        Self { servers: resolver.servers, searches: resolver.searches, options: resolver.options }
    }
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]
mod tests {
    use serde_json::json;

    use super::*;

    fn node() -> Resolver {
        parse_resolver("# made by hand\nnameserver 192.0.2.53\nsearch example.com\noptions edns0 trust-ad\n")
    }

    fn plan(spec: serde_json::Value, servers: &[&str]) -> DnsPlan {
        let pod = json!({"metadata": {"namespace": "ns"}, "spec": spec});
        let mut pod: Pod = serde_json::from_value(pod).unwrap();
        pod.metadata.namespace = Some("ns".into());
        let servers = servers.iter().map(|server| (*server).to_owned()).collect();
        plan_dns(&pod, &node(), &ClusterDns { servers, domain: "cluster.local".into() })
    }

    #[test]
    fn without_cluster_dns_the_nodes_file_is_used_and_the_pod_is_told() {
        let first = plan(json!({"containers": []}), &[]);
        assert_eq!(first, DnsPlan { resolver: node(), is_cluster_dns_missing: true });
        let default = plan(json!({"containers": [], "dnsPolicy": "Default"}), &[]);
        assert!(!default.is_cluster_dns_missing);
        let host = plan(json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirst"}), &[]);
        assert!(!host.is_cluster_dns_missing);
    }

    #[test]
    fn cluster_dns_comes_with_its_search_path() {
        let plan = plan(json!({"containers": []}), &["10.96.0.10"]);
        assert_eq!(plan.resolver.servers, ["10.96.0.10"]);
        assert_eq!(
            plan.resolver.searches,
            ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.com"]
        );
        assert_eq!(plan.resolver.options, ["ndots:5"]);
    }

    #[test]
    fn the_pods_own_settings_are_added_and_override_options() {
        let spec = json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["1.1.1.1", "1.1.1.1"], "searches": ["a.b"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}});
        let plan = plan(spec, &["10.96.0.10"]);
        let own = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        let expected = Resolver {
            servers: own(&["1.1.1.1"]),
            searches: own(&["a.b"]),
            options: own(&["ndots:2", "edns0"]),
        };
        assert_eq!(plan.resolver, expected);
    }
}
