//! Entry points for fuzzing: what is worked out from a request before anything of it exists.

use cri::v1::{CreateContainerRequest, PullImageRequest, RunPodSandboxRequest};

use crate::container::plan::{self, Surroundings};
use crate::mapping::{self, PodIds};
use crate::process::user::User;
use crate::record::{ContainerPhase, ContainerRecord, ImageUse, SandboxPhase, SandboxRecord};

/// Plans a sandbox.
///
/// # Panics
/// When the plan is not what was asked for.
pub fn sandbox(request: RunPodSandboxRequest) {
    let config = request.config.unwrap_or_default();
    let options = crate::sandbox::plan::options(&config);
    if let Ok(wanted) = crate::sandbox::plan::plan_sandbox("fuzz", &config, |_| false) {
        let asked = mapping::parse(options).expect("a sandbox was planned from these");
        assert_eq!(wanted.ids, asked, "a sandbox in other IDs than were asked for");
        assert_eq!(wanted.plan.user_namespace.is_some(), asked.is_some());
    }
}

/// Checks and plans a container and an exec in it.
///
/// # Panics
/// When the plan names a descriptor that is not opened for it.
pub fn container(request: CreateContainerRequest) {
    let config = request.sandbox_config.unwrap_or_default();
    let Ok(ids) = mapping::parse(crate::sandbox::plan::options(&config)) else { return };
    let sandbox = sandbox_record(config, ids);
    let record = container_record(request.config.unwrap_or_default());
    if plan::check(&record, &sandbox).is_err() {
        return;
    }
    let surroundings = Surroundings::default();
    if let Ok(planned) = plan::plan_container(&record, &sandbox, &surroundings) {
        let opened = planned.sources.len();
        let named = planned.plan.mounts.iter().filter_map(|mount| match &mount.source {
            shim::protocol::MountSource::Fd(index) => Some(index.0),
            _ => None,
        });
        assert!(named.into_iter().all(|index| usize::from(index) < opened), "a descriptor that nobody opens");
    }
    // A refusal is as good as a plan.
    let _ = plan::plan_exec(&record, &sandbox, &record.config.args, record.config.tty);
}

/// Reads the credentials of a pull.
pub fn pull(request: PullImageRequest) {
    if let Some(auth) = request.auth {
        // A refusal is as good as credentials.
        let _ = crate::service::image::credentials(auth);
    }
}

fn sandbox_record(config: cri::v1::PodSandboxConfig, ids: Option<PodIds>) -> SandboxRecord {
    SandboxRecord {
        id: "fuzz".to_owned(),
        config,
        handler: String::new(),
        ids,
        created_at: 0,
        phase: SandboxPhase::Ready,
        addresses: Vec::new(),
        warnings: Vec::new(),
        is_stopped: false,
    }
}

fn container_record(config: cri::v1::ContainerConfig) -> ContainerRecord {
    ContainerRecord {
        id: "fuzz".to_owned(),
        sandbox: "fuzz".to_owned(),
        config,
        image: ImageUse {
            id: String::new(),
            name: "image".to_owned(),
            reference: String::new(),
            config: image::ImageConfig::default(),
            layers: Vec::new(),
        },
        user: User::default(),
        volumes: Vec::new(),
        node_owners: Vec::new(),
        image_mounts: Vec::new(),
        seccomp_flags: 0,
        created_at: 0,
        phase: ContainerPhase::Creating,
    }
}
