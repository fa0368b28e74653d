//! Prints the table in the notation that `api::schema` reads.

use std::fmt::Write as _;

use super::model::{Field, Type, Types};

const HEADER: &str = "\
# The schema table of the Kubernetes 1.36 API. Made by `cargo xtask schema`; do not edit.
# A line without indent begins a type: name, then group/version/Kind for top-level objects, then `atomic`
# where server-side apply owns objects of the type as a whole.
# A field: JSON name, shape, then facts. Shapes: []X list, {}X map, a type's name, or a scalar.
# Facts: req; list=atomic|set|map:keys; atomic; granular (although the type is atomic); patch=strategy:key; pb=number (n.m where JSON inlines a message);
# null (zero differs from absent); embed (a struct that is always present); go=named type; default=JSON (to the line's end).
";

/// The whole table as text.
pub(crate) fn table(types: &Types) -> String {
    let mut text = String::from(HEADER);
    for (name, ty) in types {
        write_type(&mut text, name, ty);
    }
    text
}

fn write_type(text: &mut String, name: &str, ty: &Type) {
    text.push_str(name);
    if let Some((group, version, kind)) = &ty.kind {
        let _ = write!(text, " {group}/{version}/{kind}");
    }
    if ty.is_atomic {
        text.push_str(" atomic");
    }
    text.push('\n');
    for field in &ty.fields {
        write_field(text, field);
    }
}

fn write_field(text: &mut String, field: &Field) {
    let _ = write!(text, " {} {}", field.json, field.shape);
    for (flag, word) in [
        (field.required, "req"),
        (field.atomic_map, "atomic"),
        (field.granular, "granular"),
        (field.nullable, "null"),
        (field.embedded, "embed"),
    ] {
        if flag {
            let _ = write!(text, " {word}");
        }
    }
    let numbers: Vec<String> = field.numbers.iter().map(u32::to_string).collect();
    let numbers = (!numbers.is_empty()).then(|| numbers.join("."));
    for (word, value) in [
        ("list", &field.list),
        ("patch", &field.patch),
        ("pb", &numbers),
        ("go", &field.go),
        ("default", &field.default),
    ] {
        if let Some(value) = value {
            let _ = write!(text, " {word}={value}");
        }
    }
    text.push('\n');
}
