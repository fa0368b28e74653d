//! Where the node agent keeps a Pod's things: the directories as everyone knows them from upstream.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::uid::PodUid;

/// The roots below which everything of every Pod lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    kubelet: PathBuf,
    logs: PathBuf,
}

impl Places {
    pub(crate) fn new(kubelet: PathBuf, logs: PathBuf) -> Self {
        Self { kubelet, logs }
    }

    /// The kubelet's own directory.
    pub(crate) fn kubelet(&self) -> &Path {
        &self.kubelet
    }

    /// `<kubelet>/pods`.
    pub(crate) fn pods(&self) -> PathBuf {
        self.kubelet.join("pods")
    }

    /// The directories of every Pod that has one; none while there is no Pod.
    pub(crate) fn all(&self) -> std::io::Result<Vec<PodPlaces>> {
        let entries = match std::fs::read_dir(self.pods()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        entries.map(|entry| Ok(PodPlaces { root: entry?.path() })).collect()
    }

    /// Where all Pods' log directories lie.
    pub(crate) fn logs(&self) -> &Path {
        &self.logs
    }

    /// The directories of one Pod.
    pub(crate) fn of(&self, uid: &PodUid) -> PodPlaces {
        PodPlaces { root: self.pods().join(uid) }
    }

    /// `<logs>/<namespace>_<name>_<uid>`.
    pub(crate) fn pod_logs(&self, pod: &Pod) -> PathBuf {
        let meta = &pod.metadata;
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        self.logs.join(format!("{}_{}_{}", part(&meta.namespace), part(&meta.name), part(&meta.uid)))
    }
}

/// One Pod's directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodPlaces {
    root: PathBuf,
}

impl PodPlaces {
    /// The Pod's directory; the ID space keeps its record there.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// One volume's directory.
    pub(crate) fn volume(&self, plugin: &str, name: &str) -> PathBuf {
        self.volumes(plugin).join(name)
    }

    /// The directories of all volumes of one plugin.
    pub(crate) fn volumes(&self, plugin: &str) -> PathBuf {
        self.root.join("volumes").join(format!("kubernetes.io~{plugin}"))
    }

    /// Where the `index`-th mount of a container gets its sub-path bound.
    pub(crate) fn sub_path(&self, volume: &str, container: &str, index: usize) -> PathBuf {
        self.root.join("volume-subpaths").join(volume).join(container).join(index.to_string())
    }

    /// The file that becomes `/etc/hosts`.
    pub(crate) fn hosts(&self) -> PathBuf {
        self.root.join("etc-hosts")
    }

    /// A container's own directory: its termination messages.
    pub(crate) fn container(&self, name: &str) -> PathBuf {
        self.root.join("containers").join(name)
    }

    /// The termination message of one run of a container.
    pub(crate) fn termination_message(&self, name: &str, restart_count: i32) -> PathBuf {
        self.container(name).join(restart_count.to_string())
    }
}
