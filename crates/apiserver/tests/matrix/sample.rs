//! One object of each kind, as small as the rules allow.

use api::kind::Kind;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// The contents of an object of a kind, without its metadata.
fn contents(kind: &Kind) -> Value {
    let pods =
        json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let selector = json!({"matchLabels": {"app": "a"}});
    let rule = json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]});
    let devices = json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "d"}}]}});
    match (kind.group, kind.plural) {
        ("", "configmaps" | "secrets" | "serviceaccounts" | "namespaces" | "nodes") => json!({}),
        ("", "endpoints") => {
            json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]})
        }
        ("", "events") => {
            json!({"involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "reason": "R",
            "message": "m", "type": "Normal"})
        }
        ("events.k8s.io", "events") => {
            json!({"regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
            "reason": "R", "action": "A", "type": "Normal", "note": "m", "eventTime": "2026-11-23T12:00:00.000000Z",
            "reportingController": "example.com/c", "reportingInstance": "i"})
        }
        ("", "limitranges") => json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}}),
        ("", "persistentvolumeclaims") => json!({"spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}),
        ("", "persistentvolumes") => {
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "hostPath": {"path": "/data"}}})
        }
        ("", "pods") => json!({"spec": {"containers": [{"name": "c", "image": "i"}]}}),
        ("", "podtemplates") => json!({"template": pods}),
        ("", "replicationcontrollers") => json!({"spec": {"selector": {"app": "a"}, "template": pods}}),
        ("", "resourcequotas") => json!({"spec": {"hard": {"pods": "3"}}}),
        ("", "services") => json!({"spec": {"ports": [{"port": 80}]}}),
        ("apps", "controllerrevisions") => json!({"revision": 1, "data": {"a": 1}}),
        ("apps", _) => json!({"spec": {"selector": selector, "template": pods}}),
        ("batch", plural) => {
            let mut pods = pods;
            pods["spec"]["restartPolicy"] = "Never".into();
            let job = json!({"template": pods});
            match plural {
                "jobs" => json!({"spec": job}),
                _ => json!({"spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": job}}}),
            }
        }
        ("autoscaling", _) => json!({"spec": {"maxReplicas": 3,
            "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}}),
        ("networking.k8s.io", "ingressclasses") => json!({"spec": {"controller": "example.com/c"}}),
        ("networking.k8s.io", "ingresses") => {
            json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}})
        }
        ("networking.k8s.io", "ipaddresses") => {
            json!({"spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "s"}}})
        }
        ("networking.k8s.io", "networkpolicies") => json!({"spec": {"podSelector": selector}}),
        ("networking.k8s.io", "servicecidrs") => json!({"spec": {"cidrs": ["10.200.0.0/24"]}}),
        ("policy", _) => json!({"spec": {"minAvailable": 1, "selector": selector}}),
        ("rbac.authorization.k8s.io", "clusterrolebindings") => {
            json!({"roleRef": {"kind": "ClusterRole", "name": "r"},
            "subjects": [{"kind": "User", "name": "u"}]})
        }
        ("rbac.authorization.k8s.io", "rolebindings") => json!({"roleRef": {"kind": "Role", "name": "r"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}]}),
        ("rbac.authorization.k8s.io", _) => {
            json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]})
        }
        ("storage.k8s.io", "csidrivers") => json!({"spec": {}}),
        ("storage.k8s.io", "csinodes") => json!({"spec": {"drivers": [{"name": "d", "nodeID": "n"}]}}),
        ("storage.k8s.io", "csistoragecapacities") => json!({"storageClassName": "s", "capacity": "1Gi"}),
        ("storage.k8s.io", "storageclasses") => json!({"provisioner": "example.com/p"}),
        ("storage.k8s.io", "volumeattachments") => json!({"spec": {"attacher": "a", "nodeName": "n",
            "source": {"persistentVolumeName": "v"}}}),
        ("storage.k8s.io", "volumeattributesclasses") => {
            json!({"driverName": "example.com", "parameters": {"a": "b"}})
        }
        (
            "admissionregistration.k8s.io",
            "mutatingwebhookconfigurations" | "validatingwebhookconfigurations",
        ) => {
            json!({"webhooks": [{"name": "a.example.com", "clientConfig": {"url": "https://example.com/a"}, "rules": [rule],
                "sideEffects": "None", "admissionReviewVersions": ["v1"]}]})
        }
        ("admissionregistration.k8s.io", "validatingadmissionpolicies") => json!({"spec": {
            "matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": "true"}]}}),
        ("admissionregistration.k8s.io", "mutatingadmissionpolicies") => json!({"spec": {
            "matchConstraints": {"resourceRules": [rule]}, "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "[]"}}]}}),
        ("admissionregistration.k8s.io", "validatingadmissionpolicybindings") => {
            json!({"spec": {"policyName": "p.example.com", "validationActions": ["Deny"]}})
        }
        ("admissionregistration.k8s.io", _) => json!({"spec": {"policyName": "p.example.com"}}),
        ("apiextensions.k8s.io", _) => json!({"spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "foos", "kind": "Foo"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}}),
        ("apiregistration.k8s.io", _) => json!({"spec": {"group": "example.com", "version": "v1",
            "groupPriorityMinimum": 100, "versionPriority": 10, "insecureSkipTLSVerify": true,
            "service": {"namespace": "default", "name": "s"}}}),
        ("certificates.k8s.io", _) => {
            let request =
                STANDARD.encode("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n");
            json!({"spec": {"request": request, "signerName": "example.com/s", "usages": ["client auth"]}})
        }
        ("coordination.k8s.io", _) => json!({"spec": {"holderIdentity": "h", "leaseDurationSeconds": 40}}),
        ("discovery.k8s.io", _) => {
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]})
        }
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => {
            json!({"spec": {"priorityLevelConfiguration": {"name": "l"},
            "rules": [{"subjects": [{"kind": "User", "user": {"name": "u"}}],
                "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz"]}]}]}})
        }
        ("flowcontrol.apiserver.k8s.io", _) => json!({"spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": 5, "limitResponse": {"type": "Reject"}}}}),
        ("node.k8s.io", _) => json!({"handler": "runc"}),
        ("resource.k8s.io", "deviceclasses") => json!({"spec": {}}),
        ("resource.k8s.io", "resourceclaims") => json!({"spec": devices}),
        ("resource.k8s.io", "resourceclaimtemplates") => json!({"spec": {"spec": devices}}),
        ("resource.k8s.io", _) => json!({"spec": {"driver": "example.com", "nodeName": "n",
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [{"name": "d"}]}}),
        ("scheduling.k8s.io", _) => json!({"value": 10}),
        ("authentication.k8s.io", "tokenreviews") => json!({"spec": {"token": "t"}}),
        ("authentication.k8s.io", _) => json!({}),
        ("authorization.k8s.io", "selfsubjectrulesreviews") => json!({"spec": {"namespace": "default"}}),
        ("authorization.k8s.io", plural) => {
            let what = json!({"namespace": "default", "verb": "get", "resource": "pods"});
            let mut spec = json!({"resourceAttributes": what});
            if plural != "selfsubjectaccessreviews" {
                spec["user"] = "u".into();
            }
            json!({"spec": spec})
        }
        _ => panic!("a kind without a sample: {}", kind.group_kind()),
    }
}

/// The name of the `i`th object of a kind.
pub(crate) fn name(kind: &Kind, i: usize) -> String {
    match kind.plural {
        "ipaddresses" => format!("10.200.0.{}", i + 1),
        "customresourcedefinitions" => "foos.example.com".to_owned(),
        "apiservices" => "v1.example.com".to_owned(),
        "validatingadmissionpolicies" | "mutatingadmissionpolicies" => format!("p{i}.example.com"),
        _ => format!("a{i}"),
    }
}

/// The `i`th object of a kind.
pub(crate) fn object(kind: &Kind, i: usize) -> Value {
    let mut object = contents(kind);
    object["kind"] = kind.kind.into();
    object["apiVersion"] = kind.api_version().into();
    let is_review = !kind.is_stored();
    object["metadata"] = if is_review { json!({}) } else { json!({"name": name(kind, i)}) };
    object
}
