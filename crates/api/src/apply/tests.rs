//! What users of server-side apply rely on, and laws that hold for any objects.

#![allow(clippy::needless_pass_by_value, reason = "a value is made where it is used")]

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::type_named;

const MAP: Expected<'_> = Expected { group: "", version: "v1", kind: "ConfigMap", also: &[] };
const POD: Expected<'_> = Expected { group: "", version: "v1", kind: "Pod", also: &[] };

fn alone(_: &str, _: &Value) -> Option<(&'static Type, Value)> {
    None
}

fn type_of(expected: Expected<'_>) -> &'static Type {
    type_named(&format!("core.v1.{}", expected.kind)).unwrap()
}

fn with_managers(mut object: Value, managers: &Managers) -> Value {
    object["metadata"]["managedFields"] = managers.to_value();
    object
}

/// An object in a cluster of one, and who writes it.
struct World {
    expected: Expected<'static>,
    object: Value,
    seconds: i64,
}

impl World {
    fn new(expected: Expected<'static>) -> Self {
        Self { expected, object: nothing(type_of(expected), expected), seconds: 0 }
    }

    fn write<T>(
        &mut self,
        name: &str,
        operation: Operation,
        write: impl FnOnce(Writer<'_>, &Value) -> T,
    ) -> T {
        self.seconds += 1;
        let manager = Manager::new(name, operation, "", &self.expected.api_version());
        let (now, ignored) = (Timestamp::from_second(self.seconds).unwrap(), FieldSet::default());
        let (root, expected) = (type_of(self.expected), self.expected);
        let writer = Writer { root, expected, manager: &manager, now, ignored: &ignored, convert: &alone };
        write(writer, &self.object)
    }

    fn update(&mut self, name: &str, new: &Value) {
        let managers = self.write(name, Operation::Update, |writer, live| {
            update(writer, live, new, managers_of_update(live, new))
        });
        self.object = with_managers(new.clone(), &managers);
        self.object["metadata"]["uid"] = "u".into();
    }

    fn apply_as(&mut self, name: &str, config: &Value, force: bool) -> Result<Value, ApplyError> {
        let applied =
            self.write(name, Operation::Apply, |writer, live| apply(writer, live, config, force))?;
        self.object = with_managers(applied.object.clone(), &applied.managers);
        self.object["metadata"]["uid"] = "u".into();
        Ok(applied.object)
    }

    fn apply(&mut self, name: &str, config: Value) -> Result<Value, ApplyError> {
        self.apply_as(name, &config, false)
    }

    fn fields(&self, name: &str) -> Value {
        let entries = self.object["metadata"]["managedFields"].as_array().unwrap();
        let mine = entries.iter().find(|entry| entry["manager"] == name);
        mine.map_or(Value::Null, |entry| entry["fieldsV1"].clone())
    }
}

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
}

fn pod(containers: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}})
}

#[test]
fn a_field_that_is_no_longer_applied_goes_and_others_stay() {
    let mut world = World::new(MAP);
    world.apply("m1", map(json!({"a": "1", "b": "2"}))).unwrap();
    world.apply("m2", map(json!({"b": "2", "c": "3"}))).unwrap();
    let left = world.apply("m1", map(json!({}))).unwrap();
    assert_eq!(left["data"], json!({"b": "2", "c": "3"}));
    assert_eq!(world.fields("m2"), json!({"f:data": {"f:b": {}, "f:c": {}}}));
}

#[test]
fn a_conflict_names_the_other_manager_and_the_field() {
    let mut world = World::new(MAP);
    world.apply("m1", map(json!({"a": "1"}))).unwrap();
    let refused = world.apply("m2", map(json!({"a": "2"}))).unwrap_err();
    assert_eq!(refused.to_string(), r#"Apply failed with 1 conflict: conflict with "m1": .data.a"#);
    world.apply_as("m2", &map(json!({"a": "2"})), true).unwrap();
    assert_eq!(world.fields("m1"), Value::Null, "force takes the field away");
    assert_eq!(world.fields("m2"), json!({"f:data": {"f:a": {}}}));
}

#[test]
fn conflicts_are_told_by_manager() {
    let mut world = World::new(MAP);
    world.update("kubectl-edit", &map(json!({"a": "1", "b": "1"})));
    let refused = world.apply("m2", map(json!({"a": "2", "b": "2"}))).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-edit\" using v1:\n- .data.a\n- .data.b"
    );
}

#[test]
fn what_is_applied_by_two_is_shared_and_goes_with_the_last() {
    let mut world = World::new(MAP);
    world.apply("m1", map(json!({"a": "1"}))).unwrap();
    world.apply("m2", map(json!({"a": "1"}))).unwrap();
    assert_eq!(world.apply("m1", map(json!({}))).unwrap()["data"], json!({"a": "1"}));
    assert_eq!(world.apply("m2", map(json!({}))).unwrap().get("data"), None);
}

#[test]
fn an_update_owns_what_it_changes() {
    let mut world = World::new(MAP);
    world.update("curl", &map(json!({"a": "1"})));
    assert_eq!(world.fields("curl"), json!({"f:data": {".": {}, "f:a": {}}}));
    world.update("other", &map(json!({"a": "1", "b": "2"})));
    assert_eq!(world.fields("curl"), json!({"f:data": {".": {}, "f:a": {}}}));
    assert_eq!(world.fields("other"), json!({"f:data": {"f:b": {}}}));
    world.update("third", &map(json!({"b": "3"})));
    assert_eq!(world.fields("curl"), json!({"f:data": {}}));
    assert_eq!(world.fields("other"), Value::Null);
    assert_eq!(world.fields("third"), json!({"f:data": {"f:b": {}}}));
}

#[test]
fn an_object_with_nothing_but_a_name_has_no_managers() {
    let mut world = World::new(MAP);
    world.update("curl", &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}));
    assert_eq!(world.object["metadata"]["managedFields"], json!([]));
    world.update("curl", &map(json!({"a": "1"})));
    assert_eq!(world.object["metadata"]["managedFields"], json!([]), "and stays without");
    world.apply("m", map(json!({"b": "1"}))).unwrap();
    assert_eq!(world.fields(BEFORE_FIRST_APPLY), json!({"f:data": {".": {}, "f:a": {}}}));
}

#[test]
fn items_of_a_keyed_list_belong_to_who_applies_them() {
    let mut world = World::new(POD);
    let port = |n: i64| json!({"containerPort": n});
    world.apply("m1", pod(json!([{"name": "a", "image": "1", "ports": [port(80)]}]))).unwrap();
    let both = world
        .apply("m2", pod(json!([{"name": "b", "image": "2"}, {"name": "a", "ports": [port(443)]}])))
        .unwrap();
    assert_eq!(
        both["spec"]["containers"],
        json!([{"name": "b", "image": "2"}, {"name": "a", "image": "1", "ports": [port(80), port(443)]}])
    );
    let fields = world.fields("m2");
    assert_eq!(
        fields["f:spec"]["f:containers"][r#"k:{"name":"a"}"#]["f:ports"],
        json!({r#"k:{"containerPort":443,"protocol":"TCP"}"#: {".": {}, "f:containerPort": {}}})
    );
    let left = world.apply("m2", pod(json!([{"name": "a", "ports": [port(443)]}]))).unwrap();
    assert_eq!(left["spec"]["containers"].as_array().unwrap().len(), 1, "{left}");
    let refused = world.apply("m3", pod(json!([{"name": "a", "image": "3"}]))).unwrap_err();
    assert_eq!(
        refused.to_string(),
        r#"Apply failed with 1 conflict: conflict with "m1": .spec.containers[name="a"].image"#
    );
}

#[test]
fn atomic_values_have_one_owner() {
    let mut world = World::new(POD);
    world.apply("m1", pod(json!([{"name": "a", "args": ["1", "2"]}]))).unwrap();
    let refused = world.apply("m2", pod(json!([{"name": "a", "args": ["1", "3"]}]))).unwrap_err();
    assert!(refused.to_string().ends_with(r#".spec.containers[name="a"].args"#), "{refused}");
    let selector = |value: &str| {
        let term = json!({"matchLabels": {"x": value}});
        let affinity = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"labelSelector": term, "topologyKey": "t"}]}});
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"affinity": affinity}})
    };
    world.apply("m3", selector("1")).unwrap();
    world.apply("m4", selector("2")).unwrap_err();
}

#[test]
fn finalizers_are_a_set() {
    let mut world = World::new(MAP);
    let with = |finalizers: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "finalizers": finalizers}});
    world.apply("m1", with(json!(["x/a"]))).unwrap();
    let both = world.apply("m2", with(json!(["x/b"]))).unwrap();
    assert_eq!(both["metadata"]["finalizers"], json!(["x/a", "x/b"]));
    assert_eq!(world.fields("m2"), json!({"f:metadata": {"f:finalizers": {"v:\"x/b\"": {}}}}));
    let left = world.apply("m1", with(json!([]))).unwrap();
    assert_eq!(left["metadata"]["finalizers"], json!(["x/b"]));
}

#[test]
fn a_place_that_is_taken_twice_is_refused() {
    let mut world = World::new(POD);
    let refused = world.apply("m", pod(json!([{"name": "a"}, {"name": "a"}]))).unwrap_err();
    assert_eq!(refused.to_string(), r#".spec.containers: duplicate entries for key [name="a"]"#);
    let refused = world.apply("m", pod(json!([{"image": "i"}]))).unwrap_err();
    assert!(refused.to_string().contains("omits key field \"name\""), "{refused}");
}

#[test]
fn kubectl_takes_over_what_it_applied_on_the_client_side() {
    let mut world = World::new(MAP);
    let mut object = map(json!({"a": "1", "b": "1"}));
    object["metadata"]["annotations"] = json!({LAST_APPLIED: map(json!({"a": "1"})).to_string()});
    world.update("kubectl-client-side-apply", &object);
    let applied = world.apply("kubectl", map(json!({"a": "2"}))).unwrap();
    assert_eq!(applied["data"], json!({"a": "2", "b": "1"}));
    let kept = applied["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(kept).unwrap(), map(json!({"a": "2"})));
    let refused = world.apply("kubectl", map(json!({"a": "2", "b": "2"}))).unwrap_err();
    assert!(refused.to_string().ends_with(": .data.b"), "{refused}");
}

#[test]
fn old_updates_are_joined() {
    let mut world = World::new(MAP);
    let mut data = Map::new();
    for at in 0..14 {
        data.insert(format!("k{at}"), "v".into());
        let mut object = world.object.clone();
        object["data"] = Value::Object(data.clone());
        world.update(&format!("m{at}"), &object);
    }
    let entries = world.object["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), 10, "{entries:#?}");
    assert_eq!(entries[0]["manager"], "ancient-changes");
    assert_eq!(entries[0]["fieldsV1"]["f:data"].as_object().unwrap().len(), 6, "`.` and five keys");
}

#[test]
fn a_null_and_a_zero_are_owned() {
    let body =
        b"apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {hostNetwork: false, nodeName: null}\n";
    let decoded = codec::decode_applied(body, type_of(POD), POD).unwrap();
    let mut world = World::new(POD);
    world.apply("m", decoded.object).unwrap();
    assert_eq!(world.fields("m"), json!({"f:spec": {"f:hostNetwork": {}, "f:nodeName": {}}}));
}

#[test]
fn names_come_from_the_request_or_its_user_agent() {
    assert_eq!(manager_name("me", "kubectl/v1.32 (linux)"), "me");
    assert_eq!(manager_name("", "kubectl/v1.32 (linux)"), "kubectl");
    assert_eq!(manager_name("", ""), "unknown");
    assert_eq!(manager_name("", &"ü".repeat(100)).len(), 128);
}

fn any_data() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-e]", "[0-2]", 0..5)
        .prop_map(|data| Value::Object(data.into_iter().map(|(k, v)| (k, Value::from(v))).collect()))
}

fn any_pod() -> impl Strategy<Value = Value> {
    let ports = prop::collection::btree_set(1_i64..5, 0..3);
    let container = ("[a-d]", prop::option::of("[0-2]"), ports);
    prop::collection::vec(container, 0..4).prop_map(|containers| {
        let mut seen = std::collections::BTreeSet::new();
        let unique = containers.into_iter().filter(|(name, ..)| seen.insert(name.clone()));
        let written = unique.map(|(name, image, ports)| {
            let ports: Vec<Value> = ports.into_iter().map(|n| json!({"containerPort": n})).collect();
            let mut container = json!({"name": name, "ports": ports});
            if let Some(image) = image {
                container["image"] = image.into();
            }
            container
        });
        pod(written.collect())
    })
}

proptest! {
    #[test]
    fn applying_twice_is_applying_once(first in any_pod(), second in any_pod()) {
        let mut world = World::new(POD);
        world.apply("m1", first).unwrap();
        world.apply_as("m2", &second, true).unwrap();
        let once = world.object.clone();
        world.apply_as("m2", &second, true).unwrap();
        prop_assert_eq!(&world.object, &once);
    }

    #[test]
    fn who_applies_an_object_reads_it_back(objects in prop::collection::vec(any_pod(), 1..5)) {
        let mut world = World::new(POD);
        for object in &objects {
            world.apply_as("m", object, false).unwrap();
            let fields = own::fields_of(Shape::of_type(type_of(POD)), object).unwrap();
            let live = own::fields_of(Shape::of_type(type_of(POD)), &bare(&world.object)).unwrap();
            let lost = fields.difference(&live);
            prop_assert!(lost.is_empty(), "{:?}", lost);
        }
        let last = objects.last().unwrap();
        let names = |object: &Value| -> Vec<String> {
            let list = object["spec"]["containers"].as_array().cloned().unwrap_or_default();
            list.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
        };
        prop_assert_eq!(names(&world.object), names(last), "its order is kept, and nothing is left over");
    }

    #[test]
    fn disjoint_managers_never_conflict(ours in any_data(), theirs in any_data()) {
        let theirs: Map<String, Value> =
            theirs.as_object().unwrap().iter().map(|(k, v)| (format!("their-{k}"), v.clone())).collect();
        let mut world = World::new(MAP);
        for _ in 0..2 {
            world.apply("m1", map(ours.clone())).unwrap();
            world.apply("m2", map(Value::Object(theirs.clone()))).unwrap();
        }
        let left = world.apply("m1", map(json!({}))).unwrap();
        let left = left.get("data").cloned().unwrap_or_else(|| json!({}));
        prop_assert_eq!(left, Value::Object(theirs));
    }

    #[test]
    fn a_conflict_changes_nothing_and_force_wins(ours in any_data(), theirs in any_data()) {
        let mut world = World::new(MAP);
        world.apply("m1", map(ours.clone())).unwrap();
        let before = world.object.clone();
        let differs = theirs.as_object().unwrap().iter().any(|(k, v)| ours.get(k).is_some_and(|o| o != v));
        let applied = world.apply("m2", map(theirs.clone()));
        prop_assert_eq!(applied.is_err(), differs);
        if differs {
            prop_assert_eq!(&world.object, &before);
        }
        let forced = world.apply_as("m2", &map(theirs.clone()), true).unwrap();
        for (key, value) in theirs.as_object().unwrap() {
            prop_assert_eq!(&forced["data"][key], value);
        }
    }

    #[test]
    fn a_set_reads_back_as_it_was_written(object in any_pod()) {
        let set = own::fields_of(Shape::of_type(type_of(POD)), &object).unwrap();
        prop_assert_eq!(FieldSet::from_json(&set.to_json()).unwrap(), set.clone());
        prop_assert_eq!(set.union(&set), set.clone());
        prop_assert!(set.difference(&set).is_empty());
        prop_assert_eq!(set.intersection(&set), set);
    }

    #[test]
    fn fields_from_outside_never_panic(text in ".{0,60}") {
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        let _ = FieldSet::from_json(&value);
        let _ = FieldSet::from_json(&json!({"f:a": value}));
    }
}
