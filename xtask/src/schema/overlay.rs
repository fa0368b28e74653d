//! The facts that neither crate has, kept by hand in `overlay.txt`.
//! Each line is a section's word, then the type or value, then fields; `#` begins a comment.

use std::collections::BTreeMap;

use super::Error;
use super::model::{Field, Type};

const TEXT: &str = include_str!("overlay.txt");

/// Facts by type and field.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    facts: BTreeMap<String, Vec<(String, Fact)>>,
}

#[derive(Debug, Clone)]
enum Fact {
    Nullable,
    Embedded,
    Go(String),
    Numbers(Vec<u32>),
    List(String),
    Patch(String),
    Default(String),
}

/// Parses the overlay that is compiled in.
pub(crate) fn read_overlay() -> Result<Overlay, Error> {
    let mut overlay = Overlay::default();
    for (index, line) in TEXT.lines().enumerate() {
        let line = line.split(" #").next().unwrap_or_default().trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        read_line(line, &mut overlay)
            .ok_or_else(|| Error::Overlay { line: index + 1, text: line.to_owned() })?;
    }
    Ok(overlay)
}

fn read_line(line: &str, overlay: &mut Overlay) -> Option<()> {
    let (section, rest) = line.split_once(' ')?;
    let (subject, rest) = rest.trim().split_once(' ')?;
    match section {
        "nullable" => rest.split_whitespace().for_each(|field| overlay.add(subject, field, Fact::Nullable)),
        "embedded" => rest.split_whitespace().for_each(|field| overlay.add(subject, field, Fact::Embedded)),
        "go" => {
            for path in rest.split_whitespace() {
                let (ty, field) = path.rsplit_once('.')?;
                overlay.add(ty, field, Fact::Go(subject.to_owned()));
            }
        }
        "number" => {
            let (field, numbers) = rest.split_once(' ')?;
            let numbers = numbers.split('.').map(|number| number.parse().ok()).collect::<Option<_>>()?;
            overlay.add(subject, field, Fact::Numbers(numbers));
        }
        "list" | "patch" | "default" => {
            let (field, value) = rest.split_once(' ')?;
            let value = value.to_owned();
            overlay.add(
                subject,
                field,
                match section {
                    "list" => Fact::List(value),
                    "patch" => Fact::Patch(value),
                    _ => Fact::Default(value),
                },
            );
        }
        _ => return None,
    }
    Some(())
}

impl Overlay {
    fn add(&mut self, ty: &str, field: &str, fact: Fact) {
        self.facts.entry(ty.to_owned()).or_default().push((field.to_owned(), fact));
    }

    /// Applies the facts of one type.
    pub(crate) fn apply(&self, name: &str, ty: &mut Type) {
        for (json, fact) in self.facts.get(name).into_iter().flatten() {
            if let Some(field) = ty.fields.iter_mut().find(|field| field.json == *json) {
                apply_fact(field, fact.clone());
            }
        }
    }

    /// Facts about fields that do not exist: misspellings and leftovers.
    pub(crate) fn strays(&self, types: &super::model::Types) -> Vec<String> {
        let exists = |ty: &str, json: &str| {
            types.get(ty).is_some_and(|ty| ty.fields.iter().any(|field| field.json == json))
        };
        self.facts
            .iter()
            .flat_map(|(ty, facts)| facts.iter().map(move |(json, _)| (ty, json)))
            .filter(|(ty, json)| !exists(ty, json))
            .map(|(ty, json)| format!("{ty}.{json}"))
            .collect()
    }
}

fn apply_fact(field: &mut Field, fact: Fact) {
    match fact {
        Fact::Nullable => field.nullable = true,
        Fact::Embedded => field.embedded = true,
        Fact::Go(name) => field.go = Some(name),
        Fact::Numbers(numbers) => field.numbers = numbers,
        Fact::List(list) => field.list = Some(list),
        Fact::Patch(patch) => field.patch = Some(patch),
        Fact::Default(default) => field.default = Some(default),
    }
}
