//! The same container by `runc` and by us: what its first process finds must be the same, or differ for a reason.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::missing_errors_doc,
    missing_docs,
    missing_debug_implementations,
    reason = "test code"
)]

mod common;

use common::Pod;
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

/// What a container's first process can say about itself, one `key value` a line.
const SCRIPT: &str = "exec 2>/dev/null; grep -E '^(Uid|Gid|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status;\
    echo maps: $(cat /proc/self/uid_map /proc/self/gid_map); echo umask: $(umask); echo cwd: $(pwd);\
    for d in null zero full random urandom tty ptmx fd stdin; do [ -e /dev/$d ] && echo dev-$d: there; done;\
    for f in /proc/kcore /proc/keys; do echo masked-$f: $(wc -c <$f); done;\
    touch /proc/sys/x 2>/dev/null; (echo 1 >/proc/sys/kernel/panic) 2>/dev/null || echo procsys: refused;\
    mount -t tmpfs none /tmp 2>/dev/null || echo mount: refused; echo session: $(cut -d' ' -f6 /proc/self/stat)";

fn facts(text: &str) -> BTreeMap<String, String> {
    let split =
        |line: &str| line.split_once(':').map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
    text.lines().filter_map(split).collect()
}

#[test]
fn the_first_process_finds_what_it_finds_under_runc() {
    let pod = Pod::new();
    let (mut plan, mut fds) = pod.container("ours", SCRIPT);
    let filter = sys::seccomp::compile_default(plan.process.capabilities.bounding);
    let filter = sys::process::sealed_data(c"seccomp", &filter).unwrap();
    plan.process.seccomp = Some(fds.push(filter));
    plan.process.no_new_privileges = true;
    let (exit, ours) = pod.run((plan, fds));
    assert_eq!(exit.code, 0, "{ours}");
    assert_eq!(facts(&ours), facts(&run_by_runc(&pod)));
}

/// Runs the script in a bundle with the same mapping and the same settings.
fn run_by_runc(pod: &Pod) -> String {
    let bundle = pod.dir.path().join("bundle");
    let rootfs = bundle.join("rootfs");
    fs::create_dir_all(&rootfs).unwrap();
    let copy = Command::new("cp").arg("-a").arg(pod.dir.path().join("layers/base/.")).arg(&rootfs).status();
    assert!(copy.unwrap().success());
    let owner = format!("{0}:{0}", pod.base);
    assert!(Command::new("chown").args(["-R", "-h", &owner]).arg(&rootfs).status().unwrap().success());
    for directory in [pod.dir.path(), &bundle] {
        common::set_mode(directory, 0o755);
    }
    let capabilities: Vec<String> =
        sys::capability::DEFAULT.iter().map(|name| format!("CAP_{name}")).collect();
    let map = serde_json::json!([{ "containerID": 0, "hostID": pod.base, "size": common::SIZE }]);
    let kernel = |destination: &str, kind: &str, options: &[&str]| serde_json::json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let namespaces =
        ["user", "pid", "network", "ipc", "uts", "mount"].map(|kind| serde_json::json!({ "type": kind }));
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 }, "args": ["sh", "-c", SCRIPT], "env": ["PATH=/bin"], "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
        },
        "root": { "path": "rootfs" },
        "hostname": "box",
        "mounts": [
            kernel("/proc", "proc", &[]),
            kernel("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            kernel("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            kernel("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "uidMappings": map, "gidMappings": map,
            "namespaces": namespaces,
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/bus"],
            "cgroupsPath": format!("{}/runc", pod.group),
            "seccomp": { "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{ "names": ["mount"], "action": "SCMP_ACT_ERRNO" }] },
        },
    });
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    let state = pod.dir.path().join("runc");
    let output = Command::new("runc")
        .arg("--root")
        .arg(&state)
        .args(["run", "--bundle"])
        .arg(&bundle)
        .arg(format!("kakoi-shim-oracle-{}", std::process::id()))
        .output()
        .expect("needs runc");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
