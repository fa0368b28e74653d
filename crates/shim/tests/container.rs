//! A container's life: start, streams, exits, signals, limits, exec, terminal.

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

use common::{Pod, process, read_until, until};
use shim::client::{AttachWants, ClientError, Descriptors};
use shim::protocol::{
    Event, ExecPlan, FailureKind, Fault, MountSource, Namespace, Phase, PidNamespace, RlimitPlan, Stdin,
    Sysctl, TerminalSize,
};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use sys::cgroup::Limits;

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

#[test]
fn g02_the_node_sees_the_mapped_uid_and_the_image_is_not_changed() {
    let pod = Pod::new();
    let pid = pod.sleeper("app");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uids = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    assert!(uids.split_whitespace().skip(1).all(|uid| uid == pod.base.to_string()), "{uids}");
    assert_eq!(fs::metadata(pod.dir.path().join("layers/base/etc/secret")).unwrap().uid(), 0);
}

#[test]
fn exit_codes_and_signals_are_told_apart() {
    let pod = Pod::new();
    let (exit, _) = pod.script("exit 7");
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (7, None, false));
    pod.sleeper("app");
    pod.shim.signal("app", 9).unwrap();
    let exit = pod.wait("app");
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    assert!(
        matches!(pod.shim.signal("app", 9), Err(ClientError::Refused(failure)) if failure.kind == FailureKind::WrongState)
    );
}

#[test]
fn both_streams_are_in_the_log_whole_and_before_the_exit_is_told() {
    let pod = Pod::new();
    let (plan, fds) = pod.container("app", "seq 1 20000; echo oops >&2; printf tail");
    let (exit, output) = pod.run((plan, fds));
    assert_eq!(exit.code, 0);
    assert_eq!(output.lines().filter(|line| line.parse::<u32>().is_ok()).count(), 20_000);
    let log = fs::read_to_string(pod.log_path("app")).unwrap();
    let (stderr, stdout): (Vec<_>, Vec<_>) = log.lines().partition(|line| line.contains(" stderr "));
    assert!(matches!(stderr[..], [line] if line.ends_with(" stderr F oops")), "{stderr:?}");
    assert!(stdout.last().unwrap().ends_with(" stdout P tail"), "{:?}", stdout.last());
}

#[test]
fn a_log_goes_on_in_the_file_that_is_handed_over() {
    let pod = Pod::new();
    let mut script = String::from("echo before; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo after");
    script.push_str("; while [ ! -e /tmp/end ]; do sleep 0.01; done");
    let (plan, fds) = pod.container("app", &script);
    pod.start(&plan, &fds);
    until("the first line", || pod.output("app").contains("before").then_some(()));
    let second = pod.dir.path().join("second.log");
    pod.shim.reopen_log("app", fs::File::create(&second).unwrap()).unwrap();
    assert_eq!(pod.exec("app", "touch /tmp/go").0, 0);
    until("the second line", || {
        fs::read_to_string(&second).unwrap().contains(" stdout F after\n").then_some(())
    });
    assert!(!pod.output("app").contains("after"));
    assert_eq!(pod.exec("app", "touch /tmp/end").0, 0);
    pod.wait("app");
}

#[test]
fn a_missing_program_is_named_as_everyone_names_it() {
    let pod = Pod::new();
    for (id, args, code, text) in [
        ("a", &["nope"][..], 127, "exec: \"nope\": executable file not found in $PATH"),
        ("b", &["/bin/nope"], 127, "exec: \"/bin/nope\": stat /bin/nope: no such file or directory"),
        ("c", &["/etc/passwd"], 126, "exec: \"/etc/passwd\": permission denied"),
        ("d", &["/etc"], 126, "exec: \"/etc\": permission denied"),
    ] {
        let (mut plan, fds) = pod.container(id, "");
        plan.process = process(args);
        pod.shim.create_container(&plan, &fds).unwrap();
        let Err(ClientError::Refused(failure)) = pod.shim.start_container(id) else { panic!("{args:?} ran") };
        assert_eq!((failure.kind.exit_code(), failure.message.as_str()), (code, text));
        let exit = pod.wait(id);
        assert_eq!((exit.code, exit.message.as_str()), (code, text));
    }
    pod.sleeper("app");
    let Err(ClientError::Refused(failure)) = pod.try_exec("app", process(&["nope"])) else {
        panic!("nope ran")
    };
    assert_eq!(failure.kind, FailureKind::CommandNotFound);
}

#[test]
fn exec_joins_every_namespace_and_gets_its_own_code() {
    let pod = Pod::new();
    pod.sleeper("app");
    let (code, output) = pod.exec("app", "cat /proc/self/uid_map; ps | grep -c 'sleep 1000'; id -u; exit 3");
    assert_eq!(code, 3, "{output}");
    assert!(output.contains(&pod.base.to_string()), "{output}");
    let script = "for n in user pid mnt net ipc uts cgroup; do a=$(readlink /proc/1/ns/$n); b=$(readlink /proc/self/ns/$n);\
                  [ \"$a\" = \"$b\" ] || echo $n differs: $a $b; done";
    assert_eq!(pod.exec("app", script), (0, String::new()));
}

#[test]
fn exec_reads_its_input_to_the_end() {
    let pod = Pod::new();
    pod.sleeper("app");
    let mut fds = Descriptors::new();
    let (stdin_read, mut stdin) = std::io::pipe().unwrap();
    let (mut stdout, stdout_write) = std::io::pipe().unwrap();
    let plan = ExecPlan {
        id: "wc".into(),
        container: "app".into(),
        process: process(&["wc", "-c"]),
        cgroup: fds.push_cgroup(&pod.make_group("app", &Limits::default())).unwrap(),
        stdin: Some(fds.push(stdin_read)),
        stdout: Some(fds.push(stdout_write)),
        stderr: None,
        oci: None,
    };
    pod.shim.exec(&plan, &fds).unwrap();
    drop(fds);
    stdin.write_all(&vec![b'x'; 100_000]).unwrap();
    drop(stdin);
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text.trim(), "100000");
}

#[test]
fn g03_a_terminal_of_exec_is_usable_and_has_a_size() {
    let pod = Pod::new();
    pod.sleeper("app");
    let mut fds = Descriptors::new();
    let mut process = process(&["sh"]);
    process.terminal = true;
    process.terminal_size = Some(TerminalSize { columns: 132, rows: 43 });
    let cgroup = fds.push_cgroup(&pod.make_group("app", &Limits::default())).unwrap();
    let plan = ExecPlan {
        id: "sh".into(),
        container: "app".into(),
        process,
        cgroup,
        stdin: None,
        stdout: None,
        stderr: None,
        oci: None,
    };
    let (_, master) = pod.shim.exec(&plan, &fds).unwrap();
    let master = master.unwrap();
    rustix::io::write(&master, b"tty; stty size; stat -c %u:%g /dev/pts/0; echo ok >/dev/tty; echo don''e\n")
        .unwrap();
    let text = read_until(&master, "done");
    assert!(text.contains("/dev/pts/0") && text.contains("43 132") && text.contains("0:5"), "{text}");
    sys::pty::resize(&master, 80, 24).unwrap();
    rustix::io::write(&master, b"stty size; echo agai''n\n").unwrap();
    assert!(read_until(&master, "again").contains("24 80"));
}

#[test]
fn a_container_with_a_terminal_logs_and_takes_clients() {
    let pod = Pod::new();
    let (mut plan, fds) = pod.container("app", "exec sh");
    plan.process.terminal = true;
    plan.stdin = Stdin::Open;
    pod.start(&plan, &fds);
    pod.shim.resize("app", TerminalSize { columns: 100, rows: 30 }).unwrap();
    let wants = AttachWants { stdin: true, stdout: true, stderr: false };
    let first = pod.shim.attach("app", wants).unwrap();
    let second = pod.shim.attach("app", AttachWants { stdin: false, ..wants }).unwrap();
    rustix::io::write(first.stdin.as_ref().unwrap(), b"tty </dev/console; stty size; echo hel''lo\n")
        .unwrap();
    for client in [&first, &second] {
        let text = read_until(client.stdout.as_ref().unwrap(), "hello");
        assert!(text.contains("30 100"), "{text}");
    }
    until("the log", || pod.output("app").contains("hello").then_some(()));
    rustix::io::write(first.stdin.as_ref().unwrap(), b"exit 5\n").unwrap();
    assert_eq!(pod.wait("app").code, 5);
}

#[test]
fn a_client_that_never_reads_holds_up_nobody() {
    let pod = Pod::new();
    let (plan, fds) = pod.container("app", "while [ ! -e /tmp/go ]; do sleep 0.01; done; seq 1 400000");
    pod.start(&plan, &fds);
    let _slow = pod.shim.attach("app", AttachWants { stdout: true, ..AttachWants::default() }).unwrap();
    pod.exec("app", "touch /tmp/go");
    assert_eq!(pod.wait("app").code, 0);
    assert!(pod.output("app").ends_with("400000\n"));
}

#[test]
fn standard_streams_can_be_opened_again() {
    let pod = Pod::new();
    let (exit, output) = pod.script("echo out >/dev/stdout; echo err >/dev/stderr; cat /dev/stdin");
    assert_eq!((exit.code, output.as_str()), (0, "out\nerr\n"));
    let (mut plan, fds) = pod.container("user", "id -u; echo out >/dev/stdout; echo err >/proc/self/fd/2");
    (plan.process.uid, plan.process.gid) = (1000, 1000);
    let (exit, output) = pod.run((plan, fds));
    assert_eq!((exit.code, output.as_str()), (0, "1000\nout\nerr\n"));
}

#[test]
fn an_oom_kill_is_seen_and_named() {
    let pod = Pod::new();
    let limits = Limits { memory: Some(16 << 20), ..Limits::default() };
    let hungry = "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}";
    let (exit, _) =
        pod.run(pod.limited("hungry", &format!("exec sh -c '{}'", hungry.replace('\'', "'\\''")), &limits));
    assert!(exit.oom_killed, "{exit:?}");
    let (exit, _) = pod.run(pod.limited("modest", "true", &limits));
    assert!(!exit.oom_killed && exit.code == 0, "{exit:?}");
}

#[test]
fn limits_hold_and_are_counted() {
    let pod = Pod::new();
    let limits = Limits { pids: Some(4), ..Limits::default() };
    let script = "for i in 1 2 3 4 5 6; do sleep 5 & done; wait";
    let (plan, fds) = pod.limited("forks", script, &limits);
    pod.start(&plan, &fds);
    until("the refused fork", || pod.output("forks").contains("fork").then_some(()));
    let stats = sys::cgroup::stats(&pod.layout, &format!("{}/forks", pod.group));
    assert!(stats.memory_usage.is_some_and(|bytes| bytes > 0), "{stats:?}");
    assert!(stats.cpu_nanoseconds.is_some_and(|time| time > 0), "{stats:?}");
}

#[test]
fn the_container_sees_its_own_group_only() {
    let pod = Pod::new();
    let (exit, output) = pod.script("cat /proc/self/cgroup; mkdir /sys/fs/cgroup/x");
    assert_ne!(exit.code, 0);
    let groups: Vec<&str> =
        output.lines().filter(|line| line.contains("::") || line.contains(":/")).collect();
    assert!(!groups.is_empty() && groups.iter().all(|line| line.ends_with(":/")), "{output}");
    assert!(output.contains("Read-only file system"), "{output}");
}

#[test]
fn s20_a_container_cannot_change_its_own_limits() {
    let pod = Pod::new();
    let script = "for f in /sys/fs/cgroup/*/memory.limit_in_bytes /sys/fs/cgroup/memory.max; do\
                  [ -e $f ] && echo 1000000 >$f && echo CHANGED; done; mount -o remount,rw /sys/fs/cgroup/memory && echo CHANGED";
    let (mut plan, fds) = pod.container("app", script);
    plan.process = common::with_capabilities(plan.process, &["SYS_ADMIN"]);
    let (_, output) = pod.run((plan, fds));
    assert!(!output.contains("CHANGED"), "{output}");
}

#[test]
fn nothing_of_a_container_lives_on_after_its_first_process() {
    for pid in [PidNamespace::Container, PidNamespace::Pod] {
        let pod = Pod::with(|plan| plan.pid = pid);
        let (exit, _) = pod.run(pod.container("app", "(trap '' TERM HUP; sleep 1000) & sleep 0.1; exit 0"));
        assert_eq!(exit.code, 0);
        let group = format!("{}/app", pod.group);
        until("the end of the rest", || sys::cgroup::processes(&pod.layout, &group).is_empty().then_some(()));
    }
}

#[test]
fn g04_containers_of_a_pod_share_what_they_should() {
    let pod = Pod::new();
    let (first, second) = (pod.sleeper("one"), pod.sleeper("two"));
    let namespace = |pid, kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["user", "net", "ipc", "uts"] {
        assert_eq!(namespace(first, kind), namespace(second, kind), "{kind}");
    }
    for kind in ["pid", "mnt", "cgroup"] {
        assert_ne!(namespace(first, kind), namespace(second, kind), "{kind}");
    }
}

#[test]
fn a_shared_pid_namespace_has_our_init() {
    let pod = Pod::with(|plan| plan.pid = PidNamespace::Pod);
    pod.sleeper("one");
    let (exit, output) = pod.script(
        "cat /proc/1/comm; ps | grep -c 'sleep 1000'; ls /proc/1/root 2>&1; kill -9 1; cat /proc/1/comm",
    );
    assert!(output.starts_with("kakoi-init\n"), "{exit:?} {output}");
    assert!(output.ends_with("kakoi-init\n"), "{output}");
    assert!(output.contains("Permission denied"), "{output}");
}

#[test]
fn g05_g06_sysctls_are_set_inside_or_refused_by_name() {
    let sysctl = |name: &str, value: &str| Sysctl { name: name.into(), value: value.into() };
    let pod = Pod::with(|plan| {
        plan.sysctls = vec![
            sysctl("net.ipv4.ip_unprivileged_port_start", "0"),
            sysctl("net.ipv4.ping_group_range", "0 2147483647"),
            sysctl("kernel.shmmax", "1000000"),
        ];
    });
    let script =
        "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range kernel/shmmax";
    assert_eq!(pod.script(script).1, "0\n0\t65535\n1000000\n");
    let refused =
        Pod::try_with(|plan| plan.sysctls = vec![sysctl("kernel.core_pattern", "x")]).err().unwrap();
    assert!(refused.to_string().contains("kernel.core_pattern"), "{refused}");
    let refused = Pod::try_with(|plan| plan.sysctls = vec![sysctl("net.ipv4.nope", "x")]).err().unwrap();
    assert!(refused.to_string().contains("net.ipv4.nope"), "{refused}");
}

#[test]
fn g07_no_space_for_a_user_namespace_names_the_setting() {
    let refused = Pod::try_with(|plan| plan.faults = vec![Fault::UserNamespaceNoSpace]).err().unwrap();
    assert!(refused.to_string().contains("user.max_user_namespaces"), "{refused}");
}

#[test]
fn g09_g10_unmapped_ids_are_refused_before_anything_runs() {
    let pod = Pod::new();
    for change in [
        (|process| process.uid = 70_000) as fn(&mut shim::protocol::ProcessPlan),
        |process| process.gid = 70_000,
        |process| process.groups = vec![70_000],
    ] {
        let (mut plan, fds) = pod.container("app", "true");
        change(&mut plan.process);
        let refused = pod.shim.create_container(&plan, &fds).unwrap_err().to_string();
        assert!(refused.contains("70000") && refused.contains("idsPerPod"), "{refused}");
    }
}

#[test]
fn a_map_that_differs_stops_the_container_before_its_program() {
    let pod = Pod::with(|plan| plan.faults = vec![Fault::WrongMap]);
    let (plan, fds) = pod.container("app", "echo ran");
    pod.shim.create_container(&plan, &fds).unwrap();
    let refused = pod.shim.start_container("app").unwrap_err().to_string();
    assert!(refused.contains("refusing to run") && refused.contains("4294967295"), "{refused}");
    assert_eq!(pod.output("app"), "");
}

#[test]
fn g19_limits_that_the_machine_refuses_are_clamped_and_reported() {
    let pod = Pod::new();
    let (mut plan, fds) = pod.container("app", "ulimit -n; cat /proc/self/oom_score_adj; exec sleep 1000");
    plan.process.rlimits = vec![RlimitPlan { resource: 7, soft: 1 << 20, hard: 1 << 20 }];
    plan.process.oom_score_adj = Some(-997);
    pod.shim.create_container(&plan, &fds).unwrap();
    let started = pod.shim.start_container("app").unwrap();
    let output = until("two lines", || Some(pod.output("app")).filter(|text| text.lines().count() == 2));
    let values: Vec<i64> = output.lines().map(|line| line.parse().unwrap()).collect();
    let is_clamped = |index: usize, wanted: i64, word: &str| {
        values[index] == wanted || started.warnings.iter().any(|warning| warning.contains(word))
    };
    assert!(
        is_clamped(0, 1 << 20, "RLIMIT_NOFILE") && is_clamped(1, -997, "oom_score_adj"),
        "{output} {started:?}"
    );
    let (code, lowered) =
        pod.exec("app", "cat /proc/self/oom_score_adj; echo -1000 >/proc/self/oom_score_adj");
    assert_ne!(code, 0, "{lowered}");
    assert!(lowered.starts_with(&format!("{}\n", values[1])), "{lowered}");
    let (_, output) =
        pod.script("cat /proc/self/oom_score_adj; echo -1 >/proc/self/oom_score_adj && echo CAN lower");
    assert!(output.starts_with("0\n") && !output.contains("CAN"), "{output}");
}

#[test]
fn pods_in_the_nodes_namespaces_work_as_well() {
    let pod = Pod::with(|plan| {
        plan.user_namespace = None;
        (plan.network, plan.ipc, plan.uts) = (Namespace::Node, Namespace::Node, Namespace::Node);
        plan.pid = PidNamespace::Node;
    });
    let (mut plan, fds) =
        pod.container("app", "cat /proc/self/uid_map; readlink /proc/self/ns/net; touch /sys/x");
    plan.mounts.retain(|mount| mount.source != MountSource::Shm);
    let (exit, output) = pod.run((plan, fds));
    assert_ne!(exit.code, 0);
    assert!(output.contains("4294967295"), "{output}");
    let node = fs::read_link("/proc/self/ns/net").unwrap();
    assert!(output.contains(&*node.to_string_lossy()), "{output}");
    assert!(output.contains("Read-only file system"), "{output}");
}

#[test]
fn host_network_with_users_has_a_read_only_sys() {
    let pod = Pod::with(|plan| (plan.network, plan.uts) = (Namespace::Node, Namespace::Node));
    let (mut plan, fds) = pod.container("app", "ls /sys/class/net | grep -c lo; touch /sys/x; mount -o remount,rw /sys; echo 1 >/proc/sys/net/ipv4/ip_forward");
    plan.process = common::with_capabilities(plan.process, &["SYS_ADMIN", "NET_ADMIN"]);
    let (exit, output) = pod.run((plan, fds));
    assert_ne!(exit.code, 0);
    assert!(output.starts_with("1\n"), "{output}");
    assert!(output.contains("Read-only file system"), "{output}");
}

#[test]
fn the_state_is_told_and_a_container_is_forgotten_when_asked() {
    let pod = Pod::new();
    let (plan, fds) = pod.container("app", "exec sleep 1000");
    pod.shim.create_container(&plan, &fds).unwrap();
    let phase = || pod.shim.state().unwrap().containers.first().map(|container| container.phase);
    assert_eq!(phase(), Some(Phase::Created));
    pod.shim.start_container("app").unwrap();
    assert_eq!(phase(), Some(Phase::Running));
    assert!(pod.shim.remove_container("app").is_err());
    pod.shim.signal_all("app", 9).unwrap();
    pod.wait("app");
    assert_eq!(phase(), Some(Phase::Exited));
    pod.shim.remove_container("app").unwrap();
    assert_eq!(phase(), None);
    assert_eq!(shim::client::exit_records(&pod.run_dir()).unwrap(), []);
}

#[test]
fn stdin_once_reaches_the_container_and_ends() {
    let pod = Pod::new();
    let (mut plan, fds) = pod.container("app", "cat; echo end");
    plan.stdin = Stdin::Once;
    pod.start(&plan, &fds);
    let client = pod.shim.attach("app", AttachWants { stdin: true, stdout: true, stderr: false }).unwrap();
    rustix::io::write(client.stdin.as_ref().unwrap(), b"hello\n").unwrap();
    drop(client.stdin);
    assert!(read_until(client.stdout.as_ref().unwrap(), "end").starts_with("hello\n"));
    assert_eq!(pod.wait("app").code, 0);
}

#[test]
fn events_tell_of_exits_before_and_after_listening() {
    let pod = Pod::new();
    pod.script("exit 1");
    let mut events = pod.shim.events().unwrap();
    assert!(
        matches!(events.next_event().unwrap(), Some(Event::ContainerExited { exit, .. }) if exit.code == 1)
    );
    pod.script("exit 2");
    assert!(
        matches!(events.next_event().unwrap(), Some(Event::ContainerExited { exit, .. }) if exit.code == 2)
    );
}
