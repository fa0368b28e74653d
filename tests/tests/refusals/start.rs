//! Nodes that are refused their start: before anything is made.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tests::{Leftovers, Node, NodeOptions, Ran, leftovers};

use crate::golden::golden;
use crate::said;

/// The program under test.
pub(crate) fn binary() -> String {
    std::env::var("KAKOI_BINARY")
        .unwrap_or_else(|_| format!("{}/../target/debug/kakoi", env!("CARGO_MANIFEST_DIR")))
}

/// Adds a refusal to the text; afterwards the node's root and the machine are as before.
#[track_caller]
fn refuse(text: &mut String, node: &Node, title: &str, ran: &Ran) {
    writeln!(text, "# {title}").unwrap();
    text.push_str(&said(node, ran));
    assert_eq!(node.leftovers(), Leftovers::default(), "{title}");
    assert_eq!(node.network_leftovers(), "", "{title}");
    assert!(!node.root().join("var/lib/kakoi").exists(), "{title}");
}

#[test]
fn what_is_wrong_with_the_command_line_or_the_configuration_is_said() {
    let node = Node::prepare(NodeOptions::default());
    let mut text = String::new();
    for flag in [
        "--pod-cidr=10.0.0.1/24",
        "--pod-cidr=10.0.0.0",
        "--pod-cidr=fd00::/64",
        "--pod-cidr=10.0.0.0/31",
        "--feature-gates=UserNamespaceSupport=true",
        "--feature-gates=UserNamespacesSupport=maybe",
        "--feature-gates=UserNamespacesSupport",
        "--feature-gates=ProcMountType=false",
        "--feature-gates=UserNamespacesSupport=false,UserNamespacesHostNetworkSupport=true",
        "--config=/ghost.yaml",
        "--node-name=Node_1",
        "--secure-port=65536",
        "--bind-address=localhost",
        "--bind-address=203.0.113.9 --kubelet-port=10250",
        "--ghost",
    ] {
        refuse(
            &mut text,
            &node,
            flag,
            &node.kakoi(&[&["up"], &flag.split(' ').collect::<Vec<_>>()[..]].concat()),
        );
    }
    let file = node.root().join("etc/kakoi/config.yaml");
    for yaml in [
        "securePort: [",
        "securPort: 6443",
        "securePort: many",
        "podCIDR: 10.0.0.1/24",
        "featureGates: {UserNamespaceSupport: true}",
        "userNamespaces: {idsPerPod: 65000}",
        "userNamespaces: {idsPerPod: 0}",
        "maxPods: 100000",
    ] {
        fs::write(&file, format!("{yaml}\n")).unwrap();
        refuse(&mut text, &node, &format!("config.yaml: {yaml}"), &node.kakoi(&["up"]));
    }
    golden("refusals-configuration.txt", &text);
}

#[test]
fn what_is_wrong_with_the_subordinate_ids_is_said() {
    let node = Node::prepare(NodeOptions::default());
    let mut text = String::new();
    for (uids, gids) in [
        ("kubelet:131072:many", "kubelet:131072:6553600"),
        ("kubelet:131072:65536000\nkubelet:131072000:65536", "kubelet:131072:65536000"),
        ("kubelet:131072:65536000", "kubelet:196608:65536000"),
        ("kubelet:100000:65536000", "kubelet:100000:65536000"),
        ("kubelet:131072:6553601", "kubelet:131072:6553601"),
        ("kubelet:0:65536000", "kubelet:0:65536000"),
        ("kubelet:131072:65536", "kubelet:131072:65536"),
        ("kubelet:4294901760:655360", "kubelet:4294901760:655360"),
        ("kubelet:131072:65536000", ""),
    ] {
        for (file, line) in [("subuid", uids), ("subgid", gids)] {
            fs::write(node.root().join("machine/upper").join(file), format!("{line}\n")).unwrap();
        }
        let title = format!("subuid `{}`, subgid `{gids}`", uids.replace('\n', "`, `"));
        refuse(&mut text, &node, &title, &node.kakoi(&["up"]));
    }
    golden("refusals-subordinate-ids.txt", &text);
}

#[test]
fn without_root_nothing_is_begun() {
    let node = Node::prepare(NodeOptions::default());
    let mut text = String::new();
    let pods = node.root().join("var/lib/kubelet/pods");
    fs::create_dir_all(&pods).unwrap();
    fs::set_permissions(&pods, fs::Permissions::from_mode(0o750)).unwrap();
    for command in ["up", "down", "runtime", "image list", "userns"] {
        // By descriptor: the project's directory need not be open to everybody.
        let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all";
        let root = node.root().display();
        let line = format!("exec 9<{}; exec {nobody} /proc/self/fd/9 {command} --root {root}", binary());
        refuse(&mut text, &node, &format!("kakoi {command}"), &node.shell(&line));
    }
    golden("refusals-without-root.txt", &text);
}

#[test]
fn a_second_daemon_and_a_port_in_use_are_refused() {
    let mut node = Node::start();
    let api = node.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]).ok();
    let api = api.rsplit(':').next().unwrap().to_owned();
    let kubelet = node.get("node/node")["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].to_string();
    let pid = node.daemon_pid().to_string();
    let root = node.root().join("second");
    let network = node.network_leftovers();
    let mut text = String::new();
    let second = |flag: &str| node.shell(&format!("exec {} up --root {} {flag}", binary(), root.display()));
    for (title, ran) in [
        ("a second `kakoi up` on the same root", node.kakoi(&["up"])),
        ("`kakoi runtime` on the same root", node.kakoi(&["runtime"])),
        ("the API server's port", second(&format!("--secure-port {api}"))),
        ("the kubelet's port", second(&format!("--kubelet-port {kubelet}"))),
    ] {
        writeln!(text, "# {title}").unwrap();
        let line = said(&node, &ran).replace(&format!("PID {pid})"), "PID N)");
        text.push_str(&line.replace(&api, "API-PORT").replace(&kubelet, "KUBELET-PORT"));
        assert_eq!(node.network_leftovers(), network, "{title}");
        assert_eq!(leftovers(&root, &instance(&root)), Leftovers::default(), "{title}");
        assert!(!root.join("var/lib/kubelet").exists(), "{title}");
    }
    golden("refusals-second.txt", &text);
    assert_eq!(node.kubectl(&["get", "node", "-o", "name"]).ok(), "node/node\n", "the first one is well");
    node.down().ok();
}

/// As [`Node::instance`], of another root.
fn instance(root: &Path) -> String {
    let bytes = root.as_os_str().as_encoded_bytes().iter();
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("kakoi-{hash:08x}")
}
