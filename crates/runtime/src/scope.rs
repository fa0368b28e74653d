//! Groups that the service manager hands over: one scope for each sandbox, in the slice that the kubelet made for the Pod.
//!
//! The scope is delegated, so containers' groups below it are the runtime's to make and to limit, as anywhere; the slice
//! and its limits are the kubelet's. A scope lives as long as it has a process, and is a sandbox without containers too:
//! one small process stays in it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use cri::v1::CgroupDriver;
use sys::cgroup::Limits;
use sys::process::Child;
use systemd::{Slice, Units};

use crate::config::RuntimeConfig;
use crate::error::{Error, Result};
use crate::state::lock;

/// The group of the process that stays: beside the containers', since v2 allows no process in a group above others.
const HOLD: &str = "hold";

/// The service manager's units of this instance.
#[derive(Clone, Debug)]
pub(crate) struct Scopes {
    units: Units,
    is_default: bool,
    /// What the names of scopes begin with.
    instance: String,
    own_slice: String,
    /// Processes that stay, by sandbox, to be reaped; those of an earlier daemon are nobody's children.
    holders: Arc<Mutex<HashMap<String, Child>>>,
}

impl Scopes {
    pub(crate) fn new(config: &RuntimeConfig) -> Self {
        let instance = config.cgroup_parent.trim_matches('/').to_owned();
        let own = Slice::of_path(&config.cgroup_parent);
        Self {
            units: Units::new(config.bus.clone()),
            is_default: config.cgroup_driver == CgroupDriver::Systemd,
            own_slice: own.map_or_else(|| "kakoi.slice".to_owned(), |slice| slice.name().to_owned()),
            instance,
            holders: Arc::default(),
        }
    }

    /// Whether groups are the service manager's unless a sandbox's parent says otherwise.
    pub(crate) fn is_default(&self) -> bool {
        self.is_default
    }

    /// The slice of sandboxes that name no parent.
    pub(crate) fn own_slice(&self) -> &str {
        &self.own_slice
    }

    /// A sandbox's scope.
    pub(crate) fn name(&self, sandbox: &str) -> String {
        format!("{}-{sandbox}.scope", self.instance)
    }

    /// Makes a sandbox's scope at `group`, unless it is there.
    pub(crate) fn ensure(
        &self,
        sandbox: &str,
        slice: &Slice,
        group: &Path,
        hold: impl FnOnce() -> io::Result<Child>,
    ) -> Result<()> {
        if !group.exists() {
            self.start(sandbox, slice, hold)?;
        }
        step_aside(group)
            .map_err(|error| Error::failed(format!("divide the group {}", group.display()), error))
    }

    fn start(&self, sandbox: &str, slice: &Slice, hold: impl FnOnce() -> io::Result<Child>) -> Result<()> {
        let name = self.name(sandbox);
        let failed = |error: &dyn std::fmt::Display| {
            Error::failed(format!("have systemd make the scope {name} in {}", slice.name()), error)
        };
        let holder = hold().map_err(|error| failed(&error))?;
        let started = match u32::try_from(holder.pid) {
            Ok(pid) => Units::wait(self.units.start_scope(&name, slice, pid)).map_err(|error| failed(&error)),
            Err(error) => Err(failed(&error)),
        };
        if let Ok(true) = started {
            lock(&self.holders).insert(sandbox.to_owned(), holder);
            return Ok(());
        }
        // It is where it was born, and of no use there.
        let _ = holder.kill();
        let _ = holder.wait();
        started.map(drop)
    }

    /// Sets limits on a sandbox's scope. Returns those that the service manager does not know.
    pub(crate) fn limit(&self, sandbox: &str, limits: &Limits) -> Result<Limits> {
        let (properties, rest) = systemd::plan_properties(limits);
        Units::wait(self.units.set(&self.name(sandbox), &properties))
            .map_err(|error| Error::failed("change the Pod's limits", error))?;
        Ok(rest)
    }

    /// Ends a sandbox's scope, which has no process any more. The service manager ends it by itself when it sees that; it is
    /// asked so that it is gone when this returns.
    pub(crate) fn remove(&self, sandbox: &str) {
        let name = self.name(sandbox);
        if let Err(error) = Units::wait(self.units.stop(&name)) {
            tracing::warn!(%error, "systemd ends the scope when it finds it empty");
        }
        let holder = lock(&self.holders).remove(sandbox);
        if let Some(holder) = holder {
            // It has been killed with its group.
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }

    /// Stops a slice without groups in it, then the one above it, and so on.
    pub(crate) fn stop_empty(&self, slice: &Slice, mount: &Path) {
        let group = slice.group();
        let mut rest = group.as_str();
        while let Some((above, name)) = rest.rsplit_once('/') {
            if !is_empty(&mount.join(rest.trim_start_matches('/'))) {
                return;
            }
            if let Err(error) = Units::wait(self.units.stop(name)) {
                tracing::warn!(%error, "an empty slice is left");
                return;
            }
            rest = above;
        }
    }
}

/// No group lies in it; nor does in one that is not there.
fn is_empty(group: &Path) -> bool {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    !entries.into_iter().any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
}

/// Moves what is in a group itself into one below it. The service manager puts the first process there.
fn step_aside(group: &Path) -> io::Result<()> {
    let inside = fs::read_to_string(group.join("cgroup.procs"))?;
    if inside.trim().is_empty() {
        return Ok(());
    }
    let aside = group.join(HOLD);
    match fs::create_dir(&aside) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    inside.lines().try_for_each(|pid| fs::write(aside.join("cgroup.procs"), pid))
}

#[cfg(test)]
mod tests {
    use shim::client::Launcher;
    use systemd::Bus;
    use systemd::testing::{FakeUnits, PrivateBus};

    use super::*;

    fn scopes(bus: Bus) -> Scopes {
        Scopes {
            units: Units::new(bus),
            is_default: true,
            instance: "kakoi".to_owned(),
            own_slice: "kakoi.slice".to_owned(),
            holders: Arc::default(),
        }
    }

    fn is_alive(pid: &str) -> bool {
        Path::new("/proc").join(pid).exists()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_scope_is_made_once_is_divided_and_ends_with_what_keeps_it() {
        let directory = tempfile::tempdir().unwrap();
        let bus = PrivateBus::start(directory.path()).unwrap();
        let manager = FakeUnits::start(&bus, directory.path()).await.unwrap();
        let (scopes, mount) = (scopes(bus.bus()), directory.path().to_owned());
        let slice = Slice::parse("kubepods-pod1.slice").unwrap();
        // As the kubelet makes them.
        for name in ["kubepods.slice", slice.name()] {
            let (made, none) = (Slice::parse(name).unwrap(), systemd::Properties::default());
            scopes.units.start_slice(&made, &none).await.unwrap();
        }
        let group = mount.join(format!("{}/kakoi-1.scope", slice.group().trim_start_matches('/')));
        let (made, at, below) = (scopes.clone(), group.clone(), slice.clone());
        tokio::task::spawn_blocking(move || {
            let launcher = Launcher::new(crate::SHIM).unwrap();
            let hold = || launcher.hold(&sys::cgroup::Directories::default());
            made.ensure("1", &below, &at, hold)?;
            made.ensure("1", &below, &at, hold)
        })
        .await
        .unwrap()
        .unwrap();
        let starts = manager.calls().iter().filter(|call| call.starts_with("start kakoi-1.scope")).count();
        assert_eq!(starts, 1);
        let pid = fs::read_to_string(group.join("hold/cgroup.procs")).unwrap();
        assert_eq!(manager.unit("kakoi-1.scope").unwrap()["PIDs"], pid);
        assert!(is_alive(&pid));
        tokio::task::spawn_blocking(move || {
            scopes.remove("1");
            scopes.stop_empty(&slice, &mount);
        })
        .await
        .unwrap();
        assert_eq!(manager.unit("kakoi-1.scope"), None);
        assert!(!is_alive(&pid));
        assert!(
            manager.calls().ends_with(&["stop kubepods.slice replace".to_owned()]),
            "{:?}",
            manager.calls()
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_a_bus_the_sandbox_is_refused_and_no_process_stays() {
        let directory = tempfile::tempdir().unwrap();
        let scopes = scopes(Bus::at("unix:path=/nonexistent/bus"));
        let held = Arc::new(Mutex::new(0));
        let (pid, group) = (Arc::clone(&held), directory.path().join("none"));
        let made = tokio::task::spawn_blocking(move || {
            let launcher = Launcher::new(crate::SHIM).unwrap();
            let slice = Slice::parse("kubepods-pod1.slice").unwrap();
            scopes.ensure("1", &slice, &group, || {
                let child = launcher.hold(&sys::cgroup::Directories::default())?;
                *lock(&pid) = child.pid;
                Ok(child)
            })
        });
        let text = made.await.unwrap().unwrap_err().to_string();
        assert!(text.contains("kakoi-1.scope in kubepods-pod1.slice"), "{text}");
        assert!(text.contains("cannot connect to the message bus"), "{text}");
        assert!(!is_alive(&lock(&held).to_string()));
    }
}
