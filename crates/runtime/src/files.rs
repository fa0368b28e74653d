//! The text of the files that the runtime puts into every container: `/etc/resolv.conf`, `/etc/hostname`, and
//! `/etc/hosts` where the kubelet sends none.

use std::fmt::Write as _;
use std::net::IpAddr;

use cri::v1::DnsConfig;

/// `resolv.conf` (resolv.conf(5)) as the Pod's DNS configuration says it.
pub(crate) fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

/// `hosts` with loopback names and the Pod's own.
pub(crate) fn hosts(hostname: &str, addresses: &[IpAddr]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for address in addresses {
        let _ = writeln!(text, "{address}\t{hostname}");
    }
    text
}

/// `hostname`.
pub(crate) fn hostname(hostname: &str) -> String {
    format!("{hostname}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_search_then_servers_then_options() {
        let dns = DnsConfig {
            servers: vec!["10.96.0.10".into(), "1.1.1.1".into()],
            searches: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        };
        let expected = "search default.svc.cluster.local svc.cluster.local\n\
                        nameserver 10.96.0.10\nnameserver 1.1.1.1\noptions ndots:5\n";
        assert_eq!(resolv_conf(&dns), expected);
        assert_eq!(resolv_conf(&DnsConfig::default()), "");
    }

    #[test]
    fn hosts_names_the_pod_at_each_of_its_addresses() {
        let text = hosts("pod", &[IpAddr::from([10, 0, 0, 2])]);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n") && text.ends_with("10.0.0.2\tpod\n"));
    }
}
