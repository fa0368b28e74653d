//! Firewalls of others. An `accept` in our table does not overrule a `drop` in another one, so where a foreign
//! chain drops what it does not know, tagged rules go there too, and away with the network. Pure but for two
//! listings; `nft` shows the tables of `iptables-nft` (Docker, ufw) and firewalld alike, and `iptables` shows
//! these rules as its own.

use std::fmt::Write;

use serde::Deserialize;

use crate::error::NetworkError;
use crate::nft;

/// What is to be let through.
#[derive(Debug, Clone)]
pub(crate) struct Passage {
    pub(crate) bridge: String,
    /// The instance's own table, which is not foreign.
    pub(crate) table: String,
    /// The node's port of the API server, which Pods reach through the bridge.
    pub(crate) api_port: Option<u16>,
    /// Whether Pods have IPv6 addresses.
    pub(crate) has_ipv6: bool,
}

/// A foreign chain and the lines that `nft -a list chain` shows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Foreign {
    pub(crate) chain: Chain,
    rules: Vec<Rule>,
}

/// The chain's name, as `nft -j list chains` gives it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Chain {
    family: String,
    table: String,
    name: String,
    #[serde(default)]
    hook: Option<String>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    policy: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    text: String,
    handle: u64,
}

impl Chain {
    /// The name as `nft` wants it.
    pub(crate) fn path(&self) -> String {
        format!("{} {} {}", self.family, self.table, self.name)
    }

    fn is_base(&self, hook: &str) -> bool {
        self.kind.as_deref() == Some("filter") && self.hook.as_deref() == Some(hook)
    }

    /// Whether it sees forwarded packets, or is Docker's place for rules of others.
    fn is_about_pods(&self) -> bool {
        self.is_base("forward") || self.is_base("input") || self.name == "DOCKER-USER"
    }
}

impl Foreign {
    fn drops(&self) -> bool {
        self.chain.policy.as_deref() == Some("drop")
            || self
                .rules
                .iter()
                .any(|rule| rule.text.split(' ').any(|word| word == "drop" || word == "reject"))
    }
}

impl Passage {
    fn tag(&self) -> String {
        format!("kakoi:{}", self.bridge)
    }

    /// The foreign chains that could stop Pods, with their rules.
    pub(crate) fn list(&self) -> Result<Vec<Foreign>, NetworkError> {
        let chains = self.relevant(&nft::run(&["-j", "list", "chains"], "")?);
        chains.into_iter().filter_map(|chain| read(chain).transpose()).collect()
    }

    /// The families of tables that see packets of Pods.
    fn families(&self) -> &'static [&'static str] {
        if self.has_ipv6 { &["ip", "ip6", "inet"] } else { &["ip", "inet"] }
    }

    fn relevant(&self, listing: &str) -> Vec<Chain> {
        let listing: Listing = serde_json::from_str(listing).unwrap_or_default();
        let chains = listing.nftables.into_iter().filter_map(|item| item.chain);
        chains
            .filter(|chain| self.families().contains(&chain.family.as_str()) && chain.table != self.table)
            .filter(Chain::is_about_pods)
            .collect()
    }

    /// The commands that let Pods through `chains`; nothing when all is there.
    pub(crate) fn plan_open(&self, chains: &[Foreign]) -> String {
        let mut text = String::new();
        for foreign in chains.iter().filter(|foreign| self.is_in_the_way(foreign, chains)) {
            for rule in self.rules_for(&foreign.chain) {
                let rule = format!("{rule} accept comment \"{}\"", self.tag());
                if !foreign.rules.iter().any(|present| present.text == rule) {
                    // Writing to a string cannot fail.
                    let _ = writeln!(text, "insert rule {} {rule}", foreign.chain.path());
                }
            }
        }
        text
    }

    /// The names of the chains that would stop Pods without [`plan_open`](Self::plan_open).
    pub(crate) fn in_the_way(&self, chains: &[Foreign]) -> Vec<String> {
        let found = chains.iter().filter(|foreign| self.is_in_the_way(foreign, chains));
        found.map(|foreign| foreign.chain.path()).collect()
    }

    /// The commands that take our rules out of `chains`.
    pub(crate) fn plan_remove(&self, chains: &[Foreign]) -> String {
        let tag = format!("comment \"{}\"", self.tag());
        let mut text = String::new();
        for Foreign { chain, rules } in chains {
            for rule in rules.iter().filter(|rule| rule.text.ends_with(&tag)) {
                let _ = writeln!(text, "delete rule {} handle {}", chain.path(), rule.handle);
            }
        }
        text
    }

    /// Docker's chain for others is used when the chain that jumps to it drops.
    fn is_in_the_way(&self, foreign: &Foreign, chains: &[Foreign]) -> bool {
        let is_forward_dropper = |other: &Foreign| {
            other.chain.table == foreign.chain.table
                && other.chain.is_base("forward")
                && self.without_ours(other).drops()
        };
        if foreign.chain.name == "DOCKER-USER" {
            chains.iter().any(is_forward_dropper)
        } else {
            foreign.drops()
        }
    }

    fn without_ours(&self, foreign: &Foreign) -> Foreign {
        let tag = self.tag();
        let rules = foreign.rules.iter().filter(|rule| !rule.text.contains(&tag)).cloned().collect();
        Foreign { chain: foreign.chain.clone(), rules }
    }

    fn rules_for(&self, chain: &Chain) -> Vec<String> {
        let bridge = &self.bridge;
        if chain.is_base("input") {
            let port = self.api_port.into_iter();
            return port.map(|port| format!("iifname \"{bridge}\" tcp dport {port}")).collect();
        }
        vec![format!("iifname \"{bridge}\""), format!("oifname \"{bridge}\"")]
    }
}

/// The rules of one chain; `None` when it has gone meanwhile.
fn read(chain: Chain) -> Result<Option<Foreign>, NetworkError> {
    let mut arguments = vec!["-a", "list", "chain"];
    let path = chain.path();
    arguments.extend(path.split(' '));
    match nft::run(&arguments, "") {
        Ok(text) => Ok(Some(Foreign { rules: rules_of(&text), chain })),
        Err(NetworkError::NftRefused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[derive(Debug, Default, Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(Debug, Deserialize)]
struct Item {
    #[serde(default)]
    chain: Option<Chain>,
}

/// The rules of a chain's listing: every line that ends with a handle, but for the chain's and the table's own.
fn rules_of(listing: &str) -> Vec<Rule> {
    let lines = listing.lines().filter_map(|line| line.trim().rsplit_once(" # handle "));
    lines
        .filter(|(text, _)| !text.ends_with('{'))
        .filter_map(|(text, handle)| Some(Rule { text: text.to_owned(), handle: handle.parse().ok()? }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passage() -> Passage {
        Passage {
            bridge: "kakoi0".to_owned(),
            table: "kakoi".to_owned(),
            api_port: Some(6443),
            has_ipv6: false,
        }
    }

    const CHAINS: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
        {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 1, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "handle": 2, "type": "filter", "hook": "input", "prio": 0, "policy": "accept"}},
        {"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER", "handle": 3}},
        {"chain": {"family": "ip", "table": "kakoi", "name": "guard", "handle": 3, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "ip6", "table": "filter", "name": "FORWARD", "handle": 1, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "ip", "table": "nat", "name": "POSTROUTING", "handle": 1, "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}}]}"#;

    fn foreign(chain: &Chain, listing: &str) -> Foreign {
        Foreign { chain: chain.clone(), rules: rules_of(listing) }
    }

    #[test]
    fn a_forward_chain_that_drops_and_dockers_chain_get_rules() {
        let chains = passage().relevant(CHAINS);
        let names: Vec<_> = chains.iter().map(Chain::path).collect();
        assert_eq!(names, ["ip filter FORWARD", "ip filter INPUT", "ip filter DOCKER-USER"]);
        let both = Passage { has_ipv6: true, ..passage() };
        assert!(both.relevant(CHAINS).iter().any(|chain| chain.path() == "ip6 filter FORWARD"));
        let forward = "table ip filter {\n\tchain FORWARD { # handle 1\n\t\ttype filter hook forward priority filter; policy drop;\n\
                       \t\tcounter packets 0 bytes 0 jump DOCKER-USER # handle 4\n\t}\n}\n";
        let docker = "table ip filter {\n\tchain DOCKER-USER { # handle 3\n\t\tcounter packets 0 bytes 0 return # handle 5\n\t}\n}\n";
        let read = [foreign(&chains[0], forward), foreign(&chains[1], ""), foreign(&chains[2], docker)];
        assert_eq!(
            passage().plan_open(&read),
            "insert rule ip filter FORWARD iifname \"kakoi0\" accept comment \"kakoi:kakoi0\"\n\
             insert rule ip filter FORWARD oifname \"kakoi0\" accept comment \"kakoi:kakoi0\"\n\
             insert rule ip filter DOCKER-USER iifname \"kakoi0\" accept comment \"kakoi:kakoi0\"\n\
             insert rule ip filter DOCKER-USER oifname \"kakoi0\" accept comment \"kakoi:kakoi0\"\n"
        );
    }

    #[test]
    fn rules_that_are_there_are_not_added_again_but_removed_by_handle() {
        let chain = passage().relevant(CHAINS).remove(0);
        let listing = "\t\tiifname \"kakoi0\" accept comment \"kakoi:kakoi0\" # handle 12\n\
                       \t\toifname \"kakoi0\" accept comment \"kakoi:kakoi0\" # handle 11\n\
                       \t\toifname \"kakoi0\" accept comment \"kakoi:kakoi01\" # handle 10\n";
        let read = [foreign(&chain, listing)];
        assert_eq!(passage().plan_open(&read), "");
        assert_eq!(
            passage().plan_remove(&read),
            "delete rule ip filter FORWARD handle 12\ndelete rule ip filter FORWARD handle 11\n"
        );
    }

    #[test]
    fn a_chain_with_an_accepting_policy_is_in_the_way_when_a_rule_rejects() {
        let mut chain = passage().relevant(CHAINS).remove(1);
        let firewalld = "\t\tct state established,related accept # handle 1\n\t\treject with icmpx admin-prohibited # handle 2\n";
        assert_eq!(
            passage().plan_open(&[foreign(&chain, firewalld)]),
            "insert rule ip filter INPUT iifname \"kakoi0\" tcp dport 6443 accept comment \"kakoi:kakoi0\"\n"
        );
        assert_eq!(passage().plan_open(&[foreign(&chain, "\t\tcounter accept # handle 1\n")]), "");
        chain.policy = Some("drop".to_owned());
        let closed = Passage { api_port: None, ..passage() };
        assert_eq!(closed.plan_open(&[foreign(&chain, "")]), "");
    }
}
