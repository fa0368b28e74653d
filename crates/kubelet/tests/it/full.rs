//! The disk of the kubelet's directory is full: who runs goes on, who cannot start says why and what helps, also over a
//! restart, and all is well again when there is space.

use std::fs;
use std::path::PathBuf;

use kube::api::DeleteParams;
use serde_json::json;

use crate::node::{Node, restarts, until, waiting};
use crate::script::Script;

/// A disk of its own that can be filled to the last file.
struct Disk(PathBuf);

impl Disk {
    fn mount(node: &Node) -> Self {
        let path = node.kubelet_dir();
        fs::create_dir_all(&path).unwrap();
        let (flags, options) = (rustix::mount::MountFlags::empty(), c"size=256k,nr_inodes=400");
        rustix::mount::mount("tmpfs", &path, "tmpfs", flags, options).unwrap();
        Self(path)
    }

    /// Takes all space and all inodes.
    fn fill(&self) {
        let filler = self.0.join("filler");
        fs::create_dir(&filler).unwrap();
        let _ = fs::write(filler.join("much"), vec![1; 1 << 20]);
        let full = (0..1_000).find_map(|number| fs::write(filler.join(number.to_string()), "").err());
        assert_eq!(full.unwrap().kind(), std::io::ErrorKind::StorageFull);
    }

    fn free(&self) {
        fs::remove_dir_all(self.0.join("filler")).unwrap();
    }
}

fn named(name: &str) -> serde_json::Value {
    json!({"hostUsers": false, "terminationGracePeriodSeconds": 1, "containers": [{"name": name, "image": "image:1"}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_pods_go_on_or_say_why_they_wait_and_start_when_there_is_space() {
    let node = Node::prepare(Script::new()).await;
    let disk = Disk::mount(&node);
    let mut node = node.started().await;
    for name in ["steady", "ending", "leaving"] {
        node.create(name, named(name)).await;
        node.wait_for_phase(name, "Running").await;
    }
    let steady = node.status("steady").await.container_statuses;

    disk.fill();
    node.create("late", named("late")).await;
    let event = node.wait_for_event("late", "FailedCreatePodSandBox").await;
    let message = event.message.unwrap();
    assert!(
        message.contains("No space left on device") && message.contains("free space on the disk"),
        "{message}"
    );
    node.script.exit("ending", 1);
    let is_told = |status: &_| waiting(status) == Some("CreateContainerConfigError");
    let status = node.wait_for("ending", "told of the full disk", is_told).await;
    let state = status.container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
    let message = state.message.unwrap();
    assert!(message.contains("termination-log") || message.contains("containers/ending"), "{message}");
    assert!(message.contains("No space left on device"), "{message}");

    // A new kubelet takes the node as it is.
    node.stop_kubelet().await;
    node.start_kubelet().await;
    node.pods().delete("leaving", &DeleteParams::default()).await.unwrap();
    node.wait_until_gone("leaving").await;
    assert_eq!(node.status("steady").await.container_statuses, steady);

    disk.free();
    node.wait_for_phase("late", "Running").await;
    node.wait_for("ending", "restarted", |status| restarts(status) == 1 && waiting(status).is_none()).await;
    assert_eq!(node.status("steady").await.container_statuses, steady);
    for name in ["steady", "ending", "late"] {
        node.pods().delete(name, &DeleteParams::default()).await.unwrap();
    }
    until("nothing is left on the disk", async || {
        fs::read_dir(disk.0.join("pods")).unwrap().next().is_none()
    })
    .await;
    node.stop().await;
}
