//! Overlay root filesystems whose lower layers come from one ID-mapped clone: nothing is copied, nothing changes owner.

use super::{Attributes, Change, Propagation, change, clone_path, context_log, in_private_namespace};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags, fstatvfs, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The option of a mount that is not synced.
const VOLATILE: &str = "volatile";

/// A root filesystem to make.
#[derive(Debug)]
pub struct OverlayPlan<'a> {
    /// The directory that all layers lie below.
    pub layers_dir: &'a Path,
    /// The layers below `layers_dir`, the lowest first. At least one.
    pub layers: &'a [PathBuf],
    /// Upper directory, owned by the container's root; `None` makes a read-only mount.
    pub upper: Option<Upper<'a>>,
    /// The Pod's user namespace; `None` leaves the IDs as they are.
    pub id_mapping: Option<BorrowedFd<'a>>,
}

/// Where changes go. They last as long as the mount is wanted and not longer: the mount is `volatile` (Linux 5.10), so that
/// its end does not write the whole of the upper file system to the disk (a container's last process would wait for that
/// in its exit), nor does an fsync in it.
#[derive(Clone, Copy, Debug)]
pub struct Upper<'a> {
    /// Upper directory.
    pub upper: &'a Path,
    /// Work directory on the same filesystem, empty: the kernel refuses one that a volatile mount has had.
    pub work: &'a Path,
}

/// A root filesystem that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The layers' filesystem has no ID mapping.
    #[error(
        "the image layers in {layers_dir} lie on {filesystem}, where this kernel can't map IDs ({source}); \
         put the data directory on ext4, xfs or btrfs"
    )]
    NotIdMappable {
        /// The layers' directory.
        layers_dir: PathBuf,
        /// Its filesystem.
        filesystem: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel mounted it read-only, though an upper directory was given (it says why only in its log).
    #[error(
        "the kernel made the root filesystem read-only; see `dmesg` for the reason (is {upper} usable as upper directory?)"
    )]
    ReadOnly {
        /// The upper directory.
        upper: PathBuf,
    },
    /// No layers, or one outside the common directory.
    #[error("image layers {0:?} are not usable")]
    Layers(Vec<PathBuf>),
    /// Any other step.
    #[error("cannot make the root filesystem from {layers_dir}: {step}: {source}")]
    Step {
        /// The layers' directory.
        layers_dir: PathBuf,
        /// What was tried.
        step: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl From<io::Error> for OverlayError {
    fn from(source: io::Error) -> Self {
        OverlayError::Step {
            layers_dir: PathBuf::new(),
            step: "a private mount namespace".to_owned(),
            source,
        }
    }
}

/// A detached overlay mount.
///
/// # Errors
/// See [`OverlayError`].
pub fn overlay(plan: &OverlayPlan<'_>) -> Result<OwnedFd, OverlayError> {
    let names = layer_names(plan)?;
    if let (None, [single]) = (plan.upper, names.as_slice()) {
        // Overlay wants two lower layers when there is no upper one; a single one is mounted as it is.
        return clone_layers(&plan.layers_dir.join(single), plan.id_mapping);
    }
    let layers = clone_layers(plan.layers_dir, plan.id_mapping)?;
    let mount = match by_descriptors(plan, &names, &layers) {
        // Kernels before 6.13 take no descriptors for layers, those before 6.5 no `lowerdir+` at all.
        Err(Errno::OPNOTSUPP | Errno::INVAL) => by_strings(plan, &names, &layers)?,
        Err(errno) => return Err(step(plan, "overlay by descriptors", errno.into())),
        Ok(mount) => mount,
    };
    if let Some(Upper { upper, .. }) = plan.upper {
        let flags = fstatvfs(&mount).map_err(|e| step(plan, "fstatvfs", e.into()))?.f_flag;
        if flags.contains(StatVfsMountFlags::RDONLY) {
            return Err(OverlayError::ReadOnly { upper: upper.to_owned() });
        }
    }
    Ok(mount)
}

/// A detached clone of the layers' directory, read-only and ID-mapped: one for a whole mapping, whatever the number of layers.
///
/// # Errors
/// See [`OverlayError`].
pub fn clone_layers(layers_dir: &Path, mapping: Option<BorrowedFd<'_>>) -> Result<OwnedFd, OverlayError> {
    let failed = |step: &str, source| OverlayError::Step {
        layers_dir: layers_dir.to_owned(),
        step: step.to_owned(),
        source,
    };
    let clone = clone_path(layers_dir, false).map_err(|e| failed("open_tree", e))?;
    let base =
        Change { set: Attributes::READ_ONLY, propagation: Some(Propagation::Private), ..Change::default() };
    change(&clone, &base, false).map_err(|e| failed("mount_setattr", e))?;
    if mapping.is_some() {
        let idmap = Change { id_mapping: mapping, ..Change::default() };
        change(&clone, &idmap, false).map_err(|source| OverlayError::NotIdMappable {
            layers_dir: layers_dir.to_owned(),
            filesystem: super::filesystem_type(&clone).unwrap_or_default(),
            source,
        })?;
    }
    Ok(clone)
}

/// The layers' paths below the common directory, the topmost first: the order that overlay wants.
fn layer_names<'a>(plan: &OverlayPlan<'a>) -> Result<Vec<&'a Path>, OverlayError> {
    let names: Option<Vec<&Path>> = plan
        .layers
        .iter()
        .rev()
        .map(|layer| {
            if layer.is_absolute() { layer.strip_prefix(plan.layers_dir).ok() } else { Some(layer.as_path()) }
        })
        .collect();
    names.filter(|names| !names.is_empty()).ok_or_else(|| OverlayError::Layers(plan.layers.to_vec()))
}

fn step(plan: &OverlayPlan<'_>, step: &str, source: io::Error) -> OverlayError {
    OverlayError::Step { layers_dir: plan.layers_dir.to_owned(), step: step.to_owned(), source }
}

fn open_directory(parent: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    openat(parent, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Layers as descriptors (Linux 6.13): nothing is attached anywhere.
fn by_descriptors(plan: &OverlayPlan<'_>, names: &[&Path], layers: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for name in names {
        fsconfig_set_fd(&context, "lowerdir+", open_directory(layers, name)?)?;
    }
    if let Some(Upper { upper, work }) = plan.upper {
        fsconfig_set_fd(&context, "upperdir", open_directory(rustix::fs::CWD, upper)?)?;
        fsconfig_set_fd(&context, "workdir", open_directory(rustix::fs::CWD, work)?)?;
        fsconfig_set_flag(&context, VOLATILE)?;
    }
    fsconfig_set_string(&context, "source", "overlay")?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, rustix::mount::MountAttrFlags::empty())
        .inspect_err(|_| drop(context_log(&context)))
}

/// Older kernels: the clone is attached over the layers' directory in a mount namespace that ends with this call, and
/// the layers are named relative to it (the kernel takes one page of options).
fn by_strings(plan: &OverlayPlan<'_>, names: &[&Path], layers: &OwnedFd) -> Result<OwnedFd, OverlayError> {
    let options = option_string(plan, names).ok_or_else(|| OverlayError::Layers(plan.layers.to_vec()))?;
    in_private_namespace(|| {
        let failed = |what: &'static str| move |source: Errno| step(plan, what, source.into());
        let target = open_directory(rustix::fs::CWD, plan.layers_dir).map_err(failed("open layers"))?;
        super::attach(layers, &target).map_err(|e| step(plan, "attach layers", e))?;
        rustix::process::chdir(plan.layers_dir).map_err(failed("chdir"))?;
        // The overlay itself is attached over the clone just long enough to take a detached copy of it.
        rustix::mount::mount(c"overlay", ".", c"overlay", MountFlags::empty(), Some(options.as_c_str()))
            .map_err(failed("mount overlay"))?;
        clone_path(plan.layers_dir, false).map_err(|e| step(plan, "open_tree overlay", e))
    })
}

fn option_string(plan: &OverlayPlan<'_>, names: &[&Path]) -> Option<CString> {
    let mut options: Vec<u8> = b"lowerdir=".to_vec();
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            options.push(b':');
        }
        options.extend(escape(name));
    }
    if let Some(Upper { upper, work }) = plan.upper {
        options.extend(b",upperdir=");
        options.extend(escape(upper));
        options.extend(b",workdir=");
        options.extend(escape(work));
        options.push(b',');
        options.extend(VOLATILE.bytes());
    }
    CString::new(options).ok().filter(|options| options.as_bytes().len() < 4096)
}

/// Overlay separates by colons and commas.
fn escape(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in OsString::from(path).into_vec() {
        if matches!(byte, b':' | b',' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(layers: &[PathBuf]) -> OverlayPlan<'_> {
        let upper = Some(Upper { upper: Path::new("/u:1"), work: Path::new("/w") });
        OverlayPlan { layers_dir: Path::new("/layers"), layers, upper, id_mapping: None }
    }

    #[test]
    fn the_topmost_layer_comes_first_and_separators_are_escaped() {
        let layers = [PathBuf::from("/layers/base"), PathBuf::from("/layers/to,p")];
        let plan = plan(&layers);
        let options = option_string(&plan, &layer_names(&plan).unwrap()).unwrap();
        assert_eq!(options.to_str().unwrap(), r"lowerdir=to\,p:base,upperdir=/u\:1,workdir=/w,volatile");
    }

    type Made = Result<OwnedFd, OverlayError>;

    #[test]
    fn kernels_without_layer_descriptors_get_the_same_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["layers/low", "layers/high", "upper1", "work1", "upper2", "work2"] {
            std::fs::create_dir_all(path(name)).unwrap();
        }
        for (file, text) in [("low/a", "low"), ("low/b", "low"), ("high/b", "high")] {
            std::fs::write(path("layers").join(file), text).unwrap();
        }
        let layers_dir = path("layers");
        let layers = [layers_dir.join("low"), layers_dir.join("high")];
        let block = [crate::idmap::IdMapping { container_id: 0, host_id: 131_072, size: 65_536 }];
        let users = crate::idmap::namespace_with(&block, &block).expect("needs root");
        let id_mapping = Some(users.as_fd());
        let older = |plan: &OverlayPlan<'_>| {
            let clone = clone_layers(plan.layers_dir, plan.id_mapping).unwrap();
            by_strings(plan, &layer_names(plan).unwrap(), &clone)
        };
        let ways: [&dyn Fn(&OverlayPlan<'_>) -> Made; 2] = [&older, &overlay];
        for (number, make) in (1..).zip(ways) {
            let (upper, work) = (path(&format!("upper{number}")), path(&format!("work{number}")));
            let upper = Some(Upper { upper: &upper, work: &work });
            let mount = make(&OverlayPlan { layers_dir: &layers_dir, layers: &layers, upper, id_mapping });
            assert!(work.join("work/incompat/volatile").exists(), "it is not synced");
            let mount = mount.unwrap();
            let read = |name| {
                let file = openat(&mount, name, OFlags::RDONLY, Mode::empty()).unwrap();
                assert_eq!(rustix::fs::fstat(&file).unwrap().st_uid, 131_072);
                io::read_to_string(std::fs::File::from(file)).unwrap()
            };
            assert_eq!([read("a"), read("b")], ["low", "high"]);
        }
        let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!table.contains(dir.path().to_str().unwrap()), "nothing is attached on the node");
    }

    /// There is no slow copy to switch on: a layer is never copied, so the other remedy is named.
    #[test]
    fn g22_layers_where_nothing_can_be_mapped_are_refused_with_filesystem_and_remedy() {
        let block = [crate::idmap::IdMapping { container_id: 0, host_id: 131_072, size: 65_536 }];
        let users = crate::idmap::namespace_with(&block, &block).expect("needs root");
        let error = clone_layers(Path::new("/proc"), Some(users.as_fd())).unwrap_err();
        assert!(matches!(&error, OverlayError::NotIdMappable { filesystem, .. } if filesystem == "proc"));
        assert!(error.to_string().contains("put the data directory on ext4, xfs or btrfs"), "{error}");
    }

    #[test]
    fn a_layer_outside_the_common_directory_is_refused() {
        let layers = [PathBuf::from("/elsewhere/base")];
        assert!(matches!(overlay(&plan(&layers)), Err(OverlayError::Layers(_))));
    }
}
