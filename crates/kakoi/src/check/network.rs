//! Checks of what the Pod network needs.

use std::io::ErrorKind;

use super::Verdict;
use super::machine::Machine;

pub(super) fn nftables(machine: &dyn Machine) -> Verdict {
    match machine.nft() {
        Ok(()) => Verdict::ok("nft and the kernel take the Pod network's rules"),
        Err(cause) if cause.contains("not installed") => Verdict::missing(cause, "run: apt install nftables"),
        Err(cause) => Verdict::missing(cause, "run: modprobe nf_tables nft_masq nft_nat"),
    }
}

pub(super) fn forward_chains(machine: &dyn Machine) -> Verdict {
    match machine.foreign_droppers() {
        Ok(chains) if chains.is_empty() => Verdict::ok("no chain of another program drops Pods' packets"),
        Ok(chains) => Verdict::warning(format!("{} would drop Pods' packets", chains.join(", ")), ""),
        // Without nft the check before says what is missing.
        Err(_) => Verdict::ok("unknown until nft works"),
    }
}

pub(super) fn forwarding(machine: &dyn Machine) -> Verdict {
    match machine.text("/proc/sys/net/ipv4/ip_forward").as_deref() {
        Some("0") => Verdict::ok("is off; kakoi turns it on while it runs"),
        Some(_) => Verdict::ok("is on"),
        None => Verdict::missing("the kernel has no net.ipv4.ip_forward", "use a kernel with CONFIG_INET=y"),
    }
}

pub(super) fn ports(machine: &dyn Machine) -> Verdict {
    if let Some(pid) = machine.daemon() {
        return Verdict::ok(format!("this instance's daemon (PID {pid}) has them"));
    }
    let flags = ["--secure-port", "--kubelet-port"];
    let addresses = machine.addresses();
    for ((what, address), flag) in addresses.iter().zip(flags) {
        if let Err(error) = machine.listen(*address) {
            let cause = match error.kind() {
                ErrorKind::AddrInUse => format!("the {what}'s port {} is in use", address.port()),
                _ => format!("the {what} can't listen on {address}: {error}"),
            };
            let port = address.port();
            return Verdict::missing(
                cause,
                format!("see who has it: ss -ltnp 'sport = :{port}'; or choose another with {flag}"),
            );
        }
    }
    let free: Vec<String> = addresses.iter().map(|(_, address)| address.port().to_string()).collect();
    Verdict::ok(format!("{} are free", free.join(" and ")))
}
