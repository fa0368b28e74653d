//! A Pod's namespaces: made by one short-lived child, held as descriptors, no process stays in them.

use crate::protocol::{Failure, Fault, Namespace, PidNamespace, SandboxPlan, Sysctl, UserNamespacePlan};
use crate::report::{failure, pair, setup};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use sys::idmap::{describe, explain_namespace_error};
use sys::process::{CloneOptions, Fork, exit_now, fork};

pub(crate) const NEWNS: u64 = 0x0002_0000;
pub(crate) const NEWCGROUP: u64 = 0x0200_0000;
pub(crate) const NEWUTS: u64 = 0x0400_0000;
pub(crate) const NEWIPC: u64 = 0x0800_0000;
pub(crate) const NEWUSER: u64 = 0x1000_0000;
pub(crate) const NEWPID: u64 = 0x2000_0000;
pub(crate) const NEWNET: u64 = 0x4000_0000;

/// A Pod's namespaces. What is `None` is the node's.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) plan: SandboxPlan,
    pub(crate) user: Option<OwnedFd>,
    pub(crate) network: Option<OwnedFd>,
    pub(crate) ipc: Option<OwnedFd>,
    pub(crate) uts: Option<OwnedFd>,
    /// PID 1 of a shared PID namespace, and that namespace.
    pub(crate) init: Option<(sys::process::Child, OwnedFd)>,
}

impl Sandbox {
    /// Host IDs of the container's root.
    pub(crate) fn root_ids(&self) -> (u32, u32) {
        let user = self.plan.user_namespace.as_ref();
        (
            user.and_then(UserNamespacePlan::root_uid).unwrap_or(0),
            user.and_then(UserNamespacePlan::root_gid).unwrap_or(0),
        )
    }

    /// The host UID of a container UID, or a sentence that says what is wrong with it.
    pub(crate) fn host_uid(&self, uid: u32) -> Result<u32, Failure> {
        match &self.plan.user_namespace {
            None => Ok(uid),
            Some(user) => {
                sys::idmap::to_host(&user.uids, uid).ok_or_else(|| unmapped("user", uid, &user.uids))
            }
        }
    }

    /// The host GID of a container GID, or a sentence that says what is wrong with it.
    pub(crate) fn host_gid(&self, gid: u32) -> Result<u32, Failure> {
        match &self.plan.user_namespace {
            None => Ok(gid),
            Some(user) => {
                sys::idmap::to_host(&user.gids, gid).ok_or_else(|| unmapped("group", gid, &user.gids))
            }
        }
    }
}

fn unmapped(kind: &str, id: u32, map: &[sys::idmap::IdMapping]) -> Failure {
    failure(format!(
        "{kind} ID {id} is not mapped in the Pod's user namespace ({}); \
         use an ID inside it, or raise userNamespaces.idsPerPod in the node's configuration",
        describe(map)
    ))
}

/// Makes the namespaces that the plan asks for.
pub(crate) fn make(plan: SandboxPlan) -> Result<Sandbox, Failure> {
    check(&plan)?;
    let kinds = kinds(&plan);
    let mut sandbox = Sandbox { plan, user: None, network: None, ipc: None, uts: None, init: None };
    if kinds == 0 {
        return Ok(sandbox);
    }
    let (ours, theirs) = pair().map_err(setup("make a socket pair"))?;
    // SAFETY: the shim is single-threaded.
    let child = match unsafe { fork(CloneOptions::default()) }.map_err(setup("fork"))? {
        Fork::Child => {
            drop(ours);
            let code = i32::from(inside(&sandbox.plan, kinds & !NEWUSER, &theirs).is_err());
            exit_now(code)
        }
        Fork::Parent(child) => child,
    };
    drop(theirs);
    let held = hold(&mut sandbox, child.pid, &ours);
    drop(ours);
    child.wait().map_err(setup("wait for the namespaces' creator"))?;
    held.map(|()| sandbox)
}

/// What can be refused without the kernel.
fn check(plan: &SandboxPlan) -> Result<(), Failure> {
    if let Some(user) = &plan.user_namespace {
        if user.root_uid().is_none() || user.root_gid().is_none() {
            return Err(failure("the Pod's ID mapping does not contain container ID 0"));
        }
        if plan.pid == PidNamespace::Node {
            return Err(failure("hostPID can't be combined with a user namespace"));
        }
    }
    plan.sysctls.iter().try_for_each(|sysctl| check_sysctl(plan, sysctl))
}

/// Only parameters that belong to a namespace of the Pod: the others are the node's.
fn check_sysctl(plan: &SandboxPlan, Sysctl { name, .. }: &Sysctl) -> Result<(), Failure> {
    const IPC: [&str; 9] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.msg_next_id",
    ];
    let is_path = name.split(['.', '/']).any(|part| part.is_empty() || part == "..");
    let owner = if name.starts_with("net.") || name.starts_with("net/") {
        Some(plan.network)
    } else if IPC.contains(&name.as_str()) || name.starts_with("fs.mqueue.") {
        Some(plan.ipc)
    } else {
        None
    };
    match owner {
        Some(Namespace::Pod) if !is_path => Ok(()),
        _ => Err(failure(format!(
            "sysctl {name} does not belong to a namespace of this Pod; only net.* (without hostNetwork), \
             kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.* (without hostIPC) can be set for a Pod"
        ))),
    }
}

fn kinds(plan: &SandboxPlan) -> u64 {
    let own = |namespace, flag| if namespace == Namespace::Pod { flag } else { 0 };
    let user = if plan.user_namespace.is_some() { NEWUSER } else { 0 };
    user | own(plan.network, NEWNET) | own(plan.ipc, NEWIPC) | own(plan.uts, NEWUTS)
}

/// The shim's side: writes the maps when the child has its user namespace, opens the namespaces when it has all.
fn hold(sandbox: &mut Sandbox, pid: i32, socket: &OwnedFd) -> Result<(), Failure> {
    if let Some(user) = &sandbox.plan.user_namespace {
        expect(socket, "user namespace")?;
        sys::idmap::write_maps(pid, &user.uids, &user.gids)
            .map_err(setup(format!("write the ID map {}", describe(&user.uids))))?;
        sys::socket::send(socket, b"m", &[]).map_err(setup("answer the namespaces' creator"))?;
    }
    expect(socket, "namespaces")?;
    let open = |kind: &str, wanted: bool| {
        wanted
            .then(|| std::fs::File::open(format!("/proc/{pid}/ns/{kind}")).map(OwnedFd::from))
            .transpose()
            .map_err(setup(format!("open the {kind} namespace")))
    };
    sandbox.user = open("user", sandbox.plan.user_namespace.is_some())?;
    sandbox.network = open("net", sandbox.plan.network == Namespace::Pod)?;
    sandbox.ipc = open("ipc", sandbox.plan.ipc == Namespace::Pod)?;
    sandbox.uts = open("uts", sandbox.plan.uts == Namespace::Pod)?;
    Ok(())
}

/// Waits for the child's word: one byte is success, a sentence is a failure.
fn expect(socket: &OwnedFd, what: &str) -> Result<(), Failure> {
    let mut buffer = [0; 4096];
    let length = sys::socket::receive(socket, &mut buffer, &mut Vec::new())
        .map_err(setup(format!("make the {what}")))?;
    match buffer.get(..length) {
        Some(b"+") => Ok(()),
        Some([]) | None => Err(failure(format!("the process that makes the {what} was killed"))),
        Some(text) => Err(failure(String::from_utf8_lossy(text))),
    }
}

/// The child's side.
fn inside(plan: &SandboxPlan, kinds: u64, socket: &OwnedFd) -> io::Result<()> {
    let result = match &plan.user_namespace {
        Some(user) => enter_user_namespace(plan, user, socket),
        None => Ok(()),
    }
    .and_then(|()| enter_others(plan, kinds));
    let word = result.as_ref().map_or_else(|failure| failure.message.as_bytes(), |()| b"+");
    sys::socket::send(socket, word, &[])?;
    // The parent closes its end when it holds the namespaces.
    sys::socket::receive(socket, &mut [0; 1], &mut Vec::new()).map(drop)
}

/// As the Pod's own base UID, so that the kernel charges what is made inside to the Pod and not to root.
fn enter_user_namespace(
    plan: &SandboxPlan,
    user: &UserNamespacePlan,
    socket: &OwnedFd,
) -> Result<(), Failure> {
    for resource in sys::limit::FROZEN_INTO_USER_NAMESPACES {
        sys::limit::raise_soft_limit(resource)
            .map_err(setup(format!("raise {}", sys::limit::rlimit_name(resource))))?;
    }
    if user.creator_uid != 0 {
        crate::identity::change_uid_keeping_capabilities(user.creator_uid)
            .map_err(setup(format!("become user {}", user.creator_uid)))?;
    }
    let made = if plan.faults.contains(&Fault::UserNamespaceNoSpace) {
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    } else {
        sys::process::unshare(NEWUSER)
    };
    made.map_err(|error| failure(explain_namespace_error("user", &error)))?;
    sys::socket::send(socket, b"+", &[]).map_err(setup("ask for the ID map"))?;
    let answered =
        sys::socket::receive(socket, &mut [0; 1], &mut Vec::new()).map_err(setup("wait for the ID map"))?;
    if answered == 0 {
        return Err(failure("the ID map was not written"));
    }
    crate::identity::become_root().map_err(setup("become root of the new user namespace"))
}

/// Network, IPC and UTS come after the maps: what they hold belongs to the container's root only then.
fn enter_others(plan: &SandboxPlan, kinds: u64) -> Result<(), Failure> {
    for (kind, name) in [(NEWNET, "net"), (NEWIPC, "ipc"), (NEWUTS, "uts")] {
        if kinds & kind != 0 {
            sys::process::unshare(kind).map_err(|error| failure(explain_namespace_error(name, &error)))?;
        }
    }
    if kinds & NEWUTS != 0 {
        rustix::system::sethostname(plan.hostname.as_bytes())
            .map_err(|errno| setup(format!("set the host name {:?}", plan.hostname))(errno.into()))?;
    }
    if kinds & NEWNET != 0 {
        bring_loopback_up().map_err(setup("bring the loopback interface up"))?;
    }
    plan.sysctls.iter().try_for_each(|sysctl| write_sysctl(plan, sysctl))
}

fn write_sysctl(plan: &SandboxPlan, Sysctl { name, value }: &Sysctl) -> Result<(), Failure> {
    let value = sysctl_value(plan, name, value);
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    std::fs::write(path, &value).map_err(setup(format!("set sysctl {name} to {value:?}")))
}

/// "All groups" ends at the last group that is mapped: the kernel refuses more.
fn sysctl_value(plan: &SandboxPlan, name: &str, value: &str) -> String {
    let whole = value.split_whitespace().eq(["0", "2147483647"]);
    match &plan.user_namespace {
        Some(user) if whole && name == "net.ipv4.ping_group_range" => {
            let last = user.gids.iter().map(|map| u64::from(map.container_id) + u64::from(map.size)).max();
            format!("0 {}", last.unwrap_or(1) - 1)
        }
        _ => value.to_owned(),
    }
}

/// `SIOCSIFFLAGS` on `lo`.
fn bring_loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    use std::os::fd::AsRawFd;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(*b"lo") {
        *place = libc::c_char::try_from(byte).unwrap_or(0);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    // SAFETY: a socket and an ifreq, as SIOCSIFFLAGS wants.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Mounts the Pod's shared memory where launchers find it, in the shim's own mount namespace.
pub(crate) fn mount_shared_memory(sandbox: &Sandbox) -> Result<(), Failure> {
    if sandbox.plan.ipc == Namespace::Node {
        return Ok(());
    }
    let (uid, gid) = sandbox.root_ids();
    let size = if sandbox.plan.shm_size == 0 { 64 << 20 } else { sandbox.plan.shm_size };
    let shm = sys::mount::tmpfs(uid, gid, 0o1777, size).map_err(|error| failure(error.to_string()))?;
    let target =
        std::fs::File::open(sys::mount::TRIMMED_SHM).map_err(setup("open the place of shared memory"))?;
    sys::mount::attach(&shm, &target).map_err(setup("attach shared memory"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::idmap::IdMapping;

    fn plan() -> SandboxPlan {
        let block = vec![IdMapping { container_id: 0, host_id: 131_072, size: 65_536 }];
        SandboxPlan {
            id: "test".into(),
            user_namespace: Some(UserNamespacePlan {
                uids: block.clone(),
                gids: block,
                creator_uid: 131_072,
            }),
            network: Namespace::Pod,
            ipc: Namespace::Pod,
            uts: Namespace::Pod,
            pid: PidNamespace::Container,
            hostname: "test".into(),
            sysctls: Vec::new(),
            shm_size: 0,
            faults: Vec::new(),
        }
    }

    fn sysctl(name: &str) -> Sysctl {
        Sysctl { name: name.into(), value: "1".into() }
    }

    #[test]
    fn g06_a_sysctl_of_the_node_is_refused_by_name() {
        let plan = SandboxPlan { ipc: Namespace::Node, ..plan() };
        for name in
            ["kernel.core_pattern", "vm.swappiness", "net..ipv4", "kernel.shmmax", "net./../kernel.hostname"]
        {
            let refused = check_sysctl(&plan, &sysctl(name)).unwrap_err();
            assert!(refused.message.contains(name), "{refused}");
        }
        check_sysctl(&plan, &sysctl("net.ipv4.ip_forward")).unwrap();
    }

    #[test]
    fn g05_the_whole_group_range_ends_at_the_last_mapped_group() {
        let value = sysctl_value(&plan(), "net.ipv4.ping_group_range", "0 2147483647");
        assert_eq!(value, "0 65535");
        assert_eq!(sysctl_value(&plan(), "net.ipv4.ping_group_range", "0 1"), "0 1");
    }

    #[test]
    fn g09_an_unmapped_id_is_named_with_the_map_and_the_setting() {
        let sandbox = Sandbox { plan: plan(), user: None, network: None, ipc: None, uts: None, init: None };
        let text = sandbox.host_uid(70_000).unwrap_err().message;
        assert!(
            text.contains("70000") && text.contains("131072-196607") && text.contains("idsPerPod"),
            "{text}"
        );
    }
}
