//! Paths of a kind and the operations on them. `kubectl` reads from them which kind a path holds
//! and whether a write understands `fieldValidation`.

use serde_json::{Map, Value, json};

use super::schema::Schemas;
use crate::kind::{Kind, Subresource};
use crate::schema::type_named;

/// Query parameters of every write.
const WRITE: &[(&str, &str)] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
/// Query parameters of a deletion.
const DELETE: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
/// Query parameters of a list or watch.
const LIST: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// What one operation needs to be written down.
struct Operation<'a> {
    /// HTTP method in lower case.
    method: &'static str,
    /// `x-kubernetes-action`.
    action: &'static str,
    /// Group, version and kind of what is read or written.
    kind: (&'a str, &'a str, &'a str),
    query: &'static [(&'static str, &'static str)],
    body: Option<Value>,
    answer: Value,
}

/// All paths of a kind.
pub(super) fn paths(kind: &Kind, schemas: &mut Schemas<'_>) -> Vec<(String, Value)> {
    let root = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{root}{scope}/{}", kind.plural);
    let item = format!("{collection}/{{name}}");
    let mut paths = vec![(collection, collection_operations(kind, schemas))];
    let operations = item_operations(kind, schemas);
    if !operations.is_empty() {
        paths.push((item.clone(), operations));
    }
    for sub in kind.subresources {
        paths.push((format!("{item}/{}", sub.name), subresource_operations(kind, sub, schemas)));
    }
    if kind.namespaced && kind.has_verb("list") {
        paths.push((format!("{root}/{}", kind.plural), list_operation(kind, schemas).into_iter().collect()));
    }
    paths.into_iter().map(|(path, operations)| with_parameters(path, operations)).collect()
}

fn with_parameters(path: String, mut operations: Map<String, Value>) -> (String, Value) {
    let parameters: Vec<Value> = ["namespace", "name"]
        .into_iter()
        .filter(|name| path.contains(&format!("{{{name}}}")))
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    if !parameters.is_empty() {
        operations.insert("parameters".to_owned(), parameters.into());
    }
    (path, Value::Object(operations))
}

fn gvk(kind: &Kind) -> (&'static str, &'static str, &'static str) {
    (kind.group, kind.version, kind.kind)
}

fn list_operation(kind: &Kind, schemas: &mut Schemas<'_>) -> Option<(String, Value)> {
    let ty = type_named(kind.type_name).filter(|_| kind.has_verb("list"))?;
    let answer = schemas.list_of(ty);
    Some(operation(Operation {
        method: "get",
        action: "list",
        kind: gvk(kind),
        query: LIST,
        body: None,
        answer,
    }))
}

fn collection_operations(kind: &Kind, schemas: &mut Schemas<'_>) -> Map<String, Value> {
    let mut operations: Map<String, Value> = list_operation(kind, schemas).into_iter().collect();
    let object = schemas.reference_named(kind.type_name);
    if kind.has_verb("create") {
        operations.extend([write("post", "post", gvk(kind), object)]);
    }
    if kind.has_verb("deletecollection") {
        operations.extend([delete("deletecollection", kind, schemas)]);
    }
    operations
}

fn item_operations(kind: &Kind, schemas: &mut Schemas<'_>) -> Map<String, Value> {
    let object = schemas.reference_named(kind.type_name);
    let mut operations = object_operations(kind.verbs, gvk(kind), &object, schemas);
    if kind.has_verb("delete") {
        operations.extend([delete("delete", kind, schemas)]);
    }
    operations
}

/// Reading, replacing and patching one object.
fn object_operations(
    verbs: &[&str],
    kind: (&str, &str, &str),
    object: &Value,
    schemas: &mut Schemas<'_>,
) -> Map<String, Value> {
    let mut operations = Map::new();
    if verbs.contains(&"get") {
        let answer = object.clone();
        let get = Operation { method: "get", action: "get", kind, query: &[], body: None, answer };
        operations.extend([operation(get)]);
    }
    if verbs.contains(&"update") {
        operations.extend([write("put", "put", kind, object.clone())]);
    }
    if verbs.contains(&"patch") {
        let body = Some(patch_body(&schemas.patch()));
        let answer = object.clone();
        operations.extend([operation(Operation {
            method: "patch",
            action: "patch",
            kind,
            query: WRITE,
            body,
            answer,
        })]);
    }
    operations
}

fn subresource_operations(kind: &Kind, sub: &Subresource, schemas: &mut Schemas<'_>) -> Map<String, Value> {
    let (group, version) = sub.group_version.unwrap_or((kind.group, kind.version));
    let own = (group, version, sub.kind);
    if sub.type_name.is_empty() {
        let connect = |method| {
            let answer = json!({"type": "string"});
            operation(Operation { method, action: "connect", kind: own, query: &[], body: None, answer })
        };
        let methods =
            [("get", "get"), ("create", "post")].into_iter().filter(|(verb, _)| sub.verbs.contains(verb));
        return methods.map(|(_, method)| connect(method)).collect();
    }
    let object = schemas.reference_named(sub.type_name);
    let mut operations = object_operations(sub.verbs, own, &object, schemas);
    if sub.verbs.contains(&"create") {
        operations.extend([write("post", "post", own, object)]);
    }
    operations
}

fn write(
    method: &'static str,
    action: &'static str,
    kind: (&str, &str, &str),
    object: Value,
) -> (String, Value) {
    let body = Some(json!({"required": true, "content": {"*/*": {"schema": object.clone()}}}));
    operation(Operation { method, action, kind, query: WRITE, body, answer: object })
}

fn delete(action: &'static str, kind: &Kind, schemas: &mut Schemas<'_>) -> (String, Value) {
    let options = schemas.reference_named("meta.v1.DeleteOptions");
    let answer = schemas.reference_named("meta.v1.Status");
    let body = Some(json!({"content": {"*/*": {"schema": options}}}));
    operation(Operation { method: "delete", action, kind: gvk(kind), query: DELETE, body, answer })
}

fn patch_body(schema: &Value) -> Value {
    let content: Map<String, Value> =
        PATCH_TYPES.iter().map(|media| ((*media).to_owned(), json!({"schema": schema}))).collect();
    json!({"required": true, "content": content})
}

fn operation(operation: Operation<'_>) -> (String, Value) {
    let parameters: Vec<Value> = operation
        .query
        .iter()
        .map(|(name, ty)| json!({"name": name, "in": "query", "schema": {"type": ty, "uniqueItems": true}}))
        .collect();
    let (group, version, kind) = operation.kind;
    let mut members = Map::new();
    if !parameters.is_empty() {
        members.insert("parameters".to_owned(), parameters.into());
    }
    members.extend(operation.body.map(|body| ("requestBody".to_owned(), body)));
    let content = json!({"application/json": {"schema": operation.answer}});
    members.insert("responses".to_owned(), json!({"200": {"description": "OK", "content": content}}));
    members.insert("x-kubernetes-action".to_owned(), operation.action.into());
    members.insert(
        "x-kubernetes-group-version-kind".to_owned(),
        json!({"group": group, "kind": kind, "version": version}),
    );
    (operation.method.to_owned(), Value::Object(members))
}
