//! What the kernel has no more of: space on disks, namespaces.

use std::fmt::Write as _;
use std::process::{Child, Stdio};

use serde_json::{Value, json};
use tests::{Leftovers, Node, NodeOptions};

use crate::golden::{golden, normalise};
use crate::start::binary;
use crate::{PATIENCE, assert_nothing_stays, places, said, warnings};

/// Puts a small filesystem on a place below the node's root, in the node's mount namespace.
fn mount(node: &Node, place: &str, size: &str) {
    let place = node.root().join(place);
    std::fs::create_dir_all(&place).unwrap();
    node.shell(&format!("mount -t tmpfs -o size={size} tmpfs {}", place.display())).ok();
}

/// Fills the filesystem of a place to the last byte.
fn fill(node: &Node, place: &str) {
    let file = node.root().join(place).join("filler");
    node.shell(&format!("dd if=/dev/zero of={} bs=4k; test -s {0}", file.display())).ok();
}

fn empty(node: &Node, place: &str) {
    node.shell(&format!("rm {}", node.root().join(place).join("filler").display())).ok();
}

/// A Pod that also goes to a node under disk pressure.
fn create(node: &Node, name: &str) {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "hostUsers": false, "terminationGracePeriodSeconds": 0, "tolerations": [{"operator": "Exists"}],
        "containers": [{"name": "c", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "infinity"]}],
    }});
    node.kubectl_with(&["create", "-f", "-"], &pod.to_string()).ok();
}

/// The warning of this reason, once there is one.
fn warning(node: &Node, pod: &str, reason: &str) -> String {
    let mut found = None;
    node.until(&format!("a warning {reason} of {pod}"), PATIENCE, |node| {
        found =
            warnings(node, pod).into_iter().find(|(of, text)| of == reason && !text.starts_with("Error: "));
        found.is_some()
    });
    let places = places(node);
    let names: Vec<(&str, &str)> = places.iter().map(|(from, to)| (from.as_str(), *to)).collect();
    normalise(&found.unwrap().1, &names)
}

#[test]
fn a_disk_without_space_for_images_or_records_is_named_and_space_is_enough_to_go_on() {
    let mut node = Node::prepare(NodeOptions::default());
    let (images, kubelet) = ("var/lib/kakoi/images", "var/lib/kubelet");
    mount(&node, images, "1m");
    mount(&node, kubelet, "1m");
    node.up();
    create(&node, "image");
    let mut text = format!("# an image that does not fit\n{}\n\n", warning(&node, "image", "Failed"));
    node.shell(&format!("mount -o remount,size=64m {}", node.root().join(images).display())).ok();
    node.ready(&["image"]);
    fill(&node, kubelet);
    create(&node, "record");
    let said = warning(&node, "record", "FailedCreatePodSandBox");
    write!(text, "# no space for the record of host IDs\n{said}\n\n").unwrap();
    empty(&node, kubelet);
    node.ready(&["record"]);
    assert_ne!(
        node.exec("record", &["cat", "/proc/self/uid_map"]).ok(),
        node.exec("image", &["cat", "/proc/self/uid_map"]).ok()
    );
    golden("refusals-disk.txt", &text);
    node.kubectl(&["delete", "pods", "--all", "--timeout=60s"]).ok();
    let left = format!("ls {0}/{kubelet}/pods {0}/{images}/tmp", node.root().display());
    node.until("the Pods' records to go", PATIENCE, |node| {
        node.shell(&left).stdout.lines().all(|line| line.is_empty() || line.ends_with(':'))
    });
    node.down().ok();
    assert_eq!(node.leftovers(), Leftovers::default());
}

#[test]
fn a_disk_without_space_for_the_api_is_named_and_loses_nothing() {
    let mut node = Node::prepare(NodeOptions::default());
    let state = "var/lib/kakoi";
    mount(&node, state, "48k");
    let mut text = format!("# `kakoi up` on a full disk\n{}", said(&node, &node.kakoi(&["up"])));
    assert_eq!(node.leftovers(), Leftovers::default());
    assert_eq!(node.network_leftovers(), "");
    node.shell(&format!("mount -o remount,size=24m {}", node.root().join(state).display())).ok();
    node.up();
    node.kubectl(&["create", "configmap", "before", "--from-literal=a=1"]).ok();
    fill(&node, state);
    let mut number = 0;
    let refused = loop {
        number += 1;
        let big = format!("--from-literal=a={}", "x".repeat(100_000));
        let ran = node.kubectl(&["create", "configmap", &format!("c{number}"), &big]);
        if ran.code != 0 || number > 300 {
            break ran;
        }
    };
    write!(text, "# an object that does not fit\n{}", said(&node, &refused)).unwrap();
    assert_eq!(
        node.kubectl(&["get", "configmap", "before", "-o", "jsonpath={.data.a}"]).ok(),
        "1",
        "it can be read"
    );
    empty(&node, state);
    node.kill_daemon();
    node.up();
    let known =
        node.kubectl(&["get", "configmaps", "--no-headers", "-o", "custom-columns=N:.metadata.name"]).ok();
    assert_eq!(
        known.lines().filter(|name| name.starts_with('c')).count(),
        number - 1,
        "what was accepted is there"
    );
    golden("refusals-disk-api.txt", &text);
    node.down().ok();
    assert_eq!(node.leftovers(), Leftovers::default());
}

/// Answers `unshare(CLONE_NEWUSER)` with ENOSPC, as the kernel does at the limit, for the program in its arguments and
/// all that it starts: classic BPF by `prctl(PR_SET_SECCOMP)`, for `x86_64`.
const NO_NAMESPACES: &str = r"
my @filter = ([0x20,0,0,4], [0x15,0,5,0xC000003E], [0x20,0,0,0], [0x15,0,3,272], [0x20,0,0,16],
  [0x45,0,1,0x10000000], [0x06,0,0,0x00050000|28], [0x06,0,0,0x7fff0000]);
my $code = join '', map { pack 'SCCL', @$_ } @filter;
my $program = pack 'Sx6P', scalar @filter, $code;
syscall(157, 22, 2, $program) == 0 or die qq(prctl: $!\n);
exec @ARGV";

#[cfg(target_arch = "x86_64")]
#[test]
fn g07_the_limit_of_user_namespaces_is_named_as_the_sysctl_that_sets_it() {
    let mut node = Node::prepare(NodeOptions::default());
    let mut daemon = spawn_under(&node, NO_NAMESPACES);
    node.until("the node to be Ready", PATIENCE, |node| {
        node.kubectl(&["wait", "--for=condition=Ready", "node/node", "--timeout=5s"]).code == 0
    });
    create(&node, "limited");
    let text = warning(&node, "limited", "FailedCreatePodSandBox");
    let phase: Value = node.get("pod/limited")["status"]["phase"].take();
    golden("refusals-namespaces.txt", &format!("# a Pod, {}\n{text}\n", phase.as_str().unwrap()));
    // The node's own namespace is no refuge: without one of its own the Pod does not run.
    assert_eq!(node.get("pod/limited")["status"]["containerStatuses"][0]["state"]["running"], Value::Null);
    assert_nothing_stays(&mut node, &[]);
    daemon.wait().unwrap();
}

fn spawn_under(node: &Node, filter: &str) -> Child {
    let mut command = node.inside("perl".as_ref());
    command.args(["-e", filter, &binary(), "up", "--node-name", "node", "--root"]).arg(node.root());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}
