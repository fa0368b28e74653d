//! Sets of fields: which paths of an object somebody owns. The algebra is that of `FieldsV1`: a field can be a member
//! itself, have members below it, or both.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::path::PathElement;
use super::shape::Shape;

/// A set of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    nodes: BTreeMap<PathElement, Node>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Node {
    is_member: bool,
    below: FieldSet,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.is_member && self.below.is_empty()
    }
}

/// `.` in `FieldsV1`: the field that holds it is a member itself.
const SELF: &str = ".";

impl FieldSet {
    /// Whether there is no path.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// A set of paths of plain fields, such as `["metadata", "name"]`.
    pub fn of(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let path: Vec<PathElement> = path.iter().map(|name| PathElement::field(name)).collect();
            set.insert(&path);
        }
        set
    }

    /// Adds a path; the empty path is no field and is ignored.
    pub fn insert(&mut self, path: &[PathElement]) {
        let Some((first, rest)) = path.split_first() else { return };
        // Most steps are there already: a name is copied for the first path through it alone.
        if !self.nodes.contains_key(first) {
            self.nodes.insert(first.clone(), Node::default());
        }
        let Some(node) = self.nodes.get_mut(first) else { return };
        if rest.is_empty() {
            node.is_member = true;
        } else {
            node.below.insert(rest);
        }
    }

    /// Whether a field directly below is a member itself.
    pub(super) fn has(&self, element: &PathElement) -> bool {
        self.nodes.get(element).is_some_and(|node| node.is_member)
    }

    /// The paths below a field.
    pub(super) fn below(&self, element: &PathElement) -> Option<&FieldSet> {
        self.nodes.get(element).map(|node| &node.below).filter(|set| !set.is_empty())
    }

    /// Keeps what `keep` says of each element's own place and what is below, in both sets.
    fn combine(&self, other: &Self, keep: impl Fn(&Node, Option<&Node>) -> Node) -> Self {
        let nodes = self.nodes.iter().filter_map(|(element, node)| {
            let kept = keep(node, other.nodes.get(element));
            (!kept.is_empty()).then(|| (element.clone(), kept))
        });
        Self { nodes: nodes.collect() }
    }

    /// The paths of either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut union = self.clone();
        for (element, theirs) in &other.nodes {
            let node = union.nodes.entry(element.clone()).or_default();
            node.is_member |= theirs.is_member;
            node.below =
                if node.below.is_empty() { theirs.below.clone() } else { node.below.union(&theirs.below) };
        }
        union
    }

    /// The paths of both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |ours, theirs| {
            theirs.map_or_else(Node::default, |theirs| Node {
                is_member: ours.is_member && theirs.is_member,
                below: ours.below.intersection(&theirs.below),
            })
        })
    }

    /// The paths that the other does not have.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, |ours, theirs| match theirs {
            None => ours.clone(),
            Some(theirs) => Node {
                is_member: ours.is_member && !theirs.is_member,
                below: ours.below.difference(&theirs.below),
            },
        })
    }

    /// The paths that neither the other has nor are below one that it has.
    #[must_use]
    pub fn recursive_difference(&self, other: &Self) -> Self {
        self.combine(other, |ours, theirs| match theirs {
            None => ours.clone(),
            Some(theirs) if theirs.is_member => Node::default(),
            Some(theirs) => {
                Node { is_member: ours.is_member, below: ours.below.recursive_difference(&theirs.below) }
            }
        })
    }

    /// All paths, in order.
    pub fn paths(&self) -> Vec<Vec<PathElement>> {
        let mut paths = Vec::new();
        self.collect_paths(&mut Vec::new(), &mut paths);
        paths
    }

    fn collect_paths(&self, place: &mut Vec<PathElement>, paths: &mut Vec<Vec<PathElement>>) {
        for (element, node) in &self.nodes {
            place.push(element.clone());
            if node.is_member {
                paths.push(place.clone());
            }
            node.below.collect_paths(place, paths);
            place.pop();
        }
    }

    /// The set in which every struct field that has members below is a member itself, so that it can be removed.
    pub(super) fn with_named_fields(&self, shape: Shape) -> Self {
        let nodes = self.nodes.iter().map(|(element, node)| {
            let is_named = !node.below.is_empty() && shape.is_named_field(element);
            let below = node.below.with_named_fields(shape.below(element));
            (element.clone(), Node { is_member: node.is_member || is_named, below })
        });
        Self { nodes: nodes.collect() }
    }

    /// The set as `FieldsV1`.
    pub fn to_json(&self) -> Value {
        let mut members = Map::new();
        for (element, node) in &self.nodes {
            let mut below = Map::new();
            if node.is_member && !node.below.is_empty() {
                below.insert(SELF.to_owned(), Value::Object(Map::new()));
            }
            if let Value::Object(inner) = node.below.to_json() {
                below.extend(inner);
            }
            members.insert(element.to_text(), Value::Object(below));
        }
        Value::Object(members)
    }

    /// Reads `FieldsV1`; `None` when it is not in that form.
    pub fn from_json(value: &Value) -> Option<Self> {
        let mut set = Self::default();
        for (text, below) in value.as_object()? {
            if text == SELF {
                continue;
            }
            let below_members = below.as_object()?;
            let is_member = below_members.is_empty() || below_members.contains_key(SELF);
            let node = Node { is_member, below: Self::from_json(below)? };
            set.nodes.insert(PathElement::parse(text)?, node);
        }
        Some(set)
    }
}
