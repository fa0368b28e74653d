//! Checks of what the node needs of the machine beside the kernel's word: IDs, control groups, space, time, neighbours.

use userns::Snapshot;

use super::Verdict;
use super::machine::{Handler, Machine, Process};

/// A node with less free than one in so many takes no Pods.
const TENTH: u64 = 10;
/// Fewer open files than this do not last for a full node.
const FILES: u64 = 8192;
/// Fewer watches than this do not last for a full node.
const WATCHES: u64 = 8192;

/// Programs that are a kubelet, or contain one.
const KUBELETS: [&str; 6] = ["kubelet", "kubelite", "k3s-server", "k3s-agent", "k0s", "rke2"];
/// Container engines, which may run beside this one.
const ENGINES: [&str; 4] = ["containerd", "dockerd", "crio", "podman"];

pub(super) fn id_pool(machine: &dyn Machine) -> Verdict {
    let snapshot = match machine.id_space() {
        Ok(snapshot) => snapshot,
        Err(cause) => {
            return Verdict::missing(
                cause,
                "correct the file that it names; `kakoi userns` shows the result",
            );
        }
    };
    let Snapshot { pool: (first, last), free_blocks, blocks, .. } = snapshot;
    let (wanted, used) = (u64::from(machine.max_pods()), blocks.saturating_sub(free_blocks));
    let cause = format!("{first}-{last}, {free_blocks} of {blocks} blocks are free");
    if free_blocks + used < wanted {
        let remedy =
            "give the user `kubelet` a larger range in /etc/subuid and /etc/subgid, or lower maxPods";
        return Verdict::warning(format!("{cause}, less than maxPods ({wanted})"), remedy);
    }
    if free_blocks == 0 {
        return Verdict::missing(cause, "delete Pods, or give the user `kubelet` a larger range");
    }
    Verdict::ok(cause)
}

pub(super) fn id_overlaps(machine: &dyn Machine) -> Verdict {
    // What stands in the way of the picture is the pool's check.
    let Ok(snapshot) = machine.id_space() else {
        return Verdict::ok("unknown until the pool can be planned");
    };
    let (first, last) = snapshot.pool;
    let is_within =
        |range: &userns::IdRange| u64::from(range.last()) >= first && u64::from(range.first()) <= last;
    let others = snapshot.reserved.iter().chain(&snapshot.instances).filter(|other| is_within(&other.range));
    let named: Vec<String> = others.map(|other| format!("{} ({})", other.owner, other.range)).collect();
    let mut quarantined = snapshot.pods.iter().filter(|entry| entry.quarantined.is_some());
    match (quarantined.next(), named.as_slice()) {
        (Some(entry), _) => Verdict::warning(
            format!("{} is quarantined: {}", entry.range, entry.quarantined.as_deref().unwrap_or_default()),
            format!("delete the Pod with UID {}", entry.pod),
        ),
        (None, []) => Verdict::ok("nobody else holds IDs of the pool"),
        (None, few) if few.len() <= 3 => Verdict::ok(format!("left out: {}", few.join(", "))),
        (None, [one, rest @ ..]) => {
            Verdict::ok(format!("left out: {one} and {} more; `kakoi userns` names them", rest.len()))
        }
    }
}

pub(super) fn handlers(machine: &dyn Machine) -> Verdict {
    let found = match machine.handlers() {
        Ok(found) => found,
        Err(cause) => return Verdict::missing(cause, "correct `runtimeHandlers` in the configuration"),
    };
    let mut fine = vec!["the built-in one".to_owned()];
    for Handler { name, answer } in found {
        match answer {
            Ok((version, None)) => fine.push(format!("{name} ({version})")),
            Ok((version, Some(reason))) => {
                return Verdict::warning(format!("{name} ({version}) without user namespaces: {reason}"), "");
            }
            Err(said) => {
                return Verdict::warning(
                    format!("{name} does not answer: {said}"),
                    "repair or remove that OCI runtime",
                );
            }
        }
    }
    Verdict::ok(fine.join(", "))
}

pub(super) fn cgroups(machine: &dyn Machine) -> Verdict {
    let found = match machine.cgroups() {
        Ok(found) => found,
        Err(cause) => return Verdict::missing(cause, "run: mount -t cgroup2 none /sys/fs/cgroup"),
    };
    let absent: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|name| !found.controllers.iter().any(|has| has == name))
        .collect();
    if absent.is_empty() {
        return Verdict::ok(format!("made one; {} with cpu, memory and pids", found.version));
    }
    let cause = format!("{} without {}", found.version, absent.join(", "));
    Verdict::missing(cause, "boot with cgroup_enable=memory swapaccount=1, or mount the controllers")
}

pub(super) fn disk(machine: &dyn Machine) -> Verdict {
    let space = match machine.space() {
        Ok(space) => space,
        Err(error) => {
            return Verdict::missing(
                format!("ask for the space of {}: {error}", machine.state_dir().display()),
                "",
            );
        }
    };
    let gibibytes = space.free_bytes >> 30;
    let place = machine.state_dir().display().to_string();
    let few_bytes = space.free_bytes < space.bytes / TENTH;
    let few_inodes = space.inodes > 0 && space.free_inodes < space.inodes / 20;
    if few_bytes || few_inodes {
        let what =
            if few_bytes { format!("{gibibytes} GiB") } else { format!("{} inodes", space.free_inodes) };
        let remedy = "free space, e.g. with `kakoi image remove`, or choose another disk with --root";
        return Verdict::warning(format!("only {what} are free at {place}"), remedy);
    }
    Verdict::ok(format!("{gibibytes} GiB are free at {place}"))
}

pub(super) fn inotify(machine: &dyn Machine) -> Verdict {
    if let Err(error) = machine.inotify() {
        let remedy = "run: sysctl -w fs.inotify.max_user_instances=1024";
        return Verdict::missing(format!("make an inotify instance: {error}"), remedy);
    }
    let number = |name: &str| machine.text(&format!("/proc/sys/fs/inotify/{name}"))?.parse::<u64>().ok();
    match number("max_user_watches") {
        Some(few) if few < WATCHES => Verdict::warning(
            format!("fs.inotify.max_user_watches is {few}"),
            "run: sysctl -w fs.inotify.max_user_watches=65536",
        ),
        _ => Verdict::ok("made an instance; those of Pods are charged to their own IDs"),
    }
}

pub(super) fn open_files(machine: &dyn Machine) -> Verdict {
    match machine.open_files() {
        Ok(few) if few < FILES => Verdict::warning(
            format!("{few} at most"),
            "set LimitNOFILE=1048576 in the unit, or run: ulimit -Hn 1048576",
        ),
        Ok(many) => Verdict::ok(format!("{many} at most")),
        Err(error) => Verdict::warning(format!("read the limit: {error}"), ""),
    }
}

pub(super) fn clock(machine: &dyn Machine) -> Verdict {
    match machine.is_clock_kept() {
        Ok(true) => Verdict::ok("a time service keeps it right"),
        Ok(false) => Verdict::warning("no time service has set it", "run: apt install systemd-timesyncd"),
        Err(error) => Verdict::warning(format!("ask the kernel: {error}"), ""),
    }
}

pub(super) fn others(machine: &dyn Machine) -> Verdict {
    let processes = machine.processes();
    let among = |names: &[&str]| -> Vec<String> {
        let found = processes.iter().filter(|process| names.contains(&process.name.as_str()));
        found.map(|Process { pid, name }| format!("{name} (PID {pid})")).collect()
    };
    let kubelets = among(&KUBELETS);
    if !kubelets.is_empty() {
        let remedy = "stop it (systemctl disable --now kubelet), or give kakoi a --root of its own";
        return Verdict::warning(format!("another kubelet runs: {}", kubelets.join(", ")), remedy);
    }
    match among(&ENGINES).as_slice() {
        [] => Verdict::ok("none runs"),
        engines => Verdict::ok(format!("beside it runs {}", engines.join(", "))),
    }
}
