//! Laying one object over another, and taking fields out of one: how applied objects become stored ones.

use std::collections::{HashMap, HashSet, VecDeque};

use serde_json::{Map, Value};

use super::own::indexed;
use super::path::PathElement;
use super::set::FieldSet;
use super::shape::{Misfit, Shape};

/// The live object with everything that the applied one says.
pub(super) fn merge(shape: Shape, live: &Value, applied: &Value) -> Result<Value, Misfit> {
    match (shape, live, applied) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(live), Value::Object(applied)) => {
            let mut merged = live.clone();
            for (name, value) in applied {
                let value = match live.get(name) {
                    Some(live) => merge(shape.member(name), live, value)?,
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Ok(Value::Object(merged))
        }
        (Shape::Set | Shape::Keyed { .. }, Value::Array(live), Value::Array(applied)) => {
            Ok(Value::Array(merge_lists(shape, live, applied)?))
        }
        _ => Ok(applied.clone()),
    }
}

/// The applied items in their order, each over the live one of its place; the live ones that are not applied stay
/// where they are between them.
fn merge_lists(shape: Shape, live: &[Value], applied: &[Value]) -> Result<Vec<Value>, Misfit> {
    let applied = indexed(shape, applied)?;
    let ours: HashMap<&PathElement, &Value> =
        applied.iter().filter_map(|(place, items)| Some((place, *items.first()?))).collect();
    let live_by: HashMap<PathElement, Vec<&Value>> = indexed(shape, live)?.into_iter().collect();
    let mut merged = Vec::with_capacity(live.len() + applied.len());
    let mut done: HashSet<PathElement> = HashSet::new();
    let mut waiting: VecDeque<&PathElement> = applied.iter().map(|(place, _)| place).collect();
    let over = |place: &PathElement| -> Result<Value, Misfit> {
        let applied = ours.get(place).copied().unwrap_or(&Value::Null);
        match live_by.get(place).map(Vec::as_slice) {
            Some([live]) => merge(shape.item(), live, applied),
            _ => Ok(applied.clone()),
        }
    };
    for item in live {
        let place = shape.place(item)?;
        if !ours.contains_key(&place) {
            merged.push(item.clone());
            continue;
        }
        // A shared item that an earlier one of the applied order has overtaken.
        while !done.contains(&place)
            && let Some(next) = waiting.pop_front()
        {
            // New items come just before the shared one that follows them.
            merged.push(over(next)?);
            done.insert(next.clone());
            let is_shared = live_by.contains_key(next);
            if is_shared {
                break;
            }
        }
    }
    for place in waiting {
        merged.push(over(place)?);
    }
    Ok(merged)
}

/// The value without the fields of the set. A container of which nothing is left is gone as well.
pub(super) fn remove(shape: Shape, value: &Value, set: &FieldSet) -> Result<Option<Value>, Misfit> {
    match (shape, value) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(members)) => {
            let mut kept = Map::new();
            for (name, value) in members {
                let element = PathElement::field(name);
                if let Some(value) = remove_one(shape.member(name), value, &element, set)? {
                    kept.insert(name.clone(), value);
                }
            }
            Ok((!kept.is_empty()).then_some(Value::Object(kept)))
        }
        (Shape::Set | Shape::Keyed { .. }, Value::Array(items)) => {
            let mut kept = Vec::new();
            for item in items {
                let element = shape.place(item)?;
                kept.extend(remove_one(shape.item(), item, &element, set)?);
            }
            Ok((!kept.is_empty()).then_some(Value::Array(kept)))
        }
        _ => Ok(Some(value.clone())),
    }
}

fn remove_one(
    shape: Shape,
    value: &Value,
    element: &PathElement,
    set: &FieldSet,
) -> Result<Option<Value>, Misfit> {
    if set.has(element) {
        return Ok(None);
    }
    match set.below(element) {
        Some(below) => remove(shape, value, below),
        None => Ok(Some(value.clone())),
    }
}
