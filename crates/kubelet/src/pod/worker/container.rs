//! Starting one container: image, environment, mounts, create, start. Each failure has its reason and its event.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::sync::Arc;

use cri::v1;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::fence::is_static;
use super::prepare::make_directory;
use super::{OwnFiles, Prepared, Worker, blocking};
use crate::env::downward::PodAddresses;
use crate::env::file::read_files;
use crate::env::{EnvInput, Environment, plan_environment};
use crate::event::Kind;
use crate::fault::CrashPoint;
use crate::idspace::remedy;
use crate::pod::container::{ContainerInput, MountInput, MountPlan, OwnFile, plan_container, plan_mounts};
use crate::pod::ephemeral::{ephemeral_containers, find, target};
use crate::pod::hosts::{plan_host_name, plan_hosts, plan_node_hosts};
use crate::pod::image::{ImageFailure, LocalImage, PullInput};
use crate::pod::label;
use crate::pod::observed::Observed;
use crate::pod::plan::{Role, Start, crash_key};
use crate::pod::security::check_non_root;
use crate::pod::status::Waiting;
use crate::runtime::CriError;
use crate::volume::sub_path::bind_sub_path;

/// What a container gets between SIGTERM and SIGKILL when its `postStart` hook has failed.
const AFTER_HOOK: std::time::Duration = std::time::Duration::from_secs(2);
/// How long a container whose configuration is wrong waits, unless what it refers to changes.
const CONFIG_RETRY: SignedDuration = SignedDuration::from_secs(10);

/// How long a container's start waits for the first look at the cluster's Services.
const LINKS_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// How long `ErrImagePull` or `RegistryUnavailable` is shown before it becomes `ImagePullBackOff`.
const SHOW_PULL_ERROR: SignedDuration = SignedDuration::from_secs(1);

/// Why a container did not start.
enum StartFailure {
    Image(ImageFailure),
    /// The request cannot be made.
    Config(String),
    Create(CriError),
    Run(CriError),
    Hook(String),
    Aborted,
}

impl Worker {
    /// Starts a container and says whether anything was done in the runtime.
    pub(super) async fn start(
        &mut self,
        pod: &Pod,
        observed: &Observed,
        start: &Start,
        abort: &CancellationToken,
    ) -> bool {
        let Some(container) = find(pod, &start.name) else { return false };
        let container = &*container;
        if let Some(failed_at) = start.failed_at {
            self.crashes.lengthen(&crash_key(container), failed_at, self.shared.clock.now());
        }
        let restart_count = self.restart_count(start);
        if let Some(unborn) = &start.replaces
            && let Err(error) = self.shared.cri.remove_container(unborn).await
        {
            return self.note_start_failure(pod, &start.name, StartFailure::Create(error));
        }
        match Box::pin(self.try_start(pod, container, observed, restart_count, abort)).await {
            Ok(()) => {
                self.sizes.note_applied(container);
                self.waiting.remove(&start.name);
                self.held.remove(&start.name);
                self.failures_in_a_row = 0;
                true
            }
            Err(StartFailure::Aborted) => true,
            Err(failure) => {
                if self.is_fenced(pod) {
                    self.shared.metrics.userns_pods_errors.inc();
                }
                self.note_start_failure(pod, &start.name, failure)
            }
        }
    }

    /// One more than the runtime or the API remember, whichever is more.
    fn restart_count(&self, start: &Start) -> i32 {
        if start.replaces.is_some() {
            return start.restart_count;
        }
        let statuses = match start.role {
            Role::Main => &self.status.container_statuses,
            Role::Init | Role::Sidecar => &self.status.init_container_statuses,
            Role::Ephemeral => &self.status.ephemeral_container_statuses,
        };
        let before = statuses.iter().flatten().find(|status| status.name == start.name);
        let lost = before.filter(|before| start.restart_count == 0 && before.container_id.is_some());
        lost.map_or(start.restart_count, |before| before.restart_count.saturating_add(1))
    }

    /// Shows and tells of a failed start. `true` when the runtime holds a new record of it.
    fn note_start_failure(&mut self, pod: &Pod, name: &str, failure: StartFailure) -> bool {
        let now = self.shared.clock.now();
        let later = now.saturating_add(CONFIG_RETRY).ok();
        let (waiting, until, has_record) = match failure {
            StartFailure::Aborted => return true,
            StartFailure::Image(failure) => {
                let is_new =
                    matches!(failure.waiting.reason.as_str(), "ErrImagePull" | "RegistryUnavailable");
                let soon = now.saturating_add(SHOW_PULL_ERROR).ok();
                (failure.waiting, if is_new { soon } else { failure.until.or(later) }, false)
            }
            StartFailure::Config(message) => (waiting("CreateContainerConfigError", message), later, false),
            StartFailure::Create(error) => (waiting("CreateContainerError", error.message), later, false),
            StartFailure::Hook(message) => (waiting("PostStartHookError", message), None, true),
            StartFailure::Run(error) => (waiting("RunContainerError", error.message), None, true),
        };
        let told = match waiting.reason.as_str() {
            reason @ ("ErrImagePull"
            | "ImagePullBackOff"
            | "ErrImageNeverPull"
            | "InvalidImageName"
            | "ImageInspectError"
            | "RegistryUnavailable") => reason.to_owned(),
            _ => waiting.message.clone(),
        };
        self.tell_container(pod, name, Kind::Warning, "Failed", format!("Error: {told}"));
        self.waiting.insert(name.to_owned(), waiting);
        if let Some(until) = until {
            self.held.insert(name.to_owned(), until);
        }
        has_record
    }

    /// Shows and tells that an image is not there; it is tried again at the time that is answered.
    pub(super) fn note_missing_image(
        &mut self,
        pod: &Pod,
        name: &str,
        failure: ImageFailure,
    ) -> Option<Timestamp> {
        self.note_start_failure(pod, name, StartFailure::Image(failure));
        self.held.get(name).copied()
    }

    pub(super) fn tell_container(
        &self,
        pod: &Pod,
        name: &str,
        kind: Kind,
        reason: &'static str,
        message: String,
    ) {
        self.shared.events.container(pod, field_path(pod, name), kind, reason, message);
    }

    async fn try_start(
        &mut self,
        pod: &Pod,
        container: &Container,
        observed: &Observed,
        restart_count: i32,
        abort: &CancellationToken,
    ) -> Result<(), StartFailure> {
        let config_error = |text: &str| StartFailure::Config(text.to_owned());
        let prepared = self.prepared.clone().ok_or_else(|| config_error("the Pod is not prepared"))?;
        let sandbox = observed.ready_sandbox().ok_or_else(|| config_error("the sandbox is not ready"))?;
        let step = tracing::debug_span!(target: "path", "kubelet: image");
        let image = if let Some(image) = self.fetched.remove(&container.name) {
            image
        } else {
            let ensure = self.ensure_image(pod, container, &prepared.objects, abort);
            let ensured = Box::pin(ensure.instrument(step)).await.ok_or(StartFailure::Aborted)?;
            ensured.map_err(StartFailure::Image)?
        };
        self.shared.reached(CrashPoint::ImagePulled);
        let volume_images = Box::pin(self.ensure_volume_images(pod, container, &prepared, abort)).await?;
        let links = Box::pin(self.services_are_known(pod));
        abort.run_until_cancelled(links).await.ok_or(StartFailure::Aborted)?.map_err(config_error)?;
        let own_ids = prepared.userns.mappings().cloned();
        let target = target(pod, &container.name, observed).map_err(StartFailure::Config)?;
        let request = PlanRequest {
            shared: Arc::clone(&self.shared),
            uid: self.uid.clone(),
            pod: pod.clone(),
            container: container.clone(),
            restart_count,
            target_id: target.map(|record| record.id.clone()),
            pod_ips: if sandbox.uses_host_network {
                self.shared.host_ips.clone()
            } else {
                sandbox.ips.clone()
            },
            prepared,
            image,
            volume_images,
        };
        let step = tracing::debug_span!(target: "path", "kubelet: plan the container");
        let planned = blocking(move || step.in_scope(|| request.plan()))
            .await
            .map_err(|error| config_error(&error.to_string()))?;
        let planned = planned.map_err(StartFailure::Config)?;
        self.shared.reached(CrashPoint::ContainerPlanned);
        for text in planned.warnings {
            self.tell_container(pod, &container.name, Kind::Warning, "InvalidEnvironmentVariableNames", text);
        }
        let sandbox_config = self.plan_sandbox(pod, sandbox.attempt).await;
        let created = self.shared.cri.create_container(v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(planned.config),
            sandbox_config: Some(sandbox_config),
        });
        let id = Box::pin(created).await.map_err(StartFailure::Create)?.container_id;
        self.shared.reached(CrashPoint::ContainerCreated);
        let name = &container.name;
        self.tell_container(pod, name, Kind::Normal, "Created", format!("Created container: {name}"));
        let request = v1::StartContainerRequest { container_id: id.clone() };
        self.shared.cri.start_container(request).await.map_err(StartFailure::Run)?;
        self.shared.reached(CrashPoint::ContainerStarted);
        self.tell_container(pod, name, Kind::Normal, "Started", format!("Started container {name}"));
        if let Some(mappings) = &own_ids {
            self.verify_map(&id, mappings).await.map_err(|text| {
                StartFailure::Run(CriError { code: tonic::Code::FailedPrecondition, message: text })
            })?;
        }
        let hook = abort.run_until_cancelled(Box::pin(self.post_start(container, &id, observed))).await;
        if let Some(Err(text)) = hook {
            let text = format!("PostStartHook failed: {text}");
            self.tell_container(pod, name, Kind::Warning, "FailedPostStartHook", text.clone());
            self.shared.cri.stop_container(&id, AFTER_HOOK).await.map_err(StartFailure::Run)?;
            return Err(StartFailure::Hook(text));
        }
        self.shared.reached(CrashPoint::PostStartRun);
        Ok(())
    }

    /// Waits until the cluster's Services were told once: the container's environment tells of them. A static Pod waits
    /// for nobody. The error is upstream's sentence.
    async fn services_are_known(&self, pod: &Pod) -> Result<(), &'static str> {
        let mut links = self.shared.links.clone();
        if is_static(pod) || links.borrow().is_some() {
            return Ok(());
        }
        match tokio::time::timeout(LINKS_PATIENCE, links.wait_for(Option::is_some)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err("services have not yet been read at least once, cannot construct envvars"),
        }
    }

    /// The images of the volumes that the container mounts, each pulled as its volume says.
    async fn ensure_volume_images(
        &self,
        pod: &Pod,
        container: &Container,
        prepared: &Prepared,
        abort: &CancellationToken,
    ) -> Result<BTreeMap<String, v1::ImageSpec>, StartFailure> {
        let mut images = BTreeMap::new();
        for mount in container.volume_mounts.iter().flatten() {
            let volume = prepared.volumes.iter().find(|volume| volume.name == mount.name);
            let Some((reference, policy)) = volume.and_then(|volume| volume.image.clone()) else { continue };
            if images.contains_key(&mount.name) {
                continue;
            }
            let wanted = Container {
                name: container.name.clone(),
                image: Some(reference),
                image_pull_policy: policy,
                ..Container::default()
            };
            let ensure = self.ensure_image(pod, &wanted, &prepared.objects, abort);
            let image = Box::pin(ensure).await.ok_or(StartFailure::Aborted)?.map_err(StartFailure::Image)?;
            images.insert(mount.name.clone(), image.spec);
        }
        Ok(images)
    }

    /// Makes sure that the container's image is on the node; `None` when the Pod is to end meanwhile.
    pub(super) async fn ensure_image(
        &self,
        pod: &Pod,
        container: &Container,
        objects: &crate::object::Snapshot,
        abort: &CancellationToken,
    ) -> Option<Result<LocalImage, ImageFailure>> {
        let tell = |kind: Kind, reason: &'static str, message: String| {
            self.tell_container(pod, &container.name, kind, reason, message);
        };
        let secrets = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        let secrets: Vec<String> = secrets.map(|secret| secret.name.clone()).collect();
        let sandbox = Self::sandbox_identity(pod);
        let input = PullInput {
            pod_uid: self.uid.as_str(),
            container,
            objects,
            pull_secrets: &secrets,
            sandbox: &sandbox,
            tell: &tell,
        };
        abort.run_until_cancelled(Box::pin(self.shared.puller.ensure(input))).await
    }
}

fn waiting(reason: &str, message: String) -> Waiting {
    Waiting { reason: reason.to_owned(), message }
}

/// `spec.containers{name}`, with the list that the container is in.
fn field_path(pod: &Pod, name: &str) -> String {
    let mut inits = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let mut ephemerals = pod.spec.iter().flat_map(ephemeral_containers);
    let list = if inits.any(|init| init.name == name) {
        "initContainers"
    } else if ephemerals.any(|ephemeral| ephemeral.name == name) {
        "ephemeralContainers"
    } else {
        "containers"
    };
    format!("spec.{list}{{{name}}}")
}

/// Everything the blocking part of planning a container needs.
struct PlanRequest {
    shared: Arc<crate::shared::Shared>,
    uid: crate::uid::PodUid,
    pod: Pod,
    container: Container,
    restart_count: i32,
    /// The container whose processes this one sees.
    target_id: Option<String>,
    pod_ips: Vec<String>,
    prepared: Prepared,
    image: LocalImage,
    /// Images of the volumes that the container mounts.
    volume_images: BTreeMap<String, v1::ImageSpec>,
}

struct Planned {
    config: v1::ContainerConfig,
    warnings: Vec<String>,
}

impl PlanRequest {
    /// Plans the container and makes its files. The error is the sentence of `CreateContainerConfigError`.
    fn plan(self) -> Result<Planned, String> {
        check_non_root(&self.pod, &self.container, &self.image.user).map_err(|error| error.to_string())?;
        let environment = self.environment()?;
        let mounts = self.mounts(&environment)?;
        let own_files = self.own_files()?;
        let warnings = environment.skipped.iter().map(|skipped| {
            let keys = skipped.keys.join(", ");
            let (kind, object) = (skipped.kind, &skipped.object);
            format!("Keys [{keys}] from the EnvFrom {kind} {object} were skipped since they are considered invalid environment variable names.")
        });
        let warnings = warnings.collect();
        let config = plan_container(ContainerInput {
            pod: &self.pod,
            container: &self.container,
            restart_count: self.restart_count,
            target_id: self.target_id.as_deref(),
            image: &self.image.spec,
            image_user: &self.image.user,
            environment: &environment,
            userns: &self.prepared.userns,
            mounts: &mounts,
            own_files: &own_files,
            node: &self.shared.security,
            node_memory: self.shared.memory,
            huge_pages: &self.shared.huge_pages,
            has_unified_cgroups: self.shared.cgroups.is_unified(),
        });
        let logs = self.shared.places.pod_logs(&self.pod).join(&self.container.name);
        make_directory(&logs, 0o755).map_err(|error| format!("make {}: {error}", logs.display()))?;
        Ok(Planned { config, warnings })
    }

    fn environment(&self) -> Result<Environment, String> {
        let addresses =
            PodAddresses { pod_ips: self.pod_ips.clone(), host_ips: self.shared.host_ips.clone() };
        let root_of = |name: &str| {
            let volume = self.prepared.volumes.iter().find(|volume| volume.name == name)?;
            Some(volume.host_path.clone()).filter(|_| volume.image.is_none())
        };
        let input = EnvInput {
            pod: &self.pod,
            addresses: &addresses,
            objects: &self.prepared.objects,
            api_service: &self.shared.api_service,
            allocatable: &self.shared.allocatable,
            links: &self.shared.links.borrow(),
            files: &read_files(&self.container, root_of),
        };
        plan_environment(input, &self.container).map_err(|error| error.to_string())
    }

    fn mounts(&self, environment: &Environment) -> Result<Vec<MountPlan>, String> {
        let runtime = self.shared.runtime.borrow();
        let handler = runtime.handlers.iter().find(|handler| handler.name == self.prepared.runtime_handler);
        let features = handler.and_then(|handler| handler.features.as_ref());
        let input = MountInput {
            container: &self.container,
            volumes: &self.prepared.volumes,
            environment,
            has_own_userns: self.prepared.userns.mappings().is_some(),
            can_recurse_read_only: features.is_some_and(|features| features.recursive_read_only_mounts),
        };
        let mut plans = plan_mounts(input).map_err(|error| error.to_string())?;
        let places = self.shared.places.of(&self.uid);
        for (index, plan) in plans.iter_mut().enumerate() {
            if plan.volume.image.is_some() {
                plan.image = self.volume_images.get(&plan.volume.name).cloned();
                continue;
            }
            let Some(sub_path) = &plan.sub_path else { continue };
            let target = places.sub_path(&plan.volume.name, &self.container.name, index);
            plan.host_path = bind_sub_path(&plan.volume, sub_path, &target).map_err(|error| {
                format!(
                    "failed to prepare subPath for volumeMount {:?} of container {:?}: {error}",
                    plan.volume.name, self.container.name
                )
            })?;
        }
        Ok(plans)
    }

    /// `/etc/hosts` and the file for the termination message.
    fn own_files(&self) -> Result<Vec<OwnFile>, String> {
        let places = self.shared.places.of(&self.uid);
        let OwnFiles { is_mapped, base } = self.prepared.own_files;
        let hosts = places.hosts();
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |error: std::io::Error| format!("write {path}: {error}{}", remedy(&error))
        };
        write_own(&hosts, self.hosts().as_bytes(), 0o644, base).map_err(failed(&hosts))?;
        let message = places.termination_message(&self.container.name, self.restart_count);
        let directory = places.container(&self.container.name);
        make_directory(&directory, 0o750).map_err(failed(&directory))?;
        write_own(&message, b"", 0o666, base).map_err(failed(&message))?;
        let message_path = label::message_path(&self.container).to_owned();
        Ok(vec![
            OwnFile { host_path: hosts, container_path: "/etc/hosts".to_owned(), is_mapped },
            OwnFile { host_path: message, container_path: message_path, is_mapped },
        ])
    }

    fn hosts(&self) -> String {
        let spec = self.pod.spec.as_ref();
        let aliases = spec.and_then(|spec| spec.host_aliases.as_deref()).unwrap_or_default();
        if spec.is_some_and(|spec| spec.host_network == Some(true)) {
            let node = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
            return plan_node_hosts(&node, aliases);
        }
        let host = plan_host_name(&self.pod, &self.shared.cluster_dns.domain);
        plan_hosts(&self.pod_ips, &host, aliases)
    }
}

/// Writes a file in place (containers may have it mounted), owned by the Pod's root.
fn write_own(path: &Path, content: &[u8], mode: u32, base: u32) -> std::io::Result<()> {
    if std::fs::read(path).is_ok_and(|known| known == content) {
        return Ok(());
    }
    std::fs::write(path, content)?;
    chown(path, Some(base), Some(base))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}
