//! A launch under way, followed by its reports until `execve` or a failure.

use super::Supervisor;
use super::container::{State, exit_of};
use crate::launch::Begun;
use crate::log::nanoseconds;
use crate::protocol::{Failure, FailureKind, Reply, Started};
use crate::report::{self, Report, failure};
use std::os::fd::OwnedFd;
use std::time::SystemTime;
use sys::process::{Child, Ended};

/// What is launched.
#[derive(Clone, Debug)]
pub(super) enum What {
    Container(String),
    Exec(String),
}

/// A launch.
#[derive(Debug)]
pub(super) struct Launch {
    what: What,
    /// Who waits for the answer.
    client: u64,
    pub(super) reports: OwnedFd,
    launcher: Child,
    /// An OCI runtime that the launcher waits for, or waited for.
    runtime: Option<i32>,
    /// Who waits for its end besides the one who asked for the launch.
    pub(super) aborters: Vec<u64>,
    pub(super) pid: Option<i32>,
    pub(super) ended: Option<Ended>,
    warnings: Vec<String>,
    terminal: Option<OwnedFd>,
    is_executing: bool,
    failure: Option<Failure>,
    pub(super) is_over: bool,
}

impl Launch {
    pub(super) fn new(what: What, client: u64, begun: Begun) -> Self {
        Launch {
            what,
            client,
            reports: begun.reports,
            launcher: begun.launcher,
            runtime: None,
            aborters: Vec::new(),
            pid: None,
            ended: None,
            warnings: Vec::new(),
            terminal: None,
            is_executing: false,
            failure: None,
            is_over: false,
        }
    }

    /// Whether this is the launch of a container.
    pub(super) fn is_of(&self, container: &str) -> bool {
        matches!(&self.what, What::Container(id) if id == container)
    }

    /// Ends it; what it has started is ended when the last of its reports has come.
    pub(super) fn kill(&self) {
        let _ = self.launcher.kill();
    }

    /// Sees to it that a launch that failed does nothing more: an OCI runtime may still run when its launcher was killed.
    /// Both have their SIGKILL when they are waited for, so the waits are the kernel's alone.
    fn end(&mut self) {
        self.kill();
        let _ = self.launcher.wait();
        let Some(pid) = self.runtime.take().and_then(rustix::process::Pid::from_raw) else { return };
        // Without its launcher it is a child of this process, or the launcher has seen its end; then the number may be
        // another process's already.
        let options = rustix::process::WaitIdOptions::EXITED;
        let look = options | rustix::process::WaitIdOptions::NOHANG | rustix::process::WaitIdOptions::NOWAIT;
        let child = rustix::process::WaitId::Pid(pid);
        if rustix::process::waitid(child, look).is_ok() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let child = rustix::process::WaitId::Pid(pid);
            let _ = rustix::io::retry_on_intr(|| rustix::process::waitid(child.clone(), options));
        }
    }
}

impl Supervisor {
    /// A report has come, or all reporters are gone.
    pub(super) fn on_report(&mut self, index: usize) {
        let Some(launch) = self.launches.get_mut(index) else { return };
        match report::receive(&launch.reports) {
            Ok(Some((Report::Pid(pid), _))) => {
                launch.pid = Some(pid);
                launch.ended = self.unclaimed.remove(&pid);
            }
            Ok(Some((Report::Runtime(pid), _))) => launch.runtime = Some(pid),
            Ok(Some((Report::Warning(warning), _))) => launch.warnings.push(warning),
            Ok(Some((Report::Terminal, fds))) => launch.terminal = fds.into_iter().next(),
            Ok(Some((Report::Executing, _))) => launch.is_executing = true,
            // The first failure is the cause; what fails after it is a consequence.
            Ok(Some((Report::Failed(failure), _))) => drop(launch.failure.get_or_insert(failure)),
            Ok(None) | Err(_) => self.conclude(index),
        }
    }

    fn conclude(&mut self, index: usize) {
        let Some(launch) = self.launches.get_mut(index) else { return };
        launch.is_over = true;
        let (what, client, terminal) = (launch.what.clone(), launch.client, launch.terminal.take());
        let aborters = std::mem::take(&mut launch.aborters);
        let early_end = launch.ended;
        let outcome = match (launch.failure.take(), launch.is_executing, launch.pid) {
            (Some(failure), ..) => Err(failure),
            (None, true, Some(pid)) => Ok(Started {
                pid,
                started_at: nanoseconds(SystemTime::now()),
                warnings: std::mem::take(&mut launch.warnings),
            }),
            (None, ..) => Err(failure(
                "the launch was killed before the program ran (out of memory? see the memory limit)",
            )),
        };
        if outcome.is_err() {
            launch.end();
        }
        let (reply, fds) = match outcome {
            Ok(started) => match self.has_started(&what, &started, terminal) {
                Ok(fds) => (Reply::Started(started), fds),
                Err(failure) => (Reply::Failed(failure), Vec::new()),
            },
            Err(mut failure) => {
                self.has_failed(&what, &mut failure);
                (Reply::Failed(failure), Vec::new())
            }
        };
        self.reply(client, &reply, fds);
        for aborter in aborters {
            self.reply(aborter, &Reply::Done, Vec::new());
        }
        if let (Some(ended), Reply::Started(started)) = (early_end, &reply) {
            self.on_ended(started.pid, ended);
        }
    }

    /// Notes a running process; answers the descriptors for the client.
    fn has_started(
        &mut self,
        what: &What,
        started: &Started,
        terminal: Option<OwnedFd>,
    ) -> Result<Vec<OwnedFd>, Failure> {
        // A process that has ended already can't be opened; nothing can be sent to it either.
        let pidfd = sys::process::open_pidfd(started.pid).ok();
        match what {
            What::Container(id) => {
                let Some(container) = self.containers.get_mut(id) else { return Ok(Vec::new()) };
                container.started_at = Some(started.started_at);
                container.fds = None;
                if let Some(streams) = &mut container.streams {
                    streams.forget_early();
                }
                if let (Some(streams), Some(master)) = (&mut container.streams, terminal) {
                    streams.set_terminal(master).map_err(report::setup("use the terminal"))?;
                }
                container.state = State::Running { pid: started.pid, pidfd };
                Ok(Vec::new())
            }
            What::Exec(id) => {
                if let Some(exec) = self.execs.get_mut(id) {
                    (exec.pid, exec.pidfd) = (Some(started.pid), pidfd);
                }
                Ok(terminal.into_iter().collect())
            }
        }
    }

    /// Notes a launch that failed; an OCI runtime's last words are added to the failure.
    pub(super) fn has_failed(&mut self, what: &What, failure: &mut Failure) {
        match what {
            What::Container(id) => {
                let container = self.containers.get_mut(id);
                if let Some((container, streams)) =
                    container.and_then(|one| Some((&one.cgroup, one.streams.as_mut()?)))
                {
                    // Whatever an OCI runtime had made of the container.
                    let _ = sys::cgroup::signal_all(container, libc::SIGKILL);
                    streams.finish();
                    if let Some(words) = streams.early().filter(|words| !failure.message.contains(words)) {
                        failure.message = format!("{}; it wrote: {words}", failure.message);
                    }
                }
                let code = Ended::Exited(if failure.kind == FailureKind::Setup {
                    128
                } else {
                    failure.kind.exit_code()
                });
                self.record_exit(id, exit_of(code, false, failure.message.clone()));
            }
            What::Exec(id) => drop(self.execs.remove(id)),
        }
    }
}
