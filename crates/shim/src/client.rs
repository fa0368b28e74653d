//! The daemon's side: start a shim, find it again, ask it. Every call blocks and can end ([`CALL_TIMEOUT`]).
//!
//! Each call has its own connection, so a call that failed half-way leaves nothing behind, and a [`ShimClient`] can be
//! used from several threads. If a call answers [`ClientError::Gone`], the shim is dead and so are its containers:
//! end the Pod's cgroup and read [`exit_records`].

use crate::protocol::{
    CgroupFds, ContainerPlan, Envelope, Event, ExecPlan, ExitRecord, Failure, FdIndex, LegacyCgroup, Reply,
    Request, SandboxPlan, ShimState, StartMessage, StartReply, Started, TerminalSize, VERSION,
};
use crate::wire;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use sys::process::{Child, SpawnPlan};

/// How long a call may take. The slowest one, a start, waits for the kernel only.
pub const CALL_TIMEOUT: Duration = Duration::from_mins(1);

/// Names in a shim's run directory.
const SOCKET: &str = "shim.sock";
const LOG: &str = "shim.log";
pub(crate) const EXITS: &str = "exits";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The shim is not there.
    #[error("the shim of {dir} is gone (its containers ended with it): {source}")]
    Gone {
        /// Its run directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The shim could not be started.
    #[error("cannot start the shim in {dir}: {source}")]
    Spawn {
        /// Its run directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The call broke off.
    #[error("the call to the shim of {dir} failed: {source}")]
    Call {
        /// Its run directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The shim refused or failed.
    #[error(transparent)]
    Refused(#[from] Failure),
}

/// Starts shims: holds the program and the mount namespace that all of them live in.
#[derive(Debug)]
pub struct Launcher {
    program: OwnedFd,
    mount_namespace: OwnedFd,
}

impl Launcher {
    /// Copies the program to a sealed memfd and makes the shims' mount namespace.
    ///
    /// # Errors
    /// What the kernel said; needs root.
    pub fn new(program: &[u8]) -> io::Result<Self> {
        Ok(Launcher {
            program: sys::process::sealed_program(c"kakoi-shim", program)?,
            mount_namespace: sys::mount::trimmed_namespace()?,
        })
    }

    /// Starts the shim of one sandbox; returns when its namespaces exist. `dir` is made (0700) if it does not exist;
    /// the shim is born in `cgroup`, never in the caller's.
    ///
    /// # Errors
    /// [`ClientError::Spawn`], or [`ClientError::Refused`] with the shim's own words.
    pub fn spawn(
        &self,
        dir: &Path,
        plan: &SandboxPlan,
        cgroup: &sys::cgroup::Directories,
    ) -> Result<ShimClient, ClientError> {
        let failed = |source| ClientError::Spawn { dir: dir.to_owned(), source };
        let (mut ours, theirs) = UnixStream::pair().map_err(failed)?;
        let place = Place::make(dir).map_err(failed)?;
        let child = self.start(&place, plan, cgroup, &theirs).map_err(failed)?;
        drop(theirs);
        match greet(&mut ours, plan) {
            Ok(StartReply::Ready { warnings }) => {
                Ok(ShimClient { dir: dir.to_owned(), pid: child.pid, pidfd: child.pidfd, warnings })
            }
            Ok(StartReply::Failed(failure)) => {
                let _ = child.wait();
                Err(failure.into())
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(failed(error))
            }
        }
    }

    /// Starts a process that only stays, in `cgroup`: see [`hold`](crate::hold). It outlives the caller.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn hold(&self, cgroup: &sys::cgroup::Directories) -> io::Result<Child> {
        let null = std::fs::File::open("/dev/null")?;
        let doors = cgroup.open_legacy_doors()?;
        sys::process::spawn(&SpawnPlan {
            program: self.program.as_fd(),
            args: vec![c"kakoi-shim".to_owned(), CString::new(crate::HOLD).unwrap_or_default()],
            env: Vec::new(),
            fds: vec![null.as_fd(), null.as_fd(), null.as_fd()],
            cgroup: cgroup.unified.as_ref().map(AsFd::as_fd),
            legacy_cgroups: doors.iter().map(AsFd::as_fd).collect(),
            mount_namespace: Some(self.mount_namespace.as_fd()),
        })
        .map_err(io::Error::other)
    }

    fn start(
        &self,
        place: &Place,
        plan: &SandboxPlan,
        cgroup: &sys::cgroup::Directories,
        control: &UnixStream,
    ) -> io::Result<Child> {
        let null = std::fs::File::open("/dev/null")?;
        let doors = cgroup.open_legacy_doors()?;
        let title = CString::new(plan.id.as_str()).unwrap_or_default();
        sys::process::spawn(&SpawnPlan {
            program: self.program.as_fd(),
            args: vec![c"kakoi-shim".to_owned(), title],
            env: Vec::new(),
            fds: vec![
                null.as_fd(),
                place.log.as_fd(),
                place.log.as_fd(),
                control.as_fd(),
                place.listener.as_fd(),
                place.dir.as_fd(),
            ],
            cgroup: cgroup.unified.as_ref().map(AsFd::as_fd),
            legacy_cgroups: doors.iter().map(AsFd::as_fd).collect(),
            mount_namespace: Some(self.mount_namespace.as_fd()),
        })
        .map_err(io::Error::other)
    }
}

fn greet(control: &mut UnixStream, plan: &SandboxPlan) -> io::Result<StartReply> {
    control.set_read_timeout(Some(CALL_TIMEOUT))?;
    wire::send(control, &StartMessage { version: VERSION, plan: plan.clone() }, &[])?;
    let frame = wire::receive(control, &mut wire::Reader::default())?;
    frame.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?.parse()
}

/// A shim's run directory, ready for it.
struct Place {
    dir: std::fs::File,
    log: std::fs::File,
    listener: UnixListener,
}

impl Place {
    fn make(dir: &Path) -> io::Result<Self> {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        let builder = |path: &Path| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        builder(dir)?;
        builder(&dir.join(EXITS))?;
        let log = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join(LOG))?;
        let dir = std::fs::File::open(dir)?;
        let socket = short_socket_path(&dir);
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&socket)?;
        Ok(Place { dir, log, listener })
    }
}

/// A socket's path may have 107 bytes only, a run directory more.
fn short_socket_path(dir: &std::fs::File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
}

/// Finds a running shim by its run directory.
///
/// # Errors
/// [`ClientError::Gone`] if nothing listens there.
pub fn connect(dir: &Path) -> Result<ShimClient, ClientError> {
    let gone = |source| ClientError::Gone { dir: dir.to_owned(), source };
    let state = match call(dir, Request::State, &Descriptors::new())? {
        (Reply::State(state), _) => *state,
        (other, _) => return Err(broken(dir, &format!("unexpected answer {other:?}"))),
    };
    let pidfd = sys::process::open_pidfd(state.pid).map_err(gone)?;
    let client = ShimClient { dir: dir.to_owned(), pid: state.pid, pidfd, warnings: state.warnings };
    client.state()?; // It still answers, so its PID has not been given to another process in between.
    Ok(client)
}

fn dial(dir: &Path) -> io::Result<UnixStream> {
    let dir = std::fs::File::open(dir)?;
    let stream = UnixStream::connect(short_socket_path(&dir))?;
    stream.set_read_timeout(Some(CALL_TIMEOUT))?;
    stream.set_write_timeout(Some(CALL_TIMEOUT))?;
    Ok(stream)
}

/// One request and its answer, on a connection of its own.
fn call(dir: &Path, request: Request, fds: &Descriptors) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
    let gone = |source| ClientError::Gone { dir: dir.to_owned(), source };
    let failed = |source| ClientError::Call { dir: dir.to_owned(), source };
    let mut stream = dial(dir).map_err(gone)?;
    wire::send(&mut stream, &Envelope { version: VERSION, request }, &fds.borrowed()).map_err(failed)?;
    let frame = wire::receive(&stream, &mut wire::Reader::default()).map_err(failed)?;
    let Some(frame) = frame else { return Err(gone(io::ErrorKind::UnexpectedEof.into())) };
    match frame.parse().map_err(failed)? {
        Reply::Failed(failure) => Err(failure.into()),
        reply => Ok((reply, frame.fds)),
    }
}

fn broken(dir: &Path, what: &str) -> ClientError {
    ClientError::Call { dir: dir.to_owned(), source: io::Error::other(what.to_owned()) }
}

/// The containers' ends that a shim recorded in its run directory; readable when the shim is gone.
///
/// # Errors
/// What the filesystem said. A record that can't be read is left out.
pub fn exit_records(dir: &Path) -> io::Result<Vec<ExitRecord>> {
    let entries = match std::fs::read_dir(dir.join(EXITS)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut records = Vec::new();
    for entry in entries {
        let text = std::fs::read(entry?.path()).unwrap_or_default();
        records.extend(serde_json::from_slice::<ExitRecord>(&text).ok());
    }
    Ok(records)
}

/// Descriptors to go with a plan. Each `push` answers the index to write into the plan.
#[derive(Debug, Default)]
pub struct Descriptors(Vec<OwnedFd>);

impl Descriptors {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn push(&mut self, fd: impl Into<OwnedFd>) -> FdIndex {
        let index = FdIndex(u16::try_from(self.0.len()).unwrap_or(u16::MAX));
        self.0.push(fd.into());
        index
    }

    /// Adds copies of a cgroup's directories.
    ///
    /// # Errors
    /// The kernel's answer (too many open files).
    pub fn push_cgroup(&mut self, directories: &sys::cgroup::Directories) -> io::Result<CgroupFds> {
        let mut fds = CgroupFds::default();
        if let Some(unified) = &directories.unified {
            fds.unified = Some(self.push(unified.try_clone()?));
        }
        for (controllers, directory) in &directories.legacy {
            let directory = self.push(directory.try_clone()?);
            fds.legacy.push(LegacyCgroup { controllers: controllers.clone(), directory });
        }
        Ok(fds)
    }

    /// The descriptor of that index.
    pub fn get(&self, index: FdIndex) -> Option<BorrowedFd<'_>> {
        self.0.get(usize::from(index.0)).map(AsFd::as_fd)
    }

    fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }
}

/// A client's ends of a container's standard streams.
#[derive(Debug, Default)]
pub struct Attachment {
    /// Write end of standard input; closing it ends the input if the container has `stdinOnce`.
    pub stdin: Option<OwnedFd>,
    /// Read end of standard output (everything, with a terminal).
    pub stdout: Option<OwnedFd>,
    /// Read end of standard error.
    pub stderr: Option<OwnedFd>,
}

/// A running shim.
#[derive(Debug)]
pub struct ShimClient {
    dir: PathBuf,
    pid: i32,
    pidfd: OwnedFd,
    warnings: Vec<String>,
}

impl ShimClient {
    /// Its PID in this process's PID namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its pidfd: readable once the shim is dead. Call [`ShimClient::reap`] then.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Collects a dead shim's status if it is this process's child.
    pub fn reap(&self) {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let _ = waitid(WaitId::PidFd(self.pidfd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }

    /// What the sandbox could not get in full (clamped limits …).
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The Pod's network namespace (the node's if it has none of its own).
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn netns(&self) -> Result<OwnedFd, ClientError> {
        let (_, fds) = self.call(Request::Namespaces, &Descriptors::new())?;
        fds.into_iter().next().ok_or_else(|| self.broken("no network namespace in the answer"))
    }

    /// The Pod's user namespace, if it has one of its own.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn userns(&self) -> Result<Option<OwnedFd>, ClientError> {
        let (_, fds) = self.call(Request::Namespaces, &Descriptors::new())?;
        Ok(fds.into_iter().nth(1))
    }

    /// Hands over a container's plan and descriptors; nothing runs yet.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn create_container(&self, plan: &ContainerPlan, fds: &Descriptors) -> Result<(), ClientError> {
        self.call(Request::Create(Box::new(plan.clone())), fds).map(drop)
    }

    /// Launches a container; returns when its program runs.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the launcher's whole sentence; see [`Failure`].
    pub fn start_container(&self, id: &str) -> Result<Started, ClientError> {
        let (reply, _) = self.call(Request::Start { container: id.to_owned() }, &Descriptors::new())?;
        self.started(reply)
    }

    /// Starts a further process; with a terminal the second value is its master, which the caller owns.
    ///
    /// # Errors
    /// See [`ShimClient::start_container`].
    pub fn exec(
        &self,
        plan: &ExecPlan,
        fds: &Descriptors,
    ) -> Result<(Started, Option<OwnedFd>), ClientError> {
        let (reply, fds) = self.call(Request::Exec(Box::new(plan.clone())), fds)?;
        Ok((self.started(reply)?, fds.into_iter().next()))
    }

    /// Sends a signal to a container's first process or to an exec.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn signal(&self, process: &str, signal: i32) -> Result<(), ClientError> {
        self.call_done(Request::Signal { process: process.to_owned(), signal, all: false })
    }

    /// Sends a signal to every process of a container.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn signal_all(&self, container: &str, signal: i32) -> Result<(), ClientError> {
        self.call_done(Request::Signal { process: container.to_owned(), signal, all: true })
    }

    /// Sets a container terminal's size. (An exec's terminal belongs to the caller: [`sys::pty::resize`].)
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn resize(&self, container: &str, size: TerminalSize) -> Result<(), ClientError> {
        self.call_done(Request::Resize { container: container.to_owned(), size })
    }

    /// Connects to a container's standard streams. A client that reads too slowly is cut off, never waited for.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn attach(&self, container: &str, wants: AttachWants) -> Result<Attachment, ClientError> {
        let AttachWants { stdin, stdout, stderr } = wants;
        let request = Request::Attach { container: container.to_owned(), stdin, stdout, stderr };
        let (_, fds) = self.call(request, &Descriptors::new())?;
        let mut fds = fds.into_iter();
        let mut next = |wanted: bool| if wanted { fds.next() } else { None };
        Ok(Attachment { stdin: next(stdin), stdout: next(stdout), stderr: next(stderr) })
    }

    /// Continues a container's log in another file, opened for appending.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn reopen_log(&self, container: &str, log: impl Into<OwnedFd>) -> Result<(), ClientError> {
        let mut fds = Descriptors::new();
        let log = fds.push(log);
        self.call(Request::ReopenLog { container: container.to_owned(), log }, &fds).map(drop)
    }

    /// Ends a container's launch that is under way; returns when nothing of it is left.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn abort(&self, container: &str) -> Result<(), ClientError> {
        self.call_done(Request::Abort { container: container.to_owned() })
    }

    /// Forgets a container that is not running, with its exit record.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn remove_container(&self, container: &str) -> Result<(), ClientError> {
        self.call_done(Request::Remove { container: container.to_owned() })
    }

    /// All that the shim knows.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn state(&self) -> Result<ShimState, ClientError> {
        match self.call(Request::State, &Descriptors::new())? {
            (Reply::State(state), _) => Ok(*state),
            (other, _) => Err(self.broken(&format!("unexpected answer {other:?}"))),
        }
    }

    /// Events from now on, after the exits that happened before.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn events(&self) -> Result<Events, ClientError> {
        let mut stream = dial(&self.dir).map_err(|e| self.gone(e))?;
        let envelope = Envelope { version: VERSION, request: Request::Subscribe };
        wire::send(&mut stream, &envelope, &[]).map_err(|e| self.gone(e))?;
        stream.set_read_timeout(None).map_err(|e| self.gone(e))?;
        Ok(Events { stream, reader: wire::Reader::default() })
    }

    /// Ends every container and the shim; returns when the shim has ended.
    ///
    /// # Errors
    /// See [`ClientError`]; a shim that is gone already is success.
    pub fn shutdown(&self) -> Result<(), ClientError> {
        match self.call(Request::Shutdown, &Descriptors::new()) {
            Ok(_) | Err(ClientError::Gone { .. }) => {}
            Err(error) => return Err(error),
        }
        let timeout = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };
        let mut polled = [rustix::event::PollFd::new(&self.pidfd, rustix::event::PollFlags::IN)];
        let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&timeout)));
        if ready != Ok(1) {
            return Err(self.broken("the shim did not end"));
        }
        self.reap();
        Ok(())
    }

    fn call_done(&self, request: Request) -> Result<(), ClientError> {
        self.call(request, &Descriptors::new()).map(drop)
    }

    fn call(&self, request: Request, fds: &Descriptors) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        call(&self.dir, request, fds)
    }

    fn started(&self, reply: Reply) -> Result<Started, ClientError> {
        match reply {
            Reply::Started(started) => Ok(started),
            other => Err(self.broken(&format!("unexpected answer {other:?}"))),
        }
    }

    fn gone(&self, source: io::Error) -> ClientError {
        ClientError::Gone { dir: self.dir.clone(), source }
    }

    fn broken(&self, what: &str) -> ClientError {
        broken(&self.dir, what)
    }
}

/// Which streams an attaching client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachWants {
    /// To write input.
    pub stdin: bool,
    /// To read output.
    pub stdout: bool,
    /// To read errors; ignored for a terminal.
    pub stderr: bool,
}

/// A stream of [`Event`]s.
#[derive(Debug)]
pub struct Events {
    stream: UnixStream,
    reader: wire::Reader,
}

impl Events {
    /// Waits for the next one; `None` when the shim has ended. Call [`Events::stop_handle`] first to be able to end the wait.
    ///
    /// # Errors
    /// What the socket said.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        match wire::receive(&self.stream, &mut self.reader) {
            Ok(Some(frame)) => frame.parse().map(Some),
            Ok(None) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A second handle to the connection: `shutdown` on it from another thread ends the wait in [`Events::next_event`].
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn stop_handle(&self) -> io::Result<UnixStream> {
        self.stream.try_clone()
    }
}
