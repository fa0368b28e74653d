//! `RunPodSandbox`: record, shim (which makes the namespaces), network, files, record again. What fails half-way
//! is undone before the answer; what a crash leaves half-way is undone at the next start.

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;

use cri::v1::{ContainerEventType, PodSandboxConfig, Protocol, RunPodSandboxRequest};
use shim::client::ShimClient;
use shim::protocol::Namespace;
use tracing::Instrument as _;

use super::plan::{self, Wanted};
use super::{follow, undo};
use crate::core::{Core, blocking, make_dir, now};
use crate::crash::CrashPoint;
use crate::error::{Error, Result};
use crate::handler::Handler;
use crate::mapping::PodIds;
use crate::record::{self, SandboxPhase, SandboxRecord};
use crate::state::Sandbox;
use crate::{files, id};

/// Makes a sandbox and returns its ID.
pub(crate) async fn run(core: Arc<Core>, request: RunPodSandboxRequest) -> Result<String> {
    let mut config = request.config.ok_or_else(|| Error::missing("config"))?;
    core.cgroups.settle_parent(&mut config);
    check(&config)?;
    let handler = core.handlers.find(&request.runtime_handler)?;
    let id = id::new();
    let wanted = plan::plan_sandbox(&id, &config, |uid| core.features.is_account(uid))?;
    if wanted.ids.is_some() && !core.features.user_namespaces {
        let reason = &core.features.reason;
        return Err(Error::Unsupported(format!("this node can't run a Pod in a user namespace: {reason}")));
    }
    if wanted.ids.is_some() {
        check_handler(handler).await?;
    }
    if wanted.network == Namespace::Pod && core.config.network.is_none() {
        return Err(Error::WrongState("the Pod network is not configured".to_owned()));
    }
    let record = SandboxRecord {
        id: id.clone(),
        config,
        handler: request.runtime_handler,
        ids: wanted.ids,
        created_at: now(),
        phase: SandboxPhase::Creating,
        addresses: Vec::new(),
        warnings: Vec::new(),
        is_stopped: false,
    };
    let sandbox = Arc::new(Sandbox::new(core.sandbox_dir(&id), record, None));
    if let Err(twin) = core.table.add_sandbox(Arc::clone(&sandbox)) {
        return existing(&twin, &sandbox);
    }
    let _gate = sandbox.gate.lock().await;
    match make(&core, &sandbox, wanted).await {
        Ok(()) => {
            core.announce(&id, &id, ContainerEventType::ContainerCreatedEvent);
            core.announce(&id, &id, ContainerEventType::ContainerStartedEvent);
            Ok(id)
        }
        Err(error) => {
            undo(&core, &sandbox).await;
            Err(error)
        }
    }
}

fn check(config: &PodSandboxConfig) -> Result<()> {
    if config.metadata.as_ref().is_none_or(|metadata| metadata.name.is_empty()) {
        return Err(Error::missing("config.metadata.name"));
    }
    Ok(())
}

/// A Pod in a user namespace needs a handler that has them.
async fn check_handler(handler: Option<&Handler>) -> Result<()> {
    let Some(handler) = handler else { return Ok(()) };
    let asked = handler.clone();
    let features = blocking(move || Ok(asked.features().clone())).await?;
    if features.user_namespaces {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "the runtime handler {:?} ({}) can't run a Pod in a user namespace: {}",
        handler.name,
        handler.program.display(),
        features.reason
    )))
}

/// The same request twice is answered with the same sandbox; another one under the same name is refused.
fn existing(twin: &Sandbox, asked: &Sandbox) -> Result<String> {
    let (has, wants) = (twin.record(), asked.record());
    if has.phase == SandboxPhase::Ready && has.config == wants.config && has.handler == wants.handler {
        return Ok(has.id.clone());
    }
    let metadata = wants.config.metadata.clone().unwrap_or_default();
    Err(Error::AlreadyExists(format!(
        "the sandbox {}/{} (attempt {}) exists as {}; remove it or raise the attempt",
        metadata.namespace, metadata.name, metadata.attempt, has.id
    )))
}

async fn make(core: &Arc<Core>, sandbox: &Arc<Sandbox>, wanted: Wanted) -> Result<()> {
    let shim = {
        let (core, sandbox) = (Arc::clone(core), Arc::clone(sandbox));
        let step = tracing::debug_span!(target: "path", "runtime: sandbox: shim");
        blocking(move || step.in_scope(|| start_shim(&core, &sandbox, &wanted.plan))).await?
    };
    core.config.crash.reached(CrashPoint::ShimSpawned)?;
    let step = tracing::debug_span!(target: "path", "runtime: sandbox: network");
    let addresses = attach_network(core, sandbox, &shim).instrument(step).await?;
    let (core, sandbox) = (Arc::clone(core), Arc::clone(sandbox));
    blocking(move || {
        let _step = tracing::debug_span!(target: "path", "runtime: sandbox: files, record").entered();
        core.config.crash.reached(CrashPoint::NetworkAttached)?;
        write_files(sandbox.directory(), &sandbox.record(), &addresses)?;
        core.config.crash.reached(CrashPoint::SandboxFilesWritten)?;
        let warnings = shim.warnings().to_vec();
        core.warn_once(&sandbox.id, &warnings);
        sandbox.update(|record| {
            record.phase = SandboxPhase::Ready;
            record.addresses = addresses;
            record.warnings = warnings;
        })?;
        follow::follow(&core, &sandbox, shim)
    })
    .await
}

fn start_shim(core: &Core, sandbox: &Sandbox, plan: &shim::protocol::SandboxPlan) -> Result<Arc<ShimClient>> {
    make_dir(sandbox.directory())?;
    record::save(sandbox.directory(), &*sandbox.record())?;
    core.config.crash.reached(CrashPoint::SandboxRecorded)?;
    core.cgroups.prepare(&sandbox.record(), &core.launcher)?;
    let place = core.shim_dir(&sandbox.id);
    let shim = core
        .launcher
        .spawn(&place, plan, core.cgroups.of_shims())
        .map_err(|error| Error::failed("make the sandbox", error))?;
    let shim = Arc::new(shim);
    sandbox.set_shim(Some(Arc::clone(&shim)));
    Ok(shim)
}

async fn attach_network(core: &Core, sandbox: &Sandbox, shim: &Arc<ShimClient>) -> Result<Vec<IpAddr>> {
    let record = sandbox.record();
    let network = core.config.network.as_ref().filter(|_| uses_pod_network(&record));
    let Some(network) = network else { return Ok(Vec::new()) };
    let netns = {
        let shim = Arc::clone(shim);
        blocking(move || shim.netns().map_err(|error| Error::failed("reach the sandbox's network", error)))
            .await?
    };
    let ports = port_mappings(&record.config)?;
    let pod = record.config.metadata.clone().unwrap_or_default();
    let name =
        network::SandboxName { id: &sandbox.id, namespace: &pod.namespace, name: &pod.name, uid: &pod.uid };
    let addresses = network
        .attach(name, netns.as_fd(), &ports)
        .await
        .map_err(|error| Error::failed("attach the sandbox to the Pod network", error))?;
    Ok(addresses.ips)
}

/// Whether the sandbox has an address of its own.
pub(crate) fn uses_pod_network(record: &SandboxRecord) -> bool {
    let network = plan::options(&record.config).map_or(0, |options| options.network);
    network == i32::from(cri::v1::NamespaceMode::Pod)
}

fn port_mappings(config: &PodSandboxConfig) -> Result<Vec<network::PortMapping>> {
    config.port_mappings.iter().filter(|port| port.host_port > 0).map(port_mapping).collect()
}

fn port_mapping(port: &cri::v1::PortMapping) -> Result<network::PortMapping> {
    let wrong =
        |what: &str, value: &str| Error::Invalid(format!("the port mapping's {what} {value:?} is unusable"));
    let number = |what, value: i32| {
        u16::try_from(value).ok().filter(|port| *port > 0).ok_or_else(|| wrong(what, &value.to_string()))
    };
    let host_ip = match port.host_ip.as_str() {
        "" | "0.0.0.0" | "::" => None,
        text => Some(text.parse::<IpAddr>().map_err(|_| wrong("host_ip", text))?),
    };
    Ok(network::PortMapping {
        protocol: match Protocol::try_from(port.protocol) {
            Ok(Protocol::Tcp) => network::Protocol::Tcp,
            Ok(Protocol::Udp) => network::Protocol::Udp,
            Ok(Protocol::Sctp) => network::Protocol::Sctp,
            Err(_) => return Err(wrong("protocol", &port.protocol.to_string())),
        },
        host_ip,
        host_port: number("host_port", port.host_port)?,
        container_port: number("container_port", port.container_port)?,
    })
}

/// Writes the files that every container of the sandbox sees, owned by the Pod's root, so that they need no ID
/// mapping.
fn write_files(directory: &Path, record: &SandboxRecord, addresses: &[IpAddr]) -> Result<()> {
    let hostname =
        if record.config.hostname.is_empty() { node_hostname() } else { record.config.hostname.clone() };
    let resolv_conf = match &record.config.dns_config {
        Some(dns) => files::resolv_conf(dns),
        None => std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    write_file(directory, "hostname", &files::hostname(&hostname), record.ids)?;
    write_file(directory, "resolv.conf", &resolv_conf, record.ids)?;
    write_file(directory, "hosts", &files::hosts(&hostname, addresses), record.ids)
}

fn node_hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn write_file(directory: &Path, name: &str, text: &str, ids: Option<PodIds>) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = directory.join(name);
    let write = || {
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
        if let Some(ids) = ids {
            std::os::unix::fs::chown(&path, Some(ids.uids.host), Some(ids.gids.host))?;
        }
        Ok::<_, std::io::Error>(())
    };
    write().map_err(|error| Error::failed(format!("write {}", path.display()), error))
}
