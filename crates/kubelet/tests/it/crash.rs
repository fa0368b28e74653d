//! SIGKILL of the node agent at each step of a Pod's life: the Pod comes up or goes away as if nothing had been, with its
//! restart counts and its IDs; nothing is left of it; its neighbour notices nothing.

use std::collections::BTreeSet;
use std::path::Path;

use cri::v1::ContainerState;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::DeleteParams;
use kubelet::{CrashPoint, NoFaults};
use serde_json::json;

use crate::agent::Agent;
use crate::node::{Node, ids, until};
use crate::script::Script;

/// Points, with the time at which the node agent gets there for one Pod: its init container comes there first.
const STARTING: [(CrashPoint, usize); 18] = [
    (CrashPoint::BeforeTemporary, 1),
    (CrashPoint::TemporaryWritten, 1),
    (CrashPoint::Renamed, 1),
    (CrashPoint::IdsRecorded, 1),
    (CrashPoint::CgroupMade, 1),
    (CrashPoint::VolumesPrepared, 1),
    (CrashPoint::SandboxMade, 1),
    (CrashPoint::ImagePulled, 1),
    (CrashPoint::ContainerPlanned, 1),
    (CrashPoint::ContainerCreated, 1),
    (CrashPoint::ContainerStarted, 1),
    (CrashPoint::ImagePulled, 2),
    (CrashPoint::ContainerPlanned, 2),
    (CrashPoint::ContainerCreated, 2),
    (CrashPoint::ContainerStarted, 2),
    (CrashPoint::PostStartRun, 2),
    (CrashPoint::StatusWritten, 1),
    (CrashPoint::StatusWritten, 3),
];

const ENDING: [(CrashPoint, usize); 11] = [
    (CrashPoint::PreStopRun, 1),
    (CrashPoint::ContainerStopped, 1),
    (CrashPoint::SandboxesStopped, 1),
    (CrashPoint::SandboxesRemoved, 1),
    (CrashPoint::VolumesRemoved, 1),
    (CrashPoint::CgroupRemoved, 1),
    (CrashPoint::RecordRemoved, 1),
    (CrashPoint::IdsFreed, 1),
    (CrashPoint::ObjectDeleted, 1),
    (CrashPoint::LogsRemoved, 1),
    (CrashPoint::DirectoryRemoved, 1),
];

/// A Pod with one of everything that a kill could leave behind.
fn spec() -> serde_json::Value {
    let exec = |word: &str| json!({"exec": {"command": [word]}});
    let mounts = json!([{"name": "m", "mountPath": "/m"}, {"name": "m", "mountPath": "/s", "subPath": "s"}]);
    json!({
        "hostUsers": false, "terminationGracePeriodSeconds": 1,
        "volumes": [{"name": "m", "emptyDir": {"medium": "Memory"}}],
        "initContainers": [{"name": "init", "image": "image:1", "volumeMounts": mounts}],
        "containers": [{"name": "main", "image": "image:1", "volumeMounts": mounts,
            "lifecycle": {"postStart": exec("begin"), "preStop": exec("end")}}],
    })
}

/// What the node has of Pods, wherever it could be found.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    directories: BTreeSet<String>,
    logs: usize,
    mounts: usize,
    cgroups: usize,
    claims: Vec<String>,
    sandboxes: BTreeSet<String>,
    running: BTreeSet<String>,
}

fn held(node: &Node) -> Held {
    let root = node.directory.path();
    let names = |path: &Path| -> BTreeSet<String> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let is_below =
        |line: &&str| line.split(' ').nth(4).is_some_and(|point| point.starts_with(root.to_str().unwrap()));
    // What another instance on this machine would find taken.
    let other = ids(root, "other", std::sync::Arc::new(NoFaults));
    let other = kubelet::idspace::IdSpaceConfig { pods_dir: root.join("none"), ..other };
    let claims = kubelet::idspace::inspect(&other).unwrap().instances;
    let books = node.script.books();
    let running =
        books.containers.values().filter(|container| container.state == ContainerState::ContainerRunning);
    Held {
        directories: names(&node.kubelet_dir().join("pods")),
        logs: names(&root.join("logs")).len(),
        mounts: table.lines().filter(is_below).count(),
        cgroups: pod_cgroups(&node.cgroup),
        claims: claims.iter().map(|claim| claim.range.to_string()).collect(),
        sandboxes: books.sandboxes.keys().cloned().collect(),
        running: running.map(|container| container.id.clone()).collect(),
    }
}

/// Groups of Pods in every hierarchy.
fn pod_cgroups(root: &str) -> usize {
    let layouts = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    let roots = layouts.chain([Path::new("/sys/fs/cgroup").to_owned()]).map(|path| path.join(&root[1..]));
    let below = roots.flat_map(|path| [path.join("besteffort"), path.join("burstable")]);
    let groups = below.filter_map(|path| std::fs::read_dir(path).ok()).flatten().flatten();
    groups.filter(|entry| entry.file_name().to_string_lossy().starts_with("pod")).count()
}

/// Lets init containers succeed as soon as they run.
async fn end_inits(script: Script) {
    loop {
        let runs = {
            let books = script.books();
            books.containers.values().any(|container| {
                container.config.metadata.as_ref().unwrap().name == "init"
                    && container.state == ContainerState::ContainerRunning
            })
        };
        if runs {
            script.exit("init", 0);
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// A node with a Pod that runs, and the node agent in a process of its own.
struct Trial {
    node: Node,
    agent: Agent,
    neighbour: Pod,
    /// What the node holds of the neighbour.
    before: Held,
    neighbours_status: PodStatus,
}

impl Trial {
    async fn start() -> Self {
        let node = Node::prepare(Script::new()).await;
        let agent = Agent::start(&node).await;
        let neighbour = node.create("neighbour", spec()).await;
        tokio::spawn(end_inits(node.script.clone()));
        node.wait_for_phase("neighbour", "Running").await;
        let neighbours_status = node.wait_for("neighbour", "ready", is_ready).await;
        let before = held(&node);
        assert!(before.mounts > 0 && before.cgroups > 0 && before.claims.len() == 1, "{before:?}");
        Self { node, agent, neighbour, before, neighbours_status }
    }

    /// Has the node agent killed at the point and starts another, which knows its Pods when this returns.
    async fn survive(&mut self, what: &str) {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        while !self.agent.is_dead() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "it was not killed at {what}\n{}",
                self.agent.log()
            );
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        self.agent.restart();
        // It has looked at the neighbour.
        self.agent.reached(CrashPoint::VolumesPrepared).await;
    }

    /// The Pod is gone, and all that it had.
    async fn is_clean(&self, what: &str) {
        until(&format!("nothing is left after {what}"), async || held(&self.node) == self.before).await;
        let status = self.node.status("neighbour").await;
        assert_eq!(status.container_statuses, self.neighbours_status.container_statuses, "{what}");
        let dir = self.node.pod_dir(&self.neighbour);
        assert!(dir.join("userns").exists());
    }

    async fn end(&self, name: &str) {
        self.node.pods().delete(name, &DeleteParams::default()).await.unwrap();
        self.node.wait_until_gone(name).await;
    }
}

fn is_ready(status: &PodStatus) -> bool {
    status.container_statuses.iter().flatten().any(|container| container.ready)
}

/// The range that the Pod's sandbox was made with, and the one of its record.
fn ranges(node: &Node, pod: &Pod) -> (Vec<String>, String) {
    let record = std::fs::read_to_string(node.pod_dir(pod).join("userns")).unwrap();
    let books = node.script.books();
    let own = books.sandboxes.values().filter(|sandbox| {
        sandbox.config.metadata.as_ref().map(|metadata| &metadata.uid) == pod.metadata.uid.as_ref()
    });
    let first = own.map(|sandbox| {
        let linux = sandbox.config.linux.as_ref().unwrap().security_context.as_ref().unwrap();
        let options = linux.namespace_options.as_ref().unwrap().userns_options.as_ref().unwrap();
        format!("\"hostId\":{},", options.uids[0].host_id)
    });
    (first.collect(), record)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_of_a_pods_start_the_pod_comes_up_with_its_ids_and_no_restart() {
    let mut trial = Trial::start().await;
    for (number, (point, time)) in STARTING.into_iter().enumerate() {
        let what = format!("{point:?} {time}");
        trial.agent.reached(CrashPoint::VolumesPrepared).await;
        trial.agent.arm(point, time);
        let name = format!("p{number}");
        let pod = trial.node.create(&name, spec()).await;
        trial.survive(&what).await;
        let status = trial.node.wait_for(&name, &format!("ready after {what}"), is_ready).await;
        let inits = status.init_container_statuses.iter().flatten();
        for container in status.container_statuses.iter().flatten().chain(inits) {
            assert_eq!(container.restart_count, 0, "{what}: {status:#?}");
        }
        let (sandboxes, record) = ranges(&trial.node, &pod);
        assert!(sandboxes.len() == 1 && record.contains(&sandboxes[0]), "{what}: {sandboxes:?} {record}");
        let both = held(&trial.node);
        assert_eq!((both.claims.len(), both.running.len()), (2, 2), "{what}: {both:?}");
        trial.end(&name).await;
        trial.is_clean(&what).await;
    }
    trial.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_of_a_pods_end_nothing_of_it_is_left() {
    let mut trial = Trial::start().await;
    for (number, (point, time)) in ENDING.into_iter().enumerate() {
        let what = format!("{point:?} {time}");
        let name = format!("p{number}");
        trial.node.create(&name, spec()).await;
        trial.node.wait_for(&name, "ready", is_ready).await;
        trial.agent.arm(point, time);
        trial.node.pods().delete(&name, &DeleteParams::default()).await.unwrap();
        trial.survive(&what).await;
        trial.node.wait_until_gone(&name).await;
        trial.is_clean(&what).await;
    }
    trial.node.stop().await;
}

#[test]
fn every_point_of_a_pods_life_is_tried() {
    let tried: BTreeSet<String> =
        STARTING.iter().chain(&ENDING).map(|(point, _)| format!("{point:?}")).collect();
    let all: BTreeSet<String> = CrashPoint::ALL.iter().map(|point| format!("{point:?}")).collect();
    assert_eq!(tried, all);
}
