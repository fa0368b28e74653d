//! A Pod for tests: real shim, real namespaces, overlay of a busybox image, groups and directories of its own.
//!
//! Needs root and `busybox` (statically linked). What a killed run leaves has its PID in the name and is swept.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

#[path = "../../embed.rs"]
mod embed;

use shim::client::{ClientError, Descriptors, Launcher, ShimClient};
use shim::protocol::{
    CapabilityPlan, ContainerPlan, Event, ExecPlan, Exit, FdIndex, IdMapping, MountPlan, MountSource,
    Namespace, PidNamespace, ProcessPlan, SandboxPlan, Stdin, UserNamespacePlan, default_mounts,
};
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use sys::cgroup::{Layout, Limits};

pub const DEADLINE: Duration = Duration::from_secs(30);
pub const SIZE: u32 = 65_536;

/// The shim's program, built as it is embedded; `KAKOI_SHIM` names one for machines without cargo.
pub fn program() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(path) = std::env::var_os("KAKOI_SHIM") {
            return fs::read(path).unwrap();
        }
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let target_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("embedded-shim");
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        fs::read(embed::build(Path::new(&cargo), workspace, &target, &target_dir).unwrap()).unwrap()
    })
}

pub fn launcher() -> &'static Launcher {
    static LAUNCHER: OnceLock<Launcher> = OnceLock::new();
    LAUNCHER.get_or_init(|| {
        assert!(
            rustix::process::getuid().is_root(),
            "these tests make namespaces, mounts and cgroups: run them as root"
        );
        Launcher::new(program()).unwrap()
    })
}

/// A number that no other test of this or another running process has.
fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Removes the groups that tests of dead processes left.
fn sweep(layout: &Layout) {
    static SWEPT: OnceLock<()> = OnceLock::new();
    SWEPT.get_or_init(|| {
        for root in layout.directories("/") {
            for entry in fs::read_dir(root).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let pid = name.strip_prefix("kakoi-shim-test-").and_then(|rest| rest.split('-').next());
                if let Some(pid) = pid
                    && !Path::new("/proc").join(pid).exists()
                {
                    let _ = sys::cgroup::kill(layout, &name);
                    let _ = sys::cgroup::remove(layout, &name, Duration::from_secs(5));
                }
            }
        }
    });
}

/// An image: `layers/base` with busybox and all its commands.
fn make_image(layers: &Path) {
    let root = layers.join("base");
    for directory in ["bin", "etc", "tmp", "root", "proc", "sys", "dev", "var", "home/user", "opt"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let mut install = std::process::Command::new("/bin/busybox");
    install.arg("--install").arg("-s").arg(root.join("bin"));
    assert!(install.status().expect("needs busybox-static").success());
    for entry in fs::read_dir(root.join("bin")).unwrap().flatten() {
        if entry.file_type().unwrap().is_symlink() {
            fs::remove_file(entry.path()).unwrap();
            std::os::unix::fs::symlink("busybox", entry.path()).unwrap();
        }
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
        .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
    fs::write(root.join("etc/secret"), "of root\n").unwrap();
    set_mode(&root.join("etc/secret"), 0o600);
    set_mode(&root.join("tmp"), 0o1777);
}

pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A Pod with its shim.
pub struct Pod {
    pub dir: tempfile::TempDir,
    pub layout: Layout,
    pub group: String,
    pub base: u32,
    pub plan: SandboxPlan,
    pub shim: ShimClient,
}

/// What a test changes in the usual sandbox.
pub fn sandbox_plan(number: u32, with_users: bool) -> SandboxPlan {
    let host_id = 1_000_000_000 + (std::process::id() % 512 * 64 + number) % 32_768 * SIZE;
    let block = vec![IdMapping { container_id: 0, host_id, size: SIZE }];
    SandboxPlan {
        id: format!("test-{number}"),
        user_namespace: with_users.then(|| UserNamespacePlan {
            uids: block.clone(),
            gids: block,
            creator_uid: host_id,
        }),
        network: Namespace::Pod,
        ipc: Namespace::Pod,
        uts: Namespace::Pod,
        pid: PidNamespace::Container,
        hostname: "box".into(),
        sysctls: Vec::new(),
        shm_size: 1 << 20,
        faults: Vec::new(),
    }
}

impl Pod {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut SandboxPlan)) -> Self {
        Self::try_with(change).unwrap()
    }

    pub fn try_with(change: impl FnOnce(&mut SandboxPlan)) -> Result<Self, ClientError> {
        let number = unique();
        let launcher = launcher();
        let layout = Layout::detect().unwrap();
        sweep(&layout);
        let group = format!("/kakoi-shim-test-{}-{number}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        set_mode(dir.path(), 0o700); // as the runtime keeps its own
        make_image(&dir.path().join("layers"));
        let mut plan = sandbox_plan(number, true);
        change(&mut plan);
        let shim_group = format!("{group}/shim");
        sys::cgroup::apply(&sys::cgroup::plan_create(&layout, &shim_group, &Limits::default())).unwrap();
        let directories = sys::cgroup::open(&layout, &shim_group).unwrap();
        let base = plan.user_namespace.as_ref().and_then(UserNamespacePlan::root_uid).unwrap_or(0);
        match launcher.spawn(&dir.path().join("run"), &plan, &directories) {
            Ok(shim) => Ok(Pod { dir, layout, group, base, plan, shim }),
            Err(error) => {
                sys::cgroup::remove(&layout, &group, Duration::from_secs(5)).unwrap();
                Err(error)
            }
        }
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A detached overlay of the image with an upper directory for this container, in the place of the one before.
    pub fn rootfs(&self, id: &str) -> OwnedFd {
        let (upper, work) =
            (self.dir.path().join(format!("{id}-upper")), self.dir.path().join(format!("{id}-work")));
        if work.exists() {
            fs::remove_dir_all(&work).unwrap();
        }
        for directory in [&upper, &work] {
            fs::create_dir_all(directory).unwrap();
            std::os::unix::fs::chown(directory, Some(self.base), Some(self.base)).unwrap();
        }
        let userns = self.shim.userns().unwrap();
        let layers_dir = self.dir.path().join("layers");
        sys::mount::overlay(&sys::mount::OverlayPlan {
            layers_dir: &layers_dir,
            layers: &[layers_dir.join("base")],
            upper: Some(sys::mount::Upper { upper: &upper, work: &work }),
            id_mapping: userns.as_ref().map(AsFd::as_fd),
        })
        .unwrap()
    }

    /// The group of a container, made with limits.
    pub fn make_group(&self, id: &str, limits: &Limits) -> sys::cgroup::Directories {
        let group = format!("{}/{id}", self.group);
        sys::cgroup::apply(&sys::cgroup::plan_create(&self.layout, &group, limits)).unwrap();
        sys::cgroup::open(&self.layout, &group).unwrap()
    }

    /// A container that runs `sh -c script`, with its log.
    pub fn container(&self, id: &str, script: &str) -> (ContainerPlan, Descriptors) {
        self.limited(id, script, &Limits::default())
    }

    pub fn limited(&self, id: &str, script: &str, limits: &Limits) -> (ContainerPlan, Descriptors) {
        let mut fds = Descriptors::new();
        let rootfs = fds.push(self.rootfs(id));
        let cgroup = fds.push_cgroup(&self.make_group(id, limits)).unwrap();
        let log = fds.push(self.open_log(id));
        let plan = ContainerPlan {
            id: id.into(),
            rootfs,
            read_only_rootfs: false,
            mounts: default_mounts(),
            devices: Vec::new(),
            masked_paths: ["/proc/kcore", "/proc/keys", "/sys/firmware"].map(String::from).into(),
            read_only_paths: ["/proc/sys", "/proc/bus"].map(String::from).into(),
            cgroup,
            process: process(&["sh", "-c", script]),
            stdin: Stdin::Null,
            log: Some(log),
            target_container: None,
            oci: None,
        };
        (plan, fds)
    }

    pub fn log_path(&self, id: &str) -> PathBuf {
        self.dir.path().join(format!("{id}.log"))
    }

    pub fn open_log(&self, id: &str) -> fs::File {
        fs::OpenOptions::new().create(true).append(true).open(self.log_path(id)).unwrap()
    }

    /// Creates, starts and waits for the end; answers how it ended and what it wrote.
    pub fn run(&self, (plan, fds): (ContainerPlan, Descriptors)) -> (Exit, String) {
        self.shim.create_container(&plan, &fds).unwrap();
        drop(fds);
        self.shim.start_container(&plan.id).unwrap();
        let exit = self.wait(&plan.id);
        (exit, self.output(&plan.id))
    }

    /// Runs a script as container root.
    pub fn script(&self, script: &str) -> (Exit, String) {
        self.run(self.container(&format!("c{}", unique()), script))
    }

    /// Starts a container that only sleeps.
    pub fn sleeper(&self, id: &str) -> i32 {
        let (plan, fds) = self.container(id, "exec sleep 1000");
        self.start(&plan, &fds)
    }

    pub fn start(&self, plan: &ContainerPlan, fds: &Descriptors) -> i32 {
        self.shim.create_container(plan, fds).unwrap();
        self.shim.start_container(&plan.id).unwrap().pid
    }

    /// Waits for a container's end by its event.
    pub fn wait(&self, id: &str) -> Exit {
        let mut events = self.shim.events().unwrap();
        loop {
            match events.next_event().unwrap() {
                Some(Event::ContainerExited { container, exit }) if container == id => return exit,
                Some(_) => {}
                None => panic!("the shim ended"),
            }
        }
    }

    /// The text of a container's log without stamps and tags: all of standard output, then all of standard error, since
    /// the order of lines from two pipes is anybody's guess.
    pub fn output(&self, id: &str) -> String {
        let log = fs::read_to_string(self.log_path(id)).unwrap();
        let text_of = |stream: &str| {
            log.lines().fold(String::new(), |mut text, line| {
                let mut words = line.splitn(4, ' ').skip(1);
                if words.next() == Some(stream) {
                    let tag = words.next().unwrap();
                    text.push_str(words.next().unwrap_or_default());
                    text.push_str(if tag == "F" { "\n" } else { "" });
                }
                text
            })
        };
        text_of("stdout") + &text_of("stderr")
    }

    /// Runs a command in a running container; answers its code and what it wrote to both streams.
    pub fn exec(&self, container: &str, script: &str) -> (i32, String) {
        self.exec_as(container, process(&["sh", "-c", script]))
    }

    pub fn exec_as(&self, container: &str, process: ProcessPlan) -> (i32, String) {
        self.try_exec(container, process).unwrap()
    }

    pub fn try_exec(&self, container: &str, process: ProcessPlan) -> Result<(i32, String), ClientError> {
        let id = format!("exec{}", unique());
        let mut fds = Descriptors::new();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let stdout = fds.push(writer.try_clone().unwrap());
        let stderr = fds.push(writer);
        let cgroup = fds.push_cgroup(&self.make_group(container, &Limits::default())).unwrap();
        let plan = ExecPlan {
            id: id.clone(),
            container: container.into(),
            process,
            cgroup,
            stdin: None,
            stdout: Some(stdout),
            stderr: Some(stderr),
            oci: None,
        };
        let mut events = self.shim.events().unwrap();
        self.shim.exec(&plan, &fds)?;
        drop(fds);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        loop {
            match events.next_event().unwrap() {
                Some(Event::ExecExited { exec, exit, .. }) if exec == id => return Ok((exit.code, text)),
                Some(_) => {}
                None => panic!("the shim ended"),
            }
        }
    }

    /// Adds an ID-mapped directory of the node as a volume.
    pub fn volume(
        &self,
        fds: &mut Descriptors,
        source: &Path,
        destination: &str,
        read_only: bool,
    ) -> MountPlan {
        let userns = self.shim.userns().unwrap();
        let mount = sys::mount::bind(&sys::mount::BindPlan {
            source,
            recursive: true,
            attributes: sys::mount::Attributes::NONE.and_if(read_only, sys::mount::Attributes::READ_ONLY),
            recursive_attributes: false,
            propagation: sys::mount::Propagation::Private,
            id_mapping: userns.as_ref().map(AsFd::as_fd),
        })
        .unwrap();
        let source: FdIndex = fds.push(mount);
        MountPlan { destination: destination.into(), source: MountSource::Fd(source), read_only: false }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Err(error) = self.shim.shutdown() {
            eprintln!("shutdown: {error}");
        }
        let _ = sys::cgroup::kill(&self.layout, &self.group);
        if let Err(error) = sys::cgroup::remove(&self.layout, &self.group, Duration::from_secs(10)) {
            eprintln!("{error}");
        }
    }
}

/// Container root with the default capabilities.
pub fn process(args: &[&str]) -> ProcessPlan {
    let caps = sys::capability::default_mask();
    ProcessPlan {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec!["PATH=/bin".into(), "HOME=/root".into()],
        cwd: "/".into(),
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        umask: None,
        capabilities: CapabilityPlan { bounding: caps, permitted: caps, inheritable: 0, ambient: 0 },
        no_new_privileges: false,
        seccomp: None,
        seccomp_flags: 0,
        rlimits: Vec::new(),
        oom_score_adj: None,
        terminal: false,
        terminal_size: None,
        apparmor_profile: None,
        selinux_label: None,
    }
}

/// Container root with these capabilities besides the default ones.
pub fn with_capabilities(mut process: ProcessPlan, names: &[&str]) -> ProcessPlan {
    let more = names.iter().fold(0, |mask, name| mask | sys::capability::mask_of(name).unwrap());
    process.capabilities.bounding |= more;
    process.capabilities.permitted |= more;
    process
}

/// Waits until `done` answers something.
pub fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < end, "{what} did not happen within {DEADLINE:?}");
        let pause = rustix::thread::Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        let _ = rustix::thread::nanosleep(&pause);
    }
}

/// Reads from a descriptor until its text contains `word`.
pub fn read_until(fd: &OwnedFd, word: &str) -> String {
    let mut text = Vec::new();
    let end = Instant::now() + DEADLINE;
    while !String::from_utf8_lossy(&text).contains(word) {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = rustix::event::Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap(), tv_nsec: 0 };
        let mut polled = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
        let ready = rustix::event::poll(&mut polled, Some(&timeout)).unwrap();
        let mut buffer = [0; 4096];
        let read = if ready == 0 { 0 } else { rustix::io::read(fd, &mut buffer).unwrap_or(0) };
        assert!(
            read > 0,
            "the stream ended or stalled (fd {}) with {:?}",
            fd.as_raw_fd(),
            String::from_utf8_lossy(&text)
        );
        text.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8_lossy(&text).into_owned()
}
