//! The shim's one thread: waits for whatever happens next and lets nothing wait for anything else.
//!
//! **Invariant**: no call in this loop blocks on a container, a client or the daemon. What takes longer (a launch, a slow
//! reader, input that is not read) is state, continued when its descriptor is ready.

mod container;
mod launching;
mod requests;

use crate::protocol::{Event, Failure, SandboxPlan, StartMessage, StartReply, VERSION};
use crate::report::{failure, setup};
use crate::sandbox::{self, Sandbox};
use crate::streams::Port;
use crate::wire::{self, Outgoing, Reader};
use container::{Container, Exec};
use launching::Launch;
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use sys::process::Ended;

/// A connection of the daemon.
#[derive(Debug)]
struct Client {
    socket: UnixStream,
    reader: Reader,
    outgoing: VecDeque<Outgoing>,
    is_subscribed: bool,
    is_gone: bool,
}

/// What the shim knows.
#[derive(Debug)]
pub(crate) struct Supervisor {
    sandbox: Sandbox,
    warnings: Vec<String>,
    dir: OwnedFd,
    listener: UnixListener,
    signals: OwnedFd,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    containers: BTreeMap<String, Container>,
    /// The containers' ends of their pipes, between create and start.
    pending_stdio: BTreeMap<String, crate::launch::Stdio>,
    execs: BTreeMap<String, Exec>,
    launches: Vec<Launch>,
    /// Children that ended before their launch told their PID.
    unclaimed: BTreeMap<i32, Ended>,
    /// The client that asked for the end.
    ending: Option<u64>,
}

/// Who has something to do.
#[derive(Clone, Debug)]
enum Source {
    Listener,
    Signals,
    Client(u64),
    Launch(usize),
    Streams(String, Port),
}

/// The program: descriptors 3, 4 and 5 are the starter's socket, the listening socket and the run directory.
pub fn run() -> i32 {
    // SAFETY: the starter passes exactly these and nothing in this process owns them yet.
    let mut starter = unsafe { UnixStream::from_raw_fd(3) };
    // SAFETY: as above.
    let listener = unsafe { UnixListener::from_raw_fd(4) };
    // SAFETY: as above.
    let dir = unsafe { OwnedFd::from_raw_fd(5) };
    forget_the_starter();
    match begin(&mut starter, listener, dir) {
        Ok(mut supervisor) => {
            let ready = StartReply::Ready { warnings: supervisor.warnings.clone() };
            if wire::send(&mut starter, &ready, &[]).is_err() {
                return 1; // Nobody knows of this sandbox.
            }
            drop(starter);
            supervisor.serve()
        }
        Err(failure) => {
            let _ = wire::send(&mut starter, &StartReply::Failed(failure), &[]);
            1
        }
    }
}

/// Nothing of the starter but the three descriptors is kept: no other descriptor, no file mode mask.
fn forget_the_starter() {
    // SAFETY: nothing in this process uses a descriptor above 5 yet.
    unsafe { libc::syscall(libc::SYS_close_range, 6_u32, u32::MAX, 0) };
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let _ = rustix::thread::set_name(c"kakoi-shim");
}

/// Everything before the daemon is told that the sandbox exists.
fn begin(starter: &mut UnixStream, listener: UnixListener, dir: OwnedFd) -> Result<Supervisor, Failure> {
    for inherited in [starter.as_fd(), listener.as_fd(), dir.as_fd()] {
        rustix::io::fcntl_setfd(inherited, rustix::io::FdFlags::CLOEXEC)
            .map_err(|e| setup("set close-on-exec")(e.into()))?;
    }
    let signals = catch_signals().map_err(setup("catch signals"))?;
    let plan = read_plan(starter)?;
    let mut warnings = Vec::new();
    // The shim is the last process of the Pod that should go.
    warnings.extend(sys::limit::set_oom_score_adj(-1000).map_err(setup("set the shim's oom_score_adj"))?);
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| setup("become subreaper")(e.into()))?;
    sys::process::unshare(sandbox::NEWNS).map_err(setup("make the shim's mount namespace"))?;
    let mut sandbox = sandbox::make(plan)?;
    sandbox::mount_shared_memory(&sandbox)?;
    crate::init::start(&mut sandbox)?;
    listener.set_nonblocking(true).map_err(setup("listen"))?;
    Ok(Supervisor {
        sandbox,
        warnings,
        dir,
        listener,
        signals,
        clients: BTreeMap::new(),
        next_client: 0,
        containers: BTreeMap::new(),
        pending_stdio: BTreeMap::new(),
        execs: BTreeMap::new(),
        launches: Vec::new(),
        unclaimed: BTreeMap::new(),
        ending: None,
    })
}

fn read_plan(starter: &UnixStream) -> Result<SandboxPlan, Failure> {
    let frame = wire::receive(starter, &mut Reader::default()).map_err(setup("read the plan"))?;
    let frame = frame.ok_or_else(|| failure("the starter closed before it sent a plan"))?;
    let StartMessage { version, plan } = frame.parse().map_err(setup("read the plan"))?;
    if version > VERSION {
        return Err(failure(format!("this shim speaks protocol version {VERSION}, not {version}")));
    }
    Ok(plan)
}

/// SIGCHLD and SIGTERM become readable; SIGPIPE becomes EPIPE.
fn catch_signals() -> io::Result<OwnedFd> {
    // SAFETY: SIG_IGN for SIGPIPE is always valid.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    // SAFETY: all-zero bytes are a valid sigset_t.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    for signal in [libc::SIGCHLD, libc::SIGTERM] {
        // SAFETY: a valid set and a valid signal.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    // SAFETY: a valid set; the old one is not wanted.
    if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a valid set; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Supervisor {
    fn serve(&mut self) -> i32 {
        loop {
            for (source, ready) in self.wait() {
                self.step(source, ready);
            }
            self.clean_up();
            if self.ending.is_some() && self.is_idle() {
                return self.say_goodbye();
            }
        }
    }

    /// Waits until something is ready.
    fn wait(&self) -> Vec<(Source, PollFlags)> {
        let interests = self.interests();
        let mut polled: Vec<PollFd<'_>> =
            interests.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        if poll(&mut polled, None).is_err() {
            return Vec::new(); // EINTR
        }
        let ready = polled.iter().map(PollFd::revents).zip(interests.iter());
        ready
            .filter(|(flags, _)| !flags.is_empty())
            .map(|(flags, (source, ..))| (source.clone(), flags))
            .collect()
    }

    fn interests(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut list = vec![
            (Source::Listener, self.listener.as_fd(), PollFlags::IN),
            (Source::Signals, self.signals.as_fd(), PollFlags::IN),
        ];
        for (id, client) in &self.clients {
            let flags =
                if client.outgoing.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            list.push((Source::Client(*id), client.socket.as_fd(), flags));
        }
        for (index, launch) in self.launches.iter().enumerate() {
            list.push((Source::Launch(index), launch.reports.as_fd(), PollFlags::IN));
        }
        for (id, container) in &self.containers {
            let ports = container.streams.iter().flat_map(crate::streams::Streams::interests);
            list.extend(ports.map(|(port, fd, flags)| (Source::Streams(id.clone(), port), fd, flags)));
        }
        list
    }

    fn step(&mut self, source: Source, ready: PollFlags) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.on_signal(),
            Source::Client(id) => self.on_client(id, ready),
            Source::Launch(index) => self.on_report(index),
            Source::Streams(id, port) => {
                let streams = self.containers.get_mut(&id).and_then(|container| container.streams.as_mut());
                if let Some(streams) = streams {
                    streams.handle(port, ready);
                }
            }
        }
    }

    /// Drops what is over, after the step in which indices were valid.
    fn clean_up(&mut self) {
        self.clients.retain(|_, client| !client.is_gone);
        self.launches.retain(|launch| !launch.is_over);
        if self.launches.is_empty() {
            self.unclaimed.clear();
        }
        for container in self.containers.values_mut() {
            if let Some(streams) = &mut container.streams {
                streams.tidy();
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if socket.set_nonblocking(true).is_err() {
                continue;
            }
            let client = Client {
                socket,
                reader: Reader::default(),
                outgoing: VecDeque::new(),
                is_subscribed: false,
                is_gone: false,
            };
            self.clients.insert(self.next_client, client);
            self.next_client += 1;
        }
    }

    fn on_signal(&mut self) {
        let mut info = [0; 128 * 8];
        while let Ok(read @ 1..) = rustix::io::read(&self.signals, &mut info) {
            let numbers =
                info.get(..read).unwrap_or_default().chunks(128).filter_map(|one| one.first_chunk::<4>());
            if numbers.into_iter().any(|number| i32::from_ne_bytes(*number) == libc::SIGTERM) {
                self.begin_end(u64::MAX);
            }
        }
        self.reap();
    }

    /// Collects every child that has ended.
    fn reap(&mut self) {
        loop {
            let mut status = 0;
            // SAFETY: `status` is a valid place for the answer.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                return;
            }
            let ended = if libc::WIFSIGNALED(status) {
                Ended::Signaled(libc::WTERMSIG(status))
            } else {
                Ended::Exited(libc::WEXITSTATUS(status))
            };
            self.on_ended(pid, ended);
        }
    }

    fn on_ended(&mut self, pid: i32, ended: Ended) {
        let container = self.containers.iter().find(|(_, container)| container.pid() == Some(pid));
        if let Some(id) = container.map(|(id, _)| id.clone()) {
            return self.container_ended(&id, ended);
        }
        let exec = self.execs.iter().find(|(_, exec)| exec.pid == Some(pid)).map(|(id, _)| id.clone());
        if let Some(id) = exec {
            return self.exec_ended(&id, ended);
        }
        if let Some(launch) = self.launches.iter_mut().find(|launch| launch.pid == Some(pid)) {
            launch.ended = Some(ended);
        } else if !self.launches.is_empty() {
            self.unclaimed.insert(pid, ended);
        }
    }

    fn broadcast(&mut self, event: &Event) {
        for client in self.clients.values_mut().filter(|client| client.is_subscribed) {
            client.queue(event, Vec::new());
        }
    }

    fn is_idle(&self) -> bool {
        self.launches.is_empty()
            && self.containers.values().all(|container| container.pid().is_none())
            && self.execs.values().all(|exec| exec.pid.is_none())
    }

    fn say_goodbye(&mut self) -> i32 {
        if let Some((init, _)) = self.sandbox.init.take() {
            let _ = init.kill();
            let _ = init.wait();
        }
        if let Some(client) = self.ending.and_then(|id| self.clients.get_mut(&id)) {
            let _ = client.socket.set_nonblocking(false);
            let _ = client.socket.set_write_timeout(Some(std::time::Duration::from_secs(5)));
            let _ = wire::send(&mut client.socket, &crate::protocol::Reply::Done, &[]);
        }
        0
    }
}

impl Client {
    fn queue(&mut self, message: &impl serde::Serialize, fds: Vec<OwnedFd>) {
        match Outgoing::new(message, fds) {
            Ok(outgoing) => self.outgoing.push_back(outgoing),
            Err(_) => self.is_gone = true,
        }
        self.flush();
    }

    fn flush(&mut self) {
        while let Some(outgoing) = self.outgoing.front_mut() {
            match outgoing.write(&self.socket) {
                Ok(true) => drop(self.outgoing.pop_front()),
                Ok(false) => return,
                Err(_) => {
                    self.is_gone = true;
                    return;
                }
            }
        }
    }
}
