//! Patches of all four kinds to an object: what comes out is an object or an error, and the same patch again changes
//! nothing where that is its promise.
//!
//! The first line is the kind and the patch's (`pods merge`, or `apply` with the manager's name), the second the object
//! as JSON, the rest the patch.

#![no_main]

use api::apply::{self, Manager, Managers, Operation, Writer};
use api::codec::{self, MediaType};
use api::kind::Kind;
use api::patch;
use fuzz::object::{self, Input};
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// What a patch may add beside its own size: a JSON patch may copy so many bytes, each at most six in a text.
const COPIED: usize = 6 * patch::MAX_COPIED;

fuzz_target!(|bytes: &[u8]| {
    let Some(input) = Input::read(bytes) else { return };
    let Some((live, patch)) = object::split_line(input.rest) else { return };
    let Ok(live) = object::decode(input.kind, MediaType::Json, live) else { return };
    let live = object::complete(input.kind, live.object);
    let patched = match input.word(0) {
        "json" => json(&live, patch),
        "strategic" => strategic(input.kind, &live, patch),
        "apply" => applied(input.kind, input.word(1), &live, patch),
        _ => merge(&live, patch),
    };
    let Some(patched) = patched else { return };
    let grown = patched.to_string().len();
    assert!(grown <= live.to_string().len() + 6 * patch.len() + COPIED, "a patch that grows without end");
    if let Ok(typed) = codec::decode_value(&patched, object::root(input.kind), object::expected(input.kind)) {
        object::check(input.kind, &typed.object);
    }
});

fn json(live: &Value, body: &[u8]) -> Option<Value> {
    let patch = patch::read_body(body).ok()?.patch;
    patch::json_patch(live, &patch).ok()
}

fn merge(live: &Value, body: &[u8]) -> Option<Value> {
    let patch = patch::read_body(body).ok()?.patch;
    let merged = patch::merge(live, &patch).ok()?;
    assert_eq!(patch::merge(&merged, &patch).as_ref(), Ok(&merged), "a merge that is not done after once");
    Some(merged)
}

fn strategic(kind: &Kind, live: &Value, body: &[u8]) -> Option<Value> {
    let patch = patch::read_body(body).ok()?.patch;
    let root = object::root(kind);
    let merged = patch::strategic_merge(root, live, &patch).ok()?;
    let nothing = Value::Object(serde_json::Map::new());
    assert_eq!(
        patch::strategic_merge(root, &merged, &nothing).as_ref(),
        Ok(&merged),
        "an empty patch changes"
    );
    Some(merged)
}

/// Server-side apply over an object that another manager made.
fn applied(kind: &Kind, name: &str, live: &Value, body: &[u8]) -> Option<Value> {
    let (root, expected) = (object::root(kind), object::expected(kind));
    let config = codec::decode_applied(body, root, expected).ok()?;
    if !config.unknown.is_empty() || !api::access::metadata(&config.object).get("managedFields").is_none() {
        return None;
    }
    let version = kind.api_version();
    let nothing = apply::nothing(root, expected);
    let nobody = apply::FieldSet::default();
    let maker = Manager::new("maker", Operation::Update, "", &version);
    let manager = Manager::new(name, Operation::Apply, "", &version);
    let writer = |manager| Writer {
        root,
        expected,
        manager,
        now: Timestamp::UNIX_EPOCH,
        ignored: &nobody,
        convert: &|_, _| None,
    };
    let managers = apply::update(writer(&maker), &nothing, live, apply::managers_of_update(&nothing, live));
    let live = with_managers(live.clone(), &managers);
    let applied = apply::apply(writer(&manager), &live, &config.object, true).ok()?;
    let object = with_managers(applied.object, &applied.managers);
    let managers = applied.managers.to_value();
    assert_eq!(
        Managers::of(&object).to_value(),
        managers,
        "managers that are others when they are read again"
    );
    let again = apply::apply(writer(&manager), &object, &config.object, false);
    let again = again.expect("who owns all that they apply is in nobody's way");
    assert_eq!(again.managers.to_value(), managers, "applying the same again gives other managers");
    assert_eq!(
        with_managers(again.object, &again.managers),
        object,
        "applying the same again changes the object"
    );
    Some(object)
}

fn with_managers(mut object: Value, managers: &Managers) -> Value {
    let Some(metadata) = object.as_object_mut().map(|object| object.entry("metadata").or_insert(Value::Null))
    else {
        return object;
    };
    if metadata.is_null() {
        *metadata = Value::Object(serde_json::Map::new());
    }
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.insert("managedFields".to_owned(), managers.to_value());
    }
    object
}
