//! What Pods use of the disk: emptyDirs, logs, and what containers wrote into their own filesystems.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri::v1;
use k8s_openapi::api::core::v1::Pod;

use crate::pod::label;
use crate::shared::Shared;
use crate::uid::PodUid;

/// Bytes that a Pod uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskUsage {
    /// By volume.
    pub(crate) empty_dirs: Vec<(String, u64)>,
    pub(crate) logs: u64,
    pub(crate) layers: u64,
}

impl DiskUsage {
    pub(crate) fn total(&self) -> u64 {
        let volumes = self.empty_dirs.iter().map(|(_, used)| *used);
        volumes.fold(self.logs.saturating_add(self.layers), u64::saturating_add)
    }
}

/// Measures a Pod. What cannot be read counts nothing.
pub(crate) async fn disk_usage(shared: &Arc<Shared>, pod: &Pod) -> DiskUsage {
    let Some(uid) = pod.metadata.uid.as_deref().and_then(|uid| PodUid::parse(uid).ok()) else {
        return DiskUsage::default();
    };
    let layers = layers(shared, &uid).await;
    let places = shared.places.of(&uid);
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let on_disk = volumes.filter(|volume| {
        let source = volume.empty_dir.as_ref();
        source.is_some_and(|source| source.medium.as_deref().unwrap_or_default().is_empty())
    });
    let paths: Vec<(String, PathBuf)> =
        on_disk.map(|volume| (volume.name.clone(), places.volume("empty-dir", &volume.name))).collect();
    let logs = shared.places.pod_logs(pod);
    let measured = tokio::task::spawn_blocking(move || {
        let volumes = paths.into_iter().map(|(name, path)| (name, tree_size(&path))).collect();
        (volumes, tree_size(&logs))
    });
    let (empty_dirs, logs) = measured.await.unwrap_or_default();
    DiskUsage { empty_dirs, logs, layers }
}

/// What the Pod's containers wrote, as the runtime counts it.
async fn layers(shared: &Shared, uid: &PodUid) -> u64 {
    let selector = std::collections::BTreeMap::from([(label::POD_UID.to_owned(), uid.as_str().to_owned())]);
    let filter = v1::ContainerStatsFilter { label_selector: selector, ..Default::default() };
    let request = v1::ListContainerStatsRequest { filter: Some(filter) };
    let Ok(answer) = shared.cri.list_container_stats(request).await else { return 0 };
    let used = answer.stats.iter().filter_map(|stats| stats.writable_layer.as_ref()?.used_bytes);
    used.map(|used| used.value).fold(0, u64::saturating_add)
}

/// Bytes on the disk of everything below `root`, without following links or crossing into other filesystems.
fn tree_size(root: &Path) -> u64 {
    let Ok(top) = std::fs::symlink_metadata(root) else { return 0 };
    let mut total = top.blocks() * 512;
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != top.dev() {
                continue;
            }
            total = total.saturating_add(meta.blocks() * 512);
            if meta.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_counts_with_all_that_is_below_it() {
        let root = tempfile::tempdir().unwrap();
        let empty = tree_size(root.path());
        std::fs::create_dir(root.path().join("d")).unwrap();
        std::fs::write(root.path().join("d/file"), vec![1_u8; 1 << 20]).unwrap();
        std::os::unix::fs::symlink("/", root.path().join("link")).unwrap();
        let full = tree_size(root.path());
        assert!((1 << 20..2 << 20).contains(&(full - empty)), "{empty} {full}");
        assert_eq!(tree_size(Path::new("/nonexistent")), 0);
    }
}
