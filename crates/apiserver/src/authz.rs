//! Who may do what: the health paths for everyone, everything for the masters, the node authoriser for kubelets, and the
//! roles in the store for all. It only answers; the texts that it makes are Kubernetes' own, so that users can look
//! them up.

mod aggregate;
mod node;
mod rbac;

use api::kind;
use api::rbac::{Action, Rule};
use api::status::Status;

use crate::cache::Cache;
use crate::identity::{Identity, MASTERS};
use crate::request::RequestInfo;

pub(crate) use aggregate::{fill as fill_aggregates, run as aggregate};
pub(crate) use rbac::service_account;

/// The question.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a> {
    pub(crate) user: &'a Identity,
    pub(crate) verb: &'a str,
    /// What is asked for.
    pub(crate) target: Target<'a>,
}

/// A resource or another path.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target<'a> {
    Resource {
        group: &'a str,
        resource: &'a str,
        subresource: &'a str,
        namespace: &'a str,
        name: &'a str,
        /// The field selector of a list or watch.
        fields: &'a str,
    },
    Path(&'a str),
}

/// Paths that everyone may read whatever the roles say: health must be seen when nothing else works.
const ALWAYS: &[&str] = &["/healthz", "/livez", "/readyz"];

/// What decides.
#[derive(Debug, Default)]
pub(crate) struct Authorizer {
    roles: rbac::Index,
    nodes: node::Graph,
}

impl Authorizer {
    /// Why the question is answered with yes; `None` for no.
    pub(crate) fn allows(&self, cache: &Cache, question: &Attributes<'_>) -> Option<String> {
        let Attributes { user, verb, target } = *question;
        if user.is_in(MASTERS) {
            return Some(String::new());
        }
        if let Target::Path(path) = target
            && verb == "get"
            && ALWAYS.contains(&path)
        {
            return Some(String::new());
        }
        if let Some(node) = user.node_name()
            && self.nodes.allows(cache, node, verb, target)
        {
            return Some(String::new());
        }
        let (namespace, action) = match target {
            Target::Path(path) => ("", Action::Path { verb, path }),
            Target::Resource { group, resource, subresource, namespace, name, .. } => {
                (namespace, Action::Resource { verb, group, resource, subresource, name })
            }
        };
        self.roles.allows(cache, user, namespace, action)
    }

    /// All rules that somebody has in a namespace, and whether those are all: what a kubelet may do depends on its Pods.
    pub(crate) fn rules_of(&self, cache: &Cache, user: &Identity, namespace: &str) -> (Vec<Rule>, bool) {
        let mut rules = self.roles.rules_of(cache, user, namespace);
        if user.is_in(MASTERS) {
            let all = || vec!["*".to_owned()];
            rules.push(Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() });
            rules.push(Rule { verbs: all(), paths: all(), ..Rule::default() });
        }
        (rules, user.node_name().is_none())
    }

    /// The rules of a role, by the namespace that a reference to it is in; `None` when there is no such role.
    pub(crate) fn rules_of_role(
        &self,
        cache: &Cache,
        namespace: &str,
        name: &str,
    ) -> Option<std::sync::Arc<[Rule]>> {
        self.roles.rules_of_role(cache, namespace, name)
    }
}

/// No, in the words of a question that is no request.
pub(crate) fn denial(question: &Attributes<'_>) -> String {
    let user = api::validation::quote(&question.user.user);
    match question.target {
        Target::Path(path) => format!("User {user} cannot {} path \"{path}\"", question.verb),
        Target::Resource { group, resource, subresource, namespace, .. } => {
            let slash = if subresource.is_empty() { "" } else { "/" };
            let scope = if namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace \"{namespace}\"")
            };
            format!(
                "User {user} cannot {} resource \"{resource}{slash}{subresource}\" in API group \"{group}\" {scope}",
                question.verb
            )
        }
    }
}

/// Says no in Kubernetes' words.
pub(crate) fn forbidden(user: &Identity, info: &RequestInfo) -> Status {
    let why = denial(&question(user, info));
    if !info.is_resource {
        return Status::forbidden_path(&why);
    }
    if let Some(kind) = kind::find(&info.group, &info.version, &info.resource) {
        return Status::forbidden(kind, &info.name, &why);
    }
    let dot = if info.group.is_empty() { "" } else { "." };
    let name = if info.name.is_empty() { String::new() } else { format!(" \"{}\"", info.name) };
    let message = format!("{}{dot}{}{name} is forbidden: {why}", info.resource, info.group);
    Status::forbidden_resource(&info.group, &info.resource, &info.name, &message)
}

/// The question that a request asks.
pub(crate) fn question<'a>(user: &'a Identity, info: &'a RequestInfo) -> Attributes<'a> {
    let target = if info.is_resource {
        Target::Resource {
            group: &info.group,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            fields: info.query.get("fieldSelector"),
        }
    } else {
        Target::Path(&info.path)
    };
    Attributes { user, verb: info.verb, target }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    #[test]
    fn no_is_said_in_upstreams_words() {
        let say = |method: Method, uri: &str| {
            let info = RequestInfo::parse(&method, &uri.parse().unwrap());
            forbidden(&Identity::anonymous(), &info).message().to_owned()
        };
        assert_eq!(
            say(Method::GET, "/api/v1/pods"),
            "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" at the cluster scope"
        );
        assert_eq!(
            say(Method::GET, "/api/v1/namespaces/a/pods/p/log"),
            "pods \"p\" is forbidden: User \"system:anonymous\" cannot get resource \"pods/log\" in API group \"\" in the namespace \"a\""
        );
        assert_eq!(
            say(Method::POST, "/apis/apps/v1/namespaces/a/deployments"),
            "deployments.apps is forbidden: User \"system:anonymous\" cannot create resource \"deployments\" in API group \"apps\" in the namespace \"a\""
        );
        assert_eq!(
            say(Method::GET, "/metrics"),
            "forbidden: User \"system:anonymous\" cannot get path \"/metrics\""
        );
    }
}
