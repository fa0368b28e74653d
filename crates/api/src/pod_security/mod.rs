//! The Pod Security Standards (`privileged`, `baseline`, `restricted`) as namespaces ask for them by label: which checks
//! a Pod fails, in Kubernetes' words. From version 1.35 on a Pod that says `hostUsers: false` may do more; one that the
//! node's policy alone fences may not, since only its spec is looked at.

mod baseline;
mod label;
mod pod;
mod restricted;

#[cfg(test)]
mod tests;

use std::fmt;

use serde_json::Value;

use pod::Pod;

pub use label::{LevelVersion, Modes, PREFIX, validate_labels};

/// How strict a namespace is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything is allowed.
    #[default]
    Privileged,
    /// What is known to give the node away is not.
    Baseline,
    /// Only what follows the practice of hardening.
    Restricted,
}

impl Level {
    /// Its name in a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// The minor version of Kubernetes whose standards count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// The newest that is known.
    #[default]
    Latest,
    /// `v1.N`.
    Minor(u32),
}

impl Version {
    fn reaches(self, since: u32) -> bool {
        match self {
            Self::Latest => true,
            Self::Minor(minor) => minor >= since,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Minor(minor) => write!(f, "v1.{minor}"),
        }
    }
}

/// What a check says of a Pod that fails it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Violation {
    reason: String,
    detail: String,
}

impl Violation {
    #[expect(
        clippy::unnecessary_wraps,
        reason = "each check ends with it, and answers `None` where it finds nothing"
    )]
    fn new(reason: impl Into<String>, detail: impl Into<String>) -> Option<Self> {
        Some(Self { reason: reason.into(), detail: detail.into() })
    }
}

/// One version of one check.
struct Check {
    /// Its name; several rows of one name are its versions.
    id: &'static str,
    level: Level,
    /// The first minor version that has it so.
    since: u32,
    /// The check of `baseline` that it takes the place of.
    replaces: &'static str,
    run: fn(Pod<'_>) -> Option<Violation>,
}

const fn check(id: &'static str, since: u32, run: fn(Pod<'_>) -> Option<Violation>) -> Check {
    Check { id, level: Level::Baseline, since, replaces: "", run }
}

const fn strict(
    id: &'static str,
    since: u32,
    replaces: &'static str,
    run: fn(Pod<'_>) -> Option<Violation>,
) -> Check {
    Check { id, level: Level::Restricted, since, replaces, run }
}

/// All checks, `baseline` first, by name and version. Source: the Pod Security Standards of Kubernetes 1.36.
const CHECKS: &[Check] = &[
    check("appArmorProfile", 0, baseline::app_armor),
    check("capabilities_baseline", 0, baseline::capabilities),
    check("hostNamespaces", 0, baseline::host_namespaces),
    check("hostPathVolumes", 0, baseline::host_paths),
    check("hostPorts", 0, baseline::host_ports),
    check("hostProbesAndhostLifecycle", 34, baseline::probe_hosts),
    check("privileged", 0, baseline::privileged),
    check("procMount", 0, baseline::proc_mount),
    check("procMount", 35, baseline::proc_mount_unless_fenced),
    check("seLinuxOptions", 0, baseline::se_linux_before_31),
    check("seLinuxOptions", 31, baseline::se_linux),
    check("seccompProfile_baseline", 0, baseline::seccomp),
    check("sysctls", 0, baseline::sysctls_0),
    check("sysctls", 27, baseline::sysctls_27),
    check("sysctls", 29, baseline::sysctls_29),
    check("sysctls", 32, baseline::sysctls_32),
    check("windowsHostProcess", 0, baseline::host_process),
    strict("allowPrivilegeEscalation", 8, "", restricted::privilege_escalation),
    strict("capabilities_restricted", 22, "capabilities_baseline", restricted::capabilities),
    strict("procMount_restricted", 35, "procMount", restricted::proc_mount),
    strict("restrictedVolumes", 0, "hostPathVolumes", restricted::volumes),
    strict("runAsNonRoot", 0, "", restricted::non_root),
    strict("runAsNonRoot", 35, "", restricted::non_root_unless_fenced),
    strict("runAsUser", 23, "", restricted::user),
    strict("runAsUser", 35, "", restricted::user_unless_fenced),
    strict("seccompProfile_restricted", 19, "seccompProfile_baseline", restricted::seccomp),
];

/// The checks of a level and version: of each its newest version, without those that others replace.
fn checks(standard: LevelVersion) -> impl Iterator<Item = &'static Check> {
    let is_in = move |check: &&Check| check.level <= standard.level && standard.version.reaches(check.since);
    let newest = move |check: &&Check| {
        let mut others = CHECKS.iter().filter(is_in);
        !others.any(|other| other.id == check.id && other.since > check.since)
    };
    let is_replaced =
        move |check: &&Check| CHECKS.iter().filter(is_in).any(|other| other.replaces == check.id);
    CHECKS.iter().filter(is_in).filter(newest).filter(move |check| !is_replaced(check))
}

/// What a Pod or Pod template violates of a standard, as Kubernetes words it; `None` when it keeps to it.
pub fn violations(standard: LevelVersion, pod: &Value) -> Option<String> {
    if standard.level == Level::Privileged {
        return None;
    }
    let found = checks(standard).filter_map(|check| (check.run)(Pod::new(pod)));
    let texts: Vec<String> = found.map(|found| format!("{} ({})", found.reason, found.detail)).collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}
