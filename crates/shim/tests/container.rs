//! A container's life: start, streams, exits, signals, limits, exec, terminal.

mod common;

use common::Pod;

#[test]
fn container_root_is_root_inside_and_nobody_outside() {
    let pod = Pod::new();
    let (exit, output) =
        pod.script("id; cat /proc/self/uid_map; hostname; cat /etc/secret; ls -ln /etc/passwd");
    let base = pod.base;
    assert_eq!(exit.code, 0, "{output}");
    let mut lines = output.lines();
    assert_eq!(lines.next(), Some("uid=0(root) gid=0(root)"));
    assert_eq!(
        lines.next().unwrap().split_whitespace().collect::<Vec<_>>(),
        ["0", &base.to_string(), "65536"]
    );
    assert_eq!(lines.next(), Some("box"));
    assert_eq!(lines.next(), Some("of root"));
    assert!(lines.next().unwrap().contains(" 0        0 "), "{output}");
}
