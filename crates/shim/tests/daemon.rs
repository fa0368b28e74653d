//! What a restarted daemon and a dead shim find: the state outlives one, nothing outlives the other.

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

use common::{Pod, program, until};
use shim::client::{ClientError, connect, exit_records};
use shim::protocol::{Phase, PidNamespace};
use std::fs;
use std::io::Read;
use std::time::Duration;

#[test]
fn a_restarted_daemon_finds_its_containers_and_learns_their_ends() {
    let pod = Pod::new();
    let pid = pod.sleeper("app");
    pod.script("exit 9");
    let again = connect(&pod.run_dir()).unwrap();
    assert_eq!(again.pid(), pod.shim.pid());
    let state = again.state().unwrap();
    assert_eq!(state.plan, pod.plan);
    let app = state.containers.iter().find(|container| container.id == "app").unwrap();
    assert_eq!((app.phase, app.pid), (Phase::Running, Some(pid)));
    let ended = state.containers.iter().find(|container| container.id != "app").unwrap();
    assert_eq!(ended.exit.as_ref().unwrap().code, 9);
    assert_eq!(exit_records(&pod.run_dir()).unwrap().first().unwrap().exit.code, 9);
    again.signal("app", 9).unwrap();
    assert_eq!(pod.wait("app").code, 137);
}

#[test]
fn a_dead_shim_takes_its_containers_and_execs_along() {
    for kind in [PidNamespace::Container, PidNamespace::Pod] {
        let pod = Pod::with(|plan| plan.pid = kind);
        let (mut plan, fds) = pod.container("app", "exec sleep 1000");
        plan.process.uid = 1000;
        let pid = pod.start(&plan, &fds);
        let container = sys::process::open_pidfd(pid).unwrap();
        let shim = sys::process::open_pidfd(pod.shim.pid()).unwrap();
        sys::process::send_signal(&shim, 9).unwrap();
        for pidfd in [&shim, &container] {
            let timeout = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
            let mut polled = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut polled, Some(&timeout)).unwrap(), 1);
        }
        pod.shim.reap();
        assert!(matches!(connect(&pod.run_dir()), Err(ClientError::Gone { .. })));
        assert!(matches!(pod.shim.state(), Err(ClientError::Gone { .. })));
        assert!(
            exit_records(&pod.run_dir()).unwrap().is_empty(),
            "a record would say that it ended by itself"
        );
    }
}

#[test]
fn shutdown_ends_everything_and_leaves_no_mount_or_process() {
    let pod = Pod::with(|plan| plan.pid = PidNamespace::Pod);
    pod.sleeper("one");
    pod.sleeper("two");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    pod.shim.shutdown().unwrap();
    until("the end of all processes", || {
        sys::cgroup::processes(&pod.layout, &pod.group).is_empty().then_some(())
    });
    assert_eq!(fs::read_to_string("/proc/self/mounts").unwrap(), mounts);
    assert_eq!(exit_records(&pod.run_dir()).unwrap().len(), 2);
    sys::cgroup::remove(&pod.layout, &pod.group, Duration::from_secs(10)).unwrap();
    pod.shim.shutdown().unwrap(); // Once more is fine.
}

#[test]
fn the_shim_lives_apart_from_its_starter() {
    let pod = Pod::new();
    let proc = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", pod.shim.pid())).unwrap();
    let fields = proc("stat");
    let session: i32 = fields.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().parse().unwrap();
    assert_eq!(session, pod.shim.pid(), "a session of its own");
    for line in proc("cgroup").lines() {
        assert!(line.ends_with(&format!("{}/shim", pod.group)), "{line}");
    }
    assert_eq!(proc("mounts").lines().count(), 3, "{}", proc("mounts"));
    let score: i32 = proc("oom_score_adj").trim().parse().unwrap();
    let own: i32 = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    assert!(score <= own);
    assert!(
        fs::read_link(format!("/proc/{}/exe", pod.shim.pid()))
            .unwrap()
            .to_string_lossy()
            .contains("memfd:kakoi-shim")
    );
}

#[test]
fn the_program_is_small_and_a_shim_needs_little_memory() {
    assert!(program().len() <= 1_500_000, "{} bytes", program().len());
    let pods: Vec<Pod> = (0..20).map(|_| Pod::new()).collect();
    let dirty: Vec<u64> = pods.iter().map(|pod| private_dirty(pod.shim.pid())).collect();
    assert!(dirty.iter().all(|kilobytes| *kilobytes <= 250), "{dirty:?}");
}

/// `Private_Dirty` of a process in kB.
fn private_dirty(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_request_from_the_future_is_refused_and_the_shim_lives_on() {
    use std::io::Write;
    let pod = Pod::new();
    let mut stream = std::os::unix::net::UnixStream::connect(pod.run_dir().join("shim.sock")).unwrap();
    let body = br#"{"version":99,"request":{"Levitate":{}}}"#;
    stream.write_all(&u32::try_from(body.len()).unwrap().to_le_bytes()).unwrap();
    stream.write_all(&[0; 4]).unwrap();
    stream.write_all(body).unwrap();
    let mut header = [0; 8];
    stream.read_exact(&mut header).unwrap();
    let mut answer = vec![0; u32::from_le_bytes(header[..4].try_into().unwrap()) as usize];
    stream.read_exact(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains("does not understand") && answer.contains("Levitate"), "{answer}");
    stream.write_all(&[0xff; 8]).unwrap(); // Garbage ends the connection only.
    assert_eq!(stream.read(&mut header).unwrap_or(0), 0);
    assert_eq!(pod.script("true").0.code, 0);
}
