//! The tables of the file and the rows in them. Nothing here starts or commits a transaction.
//!
//! `log` is an undo log: a row holds what its write *replaced*, so each value is written once to `current` and, when
//! it is replaced, once to `log`; values of the past follow from walking back from the present.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use redb::{AccessGuard, ReadableTable, TableDefinition};

use crate::{After, Change, Entry, Revision, Row, Sink};

/// key → (revision, value).
pub(crate) const CURRENT: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("current");
/// revision → (1 when the key was removed, key, revision replaced or 0, value replaced).
pub(crate) const LOG: TableDefinition<'_, u64, LogRow> = TableDefinition::new("log");
/// Revisions that may have been given out and lost in a crash: (first lost - 1) → (first sure one).
pub(crate) const GAPS: TableDefinition<'_, u64, u64> = TableDefinition::new("gaps");
/// Single numbers, by the names below.
pub(crate) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// A row of [`CURRENT`] where it was read.
pub(crate) type CurrentRow<'a> = (AccessGuard<'a, &'static str>, AccessGuard<'a, (u64, &'static [u8])>);

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

/// Rows are read until they have so many bytes, and then given on: what is made of them and stays shall not lie in memory
/// between the engine's pages, which come and go and would leave holes.
const READ_AT_ONCE: usize = 512 * 1024;

/// Gives rows to `take` until it answers false.
pub(crate) fn give<'a>(
    rows: impl Iterator<Item = Result<CurrentRow<'a>, redb::StorageError>>,
    take: &(dyn Fn(Row<'_>) -> bool + Sync),
) -> Result<(), redb::Error> {
    let (mut bytes, mut ends) = (Vec::with_capacity(READ_AT_ONCE), Vec::new());
    for row in rows {
        let (key, value) = row?;
        let (revision, value) = value.value();
        bytes.extend_from_slice(key.value().as_bytes());
        let key_end = bytes.len();
        bytes.extend_from_slice(value);
        ends.push((key_end, bytes.len(), revision));
        if bytes.len() >= READ_AT_ONCE {
            if !give_some(&bytes, &ends, take) {
                return Ok(());
            }
            bytes.clear();
            ends.clear();
        }
    }
    give_some(&bytes, &ends, take);
    Ok(())
}

fn give_some(
    bytes: &[u8],
    ends: &[(usize, usize, Revision)],
    take: &(dyn Fn(Row<'_>) -> bool + Sync),
) -> bool {
    let mut from = 0;
    ends.iter().all(|(key_end, end, revision)| {
        let key = bytes.get(from..*key_end).and_then(|key| str::from_utf8(key).ok()).unwrap_or_default();
        let value = bytes.get(*key_end..*end).unwrap_or_default();
        from = *end;
        take(Row { key, revision: *revision, value })
    })
}

/// Changes that are held at a time while a history is told.
const TOLD_AT_ONCE: usize = 256;

/// Gives the changes after a revision to a sink, oldest first, some at a time: what the past weighs is never held whole.
pub(crate) fn history(
    current: &impl ReadableTable<&'static str, (u64, &'static [u8])>,
    log: &impl ReadableTable<u64, LogRow>,
    after: Revision,
    sink: &mut dyn Sink,
) -> Result<(), redb::Error> {
    let replaced = replaced_at(log, after)?;
    let mut changes = Vec::new();
    for (row, replaced) in log.range(after.saturating_add(1)..)?.zip(replaced) {
        let (revision, row) = row?;
        let (revision, (deleted, key, previous_revision, previous)) = (revision.value(), row.value());
        let after = match replaced {
            _ if deleted == 1 => After::Removed,
            None if sink.has(key, revision) => After::Known,
            None => value(entry(current, key)?.map(|entry| entry.value)),
            Some(by) => value(log.get(by)?.map(|row| Bytes::copy_from_slice(row.value().3))),
        };
        let previous =
            (previous_revision != 0).then(|| (previous_revision, Bytes::copy_from_slice(previous)));
        changes.push(Change { revision, key: Arc::from(key), after, previous });
        if changes.len() == TOLD_AT_ONCE {
            sink.take(&changes);
            changes.clear();
        }
    }
    if !changes.is_empty() {
        sink.take(&changes);
    }
    Ok(())
}

fn value(value: Option<Bytes>) -> After {
    value.map_or(After::Removed, After::Value)
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
