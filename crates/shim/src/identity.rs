//! Who a process is: IDs, groups, capabilities, `no_new_privs`, and what else is settled just before `execve`.

use crate::protocol::{CapabilityPlan, Failure, ProcessPlan};
use crate::report::{failure, setup};
use rustix::process::{Gid, Uid};
use std::io;

/// Becomes another user of this user namespace and keeps all capabilities, effective ones too.
pub(crate) fn change_uid_keeping_capabilities(uid: u32) -> io::Result<()> {
    rustix::thread::set_keep_capabilities(true)?;
    set_uid(uid)?;
    sys::capability::raise_permitted()
}

/// Becomes root of the user namespace that this process is in.
pub(crate) fn become_root() -> io::Result<()> {
    rustix::thread::set_thread_groups(&[])?;
    set_gid(0)?;
    set_uid(0)?;
    hide() // A change of identity resets it to what the node's fs.suid_dumpable says.
}

fn set_uid(uid: u32) -> io::Result<()> {
    let uid = Uid::from_raw(uid);
    Ok(rustix::thread::set_thread_res_uid(uid, uid, uid)?)
}

fn set_gid(gid: u32) -> io::Result<()> {
    let gid = Gid::from_raw(gid);
    Ok(rustix::thread::set_thread_res_gid(gid, gid, gid)?)
}

/// Files that this process makes from now on belong to these IDs; its capabilities stay as they are.
pub(crate) fn make_files_as(uid: u32, gid: u32) -> io::Result<()> {
    // Without this bit the kernel drops the file capabilities when the filesystem UID leaves 0.
    let bits = rustix::thread::CapabilitiesSecureBits::NO_SETUID_FIXUP;
    rustix::thread::set_capabilities_secure_bits(bits)?;
    // SAFETY: both calls take an integer; they can't fail for root.
    unsafe { libc::syscall(libc::SYS_setfsgid, gid) };
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
    Ok(())
}

/// Nobody in the container may look into this process: not by ptrace, not by `/proc/PID/…`.
pub(crate) fn hide() -> io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Dies with the shim. The kernel forgets this whenever the identity changes, so it is the last thing before `execve`.
pub(crate) fn die_with_parent() -> io::Result<()> {
    use rustix::process::{Signal, set_parent_process_death_signal};
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Takes the identity of the plan: groups, IDs and capabilities. `CAP_SYS_ADMIN` stays effective up to `execve` where
/// the seccomp filter needs it; the bounding set decides what the program gets.
///
/// Capabilities that the machine's root lacks itself can't be given; the answer names them.
pub(crate) fn take(process: &ProcessPlan) -> Result<Option<String>, Failure> {
    let ProcessPlan { uid, gid, groups, .. } = process;
    let have = sys::capability::permitted().map_err(setup("read capabilities"))?;
    let CapabilityPlan { bounding, permitted, inheritable, ambient } = only(process.capabilities, have);
    sys::capability::limit_bounding(bounding).map_err(setup("limit the capability bounding set"))?;
    rustix::thread::set_keep_capabilities(true).map_err(|e| setup("keep capabilities")(e.into()))?;
    let list: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    rustix::thread::set_thread_groups(&list)
        .map_err(|e| id_failure("groups", &format!("{groups:?}"), &e.into()))?;
    set_gid(*gid).map_err(|e| id_failure("group", &gid.to_string(), &e))?;
    set_uid(*uid).map_err(|e| id_failure("user", &uid.to_string(), &e))?;
    hide().map_err(setup("hide from ptrace"))?;
    let for_seccomp =
        if process.seccomp.is_some() && !process.no_new_privileges { sys::capability::SYS_ADMIN } else { 0 };
    let held = (permitted | ambient | for_seccomp) & have;
    sys::capability::set(held, held, inheritable | ambient).map_err(setup("set capabilities"))?;
    sys::capability::set_ambient(ambient).map_err(setup("set ambient capabilities"))?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(|e| setup("set no_new_privs")(e.into()))?;
    }
    let wanted = process.capabilities.bounding | process.capabilities.permitted;
    let missing = sys::capability::names(wanted & !have);
    Ok((!missing.is_empty())
        .then(|| format!("this machine's root lacks and can't give: {}", missing.join(", "))))
}

fn only(plan: CapabilityPlan, have: u64) -> CapabilityPlan {
    CapabilityPlan {
        bounding: plan.bounding & have,
        permitted: plan.permitted & have,
        inheritable: plan.inheritable & have,
        ambient: plan.ambient & have,
    }
}

fn id_failure(what: &str, id: &str, error: &io::Error) -> Failure {
    failure(format!(
        "cannot become {what} {id} inside the container: {error} (is the ID mapped in the Pod's user namespace?)"
    ))
}
