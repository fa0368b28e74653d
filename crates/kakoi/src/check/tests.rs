//! One prerequisite broken per test, and the line that says so, word for word.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use userns::{Entry, IdRange, IdsPerPod, Machine as Given, Pool, PoolConfig, Reserved, Snapshot};

use super::machine::{Cgroups, Handler, Process, Space};
use super::*;

type Said<T> = Result<T, String>;

/// A machine that has everything, until a test takes something away.
struct Fake {
    texts: BTreeMap<&'static str, &'static str>,
    is_root: bool,
    user_namespace: Said<()>,
    unmappable: &'static str,
    tmpfs: Said<()>,
    overlay: Said<()>,
    seccomp: Said<()>,
    oom_score: Said<()>,
    ids: Said<Snapshot>,
    max_pods: u32,
    cgroups: Said<Cgroups>,
    handlers: Said<Vec<Handler>>,
    space: Space,
    inotify: RefCell<io::Result<()>>,
    open_files: u64,
    is_clock_kept: bool,
    nft: Said<()>,
    droppers: Vec<&'static str>,
    taken: Option<u16>,
    daemon: Option<u32>,
    processes: Vec<(u32, &'static str)>,
}

fn snapshot(reserved: Vec<Reserved>) -> Snapshot {
    let machine = Given { kubelet: None, reserved };
    Snapshot::of(
        &Pool::plan(PoolConfig { ids_per_pod: IdsPerPod::default(), max_pods: 110, machine }).unwrap(),
    )
}

fn handler(name: &str, answer: Said<(String, Option<String>)>) -> Handler {
    Handler { name: name.into(), answer }
}

impl Fake {
    fn new() -> Self {
        let texts = ["user", "net", "mnt", "pid", "ipc", "uts", "cgroup"].map(|kind| {
            let path: &'static str =
                Box::leak(format!("/proc/sys/user/max_{kind}_namespaces").into_boxed_str());
            (path, "96365")
        });
        let mut texts = BTreeMap::from(texts);
        texts.insert("/proc/sys/net/ipv4/ip_forward", "1");
        texts.insert("/sys/module/apparmor/parameters/enabled", "Y");
        texts.insert("/proc/sys/fs/inotify/max_user_watches", "65536");
        let controllers = ["cpu", "memory", "pids"].map(str::to_owned).to_vec();
        Self {
            texts,
            is_root: true,
            user_namespace: Ok(()),
            unmappable: "",
            tmpfs: Ok(()),
            overlay: Ok(()),
            seccomp: Ok(()),
            oom_score: Ok(()),
            ids: Ok(snapshot(Vec::new())),
            max_pods: 110,
            cgroups: Ok(Cgroups { version: "v2", controllers }),
            handlers: Ok(vec![handler("crun", Ok(("crun version 1.8.1".into(), None)))]),
            space: Space { bytes: 100 << 30, free_bytes: 50 << 30, inodes: 1000, free_inodes: 900 },
            inotify: RefCell::new(Ok(())),
            open_files: 1_048_576,
            is_clock_kept: true,
            nft: Ok(()),
            droppers: Vec::new(),
            taken: None,
            daemon: None,
            processes: vec![(1, "systemd")],
        }
    }
}

impl Machine for Fake {
    fn state_dir(&self) -> PathBuf {
        "/var/lib/kakoi".into()
    }
    fn pods_dir(&self) -> PathBuf {
        "/var/lib/kubelet/pods".into()
    }
    fn text(&self, path: &str) -> Option<String> {
        self.texts.get(path).map(|text| (*text).to_owned())
    }
    fn is_root(&self) -> bool {
        self.is_root
    }
    fn user_namespace(&self) -> Said<()> {
        self.user_namespace.clone()
    }
    fn id_map(&self, directory: &Path) -> Said<()> {
        if self.unmappable.is_empty() || directory != Path::new(self.unmappable) {
            return Ok(());
        }
        Err(format!("{} is on nfs4, which this kernel can't ID-map", directory.display()))
    }
    fn tmpfs(&self) -> Said<()> {
        self.tmpfs.clone()
    }
    fn overlay(&self) -> Said<()> {
        self.overlay.clone()
    }
    fn seccomp(&self) -> Said<()> {
        self.seccomp.clone()
    }
    fn oom_score(&self) -> Said<()> {
        self.oom_score.clone()
    }
    fn id_space(&self) -> Said<Snapshot> {
        self.ids.clone()
    }
    fn max_pods(&self) -> u32 {
        self.max_pods
    }
    fn cgroups(&self) -> Said<Cgroups> {
        self.cgroups.clone()
    }
    fn handlers(&self) -> Said<Vec<Handler>> {
        self.handlers.clone()
    }
    fn space(&self) -> io::Result<Space> {
        Ok(self.space)
    }
    fn inotify(&self) -> io::Result<()> {
        self.inotify.replace(Ok(()))
    }
    fn open_files(&self) -> io::Result<u64> {
        Ok(self.open_files)
    }
    fn is_clock_kept(&self) -> io::Result<bool> {
        Ok(self.is_clock_kept)
    }
    fn nft(&self) -> Said<()> {
        self.nft.clone()
    }
    fn foreign_droppers(&self) -> Said<Vec<String>> {
        self.nft.clone()?;
        Ok(self.droppers.iter().map(|name| (*name).to_owned()).collect())
    }
    fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        vec![
            ("API server", SocketAddr::from(([0, 0, 0, 0], 6443))),
            ("kubelet", SocketAddr::from(([0, 0, 0, 0], 10250))),
        ]
    }
    fn listen(&self, address: SocketAddr) -> io::Result<()> {
        if self.taken == Some(address.port()) { Err(io::ErrorKind::AddrInUse.into()) } else { Ok(()) }
    }
    fn daemon(&self) -> Option<u32> {
        self.daemon
    }
    fn processes(&self) -> Vec<Process> {
        self.processes.iter().map(|(pid, name)| Process { pid: *pid, name: (*name).to_owned() }).collect()
    }
}

/// The lines that are not `ok`, of a machine of which one thing is changed.
#[track_caller]
fn broken(change: impl FnOnce(&mut Fake)) -> String {
    let mut machine = Fake::new();
    change(&mut machine);
    let lines = run_all(&machine);
    let bad: Vec<String> = lines.iter().filter(|line| line.state != State::Ok).map(text).collect();
    bad.join("\n")
}

/// The line of one check.
fn line_of(name: &str, machine: &Fake) -> String {
    run_all(machine).iter().find(|line| line.name == name).map(text).unwrap()
}

#[test]
fn a_machine_with_everything_has_no_other_line() {
    assert_eq!(broken(|_| {}), "");
    let lines = run_all(&Fake::new());
    assert_eq!(lines.len(), CHECKS.len());
    assert_eq!(summary(&lines), "Pods can run in user namespaces here (0 warnings).");
    let page: Vec<String> = lines.iter().map(text).collect();
    assert_eq!(
        page.join("\n"),
        "ok       root                 this is root
ok       user-namespace       made one that maps 4294901759-4294967294
ok       namespace-limits     at least 96365 of each kind
ok       nested-namespaces    programs without root may make user namespaces
ok       id-mapped-state      /var/lib/kakoi can be ID-mapped
ok       id-mapped-pods       /var/lib/kubelet/pods can be ID-mapped
ok       id-mapped-tmpfs      a tmpfs can be ID-mapped
ok       overlay              mounted one over an ID-mapped layer
ok       seccomp              the default profile can be installed
ok       apparmor             AppArmor runs
ok       oom-score            oom_score_adj can be lowered
ok       id-pool              131072-4294901759, 65533 of 65533 blocks are free
ok       id-overlaps          nobody else holds IDs of the pool
ok       cgroups              made one; v2 with cpu, memory and pids
ok       runtime-handlers     the built-in one, crun (crun version 1.8.1)
ok       disk                 50 GiB are free at /var/lib/kakoi
ok       inotify              made an instance; those of Pods are charged to their own IDs
ok       open-files           1048576 at most
ok       clock                a time service keeps it right
ok       nftables             nft and the kernel take the Pod network's rules
ok       forward-chains       no chain of another program drops Pods' packets
ok       forwarding           is on
ok       ports                6443 and 10250 are free
ok       other-node-software  none runs"
    );
}

#[test]
fn with_a_runtime_handler_that_is_broken_or_has_no_user_namespaces() {
    assert_eq!(
        broken(|m| m.handlers = Ok(vec![handler("runc", Err("no licence".into()))])),
        "warning  runtime-handlers     runc does not answer: no licence: its Pods don't run, or not in user namespaces; \
         repair or remove that OCI runtime"
    );
    let answer = ("runsc version 1".to_owned(), Some("it does not say so".to_owned()));
    let text = broken(|m| m.handlers = Ok(vec![handler("gvisor", Ok(answer))]));
    assert!(text.contains("gvisor (runsc version 1) without user namespaces: it does not say so"), "{text}");
}

#[test]
fn without_root() {
    assert_eq!(
        broken(|m| m.is_root = false),
        "missing  root                 this is not root: nothing can be made for Pods; run: sudo kakoi check"
    );
}

#[test]
fn without_user_namespaces() {
    let no_space = io::Error::from_raw_os_error(28);
    let cause = sys::idmap::explain_namespace_error("user", &no_space);
    assert_eq!(
        broken(|m| m.user_namespace = Err(cause)),
        "missing  user-namespace       cannot create a user namespace: the limit user.max_user_namespaces is reached or 0 \
         (the kernel says ENOSPC, \"No space left on device (os error 28)\"); raise it: sysctl -w user.max_user_namespaces=100000: \
         no Pod can have a user namespace"
    );
    assert_eq!(
        broken(|m| m.user_namespace = Err("cannot create a user namespace: Invalid argument".into())),
        "missing  user-namespace       cannot create a user namespace: Invalid argument: no Pod can have a user namespace; \
         use a kernel with CONFIG_USER_NS=y"
    );
}

#[test]
fn with_a_namespace_limit_of_zero_or_of_too_few() {
    assert_eq!(
        broken(|m| _ = m.texts.insert("/proc/sys/user/max_net_namespaces", "0")),
        "missing  namespace-limits     user.max_net_namespaces is 0: at a limit the kernel says \"No space left on device\"; \
         run: sysctl -w user.max_net_namespaces=65536"
    );
    assert_eq!(
        broken(|m| _ = m.texts.insert("/proc/sys/user/max_mnt_namespaces", "100")),
        "warning  namespace-limits     user.max_mnt_namespaces is 100, less than 440 for 110 Pods: at a limit the kernel says \
         \"No space left on device\"; run: sysctl -w user.max_mnt_namespaces=65536"
    );
    assert_eq!(
        broken(|m| m.texts.retain(|path, _| !path.contains("max_") || path.contains("watches"))),
        "missing  namespace-limits     the kernel has no user.max_user_namespaces: at a limit the kernel says \
         \"No space left on device\"; use a kernel with CONFIG_USER_NS=y"
    );
}

#[test]
fn with_the_switches_of_debian_and_apparmor() {
    assert_eq!(
        broken(|m| _ = m.texts.insert("/proc/sys/kernel/unprivileged_userns_clone", "0")),
        "warning  nested-namespaces    kernel.unprivileged_userns_clone is 0: Pods are made by root and are not affected; what \
         makes namespaces inside a Pod is; for builds inside Pods run: sysctl -w kernel.unprivileged_userns_clone=1"
    );
    assert_eq!(
        broken(|m| _ = m.texts.insert("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1")),
        "warning  nested-namespaces    kernel.apparmor_restrict_unprivileged_userns is 1: Pods are made by root and are not \
         affected; what makes namespaces inside a Pod is; for builds inside Pods run: sysctl -w \
         kernel.apparmor_restrict_unprivileged_userns=0"
    );
}

#[test]
fn on_a_filesystem_that_cannot_be_mapped() {
    assert_eq!(
        broken(|m| m.unmappable = "/var/lib/kakoi"),
        "missing  id-mapped-state      /var/lib/kakoi is on nfs4, which this kernel can't ID-map: no root filesystem can belong \
         to a Pod's IDs; put it on ext4, xfs or btrfs, or choose another place with --root"
    );
    assert_eq!(
        broken(|m| m.unmappable = "/var/lib/kubelet/pods"),
        "missing  id-mapped-pods       /var/lib/kubelet/pods is on nfs4, which this kernel can't ID-map: volumes are written with \
         the Pods' own IDs instead, hostPath volumes there are refused; put it on ext4, xfs or btrfs"
    );
    assert_eq!(
        broken(|m| m.tmpfs = Err("tmpfs can't be ID-mapped here: Invalid argument".into())),
        "warning  id-mapped-tmpfs      tmpfs can't be ID-mapped here: Invalid argument: volumes in memory are written with the \
         Pods' own IDs instead; use Linux 6.3 or newer"
    );
    assert_eq!(
        broken(|m| m.overlay = Err("mount an overlay: No such device".into())),
        "missing  overlay              mount an overlay: No such device: no root filesystem can be made without a copy; run: \
         modprobe overlay; it needs Linux 5.19 or newer"
    );
}

#[test]
fn without_what_keeps_containers_in_their_place() {
    assert_eq!(
        broken(|m| m.seccomp = Err("Invalid argument".into())),
        "missing  seccomp              install a seccomp filter: Invalid argument: containers can't be kept from system calls; use \
         a kernel with CONFIG_SECCOMP_FILTER=y"
    );
    assert_eq!(
        broken(|m| m.oom_score = Err("Permission denied".into())),
        "warning  oom-score            lower oom_score_adj: Permission denied: when memory runs out, shims and Guaranteed Pods are \
         not spared; give kakoi CAP_SYS_RESOURCE, which this root lacks"
    );
    let mut machine = Fake::new();
    machine.texts.remove("/sys/module/apparmor/parameters/enabled");
    let line = "ok       apparmor             this kernel has no AppArmor; Pods need none";
    assert_eq!(line_of("apparmor", &machine), line);
}

#[test]
fn with_a_broken_or_small_pool() {
    let cause = "/etc/subuid: line 1: `kubelet:x:65536` has no number where the first ID stands";
    assert_eq!(
        broken(|m| m.ids = Err(cause.into())),
        format!(
            "missing  id-pool              {cause}: Pods get no IDs; correct the file that it names; `kakoi userns` shows the result"
        )
    );
    assert_eq!(
        broken(|m| m.ids = m.ids.clone().map(|ids| Snapshot { free_blocks: 0, ..ids })),
        "missing  id-pool              131072-4294901759, 0 of 65533 blocks are free: Pods get no IDs; delete Pods, or give the \
         user `kubelet` a larger range"
    );
    assert_eq!(
        broken(|m| m.ids = m.ids.clone().map(|ids| Snapshot { blocks: 64, free_blocks: 64, ..ids })),
        "warning  id-pool              131072-4294901759, 64 of 64 blocks are free, less than maxPods (110): Pods get no IDs; give \
         the user `kubelet` a larger range in /etc/subuid and /etc/subgid, or lower maxPods"
    );
}

#[test]
fn with_others_in_the_pool_and_with_a_quarantined_record() {
    let ann = Reserved {
        range: IdRange::new(196_608, 65_536).unwrap(),
        owner: "the user `ann` in /etc/subuid".into(),
    };
    let mut machine = Fake::new();
    machine.ids = Ok(snapshot(vec![ann]));
    let line = "ok       id-overlaps          left out: the user `ann` in /etc/subuid (196608-262143)";
    assert_eq!(line_of("id-overlaps", &machine), line);
    let entry = Entry {
        range: IdRange::new(131_072, 65_536).unwrap(),
        pod: "u-1".into(),
        name: None,
        recorded_in: String::new(),
        quarantined: Some("it is not a record".into()),
    };
    assert_eq!(
        broken(|m| m.ids = m.ids.clone().map(|ids| Snapshot { pods: vec![entry], ..ids })),
        "warning  id-overlaps          131072-196607 is quarantined: it is not a record: those IDs are left out of it; delete the \
         Pod with UID u-1"
    );
}

#[test]
fn without_control_groups_or_a_controller() {
    assert_eq!(
        broken(|m| m.cgroups = Err("no cgroup hierarchy is mounted".into())),
        "missing  cgroups              no cgroup hierarchy is mounted: Pods can't be limited; run: mount -t cgroup2 none \
         /sys/fs/cgroup"
    );
    assert_eq!(
        broken(|m| m.cgroups = Ok(Cgroups { version: "v2", controllers: vec!["cpu".into(), "pids".into()] })),
        "missing  cgroups              v2 without memory: Pods can't be limited; boot with cgroup_enable=memory swapaccount=1, or \
         mount the controllers"
    );
}

#[test]
fn on_a_full_disk() {
    assert_eq!(
        broken(|m| m.space.free_bytes = 2 << 30),
        "warning  disk                 only 2 GiB are free at /var/lib/kakoi: below a tenth the node takes no Pods; free space, e.g. \
         with `kakoi image remove`, or choose another disk with --root"
    );
    assert_eq!(
        broken(|m| m.space.free_inodes = 7),
        "warning  disk                 only 7 inodes are free at /var/lib/kakoi: below a tenth the node takes no Pods; free space, \
         e.g. with `kakoi image remove`, or choose another disk with --root"
    );
}

#[test]
fn without_inotify_files_or_time() {
    assert_eq!(
        broken(|m| m.inotify = RefCell::new(Err(io::Error::from_raw_os_error(24)))),
        "missing  inotify              make an inotify instance: Too many open files (os error 24): changed ConfigMaps, logs and \
         device changes are not noticed; run: sysctl -w fs.inotify.max_user_instances=1024"
    );
    assert_eq!(
        broken(|m| _ = m.texts.insert("/proc/sys/fs/inotify/max_user_watches", "100")),
        "warning  inotify              fs.inotify.max_user_watches is 100: changed ConfigMaps, logs and device changes are not \
         noticed; run: sysctl -w fs.inotify.max_user_watches=65536"
    );
    assert_eq!(
        broken(|m| m.open_files = 1024),
        "warning  open-files           1024 at most: many Pods end with \"Too many open files\"; set LimitNOFILE=1048576 in the \
         unit, or run: ulimit -Hn 1048576"
    );
    assert_eq!(
        broken(|m| m.is_clock_kept = false),
        "warning  clock                no time service has set it: certificates and tokens may count as expired; run: apt install \
         systemd-timesyncd"
    );
}

#[test]
fn without_nft_or_with_chains_that_drop() {
    assert_eq!(
        broken(|m| m.nft = Err(network_missing())),
        "missing  nftables             cannot run `nft`: it is not installed; install the package `nftables`: Pods have no network; \
         run: apt install nftables"
    );
    assert_eq!(
        broken(|m| m.nft = Err("`nft` refused the rules: Operation not supported".into())),
        "missing  nftables             `nft` refused the rules: Operation not supported: Pods have no network; run: modprobe \
         nf_tables nft_masq nft_nat"
    );
    assert_eq!(
        broken(|m| m.droppers = vec!["ip filter FORWARD"]),
        "warning  forward-chains       ip filter FORWARD would drop Pods' packets: kakoi puts tagged rules there while it runs"
    );
}

fn network_missing() -> String {
    ::network::NetworkError::NftMissing.to_string()
}

#[test]
fn without_forwarding_or_ports() {
    assert_eq!(
        broken(|m| _ = m.texts.remove("/proc/sys/net/ipv4/ip_forward")),
        "missing  forwarding           the kernel has no net.ipv4.ip_forward: Pods reach nothing beyond the node; use a kernel with \
         CONFIG_INET=y"
    );
    assert_eq!(
        broken(|m| m.taken = Some(10250)),
        "missing  ports                the kubelet's port 10250 is in use: the node does not start; see who has it: ss -ltnp \
         'sport = :10250'; or choose another with --kubelet-port"
    );
    let mut machine = Fake::new();
    (machine.taken, machine.daemon) = (Some(10250), Some(77));
    let line = "ok       ports                this instance's daemon (PID 77) has them";
    assert_eq!(line_of("ports", &machine), line);
}

#[test]
fn beside_another_kubelet() {
    assert_eq!(
        broken(|m| m.processes.push((812, "kubelet"))),
        "warning  other-node-software  another kubelet runs: kubelet (PID 812): two kubelets in one directory destroy each other's \
         Pods; engines are no harm; stop it (systemctl disable --now kubelet), or give kakoi a --root of its own"
    );
    let mut machine = Fake::new();
    machine.processes.push((9, "dockerd"));
    let line = "ok       other-node-software  beside it runs dockerd (PID 9)";
    assert_eq!(line_of("other-node-software", &machine), line);
}

#[test]
fn the_page_of_documentation_names_every_check() {
    let page = include_str!("../../../../docs/check.md");
    for check in CHECKS {
        assert!(
            page.contains(&format!("| `{}` |", check.name)),
            "docs/check.md has no row for `{}`",
            check.name
        );
    }
}

#[test]
fn a_missing_line_counts_in_the_summary() {
    let mut machine = Fake::new();
    machine.is_root = false;
    machine.is_clock_kept = false;
    let lines = run_all(&machine);
    assert_eq!(summary(&lines), "1 missing: Pods in user namespaces don't run here (1 warnings).");
}
