//! Transient units over a real `dbus-daemon`, with a service manager that the test plays.

#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

use sys::cgroup::Limits;
use systemd::testing::{FakeUnits, PrivateBus};
use systemd::{Bus, Slice, Units, plan_properties};

#[tokio::test]
async fn a_slice_is_made_with_its_limits_changed_and_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let bus = PrivateBus::start(directory.path()).unwrap();
    let manager = FakeUnits::start(&bus, directory.path()).await.unwrap();
    let units = Units::new(bus.bus());
    let slice = Slice::of_path("/kubepods/burstable/pod1").unwrap();
    let limit = |memory| plan_properties(&Limits { memory: Some(memory), ..Limits::default() }).0;
    units.start_slice(&slice, &limit(64)).await.unwrap();
    assert!(directory.path().join(slice.group().trim_start_matches('/')).is_dir());
    let unit = manager.unit(slice.name()).unwrap();
    assert_eq!(unit["MemoryMax"], "64");
    assert_eq!(unit["DefaultDependencies"], "false");
    units.start_slice(&slice, &limit(128)).await.unwrap();
    assert_eq!(manager.unit(slice.name()).unwrap()["MemoryMax"], "128");
    units.stop(slice.name()).await.unwrap();
    units.stop(slice.name()).await.unwrap();
    assert_eq!(manager.unit(slice.name()), None);
    let name = slice.name();
    let expected = [
        format!("start {name} replace 0"),
        format!("start {name} replace 0"),
        format!("set {name} true"),
        format!("stop {name} replace"),
        format!("stop {name} replace"),
    ];
    assert_eq!(manager.calls(), expected);
}

#[tokio::test]
async fn a_scope_is_handed_over_with_its_first_process() {
    let directory = tempfile::tempdir().unwrap();
    let bus = PrivateBus::start(directory.path()).unwrap();
    let manager = FakeUnits::start(&bus, directory.path()).await.unwrap();
    let units = Units::new(bus.bus());
    let slice = Slice::parse("kubepods-pod1.slice").unwrap();
    assert!(units.start_scope("kakoi-1.scope", &slice, 42).await.unwrap());
    let unit = manager.unit("kakoi-1.scope").unwrap();
    assert_eq!(unit["Delegate"], "true");
    assert_eq!(unit["PIDs"], "42");
    assert!(!units.start_scope("kakoi-1.scope", &slice, 43).await.unwrap(), "it is there");
}

#[tokio::test]
async fn what_does_not_start_says_what_and_how_it_ended() {
    let directory = tempfile::tempdir().unwrap();
    let slice = Slice::parse("a.slice").unwrap();
    let nowhere = Units::new(Bus::at(format!("unix:path={}/none", directory.path().display())));
    let text = nowhere.stop("a.slice").await.unwrap_err().to_string();
    assert!(text.contains("cannot connect to the message bus"), "{text}");
    let bus = PrivateBus::start(directory.path()).unwrap();
    let manager = FakeUnits::start(&bus, directory.path()).await.unwrap();
    manager.fail_next("timeout");
    let text = Units::new(bus.bus()).start_scope("b.scope", &slice, 1).await.unwrap_err().to_string();
    assert!(text.contains("b.scope did not start: timeout"), "{text}");
}
