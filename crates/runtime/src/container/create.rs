//! `CreateContainer`: check, record, root filesystem, user, image volumes, record again. Nothing runs yet.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use cri::v1::{ContainerEventType, CreateContainerRequest, ImageSpec};
use image::{ImageRecord, Reference};

use super::{apply, image_mount, plan, volume};
use crate::core::{Core, blocking, make_dir, now, remove_tree};
use crate::crash::CrashPoint;
use crate::error::{Error, Result};
use crate::id;
use crate::process::user::{self, Accounts, User};
use crate::record::{self, ContainerPhase, ContainerRecord, ImageUse, SandboxRecord};
use crate::state::{Container, Sandbox, lock};

/// Makes a container and returns its ID.
pub(crate) async fn create(core: Arc<Core>, request: CreateContainerRequest) -> Result<String> {
    let mut config = request.config.ok_or_else(|| Error::missing("config"))?;
    if config.metadata.as_ref().is_none_or(|metadata| metadata.name.is_empty()) {
        return Err(Error::missing("config.metadata.name"));
    }
    let sandbox = core.table.sandbox(&request.pod_sandbox_id)?;
    sandbox.live_shim()?;
    let asked = config.image.clone().unwrap_or_default();
    let image = core
        .config
        .images
        .resolve(&asked.image)
        .ok_or_else(|| Error::NotFound { what: "image", id: asked.image.clone() })?;
    let node_owners = crate::cdi::apply(&mut config, &core.config.etc)?;
    let image_mounts = image_mount::resolve(&config, |name| core.config.images.resolve(name))?;
    let record = ContainerRecord {
        id: id::new(),
        sandbox: sandbox.id.clone(),
        config,
        image: image_use(&asked, &image),
        user: User::default(),
        volumes: Vec::new(),
        node_owners,
        image_mounts,
        seccomp_flags: 0,
        created_at: now(),
        phase: ContainerPhase::Creating,
    };
    plan::check(&record, &sandbox.record())?;
    let container = Arc::new(Container::new(core.container_dir(&record.id), record));
    container.pin(&core.config.images);
    if let Err(twin) = core.table.add_container(Arc::clone(&container)) {
        return existing(&twin, &container);
    }
    let _gate = container.gate.lock().await;
    let made = {
        let (core, container) = (Arc::clone(&core), Arc::clone(&container));
        blocking(move || make(&core, &sandbox, &container)).await
    };
    match made {
        Ok(()) => {
            core.announce(&container.id, &container.sandbox, ContainerEventType::ContainerCreatedEvent);
            Ok(container.id.clone())
        }
        Err(error) => {
            undo(&core, &container).await;
            Err(error)
        }
    }
}

fn image_use(asked: &ImageSpec, image: &ImageRecord) -> ImageUse {
    ImageUse {
        id: image.id.clone(),
        name: image_name(asked, image),
        reference: image.repo_digests.first().map_or_else(|| image.id.clone(), Clone::clone),
        config: image.config.clone(),
        layers: image.layers.clone(),
    }
}

/// What people call the image, in full: the name that they wrote where it is one of the image's, for a kubelet asks for
/// IDs; else its first name.
fn image_name(asked: &ImageSpec, image: &ImageRecord) -> String {
    let names = || image.repo_tags.iter().chain(&image.repo_digests);
    let written = [&asked.image, &asked.user_specified_image].into_iter();
    let mut full = written.filter_map(|name| Some(name.parse::<Reference>().ok()?.to_string()));
    let known = full.find(|full| names().any(|name| name == full));
    known.or_else(|| names().next().cloned()).unwrap_or_else(|| asked.image.clone())
}

/// The same request twice is answered with the same container; another one under the same name is refused.
fn existing(twin: &Container, asked: &Container) -> Result<String> {
    let (has, wants) = (twin.record(), asked.record());
    if has.phase == ContainerPhase::Created && has.config == wants.config {
        return Ok(has.id.clone());
    }
    let metadata = wants.config.metadata.clone().unwrap_or_default();
    Err(Error::AlreadyExists(format!(
        "the container {} (attempt {}) of the sandbox {} exists as {}; remove it or raise the attempt",
        metadata.name, metadata.attempt, has.sandbox, has.id
    )))
}

fn make(core: &Core, sandbox: &Sandbox, container: &Container) -> Result<()> {
    // A removal of the sandbox that began meanwhile either sees this container or is seen here.
    sandbox.live_shim()?;
    let directory = container.directory();
    make_dir(directory)?;
    let record = container.record();
    record::save(directory, &*record)?;
    core.config.crash.reached(CrashPoint::ContainerRecorded)?;
    let of_sandbox = sandbox.record();
    make_writable_layer(directory, &of_sandbox)?;
    let rootfs = tracing::debug_span!(target: "path", "runtime: create: overlay")
        .in_scope(|| apply::rootfs(core, sandbox, &record))?;
    let user = tracing::debug_span!(target: "path", "runtime: create: user")
        .in_scope(|| resolve_user(&record, &of_sandbox, &rootfs))?;
    let volumes = tracing::debug_span!(target: "path", "runtime: create: image volumes")
        .in_scope(|| volume::seed(core, &record))?;
    image_mount::check_parts(core, &record)?;
    let seccomp_flags = crate::seccomp::compile(directory, &record)?;
    core.config.crash.reached(CrashPoint::RootfsMade)?;
    *lock(&container.rootfs) = Some(rootfs);
    container.update(|record| {
        record.user = user;
        record.volumes = volumes;
        record.seccomp_flags = seccomp_flags;
        record.phase = ContainerPhase::Created;
    })
}

/// The overlay's own directories. The upper one becomes the root directory, so it has the owner and mode of one.
fn make_writable_layer(directory: &Path, sandbox: &SandboxRecord) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let upper = directory.join(apply::UPPER);
    make_dir(&directory.join(apply::WORK))?;
    make_dir(&upper)?;
    let own = || {
        std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(0o755))?;
        if let Some(ids) = sandbox.ids {
            std::os::unix::fs::chown(&upper, Some(ids.uids.host), Some(ids.gids.host))?;
        }
        Ok::<_, std::io::Error>(())
    };
    own().map_err(|error| Error::failed(format!("prepare {}", upper.display()), error))
}

fn resolve_user(record: &ContainerRecord, sandbox: &SandboxRecord, rootfs: &OwnedFd) -> Result<User> {
    let accounts = Accounts::read(rootfs.as_fd())?;
    let user = user::resolve(&plan::security(record), &record.image.config.user, &accounts)?;
    user::check_mapped(&user, sandbox.ids)?;
    Ok(user)
}

/// Undoes a half-made container. Errors are logged; what can't be undone now is tried again at the next start.
pub(crate) async fn undo(core: &Arc<Core>, container: &Arc<Container>) {
    lock(&container.rootfs).take();
    let directory = container.directory().to_owned();
    if let Err(error) = blocking(move || remove_tree(&directory)).await {
        tracing::error!(container = container.id, %error, "cannot undo a half-made container; trying again at the next start");
    }
    core.table.remove_container(&container.id);
}
