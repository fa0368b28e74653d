//! What a request can ask for beyond a plain container: profiles of the node, images and devices in containers, and
//! what the runtime tells of all that.

use std::collections::BTreeSet;

use cri::v1::security_profile::ProfileType;
use cri::v1::*;

use crate::machine::{Machine, block, container, fenced_options, node_options, on_a_machine};

fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

/// A container that sleeps under a seccomp profile of the node.
fn profiled(profile: &std::path::Path) -> ContainerConfig {
    let mut config = container("c", node_options(), &["sleep", "1000"]);
    security(&mut config).seccomp = Some(SecurityProfile {
        profile_type: ProfileType::Localhost.into(),
        localhost_ref: profile.to_string_lossy().into_owned(),
    });
    config
}

#[test]
fn a_seccomp_profile_of_the_node_holds_for_the_container_and_its_execs_whatever_becomes_of_the_file() {
    let name = "features::a_seccomp_profile_of_the_node_holds_for_the_container_and_its_execs_whatever_becomes_of_the_file";
    on_a_machine(name, |mut machine| async move {
        let profile = machine.path().join("no-directories.json");
        let text = r#"{"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}"#;
        std::fs::write(&profile, text).unwrap();
        let sandbox = machine.run_sandbox(machine.sandbox_config("pod")).await;
        let id = machine.run_container(&sandbox, profiled(&profile)).await;
        std::fs::remove_file(&profile).unwrap();
        for restarted in [false, true] {
            if restarted {
                machine.crash_and_restart().await;
            }
            let refused = machine.try_exec(&id, &["mkdir", "/tmp/a"]).await.unwrap();
            let text = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(refused.exit_code != 0 && text.contains("Operation not permitted"), "{text}");
            machine.exec(&id, &["touch", "/tmp/b"]).await;
        }
        machine.down();
    });
}

#[test]
fn a_seccomp_profile_that_cannot_be_applied_is_refused_before_anything_exists() {
    let name = "features::a_seccomp_profile_that_cannot_be_applied_is_refused_before_anything_exists";
    on_a_machine(name, |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.sandbox_config("pod")).await;
        let profile = machine.path().join("p.json");
        for (text, word) in [
            ("{", "p.json"),
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "listener"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}"#, "flag X"),
        ] {
            std::fs::write(&profile, text).unwrap();
            let error = machine.create_container(&sandbox, profiled(&profile)).await.unwrap_err();
            assert!(error.message().contains(word), "{error}");
        }
        let list = machine.runtime.list_containers(ListContainersRequest::default()).await.unwrap();
        assert!(list.into_inner().containers.is_empty());
        machine.down();
    });
}

/// The test's image at `/volume`.
fn image_mount(part: &str, mappings: &[IdMapping]) -> Mount {
    Mount {
        container_path: "/volume".into(),
        readonly: true,
        image: Some(ImageSpec { image: "busybox".into(), ..ImageSpec::default() }),
        image_sub_path: part.into(),
        uid_mappings: mappings.to_vec(),
        gid_mappings: mappings.to_vec(),
        ..Mount::default()
    }
}

#[test]
fn h16_an_image_is_mounted_read_only_with_its_owners_as_the_pod_sees_them() {
    let name = "features::h16_an_image_is_mounted_read_only_with_its_owners_as_the_pod_sees_them";
    on_a_machine(name, |mut machine| async move {
        let id = machine.pull("busybox").await;
        for (number, mappings) in [(0, vec![]), (1, vec![block(1)])] {
            let (config, options) = match number {
                0 => (machine.sandbox_config("node"), node_options()),
                _ => (machine.fenced_config("fenced", number), fenced_options(number)),
            };
            let sandbox = machine.run_sandbox(config).await;
            let mut wanted = container("whole", options.clone(), &["sleep", "1000"]);
            wanted.mounts = vec![image_mount("", &mappings)];
            let whole = machine.run_container(&sandbox, wanted).await;
            assert_eq!(machine.exec(&whole, &["stat", "-c", "%u:%g", "/volume/root-only"]).await, "0:0\n");
            assert_eq!(machine.exec(&whole, &["cat", "/volume/data/seed"]).await, "seeded");
            assert_eq!(machine.exec(&whole, &["/volume/bin/busybox", "echo", "runs"]).await, "runs\n");
            let refused = machine.try_exec(&whole, &["touch", "/volume/new"]).await.unwrap();
            assert!(String::from_utf8_lossy(&refused.stderr).contains("Read-only file system"));
            let mount = machine.status(&whole).await.mounts.remove(0);
            assert_eq!(mount.image.unwrap().image_ref, id, "what the pull answered");

            let mut wanted = container("part", options, &["sleep", "1000"]);
            wanted.mounts = vec![image_mount("data/seed", &mappings)];
            let part = machine.run_container(&sandbox, wanted).await;
            assert_eq!(machine.exec(&part, &["cat", "/volume"]).await, "seeded", "a file of the image");
        }
        machine.down();
    });
}

#[test]
fn an_image_volume_that_cannot_be_is_refused_and_one_in_use_outlives_its_image() {
    let name = "features::an_image_volume_that_cannot_be_is_refused_and_one_in_use_outlives_its_image";
    on_a_machine(name, |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.sandbox_config("pod")).await;
        let attempts = [
            (image_mount("no/such", &[]), "no/such"),
            (Mount { readonly: false, ..image_mount("", &[]) }, "readonly"),
            (Mount { image_sub_path: "../..".into(), ..image_mount("", &[]) }, "`..`"),
        ];
        for (mount, word) in attempts {
            let mut wanted = container("c", node_options(), &["sleep", "1000"]);
            wanted.mounts = vec![mount];
            let error = machine.create_container(&sandbox, wanted).await.unwrap_err();
            assert!(error.message().contains(word), "{error}");
        }
        let mut wanted = container("c", node_options(), &["sleep", "1000"]);
        wanted.mounts = vec![image_mount("data", &[])];
        let id = machine.run_container(&sandbox, wanted).await;
        let image = Some(ImageSpec { image: "busybox".into(), ..ImageSpec::default() });
        machine.images.remove_image(RemoveImageRequest { image }).await.unwrap();
        machine.crash_and_restart().await;
        assert_eq!(machine.exec(&id, &["cat", "/volume/seed"]).await, "seeded");
        machine.down();
    });
}

#[test]
fn g17_a_cdi_device_has_its_path_its_owner_and_its_environment_in_a_fenced_pod() {
    let name = "features::g17_a_cdi_device_has_its_path_its_owner_and_its_environment_in_a_fenced_pod";
    on_a_machine(name, |mut machine| async move {
        let cdi = machine.path().join("etc/cdi");
        std::fs::create_dir_all(&cdi).unwrap();
        let spec = serde_json::json!({"cdiVersion": "0.6.0", "kind": "vendor.com/gpu", "devices": [
            {"name": "0", "containerEdits": {
                "env": ["GPU=0"],
                "deviceNodes": [{"path": "/dev/gpu", "hostPath": "/dev/zero", "permissions": "r",
                    "fileMode": 0o440, "uid": 0, "gid": 44}],
                "additionalGids": [44]}}]});
        std::fs::write(cdi.join("vendor.json"), spec.to_string()).unwrap();
        let sandbox = machine.run_sandbox(machine.fenced_config("pod", 2)).await;
        let mut wanted = container("c", fenced_options(2), &["sh", "-c", "sleep 1000"]);
        security(&mut wanted).run_as_user = Some(Int64Value { value: 1000 });
        let mut given = wanted.clone();
        given.cdi_devices = vec![CdiDevice { name: "vendor.com/gpu=0".into() }];
        let id = machine.run_container(&sandbox, given).await;
        let script =
            "echo $GPU; id -G; stat -c %a:%g /dev/gpu; dd if=/dev/gpu bs=4 count=1 2>/dev/null | wc -c";
        let text = machine.exec(&id, &["sh", "-c", script]).await;
        // 50 is the image's own group of this user.
        assert_eq!(text, "0\n1000 44 50\n440:44\n4\n");
        wanted.cdi_devices = vec![CdiDevice { name: "vendor.com/gpu=1".into() }];
        wanted.metadata = Some(ContainerMetadata { name: "other".into(), attempt: 0 });
        let error = machine.create_container(&sandbox, wanted).await.unwrap_err();
        assert!(error.message().contains("vendor.com/gpu=1"), "{error}");
        machine.down();
    });
}

#[test]
fn metrics_have_every_described_name_and_streams_have_the_lists_items() {
    let name = "features::metrics_have_every_described_name_and_streams_have_the_lists_items";
    on_a_machine(name, |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.fenced_config("pod", 3)).await;
        let mut config = container("c", fenced_options(3), &["sleep", "1000"]);
        config.linux.as_mut().unwrap().resources =
            Some(LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() });
        let id = machine.run_container(&sandbox, config).await;
        check_metrics(&mut machine, &sandbox, &id).await;
        check_streams(&mut machine, &sandbox, &id).await;
        let request = PodSandboxStatsRequest { pod_sandbox_id: sandbox };
        let stats = machine.runtime.pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap();
        let network = stats.linux.unwrap().network.unwrap();
        assert_eq!(network.default_interface.unwrap().name, "eth0");
        machine.down();
    });
}

async fn check_metrics(machine: &mut Machine, sandbox: &str, container: &str) {
    let request = ListMetricDescriptorsRequest {};
    let described = machine.runtime.list_metric_descriptors(request).await.unwrap().into_inner().descriptors;
    let request = ListPodSandboxMetricsRequest {};
    let pods = machine.runtime.list_pod_sandbox_metrics(request).await.unwrap().into_inner().pod_metrics;
    let pod = pods.into_iter().find(|pod| pod.pod_sandbox_id == sandbox).unwrap();
    assert_eq!(pod.container_metrics[0].container_id, container);
    let all: Vec<Metric> = pod.metrics.into_iter().chain(pod.container_metrics[0].metrics.clone()).collect();
    let served: BTreeSet<&str> = all.iter().map(|metric| metric.name.as_str()).collect();
    let may_be_absent = |name: &str| {
        ["_blkio_", "_fs_reads", "_fs_writes", "_pressure_", "_hugetlb_"]
            .iter()
            .any(|part| name.contains(part))
    };
    for descriptor in &described {
        let name = descriptor.name.as_str();
        assert!(served.contains(name) || may_be_absent(name), "{name} is described and not served");
    }
    for metric in &all {
        let descriptor = described.iter().find(|one| one.name == metric.name).unwrap();
        assert_eq!(metric.label_values.len(), descriptor.label_keys.len(), "{}", metric.name);
    }
    let value = |name: &str| all.iter().find(|one| one.name == name).and_then(|one| one.value).unwrap().value;
    assert_eq!(value("container_spec_memory_limit_bytes"), 64 << 20);
    assert_eq!(value("container_processes"), 1);
    assert!(value("container_memory_usage_bytes") > 0);
}

async fn check_streams(machine: &mut Machine, sandbox: &str, container: &str) {
    let mut containers =
        machine.runtime.stream_containers(StreamContainersRequest::default()).await.unwrap().into_inner();
    let message = containers.message().await.unwrap().unwrap();
    assert_eq!(message.containers[0].id, container);
    assert!(containers.message().await.unwrap().is_none(), "one message holds them all");
    let request = StreamPodSandboxesRequest::default();
    let mut sandboxes = machine.runtime.stream_pod_sandboxes(request).await.unwrap().into_inner();
    assert_eq!(sandboxes.message().await.unwrap().unwrap().pod_sandboxes[0].id, sandbox);
    let request = StreamContainerStatsRequest::default();
    let mut stats = machine.runtime.stream_container_stats(request).await.unwrap().into_inner();
    assert_eq!(stats.message().await.unwrap().unwrap().container_stats.len(), 1);
    let request = StreamPodSandboxMetricsRequest::default();
    let mut metrics = machine.runtime.stream_pod_sandbox_metrics(request).await.unwrap().into_inner();
    assert_eq!(metrics.message().await.unwrap().unwrap().pod_sandbox_metrics.len(), 1);
    let request = StreamImagesRequest::default();
    let mut images = machine.images.stream_images(request).await.unwrap().into_inner();
    assert_eq!(images.message().await.unwrap().unwrap().images.len(), 1);
}

#[test]
fn what_this_runtime_does_not_do_is_refused_in_words() {
    on_a_machine("features::what_this_runtime_does_not_do_is_refused_in_words", |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.sandbox_config("pod")).await;
        let id = machine.run_container(&sandbox, container("c", node_options(), &["sleep", "1000"])).await;
        let request = CheckpointContainerRequest { container_id: id, ..Default::default() };
        let error = machine.runtime.checkpoint_container(request).await.unwrap_err();
        assert!(error.message().contains("CRIU"), "{error}");
        let request = UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: sandbox.clone(),
            resources: Some(LinuxContainerResources {
                memory_limit_in_bytes: 96 << 20,
                ..Default::default()
            }),
            overhead: None,
        };
        machine.runtime.update_pod_sandbox_resources(request).await.unwrap();
        if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            return machine.down(); // v2 takes every file.
        }
        let mut wanted = container("v2", node_options(), &["sleep", "1000"]);
        let unified = [("memory.high".to_owned(), "1000000".to_owned())].into();
        wanted.linux.as_mut().unwrap().resources =
            Some(LinuxContainerResources { unified, ..Default::default() });
        let id = machine.create_container(&sandbox, wanted).await.unwrap();
        let request = StartContainerRequest { container_id: id };
        let error = machine.runtime.start_container(request).await.unwrap_err();
        assert!(error.message().contains("memory.high"), "{error}");
        machine.down();
    });
}
