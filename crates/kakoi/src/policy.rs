//! `kakoi policy explain`: which Pods of a set of manifests would be fenced, which not and why, and what to change. It
//! reads files and asks nobody: what only a node can tell (the images' users, the filesystems below claims) is taken to
//! be fine, and that is said.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use api::access::{Access, metadata};
use api::codec::{Expected, decode_value, documents};
use api::template::{pod_of, spec_path};
use serde::Serialize;
use serde_json::Value;
use userns::policy::{
    Basis, Decision, Finding, NodeFacts, POLICY_LABEL, PodFacts, Policy, Question, decide, obstacles,
};

use crate::cli::{Explain, OutputFormat};
use crate::output;

/// Why manifests can't be explained.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExplainError {
    #[error("can't read {}: {cause}", .path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error("{}: {cause}", .path.display())]
    Parse { path: PathBuf, cause: String },
    #[error("no manifest was found: a directory is searched for .yaml, .yml and .json")]
    Nothing,
    #[error("can't print as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// An object as it stands in a file.
#[derive(Debug)]
struct Manifest {
    file: PathBuf,
    object: Value,
}

/// What is said of one object.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explained {
    kind: String,
    namespace: String,
    name: String,
    file: String,
    policy: Policy,
    /// `fenced`, `exempt`, `refused`, or `unreadable`.
    decision: &'static str,
    /// Why; empty for a Pod that the policy fences.
    reasons: Vec<Because>,
    /// What else the reader should know.
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Because {
    reason: &'static str,
    sentence: String,
    remedy: String,
}

/// Prints what becomes of the Pods in the files.
pub(crate) fn explain(command: &Explain) -> Result<(), ExplainError> {
    let mut manifests = Vec::new();
    for path in &command.files {
        manifests.extend(read(path)?);
    }
    if manifests.is_empty() {
        return Err(ExplainError::Nothing);
    }
    let explained = explain_all(&manifests, command);
    match command.output.output {
        OutputFormat::Json => output::line(serde_json::to_string_pretty(&explained)?),
        OutputFormat::Text => describe(&explained).iter().for_each(output::line),
    }
    Ok(())
}

/// All objects of a file, of a directory's files, or of standard input.
fn read(path: &Path) -> Result<Vec<Manifest>, ExplainError> {
    let read_error = |cause| ExplainError::Read { path: path.to_owned(), cause };
    if path == Path::new("-") {
        let mut text = Vec::new();
        io::stdin().lock().read_to_end(&mut text).map_err(read_error)?;
        return parse(Path::new("standard input"), &text);
    }
    if !fs::metadata(path).map_err(read_error)?.is_dir() {
        return parse(path, &fs::read(path).map_err(read_error)?);
    }
    let mut entries: Vec<PathBuf> =
        fs::read_dir(path).map_err(read_error)?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    let mut found = Vec::new();
    for entry in entries.iter().filter(|entry| entry.is_dir() || is_manifest(entry)) {
        found.extend(read(entry)?);
    }
    Ok(found)
}

fn is_manifest(path: &Path) -> bool {
    path.extension()
        .is_some_and(|end| ["yaml", "yml", "json"].iter().any(|known| end.eq_ignore_ascii_case(known)))
}

fn parse(path: &Path, text: &[u8]) -> Result<Vec<Manifest>, ExplainError> {
    let found = documents(text).map_err(|cause| ExplainError::Parse { path: path.to_owned(), cause })?;
    let mut objects = Vec::new();
    for object in found {
        flatten(object, &mut objects);
    }
    Ok(objects.into_iter().map(|object| Manifest { file: path.to_owned(), object }).collect())
}

/// The object, or the items of a list of objects.
fn flatten(object: Value, into: &mut Vec<Value>) {
    if object.text("kind").ends_with("List") && object.field("items").is_some_and(Value::is_array) {
        object.list("items").iter().for_each(|item| flatten(item.clone(), into));
    } else {
        into.push(object);
    }
}

fn explain_all(manifests: &[Manifest], command: &Explain) -> Vec<Explained> {
    let labels = policies(manifests);
    let each = manifests.iter().filter_map(|manifest| {
        let pod = pod_of(manifest.object.text("kind"), &manifest.object)?;
        let namespace = metadata(&manifest.object).text("namespace");
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        let policy = labels.get(namespace).copied().unwrap_or(command.user_namespaces);
        Some(explain_one(manifest, pod, namespace, (policy, command.ids_per_pod)))
    });
    each.collect()
}

/// The policies that namespaces among the manifests set by label.
fn policies(manifests: &[Manifest]) -> BTreeMap<String, Policy> {
    let namespaces = manifests.iter().map(|m| &m.object).filter(|object| object.text("kind") == "Namespace");
    let labelled = namespaces.filter_map(|object| {
        let label = metadata(object).map("labels")?.get(POLICY_LABEL)?.as_str()?;
        Some((metadata(object).text("name").to_owned(), label.parse().ok()?))
    });
    labelled.collect()
}

fn explain_one(
    manifest: &Manifest,
    pod: &Value,
    namespace: &str,
    (policy, ids_per_pod): (Policy, u32),
) -> Explained {
    let (object, kind) = (&manifest.object, manifest.object.text("kind"));
    let name = [metadata(object).text("name"), metadata(object).text("generateName")];
    let mut explained = Explained {
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.into_iter().find(|name| !name.is_empty()).unwrap_or("(no name)").to_owned(),
        file: manifest.file.display().to_string(),
        policy,
        decision: "unreadable",
        reasons: Vec::new(),
        notes: Vec::new(),
    };
    let path = spec_path(kind);
    match typed(pod)
        .and_then(|(pod, unknown)| Ok((PodFacts::read(&pod).map_err(|e| e.to_string())?, unknown)))
    {
        Err(cause) => explained.notes.push(format!("the Pod at {path} can't be read: {cause}")),
        Ok((facts, unknown)) => {
            let node = NodeFacts::default();
            let question = Question { pod: &facts, policy, ids_per_pod, node: &node };
            let decision = decide(question);
            explained.decision = decision.outcome();
            explained.reasons = decision.findings().iter().map(because).collect();
            explained.notes.extend(unknown.into_iter().map(|field| format!("{field}: it would be dropped")));
            explained.notes.extend(notes(question, &decision));
        }
    }
    explained
}

/// The Pod read as the API server would, with the fields that it does not know.
fn typed(pod: &Value) -> Result<(Value, Vec<String>), String> {
    let Some(root) = api::schema::type_named("core.v1.PodTemplateSpec") else {
        return Ok((pod.clone(), Vec::new()));
    };
    let expected = Expected { group: "", version: "v1", kind: "Pod", also: &[] };
    let mut template = pod.clone();
    if let Some(fields) = template.as_object_mut() {
        fields.retain(|name, _| name == "metadata" || name == "spec");
    }
    let decoded = decode_value(&template, root, expected).map_err(|error| error.to_string())?;
    Ok((decoded.object, decoded.unknown))
}

fn because(finding: &Finding) -> Because {
    Because {
        reason: finding.reason.name(),
        sentence: finding.to_string(),
        remedy: finding.remedy().to_owned(),
    }
}

/// What a reader should know beside the decision: what does not work inside a user namespace that was asked for, and
/// what only the node will see.
fn notes(question: Question<'_>, decision: &Decision) -> Vec<String> {
    let mut notes = Vec::new();
    if *decision == Decision::Fenced(Basis::Requested) {
        notes.push("it says `hostUsers: false`".to_owned());
        let soft = obstacles(question);
        notes.extend(soft.iter().map(|finding| format!("{finding}; {}", finding.remedy())));
    }
    if matches!(decision, Decision::Fenced(_)) {
        let claims = question.pod.spec.volumes.iter().filter_map(userns::policy::Volume::claim);
        notes.extend(claims.map(|claim| {
            format!("the node decides by the filesystem of the claim `{claim}`: NFS and most FUSE filesystems can't be ID-mapped")
        }));
    }
    notes
}

fn describe(explained: &[Explained]) -> Vec<String> {
    let mut lines: Vec<String> = explained.iter().flat_map(paragraph).collect();
    let count = |decision| explained.iter().filter(|one| one.decision == decision).count();
    let (all, fenced) = (explained.len(), count("fenced"));
    let share = (fenced * 100).checked_div(all).unwrap_or_default();
    let mut summary = format!(
        "{fenced} of {all} fenced ({share} %), {} exempt, {} refused",
        count("exempt"),
        count("refused")
    );
    let unreadable = count("unreadable");
    if unreadable > 0 {
        // Writing to a string cannot fail.
        let _ = write!(summary, ", {unreadable} unreadable");
    }
    lines.push(summary);
    if fenced > 0 {
        lines.push(
            "The node looks further at the images' numeric users and at what hostPath volumes really are."
                .to_owned(),
        );
    }
    lines
}

fn paragraph(one: &Explained) -> Vec<String> {
    let head = format!(
        "{} {}/{}: {}  ({}, policy `{}`)",
        one.kind, one.namespace, one.name, one.decision, one.file, one.policy
    );
    let because = one.reasons.iter().flat_map(|because| {
        [format!("  because {}", because.sentence), format!("  change: {}", because.remedy)]
    });
    let notes = one.notes.iter().map(|note| format!("  note: {note}"));
    std::iter::once(head).chain(because).chain(notes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn run(text: &str, flags: &[&str]) -> String {
        let line = ["kakoi", "policy", "explain", "-f", "-"].into_iter().chain(flags.iter().copied());
        let cli = crate::cli::Cli::parse_from(line);
        let crate::cli::Command::Policy(policy) = cli.command else { panic!("not `policy`") };
        let crate::cli::PolicyCommand::Explain(command) = policy.command;
        let manifests = parse(Path::new("m.yaml"), text.as_bytes()).unwrap();
        describe(&explain_all(&manifests, &command)).join("\n")
    }

    const POD: &str = "kind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: nginx}]}\n";

    #[test]
    fn a_plain_pod_is_fenced_and_the_share_is_told() {
        let text = run(POD, &[]);
        assert!(text.starts_with("Pod default/web: fenced  (m.yaml, policy `default`)\n1 of 1 fenced (100 %), 0 exempt, 0 refused"), "{text}");
    }

    #[test]
    fn a_template_two_levels_down_is_read_and_told_why() {
        let text = run(
            "kind: CronJob\nmetadata: {name: backup, namespace: ops}\nspec: {jobTemplate: {spec: {template: {spec: {hostNetwork: true, containers: []}}}}}\n",
            &[],
        );
        assert!(text.contains("CronJob ops/backup: exempt"), "{text}");
        assert!(text.contains("  because `hostNetwork: true`: the node's network belongs"), "{text}");
        assert!(text.contains("  change: use the Pod network"), "{text}");
    }

    #[test]
    fn lists_are_opened_and_objects_without_pods_are_passed_over() {
        let text = run(
            "kind: List\nitems:\n- {kind: ConfigMap, metadata: {name: x}}\n- {kind: Deployment, metadata: {name: d}, spec: {template: {spec: {containers: []}}}}\n",
            &[],
        );
        assert!(text.starts_with("Deployment default/d: fenced"), "{text}");
        assert!(text.contains("1 of 1 fenced"), "{text}");
    }

    #[test]
    fn a_namespaces_label_among_the_manifests_overrules_the_flag() {
        let namespace =
            "kind: Namespace\nmetadata: {name: default, labels: {kakoi.dev/user-namespaces: always}}\n---\n";
        let pod = "kind: Pod\nmetadata: {name: p}\nspec: {hostPID: true, containers: []}\n";
        assert!(
            run(&format!("{namespace}{pod}"), &["--user-namespaces", "opt-in"])
                .contains("default/p: refused")
        );
        assert!(run(pod, &["--user-namespaces", "opt-in"]).contains("default/p: exempt"));
    }

    #[test]
    fn a_misspelt_field_is_told_since_it_would_leave_the_pod_unfenced() {
        let text = run("kind: Pod\nmetadata: {name: p}\nspec: {hostUser: false, containers: []}\n", &[]);
        assert!(text.contains("hostUser") && text.contains("it would be dropped"), "{text}");
    }

    #[test]
    fn a_wrong_type_is_told_with_its_place() {
        let text = run("kind: Pod\nmetadata: {name: p}\nspec: {hostNetwork: maybe, containers: []}\n", &[]);
        assert!(text.contains("default/p: unreadable") && text.contains("can't be read"), "{text}");
    }
}
