//! Sets a Pod's volumes up as planned. Every step can be repeated: at a restart the same call finds all in place.
//!
//! On disk, files belong to container IDs, and the runtime maps the mount. A volume of this Pod alone on a filesystem
//! that the kernel cannot ID-map is written with the Pod's host IDs instead and bound as it is.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use userns::IdMappings;

use super::atomic::{self, Ownership, Written};
use super::fs_group::apply_fs_group;
use super::host_path::check_host_path;
use super::mount;
use super::plan::{Content, MAPPING_ANNOTATION, VolumeCause, VolumeError, VolumePlan};
use crate::places::PodPlaces;

const MOVE_DATA: &str = "move the data to ext4, xfs, btrfs or tmpfs, or set `hostUsers: true`";
const OTHER_DRIVER: &str =
    "use a driver whose filesystem can be (ext4, xfs, btrfs, tmpfs), or set `hostUsers: true`";

/// Asks the kernel whether the filesystem at a path can carry an ID-mapped mount.
pub trait VolumeProbe: Send + Sync {
    /// `true` when a mount of `path` can be ID-mapped.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn can_map(&self, path: &Path) -> io::Result<bool>;
}

/// What the volumes of one Pod are set up with.
#[derive(Clone, Copy)]
pub(crate) struct SetupInput<'a> {
    pub(crate) places: &'a PodPlaces,
    /// The Pod's ID mapping; `None` when it uses the node's IDs.
    pub(crate) mappings: Option<&'a IdMappings>,
    pub(crate) fs_group: Option<u32>,
    pub(crate) probe: &'a dyn VolumeProbe,
    pub(crate) now: Timestamp,
}

/// A volume that is ready to be mounted into containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadyVolume {
    pub(crate) name: String,
    pub(crate) host_path: PathBuf,
    /// The runtime maps the mount with the Pod's IDs (if it has its own).
    pub(crate) is_mapped: bool,
    /// The node agent owns the content: containers only read.
    pub(crate) is_read_only: bool,
    /// The host ID of new directories that the node agent makes in it.
    pub(crate) base: u32,
    /// An image that the runtime mounts, and when it is pulled; there is no path then.
    pub(crate) image: Option<(String, Option<String>)>,
}

/// Sets up every volume; stops at the first that fails.
pub(crate) fn apply_volumes(
    input: SetupInput<'_>,
    plans: &[VolumePlan],
) -> Result<Vec<ReadyVolume>, VolumeError> {
    plans
        .iter()
        .map(|plan| {
            apply_volume(input, plan)
                .map_err(|cause| VolumeError { volume: plan.name.clone(), cause: Box::new(cause) })
        })
        .collect()
}

fn apply_volume(input: SetupInput<'_>, plan: &VolumePlan) -> Result<ReadyVolume, VolumeCause> {
    match &plan.content {
        Content::Files { plugin, in_memory, files } => {
            let directory = input.places.volume(plugin, &plan.name);
            make_directory(&directory)?;
            if *in_memory {
                mount::mount_tmpfs(&directory, None, 0o755).map_err(io_at("mount a tmpfs at", &directory))?;
            }
            let (is_mapped, owner) = ownership(input, &directory)?;
            own_directory(&directory, owner, 0o755)?;
            let written = atomic::write_payload(&directory, files, owner, input.now)?;
            if written == Written::Replaced {
                tracing::debug!(volume = plan.name, "volume content written");
            }
            Ok(ready(plan, directory, is_mapped, owner))
        }
        Content::EmptyDisk => {
            let directory = input.places.volume("empty-dir", &plan.name);
            make_directory(&directory)?;
            finish_empty(input, plan, directory)
        }
        Content::EmptyMemory { size } => {
            let directory = input.places.volume("empty-dir", &plan.name);
            make_directory(&directory)?;
            mount::mount_tmpfs(&directory, *size, 0o777).map_err(io_at("mount a tmpfs at", &directory))?;
            finish_empty(input, plan, directory)
        }
        Content::EmptyHuge { page, size } => {
            let directory = input.places.volume("empty-dir", &plan.name);
            make_directory(&directory)?;
            mount::mount_hugetlbfs(&directory, *page, *size)
                .map_err(io_at("mount huge pages at", &directory))?;
            finish_empty(input, plan, directory)
        }
        Content::HostPath { path, kind, is_mapped } => {
            check_host_path(path, kind)?;
            if input.mappings.is_some() && *is_mapped && path.exists() {
                let annotation = format!("`{MAPPING_ANNOTATION}{}: none`", plan.name);
                let remedy =
                    format!("{MOVE_DATA}, or bind it without a mapping through the annotation {annotation}");
                require_mappable(input, path, &remedy)?;
            }
            Ok(ready(plan, path.clone(), *is_mapped, Ownership::default()))
        }
        Content::Local { path, policy } => {
            if !path.is_dir() {
                return Err(VolumeCause::NoDirectory(path.clone()));
            }
            if input.mappings.is_some() {
                require_mappable(input, path, MOVE_DATA)?;
            }
            if let Some(group) = input.fs_group {
                apply_fs_group(path, group, *policy).map_err(|(path, source)| VolumeCause::Io {
                    action: "give to the fsGroup",
                    path,
                    source,
                })?;
            }
            Ok(ready(plan, path.clone(), true, Ownership::default()))
        }
        // The driver has mounted it before: see `crate::csi`.
        Content::Csi(_) => {
            let path = crate::csi::note::target(input.places, &plan.name);
            if input.mappings.is_some() {
                require_mappable(input, &path, OTHER_DRIVER)?;
            }
            Ok(ready(plan, path, true, Ownership::default()))
        }
        // It was mounted before: see `crate::volume::nfs`.
        Content::Nfs(_) => {
            let path = input.places.volume("nfs", &plan.name);
            Ok(ready(plan, path, false, Ownership::default()))
        }
        Content::Image { reference, policy } => Ok(ReadyVolume {
            image: Some((reference.clone(), policy.clone())),
            ..ready(plan, PathBuf::new(), false, Ownership::default())
        }),
    }
}

fn ready(plan: &VolumePlan, host_path: PathBuf, is_mapped: bool, owner: Ownership) -> ReadyVolume {
    let is_read_only = plan.is_read_only;
    let name = plan.name.clone();
    ReadyVolume { name, host_path, is_mapped, is_read_only, base: owner.base, image: None }
}

fn finish_empty(
    input: SetupInput<'_>,
    plan: &VolumePlan,
    directory: PathBuf,
) -> Result<ReadyVolume, VolumeCause> {
    let (is_mapped, owner) = ownership(input, &directory)?;
    own_directory(&directory, owner, 0o777)?;
    Ok(ready(plan, directory, is_mapped, owner))
}

/// Container IDs where the mount can be mapped or needs no mapping, the Pod's host IDs where it cannot.
fn ownership(input: SetupInput<'_>, directory: &Path) -> Result<(bool, Ownership), VolumeCause> {
    let fs_group = input.fs_group;
    let Some(mappings) = input.mappings else { return Ok((false, Ownership { base: 0, fs_group })) };
    let can_map = input.probe.can_map(directory).map_err(io_at("ask for ID-mapped mounts of", directory))?;
    let base = if can_map { 0 } else { mappings.uids.first().map_or(0, |line| line.host_id) };
    Ok((can_map, Ownership { base, fs_group }))
}

/// Refuses what the kernel cannot map, with what the owner of a volume of this kind can do about it.
fn require_mappable(input: SetupInput<'_>, path: &Path, remedy: &str) -> Result<(), VolumeCause> {
    if input.probe.can_map(path).map_err(io_at("ask for ID-mapped mounts of", path))? {
        return Ok(());
    }
    Err(VolumeCause::NotMappable {
        path: path.to_owned(),
        filesystem: mount::filesystem_name(path),
        mounted: mount::mount_source(path),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        remedy: remedy.to_owned(),
    })
}

fn io_at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeCause {
    let path = path.to_owned();
    move |source| VolumeCause::Io { action, path, source }
}

fn make_directory(path: &Path) -> Result<(), VolumeCause> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(path).map_err(io_at("make directory", path))
}

/// The volume's own directory: root's (in container IDs), open as the type asks, with `fsGroup` its group's.
fn own_directory(path: &Path, owner: Ownership, mode: u32) -> Result<(), VolumeCause> {
    let mode = if owner.fs_group.is_some() { mode | 0o2770 } else { mode };
    chown(path, Some(owner.user(0)), Some(owner.group())).map_err(io_at("change owner of", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io_at("change mode of", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use userns::IdRange;

    use super::*;
    use crate::places::Places;
    use crate::uid::PodUid;
    use crate::volume::payload::{File, Payload};

    struct Answer(bool);

    impl VolumeProbe for Answer {
        fn can_map(&self, _: &Path) -> io::Result<bool> {
            Ok(self.0)
        }
    }

    struct Fixture {
        root: tempfile::TempDir,
        places: PodPlaces,
        mappings: IdMappings,
    }

    impl Fixture {
        fn new() -> Self {
            assert!(
                rustix::process::geteuid().is_root(),
                "this test mounts and changes owners: run it as root"
            );
            let root = tempfile::tempdir().unwrap();
            let places = Places::new(root.path().into(), root.path().join("logs"));
            let places = places.of(&PodUid::parse("uid").unwrap());
            Self { root, places, mappings: IdMappings::of(IdRange::new(131_072, 65_536).unwrap()) }
        }

        fn apply(&self, content: Content, fenced: bool, mappable: bool) -> Result<ReadyVolume, String> {
            let input = SetupInput {
                places: &self.places,
                mappings: fenced.then_some(&self.mappings),
                fs_group: Some(2000),
                probe: &Answer(mappable),
                now: Timestamp::UNIX_EPOCH,
            };
            let is_read_only = matches!(content, Content::Files { .. });
            let plan = VolumePlan { name: "v".into(), content, is_read_only };
            apply_volumes(input, &[plan]).map(|mut ready| ready.remove(0)).map_err(|error| error.to_string())
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            mount::unmount_below(self.root.path()).unwrap();
        }
    }

    fn files() -> Content {
        let file = File { data: b"1".to_vec(), mode: 0o644, user: None };
        Content::Files { plugin: "secret", in_memory: true, files: Payload::from([("k".into(), file)]) }
    }

    #[test]
    fn files_carry_container_ids_when_the_mount_is_mapped() {
        let fixture = Fixture::new();
        let ready = fixture.apply(files(), true, true).unwrap();
        assert!(ready.is_mapped && ready.is_read_only);
        let meta = fs::metadata(ready.host_path.join("k")).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (0, 2000, 0o644));
        assert!(mount::is_mount_point(&ready.host_path).unwrap());
        assert_eq!(fixture.apply(files(), true, true).unwrap(), ready, "a second time changes nothing");
    }

    #[test]
    fn files_carry_host_ids_when_the_kernel_cannot_map() {
        let fixture = Fixture::new();
        let ready = fixture.apply(files(), true, false).unwrap();
        assert!(!ready.is_mapped);
        let meta = fs::metadata(ready.host_path.join("k")).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (131_072, 133_072));
        let directory = fs::metadata(&ready.host_path).unwrap();
        assert_eq!((directory.uid(), directory.gid()), (131_072, 133_072));
    }

    #[test]
    fn an_empty_directory_is_open_to_all_and_belongs_to_the_group() {
        let fixture = Fixture::new();
        for content in [Content::EmptyDisk, Content::EmptyMemory { size: Some(1 << 20) }] {
            let ready = fixture.apply(content, false, true).unwrap();
            let meta = fs::metadata(&ready.host_path).unwrap();
            assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (0, 2000, 0o2777));
            assert!(!ready.is_mapped && !ready.is_read_only);
        }
    }

    #[test]
    fn huge_pages_are_mounted_with_their_size_and_carry_the_pods_ids() {
        let fixture = Fixture::new();
        let huge = Content::EmptyHuge { page: 2 << 20, size: 5 << 20 };
        for mappable in [true, false] {
            let ready = fixture.apply(huge.clone(), true, mappable).unwrap();
            let found = rustix::fs::statfs(&ready.host_path).unwrap();
            assert_eq!((found.f_bsize, found.f_blocks), (2 << 20, 3), "three pages hold five MiB");
            let base = if mappable { 0 } else { 131_072 };
            let meta = fs::metadata(&ready.host_path).unwrap();
            assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (base, base + 2000, 0o2777));
            assert_eq!(mount::filesystem_name(&ready.host_path), "hugetlbfs");
        }
    }

    #[test]
    fn h07_a_host_path_that_cannot_be_mapped_is_refused_unless_it_is_bound_plainly() {
        let fixture = Fixture::new();
        let host =
            |is_mapped| Content::HostPath { path: "/proc".into(), kind: "Directory".into(), is_mapped };
        let error = fixture.apply(host(true), true, false).unwrap_err();
        assert!(error.contains("volume \"v\" : the filesystem of /proc (proc, mounted from "), "{error}");
        assert!(error.contains("cannot be ID-mapped by this kernel (Linux "), "{error}");
        assert!(error.contains("kakoi.dev/volume-mapping.v: none"), "{error}");
        assert!(!fixture.apply(host(false), true, false).unwrap().is_mapped);
        assert!(
            fixture.apply(host(true), false, false).is_ok(),
            "a Pod with the node's IDs needs no mapping"
        );
    }
}
