//! Discovery documents: which groups, versions, resources and verbs there are. Made from the table of kinds; the same
//! table gives the same bytes, so a hash of them is a good `ETag`.

use serde_json::{Map, Value, json};

use crate::kind::{Kind, Subresource, kinds};

/// `Content-Type` of the aggregated documents.
pub const AGGREGATED_V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// `/api`: the versions of the core group. `address` is `host:port` as clients should know the server.
pub fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `/apis`: all groups but the core group.
pub fn groups() -> Value {
    let groups: Vec<Value> = group_versions().into_iter().filter(|(g, _)| !g.is_empty()).map(group).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`, if there is such a group.
pub fn group_document(name: &str) -> Option<Value> {
    let found = group_versions().into_iter().find(|(g, _)| *g == name && !g.is_empty())?;
    let Value::Object(fields) = group(found) else { return None };
    let mut object = Map::new();
    object.insert("kind".into(), "APIGroup".into());
    object.insert("apiVersion".into(), "v1".into());
    object.extend(fields);
    Some(Value::Object(object))
}

/// `/api/v1` or `/apis/<group>/<version>`, if it is served.
pub fn resources(group: &str, version: &str) -> Option<Value> {
    let kinds: Vec<&Kind> = kinds().iter().filter(|k| k.group == group && k.version == version).collect();
    let first = kinds.first()?;
    let list: Vec<Value> = kinds
        .iter()
        .flat_map(|k| std::iter::once(resource(k)).chain(k.subresources.iter().map(|s| subresource(k, s))))
        .collect();
    let mut object = Map::new();
    object.insert("kind".into(), "APIResourceList".into());
    if !group.is_empty() {
        object.insert("apiVersion".into(), "v1".into());
    }
    object.insert("groupVersion".into(), first.api_version().into());
    object.insert("resources".into(), list.into());
    Some(Value::Object(object))
}

/// The aggregated form of `/api`.
pub fn aggregated_core() -> Value {
    aggregated(str::is_empty)
}

/// The aggregated form of `/apis`.
pub fn aggregated_groups() -> Value {
    aggregated(|group| !group.is_empty())
}

/// Each group with its versions, in order of priority.
pub fn group_versions() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut out: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
    for kind in kinds() {
        match out.iter_mut().find(|(group, _)| *group == kind.group) {
            Some((_, versions)) if versions.contains(&kind.version) => {}
            Some((_, versions)) => versions.push(kind.version),
            None => out.push((kind.group, vec![kind.version])),
        }
    }
    out
}

fn group((name, versions): (&'static str, Vec<&'static str>)) -> Value {
    let versions: Vec<Value> =
        versions.iter().map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v})).collect();
    let preferred = versions.first().cloned().unwrap_or_default();
    json!({"name": name, "versions": versions, "preferredVersion": preferred})
}

fn resource(kind: &Kind) -> Value {
    let mut object = Map::new();
    object.insert("name".into(), kind.plural.into());
    object.insert("singularName".into(), kind.singular.into());
    object.insert("namespaced".into(), kind.namespaced.into());
    object.insert("kind".into(), kind.kind.into());
    object.insert("verbs".into(), kind.verbs.into());
    put_list(&mut object, "shortNames", kind.short_names);
    put_list(&mut object, "categories", kind.categories);
    Value::Object(object)
}

fn subresource(kind: &Kind, sub: &Subresource) -> Value {
    let mut object = Map::new();
    object.insert("name".into(), format!("{}/{}", kind.plural, sub.name).into());
    object.insert("singularName".into(), "".into());
    object.insert("namespaced".into(), kind.namespaced.into());
    if let Some((group, version)) = sub.group_version {
        object.insert("group".into(), group.into());
        object.insert("version".into(), version.into());
    }
    object.insert("kind".into(), sub.kind.into());
    object.insert("verbs".into(), sub.verbs.into());
    Value::Object(object)
}

fn aggregated(wanted: impl Fn(&str) -> bool) -> Value {
    let items: Vec<Value> = group_versions()
        .into_iter()
        .filter(|(group, _)| wanted(group))
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions.iter().map(|v| aggregated_version(group, v)).collect();
            let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_version(group: &str, version: &str) -> Value {
    let resources: Vec<Value> = kinds()
        .iter()
        .filter(|k| k.group == group && k.version == version)
        .map(aggregated_resource)
        .collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

fn aggregated_resource(kind: &Kind) -> Value {
    let mut object = Map::new();
    object.insert("resource".into(), kind.plural.into());
    object.insert("responseKind".into(), response_kind((kind.group, kind.version), kind.kind));
    object.insert("scope".into(), if kind.namespaced { "Namespaced" } else { "Cluster" }.into());
    object.insert("singularResource".into(), kind.singular.into());
    object.insert("verbs".into(), kind.verbs.into());
    put_list(&mut object, "shortNames", kind.short_names);
    put_list(&mut object, "categories", kind.categories);
    if !kind.subresources.is_empty() {
        let subs: Vec<Value> = kind
            .subresources
            .iter()
            .map(|s| {
                let own = s.group_version.unwrap_or((kind.group, kind.version));
                json!({"subresource": s.name, "responseKind": response_kind(own, s.kind), "verbs": s.verbs})
            })
            .collect();
        object.insert("subresources".into(), subs.into());
    }
    Value::Object(object)
}

fn response_kind((group, version): (&str, &str), kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn put_list(object: &mut Map<String, Value>, key: &str, list: &[&str]) {
    if !list.is_empty() {
        object.insert(key.to_owned(), list.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_list_holds_pods_and_their_subresources() {
        let list = resources("", "v1").unwrap();
        assert_eq!(list["groupVersion"], "v1");
        let find = |name: &str| {
            list["resources"]
                .as_array()
                .unwrap()
                .iter()
                .find(|r| r["name"] == name)
                .cloned()
                .unwrap_or_default()
        };
        assert_eq!(
            find("pods"),
            json!({"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod",
                "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
                "shortNames": ["po"], "categories": ["all"]})
        );
        assert_eq!(
            find("pods/eviction"),
            json!({"name": "pods/eviction", "singularName": "", "namespaced": true, "group": "policy",
                "version": "v1", "kind": "Eviction", "verbs": ["create"]})
        );
    }

    #[test]
    fn groups_come_in_order_of_priority() {
        let names: Vec<&str> = group_versions().iter().map(|(g, _)| *g).collect();
        assert_eq!(
            names,
            [
                "",
                "apiregistration.k8s.io",
                "apps",
                "events.k8s.io",
                "authentication.k8s.io",
                "authorization.k8s.io",
                "autoscaling",
                "batch",
                "certificates.k8s.io",
                "networking.k8s.io",
                "policy",
                "rbac.authorization.k8s.io",
                "storage.k8s.io",
                "admissionregistration.k8s.io",
                "apiextensions.k8s.io",
                "scheduling.k8s.io",
                "coordination.k8s.io",
                "node.k8s.io",
                "discovery.k8s.io",
                "resource.k8s.io",
                "flowcontrol.apiserver.k8s.io"
            ]
        );
        assert!(group_document("coordination.k8s.io").is_some());
        assert!(group_document("").is_none());
    }

    #[test]
    fn aggregated_documents_name_the_response_kind_of_subresources() {
        let core = aggregated_core();
        let pods = core["items"][0]["versions"][0]["resources"]
            .as_array()
            .unwrap()
            .iter()
            .find(|r| r["resource"] == "pods")
            .unwrap();
        assert_eq!(pods["responseKind"], json!({"group": "", "version": "v1", "kind": "Pod"}));
        assert_eq!(pods["scope"], "Namespaced");
        assert_eq!(
            pods["subresources"][3]["responseKind"],
            json!({"group": "policy", "version": "v1", "kind": "Eviction"})
        );
        assert_eq!(aggregated_groups()["items"][1]["metadata"]["name"], "apps");
    }

    #[test]
    fn the_same_table_gives_the_same_bytes() {
        assert_eq!(aggregated_core().to_string(), aggregated_core().to_string());
    }
}
