//! Classes for claims and ingresses that name none; and finalizers that keep volumes and claims while they are in use.

use api::access::{Access as _, metadata, spec};
use api::kind;
use api::limit::default_class;
use serde_json::Value;

use crate::meta;
use crate::write::Write;

const STORAGE_DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
const STORAGE_NAMED: &str = "volume.beta.kubernetes.io/storage-class";
const INGRESS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
const INGRESS_NAMED: &str = "kubernetes.io/ingress.class";

fn classes(write: &Write<'_>, group: &str, plural: &str) -> Vec<Value> {
    let Some(table) = kind::find(group, "v1", plural).and_then(|kind| write.server.cache.table(kind)) else {
        return Vec::new();
    };
    write.server.cache.snapshot(table).objects.values().map(|object| object.value()).collect()
}

/// Gives the object the default class, unless it says something of one: an empty name means none.
fn fill(object: &mut Value, field: &str, named: &str, class: Option<&Value>) {
    let says = spec(object).field(field).is_some()
        || metadata(object).field("annotations").is_some_and(|all| all.field(named).is_some());
    if let Some(class) = class.filter(|_| !says) {
        let name = meta::text(class, "name").to_owned();
        meta::map_at(object, "spec").insert(field.to_owned(), name.into());
    }
}

/// A claim that names no storage class gets the default one.
pub(super) fn default_storage_class(write: &Write<'_>, claim: &mut Value) {
    let classes = classes(write, "storage.k8s.io", "storageclasses");
    fill(claim, "storageClassName", STORAGE_NAMED, default_class(&classes, STORAGE_DEFAULT));
}

/// An ingress that names no class gets the default one.
pub(super) fn default_ingress_class(write: &Write<'_>, ingress: &mut Value) {
    let classes = classes(write, "networking.k8s.io", "ingressclasses");
    fill(ingress, "ingressClassName", INGRESS_NAMED, default_class(&classes, INGRESS_DEFAULT));
}

/// A claim stays while a Pod uses it, a volume while it is a claim's: the controller takes the finalizer away.
pub(super) fn protect(write: &Write<'_>, object: &mut Value) {
    let finalizer = match write.kind.kind {
        "PersistentVolume" => "kubernetes.io/pv-protection",
        _ => "kubernetes.io/pvc-protection",
    };
    let mut all: Vec<String> = meta::texts(object, "finalizers").into_iter().map(str::to_owned).collect();
    if !all.iter().any(|one| one == finalizer) {
        all.push(finalizer.to_owned());
        meta::set_texts(object, "finalizers", &all.iter().map(String::as_str).collect::<Vec<_>>());
    }
}
