//! The cases of conformance that ask one thing of many kinds: that they are in discovery, and are made, read, listed,
//! watched, changed, patched and deleted, one by one and as a collection, with their status where they have one.

use futures::StreamExt as _;
use kube::api::WatchEvent;
use serde_json::{Value, json};

use crate::steps::{Asked, World, label, name};

/// A case.
pub(crate) struct Case {
    /// What the conformance document calls it, or the kind where it has no name of its own there.
    pub(crate) name: &'static str,
    /// `v1`, or group and version.
    api: &'static str,
    plural: &'static str,
    namespaced: bool,
    /// What a patch of its status says; `Null` for kinds without a status.
    status: fn() -> Value,
    /// An object without kind and metadata.
    object: fn() -> Value,
    /// The name of an object, from the case's label and a number.
    name_of: fn(&str, usize) -> String,
}

const fn case(name: &'static str, api: &'static str, plural: &'static str, object: fn() -> Value) -> Case {
    Case {
        name,
        api,
        plural,
        namespaced: true,
        status: || Value::Null,
        object,
        name_of: |label, number| format!("{label}-{number}"),
    }
}

impl Case {
    const fn cluster_wide(self) -> Self {
        Self { namespaced: false, ..self }
    }

    const fn with_status(self, status: fn() -> Value) -> Self {
        Self { status, ..self }
    }

    const fn named(self, name_of: fn(&str, usize) -> String) -> Self {
        Self { name_of, ..self }
    }

    fn root(&self) -> String {
        if self.api == "v1" { "/api/v1".to_owned() } else { format!("/apis/{}", self.api) }
    }

    fn collection(&self, world: &World) -> String {
        if self.namespaced {
            format!("{}/namespaces/{}/{}", self.root(), world.namespace, self.plural)
        } else {
            format!("{}/{}", self.root(), self.plural)
        }
    }
}

fn pods() -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn condition(kind: &str) -> Value {
    json!([{"type": kind, "status": "True", "reason": "Tested", "message": "set by a test",
        "lastTransitionTime": "2026-11-23T12:00:00Z"}])
}

const PRIORITY_LEVEL: fn() -> Value = || {
    json!({"spec": {"type": "Limited",
        "limited": {"nominalConcurrencyShares": 2, "limitResponse": {"type": "Reject"}}}})
};
const FLOW: fn() -> Value = || {
    json!({"spec": {"matchingPrecedence": 10000, "priorityLevelConfiguration": {"name": "global-default"},
        "rules": [{"subjects": [{"kind": "User", "user": {"name": "nobody"}}],
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/nothing"]}]}]}})
};
const EVENT: fn() -> Value = || {
    json!({"involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "reason": "Tested", "type": "Normal",
        "message": "m", "source": {"component": "test"}})
};
const SERIES: fn() -> Value = || {
    json!({"regarding": {"kind": "Pod", "name": "p", "namespace": "default"}, "reason": "Tested", "action": "Do",
        "type": "Normal", "note": "n", "eventTime": "2026-11-23T12:00:00.000000Z",
        "reportingController": "example.com/c", "reportingInstance": "i"})
};
const DEVICES: fn() -> Value =
    || json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "d"}}]}});

/// The kinds of step M1, and those of later steps that need nothing more for this.
pub(crate) const CASES: &[Case] = &[
    case("Priority and Fairness FlowSchema API", "flowcontrol.apiserver.k8s.io/v1", "flowschemas", FLOW)
        .cluster_wide()
        .with_status(|| json!({"conditions": condition("Dangling")})),
    case(
        "Priority and Fairness PriorityLevelConfiguration API",
        "flowcontrol.apiserver.k8s.io/v1",
        "prioritylevelconfigurations",
        PRIORITY_LEVEL,
    )
    .cluster_wide()
    .with_status(|| json!({"conditions": condition("Tested")})),
    case("PodDisruptionBudget: create, update, patch, and delete object", "policy/v1", "poddisruptionbudgets", || {
        json!({"spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "none"}}}})
    }),
    case("ResourceQuota, manage lifecycle of a ResourceQuota", "v1", "resourcequotas", || {
        json!({"spec": {"hard": {"pods": "9"}}})
    }),
    case("ServiceAccount lifecycle test", "v1", "serviceaccounts", || json!({"automountServiceAccountToken": false})),
    case("New Event resource lifecycle, testing a single event", "events.k8s.io/v1", "events", SERIES),
    case("Event, manage lifecycle of an Event", "v1", "events", EVENT),
    case("EndpointSlice API", "discovery.k8s.io/v1", "endpointslices", || {
        json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.1.2.3"]}], "ports": [{"port": 80}]})
    }),
    case("Ingress API", "networking.k8s.io/v1", "ingresses", || {
        json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}})
    })
    .with_status(|| json!({"loadBalancer": {"ingress": [{"ip": "169.1.1.1"}]}})),
    case("IngressClass API", "networking.k8s.io/v1", "ingressclasses", || {
        json!({"spec": {"controller": "example.com/c"}})
    })
    .cluster_wide(),
    case("Service, complete ServiceStatus lifecycle", "v1", "services", || {
        json!({"spec": {"type": "LoadBalancer", "loadBalancerClass": "example.com/c", "ports": [{"port": 80}]}})
    })
    .with_status(|| json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}, "conditions": condition("Tested")})),
    case("Endpoint resource lifecycle", "v1", "endpoints", || {
        json!({"subsets": [{"addresses": [{"ip": "10.0.0.24"}], "ports": [{"port": 80}]}]})
    }),
    case("ConfigMap lifecycle", "v1", "configmaps", || json!({"data": {"a": "1"}})),
    case("Secret patching", "v1", "secrets", || json!({"data": {"a": "MQ=="}})),
    case("PodTemplate lifecycle", "v1", "podtemplates", || json!({"template": pods()})),
    case("RuntimeClass API", "node.k8s.io/v1", "runtimeclasses", || json!({"handler": "h"})).cluster_wide(),
    case("lease API should be available", "coordination.k8s.io/v1", "leases", || {
        json!({"spec": {"holderIdentity": "h", "leaseDurationSeconds": 30}})
    }),
    case("LimitRange, list, patch and delete a LimitRange by collection", "v1", "limitranges", || {
        json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "9"}}]}})
    }),
    case("Scheduler, Verify PriorityClass endpoints", "scheduling.k8s.io/v1", "priorityclasses", || json!({"value": 9}))
        .cluster_wide(),
    case("StorageClass, lifecycle", "storage.k8s.io/v1", "storageclasses", || json!({"provisioner": "example.com/p"}))
        .cluster_wide(),
    case("CSIStorageCapacity API", "storage.k8s.io/v1", "csistoragecapacities", || {
        json!({"storageClassName": "s", "capacity": "1Gi"})
    }),
    case("CSIDriver, lifecycle", "storage.k8s.io/v1", "csidrivers", || json!({"spec": {}})).cluster_wide(),
    case("VolumeAttachment, lifecycle", "storage.k8s.io/v1", "volumeattachments", || {
        json!({"spec": {"attacher": "a", "nodeName": "n", "source": {"persistentVolumeName": "v"}}})
    })
    .cluster_wide()
    .with_status(|| json!({"attached": true})),
    case("ServiceCIDR API", "networking.k8s.io/v1", "servicecidrs", || json!({"spec": {"cidrs": ["10.230.0.0/24"]}}))
        .cluster_wide()
        .with_status(|| json!({"conditions": condition("Tested")})),
    case("IPAddress API", "networking.k8s.io/v1", "ipaddresses", || {
        json!({"spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "nothing"}}})
    })
    .cluster_wide()
    .named(|_, number| format!("192.168.7.{number}")),
    case("CSINode, lifecycle", "storage.k8s.io/v1", "csinodes", || {
        json!({"spec": {"drivers": [{"name": "example.com", "nodeID": "n"}]}})
    })
    .cluster_wide(),
    case("Node, resource lifecycle", "v1", "nodes", || json!({}))
        .cluster_wide()
        .with_status(|| json!({"conditions": condition("Tested")})),
    case("DeviceClass API", "resource.k8s.io/v1", "deviceclasses", || json!({"spec": {}})).cluster_wide(),
    case("ResourceClaim API", "resource.k8s.io/v1", "resourceclaims", || json!({"spec": DEVICES()})),
    case("ResourceClaimTemplate API", "resource.k8s.io/v1", "resourceclaimtemplates", || {
        json!({"spec": {"spec": DEVICES()}})
    }),
    case("ResourceSlice API", "resource.k8s.io/v1", "resourceslices", || {
        json!({"spec": {"driver": "example.com", "nodeName": "n", "devices": [{"name": "d"}],
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}}})
    })
    .cluster_wide(),
    case("Replication Controller, lifecycle", "v1", "replicationcontrollers", || {
        json!({"spec": {"replicas": 0, "selector": {"app": "a"}, "template": pods()}})
    })
    .with_status(|| json!({"replicas": 0, "conditions": condition("Tested")})),
    case("Deployment, status sub-resource", "apps/v1", "deployments", workload)
        .with_status(|| json!({"conditions": condition("Tested")})),
    case("ReplicaSet, status sub-resource", "apps/v1", "replicasets", workload)
        .with_status(|| json!({"replicas": 0, "conditions": condition("Tested")})),
    case("StatefulSet, status sub-resource", "apps/v1", "statefulsets", workload)
        .with_status(|| json!({"replicas": 0, "conditions": condition("Tested")})),
    case("DaemonSet, status sub-resource", "apps/v1", "daemonsets", workload)
        .with_status(|| json!({"conditions": condition("Tested")})),
    case("CronJob API Operations", "batch/v1", "cronjobs", || {
        let mut pods = pods();
        pods["spec"]["restartPolicy"] = "OnFailure".into();
        json!({"spec": {"schedule": "*/1 * * * *", "jobTemplate": {"spec": {"template": pods}}}})
    })
    .with_status(|| json!({"lastScheduleTime": "2026-11-23T12:00:00Z"})),
    case("HorizontalPodAutoscaler API", "autoscaling/v2", "horizontalpodautoscalers", || {
        json!({"spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}})
    })
    .with_status(|| json!({"currentReplicas": 1, "desiredReplicas": 1})),
];

fn workload() -> Value {
    json!({"spec": {"selector": {"matchLabels": {"app": "a"}}, "template": pods()}})
}

/// Runs a case.
pub(crate) async fn run(case: &Case, world: &World) {
    discovered(case, world).await;
    let (all, label) = (case.collection(world), label(case.name));
    let selected = format!("labelSelector=case%3D{label}");
    let mut made = Vec::new();
    for number in 1..=3 {
        let mut object = (case.object)();
        for about in ["/involvedObject/namespace", "/regarding/namespace"] {
            if let Some(namespace) = object.pointer_mut(about) {
                *namespace = world.namespace.clone().into();
            }
        }
        object["metadata"] = json!({"name": (case.name_of)(&label, number), "labels": {"case": label}});
        made.push(world.ask("POST", &all, object).await.is(201));
    }
    let one = format!("{all}/{}", name(&made[0]));
    assert_eq!(world.get(&one).await["metadata"]["uid"], made[0]["metadata"]["uid"]);
    let list = world.get(&format!("{all}?{selected}")).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 3, "{list}");
    if case.namespaced {
        let everywhere = world.get(&format!("{}/{}?{selected}", case.root(), case.plural)).await;
        assert_eq!(everywhere["items"].as_array().unwrap().len(), 3, "{everywhere}");
    }
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let watch = format!("{all}?watch=true&resourceVersion={version}&{selected}");
    let events = world.watch(&watch).await;
    changed(world, &one).await;
    if (case.status)() != Value::Null {
        status(case, world, &one).await;
    }
    let gone = async |object: &Value| {
        world.cluster.wait("it is gone", &all, &name(object), |found| found.is_none()).await
    };
    world.ask("DELETE", &one, Value::Null).await.is(200);
    gone(&made[0]).await;
    told(events, &name(&made[0])).await;
    world.ask("DELETE", &format!("{all}?{selected}"), Value::Null).await.is(200);
    gone(&made[1]).await;
    gone(&made[2]).await;
    let list = world.get(&format!("{all}?{selected}")).await;
    assert_eq!(list["items"], json!([]));
}

/// The group, its version and the resource are in each of the discovery documents.
async fn discovered(case: &Case, world: &World) {
    if let Some((group, _)) = case.api.split_once('/') {
        let groups = world.get("/apis").await;
        let found = groups["groups"].as_array().unwrap().iter().find(|found| found["name"] == group).unwrap();
        let has = |found: &Value| {
            found["versions"].as_array().unwrap().iter().any(|version| version["groupVersion"] == case.api)
        };
        assert!(has(found), "{found}");
        assert!(has(&world.get(&format!("/apis/{group}")).await));
    }
    let resources = world.get(&case.root()).await;
    let names: Vec<&str> =
        resources["resources"].as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
    assert!(names.contains(&case.plural), "{names:?}");
    let status = format!("{}/status", case.plural);
    if (case.status)() != Value::Null {
        assert!(names.contains(&status.as_str()), "{names:?}");
    }
}

/// A patch and an update are found by later reads.
async fn changed(world: &World, one: &str) {
    let patched = world.merge(one, json!({"metadata": {"annotations": {"patched": "true"}}})).await.is(200);
    assert_eq!(patched["metadata"]["annotations"]["patched"], "true");
    let updated = update(world, one, |now| {
        assert_eq!(now["metadata"]["annotations"]["patched"], "true");
        now["metadata"]["annotations"]["updated"] = "true".into();
    })
    .await;
    assert_eq!(updated["metadata"]["annotations"], world.get(one).await["metadata"]["annotations"]);
    assert_eq!(updated["metadata"]["annotations"]["updated"], "true");
}

/// The status is patched, read and updated by its own path, and nothing of the spec is.
async fn status(case: &Case, world: &World, one: &str) {
    let path = format!("{one}/status");
    let before = world.get(one).await;
    let wanted = (case.status)();
    let wish = json!({"metadata": {"annotations": {"patchedstatus": "true"}}, "status": wanted,
        "spec": {"replicas": 77}});
    let patched = world.merge(&path, wish).await.is(200);
    assert_eq!(patched["metadata"]["annotations"]["patchedstatus"], "true", "{patched}");
    assert_eq!(patched["spec"], before["spec"], "a status is no spec");
    let key = wanted.as_object().unwrap().keys().next().unwrap();
    let has_all = |found: &Value| contains(&found["status"][key], &wanted[key]);
    assert!(has_all(&patched), "{patched}");
    let now = update(world, &path, |now| {
        now["metadata"]["annotations"]["updatedstatus"] = "true".into();
        now["status"][key] = patched["status"][key].clone();
    })
    .await;
    assert_eq!(now["metadata"]["annotations"]["updatedstatus"], "true");
    assert!(has_all(&now), "{now}");
}

/// Reads, changes and writes, again when a controller has written meanwhile.
async fn update(world: &World, path: &str, change: impl Fn(&mut Value)) -> Value {
    loop {
        let mut now = world.get(path).await;
        change(&mut now);
        let answer = world.ask("PUT", path, now).await;
        if answer.code != 409 {
            return answer.is(200);
        }
    }
}

/// Whether a value has at least what another one has.
fn contains(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| found.get(key).is_some_and(|found| contains(found, wanted)))
        }
        (Value::Array(found), Value::Array(wanted)) => {
            wanted.iter().all(|wanted| found.iter().any(|found| contains(found, wanted)))
        }
        _ => found == wanted,
    }
}

/// The watch tells of the first object that it was patched, then updated, then deleted.
async fn told(mut events: Asked, name: &str) {
    let mut seen = Vec::new();
    while seen.last() != Some(&"deleted") {
        let event = events.next().await.unwrap().unwrap();
        let (object, kind) = match event {
            WatchEvent::Modified(object) => (object, "modified"),
            WatchEvent::Deleted(object) => (object, "deleted"),
            event => panic!("{event:?}"),
        };
        let annotations = &object["metadata"]["annotations"];
        // Controllers may write a status before.
        if object["metadata"]["name"] != name || annotations["patched"] != "true" {
            continue;
        }
        seen.push(match kind {
            "modified" if annotations["updated"] == "true" => "updated",
            "modified" => "patched",
            kind => kind,
        });
    }
    seen.dedup();
    assert_eq!(seen, ["patched", "updated", "deleted"]);
}
