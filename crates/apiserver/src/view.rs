//! An object as one of its kinds shows it: `v1` and `events.k8s.io/v1` Events are two views of the same bytes. For the
//! kind that is stored, the view is the stored bytes themselves.

use api::kind::{Kind, kinds};
use api::table;
use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value};

use crate::cache::Object;
use crate::response::{Form, to_bytes};

/// Whether objects of this kind are stored as they are served.
pub(crate) fn is_stored_form(kind: &Kind) -> bool {
    kinds()
        .iter()
        .find(|one| one.store_prefix == kind.store_prefix)
        .is_some_and(|one| one.group == kind.group && one.version == kind.version)
}

/// The object parsed, as the kind shows it.
pub(crate) fn value(kind: &Kind, object: &Object) -> Value {
    let stored = object.value();
    if is_stored_form(kind) { stored } else { served(kind, stored) }
}

/// A stored value as the kind shows it.
pub(crate) fn served(kind: &Kind, mut stored: Value) -> Value {
    (kind.from_stored)(&mut stored);
    with_type(kind, stored)
}

/// The object's bytes, as the kind shows it.
pub(crate) fn bytes(kind: &Kind, object: &Object) -> Bytes {
    if is_stored_form(kind) { object.shared_json() } else { to_bytes(&value(kind, object)) }
}

/// Writes an object of a kind that is not the stored one as a list item: without kind and version.
pub(crate) fn put_item(kind: &Kind, object: &Object, out: &mut BytesMut) {
    let mut value = value(kind, object);
    if let Some(fields) = value.as_object_mut() {
        fields.shift_remove("kind");
        fields.shift_remove("apiVersion");
    }
    out.put_slice(&to_bytes(&value));
}

/// The object with `kind` and `apiVersion` first.
pub(crate) fn with_type(kind: &Kind, object: Value) -> Value {
    let mut whole = Map::new();
    whole.insert("kind".to_owned(), kind.kind.into());
    whole.insert("apiVersion".to_owned(), kind.api_version().into());
    if let Value::Object(fields) = object {
        whole.extend(fields.into_iter().filter(|(name, _)| name != "kind" && name != "apiVersion"));
    }
    Value::Object(whole)
}

/// An object in the form that the client wants.
pub(crate) fn in_form(kind: &Kind, object: Value, form: Form) -> Value {
    match form {
        Form::Object => object,
        Form::Metadata => table::partial_object_metadata(&object),
        Form::Table(include) => {
            let version =
                serde_json::json!({"resourceVersion": crate::meta::text(&object, "resourceVersion")});
            let row = table::row(kind, &object, include, jiff::Timestamp::now());
            table::table(kind, version, vec![row], true)
        }
    }
}
