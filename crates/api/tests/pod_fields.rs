//! `docs/pod-fields.md` beside the schema table: no field of a Pod is forgotten there, none is made up, and the tests
//! that it names are there.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use api::schema;

/// What no test shows by itself, for the node agent does nothing with it.
const WITHOUT_TEST: [&str; 3] = ["preemptionPolicy", "schedulingGroup", "windowsOptions"];

/// A row of the document.
struct Row {
    section: String,
    fields: Vec<String>,
    shown_by: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Words in backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn rows() -> Vec<Row> {
    let text = fs::read_to_string(root().join("docs/pod-fields.md")).unwrap();
    let mut section = String::new();
    let mut rows = Vec::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            title.clone_into(&mut section);
        }
        let cells: Vec<&str> = line.split('|').collect();
        let [_, fields, _, shown_by, _] = cells.as_slice() else { continue };
        let fields = quoted(fields);
        if !fields.is_empty() {
            rows.push(Row { section: section.clone(), fields, shown_by: shown_by.trim().to_owned() });
        }
    }
    rows
}

/// The fields of the document's section.
fn documented(section: &str) -> BTreeSet<String> {
    rows().into_iter().filter(|row| row.section == section).flat_map(|row| row.fields).collect()
}

/// The fields of the schema's types.
fn in_schema(types: &[&str]) -> BTreeSet<String> {
    let fields = types.iter().flat_map(|name| schema::type_named(name).unwrap().fields);
    fields.map(|field| field.json.to_owned()).collect()
}

#[test]
fn every_field_of_a_pod_has_its_row() {
    assert_eq!(documented("The Pod"), in_schema(&["core.v1.PodSpec"]));
    let contexts = in_schema(&["core.v1.PodSecurityContext", "core.v1.SecurityContext"]);
    assert_eq!(documented("Security contexts"), contexts);
    let mut volumes = in_schema(&["core.v1.Volume"]);
    volumes.remove("name");
    assert_eq!(documented("Volumes"), volumes);
    let mut containers = in_schema(&["core.v1.Container"]);
    containers.remove("securityContext");
    assert_eq!(documented("Containers"), containers);
    let ephemeral = in_schema(&["core.v1.EphemeralContainer"]);
    let more: Vec<&String> = ephemeral.difference(&containers).collect();
    assert_eq!(
        more,
        ["securityContext", "targetContainerName"],
        "an ephemeral container has a container's fields"
    );
}

/// All Rust sources below a directory, but for what is built.
fn sources(directory: &Path, text: &mut String) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_row_names_tests_that_are_there() {
    let mut text = String::new();
    for directory in ["crates", "tests"] {
        sources(&root().join(directory), &mut text);
    }
    for row in rows() {
        let fields = row.fields.join(", ");
        let needs_none = row.fields.iter().all(|field| WITHOUT_TEST.contains(&field.as_str()));
        assert!(needs_none || !row.shown_by.is_empty(), "no test shows {fields}");
        for name in quoted(&row.shown_by).iter().filter(|name| !name.contains('/')) {
            assert!(text.contains(&format!("fn {name}(")), "there is no test {name}, which shows {fields}");
        }
    }
}
