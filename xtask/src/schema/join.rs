//! Joins the two readers by normalised names and applies the overlay.

use super::messages::marker;
use super::model::{Field, Message, MessageField, Messages, Type, Types};
use super::overlay::Overlay;

/// Numbers and markers of one field, found directly or inside an inlined message.
struct Found<'a> {
    numbers: Vec<u32>,
    field: &'a MessageField,
}

/// Completes `types` in place.
pub(crate) fn join(types: &mut Types, messages: &Messages, overlay: &Overlay) {
    for (name, ty) in types.iter_mut() {
        let group_version = name.rsplit_once('.').map_or("", |(head, _)| head);
        if let Some(message) = messages.get(&name.to_lowercase()) {
            join_type(ty, group_version, message, messages);
        }
        overlay.apply(name, ty);
        ty.fields.iter_mut().for_each(drop_zero_default);
    }
}

fn join_type(ty: &mut Type, group_version: &str, message: &Message, messages: &Messages) {
    ty.is_atomic = message.is_atomic;
    let keys: Vec<String> = ty.fields.iter().map(|field| key_of(&field.json)).collect();
    for (field, key) in ty.fields.iter_mut().zip(&keys) {
        let Some(found) = find(key, &keys, group_version, message, messages) else { continue };
        field.numbers = found.numbers;
        apply_markers(field, found.field);
    }
}

/// Looks for a field in the message itself, then in messages that JSON inlines.
/// A message field is inlined exactly when the JSON type has no field of its name.
fn find<'a>(
    key: &str,
    keys: &[String],
    group_version: &str,
    message: &'a Message,
    messages: &'a Messages,
) -> Option<Found<'a>> {
    if let Some(field) = message.fields.iter().find(|field| field.key == key) {
        return Some(Found { numbers: vec![field.number], field });
    }
    message.fields.iter().filter(|field| !keys.contains(&field.key)).find_map(|outer| {
        let inner = messages.get(&format!("{group_version}.{}", outer.message.as_deref()?))?;
        let mut found = find(key, keys, group_version, inner, messages)?;
        found.numbers.insert(0, outer.number);
        Some(found)
    })
}

/// A JSON name in the form of `MessageField::key`.
fn key_of(json: &str) -> String {
    json.trim_start_matches('$').replace('-', "").to_lowercase()
}

/// A default of zero says nothing where zero is absence.
fn drop_zero_default(field: &mut Field) {
    let is_zero = field.default.as_deref().is_some_and(|default| matches!(default, "\"\"" | "0" | "false"));
    if is_zero && !field.nullable {
        field.default = None;
    }
}

fn apply_markers(field: &mut Field, found: &MessageField) {
    // The type crate calls an optional field required when it has a default.
    if ["optional", "default"].iter().all(|marker| found.markers.contains_key(*marker)) {
        field.required = false;
    }
    if let Some(list) = marker(&found.markers, "listType") {
        field.list = match (list.trim(), marker(&found.markers, "listMapKey")) {
            ("map", Some(keys)) => Some(format!("map:{keys}")),
            (other, _) => Some(other.to_owned()),
        };
    }
    if marker(&found.markers, "mapType") == Some("atomic")
        || marker(&found.markers, "structType") == Some("atomic")
    {
        field.atomic_map = true;
    }
    field.granular = marker(&found.markers, "structType") == Some("granular");
    if let Some(strategy) = marker(&found.markers, "patchStrategy") {
        field.patch = Some(patch(strategy, marker(&found.markers, "patchMergeKey")));
    }
    if let Some(default) = marker(&found.markers, "default").filter(|default| !default.starts_with("ref(")) {
        field.default = Some(default.to_owned());
    }
}

fn patch(strategy: &str, key: Option<&str>) -> String {
    let strategy = strategy.replace(',', "+");
    key.map_or_else(|| strategy.clone(), |key| format!("{strategy}:{key}"))
}
