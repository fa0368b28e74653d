//! The Pod network by CNI plugins instead of the built-in one: programs of others, which are told on their standard
//! input what to do and answer on their standard output.
//!
//! What a sandbox was attached with is kept, so that `DEL` and `CHECK` are told what `ADD` was told, after a restart and
//! after the configuration has changed. Calls for one sandbox come one after the other: the caller holds its lock.
//!
//! Source: CNI specification 1.1, sections 2 to 4 (protocol, lists, delegation).

mod answer;
mod cache;
mod list;
mod place;

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::error::{First, NetworkError};
use crate::pod::{self, LINK};
use crate::port::PortMapping;
use crate::record::check_identifier;
use crate::{SandboxName, blocking};
use cache::{Attachment, Cache};
use list::{List, Plugin};

/// How long one plugin may take. An address by DHCP takes seconds.
const PATIENCE: Duration = Duration::from_mins(1);

/// Where a network of plugins is configured and what it keeps.
#[derive(Debug, Clone)]
pub struct CniConfig {
    /// Where the network's configuration is, for example `/etc/cni/net.d`: the first file by name counts.
    pub conf_dir: PathBuf,
    /// Where plugins are looked for, in order, for example `/opt/cni/bin`.
    pub bin_dirs: Vec<PathBuf>,
    /// Where this instance's records are, for example `/var/lib/kakoi/network`.
    pub state_dir: PathBuf,
    /// Where sandboxes' network namespaces get names, for example `/run/netns`.
    pub netns_dir: PathBuf,
}

/// A network of plugins.
#[derive(Debug)]
pub(crate) struct Plugins {
    config: CniConfig,
    cache: Cache,
}

/// What a plugin is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Add,
    Check,
    Del,
    Gc,
    Status,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }
}

impl Plugins {
    pub(crate) fn open(config: CniConfig) -> Result<Self, NetworkError> {
        let cache = Cache::open(&config.state_dir)?;
        Ok(Self { config, cache })
    }

    /// Whether there is a network whose plugins are all installed, and take sandboxes as far as they can be asked.
    pub(crate) async fn probe(&self) -> Result<(), NetworkError> {
        let list = self.installed()?;
        if list.has_status() {
            for plugin in &list.plugins {
                self.tell(Verb::Status, plugin, &list.plan_input(plugin, &[], None)).await?;
            }
        }
        Ok(())
    }

    /// The configured network, all of whose plugins are there.
    fn installed(&self) -> Result<List, NetworkError> {
        let list = list::choose(&self.config.conf_dir)?;
        list.plugins.iter().try_for_each(|plugin| self.program(plugin).map(drop))?;
        Ok(list)
    }

    /// Attaches a sandbox; one that is attached and unharmed stays as it is.
    pub(crate) async fn attach(
        &self,
        sandbox: &SandboxName<'_>,
        netns: BorrowedFd<'_>,
        ports: &[PortMapping],
    ) -> Result<Vec<IpAddr>, NetworkError> {
        let id = sandbox.id;
        check_identifier(id)?;
        let ports: Vec<PortMapping> = ports.iter().filter(|port| port.host_port != 0).copied().collect();
        if let Some(present) = self.present(id)? {
            if present.ports == ports && present.result.is_some() && self.check(id, &present).await.is_ok() {
                return addresses(id, &present);
            }
            self.detach(id).await?;
        }
        let list = self.installed()?;
        if !ports.is_empty() && !list.opens_ports() {
            return Err(NetworkError::CniPorts { network: list.name, sandbox: id.to_owned() });
        }
        let attachment = Attachment { list, arguments: arguments(sandbox), ports, result: None };
        self.cache.write(id, &attachment)?;
        match self.add(id, netns, attachment).await {
            Ok(addresses) => Ok(addresses),
            Err(error) => {
                if let Err(left) = self.detach(id).await {
                    tracing::warn!(sandbox = id, error = %left, "a failed attachment is not undone yet");
                }
                Err(error)
            }
        }
    }

    async fn add(
        &self,
        id: &str,
        netns: BorrowedFd<'_>,
        mut attachment: Attachment,
    ) -> Result<Vec<IpAddr>, NetworkError> {
        let (path, namespace) = (self.place(id), netns.try_clone_to_owned());
        let namespace =
            namespace.map_err(NetworkError::kernel("duplicate a network namespace's descriptor"))?;
        let failed = NetworkError::kernel(format!("set up the loopback of sandbox {id}"));
        blocking(move || {
            place::bind(&path, namespace.as_fd())?;
            pod::raise_loopback(namespace.as_fd()).map_err(failed)
        })
        .await?;
        let mut result = None;
        for plugin in &attachment.list.plugins {
            let answer = self.ask(Verb::Add, id, (&attachment, plugin), result.as_ref()).await?;
            result = answer.or(result);
        }
        attachment.result = result;
        let found = addresses(id, &attachment)?;
        self.cache.write(id, &attachment)?;
        Ok(found)
    }

    /// Detaches a sandbox: every plugin undoes its part, the last first. It need not be attached.
    pub(crate) async fn detach(&self, id: &str) -> Result<(), NetworkError> {
        check_identifier(id)?;
        let Some(attachment) = self.present(id)? else { return Ok(()) };
        let mut first = First::default();
        for plugin in attachment.list.plugins.iter().rev() {
            first.note(
                self.ask(Verb::Del, id, (&attachment, plugin), attachment.result.as_ref()).await.map(drop),
            );
        }
        first.into_result()?;
        let path = self.place(id);
        blocking(move || place::unbind(&path)).await?;
        self.cache.remove(id)
    }

    /// Detaches what is not in `live`, and says which of the others are not as they were made.
    pub(crate) async fn reconcile(&self, live: &[String]) -> Result<(), NetworkError> {
        let mut first = First::default();
        for id in self.cache.list()? {
            if !live.contains(&id) {
                first.note(self.detach(&id).await);
            } else if let Some(present) = first.note(self.present(&id))
                && let Err(error) = self.check(&id, &present).await
            {
                tracing::warn!(sandbox = id, %error, "a sandbox's network is not as its plugins made it");
            }
        }
        first.note(self.collect().await);
        first.into_result()
    }

    /// Has the network remove what it still holds for sandboxes that have no record here.
    async fn collect(&self) -> Result<(), NetworkError> {
        // Without a network there is nobody to ask.
        let Ok(list) = self.installed() else { return Ok(()) };
        let mut first = First::default();
        if list.has_gc() {
            let sandboxes = self.cache.list()?;
            for plugin in &list.plugins {
                let input = list.plan_gc(plugin, &sandboxes, LINK);
                first.note(self.tell(Verb::Gc, plugin, &input).await);
            }
        }
        first.into_result()
    }

    /// What a sandbox was attached with; where that is damaged, what it would be attached with now.
    fn present(&self, id: &str) -> Result<Option<Attachment>, NetworkError> {
        self.cache.read(id).or_else(|error| {
            tracing::warn!(sandbox = id, %error, "a network record is lost; the present configuration is used");
            let list = list::choose(&self.config.conf_dir)?;
            Ok(Some(Attachment { list, arguments: arguments(&id.into()), ports: Vec::new(), result: None }))
        })
    }

    /// Asks every plugin whether its part is as it made it.
    async fn check(&self, id: &str, attachment: &Attachment) -> Result<(), NetworkError> {
        if attachment.list.has_check() {
            for plugin in &attachment.list.plugins {
                self.ask(Verb::Check, id, (attachment, plugin), attachment.result.as_ref()).await?;
            }
        }
        Ok(())
    }

    /// The addresses that an attached sandbox was given.
    pub(crate) fn addresses(&self, id: &str) -> Option<Vec<IpAddr>> {
        check_identifier(id).ok()?;
        addresses(id, &self.cache.read(id).ok()??).ok()
    }

    /// Runs one plugin; `None` where it answers nothing, as for all but `ADD`.
    async fn ask(
        &self,
        verb: Verb,
        id: &str,
        (attachment, plugin): (&Attachment, &Plugin),
        before: Option<&Value>,
    ) -> Result<Option<Value>, NetworkError> {
        let failed = |message: String| NetworkError::CniPlugin {
            plugin: plugin.program.clone(),
            verb: verb.name(),
            sandbox: id.to_owned(),
            message,
        };
        let input = attachment.list.plan_input(plugin, &attachment.ports, before);
        let mut command = self.command(verb, plugin)?;
        command.env("CNI_CONTAINERID", id).env("CNI_IFNAME", LINK).env("CNI_ARGS", &attachment.arguments);
        let place = self.place(id);
        // After a reboot there is no namespace any more; plugins then undo what is left on the node.
        command.env("CNI_NETNS", if place.exists() { place.as_os_str() } else { "".as_ref() });
        let answer = run(command, &input).await.map_err(failed)?;
        if verb != Verb::Add || answer.trim_ascii().is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&answer).map(Some).map_err(|_| failed("its answer is not JSON".to_owned()))
    }

    /// Runs one plugin with what is of no sandbox.
    async fn tell(&self, verb: Verb, plugin: &Plugin, input: &Value) -> Result<(), NetworkError> {
        let told = run(self.command(verb, plugin)?, input).await;
        told.map(drop).map_err(|message| NetworkError::CniNetwork {
            plugin: plugin.program.clone(),
            verb: verb.name(),
            message,
        })
    }

    fn command(&self, verb: Verb, plugin: &Plugin) -> Result<Command, NetworkError> {
        let mut command = Command::new(self.program(plugin)?);
        command.env("CNI_COMMAND", verb.name()).env("CNI_PATH", self.search_path());
        Ok(command)
    }

    fn program(&self, plugin: &Plugin) -> Result<PathBuf, NetworkError> {
        let found =
            self.config.bin_dirs.iter().map(|dir| dir.join(&plugin.program)).find(|path| path.is_file());
        found.ok_or_else(|| NetworkError::CniNotInstalled {
            plugin: plugin.program.clone(),
            dirs: self.config.bin_dirs.iter().map(|dir| dir.display().to_string()).collect(),
        })
    }

    /// Plugins look for other plugins (`ipam`) there.
    fn search_path(&self) -> OsString {
        let dirs: Vec<&std::ffi::OsStr> = self.config.bin_dirs.iter().map(|dir| dir.as_os_str()).collect();
        dirs.join(":".as_ref())
    }

    fn place(&self, id: &str) -> PathBuf {
        place::path_of(Path::new(&self.config.netns_dir), id)
    }
}

/// Runs a plugin with `input` and returns what it answers.
///
/// # Errors
/// A text with what it said, or that it did not end in time.
async fn run(command: Command, input: &Value) -> Result<Vec<u8>, String> {
    let input = input.to_string();
    let ran = tokio::time::timeout(PATIENCE, converse(command, input.as_bytes())).await;
    let output = ran
        .map_err(|_| format!("it did not end within {} s", PATIENCE.as_secs()))?
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(answer::failure(&output.stdout, &output.stderr))
    }
}

/// Runs a plugin to its end; it is ended when the caller gives up.
async fn converse(mut command: Command, input: &[u8]) -> std::io::Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let stdin = child.stdin.take();
    let tell = async {
        if let Some(mut stdin) = stdin {
            // A plugin that does not read says why by its answer.
            let _ = stdin.write_all(input).await;
        }
    };
    let ((), output) = tokio::join!(tell, child.wait_with_output());
    output
}

fn addresses(id: &str, attachment: &Attachment) -> Result<Vec<IpAddr>, NetworkError> {
    let plugin = attachment.list.plugins.last().map(|plugin| plugin.program.clone()).unwrap_or_default();
    let result = attachment.result.as_ref().unwrap_or(&Value::Null);
    answer::addresses(result, LINK).map_err(|message| NetworkError::CniPlugin {
        plugin,
        verb: Verb::Add.name(),
        sandbox: id.to_owned(),
        message,
    })
}

/// `CNI_ARGS` as every Kubernetes runtime gives them.
fn arguments(sandbox: &SandboxName<'_>) -> String {
    let SandboxName { id, namespace, name, uid } = sandbox;
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
         K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={uid}"
    )
}
