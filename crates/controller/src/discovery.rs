//! Which kinds of objects the API has, as it says itself. Of a kind in several versions the preferred one counts.

use std::collections::BTreeSet;

use kube::Client;
use serde::Deserialize;

use crate::rest::{Collection, RestError};

/// One kind of object and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) is_namespaced: bool,
    pub(crate) verbs: BTreeSet<String>,
}

impl Resource {
    /// Whether all these verbs are possible.
    pub(crate) fn can(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|verb| self.verbs.contains(*verb))
    }

    /// The path of the objects in a namespace, or of all objects when the namespace is empty.
    pub(crate) fn path(&self, namespace: &str) -> String {
        let root = match self.group.as_str() {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        if namespace.is_empty() || !self.is_namespaced {
            format!("{root}/{}", self.plural)
        } else {
            format!("{root}/namespaces/{namespace}/{}", self.plural)
        }
    }

    /// Whether an owner reference names this kind, in whatever version.
    pub(crate) fn is_named(&self, api_version: &str, kind: &str) -> bool {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        self.kind == kind && self.group == group
    }
}

#[derive(Deserialize)]
struct Groups {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    versions: Vec<Version>,
    preferred_version: Option<Version>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    group_version: String,
}

#[derive(Deserialize)]
struct Resources {
    resources: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    kind: String,
    namespaced: bool,
    #[serde(default)]
    verbs: BTreeSet<String>,
}

/// What was found, and which groups did not answer.
#[derive(Debug, Default)]
pub(crate) struct Discovered {
    pub(crate) resources: Vec<Resource>,
    pub(crate) errors: Vec<String>,
}

/// Asks the API what it has.
pub(crate) async fn discover(client: &Client) -> Result<Discovered, RestError> {
    let mut discovered = Discovered::default();
    let core: Resources = read(client, "/api", "v1").await?;
    discovered.add("", "v1", core);
    let groups: Groups = read(client, "/apis", "").await?;
    for version in groups.groups.into_iter().flat_map(Group::into_versions) {
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        match read(client, &format!("/apis/{group}"), version).await {
            Ok(resources) => discovered.add(group, version, resources),
            Err(error) => discovered.errors.push(error.to_string()),
        }
    }
    Ok(discovered)
}

impl Group {
    /// All versions, the preferred one first.
    fn into_versions(self) -> impl Iterator<Item = String> {
        let preferred = self.preferred_version.map(|version| version.group_version);
        let first = preferred.clone();
        let others = self.versions.into_iter().map(|version| version.group_version);
        first.into_iter().chain(others.filter(move |version| Some(version) != preferred.as_ref()))
    }
}

impl Discovered {
    /// Adds the kinds of a version that no earlier version had.
    fn add(&mut self, group: &str, version: &str, found: Resources) {
        for listed in found.resources {
            let is_part = listed.name.contains('/');
            let is_known =
                self.resources.iter().any(|known| known.group == group && known.plural == listed.name);
            if is_part || is_known {
                continue;
            }
            self.resources.push(Resource {
                group: group.to_owned(),
                version: version.to_owned(),
                kind: listed.kind,
                plural: listed.name,
                is_namespaced: listed.namespaced,
                verbs: listed.verbs,
            });
        }
    }
}

async fn read<T: serde::de::DeserializeOwned>(
    client: &Client,
    parent: &str,
    name: &str,
) -> Result<T, RestError> {
    Collection::new(client, parent).read(name).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(names: &[&str]) -> Resources {
        let listed = names.iter().map(|name| Listed {
            name: (*name).to_owned(),
            kind: "Thing".to_owned(),
            namespaced: true,
            verbs: ["get".to_owned(), "list".to_owned()].into(),
        });
        Resources { resources: listed.collect() }
    }

    #[test]
    fn the_preferred_version_of_a_kind_counts() {
        let group: Group = serde_json::from_str(
            r#"{"versions": [{"groupVersion": "a/v1beta1"}, {"groupVersion": "a/v1"}], "preferredVersion": {"groupVersion": "a/v1"}}"#,
        )
        .unwrap();
        assert_eq!(group.into_versions().collect::<Vec<_>>(), ["a/v1", "a/v1beta1"]);
        let mut discovered = Discovered::default();
        discovered.add("a", "v1", resources(&["things", "things/status"]));
        discovered.add("a", "v1beta1", resources(&["things", "others"]));
        let found: Vec<_> = discovered.resources.iter().map(|r| r.path("team")).collect();
        assert_eq!(found, ["/apis/a/v1/namespaces/team/things", "/apis/a/v1beta1/namespaces/team/others"]);
    }

    #[test]
    fn paths_and_names_are_those_of_the_group() {
        let mut discovered = Discovered::default();
        discovered.add("", "v1", resources(&["pods"]));
        let pods = &discovered.resources[0];
        assert_eq!(pods.path(""), "/api/v1/pods");
        assert_eq!(pods.path("team"), "/api/v1/namespaces/team/pods");
        assert!(pods.is_named("v1", "Thing") && !pods.is_named("apps/v1", "Thing"));
        assert!(pods.can(&["get", "list"]) && !pods.can(&["delete"]));
    }
}
