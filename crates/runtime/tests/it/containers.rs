//! Sandboxes and containers: run, exec, logs, ends, stop, remove.

use cri::v1::*;

use crate::machine::{Machine, container, node_options, on_a_machine, wait_until};

#[test]
fn a_container_runs_and_its_output_is_logged() {
    on_a_machine("containers::a_container_runs_and_its_output_is_logged", |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.sandbox_config("pod")).await;
        let command = ["sh", "-c", "echo out; echo err >&2; exit 3"];
        let id = machine.run_container(&sandbox, container("c", node_options(), &command)).await;
        let status = machine.wait_exited(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
        assert!(status.started_at > 0 && status.finished_at >= status.started_at);
        let log = machine.log(&id).await;
        assert!(log.contains(" stdout F out\n") && log.contains(" stderr F err\n"), "{log}");
        machine.down();
    });
}

#[test]
fn a_command_that_is_not_in_the_image_is_named() {
    on_a_machine("containers::a_command_that_is_not_in_the_image_is_named", |mut machine| async move {
        let sandbox = machine.run_sandbox(machine.sandbox_config("pod")).await;
        let id =
            machine.create_container(&sandbox, container("c", node_options(), &["/no/such"])).await.unwrap();
        let request = StartContainerRequest { container_id: id.clone() };
        let error = machine.runtime.start_container(request).await.unwrap_err();
        assert!(error.message().contains("/no/such"), "{error}");
        let status = machine.status(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (127, "ContainerCannotRun"));
        assert!(status.message.contains("/no/such"), "{status:?}");
        machine.down();
    });
}

#[test]
fn every_verb_may_be_repeated() {
    on_a_machine("containers::every_verb_may_be_repeated", |mut machine| async move {
        let config = machine.sandbox_config("pod");
        let sandbox = machine.run_sandbox(config.clone()).await;
        assert_eq!(machine.run_sandbox(config).await, sandbox, "the same request is the same sandbox");
        let wanted = container("c", node_options(), &["sleep", "1000"]);
        let id = machine.create_container(&sandbox, wanted.clone()).await.unwrap();
        assert_eq!(machine.create_container(&sandbox, wanted).await.unwrap(), id);
        machine.runtime.start_container(StartContainerRequest { container_id: id.clone() }).await.unwrap();
        for _ in 0..2 {
            let request = StopContainerRequest { container_id: id.clone(), timeout: 0 };
            machine.runtime.stop_container(request).await.unwrap();
        }
        for _ in 0..2 {
            let request = RemoveContainerRequest { container_id: id.clone() };
            machine.runtime.remove_container(request).await.unwrap();
        }
        for _ in 0..2 {
            let request = StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
            machine.runtime.stop_pod_sandbox(request).await.unwrap();
        }
        for _ in 0..2 {
            let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.clone() };
            machine.runtime.remove_pod_sandbox(request).await.unwrap();
        }
        machine.down();
    });
}

#[test]
fn a_stop_signal_is_sent_before_the_container_is_killed() {
    on_a_machine(
        "containers::a_stop_signal_is_sent_before_the_container_is_killed",
        |mut machine| async move {
            let sandbox = machine.run_sandbox(machine.sandbox_config("pod")).await;
            let script = "trap 'echo got; exit 7' USR1; echo ready; while :; do sleep 1000 & wait $!; done";
            let mut config = container("c", node_options(), &["sh", "-c", script]);
            config.stop_signal = Signal::Sigusr1.into();
            let id = machine.run_container(&sandbox, config).await;
            wait_for_log(&mut machine, &id, "ready").await;
            let request = StopContainerRequest { container_id: id.clone(), timeout: 30 };
            machine.runtime.stop_container(request).await.unwrap();
            let status = machine.status(&id).await;
            assert_eq!((status.exit_code, status.state()), (7, ContainerState::ContainerExited));
            machine.down();
        },
    );
}

async fn wait_for_log(machine: &mut Machine, id: &str, text: &str) {
    let path = machine.status(id).await.log_path;
    wait_until(&format!("the log says {text}"), || {
        std::fs::read_to_string(&path).unwrap_or_default().contains(text)
    });
}
