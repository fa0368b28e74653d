//! A further process in a running container: every namespace of it, the user namespace among them, and the same filter.

use super::{Begun, Fds, Stdio, begin, finish, mounts, program, set_limits};
use crate::identity;
use crate::protocol::{ExecPlan, Failure};
use crate::report::{self, Report, setup};
use crate::sandbox::{NEWCGROUP, NEWIPC, NEWNET, NEWNS, NEWPID, NEWUSER, NEWUTS, Sandbox};
use rustix::fs::{Mode, OFlags, openat};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use sys::process::{CLONE_PARENT, CloneOptions, Fork, fork};

/// Starts an exec in the container whose first process is `target`.
pub(crate) fn start_exec(
    sandbox: &Sandbox,
    plan: &ExecPlan,
    fds: &Fds,
    target: BorrowedFd<'_>,
) -> Result<Begun, Failure> {
    if let Some(oci) = &plan.oci {
        return super::oci::start_exec(plan, oci, fds);
    }
    begin(&plan.cgroup, fds, |status| joiner(sandbox, plan, fds, target, status))
}

fn joiner(
    sandbox: &Sandbox,
    plan: &ExecPlan,
    fds: &Fds,
    target: BorrowedFd<'_>,
    status: &OwnedFd,
) -> Result<(), Failure> {
    set_limits(&plan.process, status)?;
    let proc = program::open_proc()?;
    let user = if sandbox.user.is_some() { NEWUSER } else { 0 };
    let kinds = user | NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS | NEWCGROUP;
    sys::process::enter_namespaces(target, kinds)
        .map_err(setup("enter the container's namespaces (has it ended?)"))?;
    // SAFETY: single-threaded, as the shim that forked this process.
    match unsafe { fork(CloneOptions { flags: CLONE_PARENT, cgroup: None }) }
        .map_err(setup("fork into the container"))?
    {
        Fork::Child => finish(status, process(sandbox, plan, fds, status, proc)),
        Fork::Parent(child) => {
            report::send(status, &Report::Pid(child.pid), &[]).map_err(setup("report to the shim"))
        }
    }
}

fn process(
    sandbox: &Sandbox,
    plan: &ExecPlan,
    fds: &Fds,
    status: &OwnedFd,
    proc: OwnedFd,
) -> Result<(), Failure> {
    if sandbox.user.is_some() {
        identity::become_root().map_err(setup("become the container's root"))?;
    }
    program::check_maps(&sandbox.plan, &proc, "self")?;
    let terminal = if plan.process.terminal { Some(open_terminal(plan, status)?) } else { None };
    let copy = |index: Option<_>| index.map(|index| fds.copy(index)).transpose();
    let stdio = Stdio { stdin: copy(plan.stdin)?, stdout: copy(plan.stdout)?, stderr: copy(plan.stderr)? };
    program::become_program(&program::Program {
        process: &plan.process,
        seccomp: plan.process.seccomp.map(|index| fds.get(index)).transpose()?,
        stdio: &stdio,
        terminal,
        status,
        proc,
    })
}

/// A terminal of the container's devpts; the master goes to the daemon by way of the shim.
fn open_terminal(plan: &ExecPlan, status: &OwnedFd) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = openat(rustix::fs::CWD, "/dev/pts/ptmx", flags, Mode::empty())
        .map_err(|e| setup("open /dev/pts/ptmx in the container")(e.into()))?;
    let peer = sys::pty::open_peer(&master).map_err(setup("open the terminal"))?;
    mounts::give_terminal(&peer, plan.process.uid)?;
    if let Some(size) = plan.process.terminal_size {
        sys::pty::resize(&master, size.columns, size.rows).map_err(setup("set the terminal's size"))?;
    }
    report::send(status, &Report::Terminal, &[master.as_fd()])
        .map_err(setup("send the terminal to the shim"))?;
    Ok(peer)
}
