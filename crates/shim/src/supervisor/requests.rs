//! The daemon's requests.

use super::container::{Container, Exec, State, open_cgroup};
use super::launching::{Launch, What};
use super::{Client, Supervisor};
use crate::launch::{self, Fds, Job};
use crate::log::{Log, file_from};
use crate::protocol::{
    ContainerPlan, Envelope, Event, ExecPlan, Failure, FailureKind, Reply, Request, ShimState, TerminalSize,
    VERSION,
};
use crate::report::setup;
use crate::streams::{Streams, give};
use rustix::event::PollFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// An answer: at once with descriptors, or later by the launch.
type Answer = Result<Option<(Reply, Vec<OwnedFd>)>, Failure>;

/// What is answered when it is done.
const DONE: Option<(Reply, Vec<OwnedFd>)> = Some((Reply::Done, Vec::new()));

fn refuse(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure { kind, message: message.into() }
}

impl Supervisor {
    pub(super) fn on_client(&mut self, id: u64, ready: PollFlags) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if ready.contains(PollFlags::OUT) {
            client.flush();
        }
        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.read_client(id);
        }
    }

    fn read_client(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        match client.reader.fill(&client.socket) {
            Ok(true) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Ok(false) | Err(_) => {
                client.is_gone = true;
                return;
            }
        }
        while let Some(frame) = self.clients.get_mut(&id).and_then(Client::next_frame) {
            let answer = match frame.parse::<Envelope>() {
                Ok(Envelope { request, .. }) => self.answer(id, request, Fds(frame.fds)),
                Err(error) => Err(refuse(
                    FailureKind::Invalid,
                    format!(
                        "this shim (protocol version {VERSION}) does not understand the request: {error}"
                    ),
                )),
            };
            match answer {
                Ok(Some((reply, fds))) => self.reply(id, &reply, fds),
                Ok(None) => {}
                Err(failure) => self.reply(id, &Reply::Failed(failure), Vec::new()),
            }
        }
    }

    pub(super) fn reply(&mut self, id: u64, reply: &Reply, fds: Vec<OwnedFd>) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.queue(reply, fds);
        }
    }

    fn answer(&mut self, client: u64, request: Request, fds: Fds) -> Answer {
        match request {
            Request::State => Ok(Some((Reply::State(Box::new(self.describe())), Vec::new()))),
            Request::Namespaces => self.namespaces(),
            Request::Create(plan) => self.create(*plan, fds),
            Request::Start { container } => self.start(client, &container),
            Request::Exec(plan) => self.exec(client, *plan, &fds),
            Request::Signal { process, signal, all } => self.signal(&process, signal, all),
            Request::Resize { container, size } => self.resize(&container, size),
            Request::Attach { container, stdin, stdout, stderr } => {
                let streams = self.streams(&container)?;
                let theirs =
                    streams.attach([stdin, stdout, stderr]).map_err(setup("make pipes for the client"))?;
                Ok(Some((Reply::Descriptors, theirs)))
            }
            Request::ReopenLog { container, log } => {
                let file = file_from(fds.copy(log)?).map_err(setup("use the new log file"))?;
                self.streams(&container)?.log.reopen(file);
                Ok(DONE)
            }
            Request::Abort { container } => Ok(self.abort(client, &container)),
            Request::Remove { container } => self.remove(&container),
            Request::Subscribe => {
                self.subscribe(client);
                Ok(None)
            }
            Request::Shutdown => {
                self.begin_end(client);
                Ok(None)
            }
        }
    }

    fn describe(&self) -> ShimState {
        ShimState {
            version: VERSION,
            sandbox: self.sandbox.plan.id.clone(),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            init_pid: self.sandbox.init.as_ref().map(|(init, _)| init.pid),
            plan: self.sandbox.plan.clone(),
            warnings: self.warnings.clone(),
            containers: self.containers.values().map(Container::describe).collect(),
            execs: self.execs.iter().map(|(id, exec)| exec.describe(id)).collect(),
        }
    }

    fn namespaces(&self) -> Answer {
        let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(setup("copy a namespace descriptor"));
        let network = match &self.sandbox.network {
            Some(network) => copy(network.as_fd())?,
            None => std::fs::File::open("/proc/self/ns/net")
                .map_err(setup("open the node's network namespace"))?
                .into(),
        };
        let mut fds = vec![network];
        if let Some(user) = &self.sandbox.user {
            fds.push(copy(user.as_fd())?);
        }
        Ok(Some((Reply::Descriptors, fds)))
    }

    fn create(&mut self, plan: ContainerPlan, fds: Fds) -> Answer {
        if self.ending.is_some() || self.containers.contains_key(&plan.id) {
            return Err(refuse(
                FailureKind::WrongState,
                format!("container {} exists already, or the shim ends", plan.id),
            ));
        }
        if plan.id.is_empty() || plan.id.contains(['/', '\0']) || plan.id.starts_with('.') {
            return Err(refuse(
                FailureKind::Invalid,
                format!("{:?} is not usable as a container ID", plan.id),
            ));
        }
        self.check_ids(&plan.process)?;
        let cgroup = open_cgroup(&plan.cgroup, &fds)?;
        let log = plan.log.map(|index| fds.copy(index)).transpose()?;
        let log = Log::new(log.map(file_from).transpose().map_err(setup("use the log file"))?);
        let container = Container {
            streams: None,
            state: State::Created,
            started_at: None,
            oom_kills: sys::cgroup::oom_kills(&cgroup).unwrap_or(0),
            cgroup,
            fds: Some(fds),
            plan,
        };
        let id = container.plan.id.clone();
        let (mut streams, stdio) = self.make_streams(&container, log)?;
        if container.plan.oci.is_some() {
            streams.keep_early();
        }
        self.containers.insert(id.clone(), Container { streams: Some(streams), ..container });
        self.pending_stdio.insert(id, stdio);
        Ok(DONE)
    }

    /// Refused before anything is made, and by number: IDs outside the map.
    fn check_ids(&self, process: &crate::protocol::ProcessPlan) -> Result<(), Failure> {
        self.sandbox.host_uid(process.uid)?;
        self.sandbox.host_gid(process.gid)?;
        process.groups.iter().try_for_each(|group| self.sandbox.host_gid(*group).map(drop))
    }

    fn make_streams(&self, container: &Container, log: Log) -> Result<(Streams, launch::Stdio), Failure> {
        let process = &container.plan.process;
        let owner = (self.sandbox.host_uid(process.uid)?, self.sandbox.host_gid(process.gid)?);
        Streams::new(log, container.plan.stdin, process.terminal, owner)
            .map_err(setup("make the standard streams"))
    }

    fn start(&mut self, client: u64, id: &str) -> Answer {
        let stdio = self.pending_stdio.remove(id).unwrap_or_default();
        let container = self.container(id)?;
        let State::Created = container.state else {
            return Err(refuse(FailureKind::WrongState, format!("container {id} has been started already")));
        };
        let pid_target = match &container.plan.target_container {
            Some(target) => Some(self.pid_namespace_of(target)?),
            None => None,
        };
        let Some(fds) = &container.fds else {
            return Err(refuse(FailureKind::WrongState, format!("container {id} has no descriptors")));
        };
        let pid_target = pid_target.as_ref().map(AsFd::as_fd);
        let job = Job { sandbox: &self.sandbox, plan: &container.plan, fds, stdio, pid_target };
        let begun = launch::start_container(&job);
        drop(job);
        let what = What::Container(id.to_owned());
        let begun = begun.map_err(|mut failure| {
            self.has_failed(&what, &mut failure);
            failure
        })?;
        self.launches.push(Launch::new(what, client, begun));
        if let Some(container) = self.containers.get_mut(id) {
            container.state = State::Starting;
        }
        Ok(None)
    }

    fn exec(&mut self, client: u64, mut plan: ExecPlan, fds: &Fds) -> Answer {
        if self.execs.contains_key(&plan.id) {
            return Err(refuse(FailureKind::WrongState, format!("exec {} exists already", plan.id)));
        }
        self.check_ids(&plan.process)?;
        let owner = (self.sandbox.host_uid(plan.process.uid)?, self.sandbox.host_gid(plan.process.gid)?);
        for index in [plan.stdin, plan.stdout, plan.stderr].into_iter().flatten() {
            // So that the process can open /dev/stdout again; what is no pipe of ours may refuse.
            let _ = give(&fds.copy(index)?, owner);
        }
        let inherited = self.container(&plan.container)?.plan.process.oom_score_adj;
        plan.process.oom_score_adj = plan.process.oom_score_adj.or(inherited);
        let target = self.running(&plan.container)?;
        let begun = launch::start_exec(&self.sandbox, &plan, fds, target)?;
        self.launches.push(Launch::new(What::Exec(plan.id.clone()), client, begun));
        let exec = Exec { container: plan.container, pid: None, pidfd: None, exit: None };
        self.execs.insert(plan.id, exec);
        Ok(None)
    }

    fn signal(&self, process: &str, signal: i32, all: bool) -> Answer {
        if let Some(exec) = self.execs.get(process) {
            return match &exec.pidfd {
                Some(pidfd) => send(pidfd.as_fd(), signal),
                None if exec.exit.is_some() => Ok(DONE),
                None => Err(not_running(process)),
            };
        }
        let container = self.container(process)?;
        if all {
            sys::cgroup::signal_all(&container.cgroup, signal)
                .map_err(setup("signal the container's processes"))?;
            return Ok(DONE);
        }
        match container.pidfd() {
            Some(pidfd) => send(pidfd, signal),
            None => Err(not_running(process)),
        }
    }

    fn resize(&self, id: &str, size: TerminalSize) -> Answer {
        let terminal = self.container(id)?.streams.as_ref().and_then(Streams::terminal);
        let terminal = terminal
            .ok_or_else(|| refuse(FailureKind::WrongState, format!("container {id} has no terminal")))?;
        sys::pty::resize(terminal, size.columns, size.rows).map_err(setup("set the terminal's size"))?;
        Ok(DONE)
    }

    /// Answered by the launch's end, if there is a launch.
    fn abort(&mut self, client: u64, id: &str) -> Option<(Reply, Vec<OwnedFd>)> {
        let Some(launch) = self.launches.iter_mut().find(|launch| launch.is_of(id)) else { return DONE };
        launch.kill();
        launch.aborters.push(client);
        None
    }

    fn remove(&mut self, id: &str) -> Answer {
        match self.container(id)?.state {
            State::Starting | State::Running { .. } => {
                Err(refuse(FailureKind::WrongState, format!("container {id} is running; stop it first")))
            }
            State::Created | State::Exited(_) => {
                self.containers.remove(id);
                self.pending_stdio.remove(id);
                self.remove_record(id);
                Ok(DONE)
            }
        }
    }

    /// Exits from before come first, so that nobody misses one between asking for the state and listening.
    fn subscribe(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.is_subscribed = true;
        for (container, exit) in
            self.containers.iter().filter_map(|(id, one)| one.exit().map(|exit| (id, exit)))
        {
            client.queue(
                &Event::ContainerExited { container: container.clone(), exit: exit.clone() },
                Vec::new(),
            );
        }
        for (exec, one) in &self.execs {
            if let Some(exit) = &one.exit {
                let (exec, container, exit) = (exec.clone(), one.container.clone(), exit.clone());
                client.queue(&Event::ExecExited { exec, container, exit }, Vec::new());
            }
        }
        self.execs.retain(|_, exec| exec.exit.is_none());
    }

    /// Ends everything; the client hears when it is done.
    pub(super) fn begin_end(&mut self, client: u64) {
        self.ending = Some(client);
        for container in self.containers.values() {
            if matches!(container.state, State::Running { .. } | State::Starting) {
                let _ = sys::cgroup::signal_all(&container.cgroup, libc::SIGKILL);
            }
            if let Some(pidfd) = container.pidfd() {
                let _ = sys::process::send_signal(pidfd, libc::SIGKILL);
            }
        }
        // The launcher of an OCI runtime is in no container's group.
        self.launches.iter().for_each(Launch::kill);
        for pidfd in self.execs.values().filter_map(|exec| exec.pidfd.as_ref()) {
            let _ = sys::process::send_signal(pidfd, libc::SIGKILL);
        }
    }

    fn container(&self, id: &str) -> Result<&Container, Failure> {
        self.containers
            .get(id)
            .ok_or_else(|| refuse(FailureKind::NotFound, format!("no container {id} in this sandbox")))
    }

    fn running(&self, id: &str) -> Result<BorrowedFd<'_>, Failure> {
        self.container(id)?.pidfd().ok_or_else(|| not_running(id))
    }

    fn pid_namespace_of(&self, id: &str) -> Result<OwnedFd, Failure> {
        let pid = self.container(id)?.pid().ok_or_else(|| not_running(id))?;
        let namespace = std::fs::File::open(format!("/proc/{pid}/ns/pid"));
        namespace.map(OwnedFd::from).map_err(setup(format!("open the PID namespace of container {id}")))
    }

    fn streams(&mut self, id: &str) -> Result<&mut Streams, Failure> {
        let streams = self.containers.get_mut(id).and_then(|container| container.streams.as_mut());
        streams.ok_or_else(|| refuse(FailureKind::NotFound, format!("no container {id} in this sandbox")))
    }
}

fn send(pidfd: BorrowedFd<'_>, signal: i32) -> Answer {
    match sys::process::send_signal(pidfd, signal) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
            Err(setup(format!("send signal {signal}"))(error))
        }
        _ => Ok(DONE), // It ended by itself meanwhile.
    }
}

fn not_running(id: &str) -> Failure {
    refuse(FailureKind::WrongState, format!("container {id} is not running"))
}

impl Client {
    fn next_frame(&mut self) -> Option<crate::wire::Frame> {
        let next = self.reader.next();
        self.is_gone |= next.is_err();
        next.unwrap_or(None)
    }
}
