//! Claims and volumes until nothing is left to do, with every write made as the API makes it.

use std::collections::BTreeMap;

use informer::{Store, Update};
use serde_json::{Value, json};

use super::model::{Consumer, Node, Whole, World};
use super::{Plan, Step, bind, release};

/// All objects by key, and what was told of them.
#[derive(Default)]
struct Cluster {
    objects: BTreeMap<String, Value>,
    classes: Vec<Value>,
    pods: Vec<Value>,
    nodes: Vec<Value>,
    told: Vec<String>,
}

fn store<K: informer::Object + From<Value>>(objects: &[Value]) -> Store<K> {
    let mut store = Store::default();
    store.apply(Update::Snapshot(objects.iter().cloned().map(K::from).collect()));
    store
}

impl Cluster {
    fn with(objects: Vec<Value>) -> Self {
        let mut cluster = Self::default();
        for (number, mut object) in objects.into_iter().enumerate() {
            object["metadata"]["uid"] = format!("uid-{number}").into();
            cluster.objects.insert(key(&object), object);
        }
        cluster
    }

    fn plan(&self, key: &str) -> Plan {
        let (claims, volumes): (Vec<Value>, Vec<Value>) =
            self.objects.values().cloned().partition(|object| object["metadata"].get("namespace").is_some());
        let (claims, volumes, classes) =
            (store::<Whole>(&claims), store::<Whole>(&volumes), store::<Whole>(&self.classes));
        let (pods, nodes) = (store::<Consumer>(&self.pods), store::<Node>(&self.nodes));
        let world =
            World { claims: &claims, volumes: &volumes, classes: &classes, pods: &pods, nodes: &nodes };
        let object = &self.objects[key];
        if key.contains('/') {
            bind::plan_claim(object, &world)
        } else {
            release::plan_volume(object, &world)
        }
    }

    /// Makes one write of one object; false when there is none.
    fn step(&mut self, key: &str) -> bool {
        let plan = self.plan(key);
        self.told.extend(plan.news.map(|news| news.reason.to_owned()));
        let Some(Step::Write(object) | Step::Status(object)) = plan.step else { return false };
        let meta = &object["metadata"];
        let is_held = meta["finalizers"].as_array().is_some_and(|all| !all.is_empty());
        let is_gone = meta.get("deletionTimestamp").is_some() && !is_held;
        if is_gone {
            self.objects.remove(&self::key(&object));
        } else {
            self.objects.insert(self::key(&object), object);
        }
        true
    }

    /// Makes writes in turn until there are none.
    fn settle(&mut self) {
        for _ in 0..100 {
            let keys: Vec<String> = self.objects.keys().cloned().collect();
            let steps: Vec<bool> =
                keys.iter().map(|key| self.objects.contains_key(key) && self.step(key)).collect();
            if !steps.contains(&true) {
                return;
            }
        }
        panic!("no end: {:#?}", self.objects);
    }

    fn phase(&self, key: &str) -> &str {
        self.objects.get(key).map_or("gone", |object| object["status"]["phase"].as_str().unwrap_or_default())
    }

    fn delete(&mut self, key: &str) {
        self.objects.get_mut(key).unwrap()["metadata"]["deletionTimestamp"] = json!("2026-11-23T12:00:00Z");
    }
}

fn key(object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().unwrap();
    object["metadata"]["namespace"]
        .as_str()
        .map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"))
}

fn claim(name: &str, class: &str) -> Value {
    json!({"metadata": {"namespace": "n", "name": name}, "spec": {"storageClassName": class,
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
}

fn volume(name: &str, class: &str, policy: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": "2Gi"}, "persistentVolumeReclaimPolicy": policy}})
}

fn pod(node: &str) -> Value {
    json!({"metadata": {"namespace": "n", "name": "p"}, "spec": {"nodeName": node,
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}})
}

#[test]
fn a_claim_and_a_volume_find_each_other_and_part() {
    let mut cluster = Cluster::with(vec![claim("c", ""), volume("v", "", "Retain")]);
    cluster.settle();
    assert_eq!((cluster.phase("n/c"), cluster.phase("v")), ("Bound", "Bound"));
    let bound = &cluster.objects["n/c"];
    assert_eq!(
        (&bound["spec"]["volumeName"], &bound["status"]["capacity"]["storage"]),
        (&json!("v"), &json!("2Gi"))
    );
    assert_eq!(cluster.objects["v"]["spec"]["claimRef"]["uid"], bound["metadata"]["uid"]);

    cluster.pods.push(pod("one"));
    cluster.delete("n/c");
    cluster.delete("v");
    cluster.settle();
    assert_eq!((cluster.phase("n/c"), cluster.phase("v")), ("Bound", "Bound"), "a Pod uses them");
    cluster.pods.clear();
    cluster.settle();
    assert_eq!((cluster.phase("n/c"), cluster.phase("v")), ("gone", "gone"));
}

#[test]
fn what_becomes_of_a_volume_is_its_policys() {
    for (policy, provisioned, expected, told) in [
        ("Retain", false, "Released", None),
        ("Delete", false, "Failed", Some("VolumeFailedDelete")),
        ("Delete", true, "Released", None),
        ("Recycle", false, "Failed", Some("VolumeFailedRecycle")),
    ] {
        let mut made = volume("v", "", policy);
        if provisioned {
            made["metadata"]["annotations"] = json!({"pv.kubernetes.io/provisioned-by": "csi.example"});
        }
        let mut cluster = Cluster::with(vec![claim("c", ""), made]);
        cluster.settle();
        cluster.delete("n/c");
        cluster.settle();
        assert_eq!((cluster.phase("n/c"), cluster.phase("v")), ("gone", expected), "{policy} {provisioned}");
        let failure =
            cluster.told.iter().map(String::as_str).find(|reason| reason.starts_with("VolumeFailed"));
        assert_eq!(failure, told, "{policy} {provisioned}");
        let says_why =
            cluster.objects["v"]["status"]["message"].as_str().is_some_and(|text| text.contains("by hand"));
        assert_eq!(says_why, expected == "Failed");
        // A new claim of the same name is another one.
        let mut again = claim("c", "");
        again["metadata"]["uid"] = json!("another");
        cluster.objects.insert("n/c".to_owned(), again);
        cluster.settle();
        assert_eq!((cluster.phase("n/c"), cluster.phase("v")), ("Pending", expected));
    }
}

#[test]
fn two_claims_never_share_a_volume_and_each_gets_one_when_there_is_one() {
    let mut cluster = Cluster::with(vec![claim("a", ""), claim("b", ""), volume("v", "", "Retain")]);
    cluster.settle();
    assert_eq!((cluster.phase("n/a"), cluster.phase("n/b")), ("Bound", "Pending"));
    assert!(cluster.told.contains(&"FailedBinding".to_owned()));
    let mut second = volume("w", "", "Retain");
    second["metadata"]["uid"] = json!("second");
    cluster.objects.insert("w".to_owned(), second);
    cluster.settle();
    assert_eq!((cluster.phase("n/b"), cluster.phase("w")), ("Bound", "Bound"));
}

#[test]
fn a_claim_of_a_waiting_class_binds_where_its_first_pod_is() {
    let on = |name: &str, node: &str| {
        let mut volume = volume(name, "local", "Retain");
        let term = json!({"matchExpressions": [{"key": "host", "operator": "In", "values": [node]}]});
        volume["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [term]}});
        volume
    };
    let mut cluster = Cluster::with(vec![claim("c", "local"), on("v1", "one"), on("v2", "two")]);
    cluster
        .classes
        .push(json!({"metadata": {"name": "local"}, "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer"}));
    let node = |name: &str| json!({"metadata": {"name": name, "labels": {"host": name}}});
    cluster.nodes = vec![node("one"), node("two")];
    cluster.pods.push(pod(""));
    cluster.settle();
    assert_eq!(cluster.phase("n/c"), "Pending");
    assert!(cluster.told.contains(&"WaitForFirstConsumer".to_owned()));
    cluster.pods = vec![pod("two")];
    cluster.settle();
    assert_eq!(
        (cluster.phase("n/c"), cluster.phase("v1"), cluster.phase("v2")),
        ("Bound", "Available", "Bound")
    );

    let mut selected = claim("c", "local");
    selected["metadata"]["annotations"] = json!({"volume.kubernetes.io/selected-node": "one"});
    let mut cluster = Cluster { objects: Cluster::with(vec![selected, on("v1", "one")]).objects, ..cluster };
    cluster.pods.clear();
    cluster.settle();
    assert_eq!(cluster.phase("v1"), "Bound");
}

#[test]
fn who_names_the_other_gets_it_if_it_fits() {
    let mut named = claim("c", "");
    named["spec"]["volumeName"] = json!("large");
    let large = volume("large", "", "Retain");
    let mut cluster = Cluster::with(vec![named.clone(), large, volume("small", "", "Retain")]);
    cluster.settle();
    assert_eq!((cluster.phase("large"), cluster.phase("small")), ("Bound", "Available"));
    assert!(
        cluster.objects["n/c"]["metadata"]["annotations"]
            .get("pv.kubernetes.io/bound-by-controller")
            .is_none()
    );

    let mut kept = volume("kept", "", "Retain");
    kept["spec"]["claimRef"] = json!({"namespace": "n", "name": "c"});
    let mut cluster = Cluster::with(vec![claim("b", ""), claim("c", ""), kept]);
    cluster.settle();
    assert_eq!((cluster.phase("n/b"), cluster.phase("n/c")), ("Pending", "Bound"), "it is kept for c");

    let mut tiny = volume("large", "", "Retain");
    tiny["spec"]["capacity"]["storage"] = json!("1Mi");
    let mut cluster = Cluster::with(vec![named, tiny]);
    cluster.settle();
    assert_eq!(cluster.phase("n/c"), "Pending");
    assert!(cluster.told.contains(&"VolumeMismatch".to_owned()));
}

#[test]
fn a_bound_claim_without_its_volume_is_lost() {
    let mut cluster = Cluster::with(vec![claim("c", ""), volume("v", "", "Retain")]);
    cluster.settle();
    cluster.objects.remove("v");
    cluster.settle();
    assert_eq!((cluster.phase("n/c"), cluster.told.last().map(String::as_str)), ("Lost", Some("ClaimLost")));
}

#[test]
fn a_provisioner_is_asked_and_nobody_is_blamed_for_a_missing_class() {
    let mut cluster = Cluster::with(vec![claim("c", "fast"), claim("d", "none")]);
    cluster.classes.push(json!({"metadata": {"name": "fast"}, "provisioner": "csi.example"}));
    cluster.settle();
    let asked =
        &cluster.objects["n/c"]["metadata"]["annotations"]["volume.kubernetes.io/storage-provisioner"];
    assert_eq!(asked, "csi.example");
    for reason in ["ExternalProvisioning", "ProvisioningFailed"] {
        assert!(cluster.told.contains(&reason.to_owned()), "{reason}");
    }
}
