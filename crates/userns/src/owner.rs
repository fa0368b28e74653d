//! Who owns a host ID: one picture of the ID space, for `kakoi userns` and `kakoi who-owns`.

use std::fmt;

use serde::Serialize;

use crate::pool::{Pool, PoolSource, Reserved, as_text};
use crate::range::{IdRange, MAX_HOST_ID};

/// An account of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Its UID or GID.
    pub id: u32,
    /// Its name.
    pub name: String,
}

/// A range that a Pod holds, or that is kept because of a Pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The IDs.
    #[serde(serialize_with = "as_text")]
    pub range: IdRange,
    /// The Pod's UID.
    pub pod: String,
    /// `namespace/name`, where known.
    pub name: Option<String>,
    /// The file that says so.
    pub recorded_in: String,
    /// Why the range is quarantined; `None` for a mapping in use.
    pub quarantined: Option<String>,
}

/// A Pod whose record can't be used and names no range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Quarantined {
    /// The Pod's UID.
    pub pod: String,
    /// `namespace/name`, where known.
    pub name: Option<String>,
    /// The record.
    pub recorded_in: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The ID space as it stands.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Where the pool comes from.
    pub pool_source: PoolSource,
    /// First and last ID of the pool.
    pub pool: (u64, u64),
    /// IDs per Pod.
    pub ids_per_pod: u32,
    /// Blocks that the pool has.
    pub blocks: u64,
    /// Blocks that a Pod could still be given.
    pub free_blocks: u64,
    /// Pods, in the order of their IDs.
    pub pods: Vec<Entry>,
    /// Pods that get no sandbox because of their record, and hold no range either.
    pub quarantined: Vec<Quarantined>,
    /// What the machine has given away.
    pub reserved: Vec<Reserved>,
    /// What other instances on the machine hold.
    pub instances: Vec<Reserved>,
    /// Accounts of the node, for `who-owns`.
    #[serde(skip)]
    pub accounts: Vec<Account>,
}

/// Who owns a host ID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "owner")]
pub enum Ownership {
    /// A Pod; inside, the ID is `container_id`.
    #[serde(rename_all = "camelCase")]
    Pod {
        /// The Pod's range.
        entry: Entry,
        /// The same ID as the Pod sees it.
        container_id: u32,
    },
    /// An account of the node.
    Account {
        /// Its name.
        name: String,
    },
    /// A group of the node.
    Group {
        /// Its name.
        name: String,
    },
    /// Somebody else on the machine.
    Reserved(Reserved),
    /// Nobody: a Pod may be given it.
    Free,
    /// Nobody, and no Pod is ever given it.
    Outside {
        /// Why not.
        reason: String,
    },
}

impl Snapshot {
    /// A picture without Pods.
    pub fn of(pool: &Pool) -> Self {
        Self {
            pool_source: pool.source(),
            pool: pool.bounds(),
            ids_per_pod: pool.ids_per_pod(),
            blocks: pool.usable_blocks(),
            free_blocks: pool.usable_blocks(),
            pods: Vec::new(),
            quarantined: Vec::new(),
            reserved: pool.reserved().to_vec(),
            instances: Vec::new(),
            accounts: Vec::new(),
        }
    }

    /// Who owns `id`. A Pod comes first: what runs counts for more than what was given away.
    pub fn who_owns(&self, id: u32) -> Ownership {
        let holders = self.pods.iter().filter(|entry| entry.range.contains(id));
        if let Some(entry) = holders.min_by_key(|entry| entry.quarantined.is_some()) {
            return Ownership::Pod { entry: entry.clone(), container_id: id - entry.range.first() };
        }
        if let Some(account) = self.accounts.iter().find(|account| account.id == id) {
            return Ownership::Account { name: account.name.clone() };
        }
        if let Some(other) = self.reserved.iter().chain(&self.instances).find(|r| r.range.contains(id)) {
            return Ownership::Reserved(other.clone());
        }
        if (self.pool.0..=self.pool.1).contains(&id.into()) { Ownership::Free } else { self.outside(id) }
    }

    /// The same picture without the node's accounts, for IDs of groups.
    #[must_use]
    pub fn without_accounts(&self) -> Self {
        Self { accounts: Vec::new(), ..self.clone() }
    }

    /// Who owns the IDs of a range: its parts in order, each with one owner.
    pub fn who_owns_range(&self, range: IdRange) -> Vec<(IdRange, Ownership)> {
        let mut parts = Vec::new();
        let mut first = u64::from(range.first());
        while first < range.end() {
            let end = self.next_change(first).min(range.end());
            let (Ok(id), Ok(part)) = (u32::try_from(first), IdRange::new(first, end - first)) else { break };
            parts.push((part, self.who_owns(id)));
            first = end;
        }
        parts
    }

    /// The first ID after `id` at which somebody else may begin.
    fn next_change(&self, id: u64) -> u64 {
        let ranges = self.pods.iter().map(|entry| entry.range);
        let ranges = ranges.chain(self.reserved.iter().chain(&self.instances).map(|other| other.range));
        let ranges = ranges.chain(self.accounts.iter().map(|account| IdRange::single(account.id)));
        let edges = ranges.flat_map(|range| [u64::from(range.first()), range.end()]);
        let pool = [self.pool.0, self.pool.1 + 1, u64::from(MAX_HOST_ID) + 1, 1 << 32];
        edges.chain(pool).filter(|edge| *edge > id).min().unwrap_or(1 << 32)
    }

    fn outside(&self, id: u32) -> Ownership {
        let reason = match id {
            id if id > MAX_HOST_ID => {
                "4294967295 means \"no ID\" to the kernel, which maps it for nobody".to_owned()
            }
            id if u64::from(id) < self.pool.0 => {
                format!("the pool begins at {}; IDs below it are the node's", self.pool.0)
            }
            _ => format!("the pool ends at {}", self.pool.1),
        };
        Ownership::Outside { reason }
    }
}

impl fmt::Display for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { entry, container_id } => {
                let name = entry.name.as_deref().unwrap_or("unknown name");
                write!(f, "Pod {name} (UID {}), container ID {container_id}, ", entry.pod)?;
                write!(f, "range {}, recorded in {}", entry.range, entry.recorded_in)?;
                entry.quarantined.as_ref().map_or(Ok(()), |why| write!(f, "; quarantined: {why}"))
            }
            Self::Account { name } => write!(f, "the node's account `{name}`"),
            Self::Group { name } => write!(f, "the node's group `{name}`"),
            Self::Reserved(other) => write!(f, "{}, range {}", other.owner, other.range),
            Self::Free => f.write_str("nobody: the block is free, and a Pod may be given it"),
            Self::Outside { reason } => write!(f, "nobody, and no Pod is given it: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{IdsPerPod, Machine, PoolConfig};

    fn snapshot() -> Snapshot {
        let ann = Reserved {
            range: IdRange::new(100_000, 65_536).unwrap(),
            owner: "the user `ann` in /etc/subuid".into(),
        };
        let machine = Machine { kubelet: None, reserved: vec![ann] };
        let pool =
            Pool::plan(PoolConfig { ids_per_pod: IdsPerPod::default(), max_pods: 110, machine }).unwrap();
        let entry = Entry {
            range: IdRange::new(196_608, 65_536).unwrap(),
            pod: "u-1".into(),
            name: Some("default/nginx".into()),
            recorded_in: "/var/lib/kubelet/pods/u-1/userns".into(),
            quarantined: None,
        };
        let accounts = vec![Account { id: 0, name: "root".into() }];
        Snapshot { pods: vec![entry], accounts, ..Snapshot::of(&pool) }
    }

    #[test]
    fn each_kind_of_owner_is_named() {
        let all = snapshot();
        let say = |id| all.who_owns(id).to_string();
        assert_eq!(
            say(196_641),
            "Pod default/nginx (UID u-1), container ID 33, range 196608-262143, recorded in /var/lib/kubelet/pods/u-1/userns"
        );
        assert_eq!(say(0), "the node's account `root`");
        assert_eq!(say(100_001), "the user `ann` in /etc/subuid, range 100000-165535");
        assert!(say(262_144).starts_with("nobody: the block is free"));
        assert!(say(5000).contains("the pool begins at 131072"));
        assert!(say(u32::MAX).contains("no ID"));
        assert_eq!(all.without_accounts().who_owns(0).to_string(), say(1));
        assert!(say(4_294_901_760).contains("the pool ends at 4294901759"));
    }

    #[test]
    fn a_range_falls_into_the_parts_of_its_owners() {
        let all = snapshot();
        let parts = |first, length| {
            let parts = all.who_owns_range(IdRange::new(first, length).unwrap());
            parts.into_iter().map(|(part, owner)| format!("{part} {owner}")).collect::<Vec<_>>()
        };
        assert_eq!(
            parts(165_530, 131_000),
            [
                "165530-165535 the user `ann` in /etc/subuid, range 100000-165535",
                "165536-196607 nobody: the block is free, and a Pod may be given it",
                "196608-262143 Pod default/nginx (UID u-1), container ID 0, range 196608-262143, recorded in /var/lib/kubelet/pods/u-1/userns",
                "262144-296529 nobody: the block is free, and a Pod may be given it",
            ]
        );
        assert_eq!(parts(0, 2).len(), 2);
        let whole = parts(0, u64::from(u32::MAX));
        assert!(whole[0].starts_with("0-0 the node's account `root`"), "{whole:?}");
        let last = whole.last().unwrap();
        assert!(
            last.starts_with("4294901760-4294967294 nobody, and no Pod is given it: the pool ends"),
            "{whole:?}"
        );
    }
}
