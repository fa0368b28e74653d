//! What the daemon and a shim say to each other: plans, requests, answers and events, as JSON with descriptors beside them.
//!
//! The protocol has one version number and only grows: a shim outlives the daemon that started it, so a newer
//! daemon must be able to talk to an older shim. Fields are added with `#[serde(default)]` and never change meaning.

use serde::{Deserialize, Serialize};
pub use sys::idmap::IdMapping;

/// The version that this code speaks. A peer answers what it knows and refuses the rest by name.
pub const VERSION: u32 = 1;

/// Which of the descriptors sent beside a request is meant (0 is the first).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdIndex(pub u16);

/// Everything that a shim needs to make a Pod's namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxPlan {
    /// The sandbox ID, for messages and the process title.
    pub id: String,
    /// The Pod's own user namespace; `None` runs it in the node's (`hostUsers: true`).
    #[serde(default)]
    pub user_namespace: Option<UserNamespacePlan>,
    /// Network namespace.
    pub network: Namespace,
    /// IPC namespace.
    pub ipc: Namespace,
    /// UTS namespace (host name). The field's runtimes share it exactly when the network is the node's.
    pub uts: Namespace,
    /// PID namespace of the containers.
    pub pid: PidNamespace,
    /// Host name inside; used when `uts` is [`Namespace::Pod`].
    #[serde(default)]
    pub hostname: String,
    /// Kernel parameters, set inside the new namespaces. A name outside them is refused.
    #[serde(default)]
    pub sysctls: Vec<Sysctl>,
    /// Size of the Pod's `/dev/shm` in bytes; 0 means 64 MiB.
    #[serde(default)]
    pub shm_size: u64,
    /// Failures to act out, for tests.
    #[serde(default)]
    pub faults: Vec<Fault>,
}

/// The mapping and the identity that creates the namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespacePlan {
    /// UID extents; together they are what `/proc/self/uid_map` must say before any `execve`.
    pub uids: Vec<IdMapping>,
    /// GID extents.
    pub gids: Vec<IdMapping>,
    /// The host UID that the kernel charges for the namespace and what is made in it (inotify instances …):
    /// the Pod's base UID, or 0 where that UID is an account of the node.
    pub creator_uid: u32,
}

impl UserNamespacePlan {
    /// The host UID of the container's root, if UID 0 is mapped.
    pub fn root_uid(&self) -> Option<u32> {
        sys::idmap::to_host(&self.uids, 0)
    }

    /// The host GID of the container's root group, if GID 0 is mapped.
    pub fn root_gid(&self) -> Option<u32> {
        sys::idmap::to_host(&self.gids, 0)
    }
}

/// Whose namespace is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Namespace {
    /// One of the Pod's own.
    Pod,
    /// The node's.
    Node,
}

/// Whose PID namespace a container runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// One per container.
    Container,
    /// One per Pod, with the shim's tiny init as PID 1 (`shareProcessNamespace`).
    Pod,
    /// The node's (`hostPID`).
    Node,
}

/// A kernel parameter, in dotted form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// Name, e.g. `net.ipv4.ip_unprivileged_port_start`.
    pub name: String,
    /// Value as written.
    pub value: String,
}

/// A failure that a test asks the shim to act out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// The kernel answers ENOSPC when the user namespace is created.
    UserNamespaceNoSpace,
    /// The map that the container's first process reads differs from the one asked for.
    WrongMap,
}

/// A container, complete: nothing is looked up by path later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// The container ID.
    pub id: String,
    /// Detached mount of the root filesystem.
    pub rootfs: FdIndex,
    /// Makes the root filesystem read-only after everything is mounted.
    #[serde(default)]
    pub read_only_rootfs: bool,
    /// Mounts in the order in which they are made. See [`default_mounts`].
    pub mounts: Vec<MountPlan>,
    /// Further device nodes; the usual six are always there.
    #[serde(default)]
    pub devices: Vec<DevicePlan>,
    /// Paths hidden from the container.
    #[serde(default)]
    pub masked_paths: Vec<String>,
    /// Paths made read-only.
    #[serde(default)]
    pub read_only_paths: Vec<String>,
    /// Where the processes are placed.
    pub cgroup: CgroupFds,
    /// The first process.
    pub process: ProcessPlan,
    /// Standard input.
    pub stdin: Stdin,
    /// The CRI-format log file, opened for appending; `None` writes no log.
    #[serde(default)]
    pub log: Option<FdIndex>,
    /// A PID in the shim's PID namespace whose PID namespace this container joins instead of
    /// having its own (`NamespaceMode.TARGET`); must be a container of this shim.
    #[serde(default)]
    pub target_container: Option<String>,
    /// The OCI runtime that runs it; `None` is the shim's own launcher.
    #[serde(default)]
    pub oci: Option<OciPlan>,
}

/// An OCI runtime that runs a container or an exec instead of the shim's own launcher. It sees the node's files as the
/// daemon does, and what was opened for the container at its place in the stage ([`crate::stage`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OciPlan {
    /// Absolute path of its program.
    pub program: String,
    /// Directory of its state (`--root`).
    pub state: String,
    /// An empty directory that everybody may enter; each launch has its own tmpfs there, which nobody else sees.
    pub stage: String,
    /// The daemon's mount namespace.
    pub mount_namespace: FdIndex,
    /// A file with the text of `config.json`, for an exec with that of its process.
    pub config: FdIndex,
    /// The mount of the v2 hierarchy of a node that has v1 hierarchies too. crun refuses to work beside one that has
    /// controllers, so it is hidden from the runtime, which is born in its group instead of moving the container there.
    #[serde(default)]
    pub hidden: Option<String>,
}

/// One mount of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// Absolute path inside the root filesystem; made if it does not exist.
    pub destination: String,
    /// What is mounted.
    pub source: MountSource,
    /// Read-only (kernel filesystems; a descriptor carries its own attributes).
    #[serde(default)]
    pub read_only: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A detached mount made by the daemon, with its attributes, ID mapping and propagation already set.
    Fd(FdIndex),
    /// procfs of the container's PID namespace.
    Proc,
    /// sysfs of the container's network namespace.
    Sysfs,
    /// `/dev`: a tmpfs with the usual device nodes and links.
    Dev,
    /// A devpts instance of its own.
    Devpts,
    /// The POSIX message queues of the IPC namespace.
    Mqueue,
    /// The Pod's shared-memory tmpfs.
    Shm,
    /// The container's view of its cgroup (v2, or a tmpfs with the v1 hierarchies given in [`CgroupFds`]).
    Cgroup,
    /// A tmpfs of the container alone.
    Tmpfs {
        /// Bytes; 0 leaves the kernel's default.
        size: u64,
        /// Permission bits of its root, e.g. `0o1777`.
        mode: u32,
    },
}

/// A device node, made by the shim with the container's IDs as owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePlan {
    /// Absolute path inside the container, below `/dev`.
    pub path: String,
    /// Block device instead of character device.
    pub is_block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner, as the container sees it.
    pub uid: u32,
    /// Group, as the container sees it.
    pub gid: u32,
}

/// Open cgroup directories.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupFds {
    /// Directory in the v2 hierarchy (on a hybrid machine the one that has no controllers).
    #[serde(default)]
    pub unified: Option<FdIndex>,
    /// Directories in v1 hierarchies.
    #[serde(default)]
    pub legacy: Vec<LegacyCgroup>,
}

/// A directory in one v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyCgroup {
    /// The hierarchy's mount options, e.g. `memory`, `cpu,cpuacct`, `name=systemd`.
    pub controllers: String,
    /// The directory.
    pub directory: FdIndex,
}

/// A process in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// `NAME=value` each. `PATH` is where a program without a slash is looked for.
    pub env: Vec<String>,
    /// Working directory; made if it does not exist (first process only).
    pub cwd: String,
    /// Container UID.
    pub uid: u32,
    /// Container GID.
    pub gid: u32,
    /// Supplementary groups, as the container sees them.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// File mode creation mask; `None` is `0o022`.
    #[serde(default)]
    pub umask: Option<u32>,
    /// Capability sets.
    pub capabilities: CapabilityPlan,
    /// `no_new_privs`.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// A file with a compiled seccomp program ([`sys::seccomp`]); `None` is unconfined.
    #[serde(default)]
    pub seccomp: Option<FdIndex>,
    /// `SECCOMP_FILTER_FLAG_…` with which it is installed.
    #[serde(default)]
    pub seccomp_flags: u32,
    /// Resource limits; what the machine does not allow is set as high as it does and reported as a warning.
    #[serde(default)]
    pub rlimits: Vec<RlimitPlan>,
    /// Wanted `oom_score_adj`; set as low as the machine allows. `None` is 0, for an exec what its container has.
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
    /// A pseudo-terminal instead of pipes.
    #[serde(default)]
    pub terminal: bool,
    /// First size of the terminal.
    #[serde(default)]
    pub terminal_size: Option<TerminalSize>,
    /// `AppArmor` profile to change to at `execve`.
    #[serde(default)]
    pub apparmor_profile: Option<String>,
    /// `SELinux` label of the process.
    #[serde(default)]
    pub selinux_label: Option<String>,
}

/// The five capability sets as bit masks (bit n is capability n).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilityPlan {
    /// What can ever be had.
    pub bounding: u64,
    /// Permitted and effective set of a process that runs as container root.
    pub permitted: u64,
    /// Inheritable set; empty unless ambient ones are asked for (CVE-2022-24769).
    pub inheritable: u64,
    /// Ambient set, kept across `execve` by a process that is not root.
    pub ambient: u64,
}

/// One resource limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RlimitPlan {
    /// The kernel's number (`RLIMIT_NOFILE` is 7).
    pub resource: u32,
    /// Soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// Terminal size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// Standard input of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdin {
    /// `/dev/null`.
    Null,
    /// Stays open while clients come and go.
    Open,
    /// Closed when the first client that attached ends its input (`stdinOnce`).
    Once,
}

/// A further process in a running container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecPlan {
    /// Unique in this shim.
    pub id: String,
    /// The container.
    pub container: String,
    /// The process. With `terminal`, [`Reply::Started`] carries the terminal's master.
    pub process: ProcessPlan,
    /// Where it is placed.
    pub cgroup: CgroupFds,
    /// Read end of its standard input; `None` is `/dev/null`. Ignored with a terminal.
    #[serde(default)]
    pub stdin: Option<FdIndex>,
    /// Write end of its standard output.
    #[serde(default)]
    pub stdout: Option<FdIndex>,
    /// Write end of its standard error.
    #[serde(default)]
    pub stderr: Option<FdIndex>,
    /// The OCI runtime of its container, if it has one.
    #[serde(default)]
    pub oci: Option<OciPlan>,
}

/// What the daemon asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// All that the shim knows.
    State,
    /// The namespace descriptors, in the order network, then user (if the Pod has one).
    Namespaces,
    /// Takes a container's plan and descriptors; nothing runs yet.
    Create(Box<ContainerPlan>),
    /// Launches it; answered when `execve` has succeeded or failed.
    Start {
        /// The container.
        container: String,
    },
    /// Starts a further process; answered when `execve` has succeeded or failed.
    Exec(Box<ExecPlan>),
    /// Sends a signal.
    Signal {
        /// Container ID, or exec ID.
        process: String,
        /// Signal number.
        signal: i32,
        /// To every process in the container's cgroup and not only to the first.
        all: bool,
    },
    /// Sets a container terminal's size.
    Resize {
        /// Container ID.
        container: String,
        /// Size.
        size: TerminalSize,
    },
    /// Connects a client to a container's standard streams; the answer carries
    /// the descriptors that were asked for, in the order stdin, stdout, stderr.
    Attach {
        /// Container ID.
        container: String,
        /// Wants to write input.
        stdin: bool,
        /// Wants output.
        stdout: bool,
        /// Wants errors (never with a terminal).
        stderr: bool,
    },
    /// Continues the log in another file.
    ReopenLog {
        /// Container ID.
        container: String,
        /// The new file, opened for appending.
        log: FdIndex,
    },
    /// Ends a launch that is under way; answered when nothing of it is left. One that is over is left alone.
    Abort {
        /// Container ID.
        container: String,
    },
    /// Forgets a container that is not running.
    Remove {
        /// Container ID.
        container: String,
    },
    /// From now on this connection receives [`Event`]s; first the exits that happened before.
    Subscribe,
    /// Ends every container and then the shim.
    Shutdown,
}

/// A request with its version.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// What is asked.
    pub request: Request,
}

/// What the shim answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// Answer to [`Request::State`].
    State(Box<ShimState>),
    /// Answer to [`Request::Start`] and [`Request::Exec`].
    Started(Started),
    /// Refused or failed.
    Failed(Failure),
    /// Descriptors follow.
    Descriptors,
}

/// A process that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// PID in the daemon's PID namespace.
    pub pid: i32,
    /// Nanoseconds since 1970.
    pub started_at: u64,
    /// What was asked and could not be had in full (limits clamped …).
    pub warnings: Vec<String>,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The class.
    pub kind: FailureKind,
    /// A whole sentence.
    pub message: String,
}

/// Classes of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No such container or exec.
    NotFound,
    /// The state does not allow it (start twice, exec in a container that ended …).
    WrongState,
    /// The program does not exist: exit code 127.
    CommandNotFound,
    /// The program can't be executed: exit code 126.
    CommandNotExecutable,
    /// Anything before `execve`: exit code 128, reason `StartError`.
    Setup,
    /// The request itself is wrong or from another version.
    Invalid,
}

impl FailureKind {
    /// The exit code that the field's runtimes report for it.
    pub fn exit_code(self) -> i32 {
        match self {
            FailureKind::CommandNotFound => 127,
            FailureKind::CommandNotExecutable => 126,
            _ => 128,
        }
    }
}

/// All that a shim knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimState {
    /// [`VERSION`] of the shim.
    pub version: u32,
    /// The sandbox.
    pub sandbox: String,
    /// PID of the shim in the daemon's PID namespace.
    pub pid: i32,
    /// PID of the init of a shared PID namespace.
    pub init_pid: Option<i32>,
    /// The plan that it runs.
    pub plan: SandboxPlan,
    /// What could not be had in full.
    pub warnings: Vec<String>,
    /// Its containers.
    pub containers: Vec<ContainerState>,
    /// Running execs and those that ended since the last [`Request::Subscribe`].
    pub execs: Vec<ExecState>,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Container ID.
    pub id: String,
    /// Where it stands.
    pub phase: Phase,
    /// PID of the first process while it runs.
    pub pid: Option<i32>,
    /// Nanoseconds since 1970.
    pub started_at: Option<u64>,
    /// How it ended.
    pub exit: Option<Exit>,
}

/// Where a container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Its plan is held.
    Created,
    /// It is being launched.
    Starting,
    /// It runs.
    Running,
    /// It ended.
    Exited,
}

/// An exec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecState {
    /// Exec ID.
    pub id: String,
    /// Its container.
    pub container: String,
    /// PID while it runs.
    pub pid: Option<i32>,
    /// How it ended.
    pub exit: Option<Exit>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + n for signal n.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel's OOM killer ended a process of the container.
    pub oom_killed: bool,
    /// Nanoseconds since 1970.
    pub finished_at: u64,
    /// Why, where the code does not tell (start failed …).
    #[serde(default)]
    pub message: String,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A container's first process ended; its log is complete.
    ContainerExited {
        /// Container ID.
        container: String,
        /// How.
        exit: Exit,
    },
    /// An exec ended.
    ExecExited {
        /// Exec ID.
        exec: String,
        /// Its container.
        container: String,
        /// How.
        exit: Exit,
    },
}

/// The record of a container's end that stays in the run directory when the shim is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Container ID.
    pub container: String,
    /// Nanoseconds since 1970.
    pub started_at: Option<u64>,
    /// How it ended.
    pub exit: Exit,
}

/// What the daemon hands a new shim besides its plan.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StartMessage {
    pub(crate) version: u32,
    pub(crate) plan: SandboxPlan,
}

/// What a new shim answers once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum StartReply {
    Ready { warnings: Vec<String> },
    Failed(Failure),
}

/// Kernel filesystems that every Linux container has, in the order in which they are mounted.
pub fn default_mounts() -> Vec<MountPlan> {
    let mount = |destination: &str, source, read_only| MountPlan {
        destination: destination.to_owned(),
        source,
        read_only,
    };
    vec![
        mount("/proc", MountSource::Proc, false),
        mount("/dev", MountSource::Dev, false),
        mount("/dev/pts", MountSource::Devpts, false),
        mount("/dev/mqueue", MountSource::Mqueue, false),
        mount("/dev/shm", MountSource::Shm, false),
        mount("/sys", MountSource::Sysfs, true),
        mount("/sys/fs/cgroup", MountSource::Cgroup, true),
    ]
}
