//! From a plan to a running program: four short-lived processes, each in exactly the namespaces that its step needs.
//!
//! 1. The *launcher* enters the container's cgroup and a private copy of the shim's mount namespace, which belongs to
//!    the initial user namespace, and starts the other three.
//! 2. The *joiner* enters the Pod's namespaces and starts the container's *first process* (in a PID namespace that so
//!    belongs to the Pod's user namespace) as a child of the shim.
//! 3. The *mounter* attaches everything, still with the node's rights but in the container's PID, network, IPC and
//!    cgroup namespaces.
//! 4. The *first process* leaves for a mount namespace of the Pod's user namespace. Because that one has less
//!    privilege, the kernel locks every mount and every `ro`, `nosuid`, `nodev` that the copy inherits: container root
//!    can't undo them, whatever its capabilities. Then it takes its identity and becomes the program.
//!
//! An exec needs only a joiner and the process itself. Containers of an OCI runtime are launched by that one instead
//! ([`oci`]).

mod exec;
mod mounts;
mod oci;
mod program;

use crate::identity;
use crate::protocol::{CgroupFds, ContainerPlan, Failure, FdIndex, PidNamespace, ProcessPlan};
use crate::report::{self, Report, failure, setup};
use crate::sandbox::{NEWCGROUP, NEWIPC, NEWNET, NEWNS, NEWPID, NEWUSER, NEWUTS, Sandbox};
pub(crate) use exec::start_exec;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use sys::process::{CLONE_PARENT, Child, CloneOptions, Fork, exit_now, fork};

/// Descriptors that came with a plan.
#[derive(Debug, Default)]
pub(crate) struct Fds(pub(crate) Vec<OwnedFd>);

impl Fds {
    pub(crate) fn get(&self, index: FdIndex) -> Result<BorrowedFd<'_>, Failure> {
        let fd = self.0.get(usize::from(index.0)).map(AsFd::as_fd);
        fd.ok_or_else(|| {
            failure(format!("the plan names descriptor {}, but only {} came with it", index.0, self.0.len()))
        })
    }

    /// Takes a copy of its own.
    pub(crate) fn copy(&self, index: FdIndex) -> Result<OwnedFd, Failure> {
        self.get(index)?.try_clone_to_owned().map_err(setup("copy a descriptor"))
    }
}

/// A process's ends of its standard streams; `None` is `/dev/null`, unused with a terminal.
#[derive(Debug, Default)]
pub(crate) struct Stdio {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Everything that a launch reads.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) plan: &'a ContainerPlan,
    pub(crate) fds: &'a Fds,
    pub(crate) stdio: Stdio,
    /// PID namespace that is joined instead of a new one.
    pub(crate) pid_target: Option<BorrowedFd<'a>>,
}

/// A launch that has begun: its reports come from `reports` until `execve`.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) launcher: Child,
    pub(crate) reports: OwnedFd,
}

/// Starts a container. The shim goes on at once.
pub(crate) fn start_container(job: &Job<'_>) -> Result<Begun, Failure> {
    match &job.plan.oci {
        Some(oci) => oci::start_container(job, oci),
        None => begin(&job.plan.cgroup, job.fds, |status| launcher(job, status)),
    }
}

/// Forks a launcher into a cgroup. `work` runs in it; what it answers is reported.
fn begin(
    cgroup: &CgroupFds,
    fds: &Fds,
    work: impl FnOnce(&OwnedFd) -> Result<(), Failure>,
) -> Result<Begun, Failure> {
    let (reports, status) = report::pair().map_err(setup("make a socket pair"))?;
    let unified = cgroup.unified.map(|index| fds.get(index)).transpose()?;
    // SAFETY: the shim is single-threaded.
    match unsafe { fork(CloneOptions { flags: 0, cgroup: unified }) }
        .map_err(setup("fork into the container's cgroup"))?
    {
        Fork::Parent(launcher) => Ok(Begun { launcher, reports }),
        Fork::Child => {
            drop(reports);
            let legacy = cgroup.legacy.iter().try_for_each(|group| {
                enter_legacy_cgroup(fds.get(group.directory)?)
                    .map_err(setup(format!("enter the cgroup of {}", group.controllers)))
            });
            let result = legacy
                .and_then(|()| identity::hide().map_err(setup("hide from ptrace")))
                .and_then(|()| work(&status));
            finish(&status, result)
        }
    }
}

/// Ends a child; a failure is reported first.
fn finish(status: &OwnedFd, result: Result<(), Failure>) -> ! {
    let code = match result {
        Ok(()) => 0,
        Err(failure) => {
            let code = failure.kind.exit_code();
            let _ = report::send(status, &Report::Failed(failure), &[]);
            code
        }
    };
    exit_now(code)
}

fn enter_legacy_cgroup(directory: BorrowedFd<'_>) -> io::Result<()> {
    rustix::io::write(sys::cgroup::open_legacy_door(directory)?, b"0")?;
    Ok(())
}

/// Limits that only the node's root can set, so before any identity changes.
fn set_limits(process: &ProcessPlan, status: &OwnedFd) -> Result<(), Failure> {
    let mut warnings = Vec::new();
    // Set in any case: the shim's own score is the lowest, and its children inherit that and the right to go back to it.
    let score = sys::limit::set_oom_score_adj(process.oom_score_adj.unwrap_or(0));
    warnings.extend(score.map_err(setup("set oom_score_adj"))?);
    for limit in &process.rlimits {
        let name = sys::limit::rlimit_name(limit.resource);
        let set = sys::limit::set_rlimit(limit.resource, limit.soft, limit.hard);
        warnings.extend(set.map_err(setup(format!("set {name} to {}:{}", limit.soft, limit.hard)))?);
    }
    for warning in warnings {
        warn(status, warning)?;
    }
    Ok(())
}

fn warn(status: &OwnedFd, warning: String) -> Result<(), Failure> {
    report::send(status, &Report::Warning(warning), &[]).map_err(setup("report to the shim"))
}

/// Step 1.
fn launcher(job: &Job<'_>, status: &OwnedFd) -> Result<(), Failure> {
    set_limits(&job.plan.process, status)?;
    sys::process::unshare(NEWNS).map_err(setup("make a mount namespace"))?;
    let (ours, theirs) = report::pair().map_err(setup("make a socket pair"))?;
    let options = CloneOptions { flags: CLONE_PARENT, cgroup: None };
    // SAFETY: single-threaded, as the shim that forked this process.
    if let Fork::Child = unsafe { fork(options) }.map_err(setup("fork"))? {
        drop(ours);
        finish(status, joiner(job, status, &theirs));
    }
    drop(theirs);
    let Some(pid) = receive_pid(&ours)? else { return Ok(()) }; // The joiner has said why.
    enter_namespaces_of(pid, NEWPID | NEWNET | NEWIPC | NEWCGROUP)?;
    // SAFETY: as above.
    match unsafe { fork(CloneOptions::default()) }.map_err(setup("fork"))? {
        Fork::Child => finish(status, mounts::mount_all(job, status, &ours)),
        Fork::Parent(mounter) => mounter.wait().map(drop).map_err(setup("wait for the mounter")),
    }
}

/// The PID of the first process, from the joiner.
fn receive_pid(socket: &OwnedFd) -> Result<Option<i32>, Failure> {
    match report::receive(socket).map_err(setup("hear from the joiner"))? {
        Some((Report::Pid(pid), _)) => Ok(Some(pid)),
        _ => Ok(None),
    }
}

fn enter_namespaces_of(pid: i32, kinds: u64) -> Result<(), Failure> {
    let pidfd = sys::process::open_pidfd(pid).map_err(setup("open the container's first process"))?;
    sys::process::enter_namespaces(&pidfd, kinds).map_err(setup("enter the container's namespaces"))
}

/// Step 2.
fn joiner(job: &Job<'_>, status: &OwnedFd, mounter: &OwnedFd) -> Result<(), Failure> {
    let Sandbox { user, network, ipc, uts, init, .. } = job.sandbox;
    // The user namespace first: it brings the rights over the others, which it owns.
    for (namespace, kind, name) in
        [(user, NEWUSER, "user"), (network, NEWNET, "network"), (ipc, NEWIPC, "IPC"), (uts, NEWUTS, "UTS")]
    {
        if let Some(namespace) = namespace {
            sys::process::enter_namespaces(namespace, kind)
                .map_err(setup(format!("enter the Pod's {name} namespace")))?;
        }
    }
    let shared = job.pid_target.or_else(|| init.as_ref().map(|(_, namespace)| namespace.as_fd()));
    if let Some(target) = shared {
        sys::process::enter_namespaces(target, NEWPID).map_err(setup("enter the Pod's PID namespace"))?;
    }
    let own = job.sandbox.plan.pid == PidNamespace::Container && shared.is_none();
    let flags = CLONE_PARENT | NEWCGROUP | if own { NEWPID } else { 0 };
    // SAFETY: single-threaded.
    match unsafe { fork(CloneOptions { flags, cgroup: None }) }
        .map_err(|error| failure(sys::idmap::explain_namespace_error("pid", &error)))?
    {
        Fork::Child => finish(status, first_process(job, status, mounter)),
        Fork::Parent(child) => {
            let pid = Report::Pid(child.pid);
            report::send(status, &pid, &[]).map_err(setup("report to the shim"))?;
            report::send(mounter, &pid, &[]).map_err(setup("report to the launcher"))
        }
    }
}

/// Step 4; does not come back if the program runs.
fn first_process(job: &Job<'_>, status: &OwnedFd, mounter: &OwnedFd) -> Result<(), Failure> {
    if job.sandbox.user.is_some() {
        identity::become_root().map_err(setup("become the container's root"))?;
    }
    program::check_maps(&job.sandbox.plan, &program::open_proc()?, "self")?;
    let proc = program::open_proc()?;
    // The mounter sends the terminal, if there is one, when all is mounted. If it fails, it has said why.
    let Some((Report::Executing, terminal)) =
        report::receive(mounter).map_err(setup("hear from the mounter"))?
    else {
        exit_now(128);
    };
    sys::process::unshare(NEWNS)
        .map_err(|error| failure(sys::idmap::explain_namespace_error("mnt", &error)))?;
    mounts::enter_root()?;
    let terminal = terminal.into_iter().next();
    program::become_program(&program::Program {
        process: &job.plan.process,
        seccomp: job.plan.process.seccomp.map(|index| job.fds.get(index)).transpose()?,
        stdio: &job.stdio,
        terminal,
        status,
        proc,
    })
}
