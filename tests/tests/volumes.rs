//! Volumes of a Pod in a user namespace: data on disk carries the container's IDs, and the Pod sees the same numbers.
//!
//! The IDs are those of the behaviour's specification (volumes H01-H20). The part of H04 about huge pages is missing: it
//! needs a node that has set some aside (`/proc/sys/vm/nr_hugepages`), which a test must not change on its machine, and
//! the kubelet refuses that medium by name.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by ending")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tests::{Kept, Node, Ran, SharedNode};

static NODE: SharedNode = SharedNode::new(start);

fn node() -> Arc<Kept> {
    NODE.get()
}

fn start() -> Node {
    let node = Node::start();
    let host = node.root().join("host");
    fs::create_dir_all(host.join("sub")).unwrap();
    fs::write(host.join("sub/file"), "old\n").unwrap();
    put(&host.join("stranger"), 0o666, 70_000);
    put(&host.join("root-only"), 0o600, 0);
    fs::set_permissions(&host, fs::Permissions::from_mode(0o700)).unwrap();
    node.apply(&include_str!("volumes.yaml").replace("@ROOT@", &node.root().to_string_lossy()));
    node.ready(&["files", "group"]);
    node
}

fn put(path: &Path, mode: u32, owner: u32) {
    fs::write(path, "text\n").unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
}

/// A shell line as user 1000 of the Pod `files`.
fn as_user(node: &Node, line: &str) -> Ran {
    node.kubectl(&["exec", "files", "-c", "user", "--", "sh", "-c", line])
}

/// A shell line as root of the Pod `files`.
fn as_root(node: &Node, line: &str) -> Ran {
    node.exec("files", &["sh", "-c", line])
}

/// Where an emptyDir of a Pod lies on the node.
fn on_disk(node: &Node, pod: &str, volume: &str) -> PathBuf {
    let pod = node.root().join("var/lib/kubelet/pods").join(node.uid(pod));
    pod.join("volumes/kubernetes.io~empty-dir").join(volume)
}

/// User and group as they lie on disk, or in the memory that is mounted on the node.
fn owner(node: &Node, path: &Path) -> String {
    node.shell(&format!("stat -c %u:%g {}", path.display())).ok().trim_end().to_owned()
}

#[test]
fn h01_every_file_of_the_four_kinds_belongs_to_root_inside() {
    let node = node();
    let list = "find -L /configmap /secret /narrow /downward /projected -type f -not -path '*/..*' -printf '%p %U:%G\\n' | sort";
    let listed = as_root(&node, list).ok();
    let names: Vec<&str> = listed.lines().map(|line| line.split(' ').next().unwrap()).collect();
    let all = [
        "/configmap/colour",
        "/configmap/shape",
        "/downward/labels",
        "/narrow/password",
        "/projected/colour",
        "/projected/name",
        "/projected/password",
        "/projected/shape",
        "/projected/token",
        "/secret/password",
    ];
    assert_eq!(names, all);
    assert!(listed.lines().all(|line| line.ends_with(" 0:0")), "{listed}");
}

#[test]
fn h02_a_secret_of_mode_0400_is_roots_alone() {
    let node = node();
    assert_eq!(as_root(&node, "stat -Lc %a /narrow/password; cat /narrow/password").ok(), "400\nhunter2");
    assert!(as_user(&node, "cat /narrow/password").refused().contains("Permission denied"));
    assert_eq!(as_user(&node, "cat /secret/password").ok(), "hunter2", "the default mode is 0644");
}

#[test]
fn h03_with_an_fs_group_new_files_are_the_users_and_the_groups_inside_and_on_disk() {
    let node = node();
    for volume in ["disk", "memory"] {
        let line = format!(
            "id -u; id -G; echo x > /{volume}/new && stat -c %u:%g /{volume}/new && stat -c %g:%A /{volume}"
        );
        let printed = node.exec("group", &["sh", "-c", &line]).ok();
        assert_eq!(printed, "1000\n1000 2000\n1000:2000\n2000:drwxrwsrwx\n", "{volume}");
        assert_eq!(owner(&node, &on_disk(&node, "group", volume).join("new")), "1000:2000", "{volume}");
    }
    let secret =
        node.exec("group", &["sh", "-c", "stat -Lc %u:%g:%a /narrow/password; cat /narrow/password"]);
    assert_eq!(secret.ok(), "0:2000:440\nhunter2", "the group may read");
}

#[test]
fn h04_what_is_written_to_an_empty_dir_carries_the_containers_ids_on_disk() {
    let node = node();
    for volume in ["disk", "memory"] {
        as_root(&node, &format!("echo x > /{volume}/roots")).ok();
        as_user(&node, &format!("echo x > /{volume}/users")).ok();
        let dir = on_disk(&node, "files", volume);
        assert_eq!(
            (owner(&node, &dir.join("roots")), owner(&node, &dir.join("users"))),
            ("0:0".to_owned(), "1000:1000".to_owned()),
            "{volume}"
        );
        assert_eq!(
            as_root(&node, &format!("cd /{volume} && stat -c %u:%g . roots users")).ok(),
            "0:0\n0:0\n1000:1000\n"
        );
    }
    let full =
        as_root(&node, "head -c 8M /dev/zero > /memory/large; e=$?; rm -f /memory/large; exit $e").refused();
    assert!(full.contains("No space left on device"), "the volume has a limit of 4Mi: {full}");
}

#[test]
fn h05_a_directory_of_the_host_for_its_root_alone_is_open_to_the_pods_root() {
    let node = node();
    let host = node.root().join("host");
    assert_eq!(
        as_root(&node, "cat /host/root-only && echo new > /host/new && stat -c %u:%g:%a /host").ok(),
        "text\n0:0:700\n"
    );
    assert_eq!(
        (owner(&node, &host.join("new")), fs::read_to_string(host.join("new")).unwrap()),
        ("0:0".into(), "new\n".into())
    );
    assert!(as_user(&node, "ls /host").refused().contains("Permission denied"));
}

#[test]
fn h12_the_last_id_of_the_pod_can_own_a_file_and_the_next_one_cannot() {
    let node = node();
    let attempts = [
        ("make it", r#"make("/disk/h12")"#, "done"),
        ("the last", r#"chown(65535, 65535, "/disk/h12")"#, "done"),
        ("the next user", r#"chown(65536, -1, "/disk/h12")"#, "EINVAL"),
        ("the next group", r#"chown(-1, 65536, "/disk/h12")"#, "EINVAL"),
    ];
    node.attempt("files", &attempts);
    assert_eq!(owner(&node, &on_disk(&node, "files", "disk").join("h12")), "65535:65535");
}

#[test]
fn h13_a_file_of_an_id_beyond_the_pods_is_nobodys_and_cannot_be_taken() {
    let node = node();
    let attempts = [
        ("nobody's", r#"my @s = stat "/host/stranger"; "$s[4]:$s[5]" eq "65534:65534""#, "done"),
        ("read it, as all may", r#"get("/host/stranger")"#, "done"),
        ("take it", r#"chown(0, 0, "/host/stranger")"#, "EPERM"),
        ("write it, which all may, too", r#"put("/host/stranger", "x")"#, "EACCES"),
        ("its mode", r#"chmod(0600, "/host/stranger")"#, "EOVERFLOW"),
    ];
    node.attempt("files", &attempts);
    assert_eq!(owner(&node, &node.root().join("host/stranger")), "70000:70000");
}

#[test]
fn h14_a_config_map_that_changes_is_seen_through_its_directory() {
    let node = node();
    let before = as_root(&node, "readlink /configmap/..data").ok();
    node.kubectl(&["patch", "configmap", "colours", "-p", r#"{"data":{"colour":"green"}}"#]).ok();
    node.until("the new colour", Duration::from_secs(90), |node| {
        as_root(node, "cat /configmap/colour /projected/colour").ok() == "greengreen"
    });
    assert_ne!(as_root(&node, "readlink /configmap/..data").ok(), before, "all files change at once");
    assert_eq!(as_root(&node, "stat -Lc %u:%g /configmap/colour").ok(), "0:0\n");
    assert_eq!(as_root(&node, "cat /single/colour").ok(), "blue", "h15: a single file stays what it was");
}

#[test]
fn h15_a_single_file_stays_what_it_was_when_the_host_replaces_it() {
    let node = node();
    let dir = node.root().join("host/sub");
    fs::write(dir.join("next"), "new\n").unwrap();
    fs::rename(dir.join("next"), dir.join("file")).unwrap();
    assert_eq!(as_root(&node, "cat /single/file; cat /host/sub/file").ok(), "old\nnew\n");
}
