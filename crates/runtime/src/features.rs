//! What the running kernel and this machine's filesystems can do, found out by doing it once at start. A feature is
//! advertised only when every part of it worked; else the reason is kept for whoever asks.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use userns::{IdRange, parse_accounts, parse_subids};

use crate::probe::{probe_id_map, probe_namespace, probe_overlay, probe_tmpfs};

/// What this node can do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Features {
    /// Pods in user namespaces, with ID-mapped root filesystems and volumes.
    pub(crate) user_namespaces: bool,
    /// Why not; empty when they work.
    pub(crate) reason: String,
    /// Filesystems that can't be ID-mapped, for information: a volume on one of them is refused by name.
    pub(crate) notes: Vec<String>,
    accounts: BTreeSet<u32>,
    sub_ids: Vec<IdRange>,
}

/// Where to probe.
#[derive(Debug)]
pub(crate) struct Probe<'a> {
    /// A directory for scratch files on the filesystem of containers' writable layers.
    pub(crate) state_dir: &'a Path,
    /// The parent of the images' layers.
    pub(crate) layers_dir: &'a Path,
    /// Further directories that must be ID-mappable.
    pub(crate) volume_dirs: &'a [PathBuf],
    /// Where `passwd`, `subuid` and `subgid` lie.
    pub(crate) etc: &'a Path,
}

impl Features {
    /// Tries everything out. Nothing is left behind.
    pub(crate) fn probe(probe: &Probe<'_>) -> Self {
        let mut features = Self::default();
        features.read_accounts(probe.etc);
        match probe_user_namespaces(probe) {
            Ok(notes) => (features.user_namespaces, features.notes) = (true, notes),
            Err(reason) => {
                tracing::warn!(reason, "Pods can't run in user namespaces on this node");
                features.reason = reason;
            }
        }
        features
    }

    /// Whether a host UID belongs to an account or a sub-ID owner of the node.
    pub(crate) fn is_account(&self, uid: u32) -> bool {
        self.accounts.contains(&uid) || self.sub_ids.iter().any(|range| range.contains(uid))
    }

    fn read_accounts(&mut self, etc: &Path) {
        let read = |name: &str| std::fs::read_to_string(etc.join(name)).unwrap_or_default();
        self.accounts = parse_accounts(&read("passwd")).into_iter().map(|(_, id)| id).collect();
        let entries = parse_subids(&read("subuid"));
        // The `kubelet` user's ranges are there for Pods.
        let given_away = entries.into_iter().flatten().filter(|entry| entry.owner != "kubelet");
        self.sub_ids = given_away.map(|entry| entry.range).collect();
    }
}

/// Everything that a Pod in a user namespace needs; the notes of what it can live without.
fn probe_user_namespaces(probe: &Probe<'_>) -> Result<Vec<String>, String> {
    let namespace = probe_namespace()?;
    let mapping = namespace.as_fd();
    for directory in probe.volume_dirs.iter().map(PathBuf::as_path).chain([probe.state_dir]) {
        if directory.exists() {
            probe_id_map(directory, mapping)?;
        }
    }
    probe_overlay(probe.state_dir, probe.layers_dir, mapping)?;
    Ok(probe_tmpfs(mapping).err().into_iter().collect())
}
