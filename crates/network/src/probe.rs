//! What the machine's firewall does with Pods, found out without changing it.

use crate::error::NetworkError;
use crate::firewall::Passage;
use crate::nft;

/// Has `nft` check a table like the Pod network's, without making it.
///
/// # Errors
/// When `nft` is missing, or the kernel refuses the table.
pub fn probe_nft() -> Result<(), NetworkError> {
    let rules = "add table inet kakoi-check\n\
                 add chain inet kakoi-check nat { type nat hook postrouting priority srcnat; }\n\
                 add rule inet kakoi-check nat ip saddr 192.0.2.0/24 masquerade\n";
    nft::run(&["-c", "-f", "-"], rules).map(drop)
}

/// The chains of others that drop what Pods send or get, by `family table name`. While it runs, the Pod network puts
/// rules there that let Pods through.
///
/// # Errors
/// When `nft` can't be asked.
pub fn foreign_droppers(bridge: &str, table: &str) -> Result<Vec<String>, NetworkError> {
    let passage =
        Passage { bridge: bridge.to_owned(), table: table.to_owned(), api_port: None, has_ipv6: false };
    Ok(passage.in_the_way(&passage.list()?))
}
