//! Root filesystems of fenced Pods: layers that are shared, an image's own volumes, and a node whose `/proc` is not whole.
//!
//! The IDs are those of the behaviour's specification. G12 asks for an image beyond 1 GiB and 100 Pods: what it must show
//! (no copy, no mount left) does not grow with either, so fewer and smaller ones show it here. G18 (a cgroup that the
//! container may write) has no test: no field of CRI v1 asks for one, and S20 shows that the groups are not the Pod's.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use cri::v1::*;

use crate::image::write_above;
use crate::machine::{Machine, block, container, fenced_options, mounts, on_a_machine};

/// A container of an image of the test's own that waits.
fn of_image(image: &str, number: u32) -> ContainerConfig {
    let mut config = container("c", fenced_options(number), &["sleep", "1000"]);
    config.image = Some(ImageSpec { image: image.into(), ..ImageSpec::default() });
    config
}

/// A fenced Pod with one container.
async fn run(machine: &mut Machine, number: u32, config: ContainerConfig) -> String {
    let sandbox = machine.run_sandbox(machine.fenced_config(&format!("pod{number}"), number)).await;
    machine.run_container(&sandbox, config).await
}

/// Bytes that a tree takes on disk.
fn size(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let each = entries.map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => size(&entry.path()),
        Ok(data) => data.blocks() * 512,
        Err(_) => 0,
    });
    each.sum()
}

#[test]
fn g12_pods_of_an_image_of_fifty_layers_copy_nothing_and_leave_no_mount() {
    let name = "roots::g12_pods_of_an_image_of_fifty_layers_copy_nothing_and_leave_no_mount";
    on_a_machine(name, |mut machine| async move {
        let layer = |number: u8| (format!("layer-{number}"), vec![number; 100_000]);
        let layers: Vec<_> = (1..50).map(layer).collect();
        write_above(&machine.path().join("mirror"), "layered", &layers, "/data");
        machine.pull("layered").await;
        let before = (size(machine.path()), mounts());
        for number in 1..=10 {
            let id = run(&mut machine, number, of_image("layered", number)).await;
            let seen = machine.exec(&id, &["stat", "-c", "%u:%g %s", "/layer-1", "/layer-49"]).await;
            assert_eq!(seen, "0:0 100000\n0:0 100000\n");
        }
        let grown = size(machine.path()) - before.0;
        assert!(grown < 4_900_000, "ten Pods took {grown} bytes, as much as one copy of the image");
        assert_eq!(mounts(), before.1, "what was attached for a moment is gone while the Pods run");
        machine.down();
    });
}

#[test]
fn g14_an_images_volume_at_run_is_roots_and_takes_the_accounts_token_below_it() {
    let name = "roots::g14_an_images_volume_at_run_is_roots_and_takes_the_accounts_token_below_it";
    on_a_machine(name, |mut machine| async move {
        write_above(&machine.path().join("mirror"), "runs", &[("run/seed".into(), b"seed".into())], "/run");
        machine.pull("runs").await;
        let account = machine.path().join("account");
        std::fs::create_dir(&account).unwrap();
        std::fs::write(account.join("token"), "secret").unwrap();
        let mut config = of_image("runs", 1);
        config.mounts = vec![Mount {
            container_path: "/run/secrets/kubernetes.io/serviceaccount".into(),
            host_path: account.to_string_lossy().into_owned(),
            readonly: true,
            uid_mappings: vec![block(1)],
            gid_mappings: vec![block(1)],
            ..Mount::default()
        }];
        let id = run(&mut machine, 1, config).await;
        assert_eq!(machine.exec(&id, &["stat", "-c", "%u:%g", "/run", "/run/seed"]).await, "0:0\n0:0\n");
        let token = "/run/secrets/kubernetes.io/serviceaccount/token";
        assert_eq!(machine.exec(&id, &["cat", "/run/seed", token]).await, "seedsecret");
        machine.exec(&id, &["touch", "/run/made"]).await;
        machine.down();
    });
}

/// The kernel gives a user namespace no new `proc` while the node's is covered anywhere (`mount_too_revealing`). Mounts
/// are made in the node's own user namespace, where that rule does not hold, so there is nothing to refuse.
#[test]
fn g15_a_proc_of_the_node_that_is_covered_in_places_hinders_no_pod() {
    let name = "roots::g15_a_proc_of_the_node_that_is_covered_in_places_hinders_no_pod";
    on_a_machine(name, |mut machine| async move {
        let shell = |line: &str| assert!(Command::new("sh").args(["-c", line]).status().unwrap().success());
        shell("mount -t tmpfs covered /proc/fs && mount --bind /dev/null /proc/cpuinfo");
        machine.restart(&[]).await;
        let id = run(&mut machine, 1, of_image("busybox", 1)).await;
        let map = machine.exec(&id, &["cat", "/proc/self/uid_map"]).await;
        assert_eq!(map.split_whitespace().nth(1), Some(block(1).host_id.to_string().as_str()));
        assert!(
            machine.exec(&id, &["cat", "/proc/cpuinfo"]).await.contains("processor"),
            "proc is a fresh one"
        );
        machine.down();
        shell("umount /proc/fs /proc/cpuinfo");
    });
}
