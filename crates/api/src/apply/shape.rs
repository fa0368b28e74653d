//! What server-side apply sees of the schema table: leaves, which are owned as a whole, and what has fields or items
//! of its own.

use serde_json::Value;

use super::path::PathElement;
use crate::schema::{Field, FieldKind, ListKind, Type};

/// How a value is owned.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// As a whole: scalars, and what the table calls atomic.
    Leaf,
    /// Field by field.
    Struct(&'static Type),
    /// Key by key.
    Map(FieldKind),
    /// Item by item, each told by its own value.
    Set,
    /// Item by item, each told by some of its fields.
    Keyed {
        /// The fields.
        keys: &'static [&'static str],
        /// The type of an item.
        item: FieldKind,
    },
}

/// Why an item of a list has no place in a path.
pub(super) type Misfit = String;

impl Shape {
    pub(super) fn of_type(ty: &'static Type) -> Self {
        Self::Struct(ty)
    }

    /// A value that no field describes: the item of a list, the value of a map.
    fn of_kind(kind: FieldKind) -> Self {
        match kind {
            FieldKind::Ref(ty) if !ty.get().is_atomic => Self::Struct(ty.get()),
            FieldKind::Map(item) => Self::Map(*item),
            _ => Self::Leaf,
        }
    }

    fn of_field(field: &Field) -> Self {
        match field.kind {
            _ if field.atomic => Self::Leaf,
            FieldKind::Ref(ty) if field.granular => Self::Struct(ty.get()),
            FieldKind::List(item) => match field.list {
                ListKind::Atomic => Self::Leaf,
                ListKind::Set => Self::Set,
                ListKind::Map(keys) => Self::Keyed { keys, item: *item },
            },
            kind => Self::of_kind(kind),
        }
    }

    /// The shape of a member.
    pub(super) fn member(self, name: &str) -> Self {
        match self {
            Self::Struct(ty) => ty.field(name).map_or(Self::Leaf, Self::of_field),
            Self::Map(item) => Self::of_kind(item),
            _ => Self::Leaf,
        }
    }

    /// The shape of an item.
    pub(super) fn item(self) -> Self {
        match self {
            Self::Keyed { item, .. } => Self::of_kind(item),
            _ => Self::Leaf,
        }
    }

    pub(super) fn below(self, element: &PathElement) -> Self {
        match element {
            PathElement::Field(name) => self.member(name),
            _ => self.item(),
        }
    }

    /// Whether the element is a field that the type names, and no key of a map.
    pub(super) fn is_named_field(self, element: &PathElement) -> bool {
        match (self, element) {
            (Self::Struct(ty), PathElement::Field(name)) => ty.field(name).is_some(),
            _ => false,
        }
    }

    /// The place of an item; keys that are absent count as their defaults.
    pub(super) fn place(self, item: &Value) -> Result<PathElement, Misfit> {
        let Self::Keyed { keys, item: kind } = self else { return Ok(PathElement::value(item)) };
        let FieldKind::Ref(ty) = kind else { return Ok(PathElement::value(item)) };
        let members = item.as_object().ok_or("associative list with keys may not have non-map elements")?;
        let found = keys.iter().map(|key| {
            let default = || ty.get().field(key).and_then(|field| field.default.clone());
            let value = members.get(*key).cloned().or_else(default).ok_or_else(|| {
                format!(
                    "associative list with keys has an element that omits key field \"{key}\" (and doesn't have default value)"
                )
            })?;
            Ok(((*key).to_owned(), value))
        });
        Ok(PathElement::key(found.collect::<Result<_, Misfit>>()?))
    }
}
