//! Runtime handlers beside the built-in one: OCI runtimes by path, chosen by a `RuntimeClass`. Their containers have the
//! same sandbox, plan, cgroup, streams and shim as any other; only the launch and the signals are the runtime's own
//! (`create`, `start`, `exec`, `kill`, `delete`). What such a runtime lacks is not worked around: it is not advertised.

mod bundle;
mod command;
mod config;
mod features;
mod spec;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::StatVfsMountFlags;
use shim::client::Descriptors;
use shim::protocol::{ContainerPlan, FdIndex, OciPlan, ProcessPlan};

use crate::container::plan::{Seccomp, Source};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::record::{ContainerRecord, SandboxRecord};
pub use config::{HandlerConfig, HandlerError, describe, handlers};
pub(crate) use features::HandlerFeatures;

/// A handler, ready.
#[derive(Clone, Debug)]
pub(crate) struct Handler {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    /// Its state, a directory for each container.
    state: PathBuf,
    /// Why a Pod's root could not reach the stage.
    no_stage: Option<String>,
    features: Arc<OnceLock<HandlerFeatures>>,
}

/// All handlers but the built-in one.
#[derive(Debug, Default)]
pub(crate) struct Handlers {
    all: Vec<Handler>,
    stage: PathBuf,
}

impl Handlers {
    /// Prepares each. `run_dir` gets their state; `stage` is made, for all to enter.
    pub(crate) fn open(configured: &[HandlerConfig], run_dir: &Path, stage: &Path) -> Result<Self> {
        if configured.is_empty() {
            return Ok(Self::default());
        }
        let no_stage = make_stage(stage)?;
        let open = |config: &HandlerConfig| {
            let own = run_dir.join("oci").join(&config.name);
            crate::core::make_dir(&own)?;
            Ok(Handler {
                name: config.name.clone(),
                program: config.program.clone(),
                state: own,
                no_stage: no_stage.clone(),
                features: Arc::default(),
            })
        };
        let all = configured.iter().map(open).collect::<Result<_>>()?;
        Ok(Self { all, stage: stage.to_owned() })
    }

    pub(crate) fn all(&self) -> &[Handler] {
        &self.all
    }

    /// The handler of that name; `None` is the built-in one.
    pub(crate) fn find(&self, name: &str) -> Result<Option<&Handler>> {
        if name.is_empty() {
            return Ok(None);
        }
        self.all.iter().find(|handler| handler.name == name).map(Some).ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> Error {
        let mut names = vec!["\"\" (the built-in one)".to_owned()];
        names.extend(
            self.all.iter().map(|handler| format!("{:?} ({})", handler.name, handler.program.display())),
        );
        Error::Invalid(format!(
            "the runtime handler {name:?} is not configured; this runtime has {}. Install it (runc and crun are found \
             by themselves at the next start), start the runtime with --runtime-handler {name}=PATH, or choose another \
             `handler` in the RuntimeClass",
            names.join(", ")
        ))
    }
}

/// Asks every handler what it can do, each in a thread of its own: a daemon that restarts serves meanwhile.
pub(crate) fn probe_all(core: &Core) {
    for handler in core.handlers.all() {
        let handler = handler.clone();
        core.tasks.spawn_blocking(move || {
            handler.features();
        });
    }
}

/// Waits until each handler has said what it can do.
pub(crate) async fn probed(core: &Arc<Core>) -> Result<()> {
    if core.handlers.all.iter().all(|handler| handler.features.get().is_some()) {
        return Ok(());
    }
    let core = Arc::clone(core);
    crate::core::blocking(move || {
        for handler in core.handlers.all() {
            handler.features();
        }
        Ok(())
    })
    .await
}

/// Makes the stage; answers why a Pod's root could not reach it.
fn make_stage(stage: &Path) -> Result<Option<String>> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let make = || {
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(stage)?;
        std::fs::set_permissions(stage, std::fs::Permissions::from_mode(0o711))
    };
    make().map_err(|error| Error::failed(format!("make the directory {}", stage.display()), error))?;
    if stage.as_os_str().len() > shim::stage::MAX_PATH {
        return Err(Error::Failed(format!(
            "the path {} is too long for OCI runtimes; use a shorter root",
            stage.display()
        )));
    }
    let is_closed =
        |directory: &&Path| std::fs::metadata(directory).is_ok_and(|it| it.permissions().mode() & 0o001 == 0);
    Ok(stage.ancestors().find(is_closed).map(|closed| {
        format!(
            "nobody but root may enter {0}, which lies above {1}; run `chmod o+x {0}`",
            closed.display(),
            stage.display()
        )
    }))
}

impl Handler {
    /// What it can do. Who asks first has the program asked; all wait for its answer, so that nobody hears of features
    /// that were not probed.
    pub(crate) fn features(&self) -> &HandlerFeatures {
        self.features.get_or_init(|| {
            let mut features = HandlerFeatures::probe(&self.program);
            if let Some(reason) = self.no_stage.as_ref().filter(|_| features.user_namespaces) {
                (features.user_namespaces, features.reason) = (false, reason.clone());
            }
            tracing::info!(handler = self.name, program = %self.program.display(), version = features.version,
                user_namespaces = features.user_namespaces, reason = features.reason, "a runtime handler");
            features
        })
    }

    /// The text of a container's `config.json`, handed over with the rest.
    pub(crate) fn hand_over(
        &self,
        core: &Core,
        launch: &Launch<'_>,
        plan: &ContainerPlan,
        descriptors: &mut Descriptors,
    ) -> Result<OciPlan> {
        let Launch { record, sandbox, .. } = launch;
        let wanted = crate::sandbox::plan::plan_sandbox(&sandbox.id, &sandbox.config, |_| false)?;
        let seccomp = launch.sources.iter().find_map(|source| match source {
            Source::Seccomp(profile) => Some(seccomp(core, profile)),
            _ => None,
        });
        let attributes: Vec<_> =
            (0..launch.sources.len()).map(|index| attributes(descriptors, index)).collect();
        let input = bundle::Input {
            plan,
            attributes: &attributes,
            sources: launch.sources,
            sandbox: &wanted.plan,
            devices: launch.devices,
            cgroup: &crate::container::cgroup_path(core, sandbox, &record.id),
            seccomp: seccomp.transpose()?,
            stage: &core.handlers.stage,
        };
        self.plan(core, &bundle::container(&input), descriptors)
    }

    /// The same for a further process.
    pub(crate) fn hand_over_exec(
        &self,
        core: &Core,
        sandbox: &SandboxRecord,
        process: &ProcessPlan,
        descriptors: &mut Descriptors,
    ) -> Result<OciPlan> {
        let process = bundle::process(process, sandbox.ids.is_some());
        self.plan(core, &process, descriptors)
    }

    fn plan(
        &self,
        core: &Core,
        config: &impl serde::Serialize,
        descriptors: &mut Descriptors,
    ) -> Result<OciPlan> {
        let failed =
            |error: std::io::Error| Error::failed("describe the container to its OCI runtime", error);
        let text = serde_json::to_vec(config).map_err(|error| failed(error.into()))?;
        let config = sys::process::sealed_data(c"config.json", &text).map_err(failed)?;
        let namespace = std::fs::File::open("/proc/thread-self/ns/mnt").map_err(failed)?;
        Ok(OciPlan {
            program: utf8(&self.program)?,
            state: utf8(&self.state)?,
            stage: utf8(&core.handlers.stage)?,
            mount_namespace: descriptors.push(OwnedFd::from(namespace)),
            config: descriptors.push(config),
            hidden: core.cgroups.beside_legacy().map(utf8).transpose()?,
        })
    }

    /// Sends a signal to a container's first process.
    pub(crate) fn kill(&self, container: &str, signal: i32) -> Result<()> {
        self.run(&["kill", container, &signal.to_string()])
    }

    /// Removes what the runtime keeps of a container, whatever state it is in. One that it does not know is success.
    pub(crate) fn delete(&self, container: &str) -> Result<()> {
        let place = self.state.join(container);
        if !place.exists() {
            return Ok(());
        }
        let deleted = self.run(&["delete", "--force", container]);
        if let Err(error) = &deleted {
            tracing::warn!(container, %error, "the OCI runtime did not delete a container; its state is removed");
        }
        // Processes and cgroups are ended and removed by themselves.
        crate::core::remove_tree(&place)
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        let mut all = vec![OsStr::new("--root"), self.state.as_os_str()];
        all.extend(args.iter().map(OsStr::new));
        command::run(&self.program, &all).map(drop).map_err(|error| Error::Failed(error.to_string()))
    }
}

/// What a launch through a handler needs to know besides the container's plan.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) record: &'a ContainerRecord,
    pub(crate) sandbox: &'a SandboxRecord,
    pub(crate) devices: &'a crate::container::device::Devices,
    pub(crate) sources: &'a [Source],
}

/// The attributes of what a descriptor is mounted from.
fn attributes(descriptors: &Descriptors, index: usize) -> StatVfsMountFlags {
    let descriptor = u16::try_from(index).ok().and_then(|index| descriptors.get(FdIndex(index)));
    let status = descriptor.and_then(|descriptor| rustix::fs::fstatvfs(descriptor).ok());
    status.map_or_else(StatVfsMountFlags::empty, |status| status.f_flag)
}

fn seccomp(core: &Core, profile: &Seccomp) -> Result<sys::seccomp::Document> {
    match profile {
        Seccomp::Default { capabilities } => Ok(sys::seccomp::default_document(*capabilities)),
        Seccomp::Localhost { container } => crate::seccomp::document(&core.container_dir(container)),
    }
}

fn utf8(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Error::Invalid(format!("the path {} is not UTF-8", path.display())))
}

/// Removes what the sandbox's handler keeps of a container. A handler that is no longer configured can't be asked: its
/// state is removed, and its processes end with the cgroup.
pub(crate) fn forget(core: &Core, handler: &str, container: &str) -> Result<()> {
    if handler.is_empty() {
        return Ok(());
    }
    match core.handlers.find(handler) {
        Ok(Some(handler)) => handler.delete(container),
        _ => crate::core::remove_tree(&core.config.run_dir.join("oci").join(handler).join(container)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_handler_is_refused_with_those_that_there_are_and_the_remedy() {
        let handler = Handler {
            name: "runc".into(),
            program: "/usr/sbin/runc".into(),
            state: "/run/x".into(),
            no_stage: None,
            features: Arc::default(),
        };
        let handlers = Handlers { all: vec![handler], stage: PathBuf::new() };
        assert!(handlers.find("").unwrap().is_none());
        assert_eq!(handlers.find("runc").unwrap().unwrap().name, "runc");
        let text = handlers.find("kata").unwrap_err().to_string();
        for word in ["\"kata\"", "\"runc\" (/usr/sbin/runc)", "built-in", "--runtime-handler kata=PATH"] {
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn whoever_asks_what_a_handler_can_do_waits_for_the_programs_answer() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        // It says nothing until somebody writes to it, and notes each question.
        rustix::fs::mkfifoat(rustix::fs::CWD, at("gate"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        let script = "#!/bin/sh\ncd ${0%/*}\necho $1 >> asked\n[ $1 = --version ] && cat gate\nexit 0\n";
        std::fs::write(at("slow"), script).unwrap();
        std::fs::set_permissions(at("slow"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = HandlerConfig { name: "slow".into(), program: at("slow") };
        let handlers = Handlers::open(&[config], directory.path(), &at("stage")).unwrap();
        let asks: Vec<_> = (0..3)
            .map(|_| {
                let handler = handlers.all[0].clone();
                std::thread::spawn(move || handler.features().version.clone())
            })
            .collect();
        std::fs::write(at("gate"), "runc version 9\n").unwrap();
        for ask in asks {
            assert_eq!(ask.join().unwrap(), "runc version 9");
        }
        assert_eq!(std::fs::read_to_string(at("asked")).unwrap(), "--version\nfeatures\n");
    }

    #[test]
    fn a_stage_that_a_pods_root_cannot_reach_is_named_with_the_remedy() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let allow = |mode| std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(mode));
        let stage = directory.path().join("stage");
        allow(0o700).unwrap();
        let reason = make_stage(&stage).unwrap().unwrap();
        assert!(reason.contains(&format!("chmod o+x {}", directory.path().display())), "{reason}");
        allow(0o711).unwrap();
        assert_eq!(make_stage(&stage).unwrap(), None);
    }
}
