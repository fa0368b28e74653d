use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::desired::{self, Desired, Groups};
use super::model::{Endpoint, Endpoints, Pod, Service, Slice};
use super::pack::{self, Plan};

fn service(change: impl FnOnce(&mut Value)) -> Service {
    let mut service = json!({
        "metadata": {"namespace": "team", "name": "web", "uid": "s", "labels": {"tier": "front"}},
        "spec": {"clusterIP": "10.96.0.7", "selector": {"app": "web"}, "ports": [
            {"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP", "appProtocol": "h2c"},
            {"name": "metrics", "port": 9000, "protocol": "TCP"}]},
    });
    change(&mut service);
    serde_json::from_value(service).unwrap()
}

fn pod(name: &str, ip: &str, change: impl FnOnce(&mut Value)) -> Pod {
    let mut pod = json!({
        "metadata": {"namespace": "team", "name": name, "uid": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "n", "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
    });
    change(&mut pod);
    serde_json::from_value(pod).unwrap()
}

fn nothing(_: &mut Value) {}

/// The slices that a plan makes of those that were there.
fn applied(slices: &[Slice], plan: &Plan) -> Vec<Slice> {
    let stays = |slice: &&Slice| {
        let replaced =
            plan.replace.iter().any(|object| object["metadata"]["name"] == slice.key.name.as_str());
        !replaced && !plan.delete.contains(&slice.key.name)
    };
    let written = plan.create.iter().chain(&plan.replace);
    let written = written.map(|object| serde_json::from_value(object.clone()).unwrap());
    slices.iter().filter(stays).cloned().chain(written).collect()
}

fn planned(desired: &Desired, slices: &[Slice]) -> Plan {
    let ours: Vec<&Slice> = slices.iter().collect();
    pack::plan(desired, &ours, |name| slices.iter().any(|slice| slice.key.name == name))
}

#[test]
fn a_slice_shows_each_pod_with_its_own_port_and_state() {
    let pods = [
        pod("ready", "10.0.0.1", nothing),
        pod("starting", "10.0.0.2", |pod| pod["status"]["conditions"][0]["status"] = "False".into()),
        pod("ending", "10.0.0.3", |pod| pod["metadata"]["deletionTimestamp"] = "2026-11-23T12:00:00Z".into()),
        pod("done", "10.0.0.4", |pod| pod["status"]["phase"] = "Succeeded".into()),
        pod("waiting", "", nothing),
    ];
    let desired = desired::from_pods(&service(nothing), pods.iter());
    let plan = planned(&desired, &[]);
    let [slice] = plan.create.as_slice() else { panic!("{plan:?}") };
    assert_eq!(slice["addressType"], "IPv4");
    assert_eq!(
        slice["ports"],
        json!([{"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "h2c"},
            {"name": "metrics", "port": 9000, "protocol": "TCP"}])
    );
    let states: Vec<Value> =
        slice["endpoints"].as_array().unwrap().iter().map(|one| one["conditions"].clone()).collect();
    assert_eq!(
        states,
        [
            json!({"ready": true, "serving": true, "terminating": false}),
            json!({"ready": false, "serving": false, "terminating": false}),
            json!({"ready": false, "serving": true, "terminating": true}),
        ]
    );
    assert_eq!(
        slice["endpoints"][0]["targetRef"],
        json!({"kind": "Pod", "namespace": "team", "name": "ready", "uid": "ready"})
    );
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "web");
    assert_eq!(slice["metadata"]["labels"]["tier"], "front");
    assert_eq!(slice["metadata"]["ownerReferences"][0]["kind"], "Service");
}

#[test]
fn endpoints_have_ready_and_unready_addresses_and_none_of_pods_that_end() {
    let pods = [
        pod("b", "10.0.0.2", nothing),
        pod("a", "10.0.0.1", nothing),
        pod("starting", "10.0.0.3", |pod| pod["status"]["conditions"] = json!([])),
        pod("ending", "10.0.0.4", |pod| pod["metadata"]["deletionTimestamp"] = "2026-11-23T12:00:00Z".into()),
    ];
    let (labels, subsets) = desired::subsets(&service(nothing), pods.iter());
    assert_eq!(
        labels.get("endpoints.kubernetes.io/managed-by").map(String::as_str),
        Some("endpoint-controller")
    );
    let shown = serde_json::to_value(&subsets).unwrap();
    let ips = |part: &str| -> Vec<String> {
        shown[0][part].as_array().unwrap().iter().map(|one| one["ip"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        (subsets.len(), ips("addresses"), ips("notReadyAddresses")),
        (1, vec!["10.0.0.1".into(), "10.0.0.2".into()], vec!["10.0.0.3".into()])
    );
    let all = service(|service| service["spec"]["publishNotReadyAddresses"] = true.into());
    let (_, subsets) = desired::subsets(&all, pods.iter());
    assert_eq!((subsets[0].addresses.len(), subsets[0].not_ready_addresses.len()), (4, 0));
}

#[test]
fn pods_whose_port_has_another_number_have_a_slice_of_their_own() {
    let other = pod("other", "10.0.0.2", |pod| {
        pod["spec"]["containers"][0]["ports"][0]["containerPort"] = 9090.into();
    });
    let pods = [pod("one", "10.0.0.1", nothing), other];
    let plan = planned(&desired::from_pods(&service(nothing), pods.iter()), &[]);
    assert_eq!(plan.create.len(), 2);
    assert_ne!(plan.create[0]["metadata"]["name"], plan.create[1]["metadata"]["name"]);
}

#[test]
fn a_service_without_pods_has_one_empty_slice_and_its_first_pod_leaves_it_with_one() {
    let empty = desired::from_pods(&service(nothing), [].iter());
    let slices = applied(&[], &planned(&empty, &[]));
    assert_eq!((slices.len(), slices[0].endpoints.len()), (1, 0));
    assert!(planned(&empty, &slices).is_empty());
    let pods = [pod("one", "10.0.0.1", nothing)];
    let one = desired::from_pods(&service(nothing), pods.iter());
    let slices = applied(&slices, &planned(&one, &slices));
    assert_eq!((slices.len(), slices[0].endpoints.len()), (1, 1));
}

#[test]
fn a_headless_service_says_so_and_gives_pods_their_names() {
    let headless = service(|service| service["spec"]["clusterIP"] = "None".into());
    let named = pod("one", "10.0.0.1", |pod| {
        pod["spec"]["hostname"] = "one".into();
        pod["spec"]["subdomain"] = "web".into();
    });
    let plan = planned(&desired::from_pods(&headless, [named].iter()), &[]);
    assert_eq!(plan.create[0]["metadata"]["labels"]["service.kubernetes.io/headless"], "");
    assert_eq!(plan.create[0]["endpoints"][0]["hostname"], "one");
}

#[test]
fn what_somebody_wrote_for_a_service_without_selector_is_mirrored() {
    let free = service(|service| service["spec"]["selector"] = json!({}));
    let endpoints = |change: fn(&mut Value)| -> Endpoints {
        let mut endpoints = json!({"metadata": {"namespace": "team", "name": "web", "uid": "e"},
            "subsets": [{"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}],
                "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 80}]}]});
        change(&mut endpoints);
        serde_json::from_value(endpoints).unwrap()
    };
    let plan = planned(&desired::from_endpoints(&free, &endpoints(nothing)).unwrap(), &[]);
    let kinds: Vec<_> = plan.create.iter().map(|slice| slice["addressType"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["IPv4", "IPv6"]);
    assert_eq!(plan.create[0]["endpoints"][1]["conditions"], json!({"ready": false}));
    assert_eq!(plan.create[0]["ports"], json!([{"name": "", "port": 80, "protocol": "TCP"}]));
    let skipped = endpoints(|endpoints| {
        endpoints["metadata"]["labels"] = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
    });
    assert!(desired::from_endpoints(&free, &skipped).is_none());
    assert!(desired::from_endpoints(&service(nothing), &endpoints(nothing)).is_none());
}

fn groups(members: &BTreeSet<u8>, more: u16) -> Groups {
    let small = members.iter().map(|number| u16::from(*number));
    let endpoints = small.chain(1000..1000 + more).map(|number| Endpoint {
        addresses: vec![format!("10.0.{}.{}", number / 256, number % 256)],
        ..Endpoint::default()
    });
    Groups::from([(("IPv4".to_owned(), Vec::new()), endpoints.collect())])
}

proptest! {
    #[test]
    fn every_endpoint_is_in_one_slice_and_those_that_stay_do_not_move(
        steps in prop::collection::vec((prop::collection::btree_set(any::<u8>(), 0..200), 0..150_u16), 1..6)
    ) {
        let mut slices: Vec<Slice> = Vec::new();
        for (members, more) in steps {
            let mut desired = desired::from_pods(&service(nothing), [].iter());
            desired.groups = groups(&members, more);
            let wanted: BTreeSet<_> = desired.groups.values().flatten().map(Endpoint::identity).collect();
            let home = |slices: &[Slice], of: &(String, String)| {
                let holds = |slice: &&Slice| slice.endpoints.iter().any(|one| &one.identity() == of);
                slices.iter().filter(holds).map(|slice| slice.key.name.clone()).collect::<Vec<_>>()
            };
            let before = slices.clone();
            slices = applied(&slices, &planned(&desired, &slices));
            prop_assert!(slices.iter().all(|slice| slice.endpoints.len() <= 100));
            let have: Vec<_> = slices.iter().flat_map(|slice| slice.endpoints.iter().map(Endpoint::identity)).collect();
            prop_assert_eq!(have.len(), wanted.len());
            prop_assert_eq!(have.iter().cloned().collect::<BTreeSet<_>>(), wanted.clone());
            for one in &wanted {
                let former = home(&before, one);
                prop_assert!(former.is_empty() || former == home(&slices, one));
            }
            prop_assert!(planned(&desired, &slices).is_empty(), "a second plan changes nothing");
        }
    }
}
