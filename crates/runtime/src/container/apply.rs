//! Opens what a container's plan lists: the root filesystem, binds of the node's files, the log, the seccomp
//! program. Everything becomes a descriptor on the node's side; no path is looked up in the Pod's namespaces.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use shim::client::Descriptors;
use sys::mount::{Attributes, BindPlan, OverlayPlan, Upper};

use super::image_mount;
use super::plan::{Access, Bind, Propagation, Seccomp, Source};
use crate::core::{Core, make_dir, remove_tree};
use crate::error::{Error, Result};
use crate::record::ContainerRecord;
use crate::state::Sandbox;

/// Directories of a container.
pub(crate) const UPPER: &str = "upper";
pub(crate) const WORK: &str = "work";
pub(crate) const VOLUMES: &str = "volumes";

/// Makes the root filesystem: the image's layers through one ID-mapped clone, below the container's own directory.
pub(crate) fn rootfs(core: &Core, sandbox: &Sandbox, record: &ContainerRecord) -> Result<OwnedFd> {
    let userns = userns(sandbox)?;
    let directory = core.container_dir(&record.id);
    let layers_dir = core.config.images.layers_dir();
    let plan = OverlayPlan {
        layers_dir: &layers_dir,
        layers: &record.image.layers,
        upper: Some(Upper { upper: &directory.join(UPPER), work: &directory.join(WORK) }),
        id_mapping: userns.as_ref().map(|userns| userns.as_fd()),
    };
    let made = sys::mount::overlay(&plan);
    made.map_err(|error| {
        Error::failed(format!("make the root filesystem of image {}", record.image.name), error)
    })
}

/// Makes the root filesystem of a container that had one, which nobody holds any more: what the kernel keeps of it keeps a
/// second one from being made.
pub(crate) fn rootfs_again(core: &Core, sandbox: &Sandbox, record: &ContainerRecord) -> Result<OwnedFd> {
    let work = core.container_dir(&record.id).join(WORK);
    remove_tree(&work)?;
    make_dir(&work)?;
    rootfs(core, sandbox, record)
}

/// The Pod's user namespace, where it has one.
fn userns(sandbox: &Sandbox) -> Result<Option<OwnedFd>> {
    if sandbox.record().ids.is_none() {
        return Ok(None);
    }
    let userns = sandbox.live_shim()?.userns();
    userns.map_err(|error| Error::failed("reach the sandbox's user namespace", error))
}

/// Opens every source, in order.
pub(crate) fn open(
    core: &Core,
    sandbox: &Sandbox,
    sources: &[Source],
    mut rootfs: Option<OwnedFd>,
    log: &Path,
) -> Result<Descriptors> {
    let needs_mapping = sources.iter().any(|source| match source {
        Source::Bind(bind) => bind.is_id_mapped,
        Source::Image(image) => image.is_id_mapped,
        _ => false,
    });
    let userns = if needs_mapping { userns(sandbox)? } else { None };
    let mut descriptors = Descriptors::new();
    for source in sources {
        let fd = match source {
            Source::Rootfs => {
                rootfs.take().ok_or_else(|| Error::WrongState("the root filesystem is in use".to_owned()))?
            }
            Source::Bind(bind) => open_bind(bind, userns.as_ref())?,
            Source::Image(image) => image_mount::open(core, image, userns.as_ref())?,
            Source::Log => open_log(log)?,
            Source::Seccomp(profile) => open_seccomp(core, profile)?,
        };
        descriptors.push(fd);
    }
    Ok(descriptors)
}

fn open_bind(bind: &Bind, userns: Option<&OwnedFd>) -> Result<OwnedFd> {
    let plan = BindPlan {
        source: &bind.source,
        recursive: true,
        attributes: Attributes::NONE
            .and_if(bind.access != Access::ReadWrite, Attributes::READ_ONLY)
            .and_if(bind.access == Access::Inert, Attributes::INERT),
        recursive_attributes: matches!(bind.access, Access::RecursiveReadOnly | Access::Inert),
        propagation: match bind.propagation {
            Propagation::Private => sys::mount::Propagation::Private,
            Propagation::FromHost => sys::mount::Propagation::Slave,
            Propagation::Bidirectional => sys::mount::Propagation::Shared,
        },
        id_mapping: userns.filter(|_| bind.is_id_mapped).map(|userns| userns.as_fd()),
    };
    sys::mount::bind(&plan).map_err(|error| {
        let kernel = rustix::system::uname();
        let release = kernel.release().to_string_lossy();
        Error::failed(format!("mount {} (kernel {release})", bind.destination), error)
    })
}

/// Opens a log for appending (0640, as the field has it).
pub(crate) fn open_log(path: &Path) -> Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let open = || {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::OpenOptions::new().create(true).append(true).mode(0o640).open(path)
    };
    open()
        .map(OwnedFd::from)
        .map_err(|error| Error::failed(format!("open the log {}", path.display()), error))
}

/// The compiled program, as a memfd.
pub(crate) fn open_seccomp(core: &Core, profile: &Seccomp) -> Result<OwnedFd> {
    crate::seccomp::program(core, profile)
}
