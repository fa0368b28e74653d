//! Sandboxes and containers: run, exec, logs, ends, stop, remove.

use cri::v1::*;

use crate::machine::{Machine, container, fenced_options, node_options, on_a_machine, wait_until};

#[test]
fn a_container_runs_and_its_output_is_logged() {
    on_a_machine("containers::a_container_runs_and_its_output_is_logged", |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.sandbox_config("pod")).await;
        let command = ["sh", "-c", "echo out; echo err >&2; exit 3"];
        let id = machine.run_container(&sandbox, container("c", node_options(), &command)).await;
        let status = machine.wait_exited(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
        assert!(status.started_at > 0 && status.finished_at >= status.started_at);
        let log = machine.log(&id).await;
        assert!(log.contains(" stdout F out\n") && log.contains(" stderr F err\n"), "{log}");
        machine.down();
    });
}

#[test]
fn a_command_that_is_not_in_the_image_is_named() {
    on_a_machine("containers::a_command_that_is_not_in_the_image_is_named", |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.sandbox_config("pod")).await;
        let id =
            machine.create_container(&sandbox, container("c", node_options(), &["/no/such"])).await.unwrap();
        let request = StartContainerRequest { container_id: id.clone() };
        let error = machine.runtime.start_container(request).await.unwrap_err();
        assert!(error.message().contains("/no/such"), "{error}");
        let status = machine.status(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (127, "ContainerCannotRun"));
        assert!(status.message.contains("/no/such"), "{status:?}");
        machine.down();
    });
}

#[test]
fn every_verb_may_be_repeated() {
    on_a_machine("containers::every_verb_may_be_repeated", |mut machine| async move {
        let config = machine.sandbox_config("pod");
        let sandbox = machine.run_sandbox(config.clone()).await;
        assert_eq!(machine.run_sandbox(config).await, sandbox, "the same request is the same sandbox");
        let wanted = container("c", node_options(), &["sleep", "1000"]);
        let id = machine.create_container(&sandbox, wanted.clone()).await.unwrap();
        assert_eq!(machine.create_container(&sandbox, wanted).await.unwrap(), id);
        machine.runtime.start_container(StartContainerRequest { container_id: id.clone() }).await.unwrap();
        for _ in 0..2 {
            let request = StopContainerRequest { container_id: id.clone(), timeout: 0 };
            machine.runtime.stop_container(request).await.unwrap();
        }
        for _ in 0..2 {
            let request = RemoveContainerRequest { container_id: id.clone() };
            machine.runtime.remove_container(request).await.unwrap();
        }
        for _ in 0..2 {
            let request = StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
            machine.runtime.stop_pod_sandbox(request).await.unwrap();
        }
        for _ in 0..2 {
            let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.clone() };
            machine.runtime.remove_pod_sandbox(request).await.unwrap();
        }
        machine.down();
    });
}

#[test]
fn a_stop_signal_is_sent_before_the_container_is_killed() {
    on_a_machine(
        "containers::a_stop_signal_is_sent_before_the_container_is_killed",
        |mut machine| async move {
            let sandbox = machine.run_sandbox(machine.sandbox_config("pod")).await;
            let script = "trap 'echo got; exit 7' USR1; echo ready; while :; do sleep 1000 & wait $!; done";
            let mut config = container("c", node_options(), &["sh", "-c", script]);
            config.stop_signal = Signal::Sigusr1.into();
            let id = machine.run_container(&sandbox, config).await;
            wait_for_log(&mut machine, &id, "ready").await;
            let request = StopContainerRequest { container_id: id.clone(), timeout: 30 };
            machine.runtime.stop_container(request).await.unwrap();
            let status = machine.status(&id).await;
            assert_eq!((status.exit_code, status.state()), (7, ContainerState::ContainerExited));
            machine.down();
        },
    );
}

async fn wait_for_log(machine: &mut Machine, id: &str, text: &str) {
    let path = machine.status(id).await.log_path;
    wait_until(&format!("the log says {text}"), || {
        std::fs::read_to_string(&path).unwrap_or_default().contains(text)
    });
}

#[test]
fn a_container_over_its_memory_limit_is_reported_as_oom_killed() {
    on_a_machine(
        "containers::a_container_over_its_memory_limit_is_reported_as_oom_killed",
        |mut machine| async move {
            let sandbox = machine.run_sandbox(machine.fenced_config("pod", 1)).await;
            let mut config = container(
                "c",
                fenced_options(1),
                &["dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"],
            );
            let linux = config.linux.as_mut().unwrap();
            linux.resources = Some(LinuxContainerResources {
                memory_limit_in_bytes: 32 << 20,
                memory_swap_limit_in_bytes: 32 << 20,
                cpu_shares: 512,
                cpu_quota: 50_000,
                cpu_period: 100_000,
                oom_score_adj: 1000,
                ..LinuxContainerResources::default()
            });
            let id = machine.run_container(&sandbox, config).await;
            let status = machine.wait_exited(&id).await;
            assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
            machine.down();
        },
    );
}

#[test]
fn limits_are_set_changed_and_measured() {
    on_a_machine("containers::limits_are_set_changed_and_measured", |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.fenced_config("pod", 1)).await;
        let mut config = container("c", fenced_options(1), &["sleep", "1000"]);
        let limit = |bytes| LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() };
        config.linux.as_mut().unwrap().resources = Some(limit(64 << 20));
        let id = machine.run_container(&sandbox, config).await;
        let stats = |machine: &Machine| {
            let mut client = machine.runtime.clone();
            let request = ContainerStatsRequest { container_id: id.clone() };
            async move { client.container_stats(request).await.unwrap().into_inner().stats.unwrap() }
        };
        let memory = stats(&machine).await.memory.unwrap();
        let limit_of = |memory: &MemoryUsage| {
            memory.available_bytes.unwrap().value + memory.working_set_bytes.unwrap().value
        };
        assert_eq!(limit_of(&memory), 64 << 20);
        assert!(memory.usage_bytes.unwrap().value > 0);
        let request = UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(limit(96 << 20)),
            ..Default::default()
        };
        machine.runtime.update_container_resources(request).await.unwrap();
        let after = stats(&machine).await;
        assert_eq!(limit_of(&after.memory.unwrap()), 96 << 20);
        assert!(after.writable_layer.unwrap().used_bytes.is_some());
        let reported = machine.status(&id).await.resources.unwrap().linux.unwrap();
        assert_eq!(reported.memory_limit_in_bytes, 96 << 20);
        let pod = PodSandboxStatsRequest { pod_sandbox_id: sandbox };
        let pod = machine.runtime.pod_sandbox_stats(pod).await.unwrap().into_inner().stats.unwrap();
        assert_eq!(pod.linux.unwrap().containers.len(), 1);
        machine.down();
    });
}

#[test]
fn a_rotated_log_is_continued_in_a_new_file() {
    on_a_machine("containers::a_rotated_log_is_continued_in_a_new_file", |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.sandbox_config("pod")).await;
        let script = "echo one; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo two; sleep 1000";
        let id = machine.run_container(&sandbox, container("c", node_options(), &["sh", "-c", script])).await;
        wait_for_log(&mut machine, &id, "one").await;
        let path = machine.status(&id).await.log_path;
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o640);
        std::fs::rename(&path, format!("{path}.1")).unwrap();
        let request = ReopenContainerLogRequest { container_id: id.clone() };
        machine.runtime.reopen_container_log(request).await.unwrap();
        machine.exec(&id, &["touch", "/tmp/go"]).await;
        wait_for_log(&mut machine, &id, "two").await;
        assert!(!machine.log(&id).await.contains("one"));
        machine.down();
    });
}

#[test]
fn a_pod_has_its_files_its_name_and_its_network() {
    on_a_machine("containers::a_pod_has_its_files_its_name_and_its_network", |mut machine| async move {
        let mut config = machine.fenced_config("pod", 1);
        let sysctls = &mut config.linux.as_mut().unwrap().sysctls;
        sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
        sysctls.insert("net.ipv4.ping_group_range".into(), "0 2147483647".into());
        let sandbox = machine.run_sandbox(config).await;
        let mut config = container("c", fenced_options(1), &["sleep", "1000"]);
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.no_new_privs = true;
        config.working_dir = "/made/here".into();
        config.envs = vec![KeyValue { key: "SET".into(), value: b"by request".to_vec() }];
        let id = machine.run_container(&sandbox, config).await;
        assert_eq!(machine.exec(&id, &["cat", "/etc/resolv.conf"]).await, "nameserver 10.96.0.10\n");
        assert_eq!(machine.exec(&id, &["cat", "/etc/hostname"]).await, "pod\n");
        assert_eq!(machine.exec(&id, &["hostname"]).await, "pod\n");
        assert_eq!(machine.exec(&id, &["id", "-G"]).await, "1000 50\n");
        assert_eq!(
            machine.exec(&id, &["sh", "-c", "pwd; echo $SET $HOSTNAME $HOME"]).await,
            "/made/here\nby request pod /\n"
        );
        assert_eq!(machine.exec(&id, &["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"]).await, "0\n");
        assert_eq!(
            machine.exec(&id, &["cat", "/proc/sys/net/ipv4/ping_group_range"]).await,
            "0\t65535\n",
            "G05"
        );
        assert_eq!(machine.exec(&id, &["stat", "-c", "%u %a", "/dev/shm"]).await, "0 1777\n");
        let seccomp =
            machine.exec(&id, &["grep", "-E", "^(Seccomp|NoNewPrivs|CapEff):", "/proc/self/status"]).await;
        assert_eq!(seccomp, "CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n");
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox, verbose: false };
        let status = machine.runtime.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
        let ip = status.network.unwrap().ip;
        assert!(ip.starts_with("10.233.0."), "{ip}");
        assert!(machine.exec(&id, &["ip", "addr", "show", "eth0"]).await.contains(&ip));
        machine.down();
    });
}

#[test]
fn g06_a_sysctl_of_the_node_is_refused_by_name() {
    on_a_machine("containers::g06_a_sysctl_of_the_node_is_refused_by_name", |mut machine| async move {
        let mut config = machine.fenced_config("pod", 1);
        config.linux.as_mut().unwrap().sysctls.insert("kernel.core_pattern".into(), "x".into());
        let request = RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let error = machine.runtime.run_pod_sandbox(request).await.unwrap_err();
        assert!(error.message().contains("kernel.core_pattern"), "{error}");
        machine.down();
    });
}

#[test]
fn g16_a_privileged_container_in_a_user_namespace_is_still_nobody_on_the_node() {
    let name = "containers::g16_a_privileged_container_in_a_user_namespace_is_still_nobody_on_the_node";
    on_a_machine(name, |mut machine| async move {
        let mut config = machine.fenced_config("pod", 1);
        config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
        let sandbox = machine.run_sandbox(config).await;
        let mut config = container("c", fenced_options(1), &["sleep", "1000"]);
        config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
        let id = machine.run_container(&sandbox, config).await;
        assert!(
            machine.exec(&id, &["grep", "CapEff", "/proc/self/status"]).await.contains("000001ffffffffff")
        );
        machine.exec(&id, &["mount", "-t", "tmpfs", "none", "/tmp"]).await;
        let denied =
            machine.try_exec(&id, &["sh", "-c", "echo x > /proc/sys/kernel/core_pattern"]).await.unwrap();
        assert_ne!(denied.exit_code, 0);
        machine.down();
    });
}

#[test]
fn a05_a_fenced_pod_can_use_the_nodes_network() {
    on_a_machine("containers::a05_a_fenced_pod_can_use_the_nodes_network", |mut machine| async move {
        let options = NamespaceOption { network: NamespaceMode::Node.into(), ..fenced_options(1) };
        let mut config = machine.fenced_config("pod", 1);
        let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        context.namespace_options = Some(options.clone());
        let sandbox = machine.run_sandbox(config).await;
        let id = machine.run_container(&sandbox, container("c", options, &["sleep", "1000"])).await;
        assert!(machine.exec(&id, &["ip", "link"]).await.contains("kktest0"));
        assert!(machine.exec(&id, &["cat", "/proc/self/uid_map"]).await.contains(" 65536"));
        let denied = machine.try_exec(&id, &["mkdir", "/sys/fs/cgroup/x"]).await.unwrap();
        assert_ne!(denied.exit_code, 0);
        machine.down();
    });
}

#[test]
fn containers_of_a_pod_can_share_their_processes() {
    on_a_machine("containers::containers_of_a_pod_can_share_their_processes", |mut machine| async move {
        let options = NamespaceOption { pid: NamespaceMode::Pod.into(), ..fenced_options(1) };
        let mut config = machine.fenced_config("pod", 1);
        let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        context.namespace_options = Some(options.clone());
        let sandbox = machine.run_sandbox(config).await;
        machine.run_container(&sandbox, container("one", options.clone(), &["sleep", "1001"])).await;
        let two = machine.run_container(&sandbox, container("two", options, &["sleep", "1002"])).await;
        let list = machine.exec(&two, &["ps"]).await;
        assert!(list.contains("sleep 1001") && list.contains("sleep 1002"), "{list}");
        machine.down();
    });
}

#[test]
fn images_are_listed_described_and_removed() {
    on_a_machine("containers::images_are_listed_described_and_removed", |mut machine| async move {
        let spec = |name: &str| Some(ImageSpec { image: name.into(), ..Default::default() });
        let request = ImageStatusRequest { image: spec("busybox"), verbose: true };
        let image = machine.images.image_status(request).await.unwrap().into_inner().image.unwrap();
        assert_eq!(image.repo_tags, ["docker.io/library/busybox:latest"]);
        assert_eq!(image.uid.unwrap().value, 0);
        let sandbox = machine.run_sandbox(machine.fenced_config("pod", 1)).await;
        let id = machine.run_container(&sandbox, container("c", fenced_options(1), &["sleep", "1000"])).await;
        machine.images.remove_image(RemoveImageRequest { image: spec("busybox") }).await.unwrap();
        let list =
            machine.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
        assert!(list.is_empty());
        assert_eq!(machine.exec(&id, &["cat", "/root-only"]).await, "mine", "layers in use stay");
        let error = machine
            .create_container(&sandbox, container("d", fenced_options(1), &["true"]))
            .await
            .unwrap_err();
        assert!(error.message().contains("busybox"), "{error}");
        let info = machine.images.image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.image_filesystems.len(), info.container_filesystems.len()), (1, 1));
        let missing = PullImageRequest { image: spec("no-such-image"), ..Default::default() };
        let error = machine.images.pull_image(missing).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::NotFound, "{error}");
        machine.down();
    });
}

#[test]
fn g20_a_checkpoint_is_refused_with_the_reason() {
    on_a_machine("containers::g20_a_checkpoint_is_refused_with_the_reason", |mut machine| async move {
        let error =
            machine.runtime.checkpoint_container(CheckpointContainerRequest::default()).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::Unimplemented);
        assert!(error.message().contains("CRIU can't restore"), "{error}");
        machine.down();
    });
}
