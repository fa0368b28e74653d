//! Whether a Pod gets a user namespace of its own: one function of what the Pod says, what the node's policy is and
//! what the node has found out. It decides and explains; it asks nobody and changes nothing.
//!
//! `spec.hostUsers` is the user's word and is honoured or refused. Where it is absent the policy decides.

mod find;
mod pod;
mod reason;

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use pod::{Container, PodFacts, PodSpec, Volume};
pub use reason::{Finding, REASONS, Reason, ReasonInfo};

/// The namespace label that overrules the node's policy for the namespace's Pods.
pub const POLICY_LABEL: &str = "kakoi.dev/user-namespaces";

/// What absent `hostUsers` means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The node's IDs, as in Kubernetes.
    OptIn,
    /// A user namespace, unless something forbids it; what, is said.
    #[default]
    Default,
    /// A user namespace, or the Pod is refused.
    Always,
}

impl Policy {
    /// All policies, the weakest first.
    pub const ALL: [Self; 3] = [Self::OptIn, Self::Default, Self::Always];

    /// The name in the configuration and in the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OptIn => "opt-in",
            Self::Default => "default",
            Self::Always => "always",
        }
    }

    /// The policy that holds in a namespace: its label's, else the node's. With the feature off it is `opt-in`.
    ///
    /// # Errors
    /// For a label that names no policy.
    pub fn in_force(self, label: Option<&str>, is_feature_on: bool) -> Result<Self, UnknownPolicy> {
        if !is_feature_on {
            return Ok(Self::OptIn);
        }
        label.map_or(Ok(self), str::parse)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that names no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no policy for user namespaces; there are `opt-in`, `default` and `always`")]
pub struct UnknownPolicy(pub String);

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.as_str() == text)
            .ok_or_else(|| UnknownPolicy(text.to_owned()))
    }
}

/// What is known beside the Pod. The default knows nothing: what only the node can tell is then taken to be fine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Why the Pod's runtime handler makes no user namespaces; `None` when it does.
    pub handler: Option<String>,
    /// The numeric users of the containers' images, by container.
    pub image_users: Vec<(String, i64)>,
    /// What was found at volumes of the node.
    pub volumes: Vec<(String, VolumeFact)>,
}

/// What the node has found at a volume's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeFact {
    /// A socket.
    Socket(String),
    /// A device node.
    Device(String),
    /// A path whose links lead to another one, below /proc, /sys or /dev for example.
    LeadsTo(String),
    /// The filesystem can't be ID-mapped.
    NotMappable {
        /// The path.
        path: String,
        /// The filesystem's name, as in /proc/mounts.
        filesystem: String,
    },
}

/// Everything that [`decide`] looks at.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The Pod.
    pub pod: &'a PodFacts,
    /// The policy in force in its namespace.
    pub policy: Policy,
    /// The length of a Pod's ID range.
    pub ids_per_pod: u32,
    /// What the node knows.
    pub node: &'a NodeFacts,
}

/// Why a Pod is fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// It says `hostUsers: false`.
    Requested,
    /// It says nothing, and the policy does it.
    Policy(Policy),
}

/// What becomes of a Pod. The lists are never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It gets a user namespace of its own.
    Fenced(Basis),
    /// It runs with the node's IDs.
    Exempt(Vec<Finding>),
    /// It does not run.
    Refused(Vec<Finding>),
}

impl Decision {
    /// `Fenced`, `Exempt` or `Refused`.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Fenced(_) => "fenced",
            Self::Exempt(_) => "exempt",
            Self::Refused(_) => "refused",
        }
    }

    /// What it rests on, in the order in which it was found; nothing for a fenced Pod.
    pub fn findings(&self) -> &[Finding] {
        match self {
            Self::Fenced(_) => &[],
            Self::Exempt(found) | Self::Refused(found) => found,
        }
    }

    /// One word for machines: the first reason, or why the Pod is fenced.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Fenced(Basis::Requested) => "Requested",
            Self::Fenced(Basis::Policy(_)) => "FencedByPolicy",
            Self::Exempt(found) | Self::Refused(found) => {
                found.first().map_or("Unknown", |finding| finding.reason.name())
            }
        }
    }
}

/// Decides. See the module's documentation.
pub fn decide(question: Question<'_>) -> Decision {
    let asked = question.pod.spec.host_users;
    let refuse_or_exempt = |found| match question.policy {
        Policy::Always => Decision::Refused(found),
        Policy::OptIn | Policy::Default => Decision::Exempt(found),
    };
    match asked {
        Some(true) => {
            refuse_or_exempt(vec![Finding::new(Reason::HostUsersTrue, "the Pod says `hostUsers: true`")])
        }
        None if question.policy == Policy::OptIn => {
            Decision::Exempt(vec![Finding::new(Reason::NotAsked, "the Pod says nothing of `hostUsers`")])
        }
        Some(false) => {
            let hard: Vec<Finding> =
                obstacles(question).into_iter().filter(|f| f.reason.info().is_hard).collect();
            if hard.is_empty() { Decision::Fenced(Basis::Requested) } else { Decision::Refused(hard) }
        }
        None => {
            let found = obstacles(question);
            if found.is_empty() {
                Decision::Fenced(Basis::Policy(question.policy))
            } else {
                refuse_or_exempt(found)
            }
        }
    }
}

/// Everything about the Pod that does not go with a user namespace, whatever the policy and `hostUsers` say.
pub fn obstacles(question: Question<'_>) -> Vec<Finding> {
    find::all(question)
}
