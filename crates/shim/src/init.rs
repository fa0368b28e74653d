//! PID 1 of a Pod's shared PID namespace: it only reaps. It has no rights, no files and no root filesystem.

use crate::identity;
use crate::protocol::{Failure, PidNamespace};
use crate::report::{self, Report, setup};
use crate::sandbox::{NEWNS, NEWPID, NEWUSER, Sandbox};
use std::os::fd::OwnedFd;
use sys::process::{CLONE_PARENT, Child, CloneOptions, Fork, exit_now, fork};

/// Starts it if the Pod shares its PID namespace.
pub(crate) fn start(sandbox: &mut Sandbox) -> Result<(), Failure> {
    if sandbox.plan.pid != PidNamespace::Pod {
        return Ok(());
    }
    let (ours, theirs) = report::pair().map_err(setup("make a socket pair"))?;
    // SAFETY: the shim is single-threaded.
    let joiner = match unsafe { fork(CloneOptions::default()) }.map_err(setup("fork"))? {
        Fork::Child => {
            drop(ours);
            let result = join(sandbox, &theirs);
            if let Err(failure) = result {
                let _ = report::send(&theirs, &Report::Failed(failure), &[]);
            }
            exit_now(0)
        }
        Fork::Parent(joiner) => joiner,
    };
    drop(theirs);
    let result = hear(&ours);
    joiner.wait().map_err(setup("wait for the init's creator"))?;
    let pid = result?;
    let pidfd = sys::process::open_pidfd(pid).map_err(setup("open the init"))?;
    // Entering by the descriptor of the namespace needs rights over the namespace only, by a pidfd also over its
    // process, and nobody in the Pod has any over the init.
    let namespace =
        std::fs::File::open(format!("/proc/{pid}/ns/pid")).map_err(setup("open the PID namespace"))?;
    sandbox.init = Some((Child { pid, pidfd }, namespace.into()));
    Ok(())
}

/// The init's PID, when it is ready too: its creator tells the first and the init itself the second, in any order.
fn hear(reports: &OwnedFd) -> Result<i32, Failure> {
    let (mut pid, mut is_ready) = (None, false);
    loop {
        match report::receive(reports).map_err(setup("hear from the init"))? {
            Some((Report::Pid(number), _)) => pid = Some(number),
            Some((Report::Executing, _)) => is_ready = true,
            Some((Report::Failed(failure), _)) => return Err(failure),
            Some(_) => {}
            None => return Err(report::failure("the init of the shared PID namespace was killed")),
        }
        if let (Some(pid), true) = (pid, is_ready) {
            return Ok(pid);
        }
    }
}

fn join(sandbox: &Sandbox, status: &OwnedFd) -> Result<(), Failure> {
    identity::hide().map_err(setup("hide from ptrace"))?;
    if let Some(user) = &sandbox.user {
        sys::process::enter_namespaces(user, NEWUSER).map_err(setup("enter the Pod's user namespace"))?;
    }
    let options = CloneOptions { flags: CLONE_PARENT | NEWPID, cgroup: None };
    // SAFETY: single-threaded.
    match unsafe { fork(options) }
        .map_err(|error| report::failure(sys::idmap::explain_namespace_error("pid", &error)))?
    {
        Fork::Child => {
            if let Err(failure) = become_init(sandbox, status) {
                let _ = report::send(status, &Report::Failed(failure), &[]);
                exit_now(1);
            }
            reap_for_ever()
        }
        Fork::Parent(child) => {
            report::send(status, &Report::Pid(child.pid), &[]).map_err(setup("report the init"))
        }
    }
}

fn become_init(sandbox: &Sandbox, status: &OwnedFd) -> Result<(), Failure> {
    if sandbox.user.is_some() {
        identity::become_root().map_err(setup("become the Pod's root"))?;
    }
    rustix::process::setsid().map_err(|e| setup("setsid")(e.into()))?;
    sys::process::unshare(NEWNS).map_err(setup("make the init's mount namespace"))?;
    // `/empty` of the trimmed namespace is all that it ever sees.
    rustix::process::chroot(sys::mount::TRIMMED_EMPTY).map_err(|e| setup("change root")(e.into()))?;
    rustix::process::chdir("/").map_err(|e| setup("chdir")(e.into()))?;
    sys::capability::limit_bounding(0).map_err(setup("drop capabilities"))?;
    sys::capability::set(0, 0, 0).map_err(setup("drop capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(|e| setup("set no_new_privs")(e.into()))?;
    identity::hide().map_err(setup("hide from ptrace"))?;
    let _ = rustix::thread::set_name(c"kakoi-init");
    identity::die_with_parent().map_err(setup("set the parent death signal"))?;
    report::send(status, &Report::Executing, &[]).map_err(setup("report the init"))
}

/// Signals from inside its namespace do nothing to a PID 1 without handlers; SIGCHLD stays blocked and is waited for.
fn reap_for_ever() -> ! {
    // SAFETY: closes everything; nothing of this process uses a descriptor any more.
    unsafe { libc::syscall(libc::SYS_close_range, 0_u32, u32::MAX, 0) };
    // SAFETY: all-zero bytes are a valid sigset_t.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: a valid set and a valid signal.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
    loop {
        // SAFETY: a valid set; the siginfo is not wanted.
        unsafe { libc::sigwaitinfo(&raw const set, std::ptr::null_mut()) };
        // SAFETY: the status is not wanted.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_init_may_be_ready_before_its_creator_tells_its_pid() {
        for reports in [[Report::Executing, Report::Pid(7)], [Report::Pid(7), Report::Executing]] {
            let (ours, theirs) = report::pair().unwrap();
            for one in &reports {
                report::send(&theirs, one, &[]).unwrap();
            }
            assert_eq!(hear(&ours).unwrap(), 7);
        }
    }

    #[test]
    fn an_init_that_ends_before_it_is_ready_is_a_failure() {
        let (ours, theirs) = report::pair().unwrap();
        report::send(&theirs, &Report::Pid(7), &[]).unwrap();
        drop(theirs);
        assert!(hear(&ours).unwrap_err().message.contains("killed"));
    }
}
