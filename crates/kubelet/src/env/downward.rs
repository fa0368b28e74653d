//! The downward API: a Pod's own fields and resources as text, for variables and volume files.
//!
//! Source: "Downward API" concept page; field paths and defaults as upstream's kubelet resolves them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity::{self, Amounts};

/// The addresses that a running Pod may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodAddresses {
    pub(crate) pod_ips: Vec<String>,
    pub(crate) host_ips: Vec<String>,
}

/// Why a field or resource could not be resolved.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum DownwardError {
    #[error("unsupported fieldPath: {0}")]
    UnsupportedField(String),
    #[error("container {0} not found")]
    NoContainer(String),
    #[error("unsupported container resource : {0}")]
    UnsupportedResource(String),
}

/// A field of metadata, usable both in variables and in volume files.
pub(crate) fn metadata_field(pod: &Pod, path: &str) -> Result<String, DownwardError> {
    let meta = &pod.metadata;
    if let Some((base, key)) = subscript(path) {
        let map = match base {
            "metadata.annotations" => &meta.annotations,
            "metadata.labels" => &meta.labels,
            _ => return Err(DownwardError::UnsupportedField(path.to_owned())),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    match path {
        "metadata.annotations" => Ok(format_map(meta.annotations.as_ref())),
        "metadata.labels" => Ok(format_map(meta.labels.as_ref())),
        "metadata.name" => Ok(meta.name.clone().unwrap_or_default()),
        "metadata.namespace" => Ok(meta.namespace.clone().unwrap_or_default()),
        "metadata.uid" => Ok(meta.uid.clone().unwrap_or_default()),
        _ => Err(DownwardError::UnsupportedField(path.to_owned())),
    }
}

/// A field for a variable: metadata as above, and what is only known on the node.
pub(crate) fn env_field(pod: &Pod, addresses: &PodAddresses, path: &str) -> Result<String, DownwardError> {
    let spec = pod.spec.as_ref();
    let first = |list: &[String]| list.first().cloned().unwrap_or_default();
    match path {
        "spec.nodeName" => Ok(spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default()),
        "spec.serviceAccountName" => {
            Ok(spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default())
        }
        "status.hostIP" => Ok(first(&addresses.host_ips)),
        "status.hostIPs" => Ok(addresses.host_ips.join(",")),
        "status.podIP" => Ok(first(&addresses.pod_ips)),
        "status.podIPs" => Ok(addresses.pod_ips.join(",")),
        _ => metadata_field(pod, path),
    }
}

/// `metadata.labels['key']` as `("metadata.labels", "key")`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (base, rest) = path.split_once("['")?;
    Some((base, rest.strip_suffix("']")?))
}

/// `key="value"` lines, sorted by key, values quoted.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quote(value)));
    lines.collect::<Vec<_>>().join("\n")
}

/// Quotes text as Go's `%q` does for printable text and the usual escapes.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if c.is_control() => push_escape(&mut out, u32::from(c)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn push_escape(out: &mut String, code: u32) {
    // Writing into a String cannot fail.
    let _ = if code < 0x80 { write!(out, "\\x{code:02x}") } else { write!(out, "\\u{code:04x}") };
}

/// A container's request or limit as a number in units of the divisor; limits default to the node's allocatable.
pub(crate) fn resource_field(
    pod: &Pod,
    own: Option<&str>,
    selector: &ResourceFieldSelector,
    allocatable: &Amounts,
) -> Result<String, DownwardError> {
    let name = selector.container_name.as_deref().filter(|name| !name.is_empty()).or(own).unwrap_or_default();
    let container = find_container(pod, name).ok_or_else(|| DownwardError::NoContainer(name.to_owned()))?;
    let unsupported = || DownwardError::UnsupportedResource(selector.resource.clone());
    let (side, resource) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let known =
        matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    if !known {
        return Err(unsupported());
    }
    let resources = container.resources.as_ref();
    let amounts = match side {
        "limits" => resources.and_then(|resources| resources.limits.as_ref()),
        "requests" => resources.and_then(|resources| resources.requests.as_ref()),
        _ => return Err(unsupported()),
    };
    let zero = Quantity("0".to_owned());
    let fallback = if side == "limits" { allocatable.get(resource) } else { None };
    let amount = amounts.and_then(|amounts| amounts.get(resource)).or(fallback).unwrap_or(&zero);
    let one = Quantity("1".to_owned());
    let divisor = selector.divisor.as_ref().filter(|divisor| quantity::milli(divisor) > 0).unwrap_or(&one);
    let unit = if resource == "cpu" { quantity::milli } else { quantity::value };
    Ok(quantity::divided(amount, divisor, unit).to_string())
}

fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .find(|container| container.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "x\"y\nz"},
                         "annotations": {"k/l": "v"}},
            "spec": {"nodeName": "node", "serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"requests": {"cpu": "250m"}, "limits": {"memory": "64Mi"}}}]}}))
        .unwrap()
    }

    #[test]
    fn fields_read_as_the_documentation_says() {
        let addresses = PodAddresses {
            pod_ips: vec!["10.0.0.2".into(), "fd::2".into()],
            host_ips: vec!["192.0.2.1".into()],
        };
        for (path, expected) in [
            ("metadata.name", "p"),
            ("metadata.namespace", "n"),
            ("metadata.uid", "u"),
            ("metadata.labels", "a=\"x\\\"y\\nz\"\nb=\"2\""),
            ("metadata.labels['b']", "2"),
            ("metadata.labels['missing']", ""),
            ("metadata.annotations['k/l']", "v"),
            ("spec.nodeName", "node"),
            ("spec.serviceAccountName", "sa"),
            ("status.podIP", "10.0.0.2"),
            ("status.podIPs", "10.0.0.2,fd::2"),
            ("status.hostIP", "192.0.2.1"),
        ] {
            assert_eq!(env_field(&pod(), &addresses, path).as_deref(), Ok(expected), "{path}");
        }
        metadata_field(&pod(), "status.podIP").unwrap_err();
        env_field(&pod(), &addresses, "spec.containers").unwrap_err();
    }

    #[test]
    fn a_missing_limit_is_the_nodes_allocatable() {
        let allocatable = Amounts::from([
            ("cpu".to_owned(), Quantity("2".to_owned())),
            ("memory".to_owned(), Quantity("1Gi".to_owned())),
        ]);
        let read = |resource: &str, divisor: &str| {
            let selector = ResourceFieldSelector {
                container_name: None,
                divisor: Some(Quantity(divisor.to_owned())),
                resource: resource.to_owned(),
            };
            resource_field(&pod(), Some("c"), &selector, &allocatable)
        };
        assert_eq!(read("requests.cpu", "0"), Ok("1".into()));
        assert_eq!(read("requests.cpu", "1m"), Ok("250".into()));
        assert_eq!(read("limits.cpu", "1m"), Ok("2000".into()));
        assert_eq!(read("limits.memory", "1Mi"), Ok("64".into()));
        assert_eq!(read("requests.memory", "1"), Ok("0".into()));
        read("limits.gpu", "1").unwrap_err();
    }
}
