//! Who may do what: one fixed table, until RBAC objects can say more. It only answers; the texts that it makes are
//! Kubernetes' own, so that users can look them up.

use api::kind;
use api::status::Status;

use crate::identity::{AUTHENTICATED, Identity, MASTERS, SERVICE_ACCOUNTS};
use crate::request::RequestInfo;

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
    Resource { group: &'a str, resource: &'a str, subresource: &'a str, namespace: &'a str, name: &'a str },
    Path(&'a str),
}

/// One line of the table: these verbs on these resources (`pods/status` names a subresource).
pub(crate) struct Rule {
    pub(crate) verbs: &'static [&'static str],
    pub(crate) group: &'static str,
    pub(crate) resources: &'static [&'static str],
}

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
const CHANGE: &[&str] = &["get", "update", "patch"];
const CREATE: &[&str] = &["create"];
const RECORD: &[&str] = &["create", "update", "patch"];

const fn rule(
    verbs: &'static [&'static str],
    group: &'static str,
    resources: &'static [&'static str],
) -> Rule {
    Rule { verbs, group, resources }
}

/// What every user who proved who they are may do.
const EVERYONE: &[Rule] = &[
    rule(CREATE, "authorization.k8s.io", &["selfsubjectaccessreviews", "selfsubjectrulesreviews"]),
    rule(CREATE, "authentication.k8s.io", &["selfsubjectreviews"]),
];

/// What a kubelet may do; its own Node and Lease are in [`allows_own`].
const NODE: &[Rule] = &[
    rule(CREATE, "", &["nodes", "pods", "pods/eviction", "serviceaccounts/token"]),
    rule(READ, "", &["nodes", "pods", "services", "secrets", "configmaps", "serviceaccounts", "namespaces"]),
    rule(READ, "", &["persistentvolumes", "persistentvolumeclaims"]),
    rule(&["delete"], "", &["pods"]),
    rule(CHANGE, "", &["pods/status"]),
    rule(RECORD, "", &["events"]),
    rule(RECORD, "events.k8s.io", &["events"]),
    rule(CREATE, "coordination.k8s.io", &["leases"]),
    rule(CREATE, "authentication.k8s.io", &["tokenreviews"]),
    rule(CREATE, "authorization.k8s.io", &["subjectaccessreviews", "localsubjectaccessreviews"]),
    rule(&["create", "get", "list", "watch"], "certificates.k8s.io", &["certificatesigningrequests"]),
    rule(READ, "node.k8s.io", &["runtimeclasses"]),
    rule(READ, "storage.k8s.io", &["csidrivers", "csinodes", "volumeattachments"]),
    rule(READ, "resource.k8s.io", &["resourceclaims", "resourceslices"]),
];

const SCHEDULER: &[Rule] = &[
    rule(
        READ,
        "",
        &["nodes", "pods", "namespaces", "services", "persistentvolumes", "persistentvolumeclaims"],
    ),
    rule(&["delete"], "", &["pods"]),
    rule(CREATE, "", &["bindings", "pods/binding"]),
    rule(CHANGE, "", &["pods/status"]),
    rule(RECORD, "", &["events"]),
    rule(RECORD, "events.k8s.io", &["events"]),
    rule(WRITE, "coordination.k8s.io", &["leases"]),
    rule(READ, "apps", &["replicasets", "statefulsets"]),
    rule(READ, "policy", &["poddisruptionbudgets"]),
    rule(READ, "storage.k8s.io", &["csinodes", "csidrivers", "csistoragecapacities", "storageclasses"]),
    rule(CREATE, "authentication.k8s.io", &["tokenreviews"]),
    rule(CREATE, "authorization.k8s.io", &["subjectaccessreviews"]),
];

const CONTROLLERS: &[Rule] = &[
    rule(WRITE, "", &["pods", "nodes", "namespaces", "configmaps", "secrets", "serviceaccounts", "events"]),
    rule(CHANGE, "", &["pods/status", "nodes/status", "namespaces/status", "namespaces/finalize"]),
    rule(CREATE, "", &["serviceaccounts/token", "pods/eviction"]),
    rule(WRITE, "events.k8s.io", &["events"]),
    rule(WRITE, "coordination.k8s.io", &["leases"]),
    rule(CREATE, "authentication.k8s.io", &["tokenreviews"]),
    rule(CREATE, "authorization.k8s.io", &["subjectaccessreviews"]),
];

/// Paths that everyone may read, known or not.
const PUBLIC_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/version/"];
/// Paths that users may read.
const DISCOVERY_PATHS: &[&str] = &["/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*"];
/// Paths with which others check a service account's token.
const ISSUER_PATHS: &[&str] = &["/.well-known/openid-configuration", "/openid/v1/jwks"];

/// Whether the question is answered with yes.
pub(crate) fn is_allowed(question: &Attributes<'_>) -> bool {
    if question.user.is_in(MASTERS) {
        return true;
    }
    match question.target {
        Target::Path(path) => question.verb == "get" && allows_path(question.user, path),
        Target::Resource { group, resource, subresource, .. } => {
            let allowed =
                rules_of(question.user).any(|rule| rule.allows(question.verb, group, resource, subresource));
            allowed || allows_own(question)
        }
    }
}

/// All rules for a user, for [`is_allowed`] and for `kubectl auth can-i --list`.
pub(crate) fn rules_of(user: &Identity) -> impl Iterator<Item = &'static Rule> {
    let role: &[Rule] = match user.user.as_str() {
        "system:kube-scheduler" => SCHEDULER,
        "system:kube-controller-manager" => CONTROLLERS,
        _ if user.node_name().is_some() => NODE,
        _ => &[],
    };
    let everyone: &[Rule] = if user.is_in(AUTHENTICATED) { EVERYONE } else { &[] };
    everyone.iter().chain(role)
}

/// The paths that a user may read.
pub(crate) fn paths_of(user: &Identity) -> impl Iterator<Item = &'static str> {
    let users: &[&str] = if user.is_in(AUTHENTICATED) { DISCOVERY_PATHS } else { &[] };
    let issuer: &[&str] = if user.is_in(SERVICE_ACCOUNTS) { ISSUER_PATHS } else { &[] };
    PUBLIC_PATHS.iter().chain(users).chain(issuer).copied()
}

impl Rule {
    fn allows(&self, verb: &str, group: &str, resource: &str, subresource: &str) -> bool {
        let named = |one: &&str| match one.split_once('/') {
            Some((main, sub)) => main == resource && sub == subresource,
            None => *one == resource && subresource.is_empty(),
        };
        self.group == group && self.verbs.contains(&verb) && self.resources.iter().any(named)
    }
}

fn allows_path(user: &Identity, path: &str) -> bool {
    paths_of(user).any(|allowed| match allowed.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => allowed == path,
    })
}

/// What a kubelet may do with the objects that carry its own name.
fn allows_own(question: &Attributes<'_>) -> bool {
    let Some(node) = question.user.node_name() else { return false };
    let Target::Resource { group, resource, subresource, namespace, name } = question.target else {
        return false;
    };
    let change = matches!(question.verb, "get" | "update" | "patch" | "delete");
    match (group, resource, subresource) {
        ("", "nodes", "" | "status") => change && name == node,
        ("coordination.k8s.io", "leases", "") => change && name == node && namespace == "kube-node-lease",
        ("storage.k8s.io", "csinodes", "") => (change || question.verb == "create") && name == node,
        _ => false,
    }
}

/// Says no in Kubernetes' words.
pub(crate) fn forbidden(user: &Identity, info: &RequestInfo) -> Status {
    let user_text = api::validation::quote(&user.user);
    if !info.is_resource {
        return Status::forbidden_path(&format!(
            "User {user_text} cannot {} path \"{}\"",
            info.verb, info.path
        ));
    }
    let scope = if info.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", info.namespace)
    };
    let why = format!(
        "User {user_text} cannot {} resource \"{}\" in API group \"{}\" {scope}",
        info.verb,
        info.resource_path(),
        info.group
    );
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

    fn may(user: &Identity, method: &Method, uri: &str) -> bool {
        let info = RequestInfo::parse(method, &uri.parse().unwrap());
        is_allowed(&question(user, &info))
    }

    #[test]
    fn nobody_may_read_health_and_version_alone() {
        let nobody = Identity::anonymous();
        for uri in ["/healthz", "/livez", "/readyz", "/version"] {
            assert!(may(&nobody, &Method::GET, uri), "{uri}");
        }
        for uri in [
            "/",
            "/api",
            "/apis",
            "/metrics",
            "/readyz/ping",
            "/api/v1/pods",
            "/openapi/v3",
            "/openid/v1/jwks",
        ] {
            assert!(!may(&nobody, &Method::GET, uri), "{uri}");
        }
        assert!(!may(&nobody, &Method::POST, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"));
    }

    #[test]
    fn a_service_account_may_discover_and_ask_about_itself() {
        let account = Identity::new("system:serviceaccount:default:default", &[SERVICE_ACCOUNTS]);
        for uri in
            ["/api", "/api/v1", "/apis/coordination.k8s.io/v1", "/openapi/v3/api/v1", "/openid/v1/jwks"]
        {
            assert!(may(&account, &Method::GET, uri), "{uri}");
        }
        assert!(may(&account, &Method::POST, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"));
        for uri in ["/api/v1/namespaces/default/pods", "/api/v1/namespaces/default/secrets/s", "/metrics"] {
            assert!(!may(&account, &Method::GET, uri), "{uri}");
        }
        assert!(!may(&account, &Method::POST, "/apis/authentication.k8s.io/v1/tokenreviews"));
    }

    #[test]
    fn a_kubelet_may_change_its_own_node_alone() {
        let node = Identity::node("one");
        assert!(may(&node, &Method::PATCH, "/api/v1/nodes/one/status"));
        assert!(!may(&node, &Method::PATCH, "/api/v1/nodes/two/status"));
        assert!(!may(&node, &Method::DELETE, "/api/v1/nodes/two"));
        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        assert!(may(&node, &Method::POST, leases));
        assert!(may(&node, &Method::PUT, &format!("{leases}/one")));
        assert!(!may(&node, &Method::PUT, &format!("{leases}/two")));
        assert!(!may(&node, &Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/default/leases/one"));
        assert!(may(&node, &Method::PATCH, "/api/v1/namespaces/a/pods/p/status"));
        assert!(!may(&node, &Method::PUT, "/api/v1/namespaces/a/pods/p"));
        assert!(!may(&node, &Method::POST, "/api/v1/namespaces/a/pods/p/exec"));
        assert!(!may(&node, &Method::PUT, "/api/v1/namespaces/a/secrets/s"));
        let impostor = Identity::new("system:node:one", &[]);
        assert!(!may(&impostor, &Method::PATCH, "/api/v1/nodes/one/status"));
    }

    #[test]
    fn the_scheduler_binds_and_reads_but_sees_no_secrets() {
        let scheduler = Identity::scheduler();
        assert!(may(&scheduler, &Method::POST, "/api/v1/namespaces/a/pods/p/binding"));
        assert!(may(&scheduler, &Method::GET, "/api/v1/pods?watch=true"));
        assert!(!may(&scheduler, &Method::GET, "/api/v1/namespaces/a/secrets/s"));
        assert!(!may(&scheduler, &Method::POST, "/api/v1/namespaces/a/pods/p/exec"));
    }

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
