//! The tables of the file and the rows in them. Nothing here starts or commits a transaction.
//!
//! `log` is an undo log: a row holds what its write *replaced*, so each value is written once to `current` and, when
//! it is replaced, once to `log`; values of the past follow from walking back from the present.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use redb::{ReadableTable, TableDefinition};

use crate::{Change, Entry, Revision};

/// key → (revision, value).
pub(crate) const CURRENT: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("current");
/// revision → (1 when the key was removed, key, revision replaced or 0, value replaced).
pub(crate) const LOG: TableDefinition<'_, u64, LogRow> = TableDefinition::new("log");
/// Revisions that may have been given out and lost in a crash: (first lost - 1) → (first sure one).
pub(crate) const GAPS: TableDefinition<'_, u64, u64> = TableDefinition::new("gaps");
/// Single numbers, by the names below.
pub(crate) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

pub(crate) type LogRow = (u8, &'static str, u64, &'static [u8]);

pub(crate) const FORMAT: &str = "format";
pub(crate) const REVISION: &str = "revision";
pub(crate) const CEILING: &str = "ceiling";
pub(crate) const FLOOR: &str = "floor";
pub(crate) const CLEAN: &str = "clean";

/// The version of the tables above.
pub(crate) const FORMAT_VERSION: u64 = 1;

/// Reads one number of [`META`]; absent reads as 0.
pub(crate) fn number(meta: &impl ReadableTable<&'static str, u64>, name: &str) -> Result<u64, redb::Error> {
    Ok(meta.get(name)?.map_or(0, |value| value.value()))
}

/// Reads one entry of [`CURRENT`].
pub(crate) fn entry(
    current: &impl ReadableTable<&'static str, (u64, &'static [u8])>,
    key: &str,
) -> Result<Option<Entry>, redb::Error> {
    Ok(current.get(key)?.map(|row| {
        let (revision, value) = row.value();
        Entry { key: Arc::from(key), revision, value: Bytes::copy_from_slice(value) }
    }))
}

/// Changes that are held at a time while a history is told.
const TOLD_AT_ONCE: usize = 256;

/// Gives the changes after a revision to `take`, oldest first, some at a time: what the past weighs is never held whole.
pub(crate) fn history(
    current: &impl ReadableTable<&'static str, (u64, &'static [u8])>,
    log: &impl ReadableTable<u64, LogRow>,
    after: Revision,
    take: &mut dyn FnMut(&[Change]),
) -> Result<(), redb::Error> {
    let replaced = replaced_at(log, after)?;
    let mut changes = Vec::new();
    for (row, replaced) in log.range(after.saturating_add(1)..)?.zip(replaced) {
        let (revision, row) = row?;
        let (deleted, key, previous_revision, previous) = row.value();
        let key: Arc<str> = Arc::from(key);
        let value = match replaced {
            _ if deleted == 1 => None,
            None => entry(current, &key)?.map(|entry| entry.value),
            Some(by) => log.get(by)?.map(|row| Bytes::copy_from_slice(row.value().3)),
        };
        let previous =
            (previous_revision != 0).then(|| (previous_revision, Bytes::copy_from_slice(previous)));
        changes.push(Change { revision: revision.value(), key, value, previous });
        if changes.len() == TOLD_AT_ONCE {
            take(&changes);
            changes.clear();
        }
    }
    if !changes.is_empty() {
        take(&changes);
    }
    Ok(())
}

/// For each log row after a revision, oldest first: the row that replaced its value, which holds it, if one did.
fn replaced_at(
    log: &impl ReadableTable<u64, LogRow>,
    after: Revision,
) -> Result<Vec<Option<Revision>>, redb::Error> {
    let mut rows: HashMap<Revision, usize> = HashMap::new();
    let mut replaced = Vec::new();
    for row in log.range(after.saturating_add(1)..)? {
        let (revision, row) = row?;
        let (_, _, previous_revision, _) = row.value();
        if let Some(at) = rows.remove(&previous_revision)
            && let Some(earlier) = replaced.get_mut(at)
        {
            *earlier = Some(revision.value());
        }
        rows.insert(revision.value(), replaced.len());
        replaced.push(None);
    }
    Ok(replaced)
}
