//! From a container's record to the plan that its shim carries out, and the list of what to open for it. Pure:
//! opening is [`super::apply`]'s.

use std::path::PathBuf;

use cri::v1::security_profile::ProfileType;
use cri::v1::{LinuxContainerSecurityContext, Mount, MountPropagation, NamespaceMode};
use shim::protocol::{
    CapabilityPlan, CgroupFds, ContainerPlan, DevicePlan, FdIndex, MountPlan, MountSource, ProcessPlan,
    Stdin, default_mounts,
};

use super::{image_mount, profile};
use crate::error::{Error, Result};
use crate::mapping;
use crate::process::capability;
use crate::process::command::{self, ImageCommand};
use crate::record::{ContainerRecord, SandboxRecord};

/// What is opened for one descriptor of the plan; its place in the list is the descriptor's number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The overlay of the image's layers and the container's own directory.
    Rootfs,
    /// A file or directory of the node.
    Bind(Bind),
    /// An image, read-only.
    Image(Image),
    /// The log file.
    Log,
    /// The compiled seccomp program.
    Seccomp(Seccomp),
}

/// A file or directory of the node, mounted into the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) source: PathBuf,
    /// Where it goes, for messages.
    pub(crate) destination: String,
    /// Shown through the Pod's map.
    pub(crate) is_id_mapped: bool,
    pub(crate) access: Access,
    pub(crate) propagation: Propagation,
}

/// An image, mounted into the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// Where it goes.
    pub(crate) destination: String,
    pub(crate) layers: Vec<PathBuf>,
    /// What of it is mounted; empty is all.
    pub(crate) part: PathBuf,
    /// Shown through the Pod's map.
    pub(crate) is_id_mapped: bool,
}

/// What may be done through a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    /// Mounts below stay as they are.
    ReadOnly,
    /// Mounts below are read-only too.
    RecursiveReadOnly,
    /// The same, and nothing there is a program, a device or a set-uid file.
    Inert,
}

/// Whether mounts that appear later are seen on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Private,
    /// The node's appear in the container.
    FromHost,
    /// Both ways.
    Bidirectional,
}

/// A seccomp profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seccomp {
    /// Ours, for these capabilities (bit mask).
    Default { capabilities: u64 },
    /// One of the node's, compiled when the container was made.
    Localhost { container: String },
}

/// What the planner has to know besides the records.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// Directory with the sandbox's `hostname`, `hosts` and `resolv.conf`.
    pub(crate) sandbox_files: PathBuf,
    /// Directory with the container's image volumes.
    pub(crate) volumes: PathBuf,
    /// Device nodes beyond the usual six, as found on the node.
    pub(crate) devices: Vec<DevicePlan>,
}

/// A plan and the list of what to open for it, in the order of its descriptor numbers. The cgroup's descriptors
/// follow those of the list.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) plan: ContainerPlan,
    pub(crate) sources: Vec<Source>,
}

/// The container's security context, empty where the request has none; profiles in the form of old clients count
/// where there are none in the new one.
pub(crate) fn security(record: &ContainerRecord) -> LinuxContainerSecurityContext {
    let asked = record.config.linux.as_ref().and_then(|linux| linux.security_context.clone());
    let mut security = asked.unwrap_or_default();
    #[expect(deprecated, reason = "old clients send them")]
    let (seccomp, apparmor) = (&security.seccomp_profile_path, &security.apparmor_profile);
    let (seccomp, apparmor) = (profile::from_text(seccomp), profile::from_text(apparmor));
    security.seccomp = security.seccomp.or(seccomp);
    security.apparmor = security.apparmor.or(apparmor);
    security
}

/// Refuses what can't be honoured, before anything exists.
pub(crate) fn check(record: &ContainerRecord, sandbox: &SandboxRecord) -> Result<()> {
    let security = security(record);
    mapping::check_container(security.namespace_options.as_ref(), sandbox.ids)?;
    command(record)?;
    capabilities(&security)?;
    seccomp(record, &security)?;
    crate::seccomp::profile_path(&security)?;
    for mount in &record.config.mounts {
        check_mount(mount, sandbox)?;
    }
    if security.privileged && !crate::sandbox::plan::is_privileged(&sandbox.config) {
        return Err(Error::Invalid(
            "a privileged container needs a privileged sandbox; set `privileged` in the sandbox's security context"
                .to_owned(),
        ));
    }
    profile::apparmor(&security)?;
    profile::selinux(&security, &record.config.mounts).map(drop)
}

/// Works out the plan.
pub(crate) fn plan_container(
    record: &ContainerRecord,
    sandbox: &SandboxRecord,
    surroundings: &Surroundings,
) -> Result<Planned> {
    let security = security(record);
    let mut sources = Sources(Vec::new());
    let rootfs = sources.add(Source::Rootfs);
    let mounts = mounts(record, sandbox, surroundings, &mut sources)?;
    let log = (!log_path(record, sandbox).as_os_str().is_empty()).then(|| sources.add(Source::Log));
    let seccomp = seccomp(record, &security)?.map(|profile| sources.add(Source::Seccomp(profile)));
    let mut process = process(record, sandbox, &security)?;
    process.seccomp = seccomp;
    let plan = ContainerPlan {
        id: record.id.clone(),
        rootfs,
        read_only_rootfs: security.readonly_rootfs,
        mounts,
        devices: surroundings.devices.clone(),
        masked_paths: if security.privileged { Vec::new() } else { security.masked_paths.clone() },
        read_only_paths: if security.privileged { Vec::new() } else { security.readonly_paths.clone() },
        cgroup: CgroupFds::default(),
        process,
        stdin: match (record.config.stdin, record.config.stdin_once) {
            (false, _) => Stdin::Null,
            (true, false) => Stdin::Open,
            (true, true) => Stdin::Once,
        },
        log,
        target_container: target(&security),
        oci: None,
    };
    Ok(Planned { plan, sources: sources.0 })
}

/// The log file: the sandbox's directory and the container's path in it; empty when either is missing.
pub(crate) fn log_path(record: &ContainerRecord, sandbox: &SandboxRecord) -> PathBuf {
    if sandbox.config.log_directory.is_empty() || record.config.log_path.is_empty() {
        return PathBuf::new();
    }
    PathBuf::from(&sandbox.config.log_directory).join(&record.config.log_path)
}

/// The process of an exec: the container's, with another command line and terminal.
pub(crate) fn plan_exec(
    record: &ContainerRecord,
    sandbox: &SandboxRecord,
    command: &[String],
    terminal: bool,
) -> Result<(ProcessPlan, Vec<Source>)> {
    let security = security(record);
    let mut sources = Sources(Vec::new());
    let seccomp = seccomp(record, &security)?.map(|profile| sources.add(Source::Seccomp(profile)));
    let mut plan = process(record, sandbox, &security)?;
    command.clone_into(&mut plan.args);
    plan.terminal = terminal;
    plan.seccomp = seccomp;
    if terminal && !plan.env.iter().any(|line| line.starts_with("TERM=")) {
        plan.env.push("TERM=xterm".to_owned());
    }
    Ok((plan, sources.0))
}

/// The list of what to open, as it grows.
#[derive(Debug, Default)]
pub(crate) struct Sources(pub(crate) Vec<Source>);

impl Sources {
    pub(crate) fn add(&mut self, source: Source) -> FdIndex {
        self.0.push(source);
        FdIndex(u16::try_from(self.0.len() - 1).unwrap_or(u16::MAX))
    }
}

fn target(security: &LinuxContainerSecurityContext) -> Option<String> {
    let options = security.namespace_options.as_ref()?;
    (options.pid == i32::from(NamespaceMode::Target)).then(|| options.target_id.clone())
}

fn command(record: &ContainerRecord) -> Result<Vec<String>> {
    let image = ImageCommand {
        name: record.image.name.clone(),
        entrypoint: record.image.config.entrypoint.clone(),
        cmd: record.image.config.cmd.clone(),
    };
    Ok(command::merge_command(&record.config.command, &record.config.args, &image)?)
}

pub(crate) fn capabilities(security: &LinuxContainerSecurityContext) -> Result<CapabilityPlan> {
    let asked = security.capabilities.clone().unwrap_or_default();
    let sets = capability::plan(
        &asked.add_capabilities,
        &asked.drop_capabilities,
        &asked.add_ambient_capabilities,
        security.privileged,
    )?;
    Ok(CapabilityPlan {
        bounding: sets.granted,
        permitted: sets.granted,
        inheritable: sets.ambient,
        ambient: sets.ambient,
    })
}

fn process(
    record: &ContainerRecord,
    sandbox: &SandboxRecord,
    security: &LinuxContainerSecurityContext,
) -> Result<ProcessPlan> {
    let config = &record.config;
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let oom_score_adj = resources.and_then(|resources| i32::try_from(resources.oom_score_adj).ok());
    Ok(ProcessPlan {
        args: command(record)?,
        env: environment(record, sandbox)?,
        cwd: command::working_directory(&config.working_dir, Some(&record.image.config.working_dir)),
        uid: record.user.uid,
        gid: record.user.gid,
        groups: record.user.groups.clone(),
        umask: None,
        capabilities: capabilities(security)?,
        no_new_privileges: security.no_new_privs,
        seccomp: None,
        seccomp_flags: record.seccomp_flags,
        rlimits: Vec::new(),
        oom_score_adj,
        terminal: config.tty,
        terminal_size: None,
        apparmor_profile: profile::apparmor(security)?,
        selinux_label: profile::selinux(security, &config.mounts)?,
    })
}

fn environment(record: &ContainerRecord, sandbox: &SandboxRecord) -> Result<Vec<String>> {
    let request: Vec<(String, Vec<u8>)> =
        record.config.envs.iter().map(|pair| (pair.key.clone(), pair.value.clone())).collect();
    let mut defaults = Vec::new();
    if !sandbox.config.hostname.is_empty() {
        defaults.push(("HOSTNAME", sandbox.config.hostname.as_str()));
    }
    if record.config.tty {
        defaults.push(("TERM", "xterm"));
    }
    defaults.push(("HOME", record.user.home.as_str()));
    let lines = command::merge_environment(&record.image.config.env, &request, &defaults);
    let text = |line: Vec<u8>| {
        String::from_utf8(line).map_err(|error| {
            let line = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let name = line.split('=').next().unwrap_or_default().to_owned();
            Error::Invalid(format!(
                "the environment variable {name} is not UTF-8, which this runtime can't pass on"
            ))
        })
    };
    lines.into_iter().map(text).collect()
}

fn seccomp(record: &ContainerRecord, security: &LinuxContainerSecurityContext) -> Result<Option<Seccomp>> {
    let Some(profile) = security.seccomp.as_ref().filter(|_| !security.privileged) else { return Ok(None) };
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::Unconfined) => Ok(None),
        Ok(ProfileType::RuntimeDefault) => {
            Ok(Some(Seccomp::Default { capabilities: capabilities(security)?.bounding }))
        }
        Ok(ProfileType::Localhost) => Ok(Some(Seccomp::Localhost { container: record.id.clone() })),
        Err(_) => {
            Err(Error::Invalid(format!("the seccomp profile type {} is unknown", profile.profile_type)))
        }
    }
}

fn check_mount(mount: &Mount, sandbox: &SandboxRecord) -> Result<()> {
    let path = &mount.container_path;
    if !path.starts_with('/') {
        return Err(Error::Invalid(format!("the mount's container path {path:?} is not absolute")));
    }
    if mount.image.is_some() {
        image_mount::check(mount)?;
    } else if !mount.image_sub_path.is_empty() {
        return Err(Error::Invalid(format!("the mount at {path} has a part of an image but no image")));
    }
    mapping::check_mount(mount, sandbox.ids)?;
    let propagation = propagation(mount)?;
    if propagation == Propagation::Bidirectional && sandbox.ids.is_some() {
        return Err(Error::Invalid(format!(
            "the mount at {path} asks for Bidirectional propagation, which a Pod with its own user namespace can't \
             have; use HostToContainer or set `hostUsers: true`"
        )));
    }
    if mount.recursive_read_only && (!mount.readonly || propagation != Propagation::Private) {
        return Err(Error::Invalid(format!(
            "the mount at {path} asks for recursive read-only; it must also be `readonly` and without propagation"
        )));
    }
    Ok(())
}

fn propagation(mount: &Mount) -> Result<Propagation> {
    match MountPropagation::try_from(mount.propagation) {
        Ok(MountPropagation::PropagationPrivate) => Ok(Propagation::Private),
        Ok(MountPropagation::PropagationHostToContainer) => Ok(Propagation::FromHost),
        Ok(MountPropagation::PropagationBidirectional) => Ok(Propagation::Bidirectional),
        Err(_) => Err(Error::Invalid(format!(
            "the mount at {} has the unknown propagation {}",
            mount.container_path, mount.propagation
        ))),
    }
}

/// All mounts: kernel filesystems, the image's volumes, the runtime's files, then what the request says, in an
/// order in which no mount hides a later one that lies below it.
fn mounts(
    record: &ContainerRecord,
    sandbox: &SandboxRecord,
    surroundings: &Surroundings,
    sources: &mut Sources,
) -> Result<Vec<MountPlan>> {
    let is_privileged = security(record).privileged;
    let asked = &record.config.mounts;
    let is_requested = |path: &str| asked.iter().any(|mount| same_path(&mount.container_path, path));
    let mut own = runtime_files(record, sandbox, surroundings);
    own.extend(image_volumes(record, sandbox, surroundings));
    own.retain(|bind| !is_requested(&bind.destination));
    let mut kernel = default_mounts();
    kernel.retain(|mount| !is_requested(&mount.destination));
    for mount in &mut kernel {
        mount.read_only &= !is_privileged;
        if let Some(bind) = node_sysfs(mount, sandbox) {
            mount.source = MountSource::Fd(sources.add(Source::Bind(bind)));
        }
    }
    let mut placed = |destination: &str, read_only, source| MountPlan {
        destination: destination.to_owned(),
        read_only,
        source: MountSource::Fd(sources.add(source)),
    };
    let mut all = kernel;
    for bind in own {
        all.push(placed(&bind.destination.clone(), bind.access != Access::ReadWrite, Source::Bind(bind)));
    }
    for mount in asked {
        let source = requested(mount, record, sandbox)?;
        all.push(placed(&mount.container_path, mount.readonly, source));
    }
    all.sort_by_key(|mount| depth(&mount.destination));
    Ok(all)
}

/// A Pod with its own user namespace on the node's network may not mount sysfs (the kernel says EPERM), so the
/// node's is bound, read-only throughout.
fn node_sysfs(mount: &MountPlan, sandbox: &SandboxRecord) -> Option<Bind> {
    let options = crate::sandbox::plan::options(&sandbox.config);
    let network = options.map_or(0, |options| options.network);
    let is_bound = mount.source == MountSource::Sysfs && sandbox.ids.is_some();
    (is_bound && network == i32::from(NamespaceMode::Node)).then(|| Bind {
        source: PathBuf::from("/sys"),
        destination: mount.destination.clone(),
        is_id_mapped: false,
        access: Access::Inert,
        propagation: Propagation::Private,
    })
}

fn requested(mount: &Mount, record: &ContainerRecord, sandbox: &SandboxRecord) -> Result<Source> {
    if mount.image.is_some() {
        let is_id_mapped = mapping::check_mount(mount, sandbox.ids)?;
        return image_mount::plan(mount, record, is_id_mapped).map(Source::Image);
    }
    Ok(Source::Bind(Bind {
        source: PathBuf::from(&mount.host_path),
        destination: mount.container_path.clone(),
        is_id_mapped: mapping::check_mount(mount, sandbox.ids)?,
        access: match (mount.readonly, mount.recursive_read_only) {
            (false, _) => Access::ReadWrite,
            (true, false) => Access::ReadOnly,
            (true, true) => Access::RecursiveReadOnly,
        },
        propagation: propagation(mount)?,
    }))
}

/// The sandbox's own files; they carry the Pod's host IDs, so they are bound as they are.
fn runtime_files(
    record: &ContainerRecord,
    sandbox: &SandboxRecord,
    surroundings: &Surroundings,
) -> Vec<Bind> {
    let access = if security(record).readonly_rootfs { Access::ReadOnly } else { Access::ReadWrite };
    let bind = |name: &str| Bind {
        source: surroundings.sandbox_files.join(name),
        destination: format!("/etc/{name}"),
        is_id_mapped: false,
        access,
        propagation: Propagation::Private,
    };
    let mut files = vec![bind("hostname"), bind("resolv.conf")];
    if !sandbox.addresses.is_empty() {
        files.push(bind("hosts"));
    }
    files
}

fn image_volumes(
    record: &ContainerRecord,
    sandbox: &SandboxRecord,
    surroundings: &Surroundings,
) -> Vec<Bind> {
    let bind = |volume: &crate::record::ImageVolume| Bind {
        source: surroundings.volumes.join(&volume.directory),
        destination: volume.path.clone(),
        is_id_mapped: sandbox.ids.is_some(),
        access: Access::ReadWrite,
        propagation: Propagation::Private,
    };
    record.volumes.iter().map(bind).collect()
}

fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".")
}

fn same_path(a: &str, b: &str) -> bool {
    components(a).eq(components(b))
}

fn depth(path: &str) -> usize {
    components(path).count()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
