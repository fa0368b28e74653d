//! Strategic merge: maps are merged member by member, lists by the merge keys of the schema table,
//! and a patch's directives (`$patch`, `$setElementOrder`, `$deleteFromPrimitiveList`, `$retainKeys`) are carried out.

use serde_json::{Map, Value};

use super::order::{Key, arrange, check_patch_order, identity, no_merge_key};
use super::{PatchError, go_text};
use crate::schema::{Field, FieldKind, Patch, Type};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList";
const ELEMENT_ORDER: &str = "$setElementOrder";

type Members = Map<String, Value>;

/// What is known of the members of a map.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// The fields of a type.
    Type(&'static Type),
    /// Free keys with values of one kind.
    Values(FieldKind),
    /// Nothing.
    Free,
}

/// How the value of one member is merged.
struct Member {
    shape: Shape,
    patch: Patch,
}

impl Shape {
    pub(super) fn of(root: &'static Type) -> Self {
        Self::Type(root)
    }

    fn below(kind: FieldKind) -> Self {
        match kind {
            FieldKind::Ref(ty) => Self::Type(ty.get()),
            FieldKind::List(item) => Self::below(*item),
            FieldKind::Map(item) => Self::Values(*item),
            _ => Self::Free,
        }
    }

    /// How the member of this name is merged; unknown members of a type are an error once they must be merged.
    fn member(self, name: &str) -> Result<Member, PatchError> {
        match self {
            Self::Type(ty) => {
                let field: &Field = ty.field(name).ok_or_else(|| PatchError::Unfit {
                    reason: format!(
                        "unable to find api field in struct {} for the json field {name:?}",
                        ty.go_name()
                    ),
                })?;
                Ok(Member { shape: Self::below(field.kind), patch: field.patch })
            }
            Self::Values(kind) => Ok(Member { shape: Self::below(kind), patch: Patch::default() }),
            Self::Free => Ok(Member { shape: Self::Free, patch: Patch::default() }),
        }
    }
}

/// Merges a patch into a map.
pub(super) fn merge(mut original: Members, mut patch: Members, shape: Shape) -> Result<Members, PatchError> {
    if let Some(directive) = patch.shift_remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Members::new()),
            _ => Err(bad_directive(&directive, patch)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    merge_ordered_lists(&mut original, &mut patch, shape)?;
    for (key, value) in patch {
        match key.strip_prefix(DELETE_FROM) {
            Some(rest) => delete_from(&mut original, rest, value, shape)?,
            None => merge_member(&mut original, key, value, shape)?,
        }
    }
    Ok(original)
}

fn bad_directive(directive: &Value, mut patch: Members) -> PatchError {
    patch.insert(DIRECTIVE.to_owned(), directive.clone());
    let (directive, map) = (go_text(directive), go_text(&Value::Object(patch)));
    PatchError::Unfit { reason: format!("unknown patch type: {directive} in map: {map}") }
}

fn merge_member(original: &mut Members, key: String, value: Value, shape: Shape) -> Result<(), PatchError> {
    if value.is_null() {
        original.shift_remove(&key);
        return Ok(());
    }
    let Some(slot) = original.get_mut(&key) else {
        if let Some(value) = without_directives(value, Nulls::Dropped) {
            original.insert(key, value);
        }
        return Ok(());
    };
    match (std::mem::take(slot), value) {
        (Value::Object(old), Value::Object(new)) => {
            let member = shape.member(&key)?;
            *slot = Value::Object(if member.patch.replace { new } else { merge(old, new, member.shape)? });
        }
        (Value::Array(old), Value::Array(new)) => {
            let member = shape.member(&key)?;
            *slot = Value::Array(if member.patch.merge { merge_list(old, new, &member)? } else { new });
        }
        (_, value) => match without_directives(value, Nulls::Dropped) {
            Some(value) => *slot = value,
            None => {
                original.shift_remove(&key);
            }
        },
    }
    Ok(())
}

/// `$retainKeys: [a, b]` clears all other members, and the patch may set no other.
fn retain_keys(original: &mut Members, patch: &mut Members) -> Result<(), PatchError> {
    let Some(directive) = patch.shift_remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keys) = directive else { return Err(PatchError::BadRetainKeys) };
    let retained = |key: &String| keys.iter().any(|name| name.as_str() == Some(key));
    let is_directive = |key: &str| key.starts_with(DELETE_FROM) || key.starts_with(ELEMENT_ORDER);
    if patch.iter().any(|(key, value)| !value.is_null() && !is_directive(key) && !retained(key)) {
        return Err(PatchError::BadRetainKeys);
    }
    original.retain(|key, _| retained(key));
    Ok(())
}

/// `$setElementOrder/list: [...]` merges that list and puts it in the given order.
fn merge_ordered_lists(original: &mut Members, patch: &mut Members, shape: Shape) -> Result<(), PatchError> {
    let directives: Vec<String> =
        patch.keys().filter(|key| key.starts_with(ELEMENT_ORDER)).cloned().collect();
    for directive in directives {
        let name = directive.split_once('/').filter(|(head, _)| *head == ELEMENT_ORDER).map(|(_, name)| name);
        let name = name.ok_or(PatchError::BadElementOrder)?.to_owned();
        let order = list(patch.shift_remove(&directive).unwrap_or_default())?;
        let old = original.get(&name).cloned().map(list).transpose()?;
        let new = patch.shift_remove(&name).filter(|value| !value.is_null()).map(list).transpose()?;
        let member = shape.member(&name)?;
        let key = member.patch.key;
        check_patch_order(new.as_deref().unwrap_or_default(), &order, key)?;
        let live = old.clone().unwrap_or_default();
        let merged = match (old, new) {
            (None, None) => continue,
            (Some(old), None) => old,
            (None, Some(new)) => without_directives_in_list(new, Nulls::Kept),
            (Some(old), Some(new)) if member.patch.merge => merge_list(old, new, &member)?,
            (Some(_), Some(new)) => new,
        };
        check_items(&merged)?;
        original.insert(name, Value::Array(arrange(merged, &order, &live, key)?));
    }
    Ok(())
}

fn list(value: Value) -> Result<Vec<Value>, PatchError> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(PatchError::Unfit {
            reason: format!("expected a []interface {{}}, but received a {}", go_kind(&other)),
        }),
    }
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// All items are of one type, and none is a list.
fn check_items(items: &[Value]) -> Result<(), PatchError> {
    let mut kinds = items.iter().map(go_kind);
    let Some(first) = kinds.next() else { return Ok(()) };
    if first == "[]interface {}" {
        return Err(PatchError::ListOfLists);
    }
    if kinds.any(|kind| kind != first) {
        let shown = go_text(&Value::Array(items.to_vec()));
        return Err(PatchError::Unfit { reason: format!("list element types are not identical: [{shown}]") });
    }
    Ok(())
}

fn merge_list(old: Vec<Value>, new: Vec<Value>, member: &Member) -> Result<Vec<Value>, PatchError> {
    let all: Vec<Value> = old.iter().chain(&new).cloned().collect();
    check_items(&all)?;
    let Some(first) = all.first() else { return Ok(Vec::new()) };
    if !first.is_object() {
        let merged = without_repetitions(all);
        return arrange(merged, &new, &old, None);
    }
    let key = member.patch.key.ok_or_else(|| PatchError::Unfit {
        reason: "cannot merge lists without merge key for struct".to_owned(),
    })?;
    let (kept, new) = carry_out_item_directives(old, new, key)?;
    let live = kept.clone();
    let merged = merge_items(kept, &new, key, member.shape)?;
    arrange(merged, &new, &live, Some(key))
}

fn without_repetitions(items: Vec<Value>) -> Vec<Value> {
    let mut unique: Vec<Value> = Vec::with_capacity(items.len());
    for item in items {
        if !unique.contains(&item) {
            unique.push(item);
        }
    }
    unique
}

/// Items with `$patch: delete` remove their namesakes; one with `$patch: replace` makes the rest of the patch the list.
fn carry_out_item_directives(
    mut old: Vec<Value>,
    new: Vec<Value>,
    key: &'static str,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let mut plain = Vec::with_capacity(new.len());
    let mut replaces = false;
    for item in new {
        match item.get(DIRECTIVE).map(Value::as_str) {
            None => plain.push(item),
            Some(Some("delete")) => {
                let name = item.get(key).ok_or_else(|| no_merge_key(&item, key))?;
                old.retain(|other| other.get(key) != Some(name));
            }
            Some(Some("replace")) => replaces = true,
            Some(Some("merge")) => {
                return Err(PatchError::Unfit {
                    reason: "merging lists cannot yet be specified in the patch".to_owned(),
                });
            }
            Some(_) => {
                let Value::Object(mut members) = item else { continue };
                let directive = members.shift_remove(DIRECTIVE).unwrap_or_default();
                return Err(bad_directive(&directive, members));
            }
        }
    }
    Ok(if replaces { (plain, Vec::new()) } else { (old, plain) })
}

fn merge_items(
    mut old: Vec<Value>,
    new: &[Value],
    key: &'static str,
    shape: Shape,
) -> Result<Vec<Value>, PatchError> {
    for item in new {
        let name = item.get(key).ok_or_else(|| no_merge_key(item, key))?;
        match old.iter_mut().find(|other| other.get(key) == Some(name)) {
            Some(slot) => {
                let (Value::Object(original), Value::Object(patch)) = (std::mem::take(slot), item) else {
                    continue;
                };
                *slot = Value::Object(merge(original, patch.clone(), shape)?);
            }
            None => old.push(item.clone()),
        }
    }
    Ok(old)
}

/// `$deleteFromPrimitiveList/list: [...]` takes scalars out of a list.
fn delete_from(original: &mut Members, rest: &str, value: Value, shape: Shape) -> Result<(), PatchError> {
    let name = rest.strip_prefix('/').ok_or(PatchError::BadPrimitiveList)?;
    if value.is_null() {
        original.shift_remove(name);
        return Ok(());
    }
    shape.member(name)?;
    if let (Some(Value::Array(items)), Value::Array(unwanted)) = (original.get_mut(name), value) {
        items.retain(|item| !unwanted.iter().any(|other| identity(other, Key::None) == Some(item)));
    }
    Ok(())
}

/// What becomes of nulls in a value that is taken over from the patch.
#[derive(Clone, Copy, PartialEq)]
enum Nulls {
    Kept,
    Dropped,
}

/// A patch's value as it is stored: no directives, and no nulls in maps if so asked. `None` for a mere directive.
fn without_directives(value: Value, nulls: Nulls) -> Option<Value> {
    match value {
        Value::Object(members) if members.contains_key(DIRECTIVE) => None,
        Value::Object(members) => Some(Value::Object(
            members
                .into_iter()
                .filter(|(_, value)| nulls == Nulls::Kept || !value.is_null())
                .filter_map(|(key, value)| Some((key, without_directives(value, nulls)?)))
                .collect(),
        )),
        Value::Array(items) => Some(Value::Array(without_directives_in_list(items, nulls))),
        other => Some(other),
    }
}

fn without_directives_in_list(items: Vec<Value>, nulls: Nulls) -> Vec<Value> {
    items.into_iter().filter_map(|item| without_directives(item, nulls)).collect()
}
