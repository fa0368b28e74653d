//! SIGKILL of the daemon and of shims: what runs goes on, what was half-done is undone, nothing is left.

use cri::v1::*;
use runtime::CrashPoint;
use tokio_stream::StreamExt as _;

use crate::daemon::{CRASH, FAIL};
use crate::machine::{Machine, container, fenced_options, on_a_machine, wait_until};

#[test]
fn containers_outlive_the_daemon() {
    on_a_machine("crash::containers_outlive_the_daemon", |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.fenced_config("pod", 1)).await;
        let options = fenced_options(1);
        let id = machine.run_container(&sandbox, container("c", options.clone(), &["sleep", "1000"])).await;
        let script = "read go < /tmp/go; echo ended; exit 6";
        let fifo = ["sh", "-c", &format!("/bin/busybox mkfifo /tmp/go; echo ready; {script}")];
        let ending = machine.run_container(&sandbox, container("ending", options.clone(), &fifo)).await;
        let log = machine.status(&ending).await.log_path;
        wait_until("the container is ready", || {
            std::fs::read_to_string(&log).unwrap_or_default().contains("ready")
        });
        let created =
            machine.create_container(&sandbox, container("later", options, &["true"])).await.unwrap();
        let pid = machine.pid(&id).await;
        machine.exec(&ending, &["sh", "-c", "(sleep 1; echo > /tmp/go) >/dev/null 2>&1 &"]).await;
        machine.crash_and_restart().await;
        assert_eq!(machine.pid(&id).await, pid, "the same process goes on");
        assert_eq!(machine.exec(&id, &["id", "-u"]).await, "0\n");
        let status = machine.wait_exited(&ending).await;
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (6, "Error"),
            "an end that nobody saw is adopted"
        );
        assert!(machine.log(&ending).await.contains("ended"));
        machine
            .runtime
            .start_container(StartContainerRequest { container_id: created.clone() })
            .await
            .unwrap();
        assert_eq!(machine.wait_exited(&created).await.reason, "Completed");
        machine.down();
    });
}

#[test]
fn a_container_that_ends_is_announced_at_once() {
    on_a_machine("crash::a_container_that_ends_is_announced_at_once", |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.fenced_config("pod", 1)).await;
        let mut events =
            machine.runtime.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
        let id = machine.run_container(&sandbox, container("c", fenced_options(1), &["true"])).await;
        for kind in ["CONTAINER_CREATED_EVENT", "CONTAINER_STARTED_EVENT", "CONTAINER_STOPPED_EVENT"] {
            let event = events.next().await.unwrap().unwrap();
            assert_eq!(
                (event.container_id.as_str(), event.container_event_type().as_str_name()),
                (id.as_str(), kind)
            );
            assert_eq!(event.pod_sandbox_status.unwrap().id, sandbox);
        }
        machine.down();
    });
}

#[test]
fn a_shim_that_dies_takes_its_containers_along_and_is_named() {
    on_a_machine(
        "crash::a_shim_that_dies_takes_its_containers_along_and_is_named",
        |mut machine| async move {
            let sandbox = machine.run_sandbox(machine.fenced_config("pod", 1)).await;
            let id =
                machine.run_container(&sandbox, container("c", fenced_options(1), &["sleep", "1000"])).await;
            let pid = machine.pid(&id).await;
            kill(shim_pid(&mut machine, &sandbox).await);
            let status = machine.wait_exited(&id).await;
            assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
            assert!(status.message.contains("shim"), "{status:?}");
            wait_until("the container's process is gone", || {
                !std::path::Path::new(&format!("/proc/{pid}")).exists()
            });
            let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: false };
            let after =
                machine.runtime.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
            assert_eq!(after.state(), PodSandboxState::SandboxNotready);
            let mut again = machine.fenced_config("pod", 1);
            again.metadata.as_mut().unwrap().attempt = 1;
            let next = machine.run_sandbox(again).await;
            machine.run_container(&next, container("c", fenced_options(1), &["true"])).await;
            machine.down();
        },
    );
}

async fn shim_pid(machine: &mut Machine, sandbox: &str) -> i64 {
    let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: true };
    let info = machine.runtime.pod_sandbox_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    info["pid"].as_i64().unwrap()
}

fn kill(pid: i64) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Walks a Pod of a handler through its whole life; ends early when the daemon does.
pub(crate) async fn live(machine: &mut Machine, handler: &str, attempt: u32) -> Result<(), tonic::Status> {
    let mut config = machine.fenced_config("pod", 1);
    config.metadata.as_mut().unwrap().attempt = attempt;
    let sandbox = machine.try_run_sandbox(config, handler).await?;
    let id =
        machine.create_container(&sandbox, container("c", fenced_options(1), &["sleep", "1000"])).await?;
    machine.runtime.start_container(StartContainerRequest { container_id: id.clone() }).await?;
    machine.runtime.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 0 }).await?;
    machine.runtime.remove_container(RemoveContainerRequest { container_id: id }).await?;
    machine.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() }).await?;
    machine.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox }).await?;
    Ok(())
}

/// Removes what the runtime still lists, as a kubelet would.
pub(crate) async fn collect(machine: &mut Machine) {
    let all =
        machine.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().into_inner().items;
    for sandbox in all {
        let request = StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
        machine.runtime.stop_pod_sandbox(request).await.unwrap();
        machine
            .runtime
            .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox.id })
            .await
            .unwrap();
    }
}

pub(crate) fn assert_no_records(machine: &Machine, point: CrashPoint) {
    for directory in ["containers/sandboxes", "containers/containers", "run/shims"] {
        let left = std::fs::read_dir(machine.path().join(directory)).unwrap().count();
        assert_eq!(left, 0, "{point:?}: {left} left in {directory}");
    }
    for directory in ["containers/removed", "run/removed"] {
        let directory = machine.path().join(directory);
        let is_empty = || std::fs::read_dir(&directory).unwrap().count() == 0;
        wait_until(&format!("{point:?}: what was removed is gone from {}", directory.display()), is_empty);
    }
}

#[test]
fn g13_a_daemon_killed_at_any_step_leaves_nothing_behind() {
    on_a_machine("crash::g13_a_daemon_killed_at_any_step_leaves_nothing_behind", |mut machine| async move {
        for (attempt, point) in (0_u32..).zip(CrashPoint::ALL) {
            machine.restart(&[(CRASH, &format!("{point:?}"))]).await;
            live(&mut machine, "", attempt).await.expect_err("the daemon kills itself on the way");
            machine.wait_for_crash();
            machine.restart(&[]).await;
            collect(&mut machine).await;
            assert_no_records(&machine, point);
            live(&mut machine, "", attempt).await.unwrap_or_else(|error| panic!("{point:?}: {error}"));
            assert_no_records(&machine, point);
        }
        machine.down();
    });
}

#[test]
fn g13_a_step_that_fails_is_undone_at_once() {
    on_a_machine("crash::g13_a_step_that_fails_is_undone_at_once", |mut machine| async move {
        for (attempt, point) in (0_u32..).zip(CrashPoint::ALL) {
            machine.restart(&[(FAIL, &format!("{point:?}"))]).await;
            let error = live(&mut machine, "", attempt).await.expect_err("the step fails");
            assert!(error.message().contains(&format!("{point:?}")), "{error}");
            machine.restart(&[]).await;
            collect(&mut machine).await;
            assert_no_records(&machine, point);
        }
        machine.down();
    });
}
