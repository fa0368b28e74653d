//! What the checks see of a machine: a trait, so that a test can break one thing of a machine that is otherwise fine,
//! and the machine that this program runs on.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use kubelet::idspace::inspect;
use sys::cgroup::{Layout, Limits};
use userns::Snapshot;

use crate::config::Config;
use crate::places::Places;
use crate::{ids, instance};

/// The cgroup that is made and removed.
const CGROUP: &str = "/kakoi-check";

/// Space on a filesystem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) bytes: u64,
    pub(super) free_bytes: u64,
    /// 0 where the filesystem has no fixed number.
    pub(super) inodes: u64,
    pub(super) free_inodes: u64,
}

/// The cgroups of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cgroups {
    /// `v2`, `v1`, or both side by side.
    pub(super) version: &'static str,
    /// Controllers that were found.
    pub(super) controllers: Vec<String>,
}

/// An OCI runtime that is a runtime handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Handler {
    pub(super) name: String,
    /// Its version, and why its Pods can't have user namespaces; or what it said instead.
    pub(super) answer: Result<(String, Option<String>), String>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) name: String,
}

/// A machine, as far as it is checked. Each call does one thing and leaves nothing behind; the errors are sentences.
pub(super) trait Machine {
    /// The state directory.
    fn state_dir(&self) -> PathBuf;
    /// The Pods' directory.
    fn pods_dir(&self) -> PathBuf;
    /// The content of a small file, without white space at its end; `None` where there is none.
    fn text(&self, path: &str) -> Option<String>;
    fn is_root(&self) -> bool;
    fn user_namespace(&self) -> Result<(), String>;
    fn id_map(&self, directory: &Path) -> Result<(), String>;
    fn tmpfs(&self) -> Result<(), String>;
    fn overlay(&self) -> Result<(), String>;
    fn seccomp(&self) -> Result<(), String>;
    fn oom_score(&self) -> Result<(), String>;
    fn id_space(&self) -> Result<Snapshot, String>;
    fn max_pods(&self) -> u32;
    fn cgroups(&self) -> Result<Cgroups, String>;
    /// The OCI runtimes beside the built-in handler, or what is wrong with their configuration.
    fn handlers(&self) -> Result<Vec<Handler>, String>;
    fn space(&self) -> io::Result<Space>;
    fn inotify(&self) -> io::Result<()>;
    /// The hard limit of open files.
    fn open_files(&self) -> io::Result<u64>;
    fn is_clock_kept(&self) -> io::Result<bool>;
    fn nft(&self) -> Result<(), String>;
    fn foreign_droppers(&self) -> Result<Vec<String>, String>;
    /// Names and addresses at which the node listens.
    fn addresses(&self) -> Vec<(&'static str, SocketAddr)>;
    fn listen(&self, address: SocketAddr) -> io::Result<()>;
    /// The PID of this instance's daemon, if it runs.
    fn daemon(&self) -> Option<u32>;
    fn processes(&self) -> Vec<Process>;
}

/// The machine that this program runs on, and one instance of kakoi on it.
pub(super) struct ThisMachine {
    places: Places,
    config: Config,
}

impl ThisMachine {
    pub(super) fn new(places: Places, config: Config) -> Self {
        Self { places, config }
    }
}

/// The nearest directory that exists: where the instance has not run yet, its own does not.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|parent| parent.is_dir()).unwrap_or_else(|| Path::new("/"))
}

impl Machine for ThisMachine {
    fn state_dir(&self) -> PathBuf {
        self.places.state()
    }

    fn pods_dir(&self) -> PathBuf {
        self.places.kubelet().join("pods")
    }

    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
    }

    fn is_root(&self) -> bool {
        rustix::process::geteuid().is_root()
    }

    fn user_namespace(&self) -> Result<(), String> {
        runtime::probe::probe_namespace().map(drop)
    }

    fn id_map(&self, directory: &Path) -> Result<(), String> {
        runtime::probe::probe_id_map(existing(directory), runtime::probe::probe_namespace()?.as_fd())
    }

    fn tmpfs(&self) -> Result<(), String> {
        runtime::probe::probe_tmpfs(runtime::probe::probe_namespace()?.as_fd())
    }

    fn overlay(&self) -> Result<(), String> {
        let directory = self.places.state();
        let scratch = existing(&directory).join(format!(".kakoi-check-{}", std::process::id()));
        let made = fs::create_dir(&scratch).map_err(|error| format!("make {}: {error}", scratch.display()));
        let probed = made.and_then(|()| {
            let namespace = runtime::probe::probe_namespace()?;
            runtime::probe::probe_overlay(&scratch, &scratch.join("layers"), namespace.as_fd())
        });
        // A leftover is a few empty directories.
        let _ = fs::remove_dir_all(&scratch);
        probed
    }

    fn seccomp(&self) -> Result<(), String> {
        let program = sys::seccomp::compile_default(sys::capability::default_mask());
        // A filter holds for its thread alone, and ends with it.
        let installed = std::thread::spawn(move || sys::seccomp::install(&program, 0)).join();
        installed.map_err(|_| "the thread broke off".to_owned())?.map_err(|error| error.to_string())
    }

    fn oom_score(&self) -> Result<(), String> {
        const FILE: &str = "/proc/self/oom_score_adj";
        let before = fs::read_to_string(FILE).map_err(|error| error.to_string())?;
        let lower = before.trim().parse::<i32>().map_err(|error| error.to_string())? - 1;
        fs::write(FILE, lower.max(-1000).to_string()).map_err(|error| error.to_string())?;
        fs::write(FILE, before.trim()).map_err(|error| error.to_string())
    }

    fn id_space(&self) -> Result<Snapshot, String> {
        inspect(&ids::space(&self.places, self.config.ids_per_pod, self.config.max_pods))
            .map_err(|error| error.to_string())
    }

    fn max_pods(&self) -> u32 {
        self.config.max_pods
    }

    fn cgroups(&self) -> Result<Cgroups, String> {
        let layout = Layout::detect().map_err(|error| error.to_string())?;
        let group = format!("{CGROUP}-{}", std::process::id());
        let made = sys::cgroup::apply(&sys::cgroup::plan_create(&layout, &group, &Limits::default()));
        let removed = sys::cgroup::remove(&layout, &group, std::time::Duration::from_secs(2));
        made.and(removed).map_err(|error| error.to_string())?;
        let has = |name: &&str| {
            layout.controller(name, "").is_some_and(|directory| has_controller(&directory, name))
        };
        let controllers = ["cpu", "memory", "pids"].iter().filter(|name| has(name));
        let is_hybrid = !layout.is_unified() && layout.directories("").len() > 1;
        let version = if layout.is_unified() {
            "v2"
        } else if is_hybrid {
            "v1 (one hierarchy per controller)"
        } else {
            "v1"
        };
        Ok(Cgroups { version, controllers: controllers.map(|name| (*name).to_owned()).collect() })
    }

    fn space(&self) -> io::Result<Space> {
        let found = rustix::fs::statvfs(existing(&self.places.state()))?;
        Ok(Space {
            bytes: found.f_blocks.saturating_mul(found.f_frsize),
            free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
            inodes: found.f_files,
            free_inodes: found.f_favail,
        })
    }

    fn inotify(&self) -> io::Result<()> {
        Ok(rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).map(drop)?)
    }

    fn open_files(&self) -> io::Result<u64> {
        let number = sys::limit::rlimit_number("nofile").ok_or(io::ErrorKind::Unsupported)?;
        sys::limit::get_rlimit(number).map(|(_, hard)| hard)
    }

    fn is_clock_kept(&self) -> io::Result<bool> {
        sys::clock::is_synchronised()
    }

    fn nft(&self) -> Result<(), String> {
        network::probe::probe_nft().map_err(|error| error.to_string())
    }

    fn foreign_droppers(&self) -> Result<Vec<String>, String> {
        network::probe::foreign_droppers(&self.places.bridge(), &self.places.instance())
            .map_err(|error| error.to_string())
    }

    fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        vec![("API server", self.config.secure_listen), ("kubelet", self.config.kubelet_listen)]
    }

    fn listen(&self, address: SocketAddr) -> io::Result<()> {
        TcpListener::bind(address).map(drop)
    }

    fn daemon(&self) -> Option<u32> {
        instance::holder(&self.places.run())
    }

    fn handlers(&self) -> Result<Vec<Handler>, String> {
        let handlers = crate::node::handlers(&self.config).map_err(|error| error.to_string())?;
        let asked = handlers
            .iter()
            .map(|handler| Handler { name: handler.name.clone(), answer: runtime::describe(handler) });
        Ok(asked.collect())
    }

    fn processes(&self) -> Vec<Process> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let named = pids.filter_map(|pid: u32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            Some(Process { pid, name: name.trim_end().to_owned() })
        });
        named.collect()
    }
}

/// In v2 a controller is there when the root group lists it; a v1 hierarchy is one.
fn has_controller(directory: &Path, name: &str) -> bool {
    match fs::read_to_string(directory.join("cgroup.controllers")) {
        Ok(list) => list.split_whitespace().any(|one| one == name),
        Err(_) => true,
    }
}
