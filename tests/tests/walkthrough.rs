//! The walkthrough: what an engineer did in 2022 with Kubernetes 1.25's alpha, step by step, with the numbers that
//! he saw.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by ending")]

use tests::{ExactLock, Node, NodeOptions};

const USERNS: &str = include_str!("../../hack/demo/manifests/userns.yaml");
const NGINX: &str = include_str!("../../hack/demo/manifests/nginx.yaml");
const VOLUMES: &str = include_str!("../../hack/demo/manifests/volumes.yaml");
const HOSTPATH: &str = include_str!("../../hack/demo/manifests/hostpath.yaml");
const CONTRAST: &str = include_str!("../../hack/demo/manifests/contrast.yaml");

fn record(first: u64) -> String {
    let line = format!(r#"[{{"hostId":{first},"containerId":0,"length":65536}}]"#);
    format!(r#"{{"uidMappings":{line},"gidMappings":{line}}}"#)
}

fn uid_map(first: u64) -> String {
    format!("{:10} {first:10} {:10}\n", 0, 65_536)
}

fn container_id(node: &Node, pod: &str) -> String {
    node.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}"]).ok()
}

#[test]
fn step_1_version_says_what_runs_and_what_the_machine_allows() {
    let node = Node::prepare(NodeOptions::default());
    let version = node.shell(&format!("{} version", binary())).ok();
    for field in
        ["kakoi version", "GitCommit:", "BuildDate:", "Compiler:", "Platform:        linux/", "LinkMode:"]
    {
        assert!(version.contains(field), "{field} is missing in:\n{version}");
    }
    assert!(version.contains("SeccompEnabled:  true"), "{version}");
    assert!(version.contains("AppArmorEnabled:"), "{version}");
}

fn binary() -> String {
    std::env::var("KAKOI_BINARY")
        .unwrap_or_else(|_| format!("{}/../target/debug/kakoi", env!("CARGO_MANIFEST_DIR")))
}

#[test]
fn step_2_the_node_is_ready_and_says_what_it_is() {
    let node = Node::start();
    let wide = node.kubectl(&["get", "node", "-owide"]).ok();
    let lines: Vec<&str> = wide.lines().collect();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>().join(" "),
        "NAME STATUS ROLES AGE VERSION INTERNAL-IP EXTERNAL-IP OS-IMAGE KERNEL-VERSION CONTAINER-RUNTIME"
    );
    let row = lines[1];
    for part in ["node", "Ready", "control-plane", "v1.36.", "192.0.2.10", "Debian GNU/Linux", "kakoi://"] {
        assert!(row.contains(part), "{part} is missing in: {row}");
    }
}

#[test]
fn step_3_one_gate_turns_the_feature_off_everywhere() {
    let off = "--feature-gates=UserNamespacesStatelessPodsSupport=false".to_owned();
    let node = Node::start_with(NodeOptions { flags: vec![off], ..NodeOptions::default() });
    assert!(node.log().contains("UserNamespacesSupport=false instead"), "the alpha name's successor is told");
    node.apply(USERNS);
    node.ready(&["userns"]);
    assert_eq!(node.get("pod/userns")["spec"].get("hostUsers"), None, "a14: the field is dropped");
    let map = node.exec("userns", &["cat", "/proc/self/uid_map"]).ok();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "0", "4294967295"]);
}

#[test]
fn steps_4_to_8_both_pods_have_the_posts_exact_numbers_and_keep_them() {
    let _lock = ExactLock::take();
    let mut node = Node::start_with(NodeOptions { is_exact: true, ..NodeOptions::default() });
    assert_eq!(node.apply(USERNS), "pod/userns created\n");
    node.ready(&["userns"]);
    assert_eq!(node.record("userns"), record(131_072));
    assert_eq!(node.exec("userns", &["id"]).ok(), "uid=0(root) gid=0(root) groups=0(root)\n");
    assert_eq!(node.exec("userns", &["cat", "/proc/self/uid_map"]).ok(), uid_map(131_072));
    assert_eq!(node.exec("userns", &["cat", "/proc/self/gid_map"]).ok(), uid_map(131_072));

    assert_eq!(node.apply(NGINX), "pod/nginx created\n");
    node.ready(&["nginx"]);
    assert_eq!(node.record("nginx"), record(196_608));
    let row = node.kubectl(&["get", "pod", "nginx", "--no-headers"]).ok();
    assert_eq!(row.split_whitespace().take(4).collect::<Vec<_>>(), ["nginx", "1/1", "Running", "0"]);
    assert!(http_status(&node, "nginx").starts_with("HTTP/1.1 200"));

    let ids = ["userns", "nginx"].map(|pod| container_id(&node, pod));
    node.kill_daemon();
    node.up();
    node.ready(&["userns", "nginx"]);
    assert_eq!((node.record("userns"), node.record("nginx")), (record(131_072), record(196_608)));
    assert_eq!(["userns", "nginx"].map(|pod| container_id(&node, pod)), ids, "the containers lived on");
    assert!(http_status(&node, "nginx").starts_with("HTTP/1.1 200"));
}

fn http_status(node: &Node, pod: &str) -> String {
    let address = node.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"]).ok();
    node.shell(&format!(
        "exec 3<>/dev/tcp/{address}/80; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; head -n 1 <&3"
    ))
    .ok()
}

#[test]
fn step_6_a_terminal_inside_shows_a_roots_prompt() {
    let node = Node::start();
    node.apply(USERNS);
    node.ready(&["userns"]);
    let typed = "printf 'id\\nexit\\n' | script -qec 'kubectl exec userns -it -- bash' /dev/null";
    let screen = node.shell(typed).ok();
    assert!(screen.contains("root@userns:/#"), "{screen}");
    assert!(screen.contains("uid=0(root) gid=0(root) groups=0(root)"), "{screen}");
}

#[test]
fn step_9_files_of_the_five_volume_types_belong_to_root_inside() {
    let node = Node::start();
    node.apply(VOLUMES);
    node.ready(&["volumes"]);
    for file in
        ["configmap/colour", "secret/password", "downwardapi/labels", "projected/colour", "projected/token"]
    {
        let path = format!("/volumes/{file}");
        assert_eq!(node.exec("volumes", &["stat", "-Lc", "%u:%g", &path]).ok(), "0:0\n", "{file}");
        node.exec("volumes", &["cat", &path]).ok();
    }
    assert_eq!(node.exec("volumes", &["cat", "/volumes/secret/password"]).ok(), "hunter2");
    assert_eq!(node.exec("volumes", &["cat", "/volumes/downwardapi/labels"]).ok(), "app=\"volumes\"");
    let write = "echo written > /volumes/emptydir/file && stat -c %u:%g /volumes/emptydir/file";
    assert_eq!(node.exec("volumes", &["sh", "-c", write]).ok(), "0:0\n");
    let refused = node.exec("volumes", &["sh", "-c", "echo x > /volumes/configmap/colour"]).refused();
    assert!(refused.contains("Read-only file system"), "{refused}");
}

#[test]
fn step_10_a_leaked_host_directory_stays_closed_and_a_mapped_one_is_the_pods() {
    let node = Node::start();
    let dir = node.root().join("leak");
    std::fs::create_dir(&dir).unwrap();
    for (name, owner) in [("root-only", 0), ("stranger", 70_000)] {
        use std::os::unix::fs::{PermissionsExt, chown};
        std::fs::write(dir.join(name), "a secret\n").unwrap();
        std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        chown(dir.join(name), Some(owner), Some(owner)).unwrap();
    }
    let applied =
        node.kubectl_with(&["apply", "-f", "-"], &HOSTPATH.replace("@DIRECTORY@", &dir.to_string_lossy()));
    assert!(applied.stderr.contains("Warning:") && applied.stderr.contains("hostPath"), "{}", applied.stderr);
    applied.ok();
    node.ready(&["leaked", "mapped"]);
    for name in ["root-only", "stranger"] {
        let path = format!("/leaked/{name}");
        assert_eq!(node.exec("leaked", &["stat", "-c", "%u:%g", &path]).ok(), "65534:65534\n");
        assert!(node.exec("leaked", &["cat", &path]).refused().contains("Permission denied"));
    }
    assert_eq!(node.exec("mapped", &["stat", "-c", "%u:%g", "/mapped/root-only"]).ok(), "0:0\n");
    assert_eq!(node.exec("mapped", &["cat", "/mapped/root-only"]).ok(), "a secret\n");
    assert!(node.exec("mapped", &["cat", "/mapped/stranger"]).refused().contains("Permission denied"));
}

#[test]
fn step_11_without_a_user_namespace_the_same_image_crashes_as_user_1000() {
    let node = Node::start();
    node.apply(CONTRAST);
    node.wait_for("pod/nginx-1000", ".status.containerStatuses[0].state.waiting.reason", "CrashLoopBackOff");
    let described = node.kubectl(&["describe", "pod", "nginx-1000"]).ok();
    assert!(
        described.contains("Back-off restarting failed container nginx in pod nginx-1000"),
        "{described}"
    );
    let row = node.kubectl(&["get", "pod", "nginx-1000", "--no-headers"]).ok();
    assert!(row.contains("CrashLoopBackOff"), "{row}");
    let logs = node.kubectl(&["logs", "nginx-1000", "--previous"]).ok();
    assert!(logs.contains("Permission denied"), "{logs}");
}
