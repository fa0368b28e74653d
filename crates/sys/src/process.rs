//! Starting processes with `clone3`: into a cgroup from birth, with a pidfd, without a lock or an allocation in between.
//!
//! [`spawn`] is for multi-threaded callers and runs only system calls between `clone3` and `execveat`. Its child borrows
//! the caller's memory until then, so a large caller starts processes as fast as a small one.
//! [`fork`] hands control back in the child and is for single-threaded callers alone.

mod borrow;

use rustix::fd::AsRawFd;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `clone_args` of clone3(2), version 2 (with `cgroup`).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What a child is born with.
#[derive(Debug, Default, Clone, Copy)]
pub struct CloneOptions<'a> {
    /// `CLONE_NEW…` and `CLONE_PARENT` bits.
    pub flags: u64,
    /// Directory of the v2 cgroup to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Fork {
    /// The new process.
    Child,
    /// The old one, with the child's PID (as this process sees it) and pidfd.
    Parent(Child),
}

/// A child process that is neither leaked nor waited for by accident.
#[derive(Debug)]
pub struct Child {
    /// PID as the caller sees it.
    pub pid: i32,
    /// Its pidfd, readable once it has ended.
    pub pidfd: OwnedFd,
}

impl Child {
    /// # Safety
    /// `pidfd` is an open descriptor that nothing else owns.
    unsafe fn new(pid: libc::c_long, pidfd: RawFd) -> Self {
        // SAFETY: as the caller says.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Self { pid: i32::try_from(pid).unwrap_or(-1), pidfd }
    }

    /// Sends SIGKILL; a process that is gone already is success.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits for its end and reaps it.
    ///
    /// # Errors
    /// The kernel's answer; `ECHILD` if it is not this process's child.
    pub fn wait(&self) -> io::Result<Ended> {
        loop {
            match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED) {
                Ok(Some(status)) => {
                    return Ok(Ended::from_wait(status.exit_status(), status.terminating_signal()));
                }
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It called `exit` with this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
}

impl Ended {
    /// From the two halves of a `siginfo_t`.
    pub fn from_wait(code: Option<i32>, signal: Option<i32>) -> Self {
        match signal {
            Some(signal) => Ended::Signaled(signal),
            None => Ended::Exited(code.unwrap_or(0)),
        }
    }

    /// The shell's exit code: 128 + n for signal n.
    pub fn code(self) -> i32 {
        match self {
            Ended::Exited(code) => code,
            Ended::Signaled(signal) => 128 + signal,
        }
    }

    /// The signal, if one ended it.
    pub fn signal(self) -> Option<i32> {
        match self {
            Ended::Exited(_) => None,
            Ended::Signaled(signal) => Some(signal),
        }
    }
}

/// Forks; the child runs on a copy of this thread's stack and memory.
///
/// # Safety
/// The process must be single-threaded, or the child must only make system calls until it execs or exits:
/// another thread may have held any lock (the allocator's too) at the moment of the fork.
///
/// # Errors
/// The kernel's answer to `clone3`.
pub unsafe fn fork(options: CloneOptions<'_>) -> io::Result<Fork> {
    let mut pidfd: RawFd = -1;
    let mut args = options.args(&mut pidfd)?;
    // SAFETY: `args` is a valid clone_args; no CLONE_VM, so the child has its own copy of all memory.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        // SAFETY: the kernel stored a new descriptor that nothing else owns.
        _ => Ok(Fork::Parent(unsafe { Child::new(pid, pidfd) })),
    }
}

impl CloneOptions<'_> {
    /// As `clone_args`; the kernel will store the child's pidfd in `pidfd`.
    fn args(&self, pidfd: &mut RawFd) -> io::Result<CloneArgs> {
        let mut args = CloneArgs {
            flags: self.flags | u64::try_from(libc::CLONE_PIDFD).unwrap_or_default(),
            pidfd: std::ptr::from_mut(pidfd) as u64,
            exit_signal: u64::try_from(libc::SIGCHLD).unwrap_or_default(),
            ..CloneArgs::default()
        };
        if self.flags & CLONE_PARENT != 0 {
            args.exit_signal = 0; // the kernel takes the parent's own exit signal
        }
        if let Some(cgroup) = self.cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
        }
        Ok(args)
    }
}

/// The child gets this process's parent as its parent.
pub const CLONE_PARENT: u64 = 0x8000;
/// A new PID namespace for the child.
pub const CLONE_NEWPID: u64 = 0x2000_0000;
/// A new user namespace for the child.
pub const CLONE_NEWUSER: u64 = 0x1000_0000;
/// A new cgroup namespace for the child.
pub const CLONE_NEWCGROUP: u64 = 0x0200_0000;

/// Opens a pidfd.
///
/// # Errors
/// The kernel's answer.
pub fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Sends a signal by number through a pidfd (real-time signals included).
///
/// # Errors
/// The kernel's answer; `ESRCH` if the process has been reaped.
pub fn send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let raw = pidfd.as_fd().as_raw_fd();
    // SAFETY: plain integers and a null siginfo, which the call allows.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, raw, signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Leaves this process at once, without destructors or `atexit` handlers: the end of a forked child.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// A program to start from an open file.
#[derive(Debug)]
pub struct SpawnPlan<'a> {
    /// The program (a sealed memfd).
    pub program: BorrowedFd<'a>,
    /// Arguments, the first is the process title.
    pub args: Vec<CString>,
    /// The whole environment.
    pub env: Vec<CString>,
    /// Descriptors that the child gets as 0, 1, 2, 3 …; everything else is closed.
    pub fds: Vec<BorrowedFd<'a>>,
    /// The v2 cgroup that it is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The doors of the v1 groups that it enters before `execve`: see [`crate::cgroup::open_legacy_door`].
    pub legacy_cgroups: Vec<BorrowedFd<'a>>,
    /// The mount namespace that it enters.
    pub mount_namespace: Option<BorrowedFd<'a>>,
}

/// Starts a program in a session of its own.
///
/// # Errors
/// The kernel's answer with the step that failed.
pub fn spawn(plan: &SpawnPlan<'_>) -> Result<Child, SpawnError> {
    let args = pointers(&plan.args);
    let env = pointers(&plan.env);
    // Sources above every target, so that placing one never overwrites another.
    let lowest = i32::try_from(plan.fds.len()).unwrap_or(i32::MAX).saturating_add(3);
    let sources = plan.fds.iter().map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, lowest));
    let sources: Vec<OwnedFd> =
        sources.collect::<Result<_, _>>().map_err(|e| SpawnError::new(Step::Copy, e.into()))?;
    let program = rustix::io::fcntl_dupfd_cloexec(plan.program, lowest);
    let program = program.map_err(|e| SpawnError::new(Step::Copy, e.into()))?;
    let copy_failed = |errno: rustix::io::Errno| SpawnError::new(Step::Copy, errno.into());
    let (error_read, low) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(copy_failed)?;
    let error_write = rustix::io::fcntl_dupfd_cloexec(&low, lowest).map_err(copy_failed)?;
    drop(low); // A second write end here would make the read below wait for ever.
    let options = CloneOptions { flags: 0, cgroup: plan.cgroup };
    let run = || {
        let failed = become_program(plan, &sources, &program, &args, &env);
        report_and_exit(&error_write, failed)
    };
    // SAFETY: the child makes system calls only, on memory prepared above, until it execs or exits.
    let child = unsafe { borrow::start(options, &run) }.map_err(|e| SpawnError::new(Step::Clone, e))?;
    drop(error_write);
    match read_report(&error_read) {
        None => Ok(child),
        Some(error) => {
            let _ = child.wait();
            Err(error)
        }
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Where [`spawn`] failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Before the clone.
    Copy,
    /// `clone3`.
    Clone,
    /// Entering a v1 cgroup.
    Cgroup,
    /// Entering the mount namespace.
    MountNamespace,
    /// Placing descriptors.
    Descriptors,
    /// `execveat`.
    Exec,
}

/// A program that could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start a process: {step:?}: {source}")]
pub struct SpawnError {
    /// The step.
    pub step: Step,
    /// The kernel's answer.
    pub source: io::Error,
}

impl SpawnError {
    fn new(step: Step, source: io::Error) -> Self {
        SpawnError { step, source }
    }
}

/// Runs in the child: system calls only. Returns the step that failed and its errno.
fn become_program(
    plan: &SpawnPlan<'_>,
    sources: &[OwnedFd],
    program: &OwnedFd,
    args: &[*const libc::c_char],
    env: &[*const libc::c_char],
) -> (Step, i32) {
    let _ = rustix::process::setsid();
    for procs in &plan.legacy_cgroups {
        if let Err(errno) = rustix::io::write(procs, b"0") {
            return (Step::Cgroup, errno.raw_os_error());
        }
    }
    if let Some(namespace) = plan.mount_namespace
        && let Err(errno) = enter(namespace, libc::CLONE_NEWNS)
    {
        return (Step::MountNamespace, errno);
    }
    for (target, source) in (0..).zip(sources) {
        // SAFETY: both are plain descriptor numbers; `target` is below every descriptor that is still needed.
        if unsafe { libc::dup2(source.as_raw_fd(), target) } < 0 {
            return (Step::Descriptors, last_errno());
        }
    }
    let kept = u32::try_from(sources.len()).unwrap_or(u32::MAX);
    // SAFETY: plain integers; nothing is closed before `execveat`.
    if unsafe { libc::syscall(libc::SYS_close_range, kept, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) } < 0 {
        return (Step::Descriptors, last_errno());
    }
    reset_signals();
    // SAFETY: a path of "" with AT_EMPTY_PATH, and null-terminated arrays that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    (Step::Exec, last_errno())
}

/// Gives every signal its default action and unblocks all: what a new program expects.
pub fn reset_signals() {
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        let default = [libc::SIG_DFL as u64, 0, 0, 0]; // struct kernel_sigaction: handler, flags, restorer, mask
        // SAFETY: the kernel reads 32 bytes of `default` and writes nothing; glibc's wrapper refuses 32 and 33.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<libc::c_void>(),
                8,
            )
        };
    }
    let none = 0_u64;
    // SAFETY: the kernel reads 8 bytes of `none`.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null::<libc::c_void>(),
            8,
        )
    };
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn enter(namespace: BorrowedFd<'_>, kind: i32) -> Result<(), i32> {
    // SAFETY: plain integers.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), kind) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

fn report_and_exit(pipe: &OwnedFd, (step, errno): (Step, i32)) -> borrow::Never {
    let [a, b, c, d] = errno.to_le_bytes();
    let _ = rustix::io::write(pipe, &[step as u8, a, b, c, d]);
    exit_now(127)
}

fn read_report(pipe: &OwnedFd) -> Option<SpawnError> {
    let mut report = [0; 5];
    let [step, a, b, c, d] = match rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut report)) {
        Ok(5) => report,
        _ => return None,
    };
    let step = match step {
        2 => Step::Cgroup,
        3 => Step::MountNamespace,
        4 => Step::Descriptors,
        _ => Step::Exec,
    };
    Some(SpawnError::new(step, io::Error::from_raw_os_error(i32::from_le_bytes([a, b, c, d]))))
}

/// Enters namespaces: `target` is a namespace descriptor, or a pidfd with several `CLONE_NEW…` bits.
///
/// # Errors
/// The kernel's answer.
pub fn enter_namespaces(target: impl AsFd, kinds: u64) -> io::Result<()> {
    let kinds = i32::try_from(kinds).map_err(|_| io::ErrorKind::InvalidInput)?;
    enter(target.as_fd(), kinds).map_err(io::Error::from_raw_os_error)
}

/// Leaves the given namespaces for new ones.
///
/// # Errors
/// The kernel's answer.
pub fn unshare(kinds: u64) -> io::Result<()> {
    let kinds = i32::try_from(kinds).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: only CLONE_NEW… bits are passed, never CLONE_FILES; descriptors stay as they are.
    let result = unsafe { libc::unshare(kinds) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A program copied to a sealed, executable memfd: nobody can change it, not even through `/proc/PID/exe`.
///
/// # Errors
/// The kernel's answer.
pub fn sealed_program(name: &CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    use rustix::fs::MemfdFlags;
    // Kernels before 6.3 do not know the flag; there every memfd can be executed.
    sealed(name, bytes, MemfdFlags::EXEC).or_else(|_| sealed(name, bytes, MemfdFlags::empty()))
}

/// Bytes in a sealed memfd that can't be executed.
///
/// # Errors
/// The kernel's answer.
pub fn sealed_data(name: &CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    use rustix::fs::MemfdFlags;
    sealed(name, bytes, MemfdFlags::NOEXEC_SEAL).or_else(|_| sealed(name, bytes, MemfdFlags::empty()))
}

fn sealed(name: &CStr, bytes: &[u8], flags: rustix::fs::MemfdFlags) -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | flags)?;
    let mut file = std::fs::File::from(file);
    io::Write::write_all(&mut file, bytes)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file.into())
}
