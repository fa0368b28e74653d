//! What root inside a Pod tries against the node, and what Pods try against each other: all of it fails.
//!
//! The IDs are those of the behaviour's specification (security: Pod against host S01-S20, Pod against Pod T01-T08).
//! Attempts are system calls made from the container, with `privileged: true` or `CAP_SYS_ADMIN` where that is harder to
//! hold, and from a process that has the Pod's user namespace and nothing else of it ("outside"): for what leaks into a
//! Pod by a bug, the user namespace alone must do. System call numbers are those of `x86_64`.
//!
//! Not here: S09 is with A05 in `fields.rs`, T06 in `recovery.rs`.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by ending")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tests::{Kept, Node, SharedNode};

static NODE: SharedNode = SharedNode::new(start);

/// Three Pods, each with a second container as user 1000: `plain`; `privileged`; and `admin`, which has `CAP_SYS_ADMIN`
/// and the usual masks. `leak` is a directory of the node that nothing translates, `share` lies on a shared mount.
const PODS: &str = include_str!("security.yaml");
const SECRET: &str = "the node's secret";

fn node() -> Arc<Kept> {
    NODE.get()
}

fn start() -> Node {
    let node = Node::start();
    let leak = node.root().join("leak");
    fs::create_dir(&leak).unwrap();
    fs::write(leak.join("shadow"), SECRET).unwrap();
    fs::set_permissions(leak.join("shadow"), fs::Permissions::from_mode(0o600)).unwrap();
    // A device that the node's root alone may open, and one that everybody may.
    node.shell(&format!("cd {} && mknod -m 600 null c 1 3 && mknod -m 666 loop b 7 0", leak.display())).ok();
    let share = node.root().join("share");
    node.shell(&format!(
        "mkdir -p {0}/inside && mount --bind {0} {0} && mount --make-shared {0}",
        share.display()
    ))
    .ok();
    node.apply(&PODS.replace("@ROOT@", &node.root().to_string_lossy()));
    node.ready(&["plain", "privileged", "admin"]);
    node
}

fn leak(node: &Node) -> String {
    node.root().join("leak").to_string_lossy().into_owned()
}

#[test]
fn s01_a_host_process_can_be_neither_signalled_nor_traced_nor_read() {
    let node = node();
    let victim = node.daemon_pid();
    let attempts = [
        ("kill", "kill 0, VICTIM", "EPERM"),
        ("trace", "sys(101, 16, VICTIM, 0, 0)", "EPERM"),
        ("seize", "sys(101, 0x4206, VICTIM, 0, 0)", "EPERM"),
        (
            "read its memory",
            r#"my $b = "x" x 8; sys(310, VICTIM, pack("PQ", $b, 8), 1, pack("QQ", 4096, 8), 1, 0)"#,
            "EPERM",
        ),
        ("/proc/PID/mem", r#"get("/proc/VICTIM/mem")"#, "EACCES"),
        ("/proc/PID/environ", r#"get("/proc/VICTIM/environ")"#, "EACCES"),
        ("/proc/PID/root", r#"opendir(my $d, "/proc/VICTIM/root/")"#, "EACCES"),
        ("/proc/PID/cwd", r#"readlink("/proc/VICTIM/cwd")"#, "EACCES"),
        ("/proc/PID/fd", r#"opendir(my $d, "/proc/VICTIM/fd")"#, "EACCES"),
        ("take a descriptor", "my $p = sys(434, VICTIM, 0); sys(438, $p + 0, 0, 0)", "EPERM"),
        ("its priority", "setpriority(0, VICTIM, 10)", "EPERM"),
        ("its limits", r#"sys(302, VICTIM, 7, pack("QQ", 8, 8), 0)"#, "EPERM"),
        ("its processors", r#"sys(203, VICTIM, 8, pack("Q", 1))"#, "EPERM"),
    ];
    let for_victim =
        attempts.map(|(what, code, error)| (what, code.replace("VICTIM", &victim.to_string()), error));
    let attempts: Vec<_> =
        for_victim.iter().map(|(what, code, error)| (*what, code.as_str(), *error)).collect();
    node.attempt_outside("privileged", &[], &attempts);
}

#[test]
fn s02_no_namespace_of_the_host_can_be_joined() {
    let node = node();
    let kinds = ["net", "mnt", "user", "pid", "ipc", "uts", "cgroup"];
    // Those of the shell that opens them, which are the node's and belong to the initial user namespace.
    let paths = kinds.map(|kind| format!("/proc/self/ns/{kind}"));
    let leaked: Vec<&str> = paths.iter().map(String::as_str).collect();
    let own: Vec<_> =
        kinds.iter().map(|kind| (*kind, format!(r#"get("/proc/1/ns/{kind}")"#), "EACCES")).collect();
    let given = kinds.iter().zip(10..).map(|(kind, fd)| (*kind, format!("sys(308, {fd}, 0)"), "EPERM"));
    let all: Vec<_> = own.into_iter().chain(given).collect();
    let all: Vec<_> = all.iter().map(|(kind, code, error)| (*kind, code.as_str(), *error)).collect();
    node.attempt_outside("privileged", &leaked, &all);
}

#[test]
fn s03_a_leaked_directory_of_the_host_can_be_neither_read_nor_written() {
    let node = node();
    let attempts = [
        ("read shadow", r#"get("/proc/self/fd/10/etc/shadow")"#, "EACCES"),
        (
            "append to passwd",
            r#"sysopen(my $f, "/proc/self/fd/10/etc/passwd", O_WRONLY | O_APPEND)"#,
            "EACCES",
        ),
        ("make a file in /etc", r#"make("/proc/self/fd/10/etc/kakoi-s03")"#, "EACCES"),
        ("rename passwd", r#"rename("/proc/self/fd/10/etc/passwd", "/proc/self/fd/10/etc/p")"#, "EACCES"),
        ("own /etc", r#"chown(0, 0, "/proc/self/fd/10/etc")"#, "EPERM"),
        ("open up shadow", r#"chmod(0666, "/proc/self/fd/10/etc/shadow")"#, "EPERM"),
    ];
    node.attempt_outside("privileged", &["/"], &attempts);
    let attempts = [
        ("see it", r#"(stat "/leak/shadow")[4] == 65534"#, "done"),
        ("read it", r#"get("/leak/shadow")"#, "EACCES"),
        ("make a file", r#"make("/leak/new")"#, "EACCES"),
        ("own it", r#"chown(0, 0, "/leak/shadow")"#, "EPERM"),
        ("delete it", r#"unlink("/leak/shadow")"#, "EACCES"),
    ];
    node.attempt("privileged", &attempts);
}

#[test]
fn s04_calls_that_rule_the_machine_are_refused() {
    // A kernel may be built without modules or kexec.
    let attempts = [
        ("init_module", r#"sys(175, "x", 1, "")"#, "EPERM|ENOSYS"),
        ("finit_module", r#"sys(313, 0, "", 0)"#, "EPERM|ENOSYS"),
        ("delete_module", r#"sys(176, "x", 0)"#, "EPERM|ENOSYS"),
        ("kexec_load", "sys(246, 0, 0, 0, 0)", "EPERM|ENOSYS"),
        ("iopl", "sys(172, 3)", "EPERM|ENOSYS"),
        ("ioperm", "sys(173, 0x70, 1, 1)", "EPERM|ENOSYS"),
        ("settimeofday", r#"sys(164, pack("qq", 1, 0), 0)"#, "EPERM"),
        ("clock_settime", r#"sys(227, 0, pack("qq", 1, 0))"#, "EPERM"),
        ("adjtimex", r#"sys(159, pack("I x4 q25", 1, (0) x 25))"#, "EPERM"),
        ("swapon", r#"sys(167, "/etc/passwd", 0)"#, "EPERM"),
        ("acct", r#"sys(163, "/etc/passwd")"#, "EPERM"),
        ("quotactl", r#"sys(443, fd("/etc/hosts"), 0x80000800, 0, pack("Q9", (0) x 9))"#, "EPERM"),
        ("syslog", r#"sys(103, 3, " " x 100, 100)"#, "EPERM"),
        ("clear the syslog", "sys(103, 5, 0, 0)", "EPERM"),
    ];
    let node = node();
    node.attempt("privileged", &attempts);
    node.attempt("plain", &attempts.map(|(what, code, _)| (what, code, "EPERM")));
    // Inside its own PID namespace a reboot is an end of that container, and only with a command that means an end:
    // this one is unknown there. Over the machine's processes it is refused before it is looked at.
    let reboot = "sys(169, 0xfee1dead, 672274793, 0, 0)";
    node.attempt("privileged", &[("reboot", reboot, "EINVAL")]);
    node.attempt_outside("privileged", &[], &[("reboot", reboot, "EPERM")]);
}

#[test]
fn s05_no_device_can_be_made_and_a_hosts_device_stays_closed() {
    let node = node();
    let attempts = [
        ("a character device", r#"sys(133, "/tmp/null", 0020666, 0x103)"#, "EPERM"),
        ("a block device", r#"sys(133, "/tmp/disk", 0060666, 0xfe00)"#, "EPERM"),
        ("in a volume", r#"sys(133, "/scratch/disk", 0060666, 0xfe00)"#, "EPERM"),
        ("a pipe", r#"sys(133, "/tmp/pipe-s05", 0010666, 0)"#, "done"),
        ("a host's device, 0600", r#"sysopen(my $f, "/leak/null", O_RDWR)"#, "EACCES"),
        ("open it up", r#"chmod(0666, "/leak/null")"#, "EPERM"),
        ("remove the pipe", r#"unlink("/tmp/pipe-s05")"#, "done"),
    ];
    node.attempt("privileged", &attempts);
}

#[test]
fn s06_a_filesystem_on_a_device_cannot_be_mounted() {
    let attempts =
        ["ext4", "xfs", "vfat", "iso9660", "squashfs", "debugfs", "devtmpfs", "securityfs", "hugetlbfs"];
    let codes = attempts.map(|kind| format!(r#"sys(165, "/leak/loop", "/mnt", "{kind}", 0, 0)"#));
    let attempts: Vec<_> =
        attempts.iter().zip(&codes).map(|(kind, code)| (*kind, code.as_str(), "EPERM|ENODEV")).collect();
    let node = node();
    for pod in ["privileged", "admin"] {
        node.attempt(pod, &attempts);
        // A kernel without a type says so; these three it must have for the test to mean something.
        let known = attempts.iter().filter(|(kind, ..)| ["ext4", "devtmpfs", "hugetlbfs"].contains(kind));
        node.attempt(pod, &known.map(|(kind, code, _)| (*kind, *code, "EPERM")).collect::<Vec<_>>());
    }
}

#[test]
fn s07_the_nodes_settings_cannot_be_written() {
    let node = node();
    let kernel =
        ["kernel/core_pattern", "kernel/panic", "vm/overcommit_memory", "vm/drop_caches", "fs/file-max"];
    let codes = kernel.map(|name| format!(r#"put("/proc/sys/{name}", "1")"#));
    let attempts: Vec<_> =
        kernel.iter().zip(&codes).map(|(name, code)| (*name, code.as_str(), "EACCES")).collect();
    for pod in ["plain", "privileged", "admin"] {
        node.attempt(pod, &attempts);
    }
    // Not every kernel has these.
    let optional = ["sys/kernel/modprobe", "sysrq-trigger", "sys/net/core/rmem_max"];
    let codes = optional.map(|name| format!(r#"put("/proc/{name}", "1")"#));
    let attempts: Vec<_> = optional
        .iter()
        .zip(&codes)
        .map(|(name, code)| (*name, code.as_str(), "EACCES|EROFS|ENOENT"))
        .collect();
    node.attempt("privileged", &attempts);
    let network = [
        ("of the host's network", r#"put("/proc/sys/net/ipv4/ip_forward", "1")"#, "EACCES|EPERM"),
        ("core_pattern", r#"put("/proc/sys/kernel/core_pattern", "x")"#, "EACCES"),
        ("the host's name", r#"sys(170, "stolen", 6)"#, "EPERM"),
    ];
    node.attempt_outside("privileged", &[], &network);
}

#[test]
fn s08_no_file_can_be_opened_by_a_handle_that_was_guessed() {
    // The handle of inode 2, the root directory of an ext4 filesystem, over every mount that leads to the node's disk.
    let attempts = ["/", "/etc/hosts", "/dev/termination-log", "/scratch", "/share"];
    let codes = attempts.map(|at| format!(r#"sys(304, fd("{at}"), pack("iiII", 8, 1, 2, 0), 0)"#));
    let attempts: Vec<_> =
        attempts.iter().zip(&codes).map(|(at, code)| (*at, code.as_str(), "EPERM")).collect();
    let node = node();
    for pod in ["plain", "privileged", "admin"] {
        let mounted: Vec<_> =
            attempts.iter().filter(|(at, ..)| pod == "admin" || *at != "/share").copied().collect();
        node.attempt(pod, &mounted);
    }
}

#[test]
fn s10_no_program_reaches_the_hosts_kernel() {
    let program = r#"sys(321, 5, pack("IIQQIIQ", 1, 2, 0, 0, 0, 0, 0) . ("\0" x 64), 72)"#;
    let counter = r#"sys(298, pack("IIQ", 0, 112, 0) . ("\0" x 96), -1, 0, -1, 0)"#;
    let node = node();
    for pod in ["plain", "privileged", "admin"] {
        node.attempt(pod, &[("bpf", program, "EPERM"), ("perf", counter, "EPERM|EACCES")]);
    }
}

#[test]
fn s11_what_the_node_has_set_for_a_process_cannot_be_improved() {
    let attempts = [
        ("oom_score_adj", r#"put("/proc/self/oom_score_adj", "-1000")"#, "EACCES"),
        ("open files", r#"sys(160, 7, pack("QQ", 1 << 30, 1 << 30))"#, "EPERM"),
        ("priority", "setpriority(0, 0, -5)", "EACCES"),
        ("real-time", r#"sys(144, 0, 1, pack("i", 1))"#, "EPERM"),
    ];
    let node = node();
    for pod in ["plain", "privileged"] {
        node.attempt(pod, &attempts);
    }
}

#[test]
fn s12_no_id_outside_the_pods_range_can_be_taken() {
    let nested = |map: &str| {
        format!(
            r#"pipe(my $r, my $w); pipe(my $go, my $went);
            my $pid = fork; if (!$pid) {{ sys(272, 0x10000000) or die; syswrite $w, "x"; sysread $go, my $t, 1; exit 0 }}
            sysread $r, my $text, 1; my $ok = put("/proc/$pid/uid_map", "{map}"); my $e = $! + 0;
            syswrite $went, "x"; waitpid $pid, 0; $! = $e; $ok"#
        )
    };
    let (inside, outside, host) = (nested("0 1000 10"), nested("0 70000 1"), nested("0 65535 2"));
    let attempts = [
        ("rewrite the map", r#"put("/proc/self/uid_map", "0 0 1\n")"#, "EPERM"),
        ("rewrite the groups' map", r#"put("/proc/self/gid_map", "0 0 1\n")"#, "EPERM"),
        ("setuid", "sys(105, 70000)", "EINVAL"),
        ("setgid", "sys(106, 70000)", "EINVAL"),
        ("setgroups", r#"sys(116, 1, pack("I", 70000))"#, "EINVAL"),
        ("setresuid of the last", "child { sys(117, 65535, 65535, 65535) }", "done"),
        ("chown", r#"chown(70000, 0, "/tmp")"#, "EINVAL"),
        ("a nested namespace with the Pod's IDs", inside.as_str(), "done"),
        ("with an ID beyond them", outside.as_str(), "EPERM"),
        ("with a range that passes their end", host.as_str(), "EPERM"),
    ];
    node().attempt("privileged", &attempts);
}

#[test]
fn s13_masks_and_locked_flags_stay() {
    // MS_REMOUNT | MS_BIND, and the same with nothing but `rw`.
    let attempts = [
        ("umount /proc/acpi", r#"sys(166, "/proc/acpi", 0)"#, "EINVAL"),
        ("umount /proc/keys", r#"sys(166, "/proc/keys", 2)"#, "EINVAL"),
        ("umount /proc/sys", r#"sys(166, "/proc/sys", 0)"#, "EINVAL"),
        ("umount /sys/firmware", r#"sys(166, "/sys/firmware", 2)"#, "EINVAL"),
        ("write below /proc/sys", r#"sys(165, "none", "/proc/sys", 0, 0x1020, 0)"#, "EPERM"),
        ("/proc/bus without nosuid", r#"sys(165, "none", "/proc/bus", 0, 0x1021, 0)"#, "EPERM"),
        ("devices below /dev/shm", r#"sys(165, "none", "/dev/shm", 0, 0x1020, 0)"#, "EPERM"),
        ("/sys writable", r#"sys(165, "none", "/sys", 0, 0x1020, 0)"#, "EPERM"),
        ("/proc without nodev", r#"sys(165, "none", "/proc", 0, 0x1020, 0)"#, "EPERM"),
        (
            "/sys by mount_setattr",
            r#"sys(442, fd("/sys"), "", 0x1000, pack("QQQQ", 0, 1, 0, 0), 32)"#,
            "EPERM",
        ),
    ];
    node().attempt("admin", &attempts);
}

#[test]
fn s13b_with_cap_sys_admin_a_volumes_flags_hold_and_no_mount_reaches_the_node() {
    let node = node();
    let share = node.root().join("share");
    let attempts = [
        ("write a volume that is read-only", r#"put("/colours/colour", "red")"#, "EROFS"),
        ("make it writable", r#"sys(165, "none", "/colours", 0, 0x1020, 0)"#, "EPERM"),
        (
            "by mount_setattr",
            r#"sys(442, fd("/colours"), "", 0x1000, pack("QQQQ", 0, 1, 0, 0), 32)"#,
            "EPERM|EINVAL",
        ),
        ("its superblock", r#"sys(165, "none", "/colours", 0, 0x20, 0)"#, "EPERM"),
        ("unmount it", r#"sys(166, "/colours", 0)"#, "EINVAL"),
        ("lazily", r#"sys(166, "/colours", 2)"#, "EINVAL"),
        ("unmount the hostPath", r#"sys(166, "/share", 2)"#, "EINVAL"),
        (
            "the token's tmpfs without nosuid",
            r#"sys(165, "none", "/run/secrets/kubernetes.io/serviceaccount", 0, 0x1021, 0)"#,
            "EPERM",
        ),
        ("share again", r#"sys(165, "none", "/share", 0, 0x100000, 0)"#, "done"),
        ("mount inside the hostPath", r#"sys(165, "none", "/share/inside", "tmpfs", 0, 0)"#, "done"),
        ("write there", r#"make("/share/inside/seen")"#, "done"),
    ];
    node.attempt("admin", &attempts);
    let seen = node.shell(&format!("findmnt -rno TARGET -R {}", share.display())).ok();
    assert_eq!(seen.trim_end(), share.to_string_lossy(), "nothing has appeared on the node");
    assert_eq!(fs::read_dir(share.join("inside")).unwrap().count(), 0);
    // The other way round: what the node mounts there later does not reach the Pod either.
    node.shell(&format!(
        "mkdir {0}/later && mount -t tmpfs none {0}/later && touch {0}/later/file",
        share.display()
    ))
    .ok();
    node.attempt("admin", &[("see it", r#"-e "/share/later/file""#, "ENOENT")]);
    node.shell(&format!("umount {0}/later && rmdir {0}/later", share.display())).ok();
}

#[test]
fn s14_a_volume_cannot_be_mapped_to_other_ids() {
    let map = |at: &str| {
        format!(
            r#"my $tree = sys(428, -100, "{at}", 1) or die; my $user = fd("/proc/self/ns/user");
            sys(442, $tree + 0, "", 0x1000, pack("QQQQ", 0x100000, 0, 0, $user), 32)"#
        )
    };
    let (volume, hosts, share) = (map("/scratch"), map("/etc/hosts"), map("/share"));
    let node = node();
    node.attempt("privileged", &[("a volume", &volume, "EPERM"), ("/etc/hosts", &hosts, "EPERM")]);
    node.attempt("admin", &[("a hostPath", &share, "EPERM")]);
}

#[test]
fn s15_the_runtimes_program_cannot_be_overwritten() {
    let node = node();
    let shim = parent(node.main_pid("privileged"));
    let exe = format!("/proc/{shim}/exe");
    assert!(fs::read_link(&exe).unwrap().to_string_lossy().starts_with("/memfd:"), "a shim runs from memory");
    let before = fs::read(&exe).unwrap();
    let (open, write) = (
        format!(r#"sysopen(my $f, "{exe}", O_WRONLY)"#),
        r#"defined syswrite(do { open(my $f, ">&=", 10); $f }, "x")"#,
    );
    let attempts = [
        ("open", open.as_str(), "EACCES"),
        (
            "open a leaked descriptor again",
            r#"sysopen(my $f, "/proc/self/fd/10", O_WRONLY)"#,
            "EACCES|EPERM|ETXTBSY",
        ),
        ("write to it", write, "EBADF|EPERM"),
    ];
    node.attempt_outside("privileged", &[&exe], &attempts);
    // The node's root itself can't: the memory is sealed.
    let sealed = node.shell(&format!("printf x 1<>{exe}")).refused();
    assert!(sealed.contains("not permitted") || sealed.contains("busy"), "{sealed}");
    // The classic way: a program that runs the runtime's own file in the container, while another waits for it.
    let trap = r##"open(my $f, ">", "/usr/local/bin/trap"); print $f "#!/proc/self/exe\n"; close $f; chmod 0755, "/usr/local/bin/trap""##;
    node.attempt("privileged", &[("set the trap", trap, "done")]);
    for _ in 0..3 {
        node.exec("privileged", &["/usr/local/bin/trap"]).refused();
    }
    assert_eq!(fs::read(&exe).unwrap(), before);
    node.exec("privileged", &["true"]).ok();
}

fn parent(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

#[test]
fn s16_a_link_in_a_volume_does_not_lead_out_of_it() {
    let node = node();
    node.apply(&include_str!("escape.yaml").replace("@LEAK@", &leak(&node)));
    node.wait_for(
        "pod/link",
        ".status.containerStatuses[0].state.waiting.reason",
        "CreateContainerConfigError",
    );
    let described = node.kubectl(&["describe", "pod", "link"]).ok();
    assert!(described.contains("a link that leads out of the volume"), "{described}");
    // Four containers start while a fifth swaps a directory for a link to the node's root, over and over.
    node.until("the racers to have had their turn", Duration::from_secs(40), |node| {
        let status = &node.get("pod/race")["status"]["containerStatuses"];
        let racers =
            status.as_array().map(|all| all.iter().filter(|c| c["name"] != "swap").collect::<Vec<_>>());
        racers.is_some_and(|racers| {
            racers.len() == 4
                && racers.iter().all(|c| {
                    c["state"]["terminated"].is_object()
                        || c["state"]["waiting"]["reason"] == "CreateContainerConfigError"
                })
        })
    });
    for racer in ["a", "b", "c", "d"] {
        let log = node.kubectl(&["logs", "race", "-c", racer]).stdout;
        assert!(!log.contains(SECRET), "{racer} has got out: {log}");
    }
    node.kubectl(&["delete", "pod", "link", "race", "--now"]).ok();
}

#[test]
fn s17_a_set_uid_program_of_a_pod_cannot_be_reached_by_users_of_the_host() {
    let node = node();
    let copy = "cp /usr/bin/id /usr/local/bin/suid-s17 && cp /usr/bin/id /scratch/suid-s17 && chmod 04755 /usr/local/bin/suid-s17 /scratch/suid-s17";
    node.exec("privileged", &["sh", "-c", copy]).ok();
    let found = node.shell(&format!("find {} -xdev -name suid-s17", node.root().display())).ok();
    let paths: Vec<&str> = found.lines().collect();
    assert_eq!(paths.len(), 2, "one in the root filesystem, one in the volume: {paths:?}");
    // By way of a shell: `setpriv` itself has its capabilities until its program begins.
    let as_user = |command: &str| {
        node.shell(&format!("setpriv --reuid 1234 --regid 1234 --clear-groups sh -c '{command}'"))
    };
    as_user(&format!("ls {}", node.root().display())).ok();
    for path in paths {
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o4755);
        let refused = as_user(path).refused();
        assert!(refused.contains("Permission denied"), "{refused}");
    }
    let through = format!("/proc/{}/root/usr/local/bin/suid-s17", node.main_pid("privileged"));
    assert!(as_user(&through).refused().contains("Permission denied"));
}

#[test]
fn s18_trusted_attributes_are_out_of_reach() {
    let code = |at: &str| format!(r#"sys(188, "{at}", "trusted.overlay.opaque", "y", 1, 0)"#);
    let (root, volume) = (code("/tmp"), code("/scratch"));
    node().attempt("privileged", &[("rootfs", &root, "EPERM"), ("volume", &volume, "EPERM")]);
}

#[test]
fn s20_a_pod_cannot_change_its_own_limits() {
    let node = node();
    let list = "find /sys/fs/cgroup -name 'memory.limit_in_bytes' -o -name memory.max -o -name pids.max -o -name cgroup.procs";
    let files = node.exec("privileged", &["sh", "-c", list]).ok();
    let codes: Vec<_> = files.lines().map(|file| (file, format!(r#"put("{file}", "1")"#))).collect();
    assert!(codes.len() >= 2, "{files}");
    let attempts: Vec<_> = codes.iter().map(|(file, code)| (*file, code.as_str(), "EACCES|EROFS")).collect();
    node.attempt("privileged", &attempts);
}

#[test]
fn t01_t03_another_pods_processes_are_strangers_whatever_their_user() {
    let node = node();
    for user in [0, 1000] {
        let (theirs, ours) = (node.pid_as("plain", user), node.pid_as("privileged", user));
        let host = |pid| fs::metadata(format!("/proc/{pid}")).unwrap().uid();
        assert_ne!(host(theirs), host(ours), "the same user inside is two users outside");
        let (kill, own) = (format!("kill 0, {theirs}"), format!("kill 0, {ours}"));
        let trace = format!("sys(101, 16, {theirs}, 0, 0)");
        let (memory, environ) =
            (format!(r#"get("/proc/{theirs}/mem")"#), format!(r#"get("/proc/{theirs}/environ")"#));
        let attempts = [
            ("kill one's own", own.as_str(), "done"),
            ("kill", kill.as_str(), "EPERM"),
            ("trace", trace.as_str(), "EPERM"),
            ("memory", memory.as_str(), "EACCES"),
            ("environment", environ.as_str(), "EACCES"),
        ];
        node.attempt_outside_as("privileged", u32::try_from(user).unwrap(), &[], &attempts);
    }
}

#[test]
fn t02_another_pods_files_are_closed_even_by_a_leaked_descriptor() {
    let node = node();
    let write = "umask 077; for at in / /scratch /dev/shm; do echo secret > $at/secret-t02; done";
    node.exec("plain", &["sh", "-c", write]).ok();
    let root = format!("/proc/{}/root", node.main_pid("plain"));
    let (volume, memory) = (format!("{root}/scratch"), format!("{root}/dev/shm"));
    let at = |fd: u8| format!(r#"get("/proc/self/fd/{fd}/secret-t02")"#);
    let (a, b, c) = (at(10), at(11), at(12));
    let attempts = [
        ("root filesystem", a.as_str(), "EACCES"),
        ("emptyDir", b.as_str(), "EACCES"),
        ("shared memory", c.as_str(), "EACCES"),
        ("its root", r#"chmod(0777, "/proc/self/fd/10")"#, "EPERM"),
        ("a file in its volume", r#"make("/proc/self/fd/11/new")"#, "EACCES|EOVERFLOW"),
    ];
    node.attempt_outside("privileged", &[&root, &volume, &memory], &attempts);
    // The Pod's own root may, by the same way.
    node.attempt_outside(
        "plain",
        &[&root, &volume, &memory],
        &[("its own", &a, "done"), ("", &b, "done"), ("", &c, "done")],
    );
}

#[test]
fn t04_were_a_range_given_twice_a_plain_kill_would_succeed() {
    let node = node();
    let (victim, first) = (node.main_pid("plain"), node.first_id("plain"));
    let twin = format!(
        r#"pipe(my $r, my $w); pipe(my $go, my $went);
        my $pid = fork; if (!$pid) {{ syscall(272, 0x10000000) == 0 or die; syswrite $w, "x"; sysread $go, my $t, 1;
          syscall(106, 0); syscall(105, 0); exit(kill(0, {victim}) ? 0 : 1) }}
        sysread $r, my $text, 1;
        for my $map ("gid_map", "uid_map") {{ open(my $f, ">", "/proc/$pid/$map") or die; syswrite $f, "0 {first} 65536" or die $! }}
        syswrite $went, "x"; waitpid $pid, 0; exit($? >> 8)"#
    );
    let script = node.root().join("twin.pl");
    fs::write(&script, twin).unwrap();
    let ran = node.shell(&format!("perl {}", script.display()));
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "this is why no range may ever be given twice");
}

#[test]
fn t05_another_pods_namespaces_cannot_be_joined() {
    let node = node();
    let victim = node.main_pid("plain");
    let kinds = ["user", "net", "ipc", "uts", "mnt", "pid"];
    let paths = kinds.map(|kind| format!("/proc/{victim}/ns/{kind}"));
    let leaked: Vec<&str> = paths.iter().map(String::as_str).collect();
    let opened = kinds.iter().zip(&paths).map(|(kind, path)| (*kind, format!(r#"get("{path}")"#), "EACCES"));
    let given = kinds.iter().zip(10..).map(|(kind, fd)| (*kind, format!("sys(308, {fd}, 0)"), "EPERM"));
    let all: Vec<_> = opened.chain(given).collect();
    let all: Vec<_> = all.iter().map(|(kind, code, error)| (*kind, code.as_str(), *error)).collect();
    node.attempt_outside("privileged", &leaked, &all);
    assert!(Path::new(&paths[0]).exists());
}
