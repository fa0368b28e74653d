//! The roles and bindings of `roles.txt`, as objects. The file says how it is written; a test reads every line.

use serde_json::{Map, Value, json};

use super::{GROUP, Rule};

const TEXT: &str = include_str!("roles.txt");

/// What marks an object as one that the server keeps up to date.
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// The prefix of the roles and the namespace of the accounts of controllers.
const CONTROLLER: (&str, &str) = ("system:controller:", "kube-system");

/// The objects.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bootstrap {
    /// `ClusterRole` objects; those that aggregate have no rules yet.
    pub cluster_roles: Vec<Value>,
    /// `ClusterRoleBinding` objects.
    pub cluster_role_bindings: Vec<Value>,
    /// `Role` objects.
    pub roles: Vec<Value>,
    /// `RoleBinding` objects.
    pub role_bindings: Vec<Value>,
}

/// Everything in the file.
pub fn bootstrap() -> Bootstrap {
    let mut made = Bootstrap::default();
    let mut lines = TEXT.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).peekable();
    while let Some(line) = lines.next() {
        let mut rules = Vec::new();
        while let Some(rule) = lines.next_if(|line| line.starts_with(' ')) {
            rules.extend(read_rule(rule));
        }
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("role"), Some(name)) => made.role(name, &words.collect::<Vec<_>>(), &rules),
            (Some("controller"), Some(name)) => made.controller(name, &rules),
            (Some("bind"), Some(name)) => made.bind(name, &words.collect::<Vec<_>>()),
            _ => {}
        }
    }
    made
}

impl Bootstrap {
    fn role(&mut self, name: &str, labels: &[&str], rules: &[Rule]) {
        let rules: Vec<Value> = rules.iter().map(Rule::to_value).collect();
        if let Some((namespace, name)) = name.split_once('/') {
            let metadata = metadata(name, Some(namespace), &[]);
            self.roles.push(object("Role", metadata, json!({"rules": rules})));
            return;
        }
        let word = |prefix: &str| labels.iter().find_map(|label| label.strip_prefix(prefix));
        let to: Vec<String> = word("to=").map(aggregate_label).into_iter().collect();
        let mut rest = json!({"rules": rules});
        if let Some(from) = word("from=") {
            let label = aggregate_label(from);
            let rule = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
            crate::access::set(&mut rest, "aggregationRule", rule);
        }
        self.cluster_roles.push(object("ClusterRole", metadata(name, None, &to), rest));
    }

    fn controller(&mut self, account: &str, rules: &[Rule]) {
        let (prefix, namespace) = CONTROLLER;
        let name = format!("{prefix}{account}");
        self.role(&name, &["to=controllers"], rules);
        self.bind(&name, &[&format!("sa:{namespace}/{account}")]);
    }

    fn bind(&mut self, role: &str, words: &[&str]) {
        let (namespace, role) = match role.split_once('/') {
            Some((namespace, role)) => (Some(namespace), role),
            None => (None, role),
        };
        let name = words.iter().find_map(|word| word.strip_prefix("as=")).unwrap_or(role);
        let subjects: Vec<Value> = words.iter().filter_map(|word| subject(word)).collect();
        let kind = if namespace.is_some() { "Role" } else { "ClusterRole" };
        let mut rest = json!({"roleRef": {"apiGroup": GROUP, "kind": kind, "name": role}});
        if !subjects.is_empty() {
            crate::access::set(&mut rest, "subjects", subjects);
        }
        let metadata = metadata(name, namespace, &[]);
        let binding = object(&format!("{kind}Binding"), metadata, rest);
        if namespace.is_some() {
            self.role_bindings.push(binding);
        } else {
            self.cluster_role_bindings.push(binding);
        }
    }
}

/// `rbac.authorization.k8s.io/aggregate-to-edit`; what is kakoi's own has kakoi's own label.
fn aggregate_label(to: &str) -> String {
    let group = if to == "controllers" { "kakoi.dev" } else { GROUP };
    format!("{group}/aggregate-to-{to}")
}

fn metadata(name: &str, namespace: Option<&str>, labels: &[String]) -> Value {
    let mut all = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
    for label in labels {
        crate::access::set(&mut all, label, "true");
    }
    let mut metadata = json!({"name": name, "labels": all, "annotations": {AUTOUPDATE: "true"}});
    if let Some(namespace) = namespace {
        crate::access::set(&mut metadata, "namespace", namespace);
    }
    metadata
}

fn object(kind: &str, metadata: Value, rest: Value) -> Value {
    let mut object = Map::new();
    object.insert("kind".to_owned(), kind.into());
    object.insert("apiVersion".to_owned(), format!("{GROUP}/v1").into());
    object.insert("metadata".to_owned(), metadata);
    if let Value::Object(rest) = rest {
        object.extend(rest);
    }
    Value::Object(object)
}

fn subject(word: &str) -> Option<Value> {
    let (kind, name) = word.split_once(':')?;
    match kind {
        "group" => Some(json!({"apiGroup": GROUP, "kind": "Group", "name": name})),
        "user" => Some(json!({"apiGroup": GROUP, "kind": "User", "name": name})),
        "sa" => {
            let (namespace, name) = name.split_once('/')?;
            Some(json!({"kind": "ServiceAccount", "name": name, "namespace": namespace}))
        }
        _ => None,
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}

fn read_rule(line: &str) -> Option<Rule> {
    let mut words = line.split_ascii_whitespace();
    let verbs = words
        .next()?
        .split(',')
        .flat_map(|verb| match verb {
            "read" => vec!["get", "list", "watch"],
            "change" => vec!["create", "delete", "deletecollection", "patch", "update"],
            "all" => {
                vec!["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
            }
            verb => vec![verb],
        })
        .map(str::to_owned)
        .collect();
    let second = words.next()?;
    if second.starts_with('/') {
        let paths = list(second).into_iter().map(|path| if path == "/*" { "*".to_owned() } else { path });
        return Some(Rule { verbs, paths: paths.collect(), ..Rule::default() });
    }
    let groups = list(second).into_iter().map(|group| if group == "core" { String::new() } else { group });
    let resources = list(words.next()?);
    let names = words.next().map(list).unwrap_or_default();
    Some(Rule { verbs, groups: groups.collect(), resources, names, paths: Vec::new() })
}
