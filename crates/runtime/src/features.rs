//! What the running kernel and this machine's filesystems can do, found out by doing it once at start. A feature is
//! advertised only when every part of it worked; else the reason is kept for whoever asks.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use sys::idmap::IdMapping;
use sys::mount::{OverlayPlan, Upper};
use userns::{IdRange, MAX_HOST_ID, parse_accounts, parse_subids};

/// IDs of a probe's mapping.
const PROBE_LENGTH: u32 = 65_536;

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
    let namespace = highest_namespace()?;
    let mapping = namespace.as_fd();
    for directory in probe.volume_dirs.iter().map(PathBuf::as_path).chain([probe.state_dir]) {
        if directory.exists() {
            sys::mount::is_id_mappable(directory, mapping).map_err(|error| error.to_string())?;
        }
    }
    probe_overlay(probe, mapping)?;
    let tmpfs = probe_tmpfs(mapping);
    Ok(tmpfs.err().into_iter().collect())
}

/// A user namespace that maps the highest IDs that can be given out.
fn highest_namespace() -> Result<OwnedFd, String> {
    let map = [IdMapping { container_id: 0, host_id: MAX_HOST_ID - PROBE_LENGTH + 1, size: PROBE_LENGTH }];
    sys::idmap::namespace_with(&map, &map)
        .map_err(|error| sys::idmap::explain_namespace_error("user", &error))
}

fn probe_overlay(probe: &Probe<'_>, mapping: BorrowedFd<'_>) -> Result<(), String> {
    let said = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    std::fs::create_dir_all(probe.layers_dir).map_err(said("make the layers' directory"))?;
    let lower = Scratch::make(probe.layers_dir).map_err(said("make a directory beside the layers"))?;
    let scratch = Scratch::make(probe.state_dir).map_err(said("make a directory beside the containers"))?;
    let (upper, work) = (scratch.0.join("upper"), scratch.0.join("work"));
    for directory in [&upper, &work] {
        std::fs::create_dir(directory).map_err(said("make an overlay's directory"))?;
    }
    let plan = OverlayPlan {
        layers_dir: probe.layers_dir,
        layers: std::slice::from_ref(&lower.0),
        upper: Some(Upper { upper: &upper, work: &work }),
        id_mapping: Some(mapping),
    };
    sys::mount::overlay(&plan).map(drop).map_err(|error| error.to_string())
}

/// tmpfs is mappable from Linux 6.3; a volume on an older one is written with the Pod's own IDs instead.
fn probe_tmpfs(mapping: BorrowedFd<'_>) -> Result<(), String> {
    let said = |error: &dyn std::fmt::Display| format!("tmpfs can't be ID-mapped here: {error}");
    let mount = sys::mount::tmpfs(0, 0, 0o700, 1 << 20).map_err(|error| said(&error))?;
    let change = sys::mount::Change { id_mapping: Some(mapping), ..sys::mount::Change::default() };
    sys::mount::change(&mount, &change, false).map_err(|error| said(&error))
}

/// A directory that goes when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn make(parent: &Path) -> std::io::Result<Self> {
        let path = parent.join(format!(".probe-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover is empty but for two directories, and a later probe has another name.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
