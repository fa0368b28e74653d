//! Fake root against the node and against other Pods: each attempt of `userns.md` §7.9 and §7.10 that this level can make.
//!
//! Attempts run as container root with every capability where that makes them stronger, without a seccomp filter unless
//! the filter is the subject.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::missing_errors_doc,
    missing_docs,
    missing_debug_implementations,
    reason = "test code"
)]

mod common;

use common::{Pod, process, set_mode, until, with_capabilities};
use shim::client::Descriptors;
use shim::protocol::{
    ContainerPlan, DevicePlan, MountPlan, MountSource, Namespace, PidNamespace, ProcessPlan,
};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use sys::mount::{Attributes, BindPlan, Propagation};

/// Container root with everything there is.
fn almighty(mut process: ProcessPlan) -> ProcessPlan {
    process.capabilities.bounding = sys::capability::all_mask();
    process.capabilities.permitted = sys::capability::all_mask();
    process
}

/// A container with every capability that runs a script, whose two streams come in the order in which it wrote them.
fn powerful(pod: &Pod, id: &str, script: &str) -> (ContainerPlan, Descriptors) {
    let (mut plan, fds) = pod.container(id, &format!("exec 2>&1; {script}"));
    plan.process = almighty(plan.process);
    (plan, fds)
}

/// Runs a script as almighty container root. Every line `CAN …` that it prints is a hole.
fn attempt(script: &str) -> String {
    let pod = Pod::new();
    let (_, output) = pod.run(powerful(&pod, "app", script));
    assert!(!output.contains("CAN "), "{output}");
    output
}

/// A static program of the image that makes one system call and prints its errno would need a compiler; busybox has
/// applets for most, and `/proc` and the shell's redirections do the rest.
#[test]
fn s01_a_process_of_the_node_cannot_be_signalled_or_read() {
    let pod = Pod::new();
    let node = std::process::Command::new("sleep").arg("1000").spawn();
    let mut node = node.unwrap();
    let pid = node.id();
    // The node's /proc, bound in as a careless hostPath would, without an ID mapping (procfs has none).
    let (mut plan, mut fds) = powerful(
        &pod,
        "app",
        &format!(
            "cd /hostproc/{pid} && ls >/dev/null && echo here;\
             for f in environ maps mem root/etc/passwd fd/0; do cat $f >/dev/null && echo CAN read $f; done;\
             readlink exe && echo CAN readlink exe; ls root/ >/dev/null && echo CAN list root;\
             echo 1 >oom_score_adj && echo CAN write oom_score_adj; kill -9 {pid} && echo CAN kill"
        ),
    );
    plan.mounts.push(plain_bind(&mut fds, Path::new("/proc"), "/hostproc"));
    let (_, output) = pod.run((plan, fds));
    assert!(output.contains("here"), "{output}");
    assert!(!output.contains("CAN "), "{output}");
    assert!(node.try_wait().unwrap().is_none(), "the node's process lives");
    node.kill().unwrap();
    node.wait().unwrap();
}

/// A bind mount without an ID mapping: any file of the node that leaks in.
fn plain_bind(fds: &mut Descriptors, source: &Path, destination: &str) -> MountPlan {
    let mount = sys::mount::bind(&BindPlan {
        source,
        recursive: true,
        attributes: Attributes::NONE,
        recursive_attributes: false,
        propagation: Propagation::Private,
        id_mapping: None,
    });
    let source = fds.push(mount.unwrap());
    MountPlan { destination: destination.into(), source: MountSource::Fd(source), read_only: false }
}

#[test]
fn s02_the_nodes_namespaces_cannot_be_entered() {
    let pod = Pod::new();
    let script = "for n in net mnt user pid uts ipc cgroup; do\
                  nsenter --$n=/hostproc/1/ns/$n true && echo CAN enter $n; done";
    let (mut plan, mut fds) = powerful(&pod, "app", script);
    plan.mounts.push(plain_bind(&mut fds, Path::new("/proc"), "/hostproc"));
    let (_, output) = pod.run((plan, fds));
    assert!(!output.contains("CAN "), "{output}");
}

#[test]
fn s03_files_of_the_node_cannot_be_read_or_written() {
    let pod = Pod::new();
    let leak = tempfile::tempdir().unwrap();
    set_mode(leak.path(), 0o755);
    for (name, mode) in [("shadow", 0o600), ("readable", 0o644)] {
        fs::write(leak.path().join(name), "secret\n").unwrap();
        set_mode(&leak.path().join(name), mode);
    }
    let script = "stat -c %u /leak/shadow; cat /leak/shadow && echo CAN read; cat /leak/readable;\
                  echo x >/leak/new && echo CAN write; chmod 666 /leak/shadow && echo CAN chmod;\
                  chown 0 /leak/shadow && echo CAN chown; rm -f /leak/readable && echo CAN remove";
    let (mut plan, mut fds) = powerful(&pod, "app", script);
    plan.mounts.push(plain_bind(&mut fds, leak.path(), "/leak"));
    let (_, output) = pod.run((plan, fds));
    assert!(output.starts_with("65534\n") && output.contains("Permission denied"), "{output}");
    assert!(!output.contains("CAN "), "{output}");
}

#[test]
fn s04_the_machine_cannot_be_controlled() {
    let output = attempt(
        "date -s 2000-01-01; [ $(date +%Y) = 2000 ] && echo CAN set the time; swapoff -a; swapon /etc/passwd && echo CAN swapon;\
         dmesg >/dev/null && echo CAN read the kernel log; insmod /etc/passwd && echo CAN load a module;\
         hwclock -w && echo CAN set the clock; echo still here; reboot -f && echo CAN reboot",
    );
    assert!(output.contains("still here"), "{output}");
}

#[test]
fn s05_devices_cannot_be_made_and_those_of_root_cannot_be_opened() {
    let pod = Pod::new();
    let script = "mknod /tmp/mem c 1 1 && echo CAN mknod; mknod /dev/disk b 254 0 && echo CAN mknod; mkfifo /tmp/fifo && echo fifo;\
                  dd if=/dev/theirs of=/dev/null bs=1 count=1 && echo CAN open; echo x >/dev/null && head -c1 /dev/zero | wc -c;\
                  head -c1 /dev/mine | wc -c";
    let (mut plan, mut fds) = powerful(&pod, "app", script);
    let device = |path: &str, mode, uid| DevicePlan {
        path: path.into(),
        is_block: false,
        major: 1,
        minor: 5,
        mode,
        uid,
        gid: 0,
    };
    plan.devices.push(device("/dev/mine", 0o600, 0));
    // As the node has it, 0600 and owned by the node's root.
    let theirs = tempfile::tempdir().unwrap();
    let node = theirs.path().join("theirs");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, &node, kind, mode, rustix::fs::makedev(1, 5)).unwrap();
    plan.mounts.push(plain_bind(&mut fds, &node, "/dev/theirs"));
    let (_, output) = pod.run((plan, fds));
    assert!(!output.contains("CAN "), "{output}");
    assert!(output.lines().filter(|line| *line == "1").count() == 2, "{output}");
}

#[test]
fn s06_a_filesystem_from_a_device_or_image_cannot_be_mounted() {
    attempt(
        "dd if=/dev/zero of=/tmp/image bs=1M count=4 2>/dev/null; mke2fs -F /tmp/image >/dev/null;\
         for t in ext4 xfs vfat; do mount -t $t -o loop /tmp/image /opt && echo CAN mount $t; mount -t $t /tmp/image /opt && echo CAN mount $t; done;\
         mount -t devtmpfs none /opt && echo CAN mount devtmpfs; mount -t debugfs none /opt && echo CAN mount debugfs",
    );
}

#[test]
fn s07_the_nodes_parameters_cannot_be_written() {
    let pod = Pod::new();
    let script = "cd /proc/sys; for f in kernel/core_pattern kernel/modprobe vm/swappiness kernel/panic net/core/rmem_max; do\
                  echo 1 >$f && echo CAN write $f; done; echo c >/proc/sysrq-trigger && echo CAN sysrq;\
                  echo x >/sys/kernel/uevent_helper && echo CAN write uevent_helper";
    let (mut plan, fds) = powerful(&pod, "app", script);
    (plan.masked_paths, plan.read_only_paths) = (Vec::new(), Vec::new()); // procMount: Unmasked
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let (_, output) = pod.run((plan, fds));
    assert!(!output.contains("CAN "), "{output}");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), before);
}

#[test]
fn s09_the_nodes_network_gives_no_raw_socket_and_no_low_port() {
    let pod = Pod::with(|plan| (plan.network, plan.uts) = (Namespace::Node, Namespace::Node));
    let (plan, fds) = powerful(&pod, "app", "exec sleep 1000");
    let pid = pod.start(&plan, &fds);
    let denied = as_container_root(pid, || {
        // SAFETY: plain integers.
        done(unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP) })
    });
    assert_eq!(denied.unwrap_err().raw_os_error(), Some(libc::EPERM));
    let denied = as_container_root(pid, || std::net::TcpListener::bind("127.0.0.1:1").map(drop));
    assert_eq!(denied.unwrap_err().raw_os_error(), Some(libc::EACCES));
}

#[test]
fn s10_no_bpf_program_can_be_loaded() {
    let pod = Pod::new();
    let (plan, fds) = powerful(&pod, "app", "exec sleep 1000");
    let pid = pod.start(&plan, &fds);
    let denied = as_container_root(pid, || {
        let map = [1_u32, 4, 4, 1, 0, 0, 0, 0]; // BPF_MAP_TYPE_HASH, key, value, entries
        // SAFETY: BPF_MAP_CREATE reads 32 bytes.
        done(i32::try_from(unsafe { libc::syscall(libc::SYS_bpf, 0, map.as_ptr(), 32) }).unwrap_or(-1))
    });
    assert_eq!(denied.unwrap_err().raw_os_error(), Some(libc::EPERM));
}

/// -1 is the last error.
fn done(result: i32) -> std::io::Result<()> {
    if result >= 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn s11_priorities_and_limits_cannot_be_raised() {
    attempt(
        "echo -1000 >/proc/self/oom_score_adj && echo CAN lower the OOM score; ulimit -Hn 9999999 && echo CAN raise RLIMIT_NOFILE;\
         nice -n -20 true 2>/tmp/e; grep -q . /tmp/e || { [ $(nice -n -20 nice) = -20 ] && echo CAN be nicer; }; true",
    );
}

#[test]
fn s12_the_map_cannot_be_rewritten_and_unmapped_ids_cannot_be_taken() {
    let output = attempt(
        "echo '0 0 4294967295' >/proc/self/uid_map && echo CAN rewrite the map; touch /tmp/f; chown 65536 /tmp/f && echo CAN chown;\
         chown 65535 /tmp/f && echo chown; grep -c . /proc/self/uid_map;\
         (unshare -U sh -c 'sleep 1' & p=$!; sleep 0.3; echo \"0 70000 1\" >/proc/$p/uid_map && echo CAN map an outside ID; true)",
    );
    assert!(output.contains("chown\n1\n"), "{output}");
}

#[test]
fn s13_masks_and_inherited_flags_stay_even_for_every_capability() {
    let output = attempt(
        "umount /proc/keys && echo CAN unmask; umount /sys/firmware && echo CAN unmask; umount -l /proc/kcore && echo CAN unmask;\
         umount /proc/sys && echo CAN unmount a read-only path; mount -o remount,rw,bind /proc/sys && echo CAN remount;\
         mount -o remount,rw /sys && echo CAN remount sys; mount -o remount,suid,dev,exec,bind /dev/shm && echo CAN clear flags;\
         umount /proc && echo CAN unmount proc; umount -l /sys && echo CAN unmount sys; [ -s /proc/keys ] && echo CAN read keys;\
         mkdir /tmp/p; unshare -p -f mount -t proc proc /tmp/p && echo CAN have an unmasked proc; wc -c </proc/keys",
    );
    assert!(output.ends_with("0\n"), "{output}");
}

#[test]
fn s13b_container_root_with_sys_admin_cannot_clear_ro_of_a_volume() {
    let pod = Pod::new();
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("file"), "data\n").unwrap();
    let script = "cd /; cat /vol/file; touch /vol/x && echo CAN write; mount -o remount,rw,bind /vol && echo CAN remount;\
                  mount -o remount,rw /vol && echo CAN remount; umount /vol && echo CAN unmount; umount -l /vol && echo CAN unmount;\
                  mount --bind /vol /opt && { touch /opt/x && echo CAN write a copy; mount -o remount,rw,bind /opt && echo CAN remount a copy; };\
                  unshare -m sh -c 'mount -o remount,rw,bind /vol && echo CAN remount in a new namespace'; mount -t tmpfs none /vol; true";
    let (mut plan, mut fds) = powerful(&pod, "app", script);
    plan.mounts.push(pod.volume(&mut fds, volume.path(), "/vol", true));
    let (_, output) = pod.run((plan, fds));
    assert!(output.starts_with("data\n"), "{output}");
    assert!(!output.contains("CAN "), "{output}");
    assert!(!volume.path().join("x").exists());
}

#[test]
fn s13b_a_mount_inside_a_shared_host_path_does_not_appear_on_the_node() {
    let pod = Pod::new();
    let volume = tempfile::tempdir().unwrap();
    fs::create_dir(volume.path().join("sub")).unwrap();
    // A thread with a mount namespace of its own plays the node; its mount is shared.
    let (plan, fds) = sys::mount::in_private_namespace(|| {
        // Bound on itself: kernels before 6.3 can't map the IDs of a tmpfs.
        let itself = sys::mount::clone_path(volume.path(), false).unwrap();
        let here = fs::File::open(volume.path()).unwrap();
        sys::mount::attach(&itself, &here).unwrap();
        let shared = sys::mount::Change { propagation: Some(Propagation::Shared), ..Default::default() };
        sys::mount::change(fs::File::open(volume.path()).unwrap(), &shared, false).unwrap();
        let (mut plan, mut fds) = powerful(
            &pod,
            "app",
            "mount -t tmpfs none /vol/sub && touch /vol/sub/inside && echo mounted; exec sleep 1000",
        );
        plan.mounts.push(pod.volume(&mut fds, volume.path(), "/vol", false));
        pod.start(&plan, &fds);
        until("the mount", || pod.output("app").contains("mounted").then_some(()));
        assert!(!volume.path().join("sub/inside").exists(), "the mount appeared on the node");
        Ok::<_, std::io::Error>((plan, fds))
    })
    .unwrap();
    drop((plan, fds));
}

#[test]
fn s14_a_volume_cannot_be_mapped_again_from_inside() {
    let pod = Pod::new();
    let volume = tempfile::tempdir().unwrap();
    let (mut plan, mut fds) = powerful(&pod, "app", "exec sleep 1000");
    plan.mounts.push(pod.volume(&mut fds, volume.path(), "/vol", false));
    let pid = pod.start(&plan, &fds);
    let denied = as_container_root(pid, || {
        let mount = sys::mount::clone_path(Path::new("/vol"), false)?;
        let users = fs::File::open("/proc/1/ns/user")?;
        let change = sys::mount::Change { id_mapping: Some(users.as_fd()), ..Default::default() };
        sys::mount::change(&mount, &change, false)
    });
    assert!(denied.is_err_and(|error| error.raw_os_error() == Some(1)));
}

/// Runs code in a forked child that has entered all namespaces of `pid` and is their root.
fn as_container_root(pid: i32, work: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<()> {
    use sys::process::{CloneOptions, Fork, enter_namespaces, exit_now, fork, open_pidfd};
    let target = open_pidfd(pid)?;
    // SAFETY: the child makes system calls and small allocations; glibc's allocator is usable after a fork by `clone3`
    // as long as no other thread is inside it, which the retry of a failed test would show.
    match unsafe { fork(CloneOptions::default()) }? {
        Fork::Child => {
            let result = enter_namespaces(&target, 0x1000_0000 | 0x0002_0000 | 0x4000_0000)
                .and_then(|()| {
                    Ok(rustix::thread::set_thread_res_gid(
                        rustix::process::Gid::ROOT,
                        rustix::process::Gid::ROOT,
                        rustix::process::Gid::ROOT,
                    )?)
                })
                .and_then(|()| {
                    Ok(rustix::thread::set_thread_res_uid(
                        rustix::process::Uid::ROOT,
                        rustix::process::Uid::ROOT,
                        rustix::process::Uid::ROOT,
                    )?)
                })
                .and_then(|()| work());
            exit_now(result.map_or_else(|error| error.raw_os_error().unwrap_or(255), |()| 0))
        }
        Fork::Parent(child) => match child.wait()?.code() {
            0 => Ok(()),
            errno => Err(std::io::Error::from_raw_os_error(errno)),
        },
    }
}

#[test]
fn s08_a_file_cannot_be_opened_by_its_handle() {
    let pod = Pod::new();
    let (plan, fds) = powerful(&pod, "app", "exec sleep 1000");
    let pid = pod.start(&plan, &fds);
    let denied = as_container_root(pid, || {
        let root = fs::File::open("/")?;
        let mut handle = [8_u32, 1, 2, 0]; // struct file_handle: bytes, type, inode 2 (ext4's root), generation 0
        // SAFETY: a directory and a handle of the size that it says.
        let result = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                std::os::fd::AsRawFd::as_raw_fd(&root),
                handle.as_mut_ptr(),
                libc::O_RDONLY,
            )
        };
        if result >= 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    });
    let errno = denied.err().and_then(|error| error.raw_os_error());
    assert!(matches!(errno, Some(libc::EPERM | libc::ESTALE)), "{errno:?}");
}

#[test]
fn s15_the_shims_program_cannot_be_overwritten() {
    let pod = Pod::with(|plan| plan.pid = PidNamespace::Pod);
    // In a shared PID namespace the init is the shim's program, visible as PID 1.
    let (_, output) = pod.run(powerful(
        &pod,
        "app",
        "readlink /proc/1/exe && echo CAN read the link; (echo x >/proc/1/exe) && echo CAN overwrite; \
         cat /proc/1/exe >/dev/null && echo CAN read; ls /proc/1/fd && echo CAN list; true",
    ));
    assert!(!output.contains("CAN "), "{output}");
    let program = sys::process::sealed_program(c"x", b"program").unwrap();
    let error = rustix::io::write(&program, b"y").unwrap_err();
    assert_eq!(error, rustix::io::Errno::PERM);
}

#[test]
fn s16_a_link_in_a_volume_does_not_lead_the_mounts_outside() {
    let pod = Pod::new();
    let volume = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), volume.path().join("escape")).unwrap();
    std::os::unix::fs::symlink("../../../../../../etc", volume.path().join("up")).unwrap();
    let (mut plan, mut fds) =
        powerful(&pod, "app", "ls /vol/escape/ | head -1; ls /etc; cat /vol/up/shadow && echo CAN read");
    plan.mounts.push(pod.volume(&mut fds, volume.path(), "/vol", false));
    let nested = tempfile::tempdir().unwrap();
    plan.mounts.push(pod.volume(&mut fds, nested.path(), "/vol/escape/nested", false));
    let (_, output) = pod.run((plan, fds));
    assert!(!output.contains("CAN "), "{output}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "{output}");
}

#[test]
fn s17_what_a_pod_makes_setuid_lies_where_nobody_else_comes() {
    let pod = Pod::new();
    let (exit, output) =
        pod.script("cp /bin/busybox /tmp/root; chmod 4755 /tmp/root; stat -c '%u %a' /tmp/root");
    assert_eq!((exit.code, output.as_str()), (0, "0 4755\n"));
    // In the upper directory it belongs to the Pod's base UID and not to the node's root.
    let made = fs::read_dir(pod.dir.path()).unwrap().flatten().map(|entry| entry.path().join("tmp/root"));
    let made: Vec<_> = made.filter_map(|path| fs::metadata(path).ok()).collect();
    assert!(!made.is_empty() && made.iter().all(|file| file.uid() == pod.base));
    assert_eq!(fs::metadata(pod.dir.path()).unwrap().mode() & 0o077, 0);
}

#[test]
fn s18_trusted_attributes_are_refused() {
    let pod = Pod::new();
    let (plan, fds) = powerful(&pod, "app", "exec sleep 1000");
    let pid = pod.start(&plan, &fds);
    let denied = as_container_root(pid, || {
        fs::write("/tmp/f", "")?;
        Ok(rustix::fs::setxattr("/tmp/f", "trusted.x", b"1", rustix::fs::XattrFlags::empty())?)
    });
    assert!(denied.is_err_and(|error| error.raw_os_error() == Some(1)));
}

#[test]
fn s19_namespaces_and_watches_are_charged_to_the_pod() {
    let pod = Pod::new();
    let pid = pod.sleeper("app");
    // The kernel names the creator of a user namespace: not the node's root, but the Pod's own base UID.
    let users = fs::File::open(format!("/proc/{pid}/ns/user")).unwrap();
    let mut owner = 0_u32;
    // SAFETY: NS_GET_OWNER_UID writes one uid_t.
    let result = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&users), 0xb704, &raw mut owner) };
    assert_eq!((result, owner), (0, pod.base));
}

#[test]
fn g01_the_pods_namespaces_belong_to_its_user_namespace() {
    let pod = Pod::new();
    let pid = pod.sleeper("app");
    let users = fs::metadata(format!("/proc/{pid}/ns/user")).unwrap().ino();
    for kind in ["net", "ipc", "uts", "mnt", "pid", "cgroup"] {
        let namespace = fs::File::open(format!("/proc/{pid}/ns/{kind}")).unwrap();
        // SAFETY: NS_GET_USERNS takes no argument and answers a new descriptor.
        let owner = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&namespace), 0xb701) };
        assert!(owner >= 0, "{kind}");
        // SAFETY: a new descriptor that nothing else owns.
        let owner = unsafe { <fs::File as std::os::fd::FromRawFd>::from_raw_fd(owner) };
        assert_eq!(owner.metadata().unwrap().ino(), users, "{kind}");
    }
}

#[test]
fn t01_t02_t03_t05_pods_cannot_touch_each_other() {
    let (a, b) = (Pod::new(), Pod::new());
    let (mut plan, fds) = a.container("victim", "umask 077; echo secret >/tmp/file; exec sleep 1000");
    (plan.process.uid, plan.process.gid) = (1000, 1000);
    let victim = a.start(&plan, &fds);
    until("the file", || a.dir.path().join("victim-upper/tmp/file").exists().then_some(()));
    let script = format!(
        "id -u; cd /hostproc/{victim} && ls >/dev/null; kill -9 {victim} && echo CAN kill; cat environ && echo CAN read environ;\
         cat root/tmp/file && echo CAN read through proc; cat /upper/tmp/file && echo CAN read the upper directory;\
         for n in user net mnt; do nsenter --$n=ns/$n true && echo CAN enter $n; done"
    );
    for uid in [0, 1000] {
        let id = format!("attacker{uid}");
        let (mut plan, mut fds) = powerful(&b, &id, &script);
        (plan.process.uid, plan.process.gid) = (uid, uid);
        plan.mounts.push(plain_bind(&mut fds, Path::new("/proc"), "/hostproc"));
        plan.mounts.push(plain_bind(&mut fds, &a.dir.path().join("victim-upper"), "/upper"));
        let (_, output) = b.run((plan, fds));
        assert!(output.starts_with(&format!("{uid}\n")), "{output}");
        assert!(!output.contains("CAN "), "{output}");
    }
    assert!(Path::new(&format!("/proc/{victim}")).exists());
    assert_ne!(a.base, b.base);
}

/// Signal 0: only the permission is checked.
fn may_signal(pid: i32) -> std::io::Result<()> {
    // SAFETY: plain integers.
    let result = unsafe { libc::kill(pid, 0) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn t04_with_the_same_ids_a_signal_would_arrive() {
    // Why no block is ever given out twice: the kernel compares nothing but the IDs.
    let (a, other) = (Pod::new(), Pod::new());
    let users = a.plan.user_namespace.clone();
    let twin = Pod::with(|plan| plan.user_namespace = users);
    let victim = a.sleeper("victim");
    let denied = as_container_root(other.sleeper("other"), || may_signal(victim));
    assert_eq!(denied.unwrap_err().raw_os_error(), Some(libc::EPERM));
    as_container_root(twin.sleeper("twin"), || may_signal(victim)).unwrap();
}

#[test]
fn t07_shared_memory_and_abstract_sockets_are_the_pods_own() {
    let (a, b) = (Pod::new(), Pod::new());
    let (plan, fds) = a.container("one", "echo x >/dev/shm/x; exec sleep 1000");
    a.start(&plan, &fds);
    until("the file", || (a.exec("one", "ls /dev/shm").1 == "x\n").then_some(()));
    assert_eq!(a.script("ls /dev/shm").1, "x\n", "the same Pod");
    assert_eq!(b.script("ls /dev/shm").1, "", "another Pod");
    assert_eq!(
        b.script("df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2; stat -c '%u %a' /dev/shm").1,
        "1024\n0 1777\n"
    );
}

#[test]
fn the_default_filter_is_on_and_a_namespace_cannot_be_made() {
    let pod = Pod::new();
    let profiles = sys::seccomp::Profiles::new();
    for (id, no_new_privileges) in [("a", false), ("b", true)] {
        let (mut plan, mut fds) =
            pod.container(id, "grep -E '^(Seccomp|NoNewPrivs|CapEff|CapBnd|CapAmb|CapInh)' /proc/self/status; unshare -U true; mount -t tmpfs none /tmp; echo end");
        plan.process.no_new_privileges = no_new_privileges;
        let filter = profiles.runtime_default(plan.process.capabilities.bounding).unwrap();
        plan.process.seccomp = Some(fds.push(filter.try_clone().unwrap()));
        let (exit, output) = pod.run((plan, fds));
        assert_eq!(exit.code, 0, "{output}");
        let value =
            |key: &str| output.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
        assert_eq!(
            (value("Seccomp:"), value("NoNewPrivs:")),
            ("2".into(), u8::from(no_new_privileges).to_string())
        );
        assert_eq!([value("CapEff:"), value("CapBnd:")], ["00000000a80425fb", "00000000a80425fb"]);
        assert_eq!([value("CapAmb:"), value("CapInh:")], ["0000000000000000", "0000000000000000"]);
        assert!(output.matches("not permitted").count() + output.matches("denied").count() >= 2, "{output}");
    }
}

#[test]
fn exec_has_the_filter_the_capabilities_and_the_user_of_its_plan() {
    let pod = Pod::new();
    pod.sleeper("app");
    let mut plan =
        with_capabilities(process(&["sh", "-c", "id -u; grep -E '^Cap(Eff|Amb)' /proc/self/status"]), &[]);
    (plan.uid, plan.gid) = (1000, 1000);
    let net_bind = sys::capability::mask_of("NET_BIND_SERVICE").unwrap();
    plan.capabilities.ambient = net_bind;
    plan.capabilities.inheritable = net_bind;
    let (code, output) = pod.exec_as("app", plan);
    assert_eq!((code, output.as_str()), (0, "1000\nCapEff:\t0000000000000400\nCapAmb:\t0000000000000400\n"));
}

#[test]
fn a_read_only_root_filesystem_is_read_only_for_every_capability() {
    let pod = Pod::new();
    let (mut plan, fds) = powerful(
        &pod,
        "app",
        "touch /x; mount -o remount,rw / && touch /x && echo CAN write; touch /dev/shm/x && echo shm",
    );
    plan.read_only_rootfs = true;
    let (_, output) = pod.run((plan, fds));
    assert!(output.contains("Read-only file system") && output.ends_with("shm\n"), "{output}");
    assert!(!output.contains("CAN "), "{output}");
}

#[test]
fn no_descriptor_of_the_shim_is_left_open_in_a_container() {
    let pod = Pod::new();
    let (_, output) = pod.script("exec ls /proc/self/fd");
    assert_eq!(
        output.split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3"],
        "3 is the listed directory"
    );
    let (_, mounts) = pod.script("cat /proc/self/mounts");
    let places: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    let known = ["/", "/proc", "/dev", "/sys"];
    assert!(
        places
            .iter()
            .all(|place| known.iter().any(|one| place == one || place.starts_with(&format!("{one}/")))),
        "{mounts}"
    );
    assert_eq!(places.iter().filter(|place| **place == "/").count(), 1, "{mounts}");
}
