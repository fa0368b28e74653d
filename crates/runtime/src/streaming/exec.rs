//! Further processes in a container (`ExecSync`, `Exec`) and the streams of its own one (`Attach`).

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use cri::v1::ExecSyncRequest;
use shim::client::{AttachWants, Attachment, Descriptors, ShimClient};
use shim::protocol::{ExecPlan, Exit};
use stream::ExitStatus;
use stream::remotecommand::{RemoteCommand, Resizes, Streams, TerminalSize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::oneshot;

use super::Descriptor;
use crate::container::plan::{self, Source};
use crate::container::{self, apply};
use crate::core::{Core, blocking};
use crate::error::{Error, Result};
use crate::id;
use crate::process::signal;
use crate::state::{Container, Sandbox};

/// Bytes of each of an `ExecSync`'s outputs that are kept (16 MiB, as the field has it).
const OUTPUT_LIMIT: u64 = 16 << 20;

/// How long output is still read when the process has ended but something it started holds its output open.
const DRAIN: Duration = Duration::from_secs(2);

/// What an `ExecSync` gave.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) code: i32,
}

/// A process that runs, and our ends of its streams.
struct Process {
    id: String,
    shim: Arc<ShimClient>,
    exited: oneshot::Receiver<Exit>,
    stdin: Option<Descriptor>,
    stdout: Option<Descriptor>,
    stderr: Option<Descriptor>,
    /// `stdout` is the master of a terminal, and input goes there too.
    has_terminal: bool,
}

/// Runs a command and waits for it.
pub(crate) async fn exec_sync(core: Arc<Core>, request: ExecSyncRequest) -> Result<Output> {
    let streams = Streams { stdin: false, stdout: true, stderr: true, tty: false };
    let mut process = begin(&core, &request.container_id, &request.cmd, streams).await?;
    let (out, err) = (process.stdout.take(), process.stderr.take());
    let outputs = tokio::spawn(async move { tokio::join!(read_all(out), read_all(err)) });
    let abort = outputs.abort_handle();
    let run = async {
        let exit = wait(&mut process.exited).await?;
        let (stdout, stderr) =
            tokio::time::timeout(DRAIN, outputs).await.ok().and_then(Result::ok).unwrap_or_default();
        Ok(Output { stdout, stderr, code: exit.code })
    };
    let patience =
        u64::try_from(request.timeout).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
    let Some(patience) = patience else { return run.await };
    if let Ok(output) = tokio::time::timeout(patience, run).await {
        return output;
    }
    abort.abort();
    kill(&core, &process).await;
    Err(Error::Timeout(format!(
        "the command {:?} did not end within {} s and was killed",
        request.cmd,
        patience.as_secs()
    )))
}

async fn read_all(descriptor: Option<Descriptor>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut descriptor) = descriptor {
        // What was read before an error is the answer.
        let _ = (&mut descriptor).take(OUTPUT_LIMIT).read_to_end(&mut bytes).await;
        // The process must not block on a full pipe for want of a reader.
        let _ = tokio::io::copy(&mut descriptor, &mut tokio::io::sink()).await;
    }
    bytes
}

async fn kill(core: &Core, process: &Process) {
    core.forget_exec(&process.id);
    let (shim, id) = (Arc::clone(&process.shim), process.id.clone());
    let killed =
        blocking(move || shim.signal(&id, signal::KILL).map_err(|error| Error::failed("kill", error)));
    if let Err(error) = killed.await {
        tracing::debug!(exec = process.id, %error, "the command ended before it was killed");
    }
}

async fn wait(exited: &mut oneshot::Receiver<Exit>) -> Result<Exit> {
    exited.await.map_err(|_| Error::Failed("the container's shim ended before the command did".to_owned()))
}

/// Serves a client's `exec`: starts the command, moves its streams, tells how it ended.
pub(super) async fn exec(
    core: Arc<Core>,
    container: String,
    command: Vec<String>,
    streams: Streams,
    client: RemoteCommand,
) {
    match begin(&core, &container, &command, streams).await {
        Ok(process) => run(&core, process, client).await,
        Err(error) => client.exit.send(ExitStatus::Failed(error.to_string())).await,
    }
}

async fn run(core: &Core, mut process: Process, client: RemoteCommand) {
    let RemoteCommand { stdin, stdout, stderr, resize, exit } = client;
    let gone = exit.gone();
    let terminal = process.stdout.as_ref().filter(|_| process.has_terminal);
    let resizer = terminal
        .and_then(|terminal| terminal.get().try_clone().ok())
        .map(|terminal| tokio::spawn(resize_terminal(resize, terminal)));
    let typed = terminal.filter(|_| stdin.is_some()).and_then(duplicate);
    let input = process.stdin.take().or(typed);
    let feeder = tokio::spawn(copy_input(stdin, input));
    let (out, err) = (process.stdout.take(), process.stderr.take());
    let outputs =
        tokio::spawn(async move { tokio::join!(copy_output(out, stdout), copy_output(err, stderr)) });
    let abort = outputs.abort_handle();
    let ended = tokio::select! {
        ended = wait(&mut process.exited) => Some(ended),
        () = gone => None,
    };
    let status = match ended {
        Some(Ok(ended)) => {
            // What the process wrote is sent before its status.
            let _ = tokio::time::timeout(DRAIN, outputs).await;
            ExitStatus::of_code(ended.code)
        }
        Some(Err(error)) => ExitStatus::Failed(error.to_string()),
        None => ExitStatus::Failed("the client is gone".to_owned()),
    };
    abort.abort();
    feeder.abort();
    if let Some(resizer) = resizer {
        resizer.abort();
    }
    core.forget_exec(&process.id);
    exit.send(status).await;
}

fn duplicate(descriptor: &Descriptor) -> Option<Descriptor> {
    descriptor.get().try_clone().and_then(Descriptor::new).ok()
}

async fn resize_terminal(mut sizes: Resizes, terminal: OwnedFd) {
    while let Some(TerminalSize { width, height }) = sizes.next().await {
        if let Err(error) = sys::pty::resize(&terminal, width, height) {
            tracing::debug!(%error, "cannot set a terminal's size");
        }
    }
}

async fn copy_input(from: Option<impl AsyncRead + Unpin>, to: Option<impl AsyncWrite + Unpin>) {
    if let (Some(mut from), Some(mut to)) = (from, to) {
        // Either side may close first; dropping ours is the end of the process' input.
        let _ = tokio::io::copy(&mut from, &mut to).await;
    }
}

async fn copy_output(from: Option<Descriptor>, to: Option<impl AsyncWrite + Unpin>) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

/// Starts a command in a running container.
async fn begin(core: &Arc<Core>, container: &str, command: &[String], streams: Streams) -> Result<Process> {
    if command.is_empty() {
        return Err(Error::missing("cmd"));
    }
    let (container, sandbox) = running(core, container)?;
    let shim = sandbox.live_shim()?;
    let id = id::new();
    let exited = core.expect_exec(&sandbox.id, &id);
    let started = {
        let (core, shim, id, command) = (Arc::clone(core), Arc::clone(&shim), id.clone(), command.to_vec());
        blocking(move || launch(&core, &container, &sandbox, &shim, &Wanted { id, command, streams })).await
    };
    let async_end = |fd: Option<OwnedFd>| fd.map(Descriptor::new).transpose();
    let process = started.and_then(|(stdin, stdout, stderr)| {
        let ends = async_end(stdin).and_then(|stdin| Ok((stdin, async_end(stdout)?, async_end(stderr)?)));
        let (stdin, stdout, stderr) =
            ends.map_err(|error| Error::failed("open the command's streams", error))?;
        Ok(Process { id: id.clone(), shim, exited, stdin, stdout, stderr, has_terminal: streams.tty })
    });
    if process.is_err() {
        core.forget_exec(&id);
    }
    process
}

fn running(core: &Core, id: &str) -> Result<(Arc<Container>, Arc<Sandbox>)> {
    let container = core.table.container(id)?;
    if !container.is_running() {
        return Err(Error::WrongState(format!("the container {id} does not run")));
    }
    let sandbox = core.table.sandbox(&container.sandbox)?;
    Ok((container, sandbox))
}

struct Wanted {
    id: String,
    command: Vec<String>,
    streams: Streams,
}

/// Our ends of a process' standard input, output and error.
type Ends = (Option<OwnedFd>, Option<OwnedFd>, Option<OwnedFd>);

fn launch(
    core: &Core,
    container: &Container,
    sandbox: &Sandbox,
    shim: &ShimClient,
    wanted: &Wanted,
) -> Result<Ends> {
    let (record, of_sandbox) = (container.record(), sandbox.record());
    let (process, sources) = plan::plan_exec(&record, &of_sandbox, &wanted.command, wanted.streams.tty)?;
    let mut fds = Descriptors::new();
    for source in &sources {
        if let Source::Seccomp(profile) = source {
            fds.push(apply::open_seccomp(core, profile)?);
        }
    }
    let failed = |error: std::io::Error| Error::failed("start the command", error);
    let directories = core.cgroups.open_group(&container::cgroup_path(core, &of_sandbox, &record.id))?;
    let cgroup = fds.push_cgroup(&directories).map_err(failed)?;
    let mut plan = ExecPlan {
        id: wanted.id.clone(),
        container: record.id.clone(),
        process,
        cgroup,
        stdin: None,
        stdout: None,
        stderr: None,
        oci: None,
    };
    if let Some(handler) = core.handlers.find(&of_sandbox.handler)? {
        plan.oci = Some(handler.hand_over_exec(core, &of_sandbox, &plan.process, &mut fds)?);
    }
    let mut ends: Ends = (None, None, None);
    if !wanted.streams.tty {
        let owner = host_owner(&record, &of_sandbox);
        let pipe = |is_wanted: bool| if is_wanted { owned_pipe(owner).map(Some) } else { Ok(None) };
        if let Some((read, write)) = pipe(wanted.streams.stdin).map_err(failed)? {
            (plan.stdin, ends.0) = (Some(fds.push(read)), Some(write));
        }
        if let Some((read, write)) = pipe(wanted.streams.stdout).map_err(failed)? {
            (plan.stdout, ends.1) = (Some(fds.push(write)), Some(read));
        }
        if let Some((read, write)) = pipe(wanted.streams.stderr).map_err(failed)? {
            (plan.stderr, ends.2) = (Some(fds.push(write)), Some(read));
        }
    }
    let started = shim.exec(&plan, &fds);
    let (_, terminal) = started.map_err(|error| Error::failed(format!("run {:?}", wanted.command), error))?;
    if wanted.streams.tty {
        ends.1 = terminal;
    }
    Ok(ends)
}

/// The host IDs of a container's process.
fn host_owner(record: &crate::record::ContainerRecord, sandbox: &crate::record::SandboxRecord) -> (u32, u32) {
    let (uid, gid) = (record.user.uid, record.user.gid);
    match sandbox.ids {
        None => (uid, gid),
        Some(ids) => (ids.uids.host_id(uid).unwrap_or(uid), ids.gids.host_id(gid).unwrap_or(gid)),
    }
}

/// A pipe that its user may open again (`/dev/stdout`): that is decided by the pipe's owner (containerd#10598).
fn owned_pipe((uid, gid): (u32, u32)) -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    std::os::unix::fs::fchown(&write, Some(uid), Some(gid))?;
    Ok((read, write))
}

/// Serves a client's `attach` until the container ends or the client goes.
pub(super) async fn attach(core: Arc<Core>, container: String, streams: Streams, client: RemoteCommand) {
    let attached = match running(&core, &container) {
        Ok((container, sandbox)) => {
            open_attachment(&container, &sandbox, streams).await.map(|ends| (container, sandbox, ends))
        }
        Err(error) => Err(error),
    };
    let (container, sandbox, ends) = match attached {
        Ok(attached) => attached,
        Err(error) => return client.exit.send(ExitStatus::Failed(error.to_string())).await,
    };
    let RemoteCommand { stdin, stdout, stderr, resize, exit } = client;
    let as_stream = |fd: Option<OwnedFd>| fd.and_then(|fd| Descriptor::new(fd).ok());
    let (input, out, err) = (as_stream(ends.stdin), as_stream(ends.stdout), as_stream(ends.stderr));
    let resizer = tokio::spawn(resize_container(resize, sandbox, container.id.clone()));
    let feeder = tokio::spawn(copy_input(stdin, input));
    let outputs =
        tokio::spawn(async move { tokio::join!(copy_output(out, stdout), copy_output(err, stderr)) });
    let abort = outputs.abort_handle();
    tokio::select! {
        () = container.wait_ended() => {
            let _ = tokio::time::timeout(DRAIN, outputs).await;
        }
        () = exit.gone() => {}
    }
    for task in [abort, feeder.abort_handle(), resizer.abort_handle()] {
        task.abort();
    }
    exit.send(ExitStatus::Success).await;
}

async fn open_attachment(
    container: &Arc<Container>,
    sandbox: &Arc<Sandbox>,
    streams: Streams,
) -> Result<Attachment> {
    let (shim, id) = (sandbox.live_shim()?, container.id.clone());
    let wants =
        AttachWants { stdin: streams.stdin, stdout: streams.stdout, stderr: streams.stderr && !streams.tty };
    blocking(move || shim.attach(&id, wants).map_err(|error| Error::failed("attach to the container", error)))
        .await
}

async fn resize_container(mut sizes: Resizes, sandbox: Arc<Sandbox>, container: String) {
    while let Some(TerminalSize { width, height }) = sizes.next().await {
        let Some(shim) = sandbox.shim() else { return };
        let container = container.clone();
        let size = shim::protocol::TerminalSize { columns: width, rows: height };
        let resized =
            blocking(move || shim.resize(&container, size).map_err(|error| Error::failed("resize", error)));
        if let Err(error) = resized.await {
            tracing::debug!(%error, "cannot set a container terminal's size");
        }
    }
}
