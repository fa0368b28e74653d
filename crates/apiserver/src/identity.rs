//! Who asks. An [`Identity`] is only ever made by the authenticator of a listener, or by this process for one of its
//! own roles; no header and no body of a request can make one.

use std::sync::Arc;

/// The group of everyone who proved who they are.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
/// The group of everyone who didn't.
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The group that may do everything.
pub(crate) const MASTERS: &str = "system:masters";
/// The group of kubelets.
pub(crate) const NODES: &str = "system:nodes";
/// The group of all service accounts.
pub(crate) const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// A user, as authorisation and reviews see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user's name, such as `system:node:worker`.
    pub user: String,
    /// The user's UID; service accounts have one.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// More about the user: name and values.
    pub extra: Vec<(String, Vec<String>)>,
}

impl Identity {
    /// A user who proved who they are; the group `system:authenticated` is added.
    pub fn new(user: impl Into<String>, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self { user: user.into(), uid: String::new(), groups, extra: Vec::new() }
    }

    /// The kubelet of a node.
    pub fn node(name: &str) -> Self {
        Self::new(format!("system:node:{name}"), &[NODES])
    }

    /// The scheduler.
    pub fn scheduler() -> Self {
        Self::new("system:kube-scheduler", &[])
    }

    /// The controllers.
    pub fn controller_manager() -> Self {
        Self::new("system:kube-controller-manager", &[])
    }

    /// Whoever may do everything.
    pub fn admin() -> Self {
        Self::new("kubernetes-admin", &[MASTERS])
    }

    /// Nobody.
    pub fn anonymous() -> Self {
        Self {
            user: "system:anonymous".to_owned(),
            uid: String::new(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            extra: Vec::new(),
        }
    }

    /// Whether the user is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|one| one == group)
    }

    /// The node whose kubelet this is.
    pub(crate) fn node_name(&self) -> Option<&str> {
        self.is_in(NODES).then(|| self.user.strip_prefix("system:node:")).flatten()
    }
}

/// The identity of a request, set by a listener or by [`crate::ApiServer::service_for`].
#[derive(Debug, Clone)]
pub(crate) struct RequestIdentity(pub(crate) Arc<Identity>);
