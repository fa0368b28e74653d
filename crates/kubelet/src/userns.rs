//! What a Pod says of its user namespace, and with which IDs the runtime is asked for one.
//!
//! `spec.hostUsers` is honoured or refused, never dropped; where it is not `false` the policy decides
//! (`pod::worker::fence`). `false` needs a runtime handler that says it can, and the
//! IDs come from the ID space through [`IdAllocator`]. The order is observable: the handler is asked before anything
//! is allocated, so that a refusal leaves no state.

use std::collections::HashSet;

use cri::v1;
use k8s_openapi::api::core::v1::Pod;
use userns::{IdMappings, LiveSandbox};

use crate::idspace::{IdSpace, IdSpaceError};
use crate::uid::PodUid;

/// Gives Pods their host IDs and takes them back. Calls block for disk; async callers use a blocking thread.
pub trait IdAllocator: Send + Sync {
    /// The Pod's mappings: those it has, or new ones, recorded durably before this returns.
    ///
    /// # Errors
    /// When no IDs can be given to the Pod, with the reason for its user.
    fn get_or_create(&self, pod: &PodUid) -> Result<IdMappings, IdSpaceError>;
    /// Whether the Pod has a record of IDs, good or bad.
    fn is_recorded(&self, pod: &PodUid) -> bool;
    /// Refuses new IDs to the Pod from now on.
    fn terminate(&self, pod: &PodUid);
    /// Frees the Pod's IDs; the caller knows that nothing of the Pod runs.
    ///
    /// # Errors
    /// When the record cannot be removed; the IDs then stay held.
    fn release(&self, pod: &PodUid) -> Result<(), IdSpaceError>;
    /// Drops what is still remembered of a Pod that is gone for good.
    fn forget(&self, pod: &PodUid);
    /// Frees the IDs of Pods that neither the API nor the runtime knows.
    ///
    /// # Errors
    /// When the records cannot be listed; nothing is freed then.
    fn reconcile(&self, known: &HashSet<PodUid>, live: &[LiveSandbox]) -> Result<Vec<PodUid>, IdSpaceError>;
}

impl IdAllocator for IdSpace {
    fn get_or_create(&self, pod: &PodUid) -> Result<IdMappings, IdSpaceError> {
        Self::get_or_create(self, pod)
    }

    fn is_recorded(&self, pod: &PodUid) -> bool {
        Self::is_recorded(self, pod)
    }

    fn terminate(&self, pod: &PodUid) {
        Self::terminate(self, pod);
    }

    fn release(&self, pod: &PodUid) -> Result<(), IdSpaceError> {
        Self::release(self, pod)
    }

    fn forget(&self, pod: &PodUid) {
        Self::forget(self, pod);
    }

    fn reconcile(&self, known: &HashSet<PodUid>, live: &[LiveSandbox]) -> Result<Vec<PodUid>, IdSpaceError> {
        Self::reconcile(self, known, live)
    }
}

/// What `spec.hostUsers` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The gate is off and nothing is asked: the runtime is told nothing.
    Unspoken,
    /// The node's IDs, or nothing: the policy decides.
    Policy,
    /// IDs of the Pod's own.
    Own,
}

/// Why a Pod cannot have the IDs it asks for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum UsernsError {
    #[error("the feature gate \"UserNamespacesSupport\" is disabled: can't set spec.HostUsers")]
    GateOff,
    #[error("can't set `spec.hostUsers: false`, runtime does not support user namespaces{0}")]
    Runtime(HandlerDetail),
    #[error(
        "can't set `spec.hostUsers: false`, RuntimeClass handler {0:?} does not support user namespaces{1}"
    )]
    Handler(String, HandlerDetail),
}

/// What more is known about a handler without support.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HandlerDetail {
    /// The handler says that it cannot.
    Refuses,
    /// The runtime lists no handlers.
    NoneListed,
    /// The runtime lists others.
    Unknown(String),
}

impl std::fmt::Display for HandlerDetail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refuses => Ok(()),
            Self::NoneListed => f.write_str(": runtime handlers are not set"),
            Self::Unknown(name) => write!(f, ": the handler {name:?} is not known"),
        }
    }
}

/// Decides by the gate and the field.
pub(crate) fn plan_wish(pod: &Pod, is_gate_on: bool) -> Result<Wish, UsernsError> {
    let host_users = pod.spec.as_ref().and_then(|spec| spec.host_users);
    match (is_gate_on, host_users) {
        (false, None) => Ok(Wish::Unspoken),
        (false, Some(_)) => Err(UsernsError::GateOff),
        (true, None | Some(true)) => Ok(Wish::Policy),
        (true, Some(false)) => Ok(Wish::Own),
    }
}

/// Checks that the runtime handler (empty for the default one) can make user namespaces.
pub(crate) fn check_handler(handlers: &[v1::RuntimeHandler], name: &str) -> Result<(), UsernsError> {
    let refuse = |detail| {
        if name.is_empty() {
            UsernsError::Runtime(detail)
        } else {
            UsernsError::Handler(name.to_owned(), detail)
        }
    };
    if handlers.is_empty() {
        return Err(refuse(HandlerDetail::NoneListed));
    }
    let Some(handler) = handlers.iter().find(|handler| handler.name == name) else {
        return Err(refuse(HandlerDetail::Unknown(name.to_owned())));
    };
    let supported = handler.features.as_ref().is_some_and(|features| features.user_namespaces);
    if supported { Ok(()) } else { Err(refuse(HandlerDetail::Refuses)) }
}

/// A Pod's user namespace as the runtime is asked for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum PodUserns {
    /// Nothing is said: an old runtime, or the gate is off.
    #[default]
    Unspoken,
    /// The node's IDs.
    Node,
    /// These IDs.
    Own(IdMappings),
}

impl PodUserns {
    /// The Pod's own mappings, if it has some.
    pub(crate) fn mappings(&self) -> Option<&IdMappings> {
        match self {
            Self::Own(mappings) => Some(mappings),
            Self::Unspoken | Self::Node => None,
        }
    }

    /// The CRI message for sandboxes and containers.
    pub(crate) fn options(&self) -> Option<v1::UserNamespace> {
        let own = |lines: &[userns::IdMapping]| lines.iter().map(cri_mapping).collect();
        match self {
            Self::Unspoken => None,
            Self::Node => {
                Some(v1::UserNamespace { mode: v1::NamespaceMode::Node.into(), ..Default::default() })
            }
            Self::Own(mappings) => Some(v1::UserNamespace {
                mode: v1::NamespaceMode::Pod.into(),
                uids: own(&mappings.uids),
                gids: own(&mappings.gids),
            }),
        }
    }
}

/// One mapping in CRI's form.
pub(crate) fn cri_mapping(line: &userns::IdMapping) -> v1::IdMapping {
    v1::IdMapping { host_id: line.host_id, container_id: line.container_id, length: line.length }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(host_users: Option<bool>) -> Pod {
        serde_json::from_value(json!({"spec": {"hostUsers": host_users, "containers": []}})).unwrap()
    }

    fn handler(name: &str, user_namespaces: bool) -> v1::RuntimeHandler {
        let features = v1::RuntimeHandlerFeatures { user_namespaces, ..Default::default() };
        v1::RuntimeHandler { name: name.into(), features: Some(features) }
    }

    #[test]
    fn the_gate_and_the_field_decide() {
        for (gate, field, expected) in [
            (true, None, Ok(Wish::Policy)),
            (true, Some(true), Ok(Wish::Policy)),
            (true, Some(false), Ok(Wish::Own)),
            (false, None, Ok(Wish::Unspoken)),
            (false, Some(true), Err(UsernsError::GateOff)),
            (false, Some(false), Err(UsernsError::GateOff)),
        ] {
            assert_eq!(plan_wish(&pod(field), gate), expected, "gate {gate}, hostUsers {field:?}");
        }
        let text = UsernsError::GateOff.to_string();
        assert_eq!(text, "the feature gate \"UserNamespacesSupport\" is disabled: can't set spec.HostUsers");
    }

    #[test]
    fn f01_to_f03_a_handler_without_support_is_refused_by_name() {
        let handlers = [handler("", true), handler("plain", false)];
        assert_eq!(check_handler(&handlers, ""), Ok(()));
        let text =
            |handlers: &[v1::RuntimeHandler], name| check_handler(handlers, name).unwrap_err().to_string();
        assert_eq!(
            text(&handlers, "plain"),
            "can't set `spec.hostUsers: false`, RuntimeClass handler \"plain\" does not support user namespaces"
        );
        assert_eq!(
            text(&[handler("", false)], ""),
            "can't set `spec.hostUsers: false`, runtime does not support user namespaces"
        );
        assert_eq!(
            text(&handlers, "other"),
            "can't set `spec.hostUsers: false`, RuntimeClass handler \"other\" does not support user namespaces: the handler \"other\" is not known"
        );
        assert_eq!(
            text(&[], ""),
            "can't set `spec.hostUsers: false`, runtime does not support user namespaces: runtime handlers are not set"
        );
    }
}
