//! `kakoi check`: what this machine lacks for Pods in user namespaces, found out by doing it. A table of checks, each a
//! look at the [`Machine`] and a plain verdict on what was seen; nothing is changed, and what is made is removed.

mod kernel;
mod machine;
mod network;
mod node;

#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::cli::{OutputFormat, Query};
use crate::config::{Config, ConfigError, Flags};
use crate::output;

use machine::{Machine, ThisMachine};

/// Why the checks can't be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("can't find the root: {0}")]
    Root(#[from] std::io::Error),
    #[error("can't print as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// All is well.
    Ok,
    /// Pods run, but something will not be as one would expect.
    Warning,
    /// Pods in user namespaces can't run.
    Missing,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Missing => "missing",
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    state: State,
    /// What is so, and why.
    cause: String,
    /// A command to paste, or what else to do; empty where nothing is to be done.
    remedy: String,
}

impl Verdict {
    fn ok(cause: impl Into<String>) -> Self {
        Self { state: State::Ok, cause: cause.into(), remedy: String::new() }
    }

    fn warning(cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Warning, cause: cause.into(), remedy: remedy.into() }
    }

    fn missing(cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Missing, cause: cause.into(), remedy: remedy.into() }
    }
}

/// One row of the table.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    /// What it does.
    pub(crate) does: &'static str,
    /// What it means when it fails.
    pub(crate) means: &'static str,
    run: fn(&dyn Machine) -> Verdict,
}

/// The table. What later checks build on comes first.
pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "root",
        does: "asks the kernel who it is and what it may",
        means: "nothing can be made for Pods",
        run: kernel::root,
    },
    Check {
        name: "user-namespace",
        does: "makes a user namespace that maps the highest IDs that a Pod may be given",
        means: "no Pod can have a user namespace",
        run: kernel::user_namespace,
    },
    Check {
        name: "namespace-limits",
        does: "reads user.max_*_namespaces",
        means: "at a limit the kernel says \"No space left on device\"",
        run: kernel::namespace_limits,
    },
    Check {
        name: "nested-namespaces",
        does: "reads the switches of Debian and AppArmor against user namespaces of programs without root",
        means: "Pods are made by root and are not affected; what makes namespaces inside a Pod is",
        run: kernel::nested,
    },
    Check {
        name: "id-mapped-state",
        does: "ID-maps a mount of the directory with images and containers",
        means: "no root filesystem can belong to a Pod's IDs",
        run: kernel::id_mapped_state,
    },
    Check {
        name: "id-mapped-pods",
        does: "ID-maps a mount of the Pods' directory",
        means: "volumes are written with the Pods' own IDs instead, hostPath volumes there are refused",
        run: kernel::id_mapped_pods,
    },
    Check {
        name: "id-mapped-tmpfs",
        does: "ID-maps a tmpfs",
        means: "volumes in memory are written with the Pods' own IDs instead",
        run: kernel::id_mapped_tmpfs,
    },
    Check {
        name: "overlay",
        does: "mounts an overlay over an ID-mapped layer",
        means: "no root filesystem can be made without a copy",
        run: kernel::overlay,
    },
    Check {
        name: "seccomp",
        does: "installs the default profile in a thread of its own",
        means: "containers can't be kept from system calls",
        run: kernel::seccomp,
    },
    Check {
        name: "apparmor",
        does: "asks the kernel whether AppArmor runs",
        means: "a profile that a Pod names can't be applied",
        run: kernel::apparmor,
    },
    Check {
        name: "oom-score",
        does: "lowers its own oom_score_adj and puts it back",
        means: "when memory runs out, shims and Guaranteed Pods are not spared",
        run: kernel::oom_score,
    },
    Check {
        name: "id-pool",
        does: "reads the sub-ID files, accounts, systemd's ranges and other instances' claims, and plans the pool",
        means: "Pods get no IDs",
        run: node::id_pool,
    },
    Check {
        name: "id-overlaps",
        does: "looks for what others hold within the pool",
        means: "those IDs are left out of it",
        run: node::id_overlaps,
    },
    Check {
        name: "cgroups",
        does: "makes a control group and removes it, and looks for cpu, memory and pids",
        means: "Pods can't be limited",
        run: node::cgroups,
    },
    Check {
        name: "runtime-handlers",
        does: "asks the OCI runtimes that a RuntimeClass can choose what they can do",
        means: "its Pods don't run, or not in user namespaces",
        run: node::handlers,
    },
    Check {
        name: "disk",
        does: "asks for free space and inodes below the state directory",
        means: "below a tenth the node takes no Pods",
        run: node::disk,
    },
    Check {
        name: "inotify",
        does: "makes an inotify instance",
        means: "changed ConfigMaps, logs and device changes are not noticed",
        run: node::inotify,
    },
    Check {
        name: "open-files",
        does: "reads the limit of open files",
        means: "many Pods end with \"Too many open files\"",
        run: node::open_files,
    },
    Check {
        name: "clock",
        does: "asks the kernel whether its clock is kept right",
        means: "certificates and tokens may count as expired",
        run: node::clock,
    },
    Check {
        name: "nftables",
        does: "has nft check a table like the Pod network's",
        means: "Pods have no network",
        run: network::nftables,
    },
    Check {
        name: "forward-chains",
        does: "lists chains of other programs that drop forwarded packets",
        means: "kakoi puts tagged rules there while it runs",
        run: network::forward_chains,
    },
    Check {
        name: "forwarding",
        does: "reads net.ipv4.ip_forward",
        means: "Pods reach nothing beyond the node",
        run: network::forwarding,
    },
    Check {
        name: "ports",
        does: "listens on the API server's and the kubelet's ports",
        means: "the node does not start",
        run: network::ports,
    },
    Check {
        name: "other-node-software",
        does: "looks for processes of other kubelets and container engines",
        means: "two kubelets in one directory destroy each other's Pods; engines are no harm",
        run: node::others,
    },
];

/// A row of the report.
#[derive(Debug, Serialize)]
struct Line {
    name: &'static str,
    state: State,
    cause: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
    does: &'static str,
    means: &'static str,
}

/// Prints the report; `false` when something is missing.
pub(crate) fn check(query: &Query) -> Result<bool, CheckError> {
    let places = crate::places(&query.instance)?;
    let config = Config::load(&places, &Flags::default())?;
    Ok(report(&ThisMachine::new(places, config), query.output.output)?)
}

fn report(machine: &dyn Machine, format: OutputFormat) -> Result<bool, serde_json::Error> {
    let lines = run_all(machine);
    match format {
        OutputFormat::Json => output::line(serde_json::to_string_pretty(&lines)?),
        OutputFormat::Text => {
            lines.iter().map(text).for_each(output::line);
            output::line(summary(&lines));
        }
    }
    Ok(lines.iter().all(|line| line.state != State::Missing))
}

fn run_all(machine: &dyn Machine) -> Vec<Line> {
    CHECKS.iter().map(|check| line(check, (check.run)(machine))).collect()
}

fn line(check: &'static Check, verdict: Verdict) -> Line {
    let Verdict { state, cause, remedy } = verdict;
    Line { name: check.name, state, cause, remedy, does: check.does, means: check.means }
}

/// One line: how it is, what was checked, why, what it means and what to do.
fn text(line: &Line) -> String {
    let head = format!("{:<8} {:<20} {}", line.state.as_str(), line.name, line.cause);
    match line.state {
        State::Ok => head,
        _ if line.remedy.is_empty() => format!("{head}: {}", line.means),
        _ => format!("{head}: {}; {}", line.means, line.remedy),
    }
}

fn summary(lines: &[Line]) -> String {
    let count = |state| lines.iter().filter(|line| line.state == state).count();
    let (missing, warnings) = (count(State::Missing), count(State::Warning));
    match missing {
        0 => format!("Pods can run in user namespaces here ({warnings} warnings)."),
        _ => format!("{missing} missing: Pods in user namespaces don't run here ({warnings} warnings)."),
    }
}
