//! A Pod as the checks look at it, and the words in which they name what they found.

use serde_json::Value;

use crate::access::{Access, metadata, spec};

static NULL: Value = Value::Null;

/// A Pod or a Pod template.
#[derive(Clone, Copy)]
pub(super) struct Pod<'a>(&'a Value);

impl<'a> Pod<'a> {
    pub(super) fn new(pod: &'a Value) -> Self {
        Self(pod)
    }

    pub(super) fn spec(self) -> &'a Value {
        spec(self.0)
    }

    pub(super) fn annotations(self) -> Vec<(&'a str, &'a str)> {
        metadata(self.0).entries("annotations")
    }

    /// All containers: first those of initialization, last the ephemeral ones.
    pub(super) fn containers(self) -> impl Iterator<Item = &'a Value> {
        let lists = ["initContainers", "containers", "ephemeralContainers"];
        lists.into_iter().flat_map(move |list| self.spec().list(list))
    }

    /// The security context of the whole Pod.
    pub(super) fn security(self) -> &'a Value {
        security(self.spec())
    }

    /// Whether its own words give it a user namespace.
    pub(super) fn is_fenced(self) -> bool {
        self.spec().flag("hostUsers") == Some(false)
    }

    pub(super) fn is_windows(self) -> bool {
        self.spec().field("os").is_some_and(|os| os.text("name") == "windows")
    }

    /// Names of the containers for which `is_bad` holds.
    pub(super) fn containers_where(self, is_bad: impl Fn(&'a Value) -> bool) -> Vec<&'a str> {
        self.containers()
            .filter(|container| is_bad(container))
            .map(|container| container.text("name"))
            .collect()
    }
}

/// The security context of a container or a spec; null where there is none.
pub(super) fn security(of: &Value) -> &Value {
    of.field("securityContext").unwrap_or(&NULL)
}

/// `"a", "b"`.
pub(super) fn quoted<T: AsRef<str>>(names: &[T]) -> String {
    let each = names.iter().map(|name| format!("\"{}\"", name.as_ref()));
    each.collect::<Vec<_>>().join(", ")
}

/// One or the other word, by number.
pub(super) fn by_number<'w>(number: usize, one: &'w str, more: &'w str) -> &'w str {
    if number == 1 { one } else { more }
}

/// `container "a"` or `containers "a", "b"`.
pub(super) fn containers_named(names: &[&str]) -> String {
    format!("{} {}", by_number(names.len(), "container", "containers"), quoted(names))
}

/// `pod`, `container "a"` or both with `and`; `None` when nobody is meant.
pub(super) fn setters(is_pod: bool, containers: &[&str]) -> Option<String> {
    let pod = is_pod.then(|| "pod".to_owned());
    let named = (!containers.is_empty()).then(|| containers_named(containers));
    let all: Vec<String> = pod.into_iter().chain(named).collect();
    (!all.is_empty()).then(|| all.join(" and "))
}

/// Sorted, each once.
pub(super) fn sorted<T: Ord>(mut values: Vec<T>) -> Vec<T> {
    values.sort_unstable();
    values.dedup();
    values
}
