//! Groups on this machine's real hierarchies. Needs root; makes groups of its own and removes them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::fs;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Duration;
use sys::cgroup::{self, DeviceRule, Layout, Limits, Plan, Step};
use sys::process::{CloneOptions, Fork, exit_now, fork};

/// A group that is removed at the end.
struct Group {
    layout: Layout,
    path: String,
}

impl Group {
    fn new(name: &str, limits: &Limits) -> Self {
        let layout = Layout::detect().expect("no cgroups here");
        let group = Group { layout, path: format!("/kakoi-sys-test-{}-{name}/inner", std::process::id()) };
        cgroup::apply(&cgroup::plan_create(&group.layout, &group.path, limits)).expect("needs root");
        group
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let top = self.path.trim_end_matches("/inner");
        cgroup::kill(&self.layout, top).unwrap();
        cgroup::remove(&self.layout, top, Duration::from_secs(10)).unwrap();
        cgroup::remove(&self.layout, top, Duration::ZERO).unwrap(); // Once more is fine.
        assert!(self.layout.directories(top).iter().all(|directory| !directory.exists()));
    }
}

#[test]
fn limits_are_written_and_changed() {
    let group = Group::new("limits", &Limits { memory: Some(64 << 20), pids: Some(10), ..Limits::default() });
    let limit = || cgroup::stats(&group.layout, &group.path).memory_limit;
    assert_eq!(limit(), Some(64 << 20));
    for memory in [32 << 20, 128 << 20] {
        let limits = Limits { memory: Some(memory), memory_and_swap: Some(memory), ..Limits::default() };
        cgroup::apply(&cgroup::plan_update(&group.layout, &group.path, &limits)).unwrap();
        assert_eq!(limit(), u64::try_from(memory).ok());
    }
    cgroup::apply(&cgroup::plan_create(&group.layout, &group.path, &Limits::default())).unwrap(); // Again.
    assert_eq!(limit(), Some(128 << 20));
}

#[test]
fn a_whole_group_is_ended_with_all_that_it_forks() {
    let group = Group::new("kill", &Limits::default());
    let mut child = Command::new("sh")
        .args(["-c", "while :; do sleep 100 & wait; done"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    for directory in group.layout.directories(&group.path) {
        fs::write(directory.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    assert!(cgroup::processes(&group.layout, &group.path).contains(&i32::try_from(child.id()).unwrap()));
    cgroup::kill(&group.layout, &group.path).unwrap();
    assert!(!child.wait().unwrap().success());
}

/// The program goes to the v2 hierarchy, which a hybrid machine has too.
#[test]
fn the_device_program_of_v2_allows_the_usual_and_what_is_asked_for() {
    let group = Group::new("devices", &Limits::default());
    let Some(mount) = group.layout.unified.clone() else { panic!("no v2 hierarchy here") };
    let directory = mount.join(group.path.trim_start_matches('/'));
    let attach = |rules: Vec<DeviceRule>| cgroup::apply(&Plan(vec![Step::Devices(directory.clone(), rules)]));
    attach(Vec::new()).unwrap();
    let open_in_group = |path: &std::ffi::CStr, flags: i32| {
        let cgroup = fs::File::open(&directory).unwrap();
        // SAFETY: the child makes two system calls.
        match unsafe { fork(CloneOptions { flags: 0, cgroup: Some(cgroup.as_fd()) }) }.unwrap() {
            Fork::Child => {
                // SAFETY: a null-terminated path.
                let fd = unsafe { libc::open(path.as_ptr(), flags) };
                exit_now(i32::from(fd < 0))
            }
            Fork::Parent(child) => child.wait().unwrap().code() == 0,
        }
    };
    assert!(open_in_group(c"/dev/null", libc::O_RDWR) && open_in_group(c"/dev/urandom", libc::O_RDONLY));
    assert!(!open_in_group(c"/dev/kmsg", libc::O_RDONLY), "kernel log: 1:11");
    attach(vec![DeviceRule::character(1, 11, "r")]).unwrap();
    assert!(open_in_group(c"/dev/kmsg", libc::O_RDONLY));
    assert!(!open_in_group(c"/dev/kmsg", libc::O_WRONLY));
    attach(vec![DeviceRule::ALL]).unwrap();
    assert!(open_in_group(c"/dev/kmsg", libc::O_WRONLY));
}
