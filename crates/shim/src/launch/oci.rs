//! Containers of an OCI runtime (runc, crun …): a launcher that runs `create` and `start`, or `exec`, as a conmon would.
//!
//! The launcher takes what the Pod has with it (its namespaces and its shared memory, as detached mounts), leaves for a
//! private copy of the daemon's mount namespace, and lays everything out on a tmpfs there, the *stage*: what the runtime
//! mounts is mounted and ID-mapped already, so it needs to know neither ID-mapped mounts nor the kernel's newer calls.
//! When the last process of that namespace is gone, all of it is gone; the node's mount table never changes.
//!
//! The runtime's container process becomes a child of the shim, which is subreaper, when the runtime ends. Between
//! `create` and `start` it waits, and the ID map that it joined is compared with the one that was asked for.

use super::{Begun, Fds, Job, Stdio, begin, finish, mounts, program, set_limits};
use crate::identity;
use crate::protocol::{
    CgroupFds, DevicePlan, ExecPlan, Failure, FailureKind, MountSource, OciPlan, ProcessPlan,
};
use crate::report::{self, Report, failure, setup};
use crate::sandbox::{NEWNS, Sandbox};
use crate::stage::{self, last_line};
use rustix::fs::{FileType, Mode, OFlags, openat};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use sys::mount::{Attributes, FsOption, TRIMMED_SHM, new_filesystem};
use sys::path::{Kind, open_or_make};
use sys::process::{CloneOptions, Ended, Fork, fork};

/// Where runtimes look for their own helpers.
const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bytes of what a runtime said that are read.
const WORDS: u64 = 64 << 10;

/// Starts a container.
pub(super) fn start_container(job: &Job<'_>, oci: &OciPlan) -> Result<Begun, Failure> {
    begin(&birthplace(oci, &job.plan.cgroup), job.fds, |status| container(job, oci, status))
}

/// Starts a further process in a running container.
pub(super) fn start_exec(plan: &ExecPlan, oci: &OciPlan, fds: &Fds) -> Result<Begun, Failure> {
    begin(&birthplace(oci, &plan.cgroup), fds, |status| exec(plan, oci, fds, status))
}

/// A runtime is in the shim's groups and moves its containers into theirs, but for the hierarchy that it does not see.
fn birthplace(oci: &OciPlan, cgroup: &CgroupFds) -> CgroupFds {
    CgroupFds { unified: cgroup.unified.filter(|_| oci.hidden.is_some()), legacy: Vec::new() }
}

fn container(job: &Job<'_>, oci: &OciPlan, status: &OwnedFd) -> Result<(), Failure> {
    set_limits(&job.plan.process, status)?;
    let proc = program::open_proc()?;
    let parts = pod_parts(job)?;
    let runtime = Runtime::enter(oci, job.fds, status)?;
    lay_out(job, parts, &runtime.stage)?;
    runtime.write(stage::CONFIG, job.fds.get(oci.config)?)?;
    let create = ["create", "--bundle", &oci.stage];
    let id = &job.plan.id;
    let made = runtime.make_process(&create, id, &job.plan.process, &job.stdio).and_then(|pid| {
        program::check_maps(&job.sandbox.plan, &proc, &pid.to_string())?;
        runtime.run(&["start", id], None)
    });
    if let Err(failure) = made {
        // The failure is what counts; the daemon deletes again when the container is removed.
        let _ = runtime.run(&["delete", "--force", id], None);
        return Err(failure);
    }
    report::send(status, &Report::Executing, &[]).map_err(setup("report to the shim"))
}

fn exec(plan: &ExecPlan, oci: &OciPlan, fds: &Fds, status: &OwnedFd) -> Result<(), Failure> {
    set_limits(&plan.process, status)?;
    let copy = |index: Option<_>| index.map(|index| fds.copy(index)).transpose();
    let stdio = Stdio { stdin: copy(plan.stdin)?, stdout: copy(plan.stdout)?, stderr: copy(plan.stderr)? };
    let runtime = Runtime::enter(oci, fds, status)?;
    // Nothing is mounted there now, but runc starts its helper in the directory of its configuration's root.
    open_or_make(&runtime.stage, Path::new(stage::ROOTFS), Kind::Directory)
        .map_err(setup("make a directory on the stage"))?;
    runtime.write(stage::PROCESS, fds.get(oci.config)?)?;
    let process = runtime.path(stage::PROCESS);
    let exec = ["exec", "--detach", "--process", &process];
    runtime.make_process(&exec, &plan.container, &plan.process, &stdio)?;
    report::send(status, &Report::Executing, &[]).map_err(setup("report to the shim"))
}

/// What of the Pod is mounted for the runtime: its place on the stage, what it is, and a detached mount of it.
type Part = (String, Kind, OwnedFd);

/// The Pod's own namespaces, and its shared memory.
fn pod_parts(job: &Job<'_>) -> Result<Vec<Part>, Failure> {
    let Sandbox { user, network, ipc, uts, init, .. } = job.sandbox;
    let pid = job.pid_target.or_else(|| init.as_ref().map(|(_, namespace)| namespace.as_fd()));
    let own = [("user", user), ("network", network), ("ipc", ipc), ("uts", uts)];
    let own = own.into_iter().filter_map(|(name, namespace)| Some((name, namespace.as_ref()?.as_fd())));
    let mut parts = Vec::new();
    for (name, namespace) in own.chain(pid.map(|namespace| ("pid", namespace))) {
        let mount = sys::mount::clone_fd(namespace, false)
            .map_err(setup(format!("clone the Pod's {name} namespace")))?;
        parts.push((format!("{}/{name}", stage::NAMESPACES), Kind::File, mount));
    }
    if job.plan.mounts.iter().any(|mount| mount.source == MountSource::Shm) {
        let shm = sys::mount::clone_path(Path::new(TRIMMED_SHM), false);
        parts.push((stage::SHM.to_owned(), Kind::Directory, shm.map_err(setup("clone shared memory"))?));
    }
    Ok(parts)
}

/// Puts everything at the places that the container's `config.json` names.
fn lay_out(job: &Job<'_>, mut parts: Vec<Part>, top: &OwnedFd) -> Result<(), Failure> {
    parts.push((stage::ROOTFS.to_owned(), Kind::Directory, job.fds.copy(job.plan.rootfs)?));
    for mount in &job.plan.mounts {
        if let MountSource::Fd(index) = mount.source {
            let fd = job.fds.copy(index)?;
            parts.push((stage::mount(index), mounts::kind_of(&fd)?, fd));
        }
    }
    for (place, kind, mount) in parts {
        let target = open_or_make(top, Path::new(&place), kind)
            .map_err(setup(format!("make {place} on the stage")))?;
        sys::mount::attach(&mount, &target).map_err(setup(format!("attach {place} on the stage")))?;
    }
    // In the node's user namespace the runtime makes them by itself.
    let devices = job.plan.devices.iter().enumerate().filter(|_| job.sandbox.user.is_some());
    devices.into_iter().try_for_each(|(number, plan)| make_device(job, top, number, plan))
}

/// A device node with the container's owner. In a user namespace a runtime can make none: it would bind the node's own
/// one of the same path, with the node's owner.
fn make_device(job: &Job<'_>, top: &OwnedFd, number: usize, plan: &DevicePlan) -> Result<(), Failure> {
    let directory = open_or_make(top, Path::new(stage::DEVICES), Kind::Directory)
        .map_err(setup("make a directory on the stage"))?;
    let kind = if plan.is_block { FileType::BlockDevice } else { FileType::CharacterDevice };
    let name = number.to_string();
    let owner = (job.sandbox.host_uid(plan.uid)?, job.sandbox.host_gid(plan.gid)?);
    mounts::make_node(&directory, Path::new(&name), kind, plan.mode, (plan.major, plan.minor))
        .and_then(|()| mounts::chown(&directory, Path::new(&name), owner))
        .map_err(|errno| setup(format!("make the device node {}", plan.path))(errno.into()))
}

/// A runtime, and this process's own stage.
struct Runtime<'a> {
    oci: &'a OciPlan,
    stage: OwnedFd,
    status: &'a OwnedFd,
    /// What it says where no stream of the container is its own.
    words: File,
}

impl<'a> Runtime<'a> {
    /// Leaves for a private copy of the daemon's mount namespace and mounts the stage. What happens on the node's side is
    /// seen here, and nothing the other way.
    fn enter(oci: &'a OciPlan, fds: &Fds, status: &'a OwnedFd) -> Result<Self, Failure> {
        sys::process::enter_namespaces(fds.get(oci.mount_namespace)?, NEWNS)
            .map_err(setup("enter the daemon's mount namespace"))?;
        sys::process::unshare(NEWNS).map_err(setup("make a mount namespace"))?;
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .map_err(|errno| setup("make the mounts private")(errno.into()))?;
        if let Some(hidden) = &oci.hidden {
            unmount(hidden.as_str(), UnmountFlags::DETACH)
                .map_err(|errno| setup(format!("hide {hidden} from the OCI runtime"))(errno.into()))?;
        }
        let options = [FsOption::Text("mode", "755"), FsOption::Text("size", "16m")];
        let tmpfs = new_filesystem("tmpfs", &options, Attributes::NOSUID)
            .map_err(|error| failure(error.to_string()))?;
        let place = open_directory(&oci.stage).map_err(setup(format!("open the stage {}", oci.stage)))?;
        sys::mount::attach(&tmpfs, &place).map_err(setup(format!("mount the stage {}", oci.stage)))?;
        let words = rustix::fs::memfd_create(c"words", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|errno| setup("make a file")(errno.into()))?;
        Ok(Self { oci, stage: tmpfs, status, words: words.into() })
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.oci.stage)
    }

    /// Copies a text of the daemon's onto the stage.
    fn write(&self, name: &str, text: BorrowedFd<'_>) -> Result<(), Failure> {
        program::read_end(text, u64::MAX)
            .and_then(|bytes| std::fs::write(self.path(name), bytes))
            .map_err(setup(format!("write {name}")))
    }

    /// Runs a verb that makes a process, tells the shim of it, and answers its PID.
    fn make_process(
        &self,
        verb: &[&str],
        id: &str,
        process: &ProcessPlan,
        stdio: &Stdio,
    ) -> Result<i32, Failure> {
        let (pid_file, console) = (self.path(stage::PID), self.path(stage::CONSOLE));
        let mut args = verb.to_vec();
        args.extend(["--pid-file", &pid_file]);
        let mut listener = None;
        if process.terminal {
            args.extend(["--console-socket", &console]);
            listener =
                Some(UnixListener::bind(&console).map_err(setup("listen for the container's terminal"))?);
        }
        args.push(id);
        self.run(&args, listener.is_none().then_some(stdio))?;
        if let Some(listener) = listener {
            self.pass_terminal(&listener, process)?;
        }
        let text = File::open(&pid_file).map(read_text).map_err(setup("read the PID of the container"))?;
        let pid = text.trim().parse().map_err(|_| {
            failure(format!("the OCI runtime {} says that the PID is {text:?}", self.oci.program))
        })?;
        report::send(self.status, &Report::Pid(pid), &[]).map_err(setup("report to the shim"))?;
        Ok(pid)
    }

    /// The runtime has connected and sent before it ended.
    fn pass_terminal(&self, listener: &UnixListener, process: &ProcessPlan) -> Result<(), Failure> {
        let receive = || {
            listener.set_nonblocking(true)?;
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(true)?;
            let mut fds = Vec::new();
            sys::socket::receive(&stream, &mut [0; 4096], &mut fds)?;
            fds.into_iter().next().ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
        };
        let master = receive().map_err(setup(format!("receive the terminal from {}", self.oci.program)))?;
        if let Some(size) = process.terminal_size {
            sys::pty::resize(&master, size.columns, size.rows).map_err(setup("set the terminal's size"))?;
        }
        report::send(self.status, &Report::Terminal, &[master.as_fd()])
            .map_err(setup("send the terminal to the shim"))
    }

    /// Runs the runtime to its end, with the container's streams or with none.
    fn run(&self, args: &[&str], stdio: Option<&Stdio>) -> Result<(), Failure> {
        let OciPlan { program, state, .. } = self.oci;
        let log = self.path(stage::LOG);
        let own = [program, "--root", state, "--log", &log, "--log-format", "json"];
        let all: Vec<String> = own.into_iter().chain(args.iter().copied()).map(str::to_owned).collect();
        // SAFETY: single-threaded, as the shim that forked this process.
        let child = match unsafe { fork(CloneOptions::default()) }.map_err(setup("fork"))? {
            Fork::Child => {
                let failed = self.become_runtime(&all, stdio);
                finish(self.status, failed.map_err(setup(format!("run the OCI runtime {program}"))))
            }
            Fork::Parent(child) => child,
        };
        report::send(self.status, &Report::Runtime(child.pid), &[]).map_err(setup("report to the shim"))?;
        let ended = match child.wait().map_err(setup(format!("wait for {program}")))? {
            Ended::Exited(0) => return Ok(()),
            Ended::Exited(code) => format!("it ended with exit status {code}"),
            Ended::Signaled(signal) => format!("signal {signal} ended it"),
        };
        let said = self.said().unwrap_or_else(|| format!("{ended} and left no word in its log"));
        let verb = args.first().copied().unwrap_or_default();
        Err(Failure { kind: kind_of(&said), message: format!("{program} {verb}: {said}") })
    }

    /// Comes back only with a failure.
    fn become_runtime(&self, args: &[String], stdio: Option<&Stdio>) -> io::Result<()> {
        let (null, words) = (program::null()?, self.words.try_clone()?.into());
        let streams = match stdio {
            Some(Stdio { stdin, stdout, stderr }) => {
                [stdin, stdout, stderr].map(|stream| stream.as_ref().unwrap_or(&null))
            }
            None => [&null, &words, &words],
        };
        for (target, stream) in (0..).zip(streams) {
            program::place(stream, target)?;
        }
        rustix::process::chdir(self.oci.stage.as_str())?;
        let strings = |list: &[String]| program::strings(list).map_err(io::Error::other);
        let (args, env) = (strings(args)?, strings(&[format!("PATH={SEARCH}")])?);
        let file = args.first().cloned().unwrap_or_default();
        sys::process::reset_signals();
        identity::die_with_parent()?;
        Err(program::execve(&file, &args, &env))
    }

    /// Why it failed, in its own words: those of its log, else the last that it wrote.
    fn said(&self) -> Option<String> {
        let log = File::open(self.path(stage::LOG)).map(read_text).unwrap_or_default();
        last_error(&log).or_else(|| last_line(&read_text(&self.words)))
    }
}

fn open_directory(path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(rustix::fs::CWD, path, flags, Mode::empty())?)
}

/// The end of a file as text.
fn read_text(file: impl AsFd) -> String {
    let bytes = program::read_end(file, WORDS).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The text of a field in a line of JSON.
fn field(line: &str, name: &str) -> Option<String> {
    let (_, rest) = line.split_once(&format!("\"{name}\":"))?;
    serde_json::Deserializer::from_slice(rest.as_bytes()).into_iter::<String>().next()?.ok()
}

/// The last error of a log of JSON lines, or the last line of one that is none.
fn last_error(log: &str) -> Option<String> {
    let message = |line: &str| match field(line, "level")?.as_str() {
        "error" | "fatal" => field(line, "msg"),
        _ => None,
    };
    let is_json = log.trim_start().starts_with('{');
    log.rsplit('\n').find_map(message).or_else(|| if is_json { None } else { last_line(log) })
}

/// What users know as exit codes 127 and 126, by the words of runc and crun.
fn kind_of(said: &str) -> FailureKind {
    let said = said.to_ascii_lowercase();
    let is_about_program = said.contains("executable file") || said.contains("exec: ");
    let has = |words: &str| said.contains(words);
    match (is_about_program, has("not found") || has("no such file"), has("permission denied")) {
        (true, true, _) => FailureKind::CommandNotFound,
        (true, _, true) => FailureKind::CommandNotExecutable,
        _ => FailureKind::Setup,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_runtimes_log_is_its_reason() {
        let log = concat!(
            "{\"level\":\"warning\",\"msg\":\"slow\"}\n",
            "{\"level\":\"error\",\"msg\":\"first\"}\n",
            "{\"level\":\"error\",\"msg\":\"runc create failed: no space\"}\n",
            "{\"level\":\"info\",\"msg\":\"bye\"}\n",
        );
        assert_eq!(last_error(log).as_deref(), Some("runc create failed: no space"));
        assert_eq!(last_error("{\"level\":\"info\",\"msg\":\"bye\"}\n"), None);
        assert_eq!(last_error("cannot do it\n\n").as_deref(), Some("cannot do it"));
        assert_eq!(last_error(""), None);
    }

    #[test]
    fn a_program_that_is_not_there_is_told_from_a_failed_set_up() {
        let cases = [
            ("exec: \"nope\": executable file not found in $PATH", FailureKind::CommandNotFound),
            (
                "executable file `nope` not found in $PATH: No such file or directory",
                FailureKind::CommandNotFound,
            ),
            ("exec: \"/etc/passwd\": permission denied", FailureKind::CommandNotExecutable),
            ("mount /proc: permission denied", FailureKind::Setup),
            ("open config.json: no such file or directory", FailureKind::Setup),
        ];
        for (said, kind) in cases {
            assert_eq!(kind_of(said), kind, "{said}");
        }
    }
}
