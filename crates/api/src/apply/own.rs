//! Which fields an object has, and which differ between two objects: the sets from which ownership is made.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::path::{self, PathElement};
use super::set::FieldSet;
use super::shape::{Misfit, Shape};

type Place = Vec<PathElement>;
/// Items by their places.
type ByPlace<'a> = HashMap<&'a PathElement, &'a [&'a Value]>;

/// The difference between two objects, by field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Comparison {
    pub(super) added: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) removed: FieldSet,
}

impl Comparison {
    /// The same without some fields and what is below them.
    pub(super) fn without(&self, ignored: &FieldSet) -> Self {
        Self {
            added: self.added.recursive_difference(ignored),
            modified: self.modified.recursive_difference(ignored),
            removed: self.removed.recursive_difference(ignored),
        }
    }

    /// What is new or other than it was.
    pub(super) fn changed(&self) -> FieldSet {
        self.modified.union(&self.added)
    }
}

/// The items of a list by their places; a place that repeats has more than one.
pub(super) fn indexed<'a>(
    shape: Shape,
    items: &'a [Value],
) -> Result<Vec<(PathElement, Vec<&'a Value>)>, Misfit> {
    let mut found: Vec<(PathElement, Vec<&'a Value>)> = Vec::with_capacity(items.len());
    let mut at = HashMap::with_capacity(items.len());
    for item in items {
        let place = shape.place(item)?;
        let index = *at.entry(place.clone()).or_insert(found.len());
        match found.get_mut(index) {
            Some((_, same)) => same.push(item),
            None => found.push((place, vec![item])),
        }
    }
    Ok(found)
}

/// The fields that an object has.
pub(super) fn fields_of(shape: Shape, value: &Value) -> Result<FieldSet, Misfit> {
    let mut set = FieldSet::default();
    collect(shape, value, &mut Vec::new(), &mut set)?;
    Ok(set)
}

fn collect(shape: Shape, value: &Value, place: &mut Place, set: &mut FieldSet) -> Result<(), Misfit> {
    match (shape, value) {
        (Shape::Leaf, _) => set.insert(place),
        (Shape::Struct(_) | Shape::Map(_), Value::Object(members)) => {
            for (name, value) in members {
                place.push(PathElement::field(name));
                collect(shape.member(name), value, place, set)?;
                let is_empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                if is_empty || matches!(shape, Shape::Map(_)) {
                    set.insert(place);
                }
                place.pop();
            }
        }
        (Shape::Set | Shape::Keyed { .. }, Value::Array(items)) => {
            for (element, items) in indexed(shape, items)? {
                place.push(element);
                if let [item] = items.as_slice() {
                    collect(shape.item(), item, place, set)?;
                }
                set.insert(place);
                place.pop();
            }
        }
        _ => {}
    }
    Ok(())
}

/// Refuses what an applied object may not have: two items for one place, items without their keys.
///
/// # Errors
/// Upstream's text, with the path: `.spec.ports: duplicate entries for key [port=80,protocol="TCP"]`.
pub(super) fn check_places(shape: Shape, value: &Value) -> Result<(), Misfit> {
    check_below(shape, value, &mut Vec::new())
}

fn check_below(shape: Shape, value: &Value, place: &mut Place) -> Result<(), Misfit> {
    match (shape, value) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(members)) => {
            for (name, value) in members {
                place.push(PathElement::field(name));
                check_below(shape.member(name), value, place)?;
                place.pop();
            }
        }
        (Shape::Set | Shape::Keyed { .. }, Value::Array(items)) => {
            let mut seen = HashSet::new();
            for (at, item) in items.iter().enumerate() {
                let element = shape
                    .place(item)
                    .map_err(|why| format!("{}: element {at}: {why}", path::print(place)))?;
                if !seen.insert(element.clone()) {
                    return Err(format!("{}: duplicate entries for key {element}", path::print(place)));
                }
                place.push(element);
                check_below(shape.item(), item, place)?;
                place.pop();
            }
        }
        _ => {}
    }
    Ok(())
}

/// What differs between two objects of one type.
pub(super) fn compare(shape: Shape, old: &Value, new: &Value) -> Result<Comparison, Misfit> {
    let mut walk = Compare { place: Vec::new(), found: Comparison::default() };
    walk.values(shape, Some(old), Some(new))?;
    Ok(walk.found)
}

struct Compare {
    place: Place,
    found: Comparison,
}

fn members(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object).filter(|members| !members.is_empty())
}

fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

impl Compare {
    fn within(
        &mut self,
        element: PathElement,
        walk: impl FnOnce(&mut Self) -> Result<(), Misfit>,
    ) -> Result<(), Misfit> {
        self.place.push(element);
        let done = walk(self);
        self.place.pop();
        done
    }

    fn values(&mut self, shape: Shape, old: Option<&Value>, new: Option<&Value>) -> Result<(), Misfit> {
        if old.is_some() && old == new {
            return Ok(());
        }
        let is_leaf = match shape {
            Shape::Leaf => true,
            Shape::Struct(_) | Shape::Map(_) => members(old).is_none() && members(new).is_none(),
            Shape::Set | Shape::Keyed { .. } => items(old).is_empty() && items(new).is_empty(),
        };
        if is_leaf {
            self.leaf(old, new);
            return Ok(());
        }
        match shape {
            Shape::Struct(_) | Shape::Map(_) => self.maps(shape, members(old), members(new))?,
            _ => self.lists(shape, items(old), items(new))?,
        }
        match (old, new) {
            (None, _) => self.found.added.insert(&self.place),
            (_, None) => self.found.removed.insert(&self.place),
            _ => {}
        }
        Ok(())
    }

    fn leaf(&mut self, old: Option<&Value>, new: Option<&Value>) {
        let set = match (old, new) {
            (None, _) => &mut self.found.added,
            (_, None) => &mut self.found.removed,
            (old, new) if old != new => &mut self.found.modified,
            _ => return,
        };
        set.insert(&self.place);
    }

    fn maps(
        &mut self,
        shape: Shape,
        old: Option<&Map<String, Value>>,
        new: Option<&Map<String, Value>>,
    ) -> Result<(), Misfit> {
        let of = |map: Option<&Map<String, Value>>, name: &str| map.is_some_and(|map| map.contains_key(name));
        let gone = old.into_iter().flatten().filter(|(name, _)| !of(new, name));
        for (name, _) in new.into_iter().flatten().chain(gone) {
            let (old, new) = (old.and_then(|map| map.get(name)), new.and_then(|map| map.get(name)));
            let shape = shape.member(name);
            self.within(PathElement::field(name), |walk| walk.values(shape, old, new))?;
        }
        Ok(())
    }

    fn lists(&mut self, shape: Shape, old: &[Value], new: &[Value]) -> Result<(), Misfit> {
        let (old, new) = (indexed(shape, old)?, indexed(shape, new)?);
        let old_by: ByPlace<'_> = old.iter().map(|(place, items)| (place, items.as_slice())).collect();
        let new_by: ByPlace<'_> = new.iter().map(|(place, items)| (place, items.as_slice())).collect();
        let gone = old.iter().filter(|(place, _)| !new_by.contains_key(place));
        for (place, _) in new.iter().chain(gone) {
            let old = old_by.get(place).copied().unwrap_or_default();
            let new = new_by.get(place).copied().unwrap_or_default();
            self.within(place.clone(), |walk| walk.same_place(shape.item(), old, new))?;
        }
        Ok(())
    }

    /// Items of one place: one of each at most, unless a place repeats. Those are compared as a whole.
    fn same_place(&mut self, shape: Shape, old: &[&Value], new: &[&Value]) -> Result<(), Misfit> {
        match (old.len(), new.len()) {
            (0 | 1, 0 | 1) => self.values(shape, old.first().copied(), new.first().copied()),
            (0 | 1, _) => {
                if let [old] = old {
                    self.values(shape, Some(old), None)?;
                }
                self.found.added.insert(&self.place);
                Ok(())
            }
            (_, 0 | 1) => {
                if let [new] = new {
                    self.values(shape, None, Some(new))?;
                }
                self.found.removed.insert(&self.place);
                Ok(())
            }
            _ => {
                if old != new {
                    self.found.modified.insert(&self.place);
                }
                Ok(())
            }
        }
    }
}
