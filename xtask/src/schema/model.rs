//! What the generator knows of a type while it joins its sources.
//! Plain data; the readers fill it, `join` completes it, `write` prints it.

use std::collections::BTreeMap;

/// One API type, keyed by its short name (`core.v1.Pod`).
#[derive(Debug, Default, Clone)]
pub(crate) struct Type {
    /// Group, version and kind, when the type is a top-level object.
    pub(crate) kind: Option<(String, String, String)>,
    /// Whether objects of the type are owned and replaced as a whole, unless a field says otherwise.
    pub(crate) is_atomic: bool,
    /// Fields in the order of their JSON names.
    pub(crate) fields: Vec<Field>,
}

/// One field of a type.
#[derive(Debug, Default, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent word of the table")]
pub(crate) struct Field {
    /// Name in JSON.
    pub(crate) json: String,
    /// Shape in the table's notation: `str`, `[]core.v1.Container`, `{}quantity` …
    pub(crate) shape: String,
    /// Whether the API reference calls the field required.
    pub(crate) required: bool,
    /// `atomic`, `set` or `map:key,key`.
    pub(crate) list: Option<String>,
    /// Whether a map or struct is replaced as a whole.
    pub(crate) atomic_map: bool,
    /// Whether a struct of an atomic type is owned field by field here.
    pub(crate) granular: bool,
    /// Strategic-merge strategy with its key: `merge:name`, `merge+retainKeys:name`, `replace`.
    pub(crate) patch: Option<String>,
    /// Protobuf numbers from the message down to the field; more than one where JSON inlines a message.
    pub(crate) numbers: Vec<u32>,
    /// Whether the zero value differs from absence (a pointer in the Go type).
    pub(crate) nullable: bool,
    /// Whether the field is a struct by value, which Go always writes.
    pub(crate) embedded: bool,
    /// Named Go type where it is not the plain one (`v1.RestartPolicy`).
    pub(crate) go: Option<String>,
    /// Static default as JSON.
    pub(crate) default: Option<String>,
}

/// All types by short name.
pub(crate) type Types = BTreeMap<String, Type>;

/// One protobuf message: what `k8s-pb` says of it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Message {
    /// Whether its comment says that it is owned as a whole.
    pub(crate) is_atomic: bool,
    /// Fields in source order.
    pub(crate) fields: Vec<MessageField>,
}

/// One field of a message.
#[derive(Debug, Default, Clone)]
pub(crate) struct MessageField {
    /// Name without underscores, in lower case: comparable with a JSON name in lower case.
    pub(crate) key: String,
    /// Protobuf number.
    pub(crate) number: u32,
    /// The Rust type's last word where the field is a single message.
    pub(crate) message: Option<String>,
    /// Markers of the comment: `listType` → `map` …; repeated markers are joined by a comma.
    pub(crate) markers: BTreeMap<String, String>,
}

/// Messages by group-version and lower-case name (`core.v1.httpgetaction`).
pub(crate) type Messages = BTreeMap<String, Message>;
