//! What must be done for one Pod now, worked out from its spec and what the runtime holds. Pure.
//!
//! One pass plans at most one new sandbox *or* container starts: the worker looks again after each pass, so a plan
//! never depends on what an earlier step of the same plan will have made.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};

use super::backoff::{Backoff, Verdict};
use super::ephemeral::{as_container, ephemeral_containers};
use super::observed::{ContainerRecord, Observed, Sandbox, Stage};
use super::restart::{RestartPolicy, is_sidecar, must_start, restarts_after};
use super::restart_all::{RestartAll, plan_restart_all};
use crate::probe::Results;

/// Key of a container's `CrashLoopBackOff`: a changed image starts with a clean record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CrashKey {
    pub(crate) container: String,
    pub(crate) spec_hash: String,
}

/// Everything a plan is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlanInput<'a> {
    pub(crate) pod: &'a Pod,
    /// Its status as the node agent knows it.
    pub(crate) status: &'a PodStatus,
    pub(crate) observed: &'a Observed,
    pub(crate) crashes: &'a Backoff<CrashKey>,
    /// Containers whose last start failed for another reason; not tried before these times.
    pub(crate) held: &'a BTreeMap<String, Timestamp>,
    pub(crate) probes: &'a Results,
    pub(crate) now: Timestamp,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What to do about the sandbox, before anything else.
    pub(crate) sandbox: SandboxPlan,
    /// The next step of a restart of all containers; nothing else is done then.
    pub(crate) restart_all: Option<RestartAll>,
    /// Containers to stop.
    pub(crate) kill: Vec<Kill>,
    /// Containers to create and start, in order.
    pub(crate) start: Vec<Start>,
    /// Containers that wait for their back-off.
    pub(crate) delayed: Vec<Delayed>,
    /// Nothing runs and nothing will run again: the Pod has come to its end.
    pub(crate) is_over: bool,
}

/// What to do about the sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum SandboxPlan {
    /// The newest sandbox is fine, or none is wanted.
    #[default]
    Keep,
    /// Make the first or the next one; `replaces` is the unusable one to stop first.
    Create { attempt: u32, replaces: Option<String> },
}

/// Stop one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kill {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) message: String,
}

/// Which list of the spec a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Init,
    Sidecar,
    Main,
    Ephemeral,
}

/// Start one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) restart_count: i32,
    /// When the record that is replaced ended; lengthens the next back-off.
    pub(crate) failed_at: Option<Timestamp>,
    /// A container that was made and never ran, because the node agent died in between: it is removed first, and this is
    /// no restart.
    pub(crate) replaces: Option<String>,
}

/// A container that is started later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delayed {
    pub(crate) name: String,
    pub(crate) until: Timestamp,
    pub(crate) wait: SignedDuration,
    pub(crate) restart_count: i32,
}

/// The hash that tells whether a running container is still what the spec asks: of its name and image.
pub(crate) fn spec_hash(container: &Container) -> String {
    let mut hasher = DefaultHasher::new();
    (&container.name, &container.image).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// The key of a container's restart back-off.
pub(crate) fn crash_key(container: &Container) -> CrashKey {
    CrashKey { container: container.name.clone(), spec_hash: spec_hash(container) }
}

/// Plans the next pass for a Pod that is meant to run.
pub(crate) fn plan_pod(input: PlanInput<'_>) -> Plan {
    let Some(spec) = &input.pod.spec else { return Plan { is_over: true, ..Plan::default() } };
    if let Some(restart) = plan_restart_all(input, spec) {
        return Plan { restart_all: Some(restart), ..Plan::default() };
    }
    match usable_sandbox(input.pod, spec, input.observed) {
        Ok(sandbox) => plan_containers(input, spec, sandbox),
        Err(replacement) => plan_sandbox(input, spec, replacement),
    }
}

/// The sandbox that containers can run in, or the plan for a new one.
fn usable_sandbox<'a>(pod: &Pod, spec: &PodSpec, observed: &'a Observed) -> Result<&'a Sandbox, SandboxPlan> {
    let Some(latest) = observed.latest_sandbox() else {
        return Err(SandboxPlan::Create { attempt: 0, replaces: None });
    };
    let wants_host_network = spec.host_network == Some(true);
    let ready = observed.sandboxes.iter().filter(|sandbox| sandbox.is_ready).count();
    let has_address = wants_host_network || !latest.ips.is_empty();
    let matches_spec = latest.uses_host_network == wants_host_network;
    if ready == 1 && latest.is_ready && has_address && matches_spec {
        return Ok(latest);
    }
    tracing::debug!(
        pod = pod.metadata.name,
        sandbox = latest.id,
        ready,
        has_address,
        "sandbox is not usable"
    );
    let attempt = latest.attempt.saturating_add(1);
    Err(SandboxPlan::Create { attempt, replaces: Some(latest.id.clone()) })
}

/// A new sandbox, unless no container would run in it.
fn plan_sandbox(input: PlanInput<'_>, spec: &PodSpec, sandbox: SandboxPlan) -> Plan {
    let had_one = !input.observed.sandboxes.is_empty();
    let ran_once = had_one && !input.observed.containers.is_empty();
    let never_again = RestartPolicy::of_pod(input.pod) == RestartPolicy::Never
        && spec
            .containers
            .iter()
            .all(|container| RestartPolicy::of(input.pod, container) == RestartPolicy::Never);
    let wanted = spec.containers.iter().any(|container| {
        must_start(input.pod, container, settled(input.observed.latest(&container.name)).as_ref())
    });
    if !wanted || (ran_once && never_again) {
        return Plan { kill: kill_everything(input.observed), is_over: true, ..Plan::default() };
    }
    Plan { sandbox, ..Plan::default() }
}

/// A record as it will be once its dead sandbox is stopped: what seems to run in it has ended badly.
fn settled(record: Option<&ContainerRecord>) -> Option<ContainerRecord> {
    let mut record = record?.clone();
    if record.stage == Stage::Running {
        record.stage = Stage::Exited;
        record.exit_code = 137;
    }
    Some(record)
}

fn kill_everything(observed: &Observed) -> Vec<Kill> {
    observed.live().map(|record| kill(record, format!("Stopping container {}", record.name))).collect()
}

fn kill(record: &ContainerRecord, message: String) -> Kill {
    Kill { id: record.id.clone(), name: record.name.clone(), message }
}

/// How far the init containers have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InitProgress {
    Done,
    Waiting,
    Failed,
}

fn plan_containers(input: PlanInput<'_>, spec: &PodSpec, sandbox: &Sandbox) -> Plan {
    let mut plan = Plan::default();
    plan_ephemeral(input, spec, &mut plan);
    match plan_init(input, spec, sandbox, &mut plan) {
        InitProgress::Waiting => return plan,
        InitProgress::Failed => {
            return Plan { kill: kill_everything(input.observed), is_over: true, ..Plan::default() };
        }
        InitProgress::Done => {}
    }
    let (mut kept, mut wanted) = (0_usize, 0_usize);
    for container in &spec.containers {
        let record = input.observed.latest(&container.name);
        match record.filter(|record| record.is_running()) {
            Some(running) => {
                kept += 1;
                plan.kill.extend(unfit(input, container, running));
            }
            None if must_start(input.pod, container, record) => {
                wanted += 1;
                plan_start(input, container, Role::Main, record, &mut plan);
            }
            None => {}
        }
    }
    if kept + wanted == 0 {
        return Plan { kill: kill_everything(input.observed), is_over: true, ..Plan::default() };
    }
    plan
}

/// An ephemeral container starts once, whatever the others do.
fn plan_ephemeral(input: PlanInput<'_>, spec: &PodSpec, plan: &mut Plan) {
    if input.pod.metadata.deletion_timestamp.is_some() {
        return;
    }
    for ephemeral in ephemeral_containers(spec) {
        if input.observed.latest(&ephemeral.name).is_none() {
            plan_start(input, &as_container(ephemeral), Role::Ephemeral, None, plan);
        }
    }
}

/// The stop of a running container that is not what the spec asks, or that its probes have given up.
fn unfit(input: PlanInput<'_>, container: &Container, running: &ContainerRecord) -> Option<Kill> {
    let name = &container.name;
    if !is_current(running, container) {
        return Some(kill(running, format!("Container {name} definition changed, will be restarted")));
    }
    let probe = input.probes.verdict(&running.id)?;
    Some(kill(running, format!("Container {name} failed {probe} probe, will be restarted")))
}

fn is_current(record: &ContainerRecord, container: &Container) -> bool {
    record.spec_hash.as_ref().is_none_or(|hash| *hash == spec_hash(container))
}

/// Init containers run one after another; sidecars among them keep running. Only this sandbox's records count.
fn plan_init(input: PlanInput<'_>, spec: &PodSpec, sandbox: &Sandbox, plan: &mut Plan) -> InitProgress {
    let here =
        |name: &str| input.observed.history(name).find(|record| record.sandbox_id == sandbox.id).cloned();
    let main_has_begun = spec.containers.iter().any(|container| here(&container.name).is_some());
    for container in spec.init_containers.iter().flatten() {
        let record = here(&container.name);
        let running = record.as_ref().is_some_and(ContainerRecord::is_running);
        if is_sidecar(container) {
            if let Some(record) = record.as_ref().filter(|_| running) {
                plan.kill.extend(unfit(input, container, record));
                if input.probes.has_started(container, &record.id) || main_has_begun {
                    continue;
                }
                return InitProgress::Waiting;
            }
            plan_start(input, container, Role::Sidecar, record.as_ref(), plan);
            if main_has_begun {
                continue;
            }
            return InitProgress::Waiting;
        }
        if main_has_begun || record.as_ref().is_some_and(ContainerRecord::has_succeeded) {
            continue;
        }
        if running {
            return InitProgress::Waiting;
        }
        let failed = record.as_ref().filter(|record| record.stage == Stage::Exited);
        let policy = RestartPolicy::of_init(input.pod, container);
        if failed.is_some_and(|record| !restarts_after(policy, container, record.exit_code)) {
            return InitProgress::Failed;
        }
        plan_start(input, container, Role::Init, record.as_ref(), plan);
        return InitProgress::Waiting;
    }
    InitProgress::Done
}

/// Adds a start, or the wait for it, and the stop of a record whose state nobody knows.
fn plan_start(
    input: PlanInput<'_>,
    container: &Container,
    role: Role,
    record: Option<&ContainerRecord>,
    plan: &mut Plan,
) {
    let newest = input.observed.latest(&container.name);
    let unborn = newest.filter(|record| record.stage == Stage::Created);
    let restart_count = match (newest, unborn) {
        (_, Some(unborn)) => unborn.restart_count,
        (newest, None) => newest.map_or(0, |record| record.restart_count.saturating_add(1)),
    };
    if let Some(unknown) = record.filter(|record| record.stage == Stage::Unknown) {
        plan.kill.push(kill(
            unknown,
            format!("Container {} is in unknown state, try killing it before restart", container.name),
        ));
    }
    let failed_at =
        newest.filter(|record| record.stage == Stage::Exited).and_then(|record| record.finished_at);
    if let Some(until) = input.held.get(&container.name).copied().filter(|until| *until > input.now) {
        let wait = until.duration_since(input.now);
        plan.delayed.push(Delayed { name: container.name.clone(), until, wait, restart_count });
        return;
    }
    if let Some(failed_at) = failed_at
        && let Verdict::Wait { until, wait } =
            input.crashes.check(&crash_key(container), failed_at, input.now)
    {
        let name = container.name.clone();
        plan.delayed.push(Delayed { name, until, wait, restart_count: restart_count - 1 });
        return;
    }
    let replaces = unborn.map(|record| record.id.clone());
    plan.start.push(Start { name: container.name.clone(), role, restart_count, failed_at, replaces });
}

#[cfg(test)]
mod tests;
