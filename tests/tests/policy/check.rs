//! `kakoi check` on a real machine with one thing really broken, in namespaces of the test's own.

use serde_json::Value;
use tests::{Node, NodeOptions};

/// The check's line.
fn line(text: &str, name: &str) -> String {
    let found = text.lines().find(|line| line.split_whitespace().nth(1) == Some(name));
    found.unwrap_or_else(|| panic!("no line `{name}` in:\n{text}")).to_owned()
}

/// What a shell line makes of `kakoi check`, which it calls `$kakoi check`.
fn check(node: &Node, before: &str) -> (i32, String) {
    let program = std::env::var("KAKOI_BINARY")
        .unwrap_or_else(|_| format!("{}/../target/debug/kakoi", env!("CARGO_MANIFEST_DIR")));
    let ran =
        node.shell(&format!("{before}; exec {program} check --root ${{root:-{}}}", node.root().display()));
    (ran.code, ran.stdout)
}

#[test]
fn a_machine_that_runs_pods_has_nothing_missing_also_while_the_node_runs() {
    let node = Node::prepare(NodeOptions::default());
    let (code, text) = check(&node, "true");
    assert_eq!(code, 0, "{text}");
    assert!(text.lines().all(|line| !line.starts_with("missing")), "{text}");
    assert!(line(&text, "user-namespace").starts_with("ok "), "{text}");
    let json: Value = serde_json::from_str(&node.kakoi(&["check", "--output", "json"]).ok()).unwrap();
    let names: Vec<&str> =
        json.as_array().unwrap().iter().map(|line| line["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"id-mapped-state") && names.len() > 20, "{names:?}");
    assert_eq!(node.leftovers().mounts, Vec::<String>::new());
    assert_eq!(node.leftovers().cgroups, Vec::<String>::new());
}

#[test]
fn what_is_really_broken_is_missing_by_its_line() {
    let node = Node::prepare(NodeOptions::default());
    let ramfs = "mkdir -p $HOME/r; mount -t ramfs ramfs $HOME/r; root=$HOME/r";
    let (code, text) = check(&node, ramfs);
    assert_eq!(code, 1, "{text}");
    for name in ["id-mapped-state", "id-mapped-pods", "overlay"] {
        assert!(line(&text, name).starts_with("missing"), "{text}");
    }
    assert!(line(&text, "id-mapped-state").contains("ramfs"), "{text}");

    let (code, text) = check(&node, "exec 9<>/dev/null; export PATH=/nonexistent");
    assert_eq!(code, 1, "{text}");
    assert_eq!(
        line(&text, "nftables"),
        "missing  nftables             cannot run `nft`: it is not installed; install the package `nftables`: Pods have no \
         network; run: apt install nftables"
    );

    let drop = "nft add table ip filter; nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'";
    let (code, text) = check(&node, drop);
    assert_eq!(code, 0, "{text}");
    assert_eq!(
        line(&text, "forward-chains"),
        "warning  forward-chains       ip filter FORWARD would drop Pods' packets: kakoi puts tagged rules there while it runs"
    );

    let taken = "echo 'kubeletPort: 12399' > $HOME/etc/kakoi/config.yaml; perl -MIO::Socket::INET -e \
                 '$s = IO::Socket::INET->new(LocalPort => 12399, Listen => 1) or die; sleep 60' & holder=$!; \
                 until ss -ltn 'sport = :12399' | grep -q LISTEN; do :; done; trap 'kill $holder' EXIT; set -o pipefail";
    let text = node.shell(&format!("{taken}; {} check --root {}", program(), node.root().display())).stdout;
    assert!(
        line(&text, "ports").starts_with("missing  ports                the kubelet's port 12399 is in use"),
        "{text}"
    );

    let (code, text) =
        check(&node, "rm $HOME/etc/kakoi/config.yaml; echo kubelet:65536:100000 > /etc/subuid");
    assert_eq!(code, 1, "{text}");
    assert!(line(&text, "id-pool").starts_with("missing"), "{text}");

    let (code, text) = check(&node, "exec setpriv --reuid 1000 --clear-groups true; true");
    assert!(code == 0 && text.is_empty(), "the shell became `true`");
    let ran = node.shell(&format!(
        "setpriv --reuid 1000 --clear-groups {} check --root {}",
        program(),
        node.root().display()
    ));
    assert_eq!(ran.code, 1);
    assert!(line(&ran.stdout, "root").starts_with("missing  root"), "{}", ran.stdout);
}

fn program() -> String {
    std::env::var("KAKOI_BINARY")
        .unwrap_or_else(|_| format!("{}/../target/debug/kakoi", env!("CARGO_MANIFEST_DIR")))
}
