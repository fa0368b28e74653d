//! What was decided about a Pod's user namespace: kept with the Pod, and shown as its condition. The decision itself is
//! `userns::policy`'s; here are its inputs from the node and the file in which an exemption outlives the daemon.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Volume};
use serde::{Deserialize, Serialize};
use userns::IdMappings;
use userns::policy::{Finding, PodFacts, VolumeFact};

use crate::object::Snapshot;
use crate::volume::claim::{ClaimError, claim_name, plan_claimed};
use crate::volume::mount::filesystem_name;
use crate::volume::plan::{Content, VolumeError};
use crate::volume::setup::VolumeProbe;

/// The Pod's condition.
pub(crate) const CONDITION: &str = "kakoi.dev/UserNamespace";

/// The file in the Pod's directory that says that it runs with the node's IDs. A Pod with IDs of its own has its record.
const EXEMPTION: &str = "userns-exempt";
const TEMPORARY: &str = ".userns-exempt-new";

/// What was decided for a Pod; it holds as long as the Pod is on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fence {
    /// The Pod has IDs of its own.
    #[serde(skip)]
    pub(crate) is_own: bool,
    /// One word for machines: the condition's reason.
    pub(crate) reason: String,
    /// For people: the condition's message.
    pub(crate) message: String,
}

impl Fence {
    /// A Pod that said `hostUsers: false`.
    pub(crate) fn requested() -> Self {
        Self::own("Requested", "it says `hostUsers: false`")
    }

    /// A Pod that said nothing and is fenced all the same.
    pub(crate) fn by_policy() -> Self {
        Self::own("FencedByPolicy", "it says nothing of `hostUsers`, and the policy fences it")
    }

    fn own(reason: &str, why: &str) -> Self {
        Self { is_own: true, reason: reason.to_owned(), message: why.to_owned() }
    }

    /// A Pod with the node's IDs, and why. `findings` has at least one.
    pub(crate) fn exempt(reason: &str, findings: &[Finding]) -> Self {
        let message = format!("the node's IDs: {}", explain(findings));
        Self { is_own: false, reason: reason.to_owned(), message }
    }

    /// A Pod whose sandbox was there before anything was decided.
    pub(crate) fn found_running() -> Self {
        let message =
            "the node's IDs: its sandbox was made before this node decided about user namespaces".to_owned();
        Self { is_own: false, reason: "SandboxWasThere".to_owned(), message }
    }

    /// With the IDs that the Pod was given, which begin the message.
    pub(crate) fn with_ids(self, mappings: &IdMappings) -> Self {
        let Some(line) = mappings.uids.first().filter(|_| self.is_own) else { return self };
        let last = |first: u32| first.saturating_add(line.length.saturating_sub(1));
        let (outside, inside) = (last(line.host_id), last(line.container_id));
        let range = format!("{}-{outside} of the node are its {}-{inside}", line.host_id, line.container_id);
        Self { message: format!("{range}: {}", self.message), ..self }
    }

    /// Reads the exemption in a Pod's directory. One that can't be read is none: it is decided anew.
    pub(crate) fn read_exemption(directory: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(directory.join(EXEMPTION)).ok()?).ok()
    }

    /// Keeps the exemption in the Pod's directory, before the first sandbox. It is renamed into place, so that a daemon
    /// that dies leaves it whole; it need not outlive the machine, since no sandbox does.
    pub(crate) fn write_exemption(&self, directory: &Path) -> io::Result<()> {
        let temporary = directory.join(TEMPORARY);
        fs::write(&temporary, serde_json::to_vec(self)?)?;
        fs::rename(temporary, directory.join(EXEMPTION))
    }
}

/// All findings as one text, each with its remedy.
pub(crate) fn explain(findings: &[Finding]) -> String {
    let each = findings.iter().map(|finding| format!("{finding} ({})", finding.remedy()));
    each.collect::<Vec<_>>().join("; ")
}

/// The part of the Pod that the policy looks at.
pub(crate) fn facts_of(pod: &Pod) -> Result<PodFacts, serde_json::Error> {
    PodFacts::read(&serde_json::to_value(pod)?)
}

/// A volume that is a path of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodePath {
    volume: String,
    path: PathBuf,
    /// The path is in the Pod's spec, where the policy reads it. Else it is that of the claim's volume.
    is_in_spec: bool,
}

/// The paths of the node that the Pod's volumes are: those of hostPath volumes, and those that claims are bound to.
/// Nothing can be decided about a claim that is not bound: it is told what it waits for.
pub(crate) fn node_paths(pod: &Pod, objects: &Snapshot) -> Result<Vec<NodePath>, VolumeError> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let each = volumes.map(|volume| {
        let failed =
            |cause: ClaimError| VolumeError { volume: volume.name.clone(), cause: Box::new(cause.into()) };
        node_path(pod, volume, objects).map_err(failed)
    });
    each.filter_map(Result::transpose).collect()
}

fn node_path(pod: &Pod, volume: &Volume, objects: &Snapshot) -> Result<Option<NodePath>, ClaimError> {
    let found = |path: PathBuf, is_in_spec| Some(NodePath { volume: volume.name.clone(), path, is_in_spec });
    if let Some(source) = &volume.host_path {
        return Ok(found(PathBuf::from(&source.path), true));
    }
    if claim_name(pod, volume).is_none() {
        return Ok(None);
    }
    let (content, _) = plan_claimed(pod, volume, objects)?;
    Ok(match content {
        Content::HostPath { path, .. } | Content::Local { path, .. } => found(path, false),
        _ => None,
    })
}

/// What is found at the paths. What can't be looked at says nothing: setting it up tells.
pub(crate) fn probe_volumes(paths: &[NodePath], probe: &dyn VolumeProbe) -> Vec<(String, VolumeFact)> {
    let each = paths
        .iter()
        .flat_map(|path| probe_path(path, probe).into_iter().map(move |fact| (path.volume.clone(), fact)));
    each.collect()
}

fn probe_path(NodePath { path, is_in_spec, .. }: &NodePath, probe: &dyn VolumeProbe) -> Vec<VolumeFact> {
    let Some(real) = real_path(path) else { return Vec::new() };
    let shown = real.display().to_string();
    let mut facts = Vec::new();
    if !is_in_spec || real != *path {
        facts.push(VolumeFact::LeadsTo(shown.clone()));
    }
    let Some(existing) = real.ancestors().find(|parent| parent.exists()) else { return facts };
    match fs::metadata(existing).map(|meta| meta.file_type()) {
        Ok(kind) if kind.is_socket() => facts.push(VolumeFact::Socket(shown)),
        Ok(kind) if kind.is_char_device() || kind.is_block_device() => facts.push(VolumeFact::Device(shown)),
        _ if probe.can_map(existing).is_ok_and(|can_map| !can_map) => {
            let filesystem = filesystem_name(existing);
            facts.push(VolumeFact::NotMappable { path: shown, filesystem });
        }
        _ => {}
    }
    facts
}

/// The path without links, as far as it exists; the rest is what will be made.
fn real_path(path: &Path) -> Option<PathBuf> {
    let existing = path.ancestors().find(|parent| parent.exists())?;
    let rest = path.strip_prefix(existing).ok()?;
    let real = existing.canonicalize().ok()?;
    Some(if rest.as_os_str().is_empty() { real } else { real.join(rest) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use userns::IdRange;

    use super::*;

    struct Only(&'static str);

    impl VolumeProbe for Only {
        fn can_map(&self, path: &Path) -> io::Result<bool> {
            Ok(path.to_string_lossy() != self.0)
        }
    }

    fn facts(path: &Path) -> Vec<VolumeFact> {
        let path = NodePath { volume: "v".to_owned(), path: path.to_owned(), is_in_spec: true };
        let found = probe_volumes(&[path], &Only("/proc"));
        found.into_iter().map(|(name, fact)| (name == "v").then_some(fact).unwrap()).collect()
    }

    #[test]
    fn claims_are_looked_at_where_they_lead_and_wait_until_they_are_bound() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "volumes": [{"name": "host", "hostPath": {"path": "/srv"}},
                {"name": "none", "emptyDir": {}}, {"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]}}))
        .unwrap();
        let objects = |phase: &str| {
            let claim = json!({"metadata": {"name": "c", "namespace": "n"}, "spec": {"volumeName": "pv"},
                "status": {"phase": phase}});
            let volume = json!({"metadata": {"name": "pv"}, "spec": {"local": {"path": "/proc"},
                "claimRef": {"name": "c", "namespace": "n"}}});
            let mut objects = Snapshot::default();
            objects.claims.insert("c".into(), Arc::new(serde_json::from_value(claim).unwrap()));
            objects.persistent_volumes.insert("pv".into(), Arc::new(serde_json::from_value(volume).unwrap()));
            objects
        };
        let paths = node_paths(&pod, &objects("Bound")).unwrap();
        let [host, data] = paths.as_slice() else { panic!("{paths:?}") };
        assert_eq!((host.path.as_path(), data.path.as_path()), (Path::new("/srv"), Path::new("/proc")));
        let facts = [
            VolumeFact::LeadsTo("/proc".into()),
            VolumeFact::NotMappable { path: "/proc".into(), filesystem: "proc".into() },
        ];
        let of_data = facts.map(|fact| ("data".to_owned(), fact));
        assert_eq!(
            probe_volumes(&paths[1..], &Only("/proc")),
            of_data,
            "the policy has not seen that path yet"
        );
        let waits = node_paths(&pod, &objects("Pending")).unwrap_err().to_string();
        assert_eq!(waits, "MountVolume.SetUp failed for volume \"data\" : PVC \"c\" is not bound");
    }

    #[test]
    fn sockets_devices_links_and_filesystems_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().canonicalize().unwrap().join(name);
        let _socket = std::os::unix::net::UnixListener::bind(at("s")).unwrap();
        std::os::unix::fs::symlink("/proc", at("link")).unwrap();
        let text = |path: &Path| path.display().to_string();
        assert_eq!(facts(&at("s")), [VolumeFact::Socket(text(&at("s")))]);
        assert_eq!(facts(Path::new("/dev/null")), [VolumeFact::Device("/dev/null".into())]);
        let proc = VolumeFact::NotMappable { path: "/proc".into(), filesystem: "proc".into() };
        assert_eq!(facts(&at("link")), [VolumeFact::LeadsTo("/proc".into()), proc]);
        assert_eq!(facts(&at("link/new/one"))[0], VolumeFact::LeadsTo("/proc/new/one".into()));
        assert_eq!(facts(&at("to-be-made/below")), []);
    }

    #[test]
    fn an_exemption_is_read_back_and_garbage_is_none() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Fence::read_exemption(directory.path()), None);
        let fence = Fence::found_running();
        fence.write_exemption(directory.path()).unwrap();
        assert_eq!(Fence::read_exemption(directory.path()), Some(fence));
        fs::write(directory.path().join(EXEMPTION), "{").unwrap();
        assert_eq!(Fence::read_exemption(directory.path()), None);
    }

    #[test]
    fn the_message_of_a_fenced_pod_begins_with_its_range() {
        let ids = IdMappings::of(IdRange::new(131_072, 65_536).unwrap());
        assert_eq!(
            Fence::requested().with_ids(&ids).message,
            "131072-196607 of the node are its 0-65535: it says `hostUsers: false`"
        );
    }
}
