//! Checks of what the kernel lets this program do.

use std::path::Path;

use super::Verdict;
use super::machine::Machine;

/// The namespaces that a Pod takes, as their limits are named.
const LIMITED: [&str; 7] = ["user", "net", "mnt", "pid", "ipc", "uts", "cgroup"];

pub(super) fn root(machine: &dyn Machine) -> Verdict {
    if machine.is_root() {
        return Verdict::ok("this is root");
    }
    Verdict::missing("this is not root", "run: sudo kakoi check")
}

pub(super) fn user_namespace(machine: &dyn Machine) -> Verdict {
    match machine.user_namespace() {
        Ok(()) => {
            Verdict::ok(format!("made one that maps {}-{}", runtime::probe::HIGHEST, userns::MAX_HOST_ID))
        }
        Err(cause) if cause.contains("sysctl -w") => Verdict::missing(cause, ""),
        Err(cause) => Verdict::missing(cause, "use a kernel with CONFIG_USER_NS=y"),
    }
}

/// Four of each kind for a Pod: its own, and those of its containers.
pub(super) fn namespace_limits(machine: &dyn Machine) -> Verdict {
    let least = u64::from(machine.max_pods()) * 4;
    let limits = LIMITED.iter().filter_map(|kind| {
        let text = machine.text(&format!("/proc/sys/user/max_{kind}_namespaces"))?;
        Some((*kind, text.parse::<u64>().ok()?))
    });
    let mut limits: Vec<(&str, u64)> = limits.collect();
    limits.sort_by_key(|(_, limit)| *limit);
    let Some((kind, limit)) = limits.first() else {
        return Verdict::missing(
            "the kernel has no user.max_user_namespaces",
            "use a kernel with CONFIG_USER_NS=y",
        );
    };
    let cause = format!("user.max_{kind}_namespaces is {limit}");
    let remedy = format!("run: sysctl -w user.max_{kind}_namespaces=65536");
    match *limit {
        0 => Verdict::missing(cause, remedy),
        few if few < least => {
            Verdict::warning(format!("{cause}, less than {least} for {} Pods", machine.max_pods()), remedy)
        }
        _ => Verdict::ok(format!("at least {limit} of each kind")),
    }
}

pub(super) fn nested(machine: &dyn Machine) -> Verdict {
    let switches = [
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ];
    let is_closed = |(name, closed, _): &(&str, &str, &str)| {
        machine.text(&format!("/proc/sys/{}", name.replace('.', "/"))).as_deref() == Some(*closed)
    };
    match switches.into_iter().find(is_closed) {
        None => Verdict::ok("programs without root may make user namespaces"),
        Some((name, closed, open)) => Verdict::warning(
            format!("{name} is {closed}"),
            format!("for builds inside Pods run: sysctl -w {name}={open}"),
        ),
    }
}

fn id_mapped(machine: &dyn Machine, directory: &Path) -> Result<Verdict, String> {
    machine.id_map(directory).map(|()| Verdict::ok(format!("{} can be ID-mapped", directory.display())))
}

pub(super) fn id_mapped_state(machine: &dyn Machine) -> Verdict {
    let remedy = "put it on ext4, xfs or btrfs, or choose another place with --root";
    id_mapped(machine, &machine.state_dir()).unwrap_or_else(|cause| Verdict::missing(cause, remedy))
}

pub(super) fn id_mapped_pods(machine: &dyn Machine) -> Verdict {
    let remedy = "put it on ext4, xfs or btrfs";
    id_mapped(machine, &machine.pods_dir()).unwrap_or_else(|cause| Verdict::missing(cause, remedy))
}

pub(super) fn id_mapped_tmpfs(machine: &dyn Machine) -> Verdict {
    match machine.tmpfs() {
        Ok(()) => Verdict::ok("a tmpfs can be ID-mapped"),
        Err(cause) => Verdict::warning(cause, "use Linux 6.3 or newer"),
    }
}

pub(super) fn overlay(machine: &dyn Machine) -> Verdict {
    match machine.overlay() {
        Ok(()) => Verdict::ok("mounted one over an ID-mapped layer"),
        Err(cause) => Verdict::missing(cause, "run: modprobe overlay; it needs Linux 5.19 or newer"),
    }
}

pub(super) fn seccomp(machine: &dyn Machine) -> Verdict {
    match machine.seccomp() {
        Ok(()) => Verdict::ok("the default profile can be installed"),
        Err(cause) => Verdict::missing(
            format!("install a seccomp filter: {cause}"),
            "use a kernel with CONFIG_SECCOMP_FILTER=y",
        ),
    }
}

pub(super) fn apparmor(machine: &dyn Machine) -> Verdict {
    match machine.text("/sys/module/apparmor/parameters/enabled").as_deref() {
        Some("Y") => Verdict::ok("AppArmor runs"),
        Some(_) => Verdict::ok("AppArmor is off; Pods need none"),
        None => Verdict::ok("this kernel has no AppArmor; Pods need none"),
    }
}

pub(super) fn oom_score(machine: &dyn Machine) -> Verdict {
    match machine.oom_score() {
        Ok(()) => Verdict::ok("oom_score_adj can be lowered"),
        Err(cause) => Verdict::warning(
            format!("lower oom_score_adj: {cause}"),
            "give kakoi CAP_SYS_RESOURCE, which this root lacks",
        ),
    }
}
