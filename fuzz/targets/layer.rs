//! Layers: tar archives with whiteouts, links, devices and attributes, unpacked on top of another layer. Whatever
//! they say, nothing appears or changes outside their root, which an archive could reach by any absolute path.

#![no_main]

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};

use libfuzzer_sys::fuzz_target;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

const BLOCK: usize = 512;
/// Where the layers lie in the worker's world; everything beside it must stay as it is.
const LAYERS: &str = "/layers";
/// The layer that is unpacked.
const UPPER: &str = "/layers/upper";
/// The layer below it.
const LOWER: &str = "/layers/lower";
const CLONE_NEWNS: u64 = 0x0002_0000;

type Job = (Vec<u8>, SyncSender<()>);

fuzz_target!(|bytes: &[u8]| {
    static WORKER: OnceLock<SyncSender<Job>> = OnceLock::new();
    let (done, wait) = sync_channel(0);
    let worker = WORKER.get_or_init(start_worker);
    worker.send((bytes.to_vec(), done)).expect("a panic of the worker ends the process");
    wait.recv().expect("a panic of the worker ends the process");
});

/// A thread whose root directory is a file system of its own: to an archive that leaves its layer, that is the world.
fn start_worker() -> SyncSender<Job> {
    let (sender, jobs) = sync_channel::<Job>(0);
    std::thread::spawn(move || {
        make_world().expect("the fuzz target `layer` needs root, for a mount namespace of its own");
        for (bytes, done) in jobs {
            unpack(&bytes);
            let _ = done.send(());
        }
    });
    sender
}

fn make_world() -> std::io::Result<()> {
    sys::process::unshare(CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("tmpfs", "/mnt", "tmpfs", MountFlags::empty(), Some(c"size=64m"))?;
    rustix::process::chroot("/mnt")?;
    std::env::set_current_dir("/")?;
    fs::create_dir_all("/etc")?;
    fs::write("/etc/passwd", "outside")?;
    Ok(())
}

/// What is in the world besides the layer's root: names, modes, owners, times and content.
fn outside(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(directory).into_iter().flatten().flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for path in entries.iter().map(std::fs::DirEntry::path).filter(|path| path != Path::new(LAYERS)) {
        let Ok(stat) = path.symlink_metadata() else { continue };
        let what = (stat.mode(), stat.uid(), stat.gid(), stat.mtime_nsec(), stat.nlink());
        found.push(format!("{} {what:?}", path.display()));
        if stat.is_file() {
            found.push(format!("{:?}", fs::read(&path)));
        } else if stat.is_dir() {
            found.extend(outside(&path));
        }
    }
    found
}

fn unpack(bytes: &[u8]) {
    let Some((options, archive)) = bytes.split_first() else { return };
    let mut archive = archive.to_vec();
    // A mutation that the checksum catches teaches nothing.
    if options & 1 == 0 {
        repair_checksums(&mut archive);
    }
    prepare().expect("making two empty directories in a tmpfs");
    let before = outside(Path::new("/"));
    let open = |path: &str| openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let (root, lower) = (open(UPPER).expect("just made"), open(LOWER).expect("just made"));
    let below = outside(Path::new(LOWER));
    // An archive may well be refused.
    let _ = image::fuzz::unpack(&archive, root, lower);
    assert_eq!(outside(Path::new("/")), before, "the archive reached out of its layer");
    assert_eq!(outside(Path::new(LOWER)), below, "the archive changed the layer below");
    check_devices(Path::new(UPPER));
}

/// Two fresh directories; the one below has what links and parents are looked up in.
fn prepare() -> std::io::Result<()> {
    let _ = fs::remove_dir_all(LAYERS);
    fs::DirBuilder::new().recursive(true).mode(0o755).create(UPPER)?;
    let a = Path::new(LOWER).join("a");
    fs::create_dir_all(a.join("b"))?;
    fs::write(a.join("b/f"), "below")?;
    symlink("/etc", a.join("etc"))?;
    symlink("../../..", a.join("up"))
}

/// A walk that a loop or an endless depth would not survive.
fn check_devices(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            check_devices(&entry.path());
        } else if kind.is_socket() {
            panic!("{} is a socket, which no archive can hold", entry.path().display());
        }
    }
}

/// Gives every header the checksum that belongs to it.
fn repair_checksums(archive: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = archive.get_mut(at..at + BLOCK) {
        if header.iter().all(|byte| *byte == 0) {
            return;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = String::from_utf8_lossy(&header[124..136]);
        let size = usize::from_str_radix(size.trim_matches(['\0', ' ']), 8).unwrap_or(0);
        at = at.saturating_add(BLOCK).saturating_add(size.min(1 << 30).next_multiple_of(BLOCK));
        if at > archive.len() {
            return;
        }
    }
}
