//! What no compiler checks: which crate may depend on which, how long files get, that every dependency says why it is
//! there, and that every case of the specification has its test. It reports everything that it finds, not just the first.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::cases::Cases;

/// Our crates and those of ours that each may use. ARCHITECTURE.md explains the table.
const ALLOWED: &[(&str, &[&str])] = &[
    ("userns", &[]),
    ("api", &[]),
    ("sys", &[]),
    ("store", &[]),
    ("stream", &[]),
    ("cri", &[]),
    ("image", &[]),
    ("network", &[]),
    ("systemd", &["sys"]),
    ("shim", &["sys"]),
    ("runtime", &["cri", "image", "network", "shim", "stream", "sys", "systemd", "userns"]),
    ("kubelet", &["api", "cri", "informer", "stream", "sys", "systemd", "userns"]),
    ("apiserver", &["api", "store", "stream", "userns"]),
    ("informer", &[]),
    ("controller", &["api", "informer"]),
    ("scheduler", &["api", "informer"]),
];

/// They stand above the table: the binary composes all crates, the others test and build them.
const FREE: &[&str] = &["kakoi", "tests", "xtask"];

/// A file longer than this has more than one subject.
const LONGEST_FILE: usize = 800;

const VAGUE_NAMES: &[&str] = &["utils", "util", "common", "helpers", "manager", "misc"];

pub(crate) fn run() -> Result<(), Box<dyn Error>> {
    let metadata = metadata(None)?;
    let root = PathBuf::from(metadata.get("workspace_root").and_then(Value::as_str).unwrap_or("."));
    let fuzzing = self::metadata(Some(&root.join("fuzz/Cargo.toml")))?;
    let mut faults = crate_faults(&metadata);
    let mut files = Vec::new();
    rust_files(&root, &mut files)?;
    let mut cases = Cases::default();
    for file in &files {
        let text = fs::read_to_string(file)?;
        let shown = file.strip_prefix(&root).unwrap_or(file);
        cases.note(&shown.to_string_lossy(), &text);
        faults.extend(file_faults(shown, &text));
    }
    faults.extend(cases.faults());
    faults.extend(dependency_faults(&root, &[&metadata, &fuzzing])?);
    if faults.is_empty() {
        return Ok(());
    }
    Err(format!("{} faults:\n  {}", faults.len(), faults.join("\n  ")).into())
}

/// What is in a workspace: this one, or that of a manifest.
fn metadata(manifest: Option<&Path>) -> Result<Value, Box<dyn Error>> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--format-version", "1", "--no-deps"]);
    if let Some(manifest) = manifest {
        command.arg("--manifest-path").arg(manifest);
    }
    let output = command.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata.get("packages").and_then(Value::as_array).into_iter().flatten()
}

fn name_of(package: &Value) -> &str {
    package.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// Names of a package's dependencies of the given kind: `None` for the normal ones.
fn dependencies<'a>(package: &'a Value, kind: Option<&'a str>) -> impl Iterator<Item = &'a str> {
    let all = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
    all.filter(move |d| d.get("kind").and_then(Value::as_str) == kind).map(name_of)
}

fn crate_faults(metadata: &Value) -> Vec<String> {
    let ours: BTreeSet<&str> = packages(metadata).map(name_of).collect();
    let mut faults = Vec::new();
    for package in packages(metadata) {
        let name = name_of(package);
        if FREE.contains(&name) {
            continue;
        }
        let Some((_, allowed)) = ALLOWED.iter().find(|(krate, _)| *krate == name) else {
            faults.push(format!(
                "crate `{name}` is not in the table of xtask/src/tidy.rs; say what it may depend on"
            ));
            continue;
        };
        let used = dependencies(package, None).filter(|used| ours.contains(used));
        let wrong = used.filter(|used| !allowed.contains(used));
        faults
            .extend(wrong.map(|used| {
                format!("crate `{name}` depends on `{used}`; ARCHITECTURE.md does not allow it")
            }));
    }
    faults
}

fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            if !(name.starts_with('.') || name == "target" || name == "gen") {
                rust_files(&entry.path(), files)?;
            }
        } else if entry.path().extension().is_some_and(|e| e == "rs") {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn file_faults(file: &Path, text: &str) -> Vec<String> {
    let shown = file.display();
    let mut faults = Vec::new();
    let lines = text.lines().count();
    if lines > LONGEST_FILE {
        faults.push(format!("{shown} has {lines} lines; {LONGEST_FILE} at most: which subjects are in it?"));
    }
    let is_test = file.file_stem().and_then(|stem| stem.to_str()).is_some_and(|stem| stem.ends_with("tests"));
    if !is_test && !text.starts_with("//!") && !text.starts_with("#![") {
        faults.push(format!("{shown} does not begin with `//!`: say what it does and what it refuses to do"));
    }
    if file.file_stem().and_then(|stem| stem.to_str()).is_some_and(|stem| VAGUE_NAMES.contains(&stem)) {
        faults.push(format!("{shown} is named after nothing; name its subject"));
    }
    faults
}

/// Every external dependency has a line in docs/dependencies.md that begins with its name.
fn dependency_faults(root: &Path, workspaces: &[&Value]) -> Result<Vec<String>, Box<dyn Error>> {
    let page = fs::read_to_string(root.join("docs/dependencies.md"))?;
    let explained: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let all = || workspaces.iter().flat_map(|metadata| packages(metadata));
    let ours: BTreeSet<&str> = all().map(name_of).collect();
    let kinds = [None, Some("dev"), Some("build")];
    let used: BTreeSet<&str> =
        all().flat_map(|p| kinds.into_iter().flat_map(|kind| dependencies(p, kind))).collect();
    let missing = used.iter().filter(|name| !ours.contains(*name) && !explained.contains(*name));
    let stale = explained.iter().filter(|name| !used.contains(*name));
    Ok(missing
        .map(|name| format!("docs/dependencies.md has no line for `{name}`"))
        .chain(stale.map(|name| format!("docs/dependencies.md explains `{name}`, which nothing uses")))
        .collect())
}
