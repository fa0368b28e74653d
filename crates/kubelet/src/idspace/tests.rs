use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;

/// A node's directories, with a machine of its own that has given nothing away.
struct Node {
    dir: tempfile::TempDir,
    faults: Arc<Script>,
    ids_per_pod: i64,
    /// `first, blocks` of the user `kubelet`.
    pool: Option<(u64, u64)>,
}

/// Faults as a test wants them.
#[derive(Debug, Default)]
struct Script {
    fail: Mutex<Option<(CrashPoint, i32)>>,
    die: Mutex<Option<CrashPoint>>,
    hit: AtomicBool,
}

impl Faults for Script {
    fn at(&self, point: CrashPoint) -> io::Result<()> {
        assert_ne!(self.die.lock().unwrap().as_ref(), Some(&point), "killed here");
        match *self.fail.lock().unwrap() {
            Some((at, errno)) if at == point => {
                self.hit.store(true, Ordering::Relaxed);
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => Ok(()),
        }
    }
}

impl Node {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), faults: Arc::default(), ids_per_pod: 65_536, pool: None }
    }

    fn config(&self, instance: &str) -> IdSpaceConfig {
        let at = |name: &str| self.dir.path().join(name);
        let etc = at("etc");
        fs::create_dir_all(&etc).unwrap();
        fs::create_dir_all(at(instance)).unwrap();
        if let Some((first, blocks)) = self.pool {
            let line = format!("kubelet:{first}:{}\n", blocks * 65_536);
            fs::write(etc.join("passwd"), "kubelet:x:999:999::/:/bin/false\n").unwrap();
            fs::write(etc.join("subuid"), &line).unwrap();
            fs::write(etc.join("subgid"), &line).unwrap();
        }
        IdSpaceConfig {
            pods_dir: at(&format!("{instance}/pods")),
            claims_dir: at("ids"),
            instance: instance.to_owned(),
            root: at(instance),
            cursor_file: at(&format!("{instance}/next")),
            ids_per_pod: self.ids_per_pod,
            max_pods: 1,
            machine: MachineFiles { etc, run: at("run"), proc: at("proc"), getsubids: at("getsubids") },
            faults: Arc::clone(&self.faults) as Arc<dyn Faults>,
        }
    }

    fn open(&self, live: &[LiveSandbox]) -> (IdSpace, Vec<Finding>) {
        IdSpace::open(self.config("a"), live).unwrap()
    }

    fn ids(&self) -> IdSpace {
        self.open(&[]).0
    }

    fn record(&self, pod: &str) -> PathBuf {
        self.dir.path().join("a/pods").join(pod).join("userns")
    }

    fn put(&self, pod: &str, content: &[u8]) {
        let path = self.record(pod);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

fn pod(name: &str) -> PodUid {
    PodUid::parse(name).unwrap()
}

fn block(number: u64) -> IdRange {
    IdRange::new(number * 65_536, 65_536).unwrap()
}

fn first(ids: &IdSpace, name: &str) -> u32 {
    ids.get_or_create(&pod(name)).unwrap().uids[0].host_id
}

fn runs(name: &str, range: IdRange) -> LiveSandbox {
    LiveSandbox { pod: pod(name), id: format!("s-{name}"), maps: vec![range] }
}

const FIRST: &str = r#"{"uidMappings":[{"hostId":131072,"containerId":0,"length":65536}],"gidMappings":[{"hostId":131072,"containerId":0,"length":65536}]}"#;

#[test]
fn e01_the_first_pods_record_is_exact_private_and_without_newline() {
    let node = Node::new();
    assert_eq!(first(&node.ids(), "p"), 131_072);
    assert_eq!(fs::read(node.record("p")).unwrap(), FIRST.as_bytes());
    let meta = fs::metadata(node.record("p")).unwrap();
    assert_eq!((meta.permissions().mode() & 0o7777, meta.uid(), meta.gid()), (0o600, 0, 0));
    assert_eq!(fs::read_dir(node.record("p").parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn s17_other_users_of_the_node_cannot_reach_the_pods_directories() {
    let node = Node::new();
    node.put("old", b"");
    let pod = node.record("p").parent().unwrap().to_owned();
    let pods = pod.parent().unwrap();
    fs::set_permissions(pods, fs::Permissions::from_mode(0o755)).unwrap();
    let _ = first(&node.ids(), "p");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(pods), mode(&pod)), (0o750, 0o750));
}

#[test]
fn e02_the_posts_record_is_adopted_and_the_next_pod_gets_the_next_block() {
    let node = Node::new();
    node.put("p", FIRST.as_bytes());
    let ids = node.ids();
    assert_eq!((first(&ids, "p"), first(&ids, "q")), (131_072, 196_608));
}

#[test]
fn e03_e04_e05_a_kill_at_each_point_of_a_write_leaves_old_or_new() {
    for (point, survives) in [
        (CrashPoint::BeforeTemporary, false),
        (CrashPoint::TemporaryWritten, false),
        (CrashPoint::Renamed, true),
    ] {
        let node = Node::new();
        let ids = node.ids();
        *node.faults.die.lock().unwrap() = Some(point);
        catch_unwind(AssertUnwindSafe(|| ids.get_or_create(&pod("p")))).unwrap_err();
        drop(ids);
        node.faults.die.lock().unwrap_or_else(PoisonError::into_inner).take();
        node.faults.die.clear_poison();
        let ids = node.ids();
        assert_eq!(node.record("p").exists(), survives, "{point:?}");
        assert_eq!(first(&ids, "p"), 131_072, "{point:?}: the block is free or the Pod's own");
        assert_eq!(
            fs::read_dir(node.record("p").parent().unwrap()).unwrap().count(),
            1,
            "{point:?}: leftovers"
        );
    }
}

#[test]
fn a_kill_in_the_middle_of_a_release_is_finished_after_restart() {
    let node = Node::new();
    let ids = node.ids();
    first(&ids, "p");
    *node.faults.die.lock().unwrap() = Some(CrashPoint::RecordRemoved);
    catch_unwind(AssertUnwindSafe(|| ids.release(&pod("p")))).unwrap_err();
    node.faults.die.lock().unwrap_or_else(PoisonError::into_inner).take();
    node.faults.die.clear_poison();
    let ids = node.ids();
    assert_eq!(ids.snapshot().pods, []);
    assert_eq!(ids.gauges().free, ids.gauges().blocks);
}

#[test]
fn e06_a_zero_byte_record_is_rewritten() {
    let node = Node::new();
    node.put("p", b"");
    assert_eq!(first(&node.ids(), "p"), 131_072);
    assert_eq!(fs::read(node.record("p")).unwrap(), FIRST.as_bytes());
}

#[test]
fn e07_to_e10_e12_e13_a_bad_record_quarantines_its_pod_alone() {
    let cases: &[(&str, String)] = &[
        ("e07 truncated", "{\"uidMappings\":[".into()),
        ("e07 null", "null".into()),
        ("e07 list", "[]".into()),
        ("e07 binary", "\u{0}\u{1}\u{2}".into()),
        ("e08 none", "{}".into()),
        ("e09 unequal", FIRST.replacen("131072", "196608", 1)),
        ("e10 container ID", FIRST.replace("\"containerId\":0", "\"containerId\":1")),
        ("e12 unaligned", FIRST.replace("131072", "70000")),
        ("e13 node's own", FIRST.replace("131072", "0")),
    ];
    for (case, content) in cases {
        let node = Node::new();
        node.put("bad", content.as_bytes());
        let (ids, findings) = node.open(&[]);
        assert_eq!(findings.len(), 1, "{case}");
        assert_eq!(findings[0].pod, pod("bad"), "{case}");
        let refusal = ids.get_or_create(&pod("bad")).unwrap_err().to_string();
        assert!(refusal.contains("invalid"), "{case}: {refusal}");
        assert!(first(&ids, "good") >= 131_072, "{case}");
        assert_eq!(ids.gauges().quarantined, 1, "{case}");
        ids.release(&pod("bad")).unwrap();
        ids.forget(&pod("bad"));
        assert!(!node.record("bad").exists(), "{case}");
        ids.get_or_create(&pod("bad")).unwrap();
    }
}

#[test]
fn e12_both_touched_blocks_stay_reserved() {
    let node = Node { pool: Some((65_536, 3)), ..Node::new() };
    node.put("bad", FIRST.replace("131072", "70000").as_bytes());
    let ids = node.ids();
    assert_eq!(first(&ids, "p"), 196_608);
    assert!(ids.get_or_create(&pod("q")).unwrap_err().to_string().contains("no empty slot"));
}

#[test]
fn e11_a_record_of_another_length_stays_and_nothing_overlaps_it() {
    let node = Node::new();
    node.put("p", FIRST.replace("\"length\":65536", "\"length\":131072").as_bytes());
    let ids = node.ids();
    assert_eq!(ids.get_or_create(&pod("p")).unwrap().uids[0].length, 131_072);
    assert_eq!(first(&ids, "q"), 262_144);
}

#[test]
fn e14_a_record_outside_the_new_pool_stays() {
    let node = Node { pool: Some((6_553_600, 4)), ..Node::new() };
    node.put("p", FIRST.as_bytes());
    let ids = node.open(&[runs("p", block(2))]).0;
    assert_eq!((first(&ids, "p"), first(&ids, "q")), (131_072, 6_553_600));
}

#[test]
fn e15_of_two_equal_records_the_one_that_runs_wins() {
    let node = Node::new();
    node.put("p", FIRST.as_bytes());
    node.put("q", FIRST.as_bytes());
    let ids = node.open(&[runs("q", block(2))]).0;
    assert_eq!(first(&ids, "q"), 131_072);
    assert!(ids.get_or_create(&pod("p")).unwrap_err().to_string().contains("overlaps"));
    ids.release(&pod("p")).unwrap();
    assert_eq!(first(&ids, "r"), 196_608, "q keeps its block when p goes");
}

#[test]
fn e16_e22_what_is_no_regular_file_is_neither_followed_nor_waited_for() {
    let node = Node::new();
    let secret = node.dir.path().join("secret");
    fs::write(&secret, FIRST).unwrap();
    for name in ["link", "dir", "fifo", "large"] {
        fs::create_dir_all(node.record(name).parent().unwrap()).unwrap();
    }
    symlink(&secret, node.record("link")).unwrap();
    fs::create_dir(node.record("dir")).unwrap();
    let fifo = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, node.record("fifo"), rustix::fs::FileType::Fifo, fifo, 0).unwrap();
    fs::write(node.record("large"), vec![b' '; 100 << 10]).unwrap();
    let (ids, findings) = node.open(&[]);
    assert_eq!(findings.len(), 4);
    assert_eq!(ids.gauges().quarantined, 4);
    assert_eq!(first(&ids, "p"), 131_072);
}

#[test]
fn e17_the_record_of_a_pod_that_is_gone_is_freed() {
    let node = Node::new();
    node.put("gone", FIRST.as_bytes());
    let ids = node.ids();
    first(&ids, "here");
    let freed = ids.reconcile(&HashSet::from([pod("here")]), &[]).unwrap();
    assert_eq!(freed, [pod("gone")]);
    assert!(!node.record("gone").exists() && node.record("here").exists());
}

#[test]
fn e18_a_deleted_directory_frees_nothing_while_the_sandbox_runs() {
    let node = Node { pool: Some((65_536, 1)), ..Node::new() };
    let ids = node.ids();
    assert_eq!(first(&ids, "p"), 65_536);
    fs::remove_dir_all(node.record("p").parent().unwrap()).unwrap();
    assert_eq!(ids.reconcile(&HashSet::new(), &[runs("p", block(1))]).unwrap(), []);
    ids.get_or_create(&pod("q")).unwrap_err();
    drop(ids);
    let ids = node.open(&[runs("p", block(1))]).0;
    ids.get_or_create(&pod("q")).unwrap_err();
    assert_eq!(ids.reconcile(&HashSet::new(), &[]).unwrap(), [pod("p")]);
    assert_eq!(first(&ids, "q"), 65_536);
}

#[test]
fn e19_the_sandboxes_real_map_wins_over_the_record() {
    let node = Node::new();
    node.put("p", FIRST.as_bytes());
    let (ids, findings) = node.open(&[runs("p", block(3))]);
    assert_eq!(findings.len(), 1);
    assert_eq!(first(&ids, "p"), 196_608);
    assert_eq!(first(&ids, "q"), 262_144, "both ranges stay out of the way");
}

#[test]
fn e21_ten_thousand_records_are_read_and_settled() {
    let node = Node::new();
    for number in 2..10_002u64 {
        node.put(&format!("p{number}"), &userns::encode(block(number)));
    }
    let (ids, findings) = node.open(&[]);
    assert_eq!((findings.len(), ids.snapshot().pods.len()), (0, 10_000));
}

#[test]
fn e23_a_terminal_block_is_given_up_when_nothing_runs_on_it() {
    let node = Node::new();
    node.put("p", FIRST.replace("131072", "4294901760").as_bytes());
    let (ids, findings) = node.open(&[]);
    assert!(findings[0].message.contains("4294967295"));
    assert_eq!(first(&ids, "p"), 131_072);
}

#[test]
fn d03_d04_a_full_pool_leaves_nothing_behind_and_gives_what_is_freed() {
    let node = Node { pool: Some((65_536, 3)), ..Node::new() };
    let ids = node.ids();
    for name in ["p", "q", "r"] {
        first(&ids, name);
    }
    assert!(
        ids.get_or_create(&pod("s"))
            .unwrap_err()
            .to_string()
            .starts_with("create user namespace: no empty slot")
    );
    assert!(!node.record("s").parent().unwrap().exists());
    ids.release(&pod("q")).unwrap();
    assert_eq!(first(&ids, "s"), 131_072);
}

#[test]
fn d05_many_threads_get_many_blocks() {
    let node = Node::new();
    let ids = node.ids();
    let got: HashSet<u32> = std::thread::scope(|scope| {
        let ids = &ids;
        let threads: Vec<_> = (0..64).map(|n| scope.spawn(move || first(ids, &format!("p{n}")))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(got.len(), 64);
}

#[test]
fn d06_d07_many_threads_for_one_pod_get_one_block_and_write_once() {
    let node = Node::new();
    let ids = node.ids();
    let got: HashSet<u32> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..64).map(|_| scope.spawn(|| first(&ids, "p"))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(got, HashSet::from([131_072]));
    let before = fs::metadata(node.record("p")).unwrap();
    first(&ids, "p");
    let after = fs::metadata(node.record("p")).unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
}

#[test]
fn d08_releasing_twice_and_releasing_a_stranger_do_nothing() {
    let node = Node::new();
    let ids = node.ids();
    first(&ids, "p");
    first(&ids, "q");
    for name in ["p", "p", "stranger"] {
        ids.release(&pod(name)).unwrap();
    }
    assert_eq!(ids.snapshot().pods.len(), 1);
}

#[test]
fn d09_a_one_block_pool_is_never_held_twice() {
    let node = Node { pool: Some((65_536, 1)), ..Node::new() };
    let ids = node.ids();
    let deadline = Instant::now() + Duration::from_secs(2);
    let held = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for name in ["p", "q"] {
            let (ids, held) = (&ids, &held);
            scope.spawn(move || {
                for _ in 0..200 {
                    if Instant::now() > deadline {
                        break;
                    }
                    if ids.get_or_create(&pod(name)).is_ok() {
                        assert!(!held.swap(true, Ordering::SeqCst), "held twice");
                        held.store(false, Ordering::SeqCst);
                        ids.release(&pod(name)).unwrap();
                        ids.forget(&pod(name));
                    }
                }
            });
        }
    });
}

#[test]
fn d10_a_write_that_fails_holds_nothing_and_can_be_repeated() {
    for (point, errno) in [
        (CrashPoint::BeforeTemporary, libc_errno::ENOSPC),
        (CrashPoint::TemporaryWritten, libc_errno::EIO),
        (CrashPoint::Renamed, libc_errno::EROFS),
    ] {
        let node = Node::new();
        let ids = node.ids();
        *node.faults.fail.lock().unwrap() = Some((point, errno));
        let text = ids.get_or_create(&pod("p")).unwrap_err().to_string();
        assert!(text.contains("can't write the record"), "{text}");
        assert!(node.faults.hit.load(Ordering::Relaxed));
        assert_eq!(ids.snapshot().pods, []);
        *node.faults.fail.lock().unwrap() = None;
        assert_eq!(first(&ids, "p"), 131_072);
    }
}

mod libc_errno {
    pub(super) const EIO: i32 = 5;
    pub(super) const ENOSPC: i32 = 28;
    pub(super) const EROFS: i32 = 30;
}

#[test]
fn a_start_after_termination_is_refused() {
    let node = Node::new();
    let ids = node.ids();
    first(&ids, "p");
    ids.terminate(&pod("p"));
    assert!(ids.get_or_create(&pod("p")).unwrap_err().to_string().contains("terminated"));
    ids.release(&pod("p")).unwrap();
    ids.get_or_create(&pod("p")).unwrap_err();
    assert!(!node.record("p").exists());
}

#[test]
fn two_instances_on_one_machine_never_overlap() {
    let node = Node::new();
    let a = node.ids();
    let b = IdSpace::open(node.config("b"), &[]).unwrap().0;
    let got: Vec<u32> = (0..6).map(|n| first(if n % 2 == 0 { &a } else { &b }, &format!("p{n}"))).collect();
    assert_eq!(got.iter().collect::<HashSet<_>>().len(), 6, "{got:?}");
    drop(a);
    let c = IdSpace::open(node.config("c"), &[]).unwrap().0;
    assert!(!got.contains(&first(&c, "x")), "a daemon that is down still owns its claims");
    assert_eq!(c.snapshot().instances.len(), 6);
}

#[test]
fn after_a_reboot_the_second_instance_does_not_get_the_firsts_recorded_blocks_once_it_has_started() {
    let node = Node::new();
    let a = node.ids();
    first(&a, "p");
    drop(a);
    fs::remove_dir_all(node.dir.path().join("ids")).unwrap();
    let b = IdSpace::open(node.config("b"), &[]).unwrap().0;
    let taken = first(&b, "x");
    assert_eq!(taken, 131_072, "nothing on the machine claims it");
    let (a, findings) = node.open(&[]);
    assert!(findings[0].message.contains("instance `b`"), "{findings:?}");
    assert_ne!(first(&a, "p"), taken);
}

#[test]
fn a_user_namespace_that_already_runs_on_the_machine_is_left_alone() {
    let node = Node::new();
    let process = node.dir.path().join("proc/77");
    fs::create_dir_all(&process).unwrap();
    fs::write(process.join("uid_map"), "         0     131072      65536\n").unwrap();
    let ids = node.ids();
    assert_eq!(first(&ids, "p"), 196_608);
    assert!(ids.snapshot().who_owns(131_080).to_string().contains("a user namespace that runs"));
}

#[test]
fn the_picture_from_disk_equals_the_one_in_memory() {
    let node = Node::new();
    node.put("bad", b"{");
    let ids = node.ids();
    first(&ids, "p");
    let (memory, disk) = (ids.snapshot(), inspect(&node.config("a")).unwrap());
    assert_eq!((&memory.pods, memory.free_blocks), (&disk.pods, disk.free_blocks));
    assert!(disk.who_owns(131_172).to_string().contains("container ID 100"));
}

#[test]
fn claims_go_with_the_last_record_and_not_before() {
    let node = Node::new();
    let ids = node.ids();
    let [one, two] = ["one", "two"].map(|pod| PodUid::parse(pod).unwrap());
    for pod in [&one, &two] {
        ids.get_or_create(pod).unwrap();
    }
    let claims = node.dir.path().join("ids/a");
    ids.release(&one).unwrap();
    remove_unused_claims(&node.config("a")).unwrap();
    assert!(claims.exists(), "the other Pod comes back to its IDs");
    ids.release(&two).unwrap();
    for _ in 0..2 {
        remove_unused_claims(&node.config("a")).unwrap();
        assert!(!claims.exists());
    }
}
