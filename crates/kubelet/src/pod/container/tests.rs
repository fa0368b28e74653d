//! The request to the runtime, as the spec's author would expect it.

use serde_json::json;
use userns::{IdMappings, IdRange};

use super::*;

fn volume(name: &str, is_mapped: bool, is_read_only: bool) -> ReadyVolume {
    ReadyVolume {
        name: name.into(),
        host_path: format!("/v/{name}").into(),
        is_mapped,
        is_read_only,
        base: 0,
        image: None,
    }
}

fn mounts(container: &Container, has_own_userns: bool) -> Result<Vec<MountPlan>, MountError> {
    let volumes = [volume("data", true, false), volume("config", true, true), volume("leak", false, false)];
    let mut environment = Environment::default();
    environment.variables.push(("POD".into(), "p-1".into()));
    plan_mounts(MountInput {
        container,
        volumes: &volumes,
        environment: &environment,
        has_own_userns,
        can_recurse_read_only: false,
    })
}

fn container(value: serde_json::Value) -> Container {
    serde_json::from_value(value).unwrap()
}

#[test]
fn f11_every_mount_of_a_fenced_pod_carries_its_maps_but_those_bound_plainly() {
    let container = container(
        json!({"name": "c", "image": "i", "command": ["sh"], "args": ["-c", "echo $(POD)"], "tty": true,
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "config", "mountPath": "etc"},
                         {"name": "leak", "mountPath": "/leak", "readOnly": true}]}),
    );
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": []}})).unwrap();
    let mut environment = Environment::default();
    environment.variables.push(("POD".into(), "p-1".into()));
    let plans = mounts(&container, true).unwrap();
    let own = |path: &str| OwnFile { host_path: "/own".into(), container_path: path.into(), is_mapped: true };
    let input = ContainerInput {
        pod: &pod,
        container: &container,
        target_id: None,
        restart_count: 3,
        image: &v1::ImageSpec::default(),
        image_user: &ImageUser::default(),
        environment: &environment,
        userns: &PodUserns::Own(IdMappings::of(IdRange::new(131_072, 65_536).unwrap())),
        mounts: &plans,
        own_files: &[own("/etc/hosts"), own("/dev/termination-log"), own("/data")],
        node: &NodeSecurity::default(),
        node_memory: 1 << 30,
        huge_pages: &Pools::from([(2 << 20, 8), (1 << 30, 0)]),
        has_unified_cgroups: true,
    };
    let config = plan_container(input);
    let seen: Vec<_> = config
        .mounts
        .iter()
        .map(|mount| {
            (
                mount.container_path.as_str(),
                mount.readonly,
                mount.uid_mappings.len(),
                mount.gid_mappings.len(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("/data", false, 1, 1),
            ("/etc", true, 1, 1),
            ("/leak", true, 0, 0),
            ("/etc/hosts", false, 1, 1),
            ("/dev/termination-log", false, 1, 1)
        ]
    );
    assert_eq!(config.args, ["-c", "echo p-1"]);
    assert_eq!(config.log_path, "c/3.log");
    assert_eq!(config.annotations[label::RESTART_COUNT], "3");
    let resources = config.linux.unwrap().resources.unwrap();
    assert_eq!((resources.oom_score_adj, resources.unified.len()), (1000, 1));
    let limits: Vec<_> =
        resources.hugepage_limits.iter().map(|limit| (limit.page_size.as_str(), limit.limit)).collect();
    assert_eq!(limits, [("2MB", 0)], "none of the node's huge pages, for it requests none");
    let older = plan_container(ContainerInput { has_unified_cgroups: false, ..input });
    assert!(older.linux.unwrap().resources.unwrap().unified.is_empty(), "runc refuses them on cgroup v1");
    assert!(config.tty);
}

#[test]
fn what_cannot_be_mounted_is_refused_by_name() {
    let error = |mount: serde_json::Value, own_userns| {
        let container = container(json!({"name": "c", "volumeMounts": [mount]}));
        mounts(&container, own_userns).map(|_| ()).unwrap_err().to_string()
    };
    assert_eq!(
        error(json!({"name": "none", "mountPath": "/x"}), false),
        "cannot find volume \"none\" to mount into container \"c\""
    );
    assert!(
        error(json!({"name": "data", "mountPath": "/x", "mountPropagation": "Bidirectional"}), true)
            .contains("Bidirectional")
    );
    assert!(
        error(json!({"name": "data", "mountPath": "/x", "recursiveReadOnly": "Enabled"}), true)
            .contains("recursiveReadOnly")
    );
    assert!(
        error(json!({"name": "data", "mountPath": "/x", "subPathExpr": "$(NONE)"}), true).contains("$(NONE)")
    );
}

#[test]
fn sub_paths_expand() {
    let container = container(json!({"name": "c", "volumeMounts": [
        {"name": "data", "mountPath": "/x", "subPathExpr": "logs/$(POD)"},
        {"name": "data", "mountPath": "/y", "subPath": "fixed"}]}));
    let plans = mounts(&container, false).unwrap();
    let paths: Vec<_> = plans.iter().map(|plan| plan.sub_path.as_deref().unwrap()).collect();
    assert_eq!(paths, ["logs/p-1", "fixed"]);
}
