//! Role-based access control as data: what a rule allows, whether rules cover others, and the roles that every cluster
//! has. Pure; who asks and which roles are bound to whom is the server's to know.

use serde_json::{Map, Value, json};

use crate::access::Access as _;
use crate::selector::selects;

mod bootstrap;

pub use bootstrap::{Bootstrap, bootstrap};

/// The group of roles and bindings.
pub const GROUP: &str = "rbac.authorization.k8s.io";
/// Everything, in a list of verbs, groups, resources or paths.
const ALL: &str = "*";

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// With a resource; empty names mean none in particular.
    Resource {
        /// `get`, `create` …
        verb: &'a str,
        /// The API group.
        group: &'a str,
        /// The plural name.
        resource: &'a str,
        /// The subresource, or empty.
        subresource: &'a str,
        /// The object, or empty.
        name: &'a str,
    },
    /// With another path.
    Path {
        /// The method in small letters.
        verb: &'a str,
        /// The path.
        path: &'a str,
    },
}

/// One rule of a role: it allows what all its lists allow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Verbs.
    pub verbs: Vec<String>,
    /// API groups.
    pub groups: Vec<String>,
    /// Resources, such as `pods`, `pods/log`, `*/scale`.
    pub resources: Vec<String>,
    /// Names of objects; empty allows all.
    pub names: Vec<String>,
    /// Paths of no resource, such as `/healthz/*`.
    pub paths: Vec<String>,
}

fn texts(value: &Value, name: &str) -> Vec<String> {
    value.list(name).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == ALL || one == wanted)
}

impl Rule {
    /// Reads a `PolicyRule`.
    pub fn parse(rule: &Value) -> Self {
        Self {
            verbs: texts(rule, "verbs"),
            groups: texts(rule, "apiGroups"),
            resources: texts(rule, "resources"),
            names: texts(rule, "resourceNames"),
            paths: texts(rule, "nonResourceURLs"),
        }
    }

    /// The rules of a `Role` or `ClusterRole`.
    pub fn of_role(role: &Value) -> Vec<Self> {
        role.list("rules").iter().map(Self::parse).collect()
    }

    /// The rule as a `PolicyRule`.
    pub fn to_value(&self) -> Value {
        let mut rule = Map::new();
        let lists = [
            ("verbs", &self.verbs),
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.paths),
        ];
        for (name, list) in lists.into_iter().filter(|(name, list)| *name == "verbs" || !list.is_empty()) {
            rule.insert(name.to_owned(), json!(list));
        }
        Value::Object(rule)
    }

    /// Whether the rule allows an action.
    pub fn allows(&self, action: Action<'_>) -> bool {
        match action {
            Action::Resource { verb, group, resource, subresource, name } => {
                has(&self.verbs, verb)
                    && has(&self.groups, group)
                    && self.has_resource(resource, subresource)
                    && (self.names.is_empty() || self.names.iter().any(|one| one == name))
            }
            Action::Path { verb, path } => {
                has(&self.verbs, verb) && self.paths.iter().any(|one| path_matches(one, path))
            }
        }
    }

    fn has_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|one| match one.split_once('/') {
            _ if one == ALL => true,
            None => one == resource && subresource.is_empty(),
            Some((ALL, sub)) => sub == subresource,
            Some((main, sub)) => main == resource && sub == subresource,
        })
    }

    /// Whether the rule allows all that another allows, where that other has one of everything.
    fn covers(&self, single: &Self) -> bool {
        let all_in = |ours: &[String], theirs: &[String]| {
            ours.iter().any(|one| one == ALL) || theirs.iter().all(|one| ours.contains(one))
        };
        let covers_resource = |one: &String| {
            let (main, sub) = one.split_once('/').unwrap_or((one, ""));
            self.resources.iter().any(|ours| ours == ALL || ours == one)
                || (!sub.is_empty() && main != ALL && self.resources.contains(&format!("{ALL}/{sub}")))
        };
        let covers_path = |one: &String| {
            self.paths.iter().any(|ours| {
                ours == ALL
                    || ours == one
                    || ours
                        .strip_suffix('*')
                        .is_some_and(|prefix| one.trim_end_matches('*').starts_with(prefix))
            })
        };
        let names = self.names.is_empty()
            || (!single.names.is_empty() && single.names.iter().all(|name| self.names.contains(name)));
        all_in(&self.verbs, &single.verbs)
            && all_in(&self.groups, &single.groups)
            && single.resources.iter().all(covers_resource)
            && names
            && single.paths.iter().all(covers_path)
    }

    /// The rule taken apart into such with one verb on one thing each.
    fn singles(&self) -> Vec<Self> {
        let mut singles = Vec::new();
        let one = |text: &String| vec![text.clone()];
        let names: Vec<Vec<String>> =
            if self.names.is_empty() { vec![Vec::new()] } else { self.names.iter().map(one).collect() };
        for verb in &self.verbs {
            for group in &self.groups {
                for resource in &self.resources {
                    for names in &names {
                        singles.push(Self {
                            verbs: one(verb),
                            groups: one(group),
                            resources: one(resource),
                            names: names.clone(),
                            paths: Vec::new(),
                        });
                    }
                }
            }
            for path in &self.paths {
                singles.push(Self { verbs: one(verb), paths: one(path), ..Self::default() });
            }
        }
        singles
    }

    /// As a refusal lists it: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
    pub fn describe(&self) -> String {
        let lists = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.names),
            ("NonResourceURLs", &self.paths),
            ("Verbs", &self.verbs),
        ];
        let parts: Vec<String> = lists
            .into_iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(name, list)| {
                let quoted: Vec<String> = list.iter().map(|one| crate::validation::quote(one)).collect();
                format!("{name}:[{}]", quoted.join(" "))
            })
            .collect();
        format!("{{{}}}", parts.join(", "))
    }
}

fn path_matches(pattern: &str, path: &str) -> bool {
    pattern == ALL
        || pattern == path
        || pattern.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

/// What of `wanted` nothing in `held` allows: what somebody would gain who may only give away what they have.
pub fn uncovered(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let singles = wanted.iter().flat_map(Rule::singles);
    singles.filter(|single| !held.iter().any(|rule| rule.covers(single))).collect()
}

/// The rules that a `ClusterRole` with an `aggregationRule` has: those of all that its selectors match, each once,
/// in the order of the roles' names. `None` when it aggregates nothing.
pub fn aggregate<'a>(role: &Value, all: impl Iterator<Item = &'a Value>) -> Option<Vec<Value>> {
    let selectors = role.field("aggregationRule")?.list("clusterRoleSelectors");
    let own = crate::access::metadata(role).text("name");
    let mut matching: Vec<&Value> = all
        .filter(|other| crate::access::metadata(other).text("name") != own)
        .filter(|other| selectors.iter().any(|selector| selects(selector, crate::access::metadata(other))))
        .collect();
    matching.sort_by_key(|other| crate::access::metadata(other).text("name"));
    let mut rules: Vec<Value> = Vec::new();
    for rule in matching.into_iter().flat_map(|other| other.list("rules")) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    Some(rules)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> Rule {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Rule {
            verbs: list(verbs),
            groups: list(groups),
            resources: list(resources),
            names: list(names),
            paths: Vec::new(),
        }
    }

    fn on<'a>(verb: &'a str, resource: &'a str, subresource: &'a str, name: &'a str) -> Action<'a> {
        Action::Resource { verb, group: "", resource, subresource, name }
    }

    #[test]
    fn a_rule_allows_what_all_its_lists_name() {
        let read = rule(&["get", "list"], &[""], &["pods", "pods/log"], &[]);
        assert!(read.allows(on("get", "pods", "", "p")));
        assert!(read.allows(on("get", "pods", "log", "p")));
        assert!(!read.allows(on("get", "pods", "exec", "p")));
        assert!(!read.allows(on("delete", "pods", "", "p")));
        let scale = rule(&["*"], &["*"], &["*/scale"], &[]);
        assert!(scale.allows(on("get", "deployments", "scale", "d")));
        assert!(!scale.allows(on("get", "deployments", "", "d")));
        let one = rule(&["get"], &[""], &["secrets"], &["mine"]);
        assert!(one.allows(on("get", "secrets", "", "mine")));
        assert!(!one.allows(on("get", "secrets", "", "yours")));
        assert!(!one.allows(on("get", "secrets", "", "")), "a name is asked for");
    }

    #[test]
    fn paths_may_end_in_a_star() {
        let paths = Rule {
            verbs: vec!["get".to_owned()],
            paths: vec!["/healthz/*".to_owned(), "/version".to_owned()],
            ..Rule::default()
        };
        let asks = |path| paths.allows(Action::Path { verb: "get", path });
        assert!(asks("/healthz/ping") && asks("/version"));
        assert!(!asks("/healthz") && !asks("/versions"));
    }

    #[test]
    fn nobody_gives_away_what_they_do_not_have() {
        let held = [rule(&["get", "list"], &[""], &["pods"], &[]), rule(&["get"], &[""], &["*/log"], &[])];
        assert!(uncovered(&held, &[rule(&["get"], &[""], &["pods", "pods/log"], &["p"])]).is_empty());
        let gained = uncovered(&held, &[rule(&["get", "delete"], &[""], &["pods"], &[])]);
        assert_eq!(gained, [rule(&["delete"], &[""], &["pods"], &[])]);
        assert_eq!(gained[0].describe(), r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete"]}"#);
        let named = [rule(&["get"], &[""], &["secrets"], &["a"])];
        assert_eq!(uncovered(&named, &[rule(&["get"], &[""], &["secrets"], &[])]).len(), 1);
    }

    #[test]
    fn every_cluster_has_upstreams_roles() {
        let Bootstrap { cluster_roles, cluster_role_bindings, roles, role_bindings } = bootstrap();
        let named = |list: &[Value], name: &str| {
            list.iter().find(|one| one["metadata"]["name"] == name).cloned().unwrap_or_default()
        };
        let scheduler = Rule::of_role(&named(&cluster_roles, "system:kube-scheduler"));
        assert!(scheduler.iter().any(|rule| rule.allows(on("create", "pods", "binding", ""))));
        let admin = named(&cluster_roles, "cluster-admin");
        assert!(Rule::of_role(&admin).iter().any(|r| r.allows(Action::Path { verb: "post", path: "/x" })));
        let edit = named(&cluster_roles, "edit");
        assert_eq!(edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"], "true");
        let rules = aggregate(&named(&cluster_roles, "view"), cluster_roles.iter()).unwrap();
        assert!(rules.iter().map(Rule::parse).any(|rule| rule.allows(on("get", "pods", "log", "p"))));
        assert!(!rules.iter().map(Rule::parse).any(|rule| rule.allows(on("get", "secrets", "", "s"))));
        let info = named(&cluster_role_bindings, "system:public-info-viewer");
        assert_eq!(info["subjects"].as_array().unwrap().len(), 2);
        assert_eq!(
            named(&cluster_role_bindings, "system:controller:job-controller")["subjects"][0]["kind"],
            "ServiceAccount"
        );
        assert_eq!((roles.len(), role_bindings.len()), (7, 7));
        assert!(cluster_roles.len() > 65 && cluster_role_bindings.len() > 45);
        for role in cluster_roles.iter().chain(&roles) {
            for rule in Rule::of_role(role) {
                assert!(!rule.verbs.is_empty(), "{role}");
                assert!(rule.resources.is_empty() == rule.groups.is_empty(), "{role}");
                assert!(rule.resources.is_empty() != rule.paths.is_empty(), "{role}");
            }
        }
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let list = |words: &'static [&'static str], from: usize| {
            prop::collection::vec(prop::sample::select(words).prop_map(str::to_owned), from..3)
        };
        (
            list(&["get", "list", "*"], 1),
            list(&["", "apps", "*"], 1),
            list(&["pods", "pods/log", "*/log", "*"], 1),
            list(&["a", "b"], 0),
        )
            .prop_map(|(verbs, groups, resources, names)| Rule {
                verbs,
                groups,
                resources,
                names,
                paths: Vec::new(),
            })
    }

    proptest! {
        #[test]
        fn what_is_covered_is_allowed(
            held in prop::collection::vec(any_rule(), 0..4), wanted in any_rule(),
            verb in "get|list|watch", group in "|apps", resource in "pods|jobs", sub in "|log", name in "a|b|c",
        ) {
            let action = Action::Resource {
                verb: &verb, group: &group, resource: &resource, subresource: &sub, name: &name,
            };
            if uncovered(&held, std::slice::from_ref(&wanted)).is_empty() && wanted.allows(action) {
                prop_assert!(held.iter().any(|rule| rule.allows(action)), "{:?} {:?}", held, wanted);
            }
        }
    }
}
