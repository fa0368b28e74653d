//! Profiles of the node's (`Localhost`): JSON documents as the OCI runtime specification has them, with the container
//! engines' `archMap`, `includes` and `excludes`, compiled to the same kind of program as the default profile.
//!
//! What can't be honoured (a listener, an unknown flag) is refused. Names of system calls that no ABI of this machine
//! has are passed over, as everywhere: profiles name those of all architectures.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::assemble::{Abi, Action, Check, Comparison, Rule, Test, assemble};
use super::{ABIS, Column, bytes, first_unknown, numbers};

/// Instructions of a program that the kernel takes at most.
const MAX_INSTRUCTIONS: usize = 4096;

/// A profile.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    pub(super) default_action: ActionName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) default_errno_ret: Option<u16>,
    #[serde(default)]
    pub(super) architectures: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) arch_map: Vec<ArchMap>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) flags: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) listener_path: String,
    #[serde(default)]
    pub(super) syscalls: Vec<Entry>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    #[serde(default)]
    pub(super) names: Vec<String>,
    pub(super) action: ActionName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) errno_ret: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) args: Option<Vec<Arg>>,
    #[serde(default, skip_serializing)]
    pub(super) includes: Filter,
    #[serde(default, skip_serializing)]
    pub(super) excludes: Filter,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Filter {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    #[serde(default)]
    min_kernel: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Arg {
    pub(super) index: u8,
    pub(super) value: u64,
    #[serde(default)]
    pub(super) value_two: u64,
    pub(super) op: Operator,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    Masked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) enum ActionName {
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    #[serde(rename = "SCMP_ACT_NOTIFY")]
    Notify,
}

/// Why a profile can't be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Decisions by a process outside are not made here.
    #[error(
        "it asks for decisions by a listener (SCMP_ACT_NOTIFY, listenerPath), which this runtime does not have"
    )]
    Listener,
    /// A flag that is not known or not possible.
    #[error(
        "it has the flag {0}, which this runtime does not know; those known are SECCOMP_FILTER_FLAG_LOG, _SPEC_ALLOW and _TSYNC"
    )]
    Flag(String),
    /// System calls have six arguments.
    #[error("it tests argument {index} of {name}; arguments are 0 to 5")]
    Argument {
        /// The system call.
        name: String,
        /// Its argument.
        index: u8,
    },
    /// A kernel version that is none.
    #[error("its minKernel {0:?} is no version like \"4.8\"")]
    Kernel(String),
    /// The kernel takes no longer program.
    #[error(
        "its program has {0} instructions, and the kernel takes {MAX_INSTRUCTIONS}; shorten the list of arguments"
    )]
    Length(usize),
}

/// A compiled profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The program, for [`super::install`].
    pub program: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_…`
    pub flags: u32,
}

/// Compiles a profile for a container whose bounding set is `capabilities`. `kernel` is the release, e.g. `6.1.0`.
///
/// # Errors
/// See [`DocumentError`].
pub fn compile_document(
    document: &Document,
    capabilities: u64,
    kernel: &str,
) -> Result<Compiled, DocumentError> {
    if !document.listener_path.is_empty() {
        return Err(DocumentError::Listener);
    }
    let flags = document.flags.iter().try_fold(0, |flags, name| Ok(flags | flag(name)?))?;
    let default = action(document.default_action, document.default_errno_ret)?;
    let mut entries = Vec::new();
    for entry in &document.syscalls {
        if applies(entry, capabilities, kernel)? {
            entries.push((entry, action(entry.action, entry.errno_ret)?));
        }
    }
    let mut abis = Vec::new();
    for (name, architecture, column) in ABIS {
        if is_listed(document, name) {
            let rules = rules(&entries, default, *column)?;
            let unknown = if is_refusal(document.default_action) { Action::UNKNOWN } else { default };
            let first_unknown = first_unknown(*column);
            abis.push(Abi { architecture: *architecture, rules, default, first_unknown, unknown });
        }
    }
    let program = assemble(&abis);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(DocumentError::Length(program.len()));
    }
    Ok(Compiled { program: bytes(&program), flags })
}

/// The machine's own ABI always; another one if the profile names it: without rules for it, it is closed.
pub(super) fn is_listed(document: &Document, name: &str) -> bool {
    let own = ABIS.first().map_or("", |(own, ..)| own);
    let with_own = document.arch_map.iter().filter(|map| map.architecture == own);
    name == own
        || document.architectures.iter().any(|listed| listed == name)
        || with_own.flat_map(|map| &map.sub_architectures).any(|listed| listed == name)
}

fn is_refusal(action: ActionName) -> bool {
    !matches!(action, ActionName::Allow | ActionName::Log | ActionName::Trace)
}

fn flag(name: &str) -> Result<u32, DocumentError> {
    match name {
        // All threads: there is one.
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(0),
        "SECCOMP_FILTER_FLAG_LOG" => Ok(2),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(4),
        _ => Err(DocumentError::Flag(name.to_owned())),
    }
}

fn action(name: ActionName, number: Option<u16>) -> Result<Action, DocumentError> {
    const EPERM: u16 = 1;
    let data = u32::from(number.unwrap_or(EPERM));
    Ok(match name {
        ActionName::KillThread => Action(0),
        ActionName::KillProcess => Action::KILL_PROCESS,
        ActionName::Trap => Action(0x0003_0000),
        ActionName::Errno => Action(0x0005_0000 | data),
        ActionName::Trace => Action(0x7ff0_0000 | data),
        ActionName::Log => Action(0x7ffc_0000),
        ActionName::Allow => Action::ALLOW,
        ActionName::Notify => return Err(DocumentError::Listener),
    })
}

/// Whether an entry counts for this container on this machine.
pub(super) fn applies(entry: &Entry, capabilities: u64, kernel: &str) -> Result<bool, DocumentError> {
    let has = |name: &String| {
        let bare = name.strip_prefix("CAP_").unwrap_or(name);
        crate::capability::mask_of(bare).is_some_and(|bit| capabilities & bit != 0)
    };
    let is_here = |name: &String| matches_machine(name);
    let is_new_enough = |filter: &Filter| match &filter.min_kernel {
        Some(least) => Ok(version(kernel)? >= version(least)?),
        None => Ok(true),
    };
    let Filter { caps, arches, .. } = &entry.includes;
    let includes = caps.iter().all(has)
        && (arches.is_empty() || arches.iter().any(is_here))
        && is_new_enough(&entry.includes)?;
    let excluded_kernel = entry.excludes.min_kernel.is_some() && is_new_enough(&entry.excludes)?;
    let Filter { caps, arches, .. } = &entry.excludes;
    Ok(includes && !caps.iter().any(has) && !arches.iter().any(is_here) && !excluded_kernel)
}

/// Go's names of architectures, which these filters use.
fn matches_machine(name: &str) -> bool {
    match std::env::consts::ARCH {
        "x86_64" => matches!(name, "amd64" | "x86" | "x32"),
        "aarch64" => matches!(name, "arm64"),
        other => name == other,
    }
}

/// The first two numbers.
fn version(text: &str) -> Result<(u32, u32), DocumentError> {
    let mut parts = text.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(DocumentError::Kernel(text.to_owned())),
    }
}

/// The rules of one ABI: an entry without arguments decides alone; else the entries are tried in order.
fn rules(
    entries: &[(&Entry, Action)],
    default: Action,
    column: Column,
) -> Result<Vec<(u32, Rule)>, DocumentError> {
    let by_name: BTreeMap<&str, u32> = numbers(column).map(|(number, name)| (name, number)).collect();
    let mut rules: BTreeMap<u32, Rule> = BTreeMap::new();
    let mut decided: std::collections::BTreeSet<u32> = std::collections::BTreeSet::new();
    for (entry, action) in entries {
        let checks = checks(entry, *action)?;
        for number in entry.names.iter().filter_map(|name| by_name.get(name.as_str())) {
            let rule = rules.entry(*number).or_insert_with(|| Rule::always(default));
            if decided.contains(number) {
                continue;
            }
            if checks.is_empty() {
                *rule = Rule::always(*action);
                decided.insert(*number);
            } else {
                rule.checks.extend(checks.iter().cloned());
            }
        }
    }
    Ok(rules.into_iter().collect())
}

/// All tests of an entry must hold; where it tests one argument twice, each by itself is meant (as runc has it).
fn checks(entry: &Entry, action: Action) -> Result<Vec<Check>, DocumentError> {
    let args = entry.args.as_deref().unwrap_or_default();
    if let Some(wrong) = args.iter().find(|arg| arg.index > 5) {
        let name = entry.names.first().cloned().unwrap_or_default();
        return Err(DocumentError::Argument { name, index: wrong.index });
    }
    let tests: Vec<Test> = args.iter().map(test).collect();
    let is_repeated =
        |(at, test): (usize, &Test)| tests.iter().skip(at + 1).any(|other| other.index == test.index);
    Ok(match tests.as_slice() {
        [] => Vec::new(),
        tests if tests.iter().enumerate().any(is_repeated) => {
            tests.iter().map(|test| Check { tests: vec![*test], action }).collect()
        }
        tests => vec![Check { tests: tests.to_vec(), action }],
    })
}

fn test(Arg { index, value, value_two, op }: &Arg) -> Test {
    let (comparison, value) = match op {
        Operator::Equal => (Comparison::Equal, *value),
        Operator::NotEqual => (Comparison::NotEqual, *value),
        Operator::Less => (Comparison::Less, *value),
        Operator::LessOrEqual => (Comparison::LessOrEqual, *value),
        Operator::Greater => (Comparison::Greater, *value),
        Operator::GreaterOrEqual => (Comparison::GreaterOrEqual, *value),
        Operator::Masked => (Comparison::Masked(*value), *value_two),
    };
    Test { index: *index, comparison, value }
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
