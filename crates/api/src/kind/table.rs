//! The table of kinds. A kind adds a row in one of the modules below, and functions only where it has rules of its own.

mod apps;
mod authority;
mod core;
mod extension;
mod networking;
mod node;
mod storage;

use std::sync::LazyLock;

use serde_json::Value;

use super::{Grace, Kind, Part, Scale, Subresource, strategy};
use crate::table;
use crate::validation::{FieldErrors, object};

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
/// The verbs of a subresource that is a part of its object.
const PART: &[&str] = &["get", "patch", "update"];
const STREAM: &[&str] = &["create", "get"];
/// HTTP methods of a proxied request, as verbs.
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

const V1: (&str, &str) = ("", "v1");
const AUTOSCALING_V1: (&str, &str) = ("autoscaling", "v1");

fn same(_: &mut Value) {}

/// What is stored and has no effect yet says so to whoever writes it.
fn without_effect(what: &str) -> Vec<String> {
    vec![format!("{what}; the object is stored and has no effect")]
}

/// Says to whoever makes a new object that nothing in kakoi acts on it yet. Another program may: a real
/// kube-controller-manager does.
fn without_controller(old: Option<&Value>, plural: &str) -> Vec<String> {
    let text = || {
        format!(
            "kakoi has no controller for {plural} yet; the object is stored, and has no effect unless another program \
             acts on it"
        )
    };
    old.map_or_else(|| vec![text()], |_| Vec::new())
}

/// What a kind is that says nothing of itself.
const PLAIN: Kind = Kind {
    group: V1.0,
    version: V1.1,
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    verbs: ALL,
    subresources: &[],
    type_name: "",
    has_status: false,
    scale: None,
    store_prefix: "",
    creates_on_update: false,
    needs_version: false,
    allocates: false,
    default: same,
    dropped: |_, _| Vec::new(),
    prepare_create: |_, _| {},
    prepare_update: |_, _, _| {},
    prepare_status: |_, _, _| {},
    validate: object::metadata_only,
    validate_update: object::metadata_only_update,
    validate_status: |_, _, _| FieldErrors::new(),
    warnings: |_, _| Vec::new(),
    grace: |_, _| Grace::None,
    columns: table::PLAIN_COLUMNS,
    row: table::plain_row,
    row_conditions: |_| Vec::new(),
    selectable_fields: &[],
    to_stored: same,
    from_stored: same,
};

/// A kind that lives outside namespaces.
const CLUSTER: Kind = Kind {
    namespaced: false,
    validate: object::cluster_metadata_only,
    validate_update: object::cluster_metadata_only_update,
    ..PLAIN
};

const fn counted(kind: &Kind) -> Kind {
    Kind { prepare_create: strategy::count_create, prepare_update: strategy::count_update, ..*kind }
}

const fn with_status(kind: &Kind) -> Kind {
    Kind {
        has_status: true,
        prepare_create: strategy::status_create,
        prepare_update: strategy::status_update,
        prepare_status: strategy::status_only,
        validate_status: object::metadata_update,
        ..*kind
    }
}

const fn controlled(kind: &Kind) -> Kind {
    Kind {
        prepare_create: strategy::controlled_create,
        prepare_update: strategy::controlled_update,
        ..with_status(kind)
    }
}

/// A kind that counts the changes of its wishes in `metadata.generation`.
const COUNTED: Kind = counted(&PLAIN);
const CLUSTER_COUNTED: Kind = counted(&CLUSTER);

/// A kind with a status that only `/status` writes.
const STATUS: Kind = with_status(&PLAIN);
const CLUSTER_STATUS: Kind = with_status(&CLUSTER);

/// A kind with a status and a generation.
const CONTROLLED: Kind = controlled(&PLAIN);
const CLUSTER_CONTROLLED: Kind = controlled(&CLUSTER);

/// A kind that is asked and answered, never stored.
const REVIEW: Kind = Kind {
    verbs: CREATE,
    namespaced: false,
    validate: |_, _| FieldErrors::new(),
    validate_update: |_, _, _| FieldErrors::new(),
    ..PLAIN
};

const fn sub(
    name: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
    type_name: &'static str,
) -> Subresource {
    Subresource { name, kind, group_version: None, also: &[], verbs, type_name, part: None }
}

/// A subresource that is a part of its object.
const fn part(name: &'static str, kind: &'static str, type_name: &'static str, part: Part) -> Subresource {
    Subresource { part: Some(part), ..sub(name, kind, PART, type_name) }
}

/// `/status` of a kind.
const fn status(kind: &'static str, type_name: &'static str) -> Subresource {
    sub("status", kind, PART, type_name)
}

/// `/scale` of a kind.
const SCALE: Subresource = Subresource {
    name: "scale",
    kind: "Scale",
    group_version: Some(AUTOSCALING_V1),
    also: &[],
    verbs: PART,
    type_name: "autoscaling.v1.Scale",
    part: None,
};

/// Where `/scale` finds the numbers of a workload.
const SCALED: Option<Scale> =
    Some(Scale { wanted: "/spec/replicas", current: "/status/replicas", selector: "/spec/selector" });

/// The groups in the order of upstream's priorities: `kubectl` looks for short names in this order.
const ROWS: &[&[Kind]] = &[
    core::KINDS,
    extension::REGISTRATION,
    apps::APPS,
    core::EVENTS,
    authority::REVIEWS,
    apps::AUTOSCALING,
    apps::BATCH,
    authority::CERTIFICATES,
    networking::NETWORKING,
    apps::POLICY,
    authority::RBAC,
    storage::KINDS,
    extension::ADMISSION,
    extension::DEFINITIONS,
    node::SCHEDULING,
    node::COORDINATION,
    node::RUNTIME,
    networking::DISCOVERY,
    node::DEVICES,
    extension::FLOW_CONTROL,
];

static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| ROWS.iter().copied().flatten().copied().collect());

/// All kinds: the core group first, then the groups by priority; in each group the preferred version first, sorted by
/// plural name.
pub fn kinds() -> &'static [Kind] {
    &KINDS
}
