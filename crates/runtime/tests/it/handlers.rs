//! Runtime handlers: Pods whose containers are run by runc and crun, beside the built-in handler's.

use std::os::unix::fs::MetadataExt as _;

use cri::v1::*;
use runtime::CrashPoint;
use stream::remotecommand::TerminalSize;
use stream::{ExitStatus, Sessions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

use crate::crash::{assert_no_records, collect, live};
use crate::daemon::CRASH;
use crate::machine::{
    BASE, Machine, block, container, fenced_options, node_options, on_a_machine, wait_until,
};
use crate::streams::{connect, read_until};

const HANDLERS: [&str; 2] = ["runc", "crun"];

/// A Pod of a handler: fenced ones get the block of that number.
async fn pod(machine: &mut Machine, handler: &str, number: Option<u32>) -> (String, NamespaceOption) {
    let name = format!("{handler}-{}", number.unwrap_or_default());
    let (config, options) = match number {
        None => (machine.sandbox_config(&name), node_options()),
        Some(number) => (machine.fenced_config(&name, number), fenced_options(number)),
    };
    (machine.try_run_sandbox(config, handler).await.unwrap(), options)
}

/// What OCI runtimes keep of containers.
fn states(machine: &Machine) -> Vec<std::path::PathBuf> {
    let of = |handler: &str| std::fs::read_dir(machine.path().join("run/oci").join(handler)).unwrap();
    HANDLERS.iter().flat_map(|handler| of(handler).flatten()).map(|entry| entry.path()).collect()
}

async fn remove(machine: &mut Machine, sandbox: &str) {
    let request = StopPodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
    machine.runtime.stop_pod_sandbox(request).await.unwrap();
    let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
    machine.runtime.remove_pod_sandbox(request).await.unwrap();
}

#[test]
fn a_pod_of_a_handler_has_the_ids_owners_and_walls_of_any_other() {
    let name = "handlers::a_pod_of_a_handler_has_the_ids_owners_and_walls_of_any_other";
    on_a_machine(name, |mut machine| async move {
        machine.restart_with_handlers(&[]).await;
        for (handler, number) in [("runc", None), ("runc", Some(1)), ("crun", None), ("crun", Some(2))] {
            let case = format!("{handler} {number:?}");
            let (sandbox, options) = pod(&mut machine, handler, number).await;
            let volume = machine.path().join(&case);
            std::fs::create_dir(&volume).unwrap();
            std::fs::write(volume.join("secret"), "told").unwrap();
            let map = number.map(block);
            let mount = |path: &str, readonly| Mount {
                container_path: path.into(),
                host_path: volume.to_string_lossy().into_owned(),
                readonly,
                uid_mappings: map.into_iter().collect(),
                gid_mappings: map.into_iter().collect(),
                ..Mount::default()
            };
            let mut config =
                container("c", options, &["sh", "-c", "echo out; echo err >&2; exec sleep 1000"]);
            config.mounts = vec![mount("/volume", false), mount("/fixed", true)];
            let id = machine.run_container(&sandbox, config).await;

            let first = number.map_or(0, |number| BASE + number * 65_536);
            let pid = machine.pid(&id).await;
            assert_eq!(
                std::fs::metadata(format!("/proc/{pid}")).unwrap().uid(),
                first,
                "{case}: on the node"
            );
            assert_eq!(machine.exec(&id, &["id", "-u"]).await, "0\n", "{case}");
            if number.is_some() {
                let map = machine.exec(&id, &["cat", "/proc/self/uid_map"]).await;
                let words: Vec<&str> = map.split_whitespace().collect();
                assert_eq!(words, ["0", &first.to_string(), "65536"], "{case}");
            }
            machine.exec(&id, &["sh", "-c", "cat /volume/secret && touch /volume/new /in-root"]).await;
            assert_eq!(std::fs::metadata(volume.join("new")).unwrap().uid(), 0, "{case}: 0 on disk");
            let upper = machine.path().join("containers/containers").join(&id).join("upper/in-root");
            assert_eq!(std::fs::metadata(upper).unwrap().uid(), first, "{case}: the writable layer");
            let owners = ["stat", "-c", "%u:%g", "/root-only", "/data/seed", "/volume/new", "/etc/hostname"];
            assert_eq!(machine.exec(&id, &owners).await, "0:0\n1000:1000\n0:0\n0:0\n", "{case}");
            assert_eq!(
                machine.exec(&id, &["hostname"]).await.trim(),
                format!("{handler}-{}", number.unwrap_or_default())
            );
            let refused = machine.try_exec(&id, &["touch", "/fixed/new"]).await.unwrap();
            assert!(String::from_utf8_lossy(&refused.stderr).contains("Read-only"), "{case}: {refused:?}");
            let refused = machine.try_exec(&id, &["mount", "-t", "tmpfs", "x", "/tmp"]).await.unwrap();
            assert_ne!(refused.exit_code, 0, "{case}");
            let status = machine.exec(&id, &["cat", "/proc/1/status"]).await;
            assert!(
                status.contains("Seccomp:\t2") && status.contains("CapEff:\t00000000a80425fb"),
                "{case}: {status}"
            );
            let used = ContainerStatsRequest { container_id: id.clone() };
            let used = machine.runtime.container_stats(used).await.unwrap().into_inner().stats.unwrap();
            assert!(used.memory.unwrap().usage_bytes.unwrap().value > 0, "{case}");
            let log = machine.log(&id).await;
            assert!(log.contains(" stdout F out") && log.contains(" stderr F err"), "{case}: {log}");
            remove(&mut machine, &sandbox).await;
        }
        assert_eq!(states(&machine), Vec::<std::path::PathBuf>::new());
        machine.down();
    });
}

#[test]
fn sessions_logs_and_exit_codes_of_a_handlers_container_are_those_of_any_other() {
    let name = "handlers::sessions_logs_and_exit_codes_of_a_handlers_container_are_those_of_any_other";
    on_a_machine(name, |mut machine| async move {
        machine.restart_with_handlers(&[]).await;
        for (number, handler) in (1..).zip(HANDLERS) {
            let (sandbox, options) = pod(&mut machine, handler, Some(number)).await;
            // A container with a terminal, attached to.
            let script = "tty; stat -c own%u $(tty); read word; echo got-$word; exit 4";
            let mut config = container("c", options.clone(), &["sh", "-c", script]);
            (config.stdin, config.tty) = (true, true);
            let id = machine.run_container(&sandbox, config).await;
            let sessions = Sessions::default();
            let request = AttachRequest {
                container_id: id.clone(),
                stdin: true,
                stdout: true,
                stderr: false,
                tty: true,
            };
            let url = machine.runtime.attach(request).await.unwrap().into_inner().url;
            let mut client = connect(&url, &sessions).await;
            client.stdin.write_all(b"word\n").await.unwrap();
            read_until(&mut client.stdout, "got-word").await;
            assert_eq!(machine.wait_exited(&id).await.exit_code, 4, "{handler}");
            let log = machine.log(&id).await;
            assert!(log.contains("/dev/pts/0") && log.contains("own0"), "{handler}: {log}");
            drop(client);

            // An exec with a terminal, and one without.
            let id = machine.run_container(&sandbox, container("d", options, &["sleep", "1000"])).await;
            let exec = |words: &[&str], tty: bool| ExecRequest {
                container_id: id.clone(),
                cmd: words.iter().map(|word| (*word).to_owned()).collect(),
                stdin: true,
                stdout: true,
                stderr: !tty,
                tty,
            };
            let url = machine.runtime.exec(exec(&["sh"], true)).await.unwrap().into_inner().url;
            let mut client = connect(&url, &sessions).await;
            client.resize(TerminalSize { width: 91, height: 37 }).await.unwrap();
            client.stdin.write_all(b"stat -c own%u $(tty); echo re-$TERM-ady; exit 9\n").await.unwrap();
            let text = read_until(&mut client.stdout, "re-xterm-ady").await;
            assert!(text.contains("own0"), "{handler}: {text}");
            assert_eq!(client.wait().await, ExitStatus::Code(9), "{handler}");
            let url = machine.runtime.exec(exec(&["sh", "-c", "cat; echo err >&2; exit 5"], false));
            let url = url.await.unwrap().into_inner().url;
            let mut client = connect(&url, &sessions).await;
            client.stdin.write_all(b"through").await.unwrap();
            client.stdin.shutdown().await.unwrap();
            let (mut out, mut err) = (String::new(), String::new());
            client.stdout.read_to_string(&mut out).await.unwrap();
            client.stderr.read_to_string(&mut err).await.unwrap();
            assert_eq!((out.as_str(), err.as_str()), ("through", "err\n"), "{handler}");
            assert_eq!(client.wait().await, ExitStatus::Code(5), "{handler}");
            let missing = machine.try_exec(&id, &["no-such-program"]).await.unwrap_err();
            assert!(missing.message().contains("no-such-program"), "{handler}: {missing}");
            let request = ExecSyncRequest {
                container_id: id.clone(),
                cmd: ["sleep", "777"].map(str::to_owned).into(),
                timeout: 1,
            };
            assert_eq!(machine.runtime.exec_sync(request).await.unwrap_err().code(), Code::DeadlineExceeded);
            let gone = machine.exec(&id, &["sh", "-c", "ps | grep -c '[s]leep 777' || true"]).await;
            assert_eq!(gone, "0\n", "{handler}");
            sessions.close().await;
        }
        machine.down();
    });
}

#[test]
fn a_handlers_container_outlives_the_daemon_and_is_limited_stopped_and_removed_after() {
    let name = "handlers::a_handlers_container_outlives_the_daemon_and_is_limited_stopped_and_removed_after";
    on_a_machine(name, |mut machine| async move {
        machine.restart_with_handlers(&[]).await;
        let mut running = Vec::new();
        for (number, handler) in (1..).zip(HANDLERS) {
            let (sandbox, options) = pod(&mut machine, handler, Some(number)).await;
            let script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
            let id = machine.run_container(&sandbox, container("c", options, &["sh", "-c", script])).await;
            running.push((handler, sandbox, id.clone(), machine.pid(&id).await));
        }
        machine.crash_and_restart().await;
        for (handler, sandbox, id, pid) in running {
            assert_eq!(machine.pid(&id).await, pid, "{handler}: the same process goes on");
            let log = machine.status(&id).await.log_path;
            wait_until("the container is ready", || {
                std::fs::read_to_string(&log).unwrap_or_default().contains("ready")
            });
            let limits = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
            let request = UpdateContainerResourcesRequest {
                container_id: id.clone(),
                linux: Some(limits),
                ..Default::default()
            };
            machine.runtime.update_container_resources(request).await.unwrap();
            let files =
                "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null";
            assert_eq!(machine.exec(&id, &["sh", "-c", &format!("{files} || true")]).await, "67108864\n");
            let request = StopContainerRequest { container_id: id.clone(), timeout: 30 };
            machine.runtime.stop_container(request).await.unwrap();
            let status = machine.wait_exited(&id).await;
            assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"), "{handler}");
            assert!(machine.log(&id).await.contains("bye"), "{handler}: its last words are in the log");
            remove(&mut machine, &sandbox).await;
        }
        assert_eq!(states(&machine), Vec::<std::path::PathBuf>::new());
        machine.down();
    });
}

#[test]
fn a_daemon_killed_at_any_step_of_a_handlers_pod_leaves_nothing_behind() {
    let name = "handlers::a_daemon_killed_at_any_step_of_a_handlers_pod_leaves_nothing_behind";
    on_a_machine(name, |mut machine| async move {
        machine.restart_with_handlers(&[]).await;
        let points =
            CrashPoint::ALL.into_iter().filter(|point| format!("{point:?}").starts_with("Container"));
        for ((attempt, point), handler) in (0_u32..).zip(points).zip(HANDLERS.into_iter().cycle()) {
            machine.restart(&[(CRASH, &format!("{point:?}"))]).await;
            live(&mut machine, handler, attempt).await.expect_err("the daemon kills itself on the way");
            machine.wait_for_crash();
            machine.restart(&[]).await;
            collect(&mut machine).await;
            assert_no_records(&machine, point);
            assert_eq!(states(&machine), Vec::<std::path::PathBuf>::new(), "{handler} {point:?}");
            live(&mut machine, handler, attempt).await.unwrap_or_else(|error| panic!("{point:?}: {error}"));
        }
        assert_eq!(states(&machine), Vec::<std::path::PathBuf>::new());
        machine.down();
    });
}

/// An OCI runtime that takes its time for `create`, as a slow disk would have it.
const SLOW: &str = r#"case "$*" in *" create "*) : > "$SLOW_MARK"; sleep 2;; esac; exec runc "$@""#;

#[test]
fn a_daemon_killed_while_a_runtime_creates_leaves_nothing_behind() {
    let name = "handlers::a_daemon_killed_while_a_runtime_creates_leaves_nothing_behind";
    on_a_machine(name, |mut machine| async move {
        let mark = machine.path().join("creating");
        let script = SLOW.replace("\"$SLOW_MARK\"", &mark.to_string_lossy());
        machine.restart_with_handlers(&[("slow", &script)]).await;
        let sandbox = machine.try_run_sandbox(machine.fenced_config("pod", 1), "slow").await.unwrap();
        let wanted = container("c", fenced_options(1), &["sleep", "1000"]);
        let id = machine.create_container(&sandbox, wanted).await.unwrap();
        let mut runtime = machine.runtime.clone();
        let request = StartContainerRequest { container_id: id.clone() };
        let starting = tokio::spawn(async move { runtime.start_container(request).await });
        wait_until("the runtime is at it", || mark.exists());
        machine.crash_and_restart().await;
        starting.await.unwrap().unwrap_err();
        let status = machine.wait_exited(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
        remove(&mut machine, &sandbox).await;
        let left = std::fs::read_dir(machine.path().join("run/oci/slow")).unwrap().count();
        assert_eq!(left, 0, "what the runtime began is gone");
        machine.down();
    });
}

#[test]
fn what_a_handler_cannot_do_is_said_by_name_with_the_reason() {
    let name = "handlers::what_a_handler_cannot_do_is_said_by_name_with_the_reason";
    on_a_machine(name, |mut machine| async move {
        // A runtime that answers and then fails, one that has no log and fails, and one that can't even answer.
        let fails = r#"case "$*" in
            features) echo '{"linux": {"namespaces": ["user"]}}';;
            --version) echo 'failing version 1';;
            *) echo "the moon is full" >&2; exit 1;;
        esac"#;
        machine.restart_with_handlers(&[("failing", fails), ("broken", "echo no licence >&2; exit 3")]).await;

        let status = machine.runtime.status(StatusRequest { verbose: true }).await.unwrap().into_inner();
        let listed: Vec<_> = status
            .runtime_handlers
            .iter()
            .map(|handler| (handler.name.as_str(), handler.features.unwrap()))
            .map(|(name, features)| (name, features.user_namespaces, features.recursive_read_only_mounts))
            .collect();
        for wanted in [("", true, true), ("runc", true, true), ("crun", true, true), ("failing", true, false)]
        {
            assert!(listed.contains(&wanted), "{wanted:?}: {listed:?}");
        }
        assert!(listed.contains(&("broken", false, false)), "{listed:?}");
        assert!(status.info["config"].contains("no licence"), "{:?}", status.info);

        let refused = machine.try_run_sandbox(machine.sandbox_config("a"), "kata").await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        for word in ["\"kata\"", "\"runc\"", "\"crun\"", "--runtime-handler kata=PATH"] {
            assert!(refused.message().contains(word), "{refused}");
        }
        let refused = machine.try_run_sandbox(machine.fenced_config("b", 1), "broken").await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
        assert!(
            refused.message().contains("broken") && refused.message().contains("no licence"),
            "{refused}"
        );
        let all = machine.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
        assert!(all.into_inner().items.is_empty(), "nothing is left of a refused sandbox");

        for (handler, command, words, code) in [
            ("failing", "true", "the moon is full", 128),
            ("broken", "true", "no licence", 128),
            ("runc", "no-such-program", "no-such-program", 127),
            ("crun", "no-such-program", "no-such-program", 127),
        ] {
            let sandbox = machine.try_run_sandbox(machine.sandbox_config(handler), handler).await.unwrap();
            for tty in [false, true] {
                let mut config = container(if tty { "tty" } else { "c" }, node_options(), &[command]);
                config.tty = tty;
                let id = machine.create_container(&sandbox, config).await.unwrap();
                let request = StartContainerRequest { container_id: id.clone() };
                let error = machine.runtime.start_container(request).await.unwrap_err();
                assert!(error.message().contains(words), "{handler} {tty}: {error}");
                let status = machine.status(&id).await;
                assert_eq!(status.exit_code, code, "{handler} {tty}: {status:?}");
                assert!(status.message.contains(words), "{handler} {tty}: {status:?}");
            }
            remove(&mut machine, &sandbox).await;
        }
        machine.down();
    });
}

#[test]
fn shared_processes_devices_profiles_and_pod_mounts_reach_a_handlers_containers() {
    let name = "handlers::shared_processes_devices_profiles_and_pod_mounts_reach_a_handlers_containers";
    on_a_machine(name, |mut machine| async move {
        machine.restart_with_handlers(&[]).await;
        let profile = machine.path().join("no-directories.json");
        let text = r#"{"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}"#;
        std::fs::write(&profile, text).unwrap();
        for (number, handler) in (1..).zip(HANDLERS) {
            let mut config = machine.fenced_config(handler, number);
            let mut options = fenced_options(number);
            options.pid = NamespaceMode::Pod.into();
            let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
            context.namespace_options = Some(options.clone());
            let sandbox = machine.try_run_sandbox(config, handler).await.unwrap();
            let first =
                container("first", options.clone(), &["sh", "-c", "echo x > /dev/shm/x; exec sleep 1234"]);
            machine.run_container(&sandbox, first).await;
            let mut second = container("second", options, &["sleep", "1000"]);
            second.devices = vec![Device {
                container_path: "/dev/other-null".into(),
                host_path: "/dev/null".into(),
                permissions: "rw".into(),
            }];
            let security = second.linux.as_mut().unwrap().security_context.as_mut().unwrap();
            security.readonly_rootfs = true;
            security.run_as_user = Some(Int64Value { value: 1000 });
            security.supplemental_groups = vec![50];
            security.seccomp = Some(SecurityProfile {
                profile_type: cri::v1::security_profile::ProfileType::Localhost.into(),
                localhost_ref: profile.to_string_lossy().into_owned(),
            });
            let second = machine.run_container(&sandbox, second).await;
            assert!(
                machine.exec(&second, &["ps"]).await.contains("sleep 1234"),
                "{handler}: one PID namespace"
            );
            assert_eq!(machine.exec(&second, &["cat", "/dev/shm/x"]).await, "x\n", "{handler}");
            assert_eq!(
                machine.exec(&second, &["stat", "-c", "%u:%g %F", "/dev/other-null"]).await,
                "0:0 character special file\n",
                "{handler}"
            );
            machine.exec(&second, &["sh", "-c", "echo x > /dev/other-null"]).await;
            let ids = machine.exec(&second, &["id"]).await;
            assert!(ids.contains("uid=1000") && ids.contains("50"), "{handler}: {ids}");
            let refused = machine.try_exec(&second, &["mkdir", "/tmp/a"]).await.unwrap();
            assert!(
                String::from_utf8_lossy(&refused.stderr).contains("Operation not permitted"),
                "{handler}"
            );
            let refused = machine.try_exec(&second, &["touch", "/tmp/a"]).await.unwrap();
            assert!(String::from_utf8_lossy(&refused.stderr).contains("Read-only file system"), "{handler}");
        }
        machine.down();
    });
}
