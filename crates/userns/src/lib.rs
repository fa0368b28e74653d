//! The host's ID space: which host IDs a Pod may be given, which it holds, and who owns an ID.
//!
//! Everything here is pure: text and numbers in, decisions out. Files, locks and `/proc` belong to the caller.
//!
//! The behaviour follows KEP-127 as Kubernetes 1.36 has it, with these differences: a bad *record* quarantines
//! one Pod instead of stopping the node, reservations are intervals instead of bits (so that another
//! `idsPerPod` stays valid), arithmetic is 64-bit (a range can't wrap onto host ID 0), and the block that ends
//! in 4294967295, which the kernel refuses, is never given out.

mod ledger;
mod owner;
mod pool;
mod range;
mod record;
mod recover;
mod subid;

pub use ledger::{AdoptError, AllocateError, Holder, Ledger, Reservation};
pub use owner::{Account, Entry, Ownership, Snapshot};
pub use pool::{DEFAULT_IDS_PER_POD, IdsPerPod, Machine, Pool, PoolConfig, PoolError, PoolSource, Reserved};
pub use range::{IdRange, MAX_HOST_ID, RangeError};
pub use record::{IdMapping, IdMappings, Record, RecordDefect, RecordError, encode};
pub use recover::{Finding, LiveSandbox, OnDisk, Recovery, plan_recovery};
pub use subid::{SubIdEntry, SubIdError, parse_accounts, parse_getsubids, parse_subids, subids_of};

/// A Pod's UID, as it names the Pod's directory below `/var/lib/kubelet/pods`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid(String);

impl PodUid {
    /// Takes a UID that can name one directory: not empty, no `/`, no NUL, not `.` or `..`, at most 253 bytes.
    pub fn new(uid: &str) -> Option<Self> {
        let fits = !uid.is_empty() && uid.len() <= 253 && uid != "." && uid != "..";
        (fits && !uid.contains(['/', '\0'])).then(|| Self(uid.to_owned()))
    }

    /// The UID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for PodUid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
