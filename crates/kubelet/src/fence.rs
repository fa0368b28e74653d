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

use crate::csi;
use crate::object::Snapshot;
use crate::places::PodPlaces;
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

/// A volume about which the node can tell something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeVolume {
    volume: String,
    place: Place,
}

/// Where a volume lies.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// A path in the Pod's spec, where the policy reads it.
    InSpec(PathBuf),
    /// The path of the claim's volume.
    Claimed(PathBuf),
    /// Where a CSI driver mounts it: it must be published before it is looked at.
    Driver(PathBuf),
    /// An export of an NFS server, which the claim is bound to.
    Nfs(String),
}

/// The Pod's volumes that decide about its user namespace: hostPath volumes, those of drivers, and those that claims are
/// bound to. Nothing can be decided about a claim that is not bound: it is told what it waits for.
pub(crate) fn node_volumes(
    pod: &Pod,
    objects: &Snapshot,
    places: &PodPlaces,
) -> Result<Vec<NodeVolume>, VolumeError> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let each = volumes.map(|volume| {
        let failed =
            |cause: ClaimError| VolumeError { volume: volume.name.clone(), cause: Box::new(cause.into()) };
        let place = place_of(pod, volume, objects, places).map_err(failed)?;
        Ok(place.map(|place| NodeVolume { volume: volume.name.clone(), place }))
    });
    each.filter_map(Result::transpose).collect()
}

fn place_of(
    pod: &Pod,
    volume: &Volume,
    objects: &Snapshot,
    places: &PodPlaces,
) -> Result<Option<Place>, ClaimError> {
    if let Some(source) = &volume.host_path {
        return Ok(Some(Place::InSpec(PathBuf::from(&source.path))));
    }
    let driver = || Some(Place::Driver(csi::note::target(places, &volume.name)));
    if volume.csi.is_some() {
        return Ok(driver());
    }
    if claim_name(pod, volume).is_none() {
        return Ok(None);
    }
    let (content, _) = plan_claimed(pod, volume, objects)?;
    Ok(match content {
        Content::HostPath { path, .. } | Content::Local { path, .. } => Some(Place::Claimed(path)),
        Content::Csi(_) => driver(),
        Content::Nfs(nfs) => Some(Place::Nfs(nfs.export())),
        _ => None,
    })
}

/// Whether a volume must be mounted by its driver before it can be looked at.
pub(crate) fn has_driver(volumes: &[NodeVolume]) -> bool {
    volumes.iter().any(|volume| matches!(volume.place, Place::Driver(_)))
}

/// What is found at the volumes. What can't be looked at says nothing: setting it up tells.
pub(crate) fn probe_volumes(volumes: &[NodeVolume], probe: &dyn VolumeProbe) -> Vec<(String, VolumeFact)> {
    let each = volumes.iter().flat_map(|volume| {
        probe_place(&volume.place, probe).into_iter().map(|fact| (volume.volume.clone(), fact))
    });
    each.collect()
}

fn probe_place(place: &Place, probe: &dyn VolumeProbe) -> Vec<VolumeFact> {
    match place {
        Place::InSpec(path) | Place::Claimed(path) => probe_path(place, path, probe),
        // The mount lies in the node agent's own directory, wherever that is.
        Place::Driver(path) => not_mappable(path, path.display().to_string(), probe).into_iter().collect(),
        Place::Nfs(export) => {
            vec![VolumeFact::NotMappable { path: export.clone(), filesystem: "nfs".to_owned() }]
        }
    }
}

fn not_mappable(path: &Path, shown: String, probe: &dyn VolumeProbe) -> Option<VolumeFact> {
    let filesystem = || filesystem_name(path);
    let is_lost = probe.can_map(path).is_ok_and(|can_map| !can_map);
    is_lost.then(|| VolumeFact::NotMappable { path: shown, filesystem: filesystem() })
}

fn probe_path(place: &Place, path: &Path, probe: &dyn VolumeProbe) -> Vec<VolumeFact> {
    let Some(real) = real_path(path) else { return Vec::new() };
    let shown = real.display().to_string();
    let mut facts = Vec::new();
    if matches!(place, Place::Claimed(_)) || real != *path {
        facts.push(VolumeFact::LeadsTo(shown.clone()));
    }
    let Some(existing) = real.ancestors().find(|parent| parent.exists()) else { return facts };
    match fs::metadata(existing).map(|meta| meta.file_type()) {
        Ok(kind) if kind.is_socket() => facts.push(VolumeFact::Socket(shown)),
        Ok(kind) if kind.is_char_device() || kind.is_block_device() => facts.push(VolumeFact::Device(shown)),
        _ => facts.extend(not_mappable(existing, shown, probe)),
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
        let volume = NodeVolume { volume: "v".to_owned(), place: Place::InSpec(path.to_owned()) };
        let found = probe_volumes(&[volume], &Only("/proc"));
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
        let paths = node_volumes(&pod, &objects("Bound"), &places()).unwrap();
        let [host, data] = paths.as_slice() else { panic!("{paths:?}") };
        assert_eq!(
            (&host.place, &data.place),
            (&Place::InSpec("/srv".into()), &Place::Claimed("/proc".into()))
        );
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
        let waits = node_volumes(&pod, &objects("Pending"), &places()).unwrap_err().to_string();
        assert_eq!(waits, "MountVolume.SetUp failed for volume \"data\" : PVC \"c\" is not bound");
    }

    fn places() -> PodPlaces {
        let places = crate::places::Places::new("/kubelet".into(), "/logs".into());
        places.of(&crate::uid::PodUid::parse("u").unwrap())
    }

    #[test]
    fn volumes_of_drivers_and_of_nfs_servers_decide_too() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "volumes": [{"name": "own", "csi": {"driver": "d"}},
                {"name": "claimed", "persistentVolumeClaim": {"claimName": "csi"}},
                {"name": "far", "persistentVolumeClaim": {"claimName": "nfs"}}]}}))
            .unwrap();
        let mut objects = Snapshot::default();
        let sources = [
            ("csi", json!({"csi": {"driver": "d", "volumeHandle": "h"}})),
            ("nfs", json!({"nfs": {"server": "filer", "path": "/x"}})),
        ];
        for (name, mut spec) in sources {
            spec["claimRef"] = json!({"name": name, "namespace": "n"});
            let claim = json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"volumeName": name},
                "status": {"phase": "Bound"}});
            objects.claims.insert(name.into(), Arc::new(serde_json::from_value(claim).unwrap()));
            let volume = json!({"metadata": {"name": name}, "spec": spec});
            objects.persistent_volumes.insert(name.into(), Arc::new(serde_json::from_value(volume).unwrap()));
        }
        let volumes = node_volumes(&pod, &objects, &places()).unwrap();
        assert!(has_driver(&volumes) && !has_driver(&volumes[2..]));
        let mount = "/kubelet/pods/u/volumes/kubernetes.io~csi/claimed/mount";
        let found = probe_volumes(&volumes, &Only(mount));
        let fact = |path: &str, filesystem: &str| VolumeFact::NotMappable {
            path: path.into(),
            filesystem: filesystem.into(),
        };
        let expected =
            [("claimed".to_owned(), fact(mount, "unknown")), ("far".to_owned(), fact("filer:/x", "nfs"))];
        assert_eq!(found, expected);
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
