//! The host's ID space: which host IDs a Pod may be given, which it holds, who owns an ID, and which Pods get one of
//! their own ([`policy`]).
//!
//! Everything here is pure: text and numbers in, decisions out. Files, locks and `/proc` belong to the caller.
//!
//! The behaviour follows KEP-127 as Kubernetes 1.36 has it, with these differences: a bad *record* quarantines
//! one Pod instead of stopping the node, reservations are intervals instead of bits (so that another
//! `idsPerPod` stays valid), arithmetic is 64-bit (a range can't wrap onto host ID 0), and the block that ends
//! in 4294967295, which the kernel refuses, is never given out.

mod ledger;
mod owner;
pub mod policy;
mod pool;
mod range;
mod record;
mod recover;
mod subid;
mod uid;

pub use ledger::{AdoptError, AllocateError, Holder, Ledger, Reservation};
pub use owner::{Account, Entry, Ownership, Quarantined, Snapshot};
pub use pool::{DEFAULT_IDS_PER_POD, IdsPerPod, Machine, Pool, PoolConfig, PoolError, PoolSource, Reserved};
pub use range::{IdRange, MAX_HOST_ID, RangeError};
pub use record::{IdMapping, IdMappings, Record, RecordDefect, RecordError, encode};
pub use recover::{Finding, LiveSandbox, OnDisk, Recovery, plan_recovery};
pub use subid::{SubIdEntry, SubIdError, parse_accounts, parse_getsubids, parse_subids, subids_of};
pub use uid::{BadPodUid, PodUid};
