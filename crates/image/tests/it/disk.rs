//! Full disks and sudden ends: nothing half done is shown, and nothing stays.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use crate::support::{Image, Node, Tar, config, need_root, reopen};

/// Tells a child process of this test program what to do; its value is the node's directory.
const PULL_AND_WAIT: &str = "KAKOI_TEST_PULL_FOREVER";

fn random_text(bytes: usize) -> String {
    let digests = (0..bytes / 64).map(|n| image::Digest::of(&n.to_le_bytes()).hex().to_owned());
    digests.collect()
}

/// A file system of `size` in a mount namespace of the calling thread alone.
fn private_tmpfs(at: &Path, size: &str) {
    need_root();
    // The thread is this test's own, and the namespace ends with it.
    #[expect(deprecated, reason = "the safe form; it changes this thread only and nothing else reads it")]
    rustix::thread::unshare(UnshareFlags::NEWNS | UnshareFlags::FS).unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
    let options = std::ffi::CString::new(format!("size={size},mode=0700")).unwrap();
    rustix::mount::mount("tmpfs", at, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
}

#[test]
fn a_full_disk_is_named_and_leaves_the_store_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_owned();
    let test = std::thread::spawn(move || {
        private_tmpfs(&at, "6m");
        // All threads of this runtime are started from here and see the same mounts.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(pull_more_than_fits(&at));
        runtime.shutdown_timeout(std::time::Duration::from_secs(10));
        rustix::mount::unmount(&at, UnmountFlags::DETACH).unwrap();
    });
    test.join().unwrap();
}

async fn pull_more_than_fits(at: &Path) {
    let mirror = tempfile::tempdir().unwrap();
    let small = Image::of(&[Tar::new().file("small", "s").finish()]);
    let zeros = "0".repeat(1 << 20);
    let large = (0..20).fold(Tar::new(), |tar, n| tar.file(&format!("zeros{n}"), &zeros)).finish();
    small.write_layout(&mirror.path().join("small"), "latest");
    Image::of(&[Tar::new().file("lower", "l").finish(), large])
        .write_layout(&mirror.path().join("large"), "latest");
    let certs = at.join("certs.d/docker.io");
    std::fs::create_dir_all(&certs).unwrap();
    std::fs::write(certs.join("hosts.toml"), format!("server = \"oci:{}\"\n", mirror.path().display()))
        .unwrap();
    let store = image::ImageStore::open(config(at)).unwrap();
    store.pull("small", None, |_| {}).await.unwrap();
    let error = store.pull("large", None, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), image::PullErrorKind::NoSpace, "{error}");
    let text = error.to_string();
    assert!(text.contains("no space left on the file system of the image store; free some"), "{text}");
    assert!(text.contains("writing `zeros"), "{text}");
    store.collect().await.unwrap();
    let count = |name: &str| std::fs::read_dir(at.join("images").join(name)).unwrap().count();
    assert_eq!((count("tmp"), count("layers"), count("images")), (0, 1, 1));
    // With space again the store works on as if nothing had been.
    store.pull("small", None, |_| {}).await.unwrap();
    assert!(store.remove("small").await.unwrap());
}

/// Not a test of its own: the process that `a_kill_in_the_middle_leaves_a_store_that_opens` kills.
#[tokio::test(flavor = "multi_thread")]
async fn child_pulls_again_and_again() {
    let Some(dir) = std::env::var_os(PULL_AND_WAIT) else { return };
    let store = image::ImageStore::open(config(Path::new(&dir))).unwrap();
    for round in 0.. {
        for name in ["one", "two"] {
            store.pull(name, None, |_| {}).await.unwrap();
        }
        if round == 0 {
            eprintln!("round");
        }
        store.remove("one").await.unwrap();
        store.remove("two").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_leaves_a_store_that_opens() {
    let node = Node::new();
    let base = Tar::new().file("base", &random_text(1 << 20)).finish();
    let many =
        |name: &str| (0..300).fold(Tar::new(), |tar, n| tar.file(&format!("{name}/{n}"), "content")).finish();
    Image::of(&[base.clone(), many("one")]).write_layout(&node.mirror().join("one"), "latest");
    Image::of(&[base, many("two")]).write_layout(&node.mirror().join("two"), "latest");
    let Node { dir, store } = node;
    drop(store);
    for round in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["disk::child_pulls_again_and_again", "--exact", "--nocapture"])
            .env(PULL_AND_WAIT, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "round");
        // Another moment in each round; there is nothing to wait for, the moment is the point.
        tokio::time::sleep(std::time::Duration::from_millis(3 + round * 7)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        check(dir.path()).await;
    }
}

/// Opens the store a kill left and checks that what it shows is whole and what it does not show is gone.
async fn check(dir: &Path) {
    let store = reopen(dir);
    let count = |name: &str| std::fs::read_dir(dir.join("images").join(name)).unwrap().count();
    assert_eq!(count("tmp"), 0);
    for record in store.list() {
        assert_eq!(record.layers.len(), 2);
        assert_eq!(std::fs::metadata(record.layers[0].join("base")).unwrap().len(), 1 << 20);
        let name = record.repo_tags[0].split('/').next_back().unwrap().replace(":latest", "");
        assert_eq!(std::fs::read_dir(record.layers[1].join(name)).unwrap().count(), 300);
    }
    assert_eq!(count("layers"), count("layer-records"));
    for name in ["one", "two"] {
        store.pull(name, None, |_| {}).await.unwrap();
    }
    assert_eq!(store.list().len(), 2);
    for name in ["one", "two"] {
        store.remove(name).await.unwrap();
    }
    store.collect().await.unwrap();
    assert_eq!((count("tmp"), count("layers"), count("images")), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_records_and_lost_layers_only_cost_another_pull() {
    let node = Node::new();
    let kept = node.pull_layers("kept", &[Tar::new().file("a", "").finish()]).await.unwrap();
    let lost = node.pull_layers("lost", &[Tar::new().file("b", "").finish()]).await.unwrap();
    let damaged = node.pull_layers("damaged", &[Tar::new().file("c", "").finish()]).await.unwrap();
    let Node { dir, store } = node;
    drop(store);
    std::fs::remove_dir_all(&lost.layers[0]).unwrap();
    let record = format!("images/images/{}.json", damaged.id.replace(':', "-"));
    std::fs::write(dir.path().join(record), [0; 100]).unwrap();
    std::fs::create_dir_all(dir.path().join("images/layers/99/half")).unwrap();
    let store = reopen(dir.path());
    assert_eq!(store.list(), std::slice::from_ref(&kept));
    assert!(!dir.path().join("images/layers/99").exists());
    for name in ["lost", "damaged"] {
        store.pull(name, None, |_| {}).await.unwrap();
    }
    assert_eq!(store.list().len(), 3);
}
