//! User namespaces: what is refused (F04-F10), what a fenced Pod looks like from inside and outside (G01-G04), volumes.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use cri::v1::*;
use tonic::Code;

use crate::machine::{
    Machine, block, container, fenced_options, mapped_options, node_options, on_a_machine, wait_until,
};

async fn refused(machine: &mut Machine, options: NamespaceOption) -> tonic::Status {
    let mut config = machine.sandbox_config("bad");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options = Some(options);
    let request = RunPodSandboxRequest { config: Some(config), ..Default::default() };
    let error = machine.runtime.run_pod_sandbox(request).await.unwrap_err();
    let all =
        machine.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().into_inner().items;
    assert!(all.is_empty(), "nothing is left of a refused sandbox");
    let directory = machine.path().join("containers/sandboxes");
    assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0);
    error
}

#[test]
fn f04_to_f08_wrong_mappings_are_refused_before_anything_exists() {
    let name = "user_namespaces::f04_to_f08_wrong_mappings_are_refused_before_anything_exists";
    on_a_machine(name, |mut machine| async move {
        let line = |host_id, container_id, length| IdMapping { host_id, container_id, length };
        let second = IdMapping { container_id: 65_536, ..block(2) };
        let mode = |mode: NamespaceMode, uids: Vec<IdMapping>| NamespaceOption {
            userns_options: Some(UserNamespace { mode: mode.into(), gids: uids.clone(), uids }),
            ..fenced_options(1)
        };
        let cases = [
            ("F04 two maps", mapped_options(vec![block(1), second])),
            ("F05 root unmapped", mapped_options(vec![line(3_000_000_000, 1, 65_536)])),
            ("F06 container", mode(NamespaceMode::Container, vec![block(1)])),
            ("F06 target", mode(NamespaceMode::Target, vec![block(1)])),
            ("F07 no maps", mapped_options(vec![])),
            ("F07 node with maps", mode(NamespaceMode::Node, vec![block(1)])),
            ("F08 length 0", mapped_options(vec![line(3_000_000_000, 0, 0)])),
            ("F08 past the end", mapped_options(vec![line(4_294_901_760, 0, 65_536)])),
        ];
        for (case, options) in cases {
            let error = refused(&mut machine, options).await;
            assert_eq!(error.code(), Code::InvalidArgument, "{case}: {error}");
        }
        machine.down();
    });
}

#[test]
fn f09_a_mapping_needs_no_alignment() {
    on_a_machine("user_namespaces::f09_a_mapping_needs_no_alignment", |mut machine| async move {
        let options = mapped_options(vec![IdMapping { host_id: 1000, container_id: 0, length: 100_000 }]);
        let mut config = machine.sandbox_config("pod");
        config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options =
            Some(options.clone());
        let sandbox = machine.run_sandbox(config).await;
        let id = machine.run_container(&sandbox, container("c", options, &["sleep", "1000"])).await;
        let map = machine.exec(&id, &["cat", "/proc/self/uid_map"]).await;
        assert_eq!(map, "         0       1000     100000\n");
        machine.down();
    });
}

#[test]
fn f10_a_container_must_say_what_its_sandbox_says() {
    on_a_machine(
        "user_namespaces::f10_a_container_must_say_what_its_sandbox_says",
        |mut machine| async move {
            let sandbox = machine.run_sandbox(machine.fenced_config("pod", 1)).await;
            for options in [fenced_options(2), node_options()] {
                let error =
                    machine.create_container(&sandbox, container("c", options, &["true"])).await.unwrap_err();
                assert_eq!(error.code(), Code::InvalidArgument, "{error}");
                assert!(error.message().contains("differ"), "{error}");
            }
            machine.down();
        },
    );
}

/// The inode of a process' namespace, and of the user namespace that owns it.
fn namespace(pid: i64, kind: &str) -> (u64, u64) {
    let mut found = None;
    // `lsns` gives up when any process of the machine ends while it looks.
    wait_until("lsns lists the namespace", || {
        found = look(pid, kind);
        found.is_some()
    });
    found.unwrap()
}

fn look(pid: i64, kind: &str) -> Option<(u64, u64)> {
    let output = std::process::Command::new("lsns")
        .args(["--noheadings", "--raw", "--output", "TYPE,NS,ONS", "--task", &pid.to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.split(' ').next() == Some(kind))?;
    let mut numbers = line.split(' ').skip(1).map(|number| number.parse().unwrap());
    Some((numbers.next()?, numbers.next()?))
}

#[test]
fn g01_to_g04_a_fenced_pod_is_root_inside_and_nobody_outside() {
    let name = "user_namespaces::g01_to_g04_a_fenced_pod_is_root_inside_and_nobody_outside";
    on_a_machine(name, |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.fenced_config("pod", 1)).await;
        let options = fenced_options(1);
        let one =
            machine.run_container(&sandbox, container("one", options.clone(), &["sleep", "1000"])).await;
        let two = machine.run_container(&sandbox, container("two", options, &["sleep", "1000"])).await;
        let (first, second) = (machine.pid(&one).await, machine.pid(&two).await);
        let user = namespace(first, "user").0;
        for kind in ["net", "ipc", "uts"] {
            assert_eq!(namespace(first, kind).1, user, "G01: the Pod's user namespace owns its {kind}");
            assert_eq!(namespace(first, kind).0, namespace(second, kind).0, "G04: the Pod shares its {kind}");
        }
        assert_eq!(user, namespace(second, "user").0, "G04");
        assert_ne!(namespace(first, "pid").0, namespace(second, "pid").0, "G04");
        let owner = std::fs::metadata(format!("/proc/{first}")).unwrap().uid();
        assert_eq!(owner, block(1).host_id, "G02: on the node it is nobody");
        let id = machine.exec(&one, &["id"]).await;
        assert_eq!(id, "uid=0(root) gid=0(root) groups=0(root)\n", "G03");
        let map = machine.exec(&one, &["cat", "/proc/self/uid_map"]).await;
        assert_eq!(map, format!("         0 {:>10}      65536\n", block(1).host_id));
        machine.exec(&one, &["sh", "-c", "echo reopened > /dev/stdout"]).await;
        machine.down();
    });
}

#[test]
fn g11_files_of_owners_outside_the_map_are_nobodys() {
    on_a_machine(
        "user_namespaces::g11_files_of_owners_outside_the_map_are_nobodys",
        |mut machine| async move {
            let sandbox = machine.run_sandbox(machine.fenced_config("pod", 1)).await;
            let id =
                machine.run_container(&sandbox, container("c", fenced_options(1), &["sleep", "1000"])).await;
            assert_eq!(machine.exec(&id, &["stat", "-c", "%u", "/stranger"]).await, "65534\n");
            assert_eq!(machine.exec(&id, &["cat", "/stranger"]).await, "strange");
            assert_eq!(machine.exec(&id, &["cat", "/root-only"]).await, "mine");
            let denied = machine.try_exec(&id, &["sh", "-c", "echo x > /stranger"]).await.unwrap();
            assert_ne!(denied.exit_code, 0);
            machine.down();
        },
    );
}

#[test]
fn g09_a_user_outside_the_map_is_named_with_it() {
    on_a_machine("user_namespaces::g09_a_user_outside_the_map_is_named_with_it", |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.fenced_config("pod", 1)).await;
        let mut config = container("c", fenced_options(1), &["true"]);
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.run_as_user = Some(Int64Value { value: 70_000 });
        let error = machine.create_container(&sandbox, config).await.unwrap_err();
        assert!(error.message().contains("70000") && error.message().contains("idsPerPod"), "{error}");
        machine.down();
    });
}

#[test]
fn volumes_show_the_pods_ids_with_mappings_and_nobodys_without() {
    let name = "user_namespaces::volumes_show_the_pods_ids_with_mappings_and_nobodys_without";
    on_a_machine(name, |mut machine| async move {
        let volume = machine.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(volume.join("secret"), "s").unwrap();
        std::fs::set_permissions(volume.join("secret"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let mount = |path: &str, lines: Vec<IdMapping>, readonly| Mount {
            container_path: path.into(),
            host_path: volume.to_str().unwrap().into(),
            uid_mappings: lines.clone(),
            gid_mappings: lines,
            readonly,
            ..Mount::default()
        };
        let sandbox = machine.run_sandbox(machine.fenced_config("pod", 1)).await;
        let mut config = container("c", fenced_options(1), &["sleep", "1000"]);
        config.mounts = vec![
            mount("/mapped", vec![block(1)], false),
            mount("/locked", vec![block(1)], true),
            mount("/plain", vec![], false),
        ];
        let id = machine.run_container(&sandbox, config).await;
        assert_eq!(machine.exec(&id, &["cat", "/mapped/secret"]).await, "s");
        assert_eq!(machine.exec(&id, &["stat", "-c", "%u:%g", "/plain/secret"]).await, "65534:65534\n");
        assert_ne!(machine.try_exec(&id, &["cat", "/plain/secret"]).await.unwrap().exit_code, 0);
        assert_ne!(machine.try_exec(&id, &["touch", "/locked/x"]).await.unwrap().exit_code, 0);
        machine.exec(&id, &["touch", "/mapped/made"]).await;
        assert_eq!(
            std::fs::metadata(volume.join("made")).unwrap().uid(),
            0,
            "on disk the IDs are the container's"
        );
        assert_eq!(machine.exec(&id, &["stat", "-c", "%u:%g %a", "/data/seed"]).await, "1000:1000 640\n");
        machine.exec(&id, &["touch", "/data/more"]).await;
        machine.down();
    });
}

#[test]
fn a_source_that_cannot_be_mapped_is_named() {
    on_a_machine("user_namespaces::a_source_that_cannot_be_mapped_is_named", |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.fenced_config("pod", 1)).await;
        let mut config = container("c", fenced_options(1), &["true"]);
        config.mounts = vec![Mount {
            container_path: "/mnt".into(),
            host_path: "/proc".into(),
            uid_mappings: vec![block(1)],
            gid_mappings: vec![block(1)],
            ..Mount::default()
        }];
        let id = machine.create_container(&sandbox, config).await.unwrap();
        let request = StartContainerRequest { container_id: id };
        let error = machine.runtime.start_container(request).await.unwrap_err();
        for part in ["/proc", "proc", "/mnt", "kernel"] {
            assert!(error.message().contains(part), "{part}: {error}");
        }
        machine.down();
    });
}

#[test]
fn f12_status_advertises_what_works() {
    on_a_machine("user_namespaces::f12_status_advertises_what_works", |mut machine| async move {
        let request = StatusRequest { verbose: true };
        let status = machine.runtime.status(request).await.unwrap().into_inner();
        assert!(status.status.unwrap().conditions.iter().all(|condition| condition.status));
        let handler = &status.runtime_handlers[0];
        assert_eq!(handler.name, "");
        assert!(handler.features.unwrap().user_namespaces, "{:?}", status.info);
        machine.down();
    });
}
