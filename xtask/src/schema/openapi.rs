//! Reads types, JSON names, required fields and list types from `k8s-openapi`'s generated sources.
//! Those files have one fixed layout, so lines are matched, not parsed as Rust.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::Error;
use super::model::{Field, Type, Types};
use super::source::{read, rust_files};

/// Reads every struct below `dir` that has an API definition.
pub(crate) fn read_types(dir: &Path) -> Result<Types, Error> {
    let mut types = Types::new();
    for path in rust_files(dir)? {
        let text = read(&path)?;
        if let Some((name, ty)) = read_type(&text) {
            types.insert(name, ty);
        }
    }
    Ok(types)
}

/// Short name of an API definition: `io.k8s.api.core.v1.Pod` is `core.v1.Pod`.
fn short_name(definition: &str) -> Option<String> {
    let tail = definition.strip_prefix("io.k8s.")?;
    let tail = match tail.strip_prefix("api.") {
        Some(rest) => rest,
        None => tail.split_once(".pkg.apis.")?.1,
    };
    Some(tail.to_owned())
}

fn read_type(text: &str) -> Option<(String, Type)> {
    let definition = text.lines().find_map(|line| line.strip_prefix("// Generated from definition "))?;
    let name = short_name(definition.trim())?;
    let json_names = json_names(text);
    let required = required(text);
    let merges = merges(text);
    let body = between(text, "\npub struct ", "\n}")?;
    let mut fields: Vec<Field> = body
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(": "))
        .filter_map(|(rust, ty)| {
            let rust = rust.trim_start_matches("r#");
            let json = json_names.get(rust)?.clone();
            let mut field = Field { shape: shape(ty.trim_end_matches(','))?, ..Field::default() };
            // The crate calls the metadata of every object required; the API does not.
            field.required = required.contains(&json) && json != "metadata";
            apply_merge(&mut field, merges.get(rust));
            field.json = json;
            Some(field)
        })
        .collect();
    if fields.is_empty() && !body.trim_end().ends_with('{') {
        return None;
    }
    let kind = kind(text);
    if kind.is_some() || name == "meta.v1.DeleteOptions" {
        for (json, shape) in [("apiVersion", "str"), ("kind", "str")] {
            if !fields.iter().any(|field| field.json == json) {
                fields.push(Field { json: json.to_owned(), shape: shape.to_owned(), ..Field::default() });
            }
        }
    }
    fields.sort_by(|a, b| a.json.cmp(&b.json));
    Some((name, Type { kind, is_atomic: false, fields }))
}

fn apply_merge(field: &mut Field, merge: Option<&Merge>) {
    match merge {
        Some(Merge::Atomic) if field.shape.starts_with("[]") => field.list = Some("atomic".to_owned()),
        Some(Merge::Atomic) => field.atomic_map = true,
        Some(Merge::Set) => field.list = Some("set".to_owned()),
        Some(Merge::Keyed(keys)) => {
            // The key is a field of the item; its JSON name follows the one rule that has no exception there.
            let keys: Vec<String> = keys.iter().map(|key| camel_case(key)).collect();
            field.list = Some(format!("map:{}", keys.join(",")));
        }
        None => {}
    }
}

/// `pub struct X {` … up to the closing brace, without the first line.
fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let from = text.find(start)?;
    let tail = text.get(from + start.len()..)?;
    let line = tail.lines().next()?;
    if line.ends_with(';') || line.ends_with('}') {
        return Some("{");
    }
    tail.get(line.len()..tail.find(end)?)
}

fn json_names(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| {
            let (json, key) = line.trim().split_once("\" => Field::Key_")?;
            Some((key.trim_end_matches(',').to_owned(), json.strip_prefix('"')?.to_owned()))
        })
        .collect()
}

fn required(text: &str) -> BTreeSet<String> {
    let Some((_, tail)) = text.split_once("\n            \"required\": [") else { return BTreeSet::new() };
    tail.lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with(']'))
        .filter_map(|line| Some(line.strip_prefix('"')?.strip_suffix("\",")?.to_owned()))
        .collect()
}

fn kind(text: &str) -> Option<(String, String, String)> {
    let constant = |name: &str| {
        let (_, tail) = text.split_once(&format!("    const {name}: &'static str = \""))?;
        Some(tail.split_once('"')?.0.to_owned())
    };
    Some((constant("GROUP")?, constant("VERSION")?, constant("KIND")?))
}

enum Merge {
    Atomic,
    Set,
    Keyed(Vec<String>),
}

/// The list and map rules of the `DeepMerge` implementation, by Rust field name.
fn merges(text: &str) -> BTreeMap<String, Merge> {
    let Some(body) = between(text, "impl crate::DeepMerge for ", "\n}") else { return BTreeMap::new() };
    let mut found = BTreeMap::new();
    for statement in body.split("        crate::").skip(1) {
        let Some((call, arguments)) = statement.split_once('(') else { continue };
        let Some((_, tail)) = arguments.split_once("&mut self.") else { continue };
        let field = tail.split(',').next().unwrap_or_default().trim_start_matches("r#").to_owned();
        let merge = match call {
            "merge_strategies::list::atomic" | "merge_strategies::map::atomic" => Merge::Atomic,
            "merge_strategies::list::set" => Merge::Set,
            "merge_strategies::list::map" => Merge::Keyed(closure_keys(arguments)),
            _ => continue,
        };
        found.insert(field, merge);
    }
    found
}

fn closure_keys(arguments: &str) -> Vec<String> {
    arguments
        .split("|lhs, rhs| lhs.")
        .skip(1)
        .filter_map(|tail| Some(tail.split_once(" == ")?.0.trim_start_matches("r#").to_owned()))
        .collect()
}

fn camel_case(snake: &str) -> String {
    let mut words = snake.split('_');
    let mut name = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        name.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        name.push_str(letters.as_str());
    }
    name
}

/// The table's notation for a Rust type.
fn shape(rust: &str) -> Option<String> {
    if let Some(inner) = generic(rust, "Option<").or_else(|| generic(rust, "std::boxed::Box<")) {
        return shape(inner);
    }
    if let Some(inner) = generic(rust, "std::vec::Vec<") {
        return Some(format!("[]{}", shape(inner)?));
    }
    if let Some(inner) = generic(rust, "std::collections::BTreeMap<std::string::String, ") {
        return Some(format!("{{}}{}", shape(inner)?));
    }
    let plain = match rust {
        "std::string::String" => "str",
        "bool" => "bool",
        "i32" => "i32",
        "i64" => "i64",
        "f64" => "f64",
        "crate::ByteString" => "bytes",
        "crate::serde_json::Value" => "json",
        _ => return reference(rust.strip_prefix("crate::")?),
    };
    Some(plain.to_owned())
}

fn generic<'a>(rust: &'a str, prefix: &str) -> Option<&'a str> {
    rust.strip_prefix(prefix)?.strip_suffix('>')
}

fn reference(path: &str) -> Option<String> {
    let words: Vec<&str> = path.split("::").collect();
    let (name, version, group) = match words.as_slice() {
        [.., group, version, name] => (*name, *version, *group),
        _ => (*words.last()?, "", ""),
    };
    let special = match name {
        "Quantity" => "quantity",
        "IntOrString" => "intstr",
        "Time" => "time",
        "MicroTime" => "microtime",
        "RawExtension" => "raw",
        "FieldsV1" => "fields",
        "JSON" => "json",
        "JSONSchemaPropsOrArray" => "schema-or-array",
        "JSONSchemaPropsOrBool" => "schema-or-bool",
        "JSONSchemaPropsOrStringArray" => "schema-or-strings",
        _ => return Some(format!("{group}.{version}.{name}")),
    };
    Some(special.to_owned())
}
