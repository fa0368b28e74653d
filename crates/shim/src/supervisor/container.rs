//! What becomes of a container and of an exec: their states, their ends, and the record that stays.

use super::Supervisor;
use crate::launch::Fds;
use crate::log::nanoseconds;
use crate::protocol::{
    CgroupFds, ContainerPlan, ContainerState, Event, ExecState, Exit, ExitRecord, Phase, PidNamespace,
};
use crate::streams::Streams;
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::SystemTime;
use sys::cgroup::Directory;
use sys::process::Ended;

/// A container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) plan: ContainerPlan,
    /// Until it is started.
    pub(super) fds: Option<Fds>,
    pub(super) cgroup: Vec<Directory>,
    pub(super) streams: Option<Streams>,
    pub(super) state: State,
    pub(super) started_at: Option<u64>,
    /// OOM kills that the group had seen before.
    pub(super) oom_kills: u64,
}

/// Where it stands.
#[derive(Debug)]
pub(super) enum State {
    Created,
    Starting,
    /// Without a descriptor if it had ended before the shim could open one.
    Running {
        pid: i32,
        pidfd: Option<OwnedFd>,
    },
    Exited(Exit),
}

/// An exec.
#[derive(Debug)]
pub(super) struct Exec {
    pub(super) container: String,
    pub(super) pid: Option<i32>,
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) exit: Option<Exit>,
}

impl Container {
    pub(super) fn pid(&self) -> Option<i32> {
        if let State::Running { pid, .. } = self.state { Some(pid) } else { None }
    }

    pub(super) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        if let State::Running { pidfd, .. } = &self.state { pidfd.as_ref().map(AsFd::as_fd) } else { None }
    }

    pub(super) fn exit(&self) -> Option<&Exit> {
        if let State::Exited(exit) = &self.state { Some(exit) } else { None }
    }

    pub(super) fn describe(&self) -> ContainerState {
        let phase = match self.state {
            State::Created => Phase::Created,
            State::Starting => Phase::Starting,
            State::Running { .. } => Phase::Running,
            State::Exited(_) => Phase::Exited,
        };
        ContainerState {
            id: self.plan.id.clone(),
            phase,
            pid: self.pid(),
            started_at: self.started_at,
            exit: self.exit().cloned(),
        }
    }
}

impl Exec {
    pub(super) fn describe(&self, id: &str) -> ExecState {
        ExecState {
            id: id.to_owned(),
            container: self.container.clone(),
            pid: self.pid,
            exit: self.exit.clone(),
        }
    }
}

/// Copies of a plan's cgroup directories.
pub(super) fn open_cgroup(plan: &CgroupFds, fds: &Fds) -> Result<Vec<Directory>, crate::protocol::Failure> {
    let legacy = plan.legacy.iter().map(|group| {
        fds.copy(group.directory).map(|directory| Directory::Legacy(group.controllers.clone(), directory))
    });
    let unified = plan.unified.map(|index| fds.copy(index).map(Directory::Unified));
    unified.into_iter().chain(legacy).collect()
}

/// The record of an end from a status.
pub(super) fn exit_of(ended: Ended, oom_killed: bool, message: String) -> Exit {
    let finished_at = nanoseconds(SystemTime::now());
    Exit { code: ended.code(), signal: ended.signal(), oom_killed, finished_at, message }
}

impl Supervisor {
    /// A container's first process has ended: nothing of it may live on, and its log is completed before anyone hears of it.
    pub(super) fn container_ended(&mut self, id: &str, ended: Ended) {
        let shares_pids = self.sandbox.plan.pid != PidNamespace::Container;
        let Some(container) = self.containers.get_mut(id) else { return };
        if shares_pids || container.plan.target_container.is_some() {
            // With a PID namespace of its own the kernel has already ended everything else in it.
            let _ = sys::cgroup::signal_all(&container.cgroup, libc::SIGKILL);
        }
        if let Some(streams) = &mut container.streams {
            streams.finish();
        }
        let oom_killed = sys::cgroup::oom_kills(&container.cgroup).unwrap_or(0) > container.oom_kills;
        self.record_exit(id, exit_of(ended, oom_killed, String::new()));
    }

    pub(super) fn record_exit(&mut self, id: &str, exit: Exit) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let record =
            ExitRecord { container: id.to_owned(), started_at: container.started_at, exit: exit.clone() };
        container.state = State::Exited(exit.clone());
        container.fds = None;
        if let Err(error) = write_record(&self.dir, &record) {
            crate::complain(&format!("cannot write the exit record of container {id}: {error}"));
        }
        self.broadcast(&Event::ContainerExited { container: id.to_owned(), exit });
    }

    pub(super) fn exec_ended(&mut self, id: &str, ended: Ended) {
        let Some(exec) = self.execs.get_mut(id) else { return };
        let exit = exit_of(ended, false, String::new());
        (exec.pid, exec.pidfd, exec.exit) = (None, None, Some(exit.clone()));
        let event = Event::ExecExited { exec: id.to_owned(), container: exec.container.clone(), exit };
        let is_heard = self.clients.values().any(|client| client.is_subscribed);
        self.broadcast(&event);
        if is_heard {
            self.execs.remove(id);
        }
    }

    pub(super) fn remove_record(&self, id: &str) {
        let _ = unlinkat(&self.dir, record_name(id), AtFlags::empty());
    }
}

fn record_name(id: &str) -> String {
    format!("{}/{id}.json", crate::client::EXITS)
}

/// Whole or not at all. The run directory is memory: what a power cut takes, it takes with the container.
fn write_record(dir: &OwnedFd, record: &ExitRecord) -> io::Result<()> {
    let name = record_name(&record.container);
    let temporary = format!("{name}.new");
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(openat(dir, &temporary, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(&serde_json::to_vec(record).map_err(io::Error::other)?)?;
    Ok(renameat(dir, &temporary, dir, &name)?)
}
