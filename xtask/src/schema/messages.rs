//! Reads protobuf numbers and comment markers from `k8s-pb`'s generated sources.
//! As in `openapi`, the fixed layout of the files is matched line by line.

use std::collections::BTreeMap;
use std::path::Path;

use super::Error;
use super::model::{Message, MessageField, Messages};
use super::source::{read, rust_files};

/// Reads every message below `dir`.
pub(crate) fn read_messages(dir: &Path) -> Result<Messages, Error> {
    let mut messages = Messages::new();
    for path in rust_files(dir)? {
        if let Some(group_version) = group_version(path.strip_prefix(dir).unwrap_or(&path)) {
            // Long declarations are wrapped after the colon.
            let text = read(&path)?.replace(":\n        ", ": ");
            read_file(&text, &group_version, &mut messages);
        }
    }
    Ok(messages)
}

/// `api/core/v1/mod.rs` is `core.v1`.
fn group_version(path: &Path) -> Option<String> {
    let mut words: Vec<&str> = path.iter().filter_map(|word| word.to_str()).collect();
    if words.pop()? != "mod.rs" {
        return None;
    }
    let version = words.pop()?;
    Some(format!("{}.{version}", words.pop()?))
}

fn read_file(text: &str, group_version: &str, messages: &mut Messages) {
    let mut current: Option<(String, Message)> = None;
    let mut pending = MessageField::default();
    let mut is_atomic = false;
    for line in text.lines() {
        if line == "/// +structType=atomic" {
            is_atomic = true;
        } else if let Some(name) = line.strip_prefix("pub struct ") {
            let name = name.trim_end_matches(" {}").trim_end_matches(" {").to_lowercase();
            let message = Message { is_atomic: std::mem::take(&mut is_atomic), ..Message::default() };
            current = Some((format!("{group_version}.{name}"), message));
            pending = MessageField::default();
        } else if line == "}" {
            messages.extend(current.take());
        } else if let Some((_, message)) = &mut current {
            message.fields.extend(read_line(line.trim(), &mut pending));
        }
    }
}

/// Takes one line inside a message; gives the field when the line completes one.
fn read_line(line: &str, pending: &mut MessageField) -> Option<MessageField> {
    if let Some(marker) = line.strip_prefix("/// +") {
        let (name, value) = marker.split_once('=').unwrap_or((marker, ""));
        let joined =
            pending.markers.remove(name).map_or_else(|| value.to_owned(), |first| format!("{first},{value}"));
        pending.markers.insert(name.to_owned(), joined);
    } else if let Some((_, tail)) = line.split_once("tag = \"") {
        pending.number = tail.split('"').next()?.parse().ok()?;
    } else if let Some((name, ty)) = line.strip_prefix("pub ").and_then(|rest| rest.split_once(':')) {
        let mut field = std::mem::take(pending);
        field.key = name.trim_start_matches("r#").replace('_', "");
        field.message = ty
            .contains("Option<")
            .then(|| ty.trim_end_matches(',').trim_end_matches('>').rsplit(['<', ':']).next())
            .flatten()
            .map(str::to_lowercase);
        return Some(field);
    }
    None
}

/// Markers as a map, for callers that only want one.
pub(crate) fn marker<'a>(markers: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    markers.get(name).map(String::as_str)
}
