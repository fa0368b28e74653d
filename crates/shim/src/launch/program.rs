//! The last steps before `execve`, the same for a container's first process and for an exec.

use super::Stdio;
use crate::identity;
use crate::protocol::{Failure, FailureKind, Fault, ProcessPlan, SandboxPlan};
use crate::report::{self, Report, failure, setup};
use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags, openat};
use rustix::io::Errno;
use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A process that is in its namespaces.
pub(super) struct Program<'a> {
    pub(super) process: &'a ProcessPlan,
    pub(super) seccomp: Option<BorrowedFd<'a>>,
    pub(super) stdio: &'a Stdio,
    pub(super) terminal: Option<OwnedFd>,
    pub(super) status: &'a OwnedFd,
    /// The shim's own `/proc`; a container could have put anything over its own.
    pub(super) proc: OwnedFd,
}

/// The `/proc` that the shim's mount namespace has.
pub(super) fn open_proc() -> Result<OwnedFd, Failure> {
    openat(rustix::fs::CWD, "/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| setup("open /proc")(e.into()))
}

/// Refuses to go on unless the maps that the kernel shows of `process` (a PID or `self`) are those that were asked for.
pub(super) fn check_maps(plan: &SandboxPlan, proc: &OwnedFd, process: &str) -> Result<(), Failure> {
    let Some(user) = &plan.user_namespace else { return Ok(()) };
    for (name, wanted) in [("uid_map", &user.uids), ("gid_map", &user.gids)] {
        let mut text = read_at(proc, &format!("{process}/{name}"))
            .map_err(setup(format!("read /proc/{process}/{name}")))?;
        if plan.faults.contains(&Fault::WrongMap) {
            "0 0 4294967295\n".clone_into(&mut text);
        }
        let real = sys::idmap::parse_map(&text);
        if !real.is_some_and(|real| sys::idmap::is_same(&real, wanted)) {
            return Err(failure(format!(
                "refusing to run: /proc/{process}/{name} says {:?}, but the Pod's mapping is {} ({wanted:?})",
                text.trim(),
                sys::idmap::describe(wanted)
            )));
        }
    }
    Ok(())
}

fn read_at(dir: &OwnedFd, path: &str) -> io::Result<String> {
    let file = openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    std::fs::File::from(file).read_to_string(&mut text)?;
    Ok(text)
}

/// Becomes the program; comes back only with a failure.
pub(super) fn become_program(program: &Program<'_>) -> Result<(), Failure> {
    let process = program.process;
    let filter = program.seccomp.map(read_seccomp).transpose()?;
    place_stdio(program).map_err(setup("place the standard streams"))?;
    set_labels(process, &program.proc)?;
    let inside = change_directory(&process.cwd);
    if let Some(warning) = identity::take(process)? {
        super::warn(program.status, warning)?;
    }
    // As the user, if root of the container may not (NFS).
    inside.or_else(|_| change_directory(&process.cwd))?;
    rustix::process::umask(Mode::from_raw_mode(process.umask.unwrap_or(0o022)));
    let path = find_program(process)?;
    let (args, env) = (strings(&process.args)?, strings(&process.env)?);
    let file = CString::new(path.into_os_string().into_encoded_bytes())
        .map_err(|_| failure("NUL in the program's path"))?;
    sys::process::reset_signals();
    identity::die_with_parent().map_err(setup("set the parent death signal"))?;
    // If the shim died before that, there is nobody to send to, and this process ends.
    report::send(program.status, &Report::Executing, &[]).map_err(setup("report to the shim"))?;
    if let Some(filter) = filter {
        sys::seccomp::install(&filter, process.seccomp_flags).map_err(setup("install the seccomp filter"))?;
    }
    Err(execve_failure(process, &execve(&file, &args, &env)))
}

fn read_seccomp(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Failure> {
    read_end(fd, u64::MAX).map_err(setup("read the seccomp program"))
}

/// The last bytes of a file, `most` of them at most. Others may hold the same open file: its position does not move.
pub(super) fn read_end(fd: impl AsFd, most: u64) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let file = fd.as_fd().try_clone_to_owned().map(std::fs::File::from)?;
    let length = file.metadata()?.len();
    let mut bytes = vec![0; usize::try_from(length.min(most)).unwrap_or(0)];
    file.read_exact_at(&mut bytes, length.saturating_sub(most))?;
    Ok(bytes)
}

/// A session of its own, the streams as 0, 1 and 2, everything else gone at `execve`.
fn place_stdio(program: &Program<'_>) -> io::Result<()> {
    rustix::process::setsid()?;
    if let Some(terminal) = &program.terminal {
        rustix::process::ioctl_tiocsctty(terminal)?;
        for target in 0..3 {
            place(terminal, target)?;
        }
    } else {
        let Stdio { stdin, stdout, stderr } = program.stdio;
        for (stream, target) in [(stdin, 0), (stdout, 1), (stderr, 2)] {
            match stream {
                Some(stream) => place(stream, target)?,
                None => place(&null()?, target)?,
            }
        }
    }
    close_others()
}

pub(super) fn null() -> io::Result<OwnedFd> {
    Ok(openat(rustix::fs::CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

pub(super) fn place(source: &OwnedFd, target: i32) -> io::Result<()> {
    // SAFETY: two plain descriptor numbers; 0, 1 and 2 belong to nobody in this process any more.
    let result = unsafe { libc::dup2(source.as_raw_fd(), target) };
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Marks everything from 3 on close-on-exec.
fn close_others() -> io::Result<()> {
    // SAFETY: plain integers; nothing is closed before `execve`.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The labels that the kernel gives the program at `execve`.
fn set_labels(process: &ProcessPlan, proc: &OwnedFd) -> Result<(), Failure> {
    let write = |path: &str, text: &str| -> io::Result<()> {
        let file = openat(proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(file, text.as_bytes())?;
        Ok(())
    };
    if let Some(profile) = &process.apparmor_profile {
        let text = format!("exec {profile}");
        write("thread-self/attr/apparmor/exec", &text)
            .or_else(|_| write("thread-self/attr/exec", &text))
            .map_err(setup(format!("set the AppArmor profile {profile:?} (is it loaded on this node?)")))?;
    }
    if let Some(label) = &process.selinux_label {
        write("thread-self/attr/exec", label).map_err(setup(format!("set the SELinux label {label:?}")))?;
    }
    Ok(())
}

/// A working directory outside the root (through a descriptor that leaked in) is an escape: CVE-2024-21626.
fn change_directory(cwd: &str) -> Result<(), Failure> {
    rustix::process::chdir(cwd).map_err(|e| setup(format!("chdir to {cwd:?}"))(e.into()))?;
    match std::env::current_dir() {
        Ok(path) if path.is_absolute() => Ok(()),
        _ => Err(failure(format!("the working directory {cwd:?} is outside the container"))),
    }
}

/// As `execvp` does; the sentences are those that users of the field's runtimes know.
fn find_program(process: &ProcessPlan) -> Result<PathBuf, Failure> {
    let Some(name) = process.args.first().filter(|name| !name.is_empty()) else {
        return Err(failure("no command specified: neither the image nor the container has one"));
    };
    if name.contains('/') {
        return check_executable(Path::new(name)).map(|()| PathBuf::from(name)).map_err(
            |errno| match errno {
                Errno::NOENT | Errno::NOTDIR => {
                    not_found(format!("exec: {name:?}: stat {name}: no such file or directory"))
                }
                _ => not_executable(format!("exec: {name:?}: permission denied")),
            },
        );
    }
    let search = process.env.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
    let search = search.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let mut denied = false;
    for directory in search.split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        match check_executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ACCESS) => denied = true,
            Err(_) => {}
        }
    }
    Err(if denied {
        not_executable(format!("exec: {name:?}: permission denied"))
    } else {
        not_found(format!("exec: {name:?}: executable file not found in $PATH"))
    })
}

fn check_executable(path: &Path) -> rustix::io::Result<()> {
    let status = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
        return Err(Errno::ACCESS);
    }
    rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

fn not_found(message: String) -> Failure {
    Failure { kind: FailureKind::CommandNotFound, message }
}

fn not_executable(message: String) -> Failure {
    Failure { kind: FailureKind::CommandNotExecutable, message }
}

pub(super) fn strings(list: &[String]) -> Result<Vec<CString>, Failure> {
    let convert =
        |text: &String| CString::new(text.as_str()).map_err(|_| failure(format!("NUL byte in {text:?}")));
    list.iter().map(convert).collect()
}

pub(super) fn execve(file: &CString, args: &[CString], env: &[CString]) -> io::Error {
    let pointers =
        |list: &[CString]| list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: null-terminated strings and arrays that outlive the call.
    unsafe { libc::execve(file.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

fn execve_failure(process: &ProcessPlan, error: &io::Error) -> Failure {
    let name = process.args.first().map_or("", String::as_str);
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            not_found(format!("exec {name}: no such file or directory (is its interpreter in the image?)"))
        }
        Some(libc::ENOEXEC) => not_executable(format!(
            "exec {name}: exec format error (is the image for this machine's architecture?)"
        )),
        Some(libc::EACCES | libc::EPERM) => not_executable(format!("exec {name}: permission denied")),
        Some(libc::E2BIG) => {
            failure(format!("exec {name}: argument list too long (arguments and environment together)"))
        }
        _ => not_executable(format!("exec {name}: {error}")),
    }
}
